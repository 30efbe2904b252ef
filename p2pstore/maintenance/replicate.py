"""REPLICATE: bundles that want more copies are pushed to holders; receipts become catalog rows.

One lane for each connected holder, so that a slow one delays nobody. A copy is recorded only from a
receipt whose proof was compared with our own bytes (swarm.Pusher does that); a holder that has no
room, or fails, is left alone for a while.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from functools import partial

from p2pstore.clock import Clock
from p2pstore.errors import Busy, IntegrityError, NotAllowed, P2PStoreError
from p2pstore.ids import BundleId, NodeId, short
from p2pstore.maintenance.facts import Ledger
from p2pstore.maintenance.world import World
from p2pstore.store import (
    BundleDamaged,
    BundleMissing,
    BundleRow,
    Catalog,
    StaleMap,
    copies,
    holders,
)
from p2pstore.swarm import Pusher
from p2pstore.wire import Unknown

log = logging.getLogger(__name__)

AT_ONCE = 2  # pushes to one holder: the next is sent while the last is synced there
PAGE = 64
BACK_OFF_S = (5.0, 600.0)
REFUSALS = 8  # bundles in one go: beyond that it is the holder, not the bundle
LOOK_S = 50.0  # less than a pass of maintenance


class Replicator:
    def __init__(
        self,
        *,
        catalog: Catalog,
        ledger: Ledger,
        pusher: Pusher,
        world: Callable[[], World],
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._ledger = ledger
        self._pusher = pusher
        self._world = world
        self._clock = clock
        self._resting: dict[NodeId, tuple[float, float]] = {}  # until, pause
        # When all bundles were last looked through for a holder that then lacked none, and the
        # newest of them: until LOOK_S have passed only newer ones are looked at.
        self._looked: dict[NodeId, tuple[float, int]] = {}
        self._changes = 0  # each makes what is being looked through just then worth another look
        self.sending: dict[NodeId, int] = {}  # bytes on their way, for `status`
        self.trouble: dict[NodeId, str] = {}

    async def serve(self, holder: NodeId) -> bool:
        """Push all that this holder lacks; False when it must rest first."""
        until, _ = self._resting.get(holder, (0.0, 0.0))
        if self._clock.monotonic() < until:
            return False
        sent: set[int] = set()  # nothing is sent twice in one go, whatever a holder signs
        refused: list[BundleId] = []
        changes = self._changes
        began, newest = self._clock.monotonic(), await asyncio.to_thread(self._ledger.newest)
        complete, after = self._looked.pop(holder, (-LOOK_S, 0))
        if began - complete >= LOOK_S:
            complete, after = began, 0
        while True:
            rows = await asyncio.to_thread(self._lacking, holder, sent, after)
            if not rows:
                if changes == self._changes:
                    self._looked[holder] = (complete, newest)
                if not refused:
                    self.trouble.pop(holder, None)
                return True
            lane = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._send(lane, holder, row, refused)) for row in rows]
            if not all(task.result() for task in tasks):
                self._rest(holder)
                return False
            sent.update(row.id for row in rows)
            self._resting.pop(holder, None)

    def _lacking(self, holder: NodeId, sent: set[int], after: int) -> list[BundleRow]:
        rows = self._ledger.lacking(self._world(), holder, PAGE, after=after)
        if rows and all(row.id in sent for row in rows):
            rows = self._ledger.lacking(self._world(), holder, PAGE + len(sent), after=after)
        return [row for row in rows if row.id not in sent]

    async def _send(
        self, lane: asyncio.Semaphore, holder: NodeId, row: BundleRow, refused: list[BundleId]
    ) -> bool:
        """False when the holder must rest; one bundle that cannot be had does not stop others."""
        async with lane:
            if holder in self.trouble and self._is_resting(holder):
                return False
            self.sending[holder] = self.sending.get(holder, 0) + row.bytes
            try:
                receipt = await self._pusher.push(row.bundle_id, row.tag, holder)
            except (BundleDamaged, BundleMissing, Unknown) as exc:
                log.warning("Bundle %s cannot be copied: %s", short(row.bundle_id), exc)
                return True
            except (StaleMap, NotAllowed, Busy) as exc:
                log.info("Bundle %s was refused: %s", short(row.bundle_id), exc)
                self.trouble[holder] = str(exc)
                refused.append(row.bundle_id)
                return len(refused) < REFUSALS
            except P2PStoreError as exc:
                self.trouble[holder] = str(exc)
                self._rest(holder)
                log.info("Bundle %s was not taken: %s", row.bundle_id.hex()[:12], exc)
                if isinstance(exc, IntegrityError):  # a receipt that is wrong is a lie
                    now = int(self._clock.wall() * 1000)
                    await self._catalog.awrite(
                        lambda db: holders.failed(db, holder, now, is_lie=True)
                    )
                return False
            finally:
                self.sending[holder] -= row.bytes
            copy = copies.Copy(
                bundle=row.id,
                holder=holder,
                seq=receipt.seq,
                proved_at=int(self._clock.wall() * 1000),
                lease_until=receipt.lease_until_ms,
                receipt=receipt.raw,
            )
            await self._catalog.awrite(partial(_received, copy))
            return True

    def _is_resting(self, holder: NodeId) -> bool:
        return self._clock.monotonic() < self._resting.get(holder, (0.0, 0.0))[0]

    def _rest(self, holder: NodeId) -> None:
        if self._is_resting(holder):
            return
        _, last = self._resting.get(holder, (0.0, 0.0))
        pause = min(max(last * 2, BACK_OFF_S[0]), BACK_OFF_S[1])
        self._resting[holder] = (self._clock.monotonic() + pause, pause)

    def look_anew(self) -> None:
        """Something that was there before wants more copies now."""
        self._looked.clear()
        self._changes += 1

    def retry(self, holder: NodeId) -> None:
        """It came back: what it could not take before it may be able to take now."""
        self._looked.pop(holder, None)
        self._changes += 1
        self._resting.pop(holder, None)
        self.trouble.pop(holder, None)


def _received(copy: copies.Copy, db: sqlite3.Connection) -> None:
    copies.put(db, copy)
    holders.received(db, copy.holder, copy.proved_at)
