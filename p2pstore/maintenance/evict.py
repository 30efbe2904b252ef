"""EVICT: drop the local copy of a bundle that enough holders have just proved (SAFETY section 5).

Order, for each bundle:

    policy agrees with what the catalog knows
    own removal mark (others that ask for a lock get BUSY) and catalog row EVICTING
    LOCK at the holders, then a fresh whole proof from each under its lock
    policy agrees with locks and proofs
    journal, trash, locks' margin checked again, unlink; row EVICTED

Whatever fails moves the bundle back and lets the locks go. Two nodes that answer each other BUSY
both give up and try again after a random pause. Recovery never finishes an evict: it moves back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from p2pstore.clock import Clock
from p2pstore.errors import Busy, P2PStoreError
from p2pstore.ids import BundleId, NodeId
from p2pstore.maintenance.facts import Ledger, World
from p2pstore.policy import Confirmation, Facts, Holder, why_not
from p2pstore.store import (
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    IntentKind,
    blocks,
    copies,
    journal,
)
from p2pstore.swarm import OwnPromises, Pusher
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

AT_ONCE = 4  # bundles: each makes two holders read 16 MiB
BUSY_TRIES = 3
BUSY_PAUSE_S = (1.0, 60.0)


@dataclass(slots=True)
class Freed:
    bundles: int = 0
    bytes: int = 0
    waiting: dict[str, tuple[int, int]] = field(default_factory=dict)  # reason -> bundles, bytes

    def keeps(self, reasons: Sequence[str], size: int) -> None:
        for reason in reasons[:1]:
            count, total = self.waiting.get(reason, (0, 0))
            self.waiting[reason] = (count + 1, total + size)


class Evictor:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: BundleStore,
        ledger: Ledger,
        pusher: Pusher,
        world: Callable[[], World],
        promises: OwnPromises,
        clock: Clock,
        pool: Executor,
        fresh_proof_s: float,
        gone: Callable[[BundleId], None],
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._ledger = ledger
        self._pusher = pusher
        self._world = world
        self._promises = promises
        self._clock = clock
        self._pool = pool
        self._fresh_proof_s = fresh_proof_s
        self._gone = gone  # its provider record is withdrawn

    def why(self, rows: Sequence[BundleRow], *, for_room: bool = False) -> list[list[str]]:
        """What is missing for each bundle, from what the catalog knows; empty: it may be tried."""
        world = self._world()
        monotonic = self._clock.monotonic()
        return [
            why_not(
                self._with_locks(row, facts), now=world.now, monotonic=monotonic, under_lock=False
            )
            for row, facts in zip(
                rows, self._ledger.facts(world, rows, for_room=for_room), strict=True
            )
        ]

    async def evict(
        self, rows: Sequence[BundleRow], done: Callable[[Freed], None], *, for_room: bool = False
    ) -> Freed:
        """Try all; what could not go is told with its reasons."""
        freed = Freed()
        lanes = asyncio.Semaphore(AT_ONCE)
        reasons = await in_thread(self._pool, self.why, rows, for_room=for_room)

        async def one(row: BundleRow) -> None:
            async with lanes:
                missing = await self._try(row, for_room)
            if missing:
                freed.keeps(missing, row.bytes)
            else:
                freed.bundles += 1
                freed.bytes += row.bytes
            done(freed)

        async with asyncio.TaskGroup() as group:
            for row, missing in zip(rows, reasons, strict=True):
                if missing:
                    freed.keeps(missing, row.bytes)
                else:
                    group.create_task(one(row))
        return freed

    async def _try(self, row: BundleRow, for_room: bool) -> list[str]:
        for attempt in range(BUSY_TRIES):
            try:
                return await self._evict(row, for_room)
            except Busy:
                if attempt + 1 < BUSY_TRIES:
                    low, high = BUSY_PAUSE_S
                    await asyncio.sleep(random.uniform(low, min(high, low * 4 ** (attempt + 1))))
            except P2PStoreError as exc:
                return [str(exc)]
        return ["another node is evicting it too"]

    async def _evict(self, row: BundleRow, for_room: bool) -> list[str]:
        """The reasons why it stays; empty when it is gone. Busy: a holder is removing it too."""
        if row.bundle_id in self._promises.removals:
            return ["is being evicted already"]
        try:
            await in_thread(self._pool, self._promises.begin_removal, row.bundle_id)
        except Busy:
            return ["another node relies on this copy just now"]
        locked: list[NodeId] = []
        intent: int | None = None
        try:
            intent = await self._catalog.awrite(lambda db: self._begin(db, row))
            if intent is None:
                return ["is being used by a file that is protected just now"]
            confirmations = await self._confirm(row, locked)
            facts = await in_thread(self._pool, self._facts, row, for_room)
            missing = self._missing(row, facts, confirmations)
            if missing:
                return missing
            await in_thread(self._pool, self._store.to_trash, row.bundle_id)
            missing = self._missing(row, facts, confirmations)
            if missing:
                await in_thread(self._pool, self._store.from_trash, row.bundle_id)
                return missing
            number = intent
            await self._catalog.awrite(lambda db: _finish(db, row, number))
            intent = None
            await in_thread(self._pool, self._store.purge, row.bundle_id)
            self._gone(row.bundle_id)
            return []
        finally:
            if intent is not None:
                number = intent
                await self._catalog.awrite(lambda db: _take_back(db, row, number))
            self._promises.end_removal(row.bundle_id)
            await self._unlock(row.bundle_id, locked)

    def _begin(self, db: sqlite3.Connection, row: BundleRow) -> int | None:
        if not blocks.begin_evict(db, row.id):
            return None
        body = msgspec.msgpack.encode(row.bundle_id)
        now = int(self._clock.wall() * 1000)
        return journal.open_intent(db, IntentKind.EVICT, body, now)

    def _facts(self, row: BundleRow, for_room: bool) -> Facts:
        return self._ledger.facts(self._world(), [row], for_room=for_room)[0]

    async def _confirm(self, row: BundleRow, locked: list[NodeId]) -> list[Confirmation]:
        """Locks and whole proofs from all reachable holders; `locked` is filled as they come."""
        world = self._world()
        known = await in_thread(
            self._pool, self._catalog.view, lambda db: copies.of_bundle(db, row.id)
        )
        holders = [
            (copy.holder, world.holders[copy.holder])
            for copy in known
            if copy.holder in world.holders and copy.state == copies.CopyState.PROVED
        ]
        answers = await asyncio.gather(
            *(self._ask(row, node, holder, locked) for node, holder in holders),
            return_exceptions=True,
        )
        confirmations: list[Confirmation] = []
        busy: Busy | None = None
        for answer in answers:
            if isinstance(answer, Confirmation):
                confirmations.append(answer)
            elif isinstance(answer, Busy):
                busy = answer
            elif not isinstance(answer, P2PStoreError):
                raise answer
        if busy is not None and not confirmations:
            raise busy
        return confirmations

    async def _ask(
        self, row: BundleRow, node: NodeId, holder: Holder, locked: list[NodeId]
    ) -> Confirmation:
        asked = self._clock.monotonic()
        seconds = await self._pusher.lock(row.bundle_id, node, seq=row.seq)
        locked.append(node)
        challenged = self._clock.monotonic()
        if not await self._pusher.challenge(row.bundle_id, node, row.seq):
            # A wrong proof of the very live map that was named is a lie: it counts no more.
            log.warning("%s gave a wrong proof of bundle %s.", node.hex(), row.bundle_id.hex()[:12])
            await self._catalog.awrite(
                lambda db: copies.set_state(db, row.id, node, copies.CopyState.LOST)
            )
            return Confirmation(holder, None, asked, asked + seconds)
        now = int(self._clock.wall() * 1000)
        await self._catalog.awrite(lambda db: copies.proved(db, row.id, node, row.seq, now))
        return Confirmation(holder, challenged, asked, asked + seconds)

    def _missing(
        self, row: BundleRow, facts: Facts, confirmations: Sequence[Confirmation]
    ) -> list[str]:
        return why_not(
            replace(self._with_locks(row, facts), confirmations=confirmations),
            now=self._clock.wall(),
            monotonic=self._clock.monotonic(),
            fresh_proof_s=self._fresh_proof_s,
        )

    def _with_locks(self, row: BundleRow, facts: Facts) -> Facts:
        return replace(facts, locked_for_others_s=self._promises.locked_for(row.bundle_id))

    async def _unlock(self, bundle_id: BundleId, locked: Sequence[NodeId]) -> None:
        async def one(node: NodeId) -> None:
            try:
                await self._pusher.unlock(bundle_id, node)
            except P2PStoreError:
                log.debug("A lock of bundle %s will end by itself.", bundle_id.hex()[:12])

        await asyncio.gather(*(one(node) for node in locked))


def _finish(db: sqlite3.Connection, row: BundleRow, intent: int) -> None:
    blocks.move(db, row.id, BundleState.EVICTED, only_from=[BundleState.EVICTING])
    blocks.forget_chunks(db, row.id)
    journal.close(db, intent)


def _take_back(db: sqlite3.Connection, row: BundleRow, intent: int) -> None:
    blocks.move(db, row.id, BundleState.SEALED, only_from=[BundleState.EVICTING])
    journal.close(db, intent)


def recover(catalog: Catalog, store: BundleStore) -> int:
    """Move back what an interrupted evict had begun to take; how many bundles."""
    intents = catalog.view(lambda db: journal.all_open(db, IntentKind.EVICT))
    for intent in intents:
        bundle_id = msgspec.msgpack.decode(intent.body, type=BundleId)
        if bundle_id in store.trash():
            store.from_trash(bundle_id)
        catalog.write(partial(_reopen, bundle_id, intent.id)).result()
    # Locks and proofs are of the past, also for a bundle that was already recorded as gone.
    for bundle_id in store.trash():
        store.from_trash(bundle_id)
        catalog.write(partial(_is_back, bundle_id)).result()
    return len(intents)


def _reopen(bundle_id: BundleId, intent: int, db: sqlite3.Connection) -> None:
    row = blocks.get_bundle(db, bundle_id)
    if row is not None:
        _take_back(db, row, intent)
    else:
        journal.close(db, intent)


def _is_back(bundle_id: BundleId, db: sqlite3.Connection) -> None:
    row = blocks.get_bundle(db, bundle_id)
    if row is not None:
        blocks.move(db, row.id, BundleState.SEALED, only_from=[BundleState.EVICTED])
