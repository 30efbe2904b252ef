"""MOVE, the owner's side: a holder asked to be rid of what it keeps for us.

A holder that leaves, or that runs out of room, drops nothing by itself; it asks with MOVE. From
then on its copies count no more (rows MOVING), it is given nothing new while it leaves, and the
lanes of `replicate` copy the bundles to others. This loop does the rest, bundle by bundle, as
`policy.moving` says:

    fetch     evicted here: others get it from us, so it is brought back first (`refetch`), a few
              bundles at a time
    release   enough others have proved theirs: the holder is told to let go. Of a bundle that does
              not lie here those others are asked for random blocks right before; where it is the
              copy here that makes up for a missing one, all of it is read
    evict     what was brought back only for this goes again, by the rules for any eviction

Who leaves stands in the catalog (kv "leaving") with the rows, in one transaction, before MOVE is
answered: nobody that leaves counts again after a crash. Only "staying" takes it back; its copies
are then asked for proofs before they count. When a leaving holder has nothing more of ours as far
as the catalog knows, it is asked what it holds: what the catalog did not know (it may have been
rebuilt) is moved as well.

MOVE is answered with FAIL where nothing more can be done at present, and says why; the holder goes
on asking, or gives up.
"""

from __future__ import annotations

import logging
import random
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import LiveMap, verify_live_map
from p2pstore.errors import Busy, NoRoom, P2PStoreError, Unavailable
from p2pstore.ids import BundleId, NodeId, PublicKey, short
from p2pstore.maintenance.facts import Ledger
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.refetch import Refetcher
from p2pstore.maintenance.world import World
from p2pstore.net import Link
from p2pstore.policy import (
    Facts,
    MoveStep,
    Moving,
    counted,
    counted_holders,
    is_counted,
    next_move,
)
from p2pstore.store import (
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    blocks,
    copies,
    dying,
    folders,
)
from p2pstore.swarm import Pusher
from p2pstore.threads import in_thread
from p2pstore.wire import Holding, Move, Unknown

log = logging.getLogger(__name__)

KEY: Final = "leaving"
SOON_S: Final = 2.0  # between two turns while something moves
REST: Final = 4.0  # ... and so many times what the last one took
PAGE: Final = 256  # bundles whose facts are in memory at a time
BROUGHT: Final = 8  # bundles that are here only to be passed on: 128 MiB at most
SAMPLE: Final = 8  # blocks that a holder of a bundle which is not here must have

NOBODY: Final = "There is no other device that could take the copies."

