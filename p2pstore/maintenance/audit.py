"""AUDIT: holders show that they still have what they signed for.

Which copies, how often and by what is policy's (`policy.auditing`); this carries it out, holder by
holder, and writes down what came of it:

    passed     the copy is good; a whole proof is also a fresh proof, and a sample of a copy that
               only its holder's word is known of counts as one, when every block that could be
               named in it was right
    refused    the holder says that it has the bundle not, or cannot read it: that copy is lost
    a lie      a wrong proof of the very live map that was named, or other bytes than a block's id
               says: none of its copies counts any more, each until it is proved anew
    no answer  nothing is concluded but that an answer is owed, since when

Absence is no fault: a holder that is not connected is not asked. A lost link, a time-out, BUSY, and
a live map that has not come there yet are no answers.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from enum import Enum, auto
from functools import partial

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import BundleRef, Entry, Kind
from p2pstore.errors import IntegrityError, P2PStoreError
from p2pstore.ids import BlockId, BundleId, NodeId, short
from p2pstore.maintenance.facts import copies_of
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.world import World
from p2pstore.policy import Audit, Auditable, Budget, Method, earned, sample_of, to_audit
from p2pstore.restore import Wanted
from p2pstore.store import (
    BundleDamaged,
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    StaleMap,
    blocks,
    copies,
    files,
    holders,
    merged,
)
from p2pstore.swarm import Pusher
from p2pstore.threads import in_thread
from p2pstore.wire import Unknown

log = logging.getLogger(__name__)

SAMPLE = 64  # blocks of a copy without any proof that are asked for; the most in one request
FILES = 16  # manifests that are read to know blocks of a bundle
CHOICE = 200  # copies of each kind that policy chooses from
LINE_BYTES = 1_000_000  # a second: what the line is taken to carry while nobody measured it

_PLACE = msgspec.msgpack.Decoder(tuple[BundleRef, Entry])

BlocksOf = Callable[[bytes], Awaitable[Sequence[Wanted]]]
"""All blocks that a sealed manifest's content needs."""


class Outcome(Enum):
    PASSED = auto()
    REFUSED = auto()
    LIE = auto()
    NO_ANSWER = auto()
    OURS = auto()  # our own copy is damaged, or nothing is known to ask for: no fault of theirs


LEVELS = {
    Outcome.REFUSED: logging.WARNING,
    Outcome.LIE: logging.WARNING,
    Outcome.NO_ANSWER: logging.INFO,
    # Asked for again each minute, and nothing that anybody could see to: `check` tells of it.
    Outcome.OURS: logging.DEBUG,
}


