"""What a live map says of a held bundle: whether it fits, and how many bytes it leaves.

Pure. Who may sign a map is judged above; here its signature and its shape are.
"""

from __future__ import annotations

from p2pstore.content import BundleIndex, LiveMap, decode_live_map, verify_live_map
from p2pstore.errors import FormatError, IntegrityError, Unavailable
from p2pstore.ids import BundleId, short
from p2pstore.store.sidefile import SideFile


class StaleMap(Unavailable):
    """The bundle is held under another live map than the one asked about."""

    def __init__(self, bundle_id: BundleId, seq: int) -> None:
        super().__init__(f"Bundle {short(bundle_id)} is held with live map {seq}.")
        self.bundle_id = bundle_id
        self.seq = seq


def judged_map(index: BundleIndex, raw: bytes) -> LiveMap:
    """The map of `index` that the encoded SignedLiveMap `raw` is; b"" stands for all live."""
    bundle_id = index.header.bundle_id
    if not raw:
        return LiveMap.all_live(bundle_id, len(index.blocks))
    live = verify_live_map(decode_live_map(raw))
    if live.bundle_id != bundle_id or not live.fits(len(index.blocks)):
        raise IntegrityError(f"A live map does not fit bundle {short(bundle_id)}.")
    return live


def known_map(side: SideFile) -> LiveMap:
    """The map that a side file keeps."""
    if not side.live_map:
        return LiveMap.all_live(side.bundle_id, side.blocks)
    live = verify_live_map(decode_live_map(side.live_map))
    if live.bundle_id != side.bundle_id or not live.fits(side.blocks):
        raise FormatError("a side file with the live map of another bundle")
    return live


def live_bytes(index: BundleIndex, live: LiveMap) -> int:
    """Sealed bytes of the live blocks."""
    return sum(entry.length for i, entry in enumerate(index.blocks.entries) if live.is_live(i))
