"""Which bundles a placeholder needs: all of them, also those that only its chunk lists name."""

from __future__ import annotations

from collections.abc import Callable

from p2pstore.content import BundleRef, Entry, Manifest, Unsealer, walk
from p2pstore.errors import P2PStoreError
from p2pstore.ids import BlockId, BundleId


def bundles_named(manifest: Manifest, read: Callable[[BundleId, BlockId], bytes]) -> set[BundleId]:
    """The bundles of its content, its lists and its attributes.

    `read` gives a block from the local store. A list that is not there hides what is below it:
    those bundles are left out.
    """
    unsealer = Unsealer()
    found = {ref.bundle_id for ref in manifest.chunks.bundles}
    if manifest.meta.extra is not None:
        found.add(manifest.meta.extra[0].bundle_id)

    def load(ref: BundleRef, entry: Entry) -> bytes:
        found.add(ref.bundle_id)
        block = read(ref.bundle_id, entry.block)
        return unsealer.unseal(block, entry.key)[entry.offset : entry.offset + entry.length]

    if manifest.chunks.depth:
        try:
            found.update(ref.bundle_id for _, ref, _ in walk(manifest.chunks, load))
        except P2PStoreError:
            return found
    return found