class Auditor:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: BundleStore,
        pusher: Pusher,
        blocks_of: BlocksOf,
        world: Callable[[], World],
        connected: Callable[[], Sequence[NodeId]],
        name_of: Callable[[NodeId], str],
        lied: Callable[[NodeId], None],
        clock: Clock,
        pool: Executor,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`world` may be called in any thread; `lied` is told of a holder that is believed no more,
        in the loop."""
        self._catalog = catalog
        self._store = store
        self._pusher = pusher
        self._blocks_of = blocks_of
        self._world = world
        self._connected = connected
        self._name_of = name_of
        self._lied = lied
        self._clock = clock
        self._pool = pool
        self._random = random
        self._budgets: dict[NodeId, tuple[float, Budget]] = {}  # as of (monotonic)

    # -- the loop ---------------------------------------------------------------------------------

    async def turn(self, loop: Loop) -> float | None:
        """What is due at everybody connected, as far as the budget goes."""
        for holder in self._connected():
            world = await in_thread(self._pool, self._world)
            if world.rebuilding:
                return None
            await self._audit_holder(loop, world, holder)
        return None

    async def _audit_holder(self, loop: Loop, world: World, holder: NodeId) -> None:
        budget = self._earned(holder)
        able = await in_thread(self._pool, self._able, world, holder)
        rows = {row.bundle_id: row for row, _ in able}
        audits = to_audit([one for _, one in able], budget, now=world.now, seed=self._random(16))
        self._budgets[holder] = (self._clock.monotonic(), budget.after(audits))
        for number, audit in enumerate(audits):
            loop.say(f"asks {self._name_of(holder)} for proofs", number, len(audits))
            if loop.stopped.is_set() or holder not in self._connected():
                return
            outcome = await self._try(rows[audit.bundle], holder, audit)  # type: ignore[index]
            if outcome is Outcome.LIE:
                return

    def _earned(self, holder: NodeId) -> Budget:
        """A new holder, and one after our start, may be asked a day's worth at once."""
        now = self._clock.monotonic()
        since, budget = self._budgets.get(holder, (now - 86_400.0, Budget(0, 0)))
        return earned(budget, now - since, bytes_a_second=LINE_BYTES)

    def _able(self, world: World, holder: NodeId) -> list[tuple[BundleRow, Auditable]]:
        if holder not in world.holders:
            return []
        lied_at = world.holders[holder].lied_at or 0.0

        def look(db: sqlite3.Connection) -> list[tuple[BundleRow, Auditable]]:
            found: list[tuple[BundleRow, Auditable]] = []
            for copy in copies.to_audit(db, holder, int(lied_at * 1000), CHOICE):
                row = blocks.by_rowid(db, copy.bundle)
                known = [] if row is None else copies_of(world, row, [copy])
                if row is None or not known:
                    continue
                found.append(
                    (
                        row,
                        Auditable(
                            row.bundle_id,
                            row.bytes,
                            known[0],
                            self._is_here(row),
                            tried_at=copy.tried_at / 1000 or None,
                        ),
                    )
                )
            return found

        return self._catalog.view(look)

    def _is_here(self, row: BundleRow) -> bool:
        return row.state == BundleState.SEALED and self._store.has(row.bundle_id)

    # -- after a rebuild, and after a lie ---------------------------------------------------------

    async def confirm(self, holder: NodeId) -> int:
        """Ask the holder for proofs of all copies of which only its word is known; how many count
        now. Without a budget: until then they count for nothing."""
        confirmed = 0
        rows = await in_thread(self._pool, self._catalog.view, partial(_unproved, holder))
        for row in rows:
            is_here = self._is_here(row)
            audit = Audit(row.bundle_id, Method.WHOLE if is_here else Method.SAMPLE, SAMPLE)
            outcome = await self._try(row, holder, audit)
            if outcome is Outcome.LIE:
                break
            confirmed += outcome is Outcome.PASSED
        return confirmed

    # -- one audit --------------------------------------------------------------------------------

    async def _try(self, row: BundleRow, holder: NodeId, audit: Audit) -> Outcome:
        outcome, why = await self._ask(row, holder, audit)
        if outcome is not Outcome.PASSED:
            log.log(
                LEVELS[outcome],
                "%s does not prove its copy of bundle %s: %s",
                self._name_of(holder),
                short(row.bundle_id),
                why,
            )
        is_whole = audit.method is Method.WHOLE
        now = int(self._clock.wall() * 1000)
        await self._catalog.awrite(partial(_record, row, holder, outcome, is_whole, now))
        if outcome is Outcome.LIE:
            self._lied(holder)
        return outcome

    async def _ask(self, row: BundleRow, holder: NodeId, audit: Audit) -> tuple[Outcome, str]:
        try:
            if audit.method is Method.WHOLE:
                is_good = await self._pusher.challenge(row.bundle_id, holder, row.seq)
                return (Outcome.PASSED, "") if is_good else (Outcome.LIE, "a wrong proof")
            known = await self._known_blocks(row)
            if not known:
                return Outcome.OURS, "no block of it is known here"
            sample = [BlockId(b) for b in sample_of(known, audit.blocks, self._random(16))]
            is_good = await self._pusher.sample(row.bundle_id, row.tag, holder, sample)
            return (Outcome.PASSED, "") if is_good else (Outcome.REFUSED, "it lacks blocks of it")
        except BundleDamaged as exc:
            return Outcome.OURS, str(exc)
        except StaleMap as exc:
            return await self._tell_map(row, holder, exc)
        except (Unknown, IntegrityError) as exc:
            is_whole = audit.method is Method.WHOLE
            if is_whole and not await in_thread(self._pool, self._is_here, row):
                return Outcome.OURS, str(exc)  # it went meanwhile
            # Of a proof a holder says itself that it cannot read the bundle; in a sample it sent
            # bytes that are not what their id says.
            is_lie = not is_whole and isinstance(exc, IntegrityError)
            return Outcome.LIE if is_lie else Outcome.REFUSED, str(exc)
        except P2PStoreError as exc:
            return Outcome.NO_ANSWER, str(exc)

    async def _tell_map(
        self, row: BundleRow, holder: NodeId, stale: StaleMap
    ) -> tuple[Outcome, str]:
        """The holder has not heard which blocks are dead: tell it; it is asked again later."""
        if stale.seq >= row.seq:
            return Outcome.OURS, "the catalog has not heard which blocks are dead"
        if self._is_here(row):
            try:
                await self._pusher.send_live_map(row.bundle_id, holder)
            except P2PStoreError as exc:
                return Outcome.NO_ANSWER, str(exc)
        return Outcome.NO_ANSWER, f"it has live map {stale.seq}, not {row.seq}"

    async def _known_blocks(self, row: BundleRow) -> list[BlockId]:
        """Blocks of the bundle, as the manifests of files that need it name them; of a meta bundle
        also those in which such manifests lie."""
        places: Sequence[tuple[BundleRef, Entry]] = ()
        if row.kind == Kind.META:
            places = await in_thread(self._pool, self._catalog.view, partial(_places, row.id))
        merged_ids = await in_thread(self._pool, self._catalog.view, partial(_names, row.id))
        names = {row.bundle_id, *merged_ids}
        found = {entry.block for ref, entry in places if ref.bundle_id in names}
        manifests = await in_thread(self._pool, self._catalog.view, partial(_manifests, row.id))
        for raw in manifests:
            wanted = await self._blocks_of(raw)
            found.update(w.block_id for w in wanted if w.ref.bundle_id in names)
            if len(found) >= SAMPLE:
                break
        return sorted(found)


