"""What a store of bundles is, and what every implementation of it does alike.

`DiskBundles` keeps them as files, `MemoryBundles` in memory. A bundle is open while blocks are
appended to it, then sealed: from there on its list of blocks never changes. It may go to the trash
and come back. Blocks that a newer live map calls dead may be punched out.

All methods may be called from any thread; they block on the disk. An OpenBundle belongs to one
thread at a time.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from nacl.signing import SigningKey

from p2pstore.content import (
    RECORD_HEAD,
    BlockEntry,
    BlockList,
    BundleHeader,
    BundleIndex,
    LiveMap,
    Replaced,
    SealedBlock,
    SignedLiveMap,
    accept_live_map,
    block_id_of,
    read_index,
    record_head,
    verify_live_map,
)
from p2pstore.errors import FormatError, IntegrityError, Unavailable
from p2pstore.ids import BlockId, BundleId, short

CACHED_ENTRIES: Final = 100_000  # block entries of parsed indices kept, about 25 MB
RUN_BYTES: Final = 1 << 20  # neighbouring small blocks are read together up to this
SMALL_BLOCK: Final = 64 << 10  # ... when they are smaller: the copy then costs less than a call

# Named here, because inside a class with a method `list` the type cannot be written.
BundleIds = list[BundleId]
Blocks = list[bytes]


class BundleDamaged(IntegrityError):
    """The local copy of a bundle does not hold what it should; another copy may."""

    def __init__(self, bundle_id: BundleId, what: str) -> None:
        super().__init__(f"Bundle {short(bundle_id)} is damaged: {what}.")
        self.bundle_id = bundle_id


class BundleMissing(Unavailable):
    """The bundle, or a block of it that has died, is not in this store."""

    def __init__(self, bundle_id: BundleId, what: str = "is not here") -> None:
        super().__init__(f"Bundle {short(bundle_id)} {what}.")
        self.bundle_id = bundle_id


class StoreFailed(Unavailable):
    """The disk failed under the store; nothing more is written until a restart."""


class Salvaged(NamedTuple):
    """What is whole of a bundle that was cut off."""

    header: BundleHeader
    entries: list[BlockEntry]
    path: Path


SalvagedBundles = list[Salvaged]


class OpenBundle(Protocol):
    """A bundle that is being written. One thread at a time."""

    header: BundleHeader

    @property
    def size(self) -> int:
        """Bytes of the file so far."""

    @property
    def count(self) -> int:
        """Blocks so far."""

    @property
    def is_full(self) -> bool: ...

    def room(self) -> int:
        """How many more blocks it may take."""

    def append(self, blocks: Sequence[SealedBlock]) -> list[int]:
        """Write the blocks behind what is there; their indices.

        All or none of them: NoRoom leaves the bundle as it was.
        """

    def seal(self, replaces: Sequence[Replaced] = ()) -> BundleIndex:
        """Make it durable under its final name; it is closed afterwards. `replaces`: the bundles
        for which it answers from now on."""

    def abandon(self) -> None:
        """Remove it; nothing may refer to it."""


class BundleStore(Protocol):
    def create(self, header: BundleHeader, key: SigningKey) -> OpenBundle:
        """Open a new bundle; `key` is the opener's."""

    def read(self, bundle_id: BundleId, indices: Sequence[int]) -> Blocks:
        """Blocks by index, not compared with their ids: the caller does."""

    def read_blocks(
        self, bundle_id: BundleId, block_ids: Sequence[BlockId]
    ) -> dict[BlockId, bytes]:
        """Those of the blocks that are listed and live here, each compared with its id.

        BundleMissing when the bundle is not here, BundleDamaged when it does not hold a block.
        """

    def wrong_heads(self, bundle_id: BundleId, indices: Sequence[int]) -> int:
        """How many of these blocks have another record head than the list says.

        Whoever reads a sealed bundle goes by its list; a head that differs tells of a disk that
        changes bytes, and is wrong if the list is ever lost.
        """

    def index(self, bundle_id: BundleId) -> BundleIndex:
        """Of a sealed bundle; BundleMissing, BundleDamaged."""

    def has(self, bundle_id: BundleId) -> bool:
        """It is here, sealed and not in the trash."""

    def size(self, bundle_id: BundleId) -> int:
        """Bytes of the file, what was punched out included."""

    def stored(self, bundle_id: BundleId) -> int:
        """Bytes that it takes on the disk."""

    def list(self) -> BundleIds:
        """All sealed bundles, in order of their ids."""

    def to_trash(self, bundle_id: BundleId) -> None: ...

    def from_trash(self, bundle_id: BundleId) -> None: ...

    def purge(self, bundle_id: BundleId) -> None:
        """Remove it from the trash for ever; nothing happens when it is not there."""

    def trash(self) -> BundleIds: ...

    def live_map(self, bundle_id: BundleId) -> LiveMap:
        """All blocks are live until a map says otherwise."""

    def signed_live_map(self, bundle_id: BundleId) -> SignedLiveMap | None:
        """The newest map as it was signed; None before the first."""

    def set_live_map(self, bundle_id: BundleId, signed: SignedLiveMap) -> bool:
        """Keep a newer map; False when it is none. Who may sign is judged by the caller."""

    def punch(self, bundle_id: BundleId) -> int:
        """Give the room of dead blocks back to the disk; the bytes that lie in them."""

    def salvage_all(self) -> SalvagedBundles:
        """The bundles that a crash cut off; those that are being written now are not among them."""

    def seal_salvaged(self, bundle_id: BundleId, key: SigningKey) -> BundleIndex:
        """Seal the whole blocks of a cut-off bundle, in place."""

    def discard(self, bundle_id: BundleId) -> None:
        """Remove a cut-off bundle."""

    def drop_cache(self, bundle_id: BundleId) -> None:
        """The next read comes from the disk, not from memory."""


