"""MERGE: many tiny bundles of this device become one (`policy.merging` says which, and when).

    begin    live blocks are read from the disk, compared with their ids and copied as they are into
             one new bundle, whose list names the old ones, with their tags, in `replaces`; sealed,
             and read back from the disk; then its row, and a root that keeps it and the old ones
    copies   it is copied to holders like any other bundle. The old ones are as before: files refer
             to them, their copies count, they may be evicted or healed
    switch   when it is as safe as each of them it is read through once more; then in one change of
             the catalog whatever referred to an old one refers to it, the old ids and tags are its
             aliases, and the old rows are dead
    end      the files of the old ones go into the store's trash. `collect` does the rest, as for
             all that is dead: it lets go of their copies, as long as the new one has as many

Interrupted before the seal, a cut-off file is left, which the next start removes; before its row, a
bundle that nothing knows (`recover` takes it in, `collect` removes it). After that the root says
what is under way, and the next turn goes on. The switch is there or it is not. A dead row whose
file is not in the trash yet is `collect`'s to put there.

The new bundle has every block that an old one can have: lists never change, live maps only lose
blocks, and nothing is punched out of what a root keeps. So an old one that was evicted, or lost,
meanwhile is replaced all the same.

Merging waits while the catalog does not know everything, while an open ingest relies on an old
bundle, and while another device has locked it. Nothing is begun that there is no room for.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from functools import partial

from p2pstore.clock import Clock
from p2pstore.content import (
    BUNDLE_BLOCKS,
    BUNDLE_BYTES,
    MAX_REPLACES,
    RECORD_HEAD,
    BundleHeader,
    Keyring,
    Kind,
    Replaced,
    SealedBlock,
    block_id_of,
    bundle_tag,
)
from p2pstore.errors import Busy, IntegrityError, NoRoom, P2PStoreError, Unavailable
from p2pstore.ids import BlockId, BundleId, PublicKey, short
from p2pstore.ingest import Author
from p2pstore.maintenance import aliases
from p2pstore.maintenance.facts import COLUMNS, Ledger
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.rebuild import state as rebuild_state
from p2pstore.maintenance.refetch import windows
from p2pstore.maintenance.world import World
from p2pstore.policy import SMALL_BYTES, Limits, Small, merges
from p2pstore.store import (
    BundleDamaged,
    BundleMissing,
    BundleRow,
    BundleState,
    Catalog,
    DiskBundles,
    blocks,
    dying,
    merged,
)
from p2pstore.swarm import OwnPromises
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

SOON_S = 60.0  # between two looks while something is under way
UNDER_WAY = 8  # new bundles that wait for their copies: 128 MiB at most that lie here twice
A_TURN = 4  # begun in one turn
RATE_BYTES = 4 << 20  # a second, as when the disk is read through
LIMITS = Limits(BUNDLE_BYTES, BUNDLE_BLOCKS, MAX_REPLACES)


class Merger:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: DiskBundles,
        ledger: Ledger,
        promises: OwnPromises,
        author: Callable[[], Author],
        ring: Callable[[], Keyring],
        world: Callable[[], World],
        age: Callable[[], int],
        free: Callable[[], int],
        clock: Clock,
        pool: Executor,
        random: Callable[[int], bytes] = os.urandom,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`age` is the catalog's, as `collect` counts it; `free` bytes are there above keep-free.
        These and `world` may be called in any thread."""
        self._catalog = catalog
        self._store = store
        self._ledger = ledger
        self._promises = promises
        self._author = author
        self._ring = ring
        self._world = world
        self._age = age
        self._free = free
        self._clock = clock
        self._pool = pool
        self._random = random
        self._sleep = sleep
        self._damaged: set[BundleId] = set()  # they are left alone until a restart

    async def turn(self, loop: Loop) -> float | None:
        if await in_thread(self._pool, self._must_wait):
            return None
        waiting = await self._end_all(loop)
        begun = 0
        for merge in await in_thread(self._pool, self._chosen, min(A_TURN, UNDER_WAY - waiting)):
            if loop.stopped.is_set():
                break
            loop.say("merges small bundles", begun)
            try:
                size: int = await in_thread(self._pool, self._begin, merge)
            except NoRoom as exc:
                log.info("Nothing is merged for want of room: %s", exc)
                break
            except BundleDamaged as exc:
                log.warning("%s It is not merged.", exc)
                self._damaged.add(exc.bundle_id)
                continue
            begun += 1
            await self._sleep(size / RATE_BYTES)
        return SOON_S if waiting or begun else None

    async def _end_all(self, loop: Loop) -> int:
        """How many of those under way have to wait."""
        waiting = 0
        for number, new in enumerate(
            await in_thread(self._pool, self._catalog.view, merged.under_way)
        ):
            if loop.stopped.is_set():
                break
            loop.say("lets merged bundles take their place", number)
            try:
                is_ended: bool = await in_thread(self._pool, self._end, new)
            except P2PStoreError as exc:
                log.info("Bundle %s takes its place later: %s", short(new), exc)
                is_ended = False
            waiting += not is_ended
        return waiting

    # -- what is decided; in threads ---------------------------------------------------------------

    def _must_wait(self) -> bool:
        """A catalog that does not know everything yet may learn what an old bundle is needed for
        at any time."""
        state = rebuild_state(self._catalog)
        return self._world().rebuilding or (
            state is not None and (state.pending or state.unread > 0)
        )

    def _chosen(self, most: int) -> list[list[BundleRow]]:
        found = self._catalog.view(_candidates)
        rows = {row.bundle_id: row for row, _ in found}
        left_out = self._promises.removals | self._damaged
        bundles = [small for row, small in found if row.bundle_id not in left_out]
        plans = merges(bundles, LIMITS, now=self._clock.wall(), most=max(0, most))
        return [[rows[BundleId(one.bundle)] for one in plan] for plan in plans]

    # -- begin -------------------------------------------------------------------------------------

    def _begin(self, olds: Sequence[BundleRow]) -> int:
        """Make the new bundle; its bytes."""
        size = sum(row.bytes for row in olds)
        if self._free() < 2 * size:
            raise NoRoom("there is not enough above keep-free.")
        now_ms = int(self._clock.wall() * 1000)
        new = self._make(olds, now_ms)
        try:
            self._read_back(new)
            known = self._catalog.write(partial(_begun, new, olds)).result()
        except P2PStoreError:
            self._put_away(new.bundle_id)
            raise
        if not known:  # something has changed since they were chosen: they are chosen anew
            self._put_away(new.bundle_id)
        return size

    def _make(self, olds: Sequence[BundleRow], now_ms: int) -> BundleRow:
        author = self._author()
        bundle_id = BundleId(self._random(32))
        header = BundleHeader(
            bundle_id=bundle_id,
            group=author.group,
            opener=PublicKey(bytes(author.key.verify_key)),
            kind=olds[0].kind,
            created_ms=now_ms,
        )
        bundle = self._store.create(header, author.key)
        try:
            there: set[BlockId] = set()
            for old in olds:
                for some in self._live_blocks(old):
                    fresh = {block_id: raw for block_id, raw in some if block_id not in there}
                    bundle.append([SealedBlock(one, b"", raw) for one, raw in fresh.items()])
                    there |= fresh.keys()
            bundle.seal(self._catalog.view(partial(_replaced, olds)))
        except BaseException:
            bundle.abandon()
            raise
        return BundleRow(
            bundle_id=bundle_id,
            tag=bundle_tag(self._ring().current.tag, bundle_id),
            kind=header.kind,
            folder=olds[0].folder,
            state=BundleState.SEALED,
            bytes=self._store.size(bundle_id),
            blocks=len(there),
            created=now_ms,
        )

    def _live_blocks(self, row: BundleRow) -> Iterator[list[tuple[BlockId, bytes]]]:
        """From the disk, a few at a time, each compared with its id; BundleDamaged."""
        self._store.drop_cache(row.bundle_id)
        index, live = self._store.index(row.bundle_id), self._store.live_map(row.bundle_id)
        if live.seq != row.seq or index.header.kind != row.kind:
            raise Unavailable("what is alive in it is not known for certain")
        for window in windows(index, live.indices()):
            found: list[tuple[BlockId, bytes]] = []
            for i, raw in zip(window, self._store.read(row.bundle_id, window), strict=True):
                block_id = index.blocks.entries[i].block_id
                if block_id_of(raw) != block_id:
                    raise BundleDamaged(row.bundle_id, f"block {i} is not what its id says")
                found.append((block_id, raw))
            yield found

    def _read_back(self, new: BundleRow) -> None:
        """All of it, list and blocks, as the disk has it."""
        self._store.forget(new.bundle_id)
        count = sum(len(some) for some in self._live_blocks(new))
        if not new.seq and count != new.blocks:
            raise IntegrityError(f"Bundle {short(new.bundle_id)} does not read back as written.")

    def _put_away(self, bundle_id: BundleId) -> None:
        """Nothing refers to it."""
        self._store.to_trash(bundle_id)
        self._store.purge(bundle_id)

    # -- switch ------------------------------------------------------------------------------------

    def _end(self, new_id: BundleId) -> bool:
        """Whether nothing is left to be waited for: it took its place, or it is given up."""
        new, olds = self._catalog.view(partial(_members, new_id))
        if new is None or new.state != BundleState.SEALED or not self._may_replace(new, olds):
            self._catalog.write(partial(_give_up, new_id)).result()
            return True
        if not self._ledger.is_as_safe(self._world(), new, olds):
            return False
        with self._removing(olds):
            try:
                self._read_back(new)
            except IntegrityError:
                if all(self._is_here(old) for old in olds):
                    self._catalog.write(partial(_give_up, new_id)).result()
                raise
            places = self._places(new)
            switch = partial(_switch, new, olds, places, self._age())
            if not self._catalog.write(switch).result():
                return False
            for old in olds:
                if self._store.has(old.bundle_id):
                    self._store.to_trash(old.bundle_id)
        log.info("%d bundles were merged into bundle %s.", len(olds), short(new_id))
        return True

    def _may_replace(self, new: BundleRow, olds: Sequence[BundleRow]) -> bool:
        """Whether it answers for every one of them, with every block of theirs."""
        try:
            listed = {old.bundle_id for old in self._store.index(new.bundle_id).blocks.replaces}
            there = self._places(new).keys()
        except (IntegrityError, BundleMissing):
            return False
        for old in olds:
            if not {old.bundle_id, *self._catalog.view(partial(_names, old.id))} <= listed:
                return False
            try:
                if not self._places(old).keys() <= there:
                    return False
            except (IntegrityError, BundleMissing):
                if new.seq:
                    return False  # something was punched out of it before: nobody can tell
        return bool(olds)

    def _is_here(self, old: BundleRow) -> bool:
        return old.state == BundleState.SEALED and self._store.has(old.bundle_id)

    def _places(self, row: BundleRow) -> dict[BlockId, int]:
        """Where its live blocks lie in it."""
        entries = self._store.index(row.bundle_id).blocks.entries
        live = self._store.live_map(row.bundle_id).indices()
        return {entries[i].block_id: i for i in reversed(live)}

    @contextmanager
    def _removing(self, olds: Sequence[BundleRow]) -> Iterator[None]:
        """Nobody is promised anything of them meanwhile. Busy: somebody was, or they are being
        taken away already."""
        begun: list[BundleId] = []
        try:
            for old in olds:
                if old.bundle_id in self._promises.removals:
                    raise Busy(f"bundle {short(old.bundle_id)} is being moved")
                self._promises.begin_removal(old.bundle_id)
                begun.append(old.bundle_id)
            yield
        finally:
            for bundle_id in begun:
                self._promises.end_removal(bundle_id)


