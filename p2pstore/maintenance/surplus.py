"""SURPLUS: copies far beyond the target are let go of, after two weeks (`policy.repair`).

A holder that was away and came back leaves a bundle with more copies than it is to have. Since when
that is so is kept in the catalog; losing it costs two weeks more. Only holders that are connected
are asked, each bundle at most one copy in a turn: what is there next time is judged anew.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import msgspec

from p2pstore.clock import Clock
from p2pstore.errors import P2PStoreError
from p2pstore.ids import BundleId, NodeId, short
from p2pstore.maintenance.age import Steady
from p2pstore.maintenance.facts import Crowded, Ledger
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.world import World
from p2pstore.policy import Action, Condition, judge
from p2pstore.store import BundleState, Catalog, copies, folders
from p2pstore.swarm import Pusher
from p2pstore.threads import in_thread
from p2pstore.wire import Unknown

log = logging.getLogger(__name__)

MOST = 1000  # bundles looked at in one turn
_KEY = "surplus"
_SINCE = msgspec.msgpack.Decoder(dict[BundleId, int])


class Surplus:
    def __init__(
        self,
        *,
        catalog: Catalog,
        ledger: Ledger,
        pusher: Pusher,
        world: Callable[[], World],
        connected: Callable[[], Sequence[NodeId]],
        clock: Clock,
        pool: Executor,
    ) -> None:
        """`world` may be called in any thread."""
        self._catalog = catalog
        self._ledger = ledger
        self._pusher = pusher
        self._world = world
        self._connected = connected
        self._steady = Steady(catalog, clock, key="surplus")
        self._pool = pool

    async def turn(self, loop: Loop) -> float | None:
        world = await in_thread(self._pool, self._world)
        if world.rebuilding:
            return None
        there = set(self._connected())
        for number, (one, holder) in enumerate(await in_thread(self._pool, self._chosen, world)):
            if holder not in there:
                continue
            loop.say("lets go of copies that are more than enough", number)
            try:
                await self._pusher.release(one.row.bundle_id, holder)
            except Unknown:
                pass  # it has let it go already
            except P2PStoreError as exc:
                log.info("A copy of bundle %s stays: %s", short(one.row.bundle_id), exc)
                continue
            await self._catalog.awrite(
                lambda db, one=one, holder=holder: copies.set_state(  # type: ignore[misc]
                    db, one.row.id, holder, copies.CopyState.RELEASED
                )
            )
        return None

    def _chosen(self, world: World) -> list[tuple[Crowded, NodeId]]:
        """One copy of each bundle that has had too many for long enough."""
        now_ms = self._steady.now_ms()
        before = self._catalog.view(_load)
        crowded = self._ledger.crowded(world, MOST)
        since: dict[BundleId, int] = {}
        chosen: list[tuple[Crowded, NodeId]] = []
        for one in crowded:
            bundle_id = one.row.bundle_id
            first = min(before.get(bundle_id, now_ms), now_ms)
            # What has passed by the steady clock, on the clock that policy is told.
            passed_s = (now_ms - first) / 1000
            verdict = judge(
                Condition(
                    bundle_id,
                    one.row.state == BundleState.SEALED,
                    one.copies,
                    one.min_copies,
                    one.target,
                    one.row.created / 1000,
                    surplus_since=world.now - passed_s,
                ),
                world.now,
            )
            if verdict.has_surplus:
                since[bundle_id] = first
            if verdict.action is Action.RELEASE and verdict.release:
                chosen.append((one, NodeId(verdict.release[0].node)))
        if since != before:
            raw = msgspec.msgpack.encode(since)
            self._catalog.write(lambda db: folders.kv_set(db, _KEY, raw)).result()
        return chosen


def _load(db: sqlite3.Connection) -> dict[BundleId, int]:
    raw = folders.kv_get(db, _KEY)
    return {} if raw is None else _SINCE.decode(raw)
