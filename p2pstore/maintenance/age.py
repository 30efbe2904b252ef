"""AGE: how long this catalog has been at work, in ms: what days before something goes are counted
by.

It goes on with the clock that does not jump. Over a restart only the wall clock can tell, and that
may have been set to any date meanwhile, so one restart counts for LONGEST_REST_MS at the most.
"""

from __future__ import annotations

import sqlite3

import msgspec

from p2pstore.clock import Clock
from p2pstore.store import Catalog, folders

LONGEST_REST_MS = 7 * 86_400_000


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    age_ms: int = 0
    wall_ms: int = 0  # when it was written


class Age:
    def __init__(self, catalog: Catalog, clock: Clock, *, key: str = "collect:age") -> None:
        """`key` of the catalog: each that counts has a count of its own."""
        self._key = key
        self._catalog = catalog
        self._clock = clock
        self._last: tuple[int, float] | None = None  # age, and the monotonic clock then

    def now(self) -> int:
        """Durable on return: it never goes back. Blocks on the catalog."""
        return self._catalog.write(self._advance).result()

    def _advance(self, db: sqlite3.Connection) -> int:
        wall_ms, monotonic = int(self._clock.wall() * 1000), self._clock.monotonic()
        if self._last is None:
            raw = folders.kv_get(db, self._key)
            kept = _Kept(0, wall_ms) if raw is None else msgspec.msgpack.decode(raw, type=_Kept)
            age = kept.age_ms + min(max(0, wall_ms - kept.wall_ms), LONGEST_REST_MS)
        else:
            age = self._last[0] + max(0, int((monotonic - self._last[1]) * 1000))
        folders.kv_set(db, self._key, msgspec.msgpack.encode(_Kept(age, wall_ms)))
        self._last = (age, monotonic)
        return age


class Steady:
    """The wall clock, never ahead of what this catalog has lived through since it first looked.

    For what is removed a time after a date that the wall clock gave: a clock that jumps ahead makes
    nothing older than it is. After months of being switched off it is behind, and things stay.
    """

    def __init__(self, catalog: Catalog, clock: Clock, *, key: str) -> None:
        self._catalog = catalog
        self._clock = clock
        self._age = Age(catalog, clock, key=f"{key}:age")
        self._key = f"{key}:since"

    def now_ms(self) -> int:
        """Blocks on the catalog."""
        age, wall_ms = self._age.now(), int(self._clock.wall() * 1000)

        def look(db: sqlite3.Connection) -> int:
            raw = folders.kv_get(db, self._key)
            if raw is not None:
                return int(msgspec.msgpack.decode(raw, type=int))
            folders.kv_set(db, self._key, msgspec.msgpack.encode(wall_ms - age))
            return wall_ms - age

        return min(wall_ms, self._catalog.write(look).result() + age)