# -- the catalog -----------------------------------------------------------------------------------

_ROOTS = "SELECT 1 FROM roots r WHERE r.bundle=b.id"
_IS_INDEX = "r.root>='index:' AND r.root<'index;'"
_NEED_ANY = (
    "EXISTS (SELECT 1 FROM file_bundles r WHERE r.bundle=b.id)"
    " OR EXISTS (SELECT 1 FROM history_bundles r WHERE r.bundle=b.id)"
)
# Copies are ruled by the folders that need a bundle: the new one is to be ruled by the same.
_OTHER_FOLDERS = (
    "EXISTS (SELECT 1 FROM file_bundles r JOIN files f ON f.id=r.file"
    " WHERE r.bundle=b.id AND f.folder<>b.folder)"
    " OR EXISTS (SELECT 1 FROM history_bundles r JOIN history h ON h.id=r.history"
    " WHERE r.bundle=b.id AND h.folder<>b.folder)"
)
_PINNED = (
    "EXISTS (SELECT 1 FROM file_bundles r JOIN files f ON f.id=r.file"
    " WHERE r.bundle=b.id AND f.pinned<>0)"
)
# What is needed, and by nothing else than files, earlier versions and folders' indexes.
_CANDIDATES = (
    f"SELECT {COLUMNS}, (SELECT count(*) FROM aliases a WHERE a.bundle=b.id),"
    f" EXISTS ({_ROOTS} AND {_IS_INDEX}), {_PINNED} FROM bundles b"
    " WHERE b.state='sealed' AND b.own=1 AND b.folder IS NOT NULL AND b.bytes<?"
    f" AND NOT EXISTS ({_ROOTS} AND NOT ({_IS_INDEX})) AND ({_NEED_ANY} OR EXISTS ({_ROOTS}))"
    " AND NOT EXISTS (SELECT 1 FROM dying d WHERE d.bundle=b.id AND d.bits=x'')"
    f" AND NOT ({_OTHER_FOLDERS})"
)