Evict = Callable[[Sequence[BundleRow]], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Around:
    """What moving asks of the rest of the node."""

    world: Callable[[], World]  # in any thread
    links: Callable[[], Sequence[Link]]  # to everybody that holds for us, leaving or not
    trouble: Callable[[], Mapping[NodeId, str]]  # why somebody was given nothing of late
    is_sending: Callable[[], bool]  # something is on its way to a holder
    copy_soon: Callable[[], None]  # other holders are wanted
    evict: Evict
    name_of: Callable[[NodeId], str]


@dataclass(slots=True)
class _Turn:
    """What one turn found of one holder."""

    waiting: int = 0  # copies that it must keep for now
    hope: int = 0  # of them, those that somebody who is connected has still to take
    released: list[BundleRow] = field(default_factory=list)
    trouble: str | None = None


class Mover:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: BundleStore,
        ledger: Ledger,
        pusher: Pusher,
        refetcher: Refetcher,
        around: Around,
        me: PublicKey,
        clock: Clock,
        pool: Executor,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._ledger = ledger
        self._pusher = pusher
        self._refetcher = refetcher
        self._around = around
        self._me = me
        self._clock = clock
        self._pool = pool
        self._leaving = frozenset(catalog.view(_read))
        self._brought: set[int] = set()  # rows of what is here only to be passed on
        self._stuck: dict[NodeId, str] = {}
        self._waiting: dict[NodeId, int] = {}
        self._wake: Callable[[], None] = lambda: None

    @property
    def leaving(self) -> frozenset[NodeId]:
        """Holders that are given nothing, and whose copies do not count."""
        return self._leaving

    @property
    def waiting(self) -> Mapping[NodeId, int]:
        """How many copies a holder that wants to be rid of some has to keep for now; of those that
        are connected."""
        return self._waiting

    def woken_by(self, wake: Callable[[], None]) -> None:
        """`wake` makes `turn` run soon."""
        self._wake = wake

    def linked(self) -> None:
        """Somebody came back: what waited for that need not wait on."""
        self._wake()

    # -- what a holder asks -----------------------------------------------------------------------

    async def asked(self, holder: NodeId, message: Move) -> None:
        """Note it durably. NoRoom when there is no other device, Unavailable when nothing goes on
        at present; both say why, and are noted all the same, but for room."""
        if message.why == "staying":
            if not await self._is_moving(holder):
                return  # as it says at every link
            await self._catalog.awrite(partial(_stay, holder))
            self._leaving -= {holder}
            self._stuck.pop(holder, None)
            self._around.copy_soon()  # its copies are asked for proofs there
            log.info("%s keeps its copies after all.", self._around.name_of(holder))
        elif message.why == "leaving":
            if holder not in self._leaving:
                await self._catalog.awrite(partial(_leave, holder))
                self._leaving |= {holder}
                self._around.copy_soon()
                log.info("%s is leaving; its copies go elsewhere.", self._around.name_of(holder))
            await self._refuse_without_others(holder)
        else:
            # What nobody else can take counts on: it is not going anywhere.
            await self._refuse_without_others(holder)
            await self._catalog.awrite(
                lambda db: copies.begin_move(db, holder, list(message.bundles))
            )
            self._around.copy_soon()
        self._wake()
        if holder in self._stuck:
            raise Unavailable(self._stuck[holder])

    async def _is_moving(self, holder: NodeId) -> bool:
        movers = await in_thread(self._pool, self._catalog.view, copies.movers)
        return holder in self._leaving or holder in movers

    async def _refuse_without_others(self, holder: NodeId) -> None:
        world = await in_thread(self._pool, self._around.world)
        if self._eligible(world, holder) == 0:
            raise NoRoom(NOBODY)

    # -- the loop ---------------------------------------------------------------------------------

    async def turn(self, loop: Loop) -> float | None:
        """One look at everything that is to be moved; soon another one while something is."""
        began = self._clock.monotonic()
        movers = await in_thread(self._pool, self._catalog.view, copies.movers)
        is_moving = False
        waiting: dict[NodeId, int] = {}
        for holder in sorted({*movers, *self._leaving}):
            name = self._around.name_of(holder)
            loop.say(f"moves copies away from {name}")
            found = await self._serve(holder)
            is_moving |= bool(found.hope or found.released)
            if found.waiting and self._is_linked(holder):
                waiting[holder] = found.waiting
            reason = await in_thread(self._pool, self._why_stuck, holder, found)
            if reason is None:
                self._stuck.pop(holder, None)
            else:
                self._stuck[holder] = reason
        self._waiting = waiting
        self._brought &= await in_thread(self._pool, self._catalog.view, _all_moving)
        if not is_moving:
            return None
        # With a hundred thousand bundles a look takes a while: then it comes less often.
        return max(SOON_S, REST * (self._clock.monotonic() - began))

    async def _serve(self, holder: NodeId) -> _Turn:
        turn = _Turn()
        after = 0
        if holder in self._leaving:
            await self._uncount(holder)
        while True:
            page = await in_thread(
                self._pool,
                self._catalog.view,
                partial(copies.moving, holder=holder, after=after, limit=PAGE),
            )
            if not page:
                break
            after = page[-1].bundle
            await self._serve_page(holder, [copy.bundle for copy in page], turn)
        is_done = not turn.waiting and not turn.released
        if is_done and holder in self._leaving and self._is_linked(holder):
            adopted = await self._adopt(holder, turn)
            turn.waiting += adopted
            turn.hope += adopted
        return turn

    async def _serve_page(self, holder: NodeId, numbers: Sequence[int], turn: _Turn) -> None:
        world = await in_thread(self._pool, self._around.world)
        rows, facts = await in_thread(self._pool, self._facts, world, numbers)
        released: list[BundleRow] = []
        for row, known in zip(rows, facts, strict=True):
            moving = self._moving(world, holder, row, known)
            step = _step(world, moving)
            if row.state == BundleState.DEAD:
                # It goes to nobody else; its own days in trash need not be waited for.
                step = await in_thread(self._pool, self._step_of_dead, world, row)
            try:
                if step is MoveStep.RELEASE and not self._is_linked(holder):
                    step = MoveStep.WAIT  # it hears of it when it is back
                is_needed = row.state != BundleState.DEAD
                if step is MoveStep.RELEASE and is_needed and not moving.is_here:
                    step = await self._look_first(world, holder, row, known)
                elif step is MoveStep.RELEASE and is_needed and moving.counted < known.min_copies:
                    await in_thread(self._pool, self._read_own, row)
                if step is MoveStep.RELEASE:
                    # Those before it in the page took their time.
                    step = await in_thread(self._pool, self._step_now, holder, row.id)
                if step is MoveStep.RELEASE and await self._release(holder, row):
                    released.append(row)
                    continue
                if step is MoveStep.FETCH and len(self._brought) < BROUGHT:
                    await self._refetcher.refetch(row)
                    self._brought.add(row.id)
                    self._around.copy_soon()
            except P2PStoreError as exc:
                log.info("Bundle %s is not moved yet: %s", short(row.bundle_id), exc)
                turn.trouble = str(exc)
            turn.waiting += 1
            turn.hope += step is MoveStep.FETCH or moving.counted < moving.reachable
        turn.released += released
        again = [row for row in released if row.id in self._brought]
        if again:
            self._brought.difference_update(row.id for row in again)
            await self._around.evict(await in_thread(self._pool, self._fresh, again))

    def _step_now(self, holder: NodeId, number: int) -> MoveStep:
        world = self._around.world()
        rows, facts = self._facts(world, [number])
        if not rows:
            return MoveStep.WAIT
        if rows[0].state == BundleState.DEAD:
            return self._step_of_dead(world, rows[0])
        return _step(world, self._moving(world, holder, rows[0], facts[0]))

    def _step_of_dead(self, world: World, row: BundleRow) -> MoveStep:
        """What something needs again is revived by `collect`, and moved then."""
        is_needed = self._catalog.view(lambda db: dying.is_needed(db, row.id))
        if world.rebuilding or is_needed:
            return MoveStep.WAIT
        is_made_up_for = self._ledger.is_made_up_for(world, row, self._store)
        return MoveStep.RELEASE if is_made_up_for else MoveStep.WAIT

    async def _uncount(self, holder: NodeId) -> None:
        """A receipt may have come for what was on its way to it when it asked."""
        query = "SELECT 1 FROM copies WHERE holder=? AND state IN ('proved', 'suspect') LIMIT 1"
        if await in_thread(self._pool, self._catalog.read, query, (holder,)):
            await self._catalog.awrite(partial(copies.begin_move, holder=holder))

    def _facts(self, world: World, numbers: Sequence[int]) -> tuple[list[BundleRow], list[Facts]]:
        def look(db: sqlite3.Connection) -> list[BundleRow]:
            found = (blocks.by_rowid(db, number) for number in numbers)
            return [row for row in found if row is not None and row.own]

        rows = self._catalog.view(look)
        return rows, self._ledger.facts(world, rows, for_room=False)

    def _fresh(self, rows: Sequence[BundleRow]) -> list[BundleRow]:
        def look(db: sqlite3.Connection) -> list[BundleRow]:
            found = (blocks.by_rowid(db, row.id) for row in rows)
            return [row for row in found if row is not None and row.state == BundleState.SEALED]

        return self._catalog.view(look)

    # -- judging ----------------------------------------------------------------------------------

    def _moving(self, world: World, holder: NodeId, row: BundleRow, known: Facts) -> Moving:
        others = [copy for copy in known.copies if copy.holder.node != holder]
        return Moving(
            counted=counted(others, world.now),
            eligible=self._eligible(world, holder),
            reachable=counted_holders(
                world.holders[link.node_id]
                for link in self._around.links()
                if link.node_id in world.holders and link.node_id != holder
            ),
            min_copies=known.min_copies,
            target=known.target,
            is_here=row.state == BundleState.SEALED and self._store.has(row.bundle_id),
        )

    def _eligible(self, world: World, holder: NodeId) -> int:
        """Without the one that asked: who only lacks room is no leaver, and among the eligible."""
        return max(0, world.eligible - (holder in world.holders))

    def _read_own(self, row: BundleRow) -> None:
        """Every live block from the disk; BundleDamaged. A bundle fits into memory."""
        self._store.drop_cache(row.bundle_id)
        entries = self._store.index(row.bundle_id).blocks.entries
        live = self._store.live_map(row.bundle_id).indices()
        self._store.read_blocks(row.bundle_id, [entries[i].block_id for i in live])

    async def _look_first(
        self, world: World, holder: NodeId, row: BundleRow, known: Facts
    ) -> MoveStep:
        """Whether min_copies others still send random blocks of a bundle that does not lie here.

        Which blocks there are is asked of the holder that wants to be rid of it: it is connected.
        """
        index, signed = await self._pusher.block_list(row.bundle_id, holder)
        live = LiveMap.all_live(row.bundle_id, len(index.blocks))
        indices = (verify_live_map(signed) if signed is not None else live).indices()
        chosen = random.sample(indices, min(SAMPLE, len(indices)))
        sample = [index.blocks.entries[i].block_id for i in chosen]
        good = []
        for copy in known.copies:
            if copy.holder.node == holder or not is_counted(copy, world.now):
                continue
            try:
                if await self._pusher.sample(
                    row.bundle_id, row.tag, NodeId(copy.holder.node), sample
                ):
                    good.append(copy.holder)
            except P2PStoreError as exc:
                log.info("No blocks of bundle %s: %s", short(row.bundle_id), exc)
            if counted_holders(good) >= known.min_copies:
                return MoveStep.RELEASE
        return MoveStep.FETCH

    def _why_stuck(self, holder: NodeId, found: _Turn) -> str | None:
        """Why nothing goes on for this holder; None while something may. In a thread."""
        if not found.waiting or found.released or self._around.is_sending():
            return None
        world = self._around.world()
        if self._eligible(world, holder) == 0:
            return NOBODY
        others = [
            link.node_id
            for link in self._around.links()
            if link.node_id in world.holders and link.node_id != holder
        ]
        if not others:
            return "No other device that could take the copies is connected now."
        trouble = self._around.trouble()
        if all(node in trouble for node in others):
            return f"{self._around.name_of(others[0])} takes no copy: {trouble[others[0]]}"
        if found.hope:
            return found.trouble
        return "What could be copied is copied; other devices that must have it are not connected."

    # -- acting -----------------------------------------------------------------------------------

    def _is_linked(self, holder: NodeId) -> bool:
        return any(link.node_id == holder for link in self._around.links())

    async def _release(self, holder: NodeId, row: BundleRow) -> bool:
        """False when somebody relies on that copy just now."""
        try:
            await self._pusher.release(row.bundle_id, holder)
        except Unknown:
            pass  # it has it not any more
        except Busy as exc:
            log.info("Bundle %s is still locked: %s", short(row.bundle_id), exc)
            return False
        await self._catalog.awrite(
            lambda db: copies.set_state(db, row.id, holder, copies.CopyState.RELEASED)
        )
        return True

    async def _adopt(self, holder: NodeId, turn: _Turn) -> int:
        """Note what the holder says it has of ours and the catalog does not name; how many."""
        found = 0
        try:
            async for holding in self._pusher.holdings(holder):
                if holding.opener == self._me:
                    await self._catalog.awrite(partial(_note, holder, holding, self._now_ms()))
                    found += 1
        except P2PStoreError as exc:
            turn.trouble = str(exc)
        return found

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)


