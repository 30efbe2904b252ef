"""Which paths wait for what: to come to rest, to be tried again, to be taken.

Pure bookkeeping for one folder. `due` gives out what has rested; a path that changes begins anew.
A forced one does not wait, until it has been judged. Memory is one entry for each path that is
neither settled nor known to the catalog as it is.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import NamedTuple

from p2pstore.placement import Identity

SLACK = 256  # outdated entries that are not worth a new heap


class Rest(NamedTuple):
    identity: Identity
    reason: str  # why it did not go the last time; empty at first
    due: float  # on the monotonic clock


@dataclass(slots=True)
class Tally:
    files: int = 0
    bytes: int = 0


class Waiting:
    def __init__(self) -> None:
        self._rest: dict[bytes, Rest] = {}
        self._heap: list[tuple[float, bytes]] = []
        self._active = Tally()  # kept up: it is asked after every batch
        self._forced: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._rest)

    def __contains__(self, path: bytes) -> bool:
        return path in self._rest

    def observe(self, path: bytes, identity: Identity, *, now: float, settle: float) -> None:
        """The path was seen like this; it is due when it stays so for `settle` seconds."""
        known = self._rest.get(path)
        if known is not None and known.identity == identity and not known.reason:
            return
        due = now if path in self._forced else now + settle
        self._put(path, Rest(identity, "", due))

    def touch(self, path: bytes, *, now: float, settle: float) -> None:
        """An event named it: the rest begins anew, whatever it looks like."""
        known = self._rest.get(path)
        if known is not None and path not in self._forced:
            self._put(path, known._replace(due=now + settle, reason=""))

    def defer(self, path: bytes, identity: Identity, reason: str, *, until: float) -> None:
        """Try again at `until`."""
        self._put(path, Rest(identity, reason, until))

    def shorten(self, *, now: float, settle: float) -> None:
        """The rest that is asked for became shorter: nobody waits longer than that from now on."""
        for path, rest in list(self._rest.items()):
            if not rest.reason and rest.due > now + settle:
                self._put(path, rest._replace(due=now + settle))

    def force(self, path: bytes, *, now: float, identity: Identity | None = None) -> None:
        """Due now, however it waits; known as `identity` if it did not wait at all."""
        known = self._rest.get(path)
        if identity is None and known is not None:
            identity = known.identity
        if identity is not None:
            self._forced.add(path)
            self._put(path, Rest(identity, "", now))

    def take_forced(self, path: bytes) -> bool:
        """Whether it was forced; that is used up by the judgement that asks."""
        if path not in self._forced:
            return False
        self._forced.remove(path)
        return True

    def has_forced(self) -> bool:
        """Something that was to go now has not been judged yet."""
        return bool(self._forced)

    def drop(self, path: bytes) -> None:
        self._forced.discard(path)
        self._take_out(path)

    def clear(self) -> None:
        self._rest.clear()
        self._heap.clear()
        self._forced.clear()
        self._active = Tally()

    def due(self, now: float, limit: int) -> list[tuple[bytes, Rest]]:
        """At most `limit` paths that rested long enough; they are taken out."""
        found: list[tuple[bytes, Rest]] = []
        while self._heap and self._heap[0][0] <= now and len(found) < limit:
            moment, path = heapq.heappop(self._heap)
            rest = self._rest.get(path)
            if rest is not None and rest.due == moment:
                self._take_out(path)
                found.append((path, rest))
        return found

    def below(self, path: bytes) -> list[bytes]:
        """Those at `path` or beneath it; all for the empty path."""
        prefix = path + b"/"
        return [p for p in self._rest if not path or p == path or p.startswith(prefix)]

    def next_due(self) -> float | None:
        """When to look again; never later than the first that is due."""
        return self._heap[0][0] if self._heap else None

    def active(self) -> Tally:
        """Those that will go by themselves soon: not held up by a reason."""
        return self._active

    def held_up(self) -> dict[str, Tally]:
        """reason -> how many wait for it."""
        tallies: dict[str, Tally] = {}
        for rest in self._rest.values():
            if rest.reason:
                tally = tallies.setdefault(rest.reason, Tally())
                tally.files += 1
                tally.bytes += rest.identity.size
        return tallies

    def reason(self, path: bytes) -> str | None:
        """Why it waits ("" while it comes to rest); None when it does not."""
        rest = self._rest.get(path)
        return None if rest is None else rest.reason

    def reasons(self) -> list[tuple[bytes, str]]:
        return [(path, rest.reason) for path, rest in self._rest.items() if rest.reason]

    def _put(self, path: bytes, rest: Rest) -> None:
        self._take_out(path)
        self._rest[path] = rest
        self._count(rest, 1)
        heapq.heappush(self._heap, (rest.due, path))
        if len(self._heap) > 2 * len(self._rest) + SLACK:
            # A path that changes all the time leaves outdated entries behind.
            self._heap = [(rest.due, path) for path, rest in self._rest.items()]
            heapq.heapify(self._heap)

    def _take_out(self, path: bytes) -> None:
        rest = self._rest.pop(path, None)
        if rest is not None:
            self._count(rest, -1)

    def _count(self, rest: Rest, by: int) -> None:
        if not rest.reason:
            self._active.files += by
            self._active.bytes += by * rest.identity.size
