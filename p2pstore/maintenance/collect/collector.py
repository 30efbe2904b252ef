"""One turn of COLLECT, and what is done to what is dead. The order is the package's docstring."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from functools import partial

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import Keyring, LiveMap, sign_live_map
from p2pstore.errors import Busy, P2PStoreError
from p2pstore.ids import BundleId, NodeId, short
from p2pstore.ingest import Author
from p2pstore.maintenance.age import Age
from p2pstore.maintenance.collect.others import Others
from p2pstore.maintenance.collect.roots import Roots, merged_into
from p2pstore.maintenance.collect.seeing import Ripe, Say, Seeing
from p2pstore.maintenance.facts import Ledger
from p2pstore.maintenance.index import superseded_since
from p2pstore.maintenance.live import left_of
from p2pstore.maintenance.reaching import Reaching, meta_bundles
from p2pstore.maintenance.rebuild import state as rebuild_state
from p2pstore.maintenance.world import World
from p2pstore.restore import BlockSource
from p2pstore.store import (
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    IntentKind,
    blocks,
    copies,
    dying,
    folders,
    journal,
    merged,
)
from p2pstore.swarm import OwnPromises, Pusher
from p2pstore.threads import in_thread
from p2pstore.wire import Unknown

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
SUPERSEDED_MS = 7 * DAY_MS  # what only older indexes lay in stays whole for so long
TRASH_MS = 7 * DAY_MS  # as at holders
AFTER_REBUILD_MS = 30 * DAY_MS
PAGE = 200  # superseded bundles of one turn


def _quiet(text: str, done: int, total: int) -> None:
    """Nobody watches."""


class Collector:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: BundleStore,
        ledger: Ledger,
        pusher: Pusher,
        promises: OwnPromises,
        others: Others,
        source: BlockSource,
        author: Callable[[], Author],
        ring: Callable[[], Keyring],
        world: Callable[[], World],
        clock: Clock,
        pool: Executor,
    ) -> None:
        """`world` may be called in any thread."""
        self._catalog = catalog
        self._store = store
        self._ledger = ledger
        self._pusher = pusher
        self._promises = promises
        self._others = others
        self._source = source
        self._author = author
        self._ring = ring
        self._world = world
        self._clock = clock
        self._pool = pool
        self._age = Age(catalog, clock)
        self._seeing = Seeing(catalog, store)

    async def run(self, say: Say = _quiet, is_stopped: Callable[[], bool] = lambda: False) -> int:
        """One turn; how many bundles were forgotten. What cannot be read is raised: a turn that
        does not know everything concludes nothing."""
        if await in_thread(self._pool, self._must_wait):
            return 0
        age = await in_thread(self._pool, self._age.now)
        now_ms = int(self._clock.wall() * 1000)
        while await self._catalog.awrite(partial(_retire_removed, now_ms)):
            pass  # a few at a time: others want to write as well
        local = await in_thread(self._pool, self._local, asyncio.get_running_loop())
        roots = Roots(self._catalog, local.load, self._ring())
        await in_thread(self._pool, self._seeing.look, roots, age, say, is_stopped)
        ripe = await in_thread(self._pool, self._seeing.ripe, age)
        superseded = await in_thread(self._pool, self._superseded)
        superseded += await in_thread(self._pool, self._replaced)
        if not (ripe or superseded):
            return await self._let_go(age)
        is_told: bool = await in_thread(self._pool, self._is_told)
        if is_told:
            for one in [*await self._unnamed_by_others(ripe, local, age), *superseded]:
                await self._end(one, age)
        return await self._let_go(age)

    async def end(self, rows: Sequence[BundleRow]) -> None:
        """Let go at once of what its owner has taken back and nothing refers to any more: here, and
        at the holders that are there; the others let go when a later turn finds them."""
        age = await in_thread(self._pool, self._age.now)
        world = self._world()
        for row in rows:
            if row.state == BundleState.EVICTED:
                await self._catalog.awrite(partial(_bury, row, age))
            else:
                await in_thread(self._pool, self._put_away, row, age)
                if await in_thread(self._pool, self._is_dead, row):
                    await in_thread(self._pool, self._store.purge, row.bundle_id)
            if await in_thread(self._pool, self._is_dead, row):
                await self._release(row, world)
                await self._catalog.awrite(partial(_forget, row))

    def _is_dead(self, row: BundleRow) -> bool:
        now = self._catalog.view(partial(_by_id, row))
        return now is not None and now.state == BundleState.DEAD

    def age(self) -> int:
        """What the days of dying are counted by, in ms. Blocks on the catalog."""
        return self._age.now()

    # -- whether ----------------------------------------------------------------------------------

    def _must_wait(self) -> bool:
        """A catalog that was rebuilt lately, or not wholly, does not know what is needed."""
        if self._world().rebuilding:
            return True
        state = rebuild_state(self._catalog)
        now_ms = int(self._clock.wall() * 1000)
        return state is not None and (
            state.pending or state.unread > 0 or now_ms < state.at_ms + AFTER_REBUILD_MS
        )

    def _is_told(self) -> bool:
        """Every folder's newest head covers everything, and every holder of ours has it."""
        world = self._world()
        watched = self._catalog.view(folders.watched)
        if not {row.folder_id for row in watched} <= world.clean:
            return False
        # Carriers are told what they can keep; nobody asks them for a manifest.
        asked = {node for node, holder in world.holders.items() if holder.role != "carrier"}
        holders = set(self._catalog.view(copies.holders)) & asked
        return not self._ledger.untold(world, holders)

    def _local(self, loop: asyncio.AbstractEventLoop) -> Reaching:
        meta = self._catalog.view(partial(meta_bundles, self._store))
        return Reaching(self._store, meta, self._source, loop)

    async def _unnamed_by_others(
        self, ripe: Sequence[Ripe], local: Reaching, age: int
    ) -> list[Ripe]:
        """Those that every other device has shown since that it does not name."""
        shown = await self._others.ask(age)
        ripe = [one for one in ripe if one.since < shown]
        if not ripe:
            return []
        names = {one.row.bundle_id: one.row.bundle_id for one in ripe}
        numbers = [one.row.id for one in ripe]
        names |= await in_thread(self._pool, self._catalog.view, partial(merged_into, numbers))
        named = await in_thread(self._pool, self._others.named, local, names.keys())
        blocks_of: dict[BundleId, set[bytes]] = {}
        for bundle_id, block_id in named:
            if bundle_id in names:
                blocks_of.setdefault(names[bundle_id], set()).add(block_id)
        left: list[Ripe] = []
        for one in ripe:
            if await in_thread(self._pool, self._is_named, one, blocks_of.get(one.row.bundle_id)):
                await self._catalog.awrite(partial(_postpone, one.row, age))
            else:
                left.append(one)
        return left

    def _is_named(self, one: Ripe, named: set[bytes] | None) -> bool:
        if not named:
            return False
        if not one.dead:
            return True
        entries = self._store.index(one.row.bundle_id).blocks.entries
        return any(entries[i].block_id in named for i in one.dead)

    def _superseded(self) -> list[Ripe]:
        """What only older indexes lay in, long enough ago."""
        now_ms = int(self._clock.wall() * 1000)

        def look(db: sqlite3.Connection) -> list[BundleRow]:
            rows: dict[int, BundleRow] = {}
            for root in blocks.roots_with(db, dying.SUPERSEDED):
                if superseded_since(root)[1] > now_ms - SUPERSEDED_MS:
                    continue
                for row in _bundles_of(db, root):
                    if row.state in (BundleState.SEALED, BundleState.EVICTED):
                        rows[row.id] = row
                if len(rows) >= PAGE:
                    break
            return list(rows.values())

        return [Ripe(row, 0, 0, frozenset()) for row in self._catalog.view(look)]

    def _replaced(self) -> list[Ripe]:
        """What was merged into another bundle, though its row is not dead."""
        return [Ripe(row, 0, 0, frozenset()) for row in self._catalog.view(merged.replaced)]

    # -- what is dead here ------------------------------------------------------------------------

    async def _end(self, one: Ripe, age: int) -> None:
        """Punch the blocks out, or put the bundle away. What is in use waits for the next turn."""
        row = one.row
        try:
            if one.dead:
                if await in_thread(self._pool, self._punch, one):
                    await self._tell_holders(row)
            elif row.state == BundleState.EVICTED:
                await self._catalog.awrite(partial(_bury, row, age))
            else:
                await in_thread(self._pool, self._put_away, row, age)
        except P2PStoreError as exc:
            log.info("Bundle %s is collected later: %s", short(row.bundle_id), exc)

    def _punch(self, one: Ripe) -> bool:
        """Map, synced; row; then the holes: what a crash leaves is the next turn's to finish.

        Under the row EVICTING, so that nobody takes the bundle away meanwhile.
        """
        row = one.row
        self._promises.begin_removal(row.bundle_id)  # Busy: another device relies on it just now
        try:
            now_ms = int(self._clock.wall() * 1000)
            intent = self._catalog.write(partial(_begin_punch, one, now_ms)).result()
            if intent is None:
                return False
            try:
                live = self._store.live_map(row.bundle_id).without(set(one.dead))
                signed = sign_live_map(live, self._author().key)
                if not self._store.set_live_map(row.bundle_id, signed):
                    return False
                left = left_of(self._store, row)
                self._catalog.write(partial(_punched, one, live, left)).result()
                self._store.punch(row.bundle_id)
                return True
            finally:
                self._catalog.write(partial(_take_back, row, intent)).result()
        finally:
            self._promises.end_removal(row.bundle_id)

    def _put_away(self, row: BundleRow, age: int) -> None:
        """The local copy goes into the trash of the store. In a thread."""
        try:
            self._promises.begin_removal(row.bundle_id)
        except Busy:
            return  # another device relies on it just now
        try:
            now_ms = int(self._clock.wall() * 1000)
            intent = self._catalog.write(partial(_begin, row, now_ms)).result()
            if intent is None:
                return
            is_dead = False
            try:
                self._store.to_trash(row.bundle_id)
                is_dead = self._catalog.write(partial(_dead, row, intent, age)).result()
            finally:
                if not is_dead:
                    self._give_back(row, intent)
        finally:
            self._promises.end_removal(row.bundle_id)

    def _give_back(self, row: BundleRow, intent: int) -> None:
        """The file first: a row SEALED always has its file."""
        if row.bundle_id in self._store.trash():
            self._store.from_trash(row.bundle_id)
        self._catalog.write(partial(_take_back, row, intent)).result()

    # -- and at holders ---------------------------------------------------------------------------

    async def _tell_holders(self, row: BundleRow) -> None:
        """The new live map, and a proof under it: until then their copies do not count. Whoever
        cannot be asked now gets both with the next push."""
        now = await in_thread(self._pool, self._catalog.view, partial(_by_id, row))
        if now is None:
            return
        for copy in await in_thread(self._pool, self._copies, row):
            if copy.state not in (copies.CopyState.PROVED, copies.CopyState.SUSPECT):
                continue
            try:
                await self._pusher.send_live_map(row.bundle_id, copy.holder)
                if not await self._pusher.challenge(row.bundle_id, copy.holder, now.seq):
                    continue
            except P2PStoreError as exc:
                log.debug("%s has the older map yet: %s", short(copy.holder), exc)
                continue
            proved_ms = int(self._clock.wall() * 1000)
            await self._catalog.awrite(partial(_proved, now, copy.holder, proved_ms))

    async def _let_go(self, age: int) -> int:
        """Dead bundles: back to life, out of the trash, released, forgotten; how many of these."""
        world = self._world()
        forgotten = 0
        for row, since in await in_thread(self._pool, self._catalog.view, dying.all_dead):
            try:
                is_over = age - since >= TRASH_MS
                if await in_thread(self._pool, self._may_release, row, is_over, world):
                    await self._release(row, world)
                    forgotten += await self._catalog.awrite(partial(_forget, row))
            except P2PStoreError as exc:
                log.info("Bundle %s is let go of later: %s", short(row.bundle_id), exc)
        return forgotten

    def _may_release(self, row: BundleRow, is_over: bool, world: World) -> bool:
        is_in_trash = row.bundle_id in self._store.trash()
        if self._catalog.view(lambda db: dying.is_needed(db, row.id)):
            if is_in_trash:
                self._store.from_trash(row.bundle_id)
            state = BundleState.SEALED if self._store.has(row.bundle_id) else BundleState.EVICTED
            self._catalog.write(lambda db: dying.revive(db, row.id, state)).result()
            return False
        if self._store.has(row.bundle_id):  # a merge was interrupted just then
            self._store.to_trash(row.bundle_id)
            return False
        if not self._ledger.is_made_up_for(world, row, self._store):
            return False
        if is_in_trash and is_over:
            self._store.purge(row.bundle_id)
        return is_over or not is_in_trash  # what only holders had goes into their trash at once

    async def _release(self, row: BundleRow, world: World) -> None:
        for copy in await in_thread(self._pool, self._copies, row):
            if copy.state == copies.CopyState.RELEASED:
                continue
            if copy.holder in world.holders:  # who was revoked is asked nothing any more
                try:
                    await self._pusher.release(row.bundle_id, copy.holder)
                except Unknown:
                    pass  # it has let it go already
                except P2PStoreError as exc:
                    log.debug("%s keeps %s yet: %s", short(copy.holder), short(row.bundle_id), exc)
                    continue
            await self._catalog.awrite(partial(_released, row, copy.holder))

    def _copies(self, row: BundleRow) -> list[copies.Copy]:
        return self._catalog.view(lambda db: copies.of_bundle(db, row.id))