class Source(Protocol):
    """Something that bundle bytes can be read from."""

    def read_at(self, offset: int, size: int) -> bytes: ...


class SealedReader(ABC):
    """What every store does alike: find blocks by an index, read them, compare them."""

    def __init__(self) -> None:
        self._indices: OrderedDict[BundleId, BundleIndex] = OrderedDict()
        self._entries = 0
        self._index_lock = threading.Lock()
        self._live: dict[BundleId, LiveMap] = {}  # only of bundles with dead blocks

    @abstractmethod
    def _source(self, bundle_id: BundleId) -> AbstractContextManager[Source]:
        """Lend the bytes of a sealed bundle; BundleMissing."""

    @abstractmethod
    def size(self, bundle_id: BundleId) -> int: ...

    @abstractmethod
    def signed_live_map(self, bundle_id: BundleId) -> SignedLiveMap | None: ...

    def index(self, bundle_id: BundleId) -> BundleIndex:
        with self._index_lock:
            index = self._indices.get(bundle_id)
            if index is not None:
                self._indices.move_to_end(bundle_id)
                return index
        size = self.size(bundle_id)
        with self._source(bundle_id) as source:
            try:
                index = read_index(source.read_at, size)
            except (FormatError, IntegrityError) as exc:
                raise BundleDamaged(bundle_id, str(exc)) from exc
            except OSError as exc:
                raise BundleDamaged(bundle_id, f"the disk cannot read it ({exc})") from exc
        if index.header.bundle_id != bundle_id:
            raise BundleDamaged(bundle_id, "the file is another bundle")
        self._remember(index)
        return index

    def read(self, bundle_id: BundleId, indices: Sequence[int]) -> Blocks:
        blocks = self.index(bundle_id).blocks
        live = self.live_map(bundle_id)
        for i in indices:
            if not 0 <= i < len(blocks):
                raise BundleMissing(bundle_id, f"has no block {i}")
            if not live.is_live(i):
                raise BundleMissing(bundle_id, f"holds block {i} no more")
        found = self._read_many(bundle_id, blocks, indices)
        return [found[i] for i in indices]

    def read_blocks(
        self, bundle_id: BundleId, block_ids: Sequence[BlockId]
    ) -> dict[BlockId, bytes]:
        blocks = self.index(bundle_id).blocks
        live = self.live_map(bundle_id)
        places = {
            i: block_id
            for block_id in block_ids
            if (i := blocks.find(block_id)) is not None and live.is_live(i)
        }
        found: dict[BlockId, bytes] = {}
        for i, block in self._read_many(bundle_id, blocks, list(places)).items():
            if block_id_of(block) != places[i]:
                raise BundleDamaged(bundle_id, f"block {i} is not what its id says")
            found[places[i]] = block
        return found

    def wrong_heads(self, bundle_id: BundleId, indices: Sequence[int]) -> int:
        blocks = self.index(bundle_id).blocks
        offsets = blocks.offsets()
        wrong = 0
        with self._source(bundle_id) as source:
            for i in indices:
                try:
                    head = source.read_at(offsets[i] - RECORD_HEAD, RECORD_HEAD)
                except OSError as exc:
                    raise BundleDamaged(bundle_id, f"the disk cannot read it ({exc})") from exc
                wrong += head != record_head(*blocks.entries[i])
        return wrong

    def live_map(self, bundle_id: BundleId) -> LiveMap:
        known = self._live.get(bundle_id)
        if known is not None:
            return known
        signed = self.signed_live_map(bundle_id)
        if signed is None:
            return LiveMap.all_live(bundle_id, len(self.index(bundle_id).blocks))
        self._live[bundle_id] = live = verify_live_map(signed)
        return live

    def _accepts(self, bundle_id: BundleId, signed: SignedLiveMap) -> LiveMap | None:
        live = verify_live_map(signed)
        if not live.fits(len(self.index(bundle_id).blocks)):
            raise IntegrityError(f"A live map does not fit bundle {short(bundle_id)}.")
        return live if accept_live_map(self.live_map(bundle_id), live) else None

    def _read_many(
        self, bundle_id: BundleId, blocks: BlockList, indices: Sequence[int]
    ) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        offsets = blocks.offsets()
        with self._source(bundle_id) as source:
            for first, last in _runs(blocks, sorted(set(indices))):
                start = offsets[first]
                size = offsets[last] + blocks.entries[last].length - start
                try:
                    raw = source.read_at(start, size)
                except OSError as exc:
                    raise BundleDamaged(bundle_id, f"the disk cannot read it ({exc})") from exc
                if len(raw) != size:
                    raise BundleDamaged(bundle_id, "the file is too short")
                if first == last:
                    found[first] = raw
                    continue
                for i in range(first, last + 1):
                    at = offsets[i] - start
                    found[i] = raw[at : at + blocks.entries[i].length]
        return found

    def _remember(self, index: BundleIndex) -> None:
        bundle_id = index.header.bundle_id
        with self._index_lock:
            if bundle_id in self._indices:
                return
            self._indices[bundle_id] = index
            self._entries += len(index.blocks)
            while self._entries > CACHED_ENTRIES and len(self._indices) > 1:
                _, old = self._indices.popitem(last=False)
                self._entries -= len(old.blocks)

    def _forget(self, bundle_id: BundleId) -> None:
        with self._index_lock:
            old = self._indices.pop(bundle_id, None)
            if old is not None:
                self._entries -= len(old.blocks)
        self._live.pop(bundle_id, None)


def _runs(blocks: BlockList, indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, last) of neighbours to be read in one call; large blocks stay alone."""
    first = last = -1
    size = 0
    for i in indices:
        length = blocks.entries[i].length
        joins = i == last + 1 and length < SMALL_BLOCK and 0 < size < RUN_BYTES
        if first >= 0 and joins:
            last = i
            size += length + RECORD_HEAD
            continue
        if first >= 0:
            yield first, last
        first = last = i
        size = length if length < SMALL_BLOCK else 0  # 0: nothing joins a large block
    if first >= 0:
        yield first, last


def dead_ranges(blocks: BlockList, live: LiveMap) -> Iterator[tuple[int, int]]:
    """(offset, length) of the bytes of dead blocks, neighbours joined over the head between them.

    The list at the end of the file says what lies where, so the heads of dead blocks may go too.
    """
    start = end = -1
    for i, (offset, entry) in enumerate(zip(blocks.offsets(), blocks.entries, strict=True)):
        if live.is_live(i):
            continue
        if start >= 0 and offset - RECORD_HEAD == end:
            end = offset + entry.length
            continue
        if start >= 0:
            yield start, end - start
        start, end = offset, offset + entry.length
    if start >= 0:
        yield start, end - start
