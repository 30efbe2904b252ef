"""When a file may be taken: at rest, and no longer in work (SAFETY, 3.1).

At rest: our own observations, at least `settle` apart on the monotonic clock, saw the same, and no
event came in between. What the file says of its own times does not matter: an mtime in the future
or set back must not fool us.

In work: a path that was replaced before, or edited after it was protected, stays `keep` after its
last use. It is protected meanwhile; only its replacement waits. An editor holds no descriptor, so
nothing else would keep a file from vanishing while somebody works on it.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable

SOON_S = 0.25


class Rest:
    """Paths that are not at rest yet. Memory: one entry a path, until it rests or is forgotten."""

    def __init__(self, settle_s: float) -> None:
        self._settle_s = settle_s
        self._since: dict[bytes, tuple[float, Hashable]] = {}  # path -> unchanged since, what
        self._due: list[tuple[float, bytes]] = []  # may hold outdated entries

    def __len__(self) -> int:
        return len(self._since)

    def observe(self, path: bytes, stamp: Hashable, now: float) -> bool:
        """Note what a look at the path showed; True when it is at rest, which ends its watch.

        `stamp` is all that must not change: identity, size, mtime and ctime; never None.
        """
        known = self._since.get(path)
        if known is None or known[1] != stamp:
            known = now, stamp
            self._watch(path, now, stamp)
        if now < known[0] + self._settle_s:  # the same sum as in the heap: nothing falls between
            return False
        self.forget(path)
        return True

    def event(self, path: bytes, now: float) -> None:
        """Something happened to the path: the time of rest begins anew, at the look that is due
        soon. Soon, not at once: a file that is being written makes thousands of events a second."""
        known = self._since.get(path)
        if known is None or known[1] is not None:
            self._watch(path, now, None)

    def forget(self, path: bytes) -> None:
        self._since.pop(path, None)

    def next_due(self) -> float | None:
        """When the next path is worth a look; None while nothing waits."""
        while self._due and self._is_outdated(*self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def due(self, now: float, limit: int = 10_000) -> list[bytes]:
        """Paths worth a look now. Each must then be observed or forgotten."""
        found: list[bytes] = []
        while len(found) < limit:
            first = self.next_due()
            if first is None or first > now:
                break
            found.append(heapq.heappop(self._due)[1])
        return found

    def _watch(self, path: bytes, since: float, stamp: Hashable) -> None:
        self._since[path] = since, stamp
        heapq.heappush(self._due, (self._due_at(since, stamp), path))

    def _due_at(self, since: float, stamp: Hashable) -> float:
        """After a mere event nothing was seen yet; the look that begins the rest comes soon."""
        return since + (min(SOON_S, self._settle_s) if stamp is None else self._settle_s)

    def _is_outdated(self, due: float, path: bytes) -> bool:
        known = self._since.get(path)
        return known is None or due != self._due_at(*known)


def in_work_for(
    *,
    last_use: float,
    now: float,
    keep_s: float,
    replaced_before: bool,
    edited_since_protected: bool,
) -> float:
    """Seconds for which the path must not be replaced yet; 0 when it may be (wall clock).

    A last use in the future (somebody set the clock back) counts as one of just now.
    """
    if not (replaced_before or edited_since_protected):
        return 0.0
    return max(0.0, keep_s - max(0.0, now - last_use))
