"""COMPLETE: what a rebuilt catalog cannot know from its own disk, it learns from the swarm.

    heads      of this device at holders: newer than those in HOME when HOME came from a copy
    holdings   which bundles each holder says it keeps for us: evicted files are known again
    merged     of what nobody says so: the bundles that it was merged into, by their signed lists
    blocks     of indexes, chunk lists and manifests that are not here
    lists      of lost devices, whose folders were recovered from earlier ones (filing/late.py)

What a holder says is no proof. Its copies are recorded as suspect, without receipt, and count again
when an audit has been passed; which blocks are dead only a signed list says, when it is read
(`refetch`). What nobody has stays LOST; originals that depend on it are stored anew. Holders are
asked one after another; `complete` may run again at any time, also beside everything else: rows
that have become newer are left alone.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import NamedTuple, Protocol

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import BundleIndex, Keyring, bundle_tag
from p2pstore.home import Home
from p2pstore.ids import BundleId, FolderId, NodeId, PublicKey, Tag
from p2pstore.ingest import Author
from p2pstore.maintenance import aliases, anew
from p2pstore.maintenance.filing import Disk, Filer, Judge, Late
from p2pstore.maintenance.heads import KnownHead, believed, newest_heads
from p2pstore.maintenance.later import Absent, InHand, Later, Reopening, late_heads, read_late
from p2pstore.maintenance.reaching import Reaching, meta_bundles
from p2pstore.maintenance.rebuild import Progress, State, raise_incarnation, save_state, state
from p2pstore.restore import BlockSource
from p2pstore.store import (
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    blocks,
    copies,
    folders,
)
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

PAGE = 256  # holdings recorded in one change
MAX_UNNAMED = 100_000  # bundles that no manifest names: a holder cannot fill our disk with them


class Holding(Protocol):
    """What a holder says of one bundle (`wire.Holding`)."""

    @property
    def bundle(self) -> BundleId: ...
    @property
    def tag(self) -> Tag: ...
    @property
    def kind(self) -> int: ...
    @property
    def opener(self) -> PublicKey: ...
    @property
    def seq(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def lease_until_ms(self) -> int: ...


Holdings = Callable[[], AsyncIterator[tuple[NodeId, Holding]]]
Heads = Callable[[], AsyncIterator[bytes]]
Merged = Callable[[Sequence[BundleId]], AsyncIterator[BundleIndex]]
"""Lists of bundles at holders that replace some of these; their openers are the group's."""


async def none_merged(_: Sequence[BundleId]) -> AsyncIterator[BundleIndex]:
    nothing: Sequence[BundleIndex] = ()
    for index in nothing:
        yield index


class Completed(NamedTuple):
    bundles: int  # found at holders
    copies: int  # not proved yet
    missing: int  # needed, and nowhere
    unread: int
    files: int  # filed now
    doubtful: int  # originals whose blocks are nowhere: a scan takes them anew
    incarnation: int
    later: tuple[Later, ...] = ()


async def complete_with_holdings(
    catalog: Catalog,
    *,
    home: Home,
    store: BundleStore,
    author: Author,
    ring: Keyring,
    judge: Judge,
    clock: Clock,
    pool: Executor,
    source: BlockSource,
    holdings: Holdings,
    heads: Heads,
    merged: Merged = none_merged,
    asked: Callable[[], Sequence[NodeId]] = lambda: (),
    reopening: Reopening | None = None,
    present: Collection[NodeId] = (),
    reads: Callable[[bytes], None] = lambda name: None,
    progress: Progress = lambda _: None,
) -> Completed:
    """Ask everybody that `holdings` and `heads` reach; afterwards nothing is pending any more, and
    the catalog remembers those that were `asked`, which is called at the end. Lists of lost devices
    are read with `reopening` only, and not those of devices that are `present`. `reads` hears the
    name of each placeholder that is read.

    An error of theirs ends it with everything recorded so far; call it again. Have all folders
    scanned afterwards when `files` or `doubtful` is not 0.
    """
    me = PublicKey(bytes(author.key.verify_key))
    found = _Found()

    def guess(index: BundleIndex) -> Tag:
        return bundle_tag(ring.current.tag, index.header.bundle_id)

    async def ask() -> None:
        await _ask_holders(catalog, me, holdings, found)
        if await _learn_merged(catalog, me, merged, guess, found):
            await _ask_holders(catalog, me, holdings, found)

    await ask()
    told = [raw async for raw in heads()]
    loop = asyncio.get_running_loop()

    def begin() -> _Filing:
        return _Filing(catalog, store, author, ring, judge, clock, source, loop, progress)

    filing = await in_thread(pool, begin)
    read = await in_thread(pool, filing.read, home, told, reopening, present, reads)
    if await in_thread(pool, catalog.view, _missing):
        # Indexes that were read only now name bundles that other devices opened: who has those?
        await ask()
    return await in_thread(pool, filing.finish, read, found, asked())


