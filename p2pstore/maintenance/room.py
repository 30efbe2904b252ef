"""ROOM: local copies go by themselves when the disk fills up.

When little is left above `keep-free`, the bundles that were used the longest ago are evicted, by
the same rules as for somebody who asks, and only those that have all the copies that they are to
have. What may not go is told with its reason by `evict --why`, and is left alone for an hour: the
oldest, of which a holder is away, would otherwise keep all others from being tried.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor

from p2pstore.clock import Clock
from p2pstore.config import format_size
from p2pstore.content import Kind
from p2pstore.ids import BundleId
from p2pstore.maintenance.evict import Evictor
from p2pstore.maintenance.loops import Loop
from p2pstore.policy import Evictable, room_wanted, to_evict
from p2pstore.store import BundleRow, Catalog, blocks
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

SOON_S = 2.0  # after a turn in which less came free than was wanted
REST_S = 600.0  # ... when nothing is left to be tried
STAYS_S = 3600.0


class RoomMaker:
    def __init__(
        self,
        *,
        catalog: Catalog,
        evictor: Evictor,
        measures: Callable[[], tuple[int, int, int]],
        waiting: Callable[[], int],
        clock: Clock,
        pool: Executor,
    ) -> None:
        """`measures` tells (total, free, keep-free) of the store's disk, `waiting` the bytes of
        files that cannot be taken for want of room."""
        self._catalog = catalog
        self._evictor = evictor
        self._measures = measures
        self._waiting = waiting
        self._clock = clock
        self._pool = pool
        self._stays: dict[BundleId, float] = {}  # tried in vain -> when it may be tried again

    async def turn(self, loop: Loop) -> float | None:
        total, free, keep_free = self._measures()
        room = room_wanted(free=free, keep_free=keep_free, total=total, waiting=self._waiting())
        if not room:
            return None
        rows = await in_thread(self._pool, self._chosen, room)
        if not rows:
            return REST_S
        loop.say(f"makes {format_size(room)} free")
        freed = await self._evictor.evict(rows, lambda _: None, for_room=True)
        if freed.bytes:
            log.info("%s came free, because the disk is filling up.", format_size(freed.bytes))
        until = self._clock.monotonic() + STAYS_S
        self._stays.update((row.bundle_id, until) for row in rows)  # what went is not met again
        return SOON_S if freed.bytes < room else None

    def _chosen(self, room: int) -> list[BundleRow]:
        def look(db: sqlite3.Connection) -> list[tuple[BundleRow, int, bool]]:
            return blocks.by_use(db, int(Kind.DATA))

        now = self._clock.monotonic()
        self._stays = {bundle: until for bundle, until in self._stays.items() if until > now}
        found = [one for one in self._catalog.view(look) if one[0].bundle_id not in self._stays]
        rows = {row.bundle_id: row for row, _, _ in found}
        able = [
            Evictable(row.bundle_id, row.bytes, last_use / 1000, is_pinned)
            for row, last_use, is_pinned in found
        ]
        return [rows[one.bundle] for one in to_evict(able, room, self._clock.wall())]  # type: ignore[index]
