"""Bundles in memory, for tests and for nodes that keep nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from nacl.signing import SigningKey

from p2pstore.content import (
    BUNDLE_BLOCKS,
    BUNDLE_BYTES,
    HEADER_SIZE,
    BlockEntry,
    BlockList,
    BundleHeader,
    BundleIndex,
    Replaced,
    SealedBlock,
    SignedLiveMap,
    encode_header,
    read_index,
    record_head,
    trailer,
)
from p2pstore.errors import LocalProtocolError
from p2pstore.ids import BundleId, short
from p2pstore.store.bundles import (
    BundleIds,
    BundleMissing,
    SalvagedBundles,
    SealedReader,
    Source,
    dead_ranges,
)


class MemoryBundles(SealedReader):
    """The same in memory, for tests and for nodes that keep nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._open: dict[BundleId, MemoryBundle] = {}
        self._sealed: dict[BundleId, bytearray] = {}
        self._trashed: dict[BundleId, bytearray] = {}
        self._maps: dict[BundleId, SignedLiveMap] = {}

    def create(self, header: BundleHeader, key: SigningKey) -> MemoryBundle:
        with self._lock:
            if header.bundle_id in self._sealed or header.bundle_id in self._open:
                raise LocalProtocolError(f"Bundle {short(header.bundle_id)} is there already.")
            bundle = self._open[header.bundle_id] = MemoryBundle(self, header, key)
            return bundle

    def salvage_all(self) -> SalvagedBundles:
        return []

    def seal_salvaged(self, bundle_id: BundleId, key: SigningKey) -> BundleIndex:
        raise BundleMissing(bundle_id)

    def discard(self, bundle_id: BundleId) -> None:
        return None

    def has(self, bundle_id: BundleId) -> bool:
        return bundle_id in self._sealed

    def size(self, bundle_id: BundleId) -> int:
        return len(self._image(bundle_id))

    def stored(self, bundle_id: BundleId) -> int:
        live = self.live_map(bundle_id)
        dead = sum(length for _, length in dead_ranges(self.index(bundle_id).blocks, live))
        return len(self._image(bundle_id)) - dead

    def list(self) -> BundleIds:
        return sorted(self._sealed)

    def to_trash(self, bundle_id: BundleId) -> None:
        self._move(bundle_id, self._sealed, self._trashed)

    def from_trash(self, bundle_id: BundleId) -> None:
        self._move(bundle_id, self._trashed, self._sealed)

    def purge(self, bundle_id: BundleId) -> None:
        with self._lock:
            if self._trashed.pop(bundle_id, None) is not None and not self.has(bundle_id):
                self._maps.pop(bundle_id, None)
                self._forget(bundle_id)

    def trash(self) -> BundleIds:
        return sorted(self._trashed)

    def signed_live_map(self, bundle_id: BundleId) -> SignedLiveMap | None:
        return self._maps.get(bundle_id)

    def set_live_map(self, bundle_id: BundleId, signed: SignedLiveMap) -> bool:
        with self._lock:
            live = self._accepts(bundle_id, signed)
            if live is None:
                return False
            self._maps[bundle_id] = signed
            self._live[bundle_id] = live
            return True

    def punch(self, bundle_id: BundleId) -> int:
        freed = 0
        image = self._image(bundle_id)
        blocks = self.index(bundle_id).blocks
        for offset, length in dead_ranges(blocks, self.live_map(bundle_id)):
            image[offset : offset + length] = bytes(length)
            freed += length
        return freed

    def drop_cache(self, bundle_id: BundleId) -> None:
        self._image(bundle_id)

    def close(self) -> None:
        return None

    def _source(self, bundle_id: BundleId) -> AbstractContextManager[Source]:
        return nullcontext(_Bytes(self._image(bundle_id)))

    def _image(self, bundle_id: BundleId) -> bytearray:
        try:
            return self._sealed[bundle_id]
        except KeyError as exc:
            raise BundleMissing(bundle_id) from exc

    def _move(
        self,
        bundle_id: BundleId,
        source: dict[BundleId, bytearray],
        target: dict[BundleId, bytearray],
    ) -> None:
        with self._lock:
            if bundle_id not in source:
                raise BundleMissing(bundle_id)
            if bundle_id in target:
                raise LocalProtocolError(f"Bundle {short(bundle_id)} is there already.")
            target[bundle_id] = source.pop(bundle_id)
            self._forget(bundle_id)


class _Bytes:
    def __init__(self, image: bytearray) -> None:
        self._image = image

    def read_at(self, offset: int, size: int) -> bytes:
        return bytes(self._image[offset : offset + size])


class MemoryBundle:
    """A bundle being written in memory."""

    def __init__(self, store: MemoryBundles, header: BundleHeader, key: SigningKey) -> None:
        self.header = header
        self._store = store
        self._key = key
        self._image = bytearray(encode_header(header))
        self._entries: list[BlockEntry] = []
        self._closed = False

    @property
    def size(self) -> int:
        return len(self._image)

    @property
    def count(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        return len(self._image) >= BUNDLE_BYTES or len(self._entries) >= BUNDLE_BLOCKS

    def room(self) -> int:
        return BUNDLE_BLOCKS - len(self._entries)

    def append(self, blocks: Sequence[SealedBlock]) -> list[int]:
        self._check_open()
        if len(blocks) > self.room():
            raise LocalProtocolError("more blocks than a bundle takes")
        first = len(self._entries)
        for block_id, _, block in blocks:
            self._image += record_head(block_id, len(block)) + block
            self._entries.append(BlockEntry(block_id, len(block)))
        return list(range(first, len(self._entries)))

    def seal(self, replaces: Sequence[Replaced] = ()) -> BundleIndex:
        self._check_open()
        head = bytes(self._image[:HEADER_SIZE])
        blocks = BlockList(tuple(self._entries), tuple(replaces))
        self._image += trailer(head, blocks, self._key)
        index = read_index(_Bytes(self._image).read_at, len(self._image))
        with self._store._lock:
            self._store._sealed[self.header.bundle_id] = self._image
        self._end()
        return index

    def abandon(self) -> None:
        self._end()

    def _end(self) -> None:
        self._closed = True
        self._store._open.pop(self.header.bundle_id, None)

    def _check_open(self) -> None:
        if self._closed:
            raise LocalProtocolError(f"Bundle {short(self.header.bundle_id)} is closed.")
