"""The books of one watched folder: what was heard, waits, seems lost, is being done by ourselves.

One loop changes them, between its awaits; threads are handed copies. Those who look, judge and take
share them, and none of these needs to know the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from p2pstore.config import FolderSettings
from p2pstore.folders.losses import Losses
from p2pstore.folders.waiting import Waiting
from p2pstore.placement import SUFFIX

OWN_OPENS_S = 10.0  # opens of a batch are judged within this after it has ended


class Hints:
    """Paths that somebody touched, or a reason to look at everything: until the next look."""

    def __init__(self) -> None:
        self.news = asyncio.Event()  # set with each hint, cleared by who waits for it
        self._paths: set[bytes] = set()
        self._rescan: str | None = "start"
        self._judge_anew = False

    def __bool__(self) -> bool:
        return bool(self._paths) or self._rescan is not None

    def add(self, paths: Iterable[bytes]) -> None:
        self._paths.update(paths)
        self.news.set()

    def ask_rescan(self, reason: str, *, judge_anew: bool = False) -> None:
        """Look at everything; `judge_anew`: also at what was judged already."""
        self._rescan = self._rescan or reason
        self._judge_anew |= judge_anew
        self.news.set()

    def take_rescan(self) -> bool | None:
        """None when none is wanted; else it covers every hint, and says whether to judge anew."""
        if self._rescan is None:
            return None
        judge_anew = self._judge_anew
        self._rescan, self._judge_anew = None, False
        self._paths.clear()
        return judge_anew

    def take_paths(self) -> list[bytes]:
        paths, self._paths = sorted(self._paths), set()
        return paths

    def start_over(self) -> None:
        """The folder was left: what was heard of it says nothing about what comes back."""
        self._paths.clear()
        self._rescan = "start"


class Ours:
    """What we are changing ourselves: a look may meet it half done, an open of it may be ours.

    A look takes time, and so does a batch; catalog and disk agree again only at `end`. Until then
    nothing is concluded about such paths, above all not that they are gone.
    """

    def __init__(self, hints: Hints) -> None:
        self._hints = hints
        self._paths: set[bytes] = set()
        self._lately: set[bytes] = set()  # finished since the last look began
        self._half_seen: set[bytes] = set()  # a look met them half done
        self._placed: deque[tuple[float, frozenset[bytes]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._paths)

    def begin(self, paths: Iterable[bytes]) -> None:
        self._paths.update(paths)

    def end(self, paths: Iterable[bytes]) -> None:
        ended = set(paths)
        self._paths -= ended
        self._lately |= ended
        again = self._half_seen & ended
        self._half_seen -= again
        self._look_again(again)
        self._hints.news.set()

    def look_begins(self) -> None:
        self._lately.clear()

    def met(self, path: bytes) -> bool:
        """Whether we changed the path while the last look ran; then it is looked at again."""
        if path in self._paths:
            self._half_seen.add(path)
            return True
        if path in self._lately:
            self._look_again((path,))
            return True
        return False

    def _look_again(self, paths: Iterable[bytes]) -> None:
        for path in paths:
            self._hints.add((path, path + SUFFIX))

    def placed(self, paths: Iterable[bytes], now: float) -> None:
        """A batch has ended: whoever opened one of its placeholders until now was it."""
        self._placed.append((now, frozenset(paths)))

    def opened(self, path: bytes, heard: float, now: float) -> bool:
        """Whether an open of this path's placeholder came from the batch that made it."""
        while self._placed and self._placed[0][0] < now - OWN_OPENS_S:
            self._placed.popleft()
        return any(heard <= ended and path in paths for ended, paths in self._placed)


@dataclass(slots=True)
class Surroundings:
    """What decides about a file and is not in it, as the looks found it."""

    repositories: set[bytes] = field(default_factory=set)  # directories with a repository's mark
    siblings: dict[bytes, set[bytes]] = field(default_factory=dict)  # lock files by directory


class InFlight:
    """The files that batches have in hand now."""

    def __init__(self) -> None:
        self._sizes: dict[bytes, int] = {}
        self._done: dict[bytes, int] = {}  # of large files; each is written by its batch alone
        self._ended = asyncio.Event()  # set for a moment by each end

    def __contains__(self, path: bytes) -> bool:
        return path in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def size(self) -> int:
        return sum(self._sizes.values())

    @property
    def done(self) -> int:
        """Of their bytes those that have their place: what a progress bar wants to know."""
        return sum(list(self._done.values()))

    def begin(self, path: bytes, size: int) -> None:
        self._sizes[path] = size

    def advance(self, path: bytes, size: int) -> None:
        """From the batch's thread."""
        self._done[path] = self._done.get(path, 0) + size

    def end(self, paths: Iterable[bytes]) -> None:
        for path in paths:
            self._sizes.pop(path, None)
            self._done.pop(path, None)
        self._ended.set()
        self._ended.clear()

    async def end_of(self, path: bytes) -> None:
        """Return when what is in hand now, at a path or beneath it, is not any more."""
        prefix = path + b"/"
        mine = {p for p in self._sizes if not path or p == path or p.startswith(prefix)}
        while mine & self._sizes.keys():
            await self._ended.wait()


class Books:
    def __init__(self, settings: FolderSettings) -> None:
        self.settings = settings
        self.hints = Hints()
        self.waiting = Waiting()
        self.losses = Losses()
        self.ours = Ours(self.hints)
        self.surroundings = Surroundings()
        self.obstacle: str | None = None  # why nothing may be replaced here at present
        self.in_flight = InFlight()
