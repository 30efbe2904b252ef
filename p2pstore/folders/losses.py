"""What seems to be gone from a folder, or is not as it was, until it is concluded or asked about.

Pure bookkeeping for one folder. A path that is missing must stay so for `settle` before anything is
concluded. More than 20 files and 10 % at once, gone or changed, are no ordinary day: then the owner
is asked, and nothing is concluded before he has answered (SAFETY, section 6).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from p2pstore.policy import is_mass_change

WINDOW_S = 60.0  # "at once": what is lost within this is counted together


class Losses:
    def __init__(self) -> None:
        self.change: tuple[int, int] | None = None  # lost and total, while the owner is asked
        self._gone: dict[bytes, float] = {}  # path -> when it may be concluded
        self._edited: deque[tuple[float, int]] = deque()  # when, and how many
        self._concluded: deque[tuple[float, list[bytes]]] = deque()  # when, and which are deleted
        self._accepted = False
        self._calm_since: float | None = None  # nothing comes of what was accepted

    @property
    def gone(self) -> list[bytes]:
        return list(self._gone)

    def missing(self, path: bytes, *, due: float) -> None:
        self._gone.setdefault(path, due)

    def found(self, paths: Iterable[bytes]) -> None:
        for path in paths:
            self._gone.pop(path, None)

    @property
    def concluded(self) -> list[bytes]:
        """What counts as lost and was concluded to be deleted, one by one, before it was many."""
        return [path for _, paths in self._concluded for path in paths]

    def changed(self, count: int, now: float) -> None:
        """So many known files are not as they were."""
        if count and not self._accepted:
            self._edited.append((now, count))

    def conclude(self, paths: Iterable[bytes], now: float) -> None:
        """These are deleted: nobody waits for them any more."""
        gone = list(paths)
        self.found(gone)
        if not self._accepted:
            self._concluded.append((now, gone))

    def ripe(self, now: float) -> list[bytes]:
        """Paths that were missing long enough."""
        return [path for path, due in self._gone.items() if due <= now]

    def next_due(self) -> float | None:
        return min(self._gone.values(), default=None)

    def is_quiet(self, now: float) -> bool:
        """Nothing is to be judged now."""
        for recent in (self._edited, self._concluded):
            while recent and recent[0][0] < now - WINDOW_S:
                recent.popleft()
        return not self._edited and not self._concluded and not self.ripe(now)

    def is_mass(self, total: int) -> bool:
        """Whether the owner must be asked, of `total` files that are known and not concluded to be
        deleted; remembered in `change`."""
        concluded = len(self.concluded)
        lost = len(self._gone) + concluded + sum(count for _, count in self._edited)
        total += concluded
        if self._accepted or not is_mass_change(lost, total):
            return False
        self.change = (lost, total)
        return True

    def accept(self) -> None:
        """The owner says that this change is meant; the next one is asked about again."""
        self._accepted, self._calm_since = True, None
        self._edited.clear()
        self._concluded.clear()
        self.change = None

    def comes_to_rest(self, now: float, *, is_busy: bool) -> None:
        """What was accepted is over when nothing has come of it for a while."""
        if is_busy or self._gone:
            self._calm_since = None
        elif self._calm_since is None:
            self._calm_since = now
        elif now - self._calm_since >= WINDOW_S:
            self._accepted = False

    def settle(self) -> None:
        """Everything was concluded."""
        if not self._gone:
            self._accepted = False

    def forget(self) -> None:
        """The change was undone."""
        self._gone.clear()
        self._edited.clear()
        self._concluded.clear()
        self.change = None
