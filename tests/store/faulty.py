"""A bundle store in front of another one, that fails as disks do, at chosen calls."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from nacl.signing import SigningKey

from p2pstore.content import (
    BundleHeader,
    BundleIndex,
    LiveMap,
    Replaced,
    SealedBlock,
    SignedLiveMap,
)
from p2pstore.errors import NoRoom
from p2pstore.ids import BlockId, BundleId
from p2pstore.store import BundleStore, OpenBundle, StoreFailed
from p2pstore.store.bundles import Blocks, BundleIds, SalvagedBundles


class Fault(Enum):
    EIO = "eio"  # the store is failed from then on
    ENOSPC = "enospc"  # nothing of this call is done
    FLIP = "flip"  # a bit of the first block that a read gives back is wrong
    TORN = "torn"  # half of an append is written, then the disk fails


@dataclass
class Faults:
    """What goes wrong at which call; calls are counted from 1, writes and reads together."""

    at: dict[int, Fault] = field(default_factory=dict)
    calls: int = 0

    def next(self) -> Fault | None:
        self.calls += 1
        return self.at.get(self.calls)


class FaultyBundles:
    def __init__(self, inner: BundleStore, faults: Faults | None = None) -> None:
        self.inner = inner
        self.faults = faults or Faults()
        self.failed = False

    def hit(self) -> Fault | None:
        """Count a call that writes."""
        if self.failed:
            raise StoreFailed("The disk failed.")
        fault = self.faults.next()
        if fault is Fault.EIO:
            self.fail()
        if fault is Fault.ENOSPC:
            raise NoRoom("The disk is full.") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fault

    def fail(self) -> None:
        self.failed = True
        raise StoreFailed("The disk failed.") from OSError(errno.EIO, os.strerror(errno.EIO))

    def create(self, header: BundleHeader, key: SigningKey) -> OpenBundle:
        self.hit()
        return FaultyBundle(self, self.inner.create(header, key))

    def read(self, bundle_id: BundleId, indices: Sequence[int]) -> Blocks:
        flips = self.faults.next() is Fault.FLIP
        found = self.inner.read(bundle_id, indices)
        if flips and found:
            found[0] = flipped(found[0])
        return found

    def read_blocks(
        self, bundle_id: BundleId, block_ids: Sequence[BlockId]
    ) -> dict[BlockId, bytes]:
        self.faults.next()
        return self.inner.read_blocks(bundle_id, block_ids)

    def wrong_heads(self, bundle_id: BundleId, indices: Sequence[int]) -> int:
        return self.inner.wrong_heads(bundle_id, indices)

    def index(self, bundle_id: BundleId) -> BundleIndex:
        return self.inner.index(bundle_id)

    def has(self, bundle_id: BundleId) -> bool:
        return self.inner.has(bundle_id)

    def size(self, bundle_id: BundleId) -> int:
        return self.inner.size(bundle_id)

    def stored(self, bundle_id: BundleId) -> int:
        return self.inner.stored(bundle_id)

    def list(self) -> BundleIds:
        return self.inner.list()

    def to_trash(self, bundle_id: BundleId) -> None:
        self.hit()
        self.inner.to_trash(bundle_id)

    def from_trash(self, bundle_id: BundleId) -> None:
        self.hit()
        self.inner.from_trash(bundle_id)

    def purge(self, bundle_id: BundleId) -> None:
        self.hit()
        self.inner.purge(bundle_id)

    def trash(self) -> BundleIds:
        return self.inner.trash()

    def live_map(self, bundle_id: BundleId) -> LiveMap:
        return self.inner.live_map(bundle_id)

    def signed_live_map(self, bundle_id: BundleId) -> SignedLiveMap | None:
        return self.inner.signed_live_map(bundle_id)

    def set_live_map(self, bundle_id: BundleId, signed: SignedLiveMap) -> bool:
        self.hit()
        return self.inner.set_live_map(bundle_id, signed)

    def punch(self, bundle_id: BundleId) -> int:
        self.hit()
        return self.inner.punch(bundle_id)

    def salvage_all(self) -> SalvagedBundles:
        return self.inner.salvage_all()

    def seal_salvaged(self, bundle_id: BundleId, key: SigningKey) -> BundleIndex:
        self.hit()
        return self.inner.seal_salvaged(bundle_id, key)

    def discard(self, bundle_id: BundleId) -> None:
        self.hit()
        self.inner.discard(bundle_id)

    def drop_cache(self, bundle_id: BundleId) -> None:
        self.inner.drop_cache(bundle_id)


class FaultyBundle:
    def __init__(self, store: FaultyBundles, inner: OpenBundle) -> None:
        self._store = store
        self._inner = inner
        self.header = inner.header

    @property
    def size(self) -> int:
        return self._inner.size

    @property
    def count(self) -> int:
        return self._inner.count

    @property
    def is_full(self) -> bool:
        return self._inner.is_full

    def room(self) -> int:
        return self._inner.room()

    def append(self, blocks: Sequence[SealedBlock]) -> list[int]:
        if self._store.hit() is Fault.TORN:
            self._inner.append(blocks[: len(blocks) // 2])
            self._store.fail()
        return self._inner.append(blocks)

    def seal(self, replaces: Sequence[Replaced] = ()) -> BundleIndex:
        self._store.hit()
        return self._inner.seal(replaces)

    def abandon(self) -> None:
        self._inner.abandon()


def flipped(block: bytes) -> bytes:
    """The same with one bit changed, in the middle."""
    at = len(block) // 2
    return block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
