"""Which opened placeholders are brought back (SAFETY, 4.1).

The system tells that a `.f` was opened, not by whom. A person opens one or a few; a backup, an
indexer or a file manager opens many in a row. So an open waits 500 ms. Four or more different `.f`
within 500 ms are a scanner: nothing is brought back until a minute passed without any open.

Otherwise the first file of a minute is always allowed, whatever its size; further ones up to
10 files and 1 GiB a minute and 200 files a day. Nothing goes into the room that is kept free. What
is not allowed is forgotten and counted: another open asks again.

Times are those of a monotonic clock. Opens of our own never come here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

WAIT_S = 0.5
SCANNER_FILES = 4
QUIET_S = 60.0
MINUTE_S = 60.0
DAY_S = 86_400.0
FILES_A_MINUTE = 10
BYTES_A_MINUTE = 1 << 30
FILES_A_DAY = 200
MAX_WAITING = 64  # more is a scanner too, whatever its pace: nobody took our decisions in time

SCANNER = "backup or indexer"
BUDGET = "too many at once"
ROOM = "no room"


class OpenGate:
    def __init__(self) -> None:
        self._waiting: dict[bytes, float] = {}  # path -> first open
        self._recent: dict[bytes, float] = {}  # path -> last open, within WAIT_S
        self._quiet_from: float | None = None  # the last open while a scanner is at work
        self._last_allowed: float | None = None
        self._further: deque[tuple[float, int]] = deque()  # (when, bytes) of a day
        self.ignored: Counter[str] = Counter()  # reason -> opens; for `status`
        self.last_ignored: float | None = None

    @property
    def ignored_total(self) -> int:
        return self.ignored.total()

    def is_scanning(self, now: float) -> bool:
        return self._quiet_from is not None and now - self._quiet_from < QUIET_S

    def seen(self, path: bytes, now: float) -> None:
        """A `.f` was opened by somebody."""
        if self.is_scanning(now):
            self._quiet_from = now
            self._ignore(SCANNER, 1, now)
            return
        self._quiet_from = None
        self._recent = {p: t for p, t in self._recent.items() if now - t <= WAIT_S}
        self._recent[path] = now
        self._waiting.setdefault(path, now)
        if len(self._recent) >= SCANNER_FILES or len(self._waiting) > MAX_WAITING:
            self._quiet_from = now
            self._ignore(SCANNER, len(self._waiting), now)
            self._waiting.clear()
            self._recent.clear()

    def next_due(self) -> float | None:
        """When `decide` has something to say; None while nothing waits."""
        return min(self._waiting.values()) + WAIT_S if self._waiting else None

    def decide(self, now: float, *, size_of: Callable[[bytes], int], room: int) -> list[bytes]:
        """Paths to hydrate, in the order of their opens.

        `size_of` tells an original's size; `room` is what may be written before the room that is
        kept free begins, and is shared by the paths returned here.
        """
        due = [path for path, since in self._waiting.items() if now >= since + WAIT_S]
        allowed = []
        for path in due:
            del self._waiting[path]
            size = size_of(path)
            if size > room:
                self._ignore(ROOM, 1, now)
            elif not self._take(size, now):
                self._ignore(BUDGET, 1, now)
            else:
                room -= size
                allowed.append(path)
        return allowed

    def _take(self, size: int, now: float) -> bool:
        if self._last_allowed is None or now - self._last_allowed >= MINUTE_S:
            self._last_allowed = now
            return True
        while self._further and now - self._further[0][0] >= DAY_S:
            self._further.popleft()
        minute = [taken for when, taken in self._further if now - when < MINUTE_S]
        if (
            len(self._further) >= FILES_A_DAY
            or len(minute) >= FILES_A_MINUTE
            or sum(minute) + size > BYTES_A_MINUTE
        ):
            return False
        self._further.append((now, size))
        return True

    def _ignore(self, reason: str, count: int, now: float) -> None:
        self.ignored[reason] += count
        self.last_ignored = now