def _candidates(
    db: sqlite3.Connection, only: Sequence[int] | None = None
) -> list[tuple[BundleRow, Small]]:
    """An index goes with indexes: what only older ones need goes a week later. What is pinned goes
    with what is pinned: the rest may be evicted."""
    # Numbers of ours only, so that the text may be put together.
    chosen = "" if only is None else f" AND b.id IN ({', '.join(map(str, only))})"
    query = f"{_CANDIDATES}{chosen} ORDER BY b.id"
    found: list[tuple[BundleRow, Small]] = []
    for *fields, names, is_index, is_pinned in db.execute(query, (SMALL_BYTES,)):
        row = BundleRow(*fields)
        kin = (row.folder, Kind(row.kind), bool(is_index), bool(is_pinned))
        size = row.bytes + RECORD_HEAD * row.blocks
        small = Small(row.bundle_id, kin, size, row.blocks, 1 + names, row.created / 1000)
        found.append((row, small))
    return found


def _replaced(olds: Sequence[BundleRow], db: sqlite3.Connection) -> list[Replaced]:
    """The old ones, and what was merged into them before."""
    found: dict[BundleId, Replaced] = {}
    for old in olds:
        for bundle_id, tag in [(old.bundle_id, old.tag), *blocks.aliases_of(db, old.id)]:
            found[bundle_id] = Replaced(bundle_id, tag)
    return list(found.values())