def _unproved(holder: NodeId, db: sqlite3.Connection) -> list[BundleRow]:
    rows = (blocks.by_rowid(db, bundle) for bundle in copies.suspects(db, holder))
    return [row for row in rows if row is not None]


def _names(bundle: int, db: sqlite3.Connection) -> list[BundleId]:
    return merged.names(db, bundle)


def _places(bundle: int, db: sqlite3.Connection) -> list[tuple[BundleRef, Entry]]:
    query = (
        "SELECT f.manifest_ref FROM file_bundles r JOIN files f ON f.id=r.file"
        " WHERE r.bundle=? AND f.manifest_ref<>x'' ORDER BY random() LIMIT ?"
    )
    refs = db.execute(query, (bundle, SAMPLE)).fetchall()
    return [_PLACE.decode(ref) for (ref,) in refs]


def _manifests(bundle: int, db: sqlite3.Connection) -> list[bytes]:
    numbers = blocks.files_of_bundle(db, bundle)
    step = max(1, len(numbers) // FILES)
    return [raw for n in numbers[::step] if (raw := files.manifest(db, n)) is not None]


def _record(
    row: BundleRow,
    holder: NodeId,
    outcome: Outcome,
    is_whole: bool,
    now_ms: int,
    db: sqlite3.Connection,
) -> None:
    copies.tried(db, row.id, holder, now_ms, passed=outcome is Outcome.PASSED)
    if outcome is Outcome.PASSED:
        holders.passed(db, holder, now_ms)
        if is_whole or copies.is_unproved(db, row.id, holder):
            copies.proved(db, row.id, holder, row.seq, now_ms)
    elif outcome in (Outcome.LIE, Outcome.REFUSED):
        holders.failed(db, holder, now_ms, is_lie=outcome is Outcome.LIE)
        copies.set_state(db, row.id, holder, copies.CopyState.LOST)
    elif outcome is Outcome.NO_ANSWER:
        holders.unanswered(db, holder)
        copies.owed(db, row.id, holder, now_ms)
