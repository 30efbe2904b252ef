"""REFETCH: the local copy of an evicted bundle, back from its holders byte for byte.

A bundle whose bytes lie with holders only can be given to nobody else: they must be here first.
What was signed when it was sealed is asked of a holder, the list of its blocks and its live map;
the blocks come from whoever has them, as for any file.

    list     signed by the device that opened the bundle, of as many blocks as the catalog knows;
             of several holders' live maps the newest, none older than the catalog's
    blocks   each compared with its id as it comes, written where the list says it lies
    file     header and list last, synced, live map, renamed into the store
    look     read back from the disk: list and every live block, for a holder may be told to let
             go of its copy because of this one
    row      evicted -> sealed, in the catalog; from there on it counts as a local copy

Interrupted before the rename nothing has happened; between rename and row the bundle lies there,
served like any other, and the next refetch takes it up. Never into `keep-free`. Nobody else changes
the bundle meanwhile: what is EVICTED is not evicted, and an evict that is just ending is not raced.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Final

from p2pstore.config import format_size
from p2pstore.content import (
    BlockEntry,
    BundleHeader,
    BundleIndex,
    BundleRef,
    LiveMap,
    SignedLiveMap,
    block_id_of,
    verify_live_map,
)
from p2pstore.errors import Busy, IntegrityError, NoRoom, P2PStoreError, Unavailable
from p2pstore.ids import BlockId, BundleId, NodeId, PublicKey, short
from p2pstore.restore import BlockSource, Wanted
from p2pstore.store import (
    BundleDamaged,
    BundleRow,
    BundleState,
    Catalog,
    DiskBundles,
    Part,
    blocks,
    copies,
)
from p2pstore.swarm import OwnPromises, Pusher
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

WINDOW_BYTES: Final = 4 << 20  # of blocks in memory at a time
WINDOW_BLOCKS: Final = 512
AWAY: Final = (BundleState.EVICTED, BundleState.LOST)


@dataclass(frozen=True, slots=True)
class Listed:
    """What was signed of a bundle: all that is needed to put it together."""

    index: BundleIndex
    live: LiveMap
    signed: SignedLiveMap | None  # None: all blocks are live


class Refetcher:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: DiskBundles,
        pusher: Pusher,
        source: BlockSource,
        promises: OwnPromises,
        opened_by: Callable[[PublicKey], bool],
        admit_map: Callable[[BundleHeader, SignedLiveMap], None],
        free: Callable[[], int],
        pool: Executor,
    ) -> None:
        """`opened_by`: may that key have opened a bundle of ours? `admit_map` raises NotAllowed for
        a map whose signer may not say what is dead. `free` bytes are there above keep-free."""
        self._catalog = catalog
        self._store = store
        self._pusher = pusher
        self._source = source
        self._promises = promises
        self._opened_by = opened_by
        self._admit_map = admit_map
        self._free = free
        self._pool = pool
        self._running: set[BundleId] = set()
        store.drop_parts()

    async def refetch(self, row: BundleRow) -> None:
        """When this returns the bundle lies here, whole, and its row says so.

        Unavailable and what it stands for (a block that nobody has, no holder that answers),
        IntegrityError when what came is wrong, NoRoom; Busy: another refetch or an evict is at it.
        """
        if row.bundle_id in self._running or row.bundle_id in self._promises.removals:
            raise Busy(f"Bundle {short(row.bundle_id)} is being moved already.")
        self._running.add(row.bundle_id)
        try:
            if not await in_thread(self._pool, self._store.has, row.bundle_id):
                await self._bring(row)
            await in_thread(self._pool, self._take_up, row)
        finally:
            self._running.discard(row.bundle_id)

    async def _bring(self, row: BundleRow) -> None:
        if self._free() < row.bytes:
            raise NoRoom(
                f"{format_size(row.bytes)} are needed to have bundle {short(row.bundle_id)} here; "
                f"{format_size(max(0, self._free()))} are free above keep-free."
            )
        listed = await self.listed(row)
        part = await in_thread(self._pool, self._begin, listed)
        try:
            for window in windows(listed.index, sorted(part.wanted)):
                found = await self._source.blocks(wanted_of(row, listed.index, window))
                await in_thread(self._pool, write_window, part, window, found)
            await in_thread(self._pool, self._finish, part, listed)
        finally:
            await in_thread(self._pool, drop_part, part)

    async def listed(self, row: BundleRow) -> Listed:
        """Of the holders that the catalog names; the first whose map is not older than ours. The
        newest of all, when what the catalog knows of the bundle is what some holder told."""
        holders = await in_thread(self._pool, self._holders, row)
        trouble: P2PStoreError = Unavailable(
            f"Nobody is known to hold bundle {short(row.bundle_id)}."
        )
        newest: Listed | None = None
        for holder in holders:
            try:
                index, signed = await self._pusher.block_list(row.bundle_id, holder)
                listed = self._judge(row, index, signed)
            except P2PStoreError as exc:
                log.info("%s: no list of bundle %s: %s", short(holder), short(row.bundle_id), exc)
                trouble = exc
                continue
            if not row.is_hearsay:
                return listed
            if newest is None or newest.live.seq < listed.live.seq:
                newest = listed
        if newest is None:
            raise trouble
        return newest

    def _holders(self, row: BundleRow) -> list[NodeId]:
        """Those that proved it last come first."""
        known = self._catalog.view(lambda db: copies.of_bundle(db, row.id))
        having = [copy for copy in known if copy.state in copies.HAVING]
        return [copy.holder for copy in sorted(having, key=lambda copy: -copy.proved_at)]

    def _judge(self, row: BundleRow, index: BundleIndex, signed: SignedLiveMap | None) -> Listed:
        if not self._opened_by(index.header.opener):
            raise IntegrityError("The list is signed by nobody who opened bundles of ours.")
        is_as_long = row.is_hearsay or row.blocks == len(index.blocks)
        if not is_as_long or index.header.kind != row.kind:
            raise IntegrityError("The list is not that of the bundle which the catalog knows.")
        if signed is None:
            live = LiveMap.all_live(row.bundle_id, len(index.blocks))
        else:
            self._admit_map(index.header, signed)
            live = verify_live_map(signed)
        if _is_older(live, row):
            raise Unavailable("This holder has not heard yet which blocks are dead.")
        return Listed(index, live, signed)

    # -- in threads --------------------------------------------------------------------------------

    def _begin(self, listed: Listed) -> Part:
        path = self._store.part_path(listed.index.header.bundle_id)
        return Part(path, listed.index, listed.live, self._store)

    def _finish(self, part: Part, listed: Listed) -> None:
        part.finish()
        part.close()
        self._store.adopt(part.path, listed.index, listed.signed)

    def _take_up(self, row: BundleRow) -> None:
        """The bundle lies in the store: see that it is whole, then tell the catalog."""
        try:
            live = self._read_back(row)
            entries = self._store.index(row.bundle_id).blocks.entries
        except BundleDamaged:
            self._put_away(row.bundle_id)
            raise
        if not self._catalog.write(partial(_seal, row, live, entries)).result():
            log.info("Nothing needs bundle %s any more.", short(row.bundle_id))
            self._put_away(row.bundle_id)

    def _read_back(self, row: BundleRow) -> LiveMap:
        """Everything of it, from the disk; BundleDamaged."""
        store, bundle_id = self._store, row.bundle_id
        store.forget(bundle_id)
        store.drop_cache(bundle_id)
        index, live = store.index(bundle_id), store.live_map(bundle_id)
        if not self._opened_by(index.header.opener) or _is_older(live, row):
            raise BundleDamaged(bundle_id, "it is not the one that was evicted")
        for window in windows(index, live.indices()):
            for i, block in zip(window, store.read(bundle_id, window), strict=True):
                if block_id_of(block) != index.blocks.entries[i].block_id:
                    raise BundleDamaged(bundle_id, f"block {i} is not what its id says")
        return live

    def _put_away(self, bundle_id: BundleId) -> None:
        self._store.to_trash(bundle_id)
        self._store.purge(bundle_id)


def _is_older(live: LiveMap, row: BundleRow) -> bool:
    """Than what is known; a number that a holder told, unsigned, says nothing."""
    return live.seq < row.seq and not row.is_hearsay


def windows(index: BundleIndex, indices: Sequence[int]) -> Iterator[list[int]]:
    """Blocks by index, as many at a time as memory is meant for."""
    window: list[int] = []
    size = 0
    for i in indices:
        length = index.blocks.entries[i].length
        if window and (size + length > WINDOW_BYTES or len(window) == WINDOW_BLOCKS):
            yield window
            window, size = [], 0
        window.append(i)
        size += length
    if window:
        yield window


def wanted_of(row: BundleRow, index: BundleIndex, window: Sequence[int]) -> list[Wanted]:
    ref = BundleRef(row.bundle_id, row.tag)
    ids = dict.fromkeys(index.blocks.entries[i].block_id for i in window)
    return [Wanted(ref, block_id) for block_id in ids]


def write_window(part: Part, window: Sequence[int], found: Mapping[BlockId, bytes]) -> None:
    """A source has compared each with its id; the list's length for it is compared here."""
    for i in window:
        entry = part.index.blocks.entries[i]
        block = found[entry.block_id]
        if len(block) != entry.length:
            raise IntegrityError(f"Block {i} is not as long as the list says.")
        part.write(i, block)


def drop_part(part: Part) -> None:
    """What was adopted is not there any more under this name."""
    part.close()
    with contextlib.suppress(FileNotFoundError):
        part.path.unlink()


def _seal(
    row: BundleRow, live: LiveMap, entries: Sequence[BlockEntry], db: sqlite3.Connection
) -> bool:
    """False when the row went, or was changed by somebody else, meanwhile."""
    if not blocks.move(db, row.id, BundleState.SEALED, only_from=AWAY):
        now = blocks.by_rowid(db, row.id)
        return now is not None and now.state == BundleState.SEALED
    if live.seq > row.seq or row.is_hearsay:
        lengths = (entry.length for i, entry in enumerate(entries) if live.is_live(i))
        blocks.found(db, row.id, len(entries), live.seq, sum(lengths))
    return True
