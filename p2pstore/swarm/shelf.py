"""The bundles on this node's disk, whoever opened them: our own store and what we hold for others.

Bundle ids and tags are hints: a bundle that was merged into another one is found under both of its
old names. All methods block on the disk and may be called from any thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from p2pstore.content import (
    BundleIndex,
    LiveMap,
    Prover,
    block_id_of,
    encode_live_map,
)
from p2pstore.errors import Busy
from p2pstore.ids import BlockId, BundleId, NodeId, Tag, short
from p2pstore.store import BundleDamaged, BundleMissing, BundleStore, HeldStore, StaleMap
from p2pstore.swarm.promises import OwnPromises
from p2pstore.wire import Unknown

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 2 << 20  # read, sent or checked in one thread hop
BATCH_BLOCKS: Final = 512


class Place(NamedTuple):
    """A bundle that is here, whole."""

    bundle_id: BundleId
    is_own: bool  # in the store of what this node opened


def _nowhere(_: BundleId | Tag) -> BundleId | None:
    return None


class Shelf:
    def __init__(
        self,
        bundles: BundleStore,
        held: HeldStore,
        promises: OwnPromises,
        *,
        by_tag: Callable[[Tag], BundleId | None] = _nowhere,
        alias_of: Callable[[BundleId], BundleId | None] = _nowhere,
    ) -> None:
        """`by_tag` and `alias_of` know own bundles by tag, and what was merged into which."""
        self.bundles = bundles
        self.held = held
        self.promises = promises
        self._by_tag = by_tag
        self._alias_of = alias_of

    def find(self, bundle_id: BundleId, tag: Tag | None = None) -> list[Place]:
        """Where blocks of that bundle may lie here, under its id, an old id or its tag."""
        own = self._own(bundle_id)
        if not own and tag is not None and (tagged := self._tagged(tag)) is not None:
            own = [tagged]
        places: dict[Place, None] = {Place(one, True): None for one in own}
        other = self.held.resolve(bundle_id)
        if other is None and tag is not None:
            other = self.held.find_tag(tag)
        if other is not None:
            places[Place(other, False)] = None
        return list(places)

    def resolve(self, bundle_id: BundleId) -> BundleId:
        """The id of the bundle here that answers for this one; itself when there is none."""
        return next((place.bundle_id for place in self.find(bundle_id)), bundle_id)

    def place(self, bundle_id: BundleId) -> Place:
        """Exactly that bundle; wire.Unknown when it is not here."""
        if self.bundles.has(bundle_id):
            return Place(bundle_id, True)
        if self.held.has(bundle_id):
            return Place(bundle_id, False)
        raise Unknown(f"Bundle {short(bundle_id)} is not here.")

    def find_tag(self, tag: Tag) -> Place | None:
        own = self._tagged(tag)
        if own is not None:
            return Place(own, True)
        other = self.held.find_tag(tag)
        return None if other is None else Place(other, False)

    def index(self, place: Place) -> BundleIndex:
        store = self.bundles if place.is_own else self.held
        return store.index(place.bundle_id)

    def live_map(self, place: Place) -> LiveMap:
        store = self.bundles if place.is_own else self.held
        return store.live_map(place.bundle_id)

    def signed_live_map(self, place: Place) -> bytes:
        """The encoded SignedLiveMap, b"" while all blocks are live."""
        if not place.is_own:
            return self.held.side(place.bundle_id).live_map
        signed = self.bundles.signed_live_map(place.bundle_id)
        return b"" if signed is None else encode_live_map(signed)

    def read(self, place: Place, block_ids: Sequence[BlockId]) -> dict[BlockId, bytes]:
        """Those that are live and whole here; what is damaged or gone meanwhile is left out."""
        store = self.bundles if place.is_own else self.held
        try:
            return store.read_blocks(place.bundle_id, block_ids)
        except BundleMissing:
            return {}
        except BundleDamaged as exc:
            log.warning("%s Its other copies are asked.", exc)
        found: dict[BlockId, bytes] = {}
        for block_id in block_ids:
            try:
                found |= store.read_blocks(place.bundle_id, [block_id])
            except (BundleDamaged, BundleMissing):
                continue
        return found

    def batches(self, place: Place) -> list[list[int]]:
        """The live blocks in order, in pieces to be read at once."""
        entries = self.index(place).blocks.entries
        live = self.live_map(place).indices()
        return list(batched((i, entries[i].length) for i in live))

    def read_live(self, place: Place, indices: Sequence[int]) -> list[bytes]:
        """Live blocks by index, each compared with its id; BundleDamaged, BundleMissing."""
        entries = self.index(place).blocks.entries
        if place.is_own:
            found = self.bundles.read(place.bundle_id, indices)
        else:
            ids = [entries[i].block_id for i in indices]
            by_id = self.held.read_blocks(place.bundle_id, ids)
            if len(by_id) < len(set(ids)):
                raise BundleMissing(place.bundle_id, "has lost blocks meanwhile")
            return [by_id[block_id] for block_id in ids]
        for i, block in zip(indices, found, strict=True):
            if block_id_of(block) != entries[i].block_id:
                raise BundleDamaged(place.bundle_id, f"block {i} is not what its id says")
        return found

    def iter_live(self, place: Place) -> Iterator[bytes]:
        """All live blocks in the order of the list, read from the disk, each compared."""
        if not place.is_own:
            yield from self.held.iter_live(place.bundle_id)
            return
        self.bundles.drop_cache(place.bundle_id)
        for indices in self.batches(place):
            yield from self.read_live(place, indices)

    def prove(
        self, place: Place, seq: int, nonce: bytes, *, verifier: NodeId, holder: NodeId
    ) -> bytes:
        """The proof over all live blocks under the map `seq`; StaleMap when it is another one.

        Busy while we are removing the bundle ourselves: what is proved is relied on.
        """
        self.refuse_stale(place, seq)
        if place.is_own and place.bundle_id in self.promises.removals:
            raise Busy(f"Bundle {short(place.bundle_id)} is being removed here.")
        prover = Prover(nonce, verifier, holder)
        for block in self.iter_live(place):
            prover.update(block)
        self.refuse_stale(place, seq)
        return prover.digest()

    def refuse_stale(self, place: Place, seq: int) -> None:
        ours = self.live_map(place).seq
        if ours != seq:
            raise StaleMap(place.bundle_id, ours)

    def _own(self, bundle_id: BundleId) -> list[BundleId]:
        """The bundle itself first; it may be about to go, because it was merged."""
        both = (bundle_id, self._alias_of(bundle_id))
        return [one for one in both if one is not None and self.bundles.has(one)]

    def _tagged(self, tag: Tag) -> BundleId | None:
        own = self._by_tag(tag)
        return own if own is not None and self.bundles.has(own) else None


def live_bytes(index: BundleIndex, live: LiveMap) -> int:
    """Sealed bytes of the live blocks."""
    return sum(entry.length for i, entry in enumerate(index.blocks.entries) if live.is_live(i))


def batched(sized: Iterable[tuple[int, int]]) -> Iterator[list[int]]:
    """(index, length) pairs -> indices in pieces of about BATCH_BYTES."""
    batch: list[int] = []
    size = 0
    for i, length in sized:
        batch.append(i)
        size += length
        if size >= BATCH_BYTES or len(batch) >= BATCH_BLOCKS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
