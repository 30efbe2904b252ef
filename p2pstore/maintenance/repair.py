"""REPAIR: bundles that do not lie here, and have too few copies, get new ones.

What lies here is copied by `replicate`, which needs no help. Of what was evicted somebody else has
the last copies: the bundle is brought back whole (`refetch`), the lanes of `replicate` give it to
others, and when enough of them have proved it, it goes again by the rules of every eviction. A few
bundles at a time, those with the fewest copies first; one that fails rests by itself, longer and
longer, and holds up no other. What has less than min_copies, and nobody else to take it, is brought
back to stay.

What is under way is known in memory only: after a restart a bundle that was brought back is like
any other that lies here, and goes when room is wanted.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from p2pstore.clock import Clock
from p2pstore.errors import Busy, NoRoom, P2PStoreError
from p2pstore.ids import NodeId, short
from p2pstore.maintenance.facts import Lacking, Ledger
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.refetch import Refetcher
from p2pstore.maintenance.world import World
from p2pstore.policy import Action, BackOff, Condition, to_repair
from p2pstore.store import BundleRow, BundleState, Catalog, blocks
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

SOON_S = 2.0  # between two turns while something is under way
AT_HAND = 8  # bundles that are here only to be passed on: 128 MiB at most
CHOICE = 64

Evict = Callable[[Sequence[BundleRow]], Awaitable[object]]


class Repairer:
    def __init__(
        self,
        *,
        catalog: Catalog,
        ledger: Ledger,
        refetcher: Refetcher,
        world: Callable[[], World],
        connected: Callable[[], Sequence[NodeId]],
        copy_soon: Callable[[], None],
        evict: Evict,
        clock: Clock,
        pool: Executor,
    ) -> None:
        """`world` may be called in any thread; `copy_soon` wakes the lanes of `replicate`."""
        self._catalog = catalog
        self._ledger = ledger
        self._refetcher = refetcher
        self._world = world
        self._connected = connected
        self._copy_soon = copy_soon
        self._evict = evict
        self._clock = clock
        self._pool = pool
        self._at_hand: dict[int, BundleRow] = {}
        self._back_off: dict[int, BackOff] = {}

    async def turn(self, loop: Loop) -> float | None:
        world = await in_thread(self._pool, self._world)
        if world.rebuilding:
            return None
        await self._pass_on(world)
        for lacking in await in_thread(self._pool, self._chosen, world):
            if len(self._at_hand) >= AT_HAND:
                break
            loop.say("brings back what has too few copies", len(self._at_hand))
            if not await self._bring(lacking):
                break
        return SOON_S if self._at_hand else None

    def _chosen(self, world: World) -> list[Lacking]:
        """What can be worked on now, the most urgent first."""
        resting = [n for n, back_off in self._back_off.items() if back_off.is_resting(world.now)]
        found = self._ledger.evicted_lacking(
            world, CHOICE, connected=self._connected(), left_out=[*self._at_hand, *resting]
        )
        lacking: dict[bytes, Lacking] = {one.row.bundle_id: one for one in found}
        conditions = [
            Condition(
                one.row.bundle_id,
                False,
                one.copies,
                one.min_copies,
                one.target,
                one.row.created / 1000,
                self._back_off.get(one.row.id, BackOff()),
            )
            for one in found
        ]
        work = to_repair(conditions, world.now)
        return [lacking[c.bundle] for c, verdict in work if verdict.action is Action.BRING_BACK]

    async def _bring(self, lacking: Lacking) -> bool:
        """False when nothing more is to be tried in this turn."""
        row, now = lacking.row, self._clock.wall()
        try:
            await self._refetcher.refetch(row)
        except NoRoom as exc:
            log.info("Nothing is repaired for want of room: %s", exc)
            return False
        except Busy:
            return True
        except P2PStoreError as exc:
            log.info("Bundle %s cannot be repaired yet: %s", short(row.bundle_id), exc)
            self._back_off[row.id] = self._back_off.get(row.id, BackOff()).failed(now)
            return True
        self._back_off.pop(row.id, None)
        if lacking.has_taker:
            self._at_hand[row.id] = row
            self._copy_soon()
        return True

    async def _pass_on(self, world: World) -> None:
        """What has enough copies now goes again."""
        if not self._at_hand:
            return
        done = await in_thread(self._pool, self._done, world)
        for row in done:
            del self._at_hand[row.id]
        fresh = [row for row in done if row.state == BundleState.SEALED]
        if fresh:
            await self._evict(fresh)

    def _done(self, world: World) -> list[BundleRow]:
        done: list[BundleRow] = []
        for number in list(self._at_hand):
            row = self._catalog.view(partial(_row, number))
            if row is None:
                del self._at_hand[number]
            elif row.state != BundleState.SEALED or not self._ledger.is_lacking(world, row):
                done.append(row)
        return done


def _row(number: int, db: sqlite3.Connection) -> BundleRow | None:
    return blocks.by_rowid(db, number)