# -- holdings --------------------------------------------------------------------------------------


class _Found:
    """What holders told so far."""

    def __init__(self) -> None:
        self.bundles = 0
        self.copies = 0
        self.unnamed = 0
        self.guessed: set[BundleId] = set()  # whose tag is a guess until a holder tells


async def _ask_holders(catalog: Catalog, me: PublicKey, holdings: Holdings, found: _Found) -> None:
    page: list[tuple[NodeId, Holding]] = []
    async for one in holdings():
        page.append(one)
        if len(page) == PAGE:
            await catalog.awrite(partial(_record, page, me, found))
            page = []
    await catalog.awrite(partial(_record, page, me, found))


async def _learn_merged(
    catalog: Catalog,
    me: PublicKey,
    merged: Merged,
    guess: Callable[[BundleIndex], Tag],
    found: _Found,
) -> bool:
    """Whether something that is lost was merged into a bundle of which holders can tell more."""
    lost = await asyncio.to_thread(catalog.view, aliases.lost)
    is_learnt = False
    async for index in merged(lost) if lost else none_merged(()):
        own = index.header.opener == me
        learn = partial(aliases.learn, index, guess(index), own=own)
        if await catalog.awrite(lambda db, learn=learn: learn(db=db)):  # type: ignore[misc]
            found.guessed.add(index.header.bundle_id)
            is_learnt = True
    return is_learnt


def _record(
    page: Sequence[tuple[NodeId, Holding]], me: PublicKey, found: _Found, db: sqlite3.Connection
) -> None:
    rows = blocks.get_bundles(db, [holding.bundle for _, holding in page])
    known = copies.of_bundles(db, [row.id for row in rows.values()])
    for holder, said in page:
        row = rows.get(said.bundle)
        if row is None:
            if said.opener != me or found.unnamed >= MAX_UNNAMED:
                continue  # what other devices opened is theirs to know
            found.unnamed += 1
            row = _unnamed(db, said)
            rows[said.bundle] = row
            found.bundles += 1
        elif row.state == BundleState.LOST:
            tag = said.tag if said.bundle in found.guessed else row.tag
            row = row._replace(
                state=BundleState.EVICTED, bytes=said.bytes, blocks=0, seq=said.seq, tag=tag
            )
            blocks.put_bundle(db, row)
            rows[said.bundle] = row
            found.bundles += 1
        elif row.state == BundleState.EVICTED and row.is_hearsay and said.seq > row.seq:
            blocks.set_live(db, row.id, said.seq, said.bytes)
        if any(copy.holder == holder for copy in known.get(row.id, ())):
            continue
        copy = copies.Copy(
            bundle=row.id,
            holder=holder,
            seq=said.seq,
            proved_at=0,
            lease_until=said.lease_until_ms,
            receipt=b"",
            state=copies.CopyState.SUSPECT,
        )
        copies.put(db, copy)
        known.setdefault(row.id, []).append(copy)
        found.copies += 1


def _unnamed(db: sqlite3.Connection, said: Holding) -> BundleRow:
    """One of ours that nothing here names: GC decides one day, when it may."""
    row = BundleRow(
        said.bundle,
        said.tag,
        said.kind,
        None,
        BundleState.EVICTED,
        said.bytes,
        0,
        seq=said.seq,
    )
    return row._replace(id=blocks.put_bundle(db, row))


# -- indexes -------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """What the second look at indexes came to."""

    state: State
    files: int  # filed by it
    incarnation: int
    later: tuple[Later, ...]


