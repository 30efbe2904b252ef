"""EVICT: drop the local copy of a bundle that enough holders have just proved (SAFETY section 5).

Order, for each bundle:

    policy agrees with what the catalog knows
    own removal mark (others that ask for a lock get BUSY), journal and catalog row EVICTING
    LOCK at the holders, then a fresh whole proof from each under its lock
    policy agrees with locks and proofs
    trash; policy is asked again, of what is known now; row EVICTED
    the locks' margin once more, in the thread that unlinks

Whatever fails, or is cancelled, moves the bundle back and lets the locks go. Two nodes that answer
each other BUSY both give up and try again after a random pause. Recovery never finishes an evict:
it moves back.

Time is the monotonic clock's, which stands still while a machine sleeps; locks at the holders do
not. So whatever the wall clock went on beyond it since the bundle was begun counts as passed.

A holder that answers that it has not, or cannot read, what it signed for counts no more; one that
does not answer counts as before, and confirms nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from p2pstore.clock import Clock
from p2pstore.errors import (
    Busy,
    IntegrityError,
    P2PStoreError,
    RemoteProtocolError,
    Unavailable,
)
from p2pstore.ids import BundleId, NodeId, short
from p2pstore.maintenance.facts import Ledger
from p2pstore.maintenance.live import follow_map
from p2pstore.maintenance.world import World
from p2pstore.policy import Confirmation, Facts, Holder, why_not
from p2pstore.store import (
    BundleDamaged,
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    IntentKind,
    StaleMap,
    blocks,
    copies,
    dying,
    holders,
    journal,
)
from p2pstore.swarm import OwnPromises, Pusher
from p2pstore.threads import in_thread
from p2pstore.wire import Unknown

log = logging.getLogger(__name__)

AT_ONCE = 4  # bundles: each makes two holders read 16 MiB
PAGE = 256  # bundles whose facts are in memory at a time
BUSY_TRIES = 3
BUSY_PAUSE_S = (1.0, 60.0)
UNLOCK_S = 10.0  # a lock ends by itself; nobody waits long to hear that it has
UNSURE_S = 660.0  # the longest lock and its margin


@dataclass(slots=True)
class Freed:
    bundles: int = 0
    bytes: int = 0
    waiting: dict[str, tuple[int, int]] = field(default_factory=dict)  # reason -> bundles, bytes

    def keeps(self, reasons: Sequence[str], size: int) -> None:
        for reason in reasons[:1]:
            count, total = self.waiting.get(reason, (0, 0))
            self.waiting[reason] = (count + 1, total + size)


@dataclass(slots=True)
class _Attempt:
    """One try at one bundle."""

    row: BundleRow
    for_room: bool
    ahead_s: float  # wall clock less monotonic clock when it was begun
    locked: list[NodeId] = field(default_factory=list)
    confirmations: list[Confirmation] = field(default_factory=list)
    busy: Busy | None = None  # what a holder said that is removing its copy too
    own: P2PStoreError | None = None  # what is wrong with our own copy: no proof can be judged


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
        lost: Callable[[], None] = lambda: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`world` may be called in any thread; `lost`: a copy was found to be none, in the loop."""
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
        self._lost = lost
        self._pause = pause
        self._running: set[BundleId] = set()
        # An UNLOCK that was not answered may arrive after the next LOCK and undo it: until then
        # (monotonic clock) that holder's word on that bundle is not relied on.
        self._unsure: dict[tuple[BundleId, NodeId], float] = {}

    def why(self, rows: Sequence[BundleRow], *, for_room: bool = False) -> list[list[str]]:
        """What is missing for each bundle, from what the catalog knows; empty: it may be tried.

        Blocks on the catalog: for a thread.
        """
        reasons: list[list[str]] = []
        for start in range(0, len(rows), PAGE):
            page = rows[start : start + PAGE]
            world = self._world()
            monotonic = self._clock.monotonic()
            facts = self._ledger.facts(world, page, for_room=for_room)
            reasons.extend(
                why_not(
                    self._with_locks(row, known),
                    now=world.now,
                    monotonic=monotonic,
                    under_lock=False,
                )
                for row, known in zip(page, facts, strict=True)
            )
        return reasons

    async def evict(
        self, rows: Sequence[BundleRow], done: Callable[[Freed], None], *, for_room: bool = False
    ) -> Freed:
        """Try all; what could not go is told with its reasons."""
        freed = Freed()
        lanes = asyncio.Semaphore(AT_ONCE)

        async def one(row: BundleRow) -> None:
            async with lanes:
                missing = await self._try(row, for_room)
            if missing:
                freed.keeps(missing, row.bytes)
            else:
                freed.bundles += 1
                freed.bytes += row.bytes
            done(freed)

        for start in range(0, len(rows), PAGE):
            page = rows[start : start + PAGE]
            reasons = await in_thread(self._pool, self.why, page, for_room=for_room)
            async with asyncio.TaskGroup() as group:
                for row, missing in zip(page, reasons, strict=True):
                    if missing:
                        freed.keeps(missing, row.bytes)
                    else:
                        group.create_task(one(row))
        return freed

    async def _try(self, row: BundleRow, for_room: bool) -> list[str]:
        if row.bundle_id in self._running:
            return ["is being evicted already"]
        self._running.add(row.bundle_id)
        reason = "another node is evicting it too"
        try:
            for attempt in range(BUSY_TRIES):
                if attempt:
                    low, high = BUSY_PAUSE_S
                    await self._pause(random.uniform(low, min(high, low * 4**attempt)))
                try:
                    return await self._evict(row, for_room)
                except Busy as exc:
                    reason = str(exc) or reason
        except (P2PStoreError, OSError) as exc:
            log.warning("Bundle %s stays here: %s", short(row.bundle_id), exc)
            return [str(exc)]
        finally:
            self._running.discard(row.bundle_id)
        return [reason]

    async def _evict(self, row: BundleRow, for_room: bool) -> list[str]:
        """The reasons why it stays; empty when it is gone. Busy: somebody is removing it too."""
        attempt = _Attempt(row, for_room, self._clock.wall() - self._clock.monotonic())
        is_gone = False
        try:
            try:
                await in_thread(self._pool, self._promises.begin_removal, row.bundle_id)
            except Busy as exc:
                raise Busy("another node relies on this copy just now") from exc
            if not await self._catalog.awrite(partial(self._begin, row)):
                return ["is being used by a file that is protected just now"]
            await in_thread(self._pool, self._check_own, row)
            await self._confirm(attempt)
            missing = await in_thread(self._pool, self._missing_now, attempt)
            if not missing:
                await in_thread(self._pool, self._store.to_trash, row.bundle_id)
                missing = await in_thread(self._pool, self._missing_now, attempt)
            if missing and attempt.busy is not None:
                raise Busy("another node is evicting it too") from attempt.busy
            if missing:
                return missing
            if not await self._catalog.awrite(partial(_finish, row)):
                return ["is being used by something else"]
            missing = await in_thread(self._pool, self._unlink, attempt)
            is_gone = not missing
        finally:
            try:
                if not is_gone:
                    await in_thread(self._pool, self._give_back, row.bundle_id)
            finally:
                await in_thread(self._pool, self._promises.end_removal, row.bundle_id)
                await self._unlock(row.bundle_id, attempt.locked)
        if is_gone:
            self._gone(row.bundle_id)
        return missing

    def _begin(self, row: BundleRow, db: sqlite3.Connection) -> bool:
        if not blocks.begin_evict(db, row.id):
            return False
        body = msgspec.msgpack.encode(row.bundle_id)
        journal.open_intent(db, IntentKind.EVICT, body, int(self._clock.wall() * 1000))
        return True

    def _give_back(self, bundle_id: BundleId) -> None:
        """The file first, then the row: a row SEALED always has its file, as `recover` sees it."""
        was_in_trash = bundle_id in self._store.trash()
        if was_in_trash:
            self._store.from_trash(bundle_id)
        self._catalog.write(partial(_take_back, bundle_id, was_in_trash)).result()

    def _check_own(self, row: BundleRow) -> None:
        """What is wrong with our own copy is no holder's fault."""
        live = self._store.live_map(row.bundle_id)
        if live.seq != row.seq:
            raise Busy("its list of live blocks is being changed")

    # -- locks and proofs -------------------------------------------------------------------------

    async def _confirm(self, attempt: _Attempt) -> None:
        """Locks and whole proofs from all reachable holders."""
        row = attempt.row
        world, known = await in_thread(self._pool, self._known, row)
        now = self._clock.monotonic()
        self._unsure = {key: until for key, until in self._unsure.items() if until > now}
        holders = [
            (copy.holder, world.holders[copy.holder])
            for copy in known
            if copy.holder in world.holders
            and copy.state == copies.CopyState.PROVED
            and (row.bundle_id, copy.holder) not in self._unsure
        ]
        async with asyncio.TaskGroup() as group:
            for node, holder in holders:
                group.create_task(self._ask(attempt, node, holder))
        if attempt.own is not None:
            raise attempt.own

    def _known(self, row: BundleRow) -> tuple[World, list[copies.Copy]]:
        return self._world(), self._catalog.view(lambda db: copies.of_bundle(db, row.id))

    async def _ask(self, attempt: _Attempt, node: NodeId, holder: Holder) -> None:
        """LOCK, then CHALLENGE; what it says goes into the attempt, a lie into the catalog."""
        row = attempt.row
        try:
            asked = self._now(attempt)
            seconds = await self._pusher.lock(row.bundle_id, node, seq=row.seq)
            attempt.locked.append(node)
            challenged = self._now(attempt)
            if await self._pusher.challenge(row.bundle_id, node, row.seq):
                now = int(self._clock.wall() * 1000)
                await self._catalog.awrite(lambda db: copies.proved(db, row.id, node, row.seq, now))
                attempt.confirmations.append(
                    Confirmation(holder, challenged, asked, asked + seconds)
                )
                return
            # A wrong proof of the very live map that was named is a lie: it counts no more.
            log.warning("%s gave a wrong proof of bundle %s.", node.hex(), short(row.bundle_id))
            await self._uncount(row, node, copies.CopyState.LOST)
            now = int(self._clock.wall() * 1000)
            await self._catalog.awrite(lambda db: holders.failed(db, node, now, is_lie=True))
        except Busy as exc:
            attempt.busy = exc
        except BundleDamaged as exc:
            attempt.own = exc
        except (Unknown, IntegrityError) as exc:
            if not await in_thread(self._pool, self._store.has, row.bundle_id):
                attempt.own = exc
                return
            log.warning("%s lost bundle %s: %s", node.hex(), short(row.bundle_id), exc)
            await self._uncount(row, node, copies.CopyState.LOST)
        except (StaleMap, RemoteProtocolError) as exc:
            log.info("%s proves nothing of bundle %s: %s", node.hex(), short(row.bundle_id), exc)
            await self._uncount(row, node, copies.CopyState.SUSPECT)
        except P2PStoreError as exc:
            log.debug("%s does not answer for %s: %s", node.hex(), short(row.bundle_id), exc)

    async def _uncount(self, row: BundleRow, node: NodeId, state: str) -> None:
        await self._catalog.awrite(lambda db: copies.set_state(db, row.id, node, state))
        self._lost()

    async def _unlock(self, bundle_id: BundleId, locked: Sequence[NodeId]) -> None:
        async def one(node: NodeId) -> None:
            self._unsure[bundle_id, node] = self._clock.monotonic() + UNSURE_S
            try:
                async with asyncio.timeout(UNLOCK_S):
                    await self._pusher.unlock(bundle_id, node)
                del self._unsure[bundle_id, node]
            except (P2PStoreError, TimeoutError):
                log.debug("A lock of bundle %s will end by itself.", short(bundle_id))

        await asyncio.gather(*(one(node) for node in locked))

    # -- judging ----------------------------------------------------------------------------------

    def _now(self, attempt: _Attempt) -> float:
        """Monotonic, and what the wall clock has gone on beyond it since the attempt began."""
        monotonic = self._clock.monotonic()
        return monotonic + max(0.0, self._clock.wall() - monotonic - attempt.ahead_s)

    def _missing_now(self, attempt: _Attempt) -> list[str]:
        world = self._world()
        facts = self._ledger.facts(world, [attempt.row], for_room=attempt.for_room)[0]
        # Of who was revoked meanwhile neither the copy nor its confirmation counts.
        confirmations = [c for c in attempt.confirmations if c.holder.node in world.holders]
        return why_not(
            replace(self._with_locks(attempt.row, facts), confirmations=confirmations),
            now=self._clock.wall(),
            monotonic=self._now(attempt),
            fresh_proof_s=self._fresh_proof_s,
        )

    def _unlink(self, attempt: _Attempt) -> list[str]:
        """In one thread, so that nothing waits between the last look at the time and the unlink."""
        missing = self._missing_now(attempt)
        if not missing:
            self._store.purge(attempt.row.bundle_id)
        return missing

    def _with_locks(self, row: BundleRow, facts: Facts) -> Facts:
        return replace(facts, locked_for_others_s=self._promises.locked_for(row.bundle_id))


