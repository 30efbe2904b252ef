"""What can be read of meta bundles on this disk, wherever a block lies."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from p2pstore.content import BundleRef, Entry, Unsealer
from p2pstore.errors import IntegrityError, P2PStoreError, Unavailable
from p2pstore.ids import BlockId, BundleId, short
from p2pstore.store import BundleStore

log = logging.getLogger(__name__)

Place = tuple[BundleRef, Entry]
"""Where a block lies, and how it is opened."""


class Local:
    """Payloads of meta blocks from the bundles of this disk, wherever a block lies."""

    def __init__(self, store: BundleStore, meta: Sequence[BundleId]) -> None:
        self.store = store
        self._meta = list(meta)
        self._places: dict[BlockId, BundleId] | None = None
        self._unseal = Unsealer().unseal

    def load(self, ref: BundleRef, entry: Entry) -> bytes:
        """Unavailable when it is nowhere, or not what it should be wherever it is."""
        (payload,) = self.load_many([(ref, entry)])
        if payload is None:
            raise Unavailable(f"A block of bundle {ref.bundle_id.hex()[:12]} is not here.")
        return payload

    def load_many(self, places: Sequence[Place]) -> list[bytes | None]:
        """None for each that is not here or is damaged."""
        wanted: dict[BundleId, list[BlockId]] = {}
        for ref, entry in places:
            wanted.setdefault(ref.bundle_id, []).append(entry.block)
        found: dict[BlockId, bytes] = {}
        for bundle_id, ids in wanted.items():
            found.update(self._read(bundle_id, ids))
        self.find_missing(places, found)
        return [self._payload(entry, found.get(entry.block)) for _, entry in places]

    def find_missing(self, places: Sequence[Place], found: dict[BlockId, bytes]) -> None:
        """Add to `found` what the bundles that were named do not have: bundle ids are hints."""
        for _, entry in places:
            if entry.block not in found:
                there = self.where(entry.block)
                if there is not None:
                    found.update(self._read(there, [entry.block]))

    def where(self, block_id: BlockId) -> BundleId | None:
        """The meta bundle here that has the block, alive."""
        if self._places is None:
            self._places = self._look()
        return self._places.get(block_id)

    def _look(self) -> dict[BlockId, BundleId]:
        places: dict[BlockId, BundleId] = {}
        for bundle_id in self._meta:
            try:
                entries = self.store.index(bundle_id).blocks.entries
                live = self.store.live_map(bundle_id)
            except (Unavailable, IntegrityError) as exc:
                log.warning("What bundle %s lists is not known here: %s", short(bundle_id), exc)
                continue  # what lies in the others is found all the same
            for i in live.indices():
                places[entries[i].block_id] = bundle_id
        return places

    def added(self, bundle_id: BundleId) -> None:
        """One more meta bundle lies here now."""
        self._meta.append(bundle_id)
        self._places = None

    def _read(self, bundle_id: BundleId, ids: Sequence[BlockId]) -> Mapping[BlockId, bytes]:
        try:
            return self.store.read_blocks(bundle_id, ids)
        except (Unavailable, IntegrityError):
            if len(ids) == 1:
                return {}
        found: dict[BlockId, bytes] = {}
        for block_id in ids:  # one damaged block takes no other with it
            found.update(self._read(bundle_id, [block_id]))
        return found

    def _payload(self, entry: Entry, block: bytes | None) -> bytes | None:
        if block is None:
            return None
        try:
            payload = self._unseal(block, entry.key)[entry.offset : entry.offset + entry.length]
        except P2PStoreError:
            return None
        return payload if len(payload) == entry.length else None