def _retire_removed(now_ms: int, db: sqlite3.Connection) -> int:
    return dying.retire_removed(db, now_ms)


def _bundles_of(db: sqlite3.Connection, root: str) -> Iterable[BundleRow]:
    numbers = db.execute("SELECT bundle FROM roots WHERE root=? ORDER BY bundle", (root,))
    rows = (blocks.by_rowid(db, number) for (number,) in numbers.fetchall())
    return [row for row in rows if row is not None]


def _by_id(row: BundleRow, db: sqlite3.Connection) -> BundleRow | None:
    return blocks.by_rowid(db, row.id)


def _postpone(row: BundleRow, age: int, db: sqlite3.Connection) -> None:
    dying.postpone(db, row.id, age)


def _begin_punch(one: Ripe, now_ms: int, db: sqlite3.Connection) -> int | None:
    if not _is_still_dying(one, db) or not blocks.begin_evict(db, one.row.id):
        return None
    body = msgspec.msgpack.encode(one.row.bundle_id)
    return journal.open_intent(db, IntentKind.EVICT, body, now_ms)


def _is_still_dying(one: Ripe, db: sqlite3.Connection) -> bool:
    """As it was seen: nothing refers to the bundle anew, and nothing is about to."""
    number = one.row.id
    row = blocks.by_rowid(db, number)
    if row is None or (row.state, row.seq) != (BundleState.SEALED, one.row.seq):
        return False
    if dying.is_pinned(db, number) or dying.examined(db).get(number) != dying.stamp(db, number):
        return False
    rows = [d for d in dying.of_bundle(db, number) if d.since <= one.limit]
    return one.dead <= set(dying.indices(dying.union(rows)))