def _finish(row: BundleRow, db: sqlite3.Connection) -> bool:
    if not blocks.move(db, row.id, BundleState.EVICTED, only_from=[BundleState.EVICTING]):
        return False
    blocks.forget_chunks(db, row.id)
    _close(db, row.bundle_id)
    return True


def _take_back(bundle_id: BundleId, was_in_trash: bool, db: sqlite3.Connection) -> None:
    row = blocks.exactly(db, bundle_id)
    taken = [BundleState.EVICTING, *([BundleState.EVICTED] if was_in_trash else [])]
    if row is not None:
        blocks.move(db, row.id, BundleState.SEALED, only_from=taken)
    _close(db, bundle_id)


def _close(db: sqlite3.Connection, bundle_id: BundleId) -> None:
    body = msgspec.msgpack.encode(bundle_id)
    for intent in journal.all_open(db, IntentKind.EVICT):
        if intent.body == body:
            journal.close(db, intent.id)


def recover(catalog: Catalog, store: BundleStore) -> int:
    """Move back what an interrupted evict had begun to take; how many bundles.

    Also what was already recorded as gone: its locks and proofs are of the past. The row first: it
    is the trash that says at the next start that this was interrupted. What is dead waits there for
    its time (`collect`). An index that was being written is written anew: what it had claimed is
    let go.
    """
    dead = {row.bundle_id for row, _ in catalog.view(dying.all_dead)}
    for bundle_id in set(store.trash()) - dead:
        catalog.write(partial(_take_back, bundle_id, True)).result()
        store.from_trash(bundle_id)
    intents = catalog.view(lambda db: journal.all_open(db, IntentKind.EVICT))
    for intent in intents:
        bundle_id = msgspec.msgpack.decode(intent.body, type=BundleId)
        catalog.write(partial(_take_back, bundle_id, False)).result()
        _follow_map(catalog, store, bundle_id)
    for intent in catalog.view(lambda db: journal.all_open(db, IntentKind.INGEST)):
        catalog.write(partial(_end, intent.id)).result()
    return len(intents)


def _follow_map(catalog: Catalog, store: BundleStore, bundle_id: BundleId) -> None:
    """Blocks may have been punched out of it just then."""
    row = catalog.view(lambda db: blocks.exactly(db, bundle_id))
    try:
        if row is not None and store.has(bundle_id):
            follow_map(catalog, store, row)
    except (Unavailable, IntegrityError) as exc:
        log.warning("Bundle %s cannot be looked at: %s", short(bundle_id), exc)


def _end(intent: int, db: sqlite3.Connection) -> None:
    journal.close(db, intent)