class _Filing:
    """The second look at indexes; both halves in a thread."""

    def __init__(
        self,
        catalog: Catalog,
        store: BundleStore,
        author: Author,
        ring: Keyring,
        judge: Judge,
        clock: Clock,
        source: BlockSource,
        loop: asyncio.AbstractEventLoop,
        progress: Progress,
    ) -> None:
        self._catalog = catalog
        self._ring = ring
        self._now_ms = int(clock.wall() * 1000)
        self._loop = loop
        self._filer = Filer(
            catalog=catalog,
            local=Reaching(store, catalog.view(partial(meta_bundles, store)), source, loop),
            author=author,
            ring=ring,
            judge=judge,
            now_ms=self._now_ms,
            report=lambda count: progress({"stage": "rebuild", "files": count}),
        )

    def read(
        self,
        home: Home,
        told: Sequence[bytes],
        reopening: Reopening | None,
        present: Collection[NodeId],
        reads: Callable[[bytes], None],
    ) -> _Read:
        """File what the heads name; nothing is concluded from what is still missing."""
        filer = self._filer
        left = state(self._catalog) or State(self._now_ms, True, 0, home.incarnation())
        written = newest_heads(home.heads(), filer, self._ring)
        heads = self._to_read(left, written, told)
        late: Mapping[FolderId, Sequence[KnownHead]] = {}
        if reopening is not None:
            late = late_heads(home, told, Absent(filer.node_id, present), filer, self._ring)
        later: list[Later] = []
        pending: list[bytes] = []
        before = self._catalog.view(_files)
        for entry in home.folders():
            folder_id = FolderId(entry.folder_id)
            row = self._catalog.view(partial(_folder_row, folder_id))
            is_pending = entry.folder_id in left.folders
            if row is None or not (is_pending or folder_id in heads or folder_id in late):
                continue
            unread, disk = filer.unread, Disk(entry, reads)
            try:
                for one in heads.get(folder_id, ()):
                    filer.index(row.id, disk, one.manifest, of_this_device=True)
                if is_pending:
                    filer.lists_again(row.id)
                if filer.unread > unread:
                    pending.append(entry.folder_id)
                if reopening is not None and folder_id in late:
                    hand = InHand(folder_id, reopening, self._loop)
                    filing = Late(filer, self._catalog, row.id, disk, hand)
                    later.append(read_late(entry, filing, late[folder_id]))
            finally:
                disk.close()
        told_greatest = max(
            (one.head.incarnation for of in heads.values() for one in of), default=0
        )
        incarnation = home.incarnation()
        if told_greatest >= incarnation:
            incarnation = raise_incarnation(home, told_greatest)
        done = State(
            left.at_ms,
            False,
            filer.unread,
            incarnation=incarnation,
            folders=tuple(pending),
            heads=left.heads,
            asked=left.asked,
        )
        files = self._catalog.view(_files) - before
        return _Read(done, files, incarnation, tuple(later))

    def finish(self, read: _Read, found: _Found, asked: Sequence[NodeId]) -> Completed:
        """These holders have said all that they could; nothing waits for the others."""
        known = tuple(sorted({*read.state.asked, *asked}))
        done = msgspec.structs.replace(read.state, asked=known)

        def change(db: sqlite3.Connection) -> int:
            save_state(db, done)
            for name in blocks.roots_with(db, "rebuild:"):
                if bytes.fromhex(name.removeprefix("rebuild:")) not in read.state.folders:
                    blocks.drop_root(db, name)
            return anew.of_lost(db, self._now_ms)

        doubtful = self._catalog.write(change).result()
        return Completed(
            bundles=found.bundles,
            copies=found.copies,
            missing=self._catalog.view(_missing),
            unread=self._filer.unread,
            files=read.files,
            doubtful=doubtful,
            incarnation=read.incarnation,
            later=read.later,
        )

    def _to_read(
        self,
        left: State,
        written: Mapping[FolderId, Sequence[KnownHead]],
        told: Sequence[bytes],
    ) -> dict[FolderId, list[KnownHead]]:
        """Heads of this device with something new in them, the oldest first.

        Those whose indexes could not be read before, and those that holders have and the rebuild
        had not: written before it, or by a copy of HOME elsewhere.
        """
        filer = self._filer
        began = newest_heads(left.heads, filer, self._ring)
        found = {f: list(of) for f, of in began.items() if f in left.folders}
        for raw in set(told):
            one = believed(raw, filer, self._ring)
            if one is None or one.head.device != filer.node_id:
                continue
            folder = one.head.folder
            if one.order <= _own_order(began.get(folder, ()), filer.node_id):
                continue
            newest = _own_order(written.get(folder, ()), filer.node_id)
            if one.head.incarnation < left.incarnation or one.order > newest:
                found.setdefault(folder, []).append(one)
        return {f: sorted(of, key=lambda one: one.order) for f, of in found.items()}


def _own_order(heads: Sequence[KnownHead], me: NodeId) -> tuple[int, int]:
    return max((one.order for one in heads if one.head.device == me), default=(0, 0))


def _folder_row(folder_id: FolderId, db: sqlite3.Connection) -> folders.FolderRow | None:
    return folders.by_folder_id(db, folder_id)


def _files(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM files").fetchone()[0])


def _missing(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM bundles WHERE state='lost'").fetchone()[0])