def _punched(one: Ripe, live: LiveMap, left: int, db: sqlite3.Connection) -> None:
    blocks.set_live(db, one.row.id, live.seq, left)
    dying.buried(db, one.row.id, one.limit)


def _begin(row: BundleRow, now_ms: int, db: sqlite3.Connection) -> int | None:
    if dying.is_needed(db, row.id):
        _drop_marks(db, row)  # a later index shares its blocks again
        return None
    if not blocks.begin_evict(db, row.id):
        return None
    return journal.open_intent(db, IntentKind.EVICT, msgspec.msgpack.encode(row.bundle_id), now_ms)


def _dead(row: BundleRow, intent: int, age: int, db: sqlite3.Connection) -> bool:
    if not dying.bury(db, row.id, age, only_from=BundleState.EVICTING):
        return False
    journal.close(db, intent)
    return True


def _bury(row: BundleRow, age: int, db: sqlite3.Connection) -> bool:
    """Of a bundle that is not here: its holders may let it go at once, they have a trash too."""
    if dying.may_stand_for_lost(db, row):
        return False
    if not dying.bury(db, row.id, age, only_from=BundleState.EVICTED):
        _drop_marks(db, row)
        return False
    return True


def _drop_marks(db: sqlite3.Connection, row: BundleRow) -> None:
    for root in blocks.roots_of(db, row.id):
        if root.startswith(dying.SUPERSEDED):
            db.execute("DELETE FROM roots WHERE root=? AND bundle=?", (root, row.id))


def _take_back(row: BundleRow, intent: int, db: sqlite3.Connection) -> None:
    blocks.move(db, row.id, BundleState.SEALED, only_from=[BundleState.EVICTING])
    journal.close(db, intent)


def _proved(row: BundleRow, holder: NodeId, now_ms: int, db: sqlite3.Connection) -> None:
    copies.proved(db, row.id, holder, row.seq, now_ms)


def _released(row: BundleRow, holder: NodeId, db: sqlite3.Connection) -> None:
    copies.set_state(db, row.id, holder, copies.CopyState.RELEASED)


def _forget(row: BundleRow, db: sqlite3.Connection) -> bool:
    """Its rows go when nobody has it any more and nothing refers to it."""
    known = copies.of_bundle(db, row.id)
    if any(copy.state != copies.CopyState.RELEASED for copy in known):
        return False
    if dying.is_needed(db, row.id):
        return False
    _drop_marks(db, row)
    return blocks.forget_unreferenced(db, row.id) is not None
