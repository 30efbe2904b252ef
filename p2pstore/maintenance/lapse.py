"""LAPSE: what is kept for somebody who has let the lease end may go when the disk is full.

It goes into the trash first, where a device of its owner's can have it back for 7 days; so the room
comes a week later, and until then the owners of the others are asked (`relief`). When an end was
first seen is kept in the catalog: losing it costs 30 days more.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor

import msgspec

from p2pstore.clock import Clock
from p2pstore.errors import Busy, Unavailable
from p2pstore.ids import BundleId, short
from p2pstore.maintenance.age import Age
from p2pstore.maintenance.loops import Loop
from p2pstore.policy import Lapsed, to_drop
from p2pstore.store import Catalog, HeldStore, folders
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

_KEY = "lapsed"
_SEEN = msgspec.msgpack.Decoder(dict[BundleId, int])


class Lapser:
    def __init__(
        self,
        held: HeldStore,
        catalog: Catalog,
        *,
        free: Callable[[], int],
        clock: Clock,
        pool: Executor,
    ) -> None:
        """`free`: bytes above keep-free on the disk with what is held; negative when beyond."""
        self._held = held
        self._catalog = catalog
        self._free = free
        self._clock = clock
        self._pool = pool
        self._age = Age(catalog, clock, key="lapse:age")

    async def turn(self, loop: Loop) -> float | None:
        dropped = await in_thread(self._pool, self._turn)
        if dropped:
            loop.say("drops what its owners let end", dropped)
        return None

    def _turn(self) -> int:
        age = self._age.now()
        before = self._catalog.view(_load)
        ended = self._held.ended(int(self._clock.wall() * 1000), 0)
        # An end in the future was seen by nobody: the count that it comes from is another one.
        seen = {one.bundle_id: min(before.get(one.bundle_id, age), age) for one in ended}
        if seen != before:
            raw = msgspec.msgpack.encode(seen)
            self._catalog.write(lambda db: folders.kv_set(db, _KEY, raw)).result()
        lapsed = [
            Lapsed(one.bundle_id, one.live_bytes, one.lease_until_ms, seen[one.bundle_id])
            for one in ended
        ]
        return sum(
            self._drop(BundleId(one.bundle))
            for one in to_drop(lapsed, age=age, missing=-self._free())
        )

    def _drop(self, bundle_id: BundleId) -> bool:
        try:
            self._held.release(bundle_id)
        except (Busy, Unavailable) as exc:
            log.info("Bundle %s stays, though its lease has ended: %s", short(bundle_id), exc)
            return False
        log.info("Bundle %s goes: its lease ended, and the disk is full.", short(bundle_id))
        return True


def _load(db: sqlite3.Connection) -> dict[BundleId, int]:
    raw = folders.kv_get(db, _KEY)
    return {} if raw is None else _SEEN.decode(raw)