def _step(world: World, moving: Moving) -> MoveStep:
    """Nothing moves by a catalog that does not know yet what lies where."""
    return MoveStep.WAIT if world.rebuilding else next_move(moving)


# -- the catalog -----------------------------------------------------------------------------------

_NODES = msgspec.msgpack.Decoder(list[NodeId])


def _read(db: sqlite3.Connection) -> list[NodeId]:
    raw = folders.kv_get(db, KEY)
    return [] if raw is None else _NODES.decode(raw)


def _write(db: sqlite3.Connection, nodes: set[NodeId]) -> None:
    folders.kv_set(db, KEY, msgspec.msgpack.encode(sorted(nodes)))


def _leave(holder: NodeId, db: sqlite3.Connection) -> None:
    _write(db, {*_read(db), holder})
    copies.begin_move(db, holder)


def _stay(holder: NodeId, db: sqlite3.Connection) -> None:
    _write(db, {*_read(db)} - {holder})
    copies.end_move(db, holder)


def _all_moving(db: sqlite3.Connection) -> set[int]:
    return {n for (n,) in db.execute("SELECT DISTINCT bundle FROM copies WHERE state='moving'")}


def _note(holder: NodeId, holding: Holding, now_ms: int, db: sqlite3.Connection) -> None:
    """A copy to be moved; a bundle that the catalog does not know lies with holders only."""
    row = blocks.exactly(db, holding.bundle)
    number = (
        row.id
        if row is not None
        else blocks.put_bundle(
            db,
            BundleRow(
                bundle_id=BundleId(holding.bundle),
                tag=holding.tag,
                kind=holding.kind,
                folder=None,
                state=BundleState.EVICTED,
                bytes=holding.bytes,
                blocks=0,
                seq=holding.seq,
                created=now_ms,
            ),
        )
    )
    copies.put(
        db,
        copies.Copy(
            bundle=number,
            holder=holder,
            seq=holding.seq,
            proved_at=0,
            lease_until=holding.lease_until_ms,
            receipt=b"",
            state=copies.CopyState.MOVING,
        ),
    )