def _begun(new: BundleRow, olds: Sequence[BundleRow], db: sqlite3.Connection) -> bool:
    """The row of the new bundle, and what keeps it; False when they are not as they were chosen."""
    there = {row.id: row for row, _ in _candidates(db, [old.id for old in olds])}
    if any(there.get(old.id) != old for old in olds):
        return False
    number = blocks.put_bundle(db, new)
    blocks.add_root(db, merged.root_of(new.bundle_id), [number, *(old.id for old in olds)])
    return True


def _members(new_id: BundleId, db: sqlite3.Connection) -> tuple[BundleRow | None, list[BundleRow]]:
    rows = blocks.bundles_of_root(db, merged.root_of(new_id))
    new = next((row for row in rows if row.bundle_id == new_id), None)
    return new, [row for row in rows if row.bundle_id != new_id]


def _names(bundle: int, db: sqlite3.Connection) -> list[BundleId]:
    return merged.names(db, bundle)


def _give_up(new_id: BundleId, db: sqlite3.Connection) -> None:
    """The old ones stay as they are; what nothing names need not be kept for long."""
    new, _ = _members(new_id, db)
    blocks.drop_root(db, merged.root_of(new_id))
    if new is not None:
        dying.leave_unnamed(db, new.id)


def _switch(
    new: BundleRow,
    olds: Sequence[BundleRow],
    places: Mapping[BlockId, int],
    age: int,
    db: sqlite3.Connection,
) -> bool:
    """From now on the new bundle is what the old ones were; False when something has changed."""
    if _members(new.bundle_id, db) != (new, list(olds)):
        return False
    if any(old.state == BundleState.EVICTING or dying.is_claimed(db, old.id) for old in olds):
        return False
    blocks.drop_root(db, merged.root_of(new.bundle_id))
    for old in olds:
        merged.move_chunks(db, old.id, new.id, places)
        aliases.follow(db, old, new.id)
        if not dying.bury(db, old.id, age, only_from=old.state):
            raise Unavailable(f"Bundle {short(old.bundle_id)} is needed by something else.")
    return True
