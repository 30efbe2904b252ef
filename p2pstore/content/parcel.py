"""A parcel: a bundle as it lies with a carrier, which understands nothing of it.

    magic "p2pparc" 0x01 (8)
    length of the live map (4), the signed live map (livemap.py); 0: all blocks are live
    length of the list (4), the signed list (bundle.py)
    the live blocks, one after another in the order of the list

All numbers are big-endian. List and map are signed, every block is named by its hash: a parcel
needs no trust in where it comes from. Whether the signers may sign is judged above.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from p2pstore.content.block import MAX_BLOCK, block_id_of
from p2pstore.content.bundle import (
    BUNDLE_BYTES,
    MAX_SIGNED_LIST,
    BundleIndex,
    decode_signed_list,
    signed_list,
)
from p2pstore.content.livemap import (
    MAX_SIGNED_LIVE_MAP,
    LiveMap,
    SignedLiveMap,
    decode_live_map,
    encode_live_map,
    verify_live_map,
)
from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import BlockId

MAGIC: Final = b"p2pparc\x01"
MAX_PARCEL: Final = BUNDLE_BYTES + MAX_BLOCK + MAX_SIGNED_LIST + MAX_SIGNED_LIVE_MAP + 16
_LENGTH: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Parcel:
    index: BundleIndex
    signed_map: SignedLiveMap | None
    live: LiveMap
    raw: bytes
    start: int  # of the first block

    def blocks(self, wanted: Iterable[BlockId]) -> dict[BlockId, bytes]:
        """Those that are live in it; IntegrityError when one is not what its id says."""
        entries = self.index.blocks.entries
        want = set(wanted)
        found: dict[BlockId, bytes] = {}
        for i, start in self._places():
            block_id = entries[i].block_id
            if block_id in want:
                found[block_id] = self._block(i, start)
        return found

    def check(self) -> None:
        """IntegrityError unless every live block is there, whole."""
        for i, start in self._places():
            self._block(i, start)

    def _block(self, i: int, start: int) -> bytes:
        entry = self.index.blocks.entries[i]
        block = self.raw[start : start + entry.length]
        if block_id_of(block) != entry.block_id:
            raise IntegrityError(f"block {i} of a carried bundle is not what its id says")
        return block

    def _places(self) -> Iterator[tuple[int, int]]:
        at = self.start
        for i in self.live.indices():
            yield i, at
            at += self.index.blocks.entries[i].length


def encode_parcel(
    index: BundleIndex, signed_map: SignedLiveMap | None, blocks: Sequence[bytes]
) -> bytes:
    """`blocks` are the live ones, in the order of the list."""
    live_map = b"" if signed_map is None else encode_live_map(signed_map)
    listed = signed_list(index)
    head = (MAGIC, _LENGTH.pack(len(live_map)), live_map, _LENGTH.pack(len(listed)), listed)
    return b"".join((*head, *blocks))


def decode_parcel(raw: bytes) -> Parcel:
    """FormatError when it is none or was cut, IntegrityError when a signature is wrong. The blocks
    are compared when they are taken out, or by `check`."""
    if raw[: len(MAGIC)] != MAGIC or len(raw) > MAX_PARCEL:
        raise FormatError("this is no carried bundle")
    live_map, at = _part(raw, len(MAGIC), MAX_SIGNED_LIVE_MAP)
    listed, at = _part(raw, at, MAX_SIGNED_LIST)
    index = decode_signed_list(listed)
    signed_map = decode_live_map(live_map) if live_map else None
    bundle_id, count = index.header.bundle_id, len(index.blocks)
    if signed_map is None:
        live = LiveMap.all_live(bundle_id, count)
    else:
        live = verify_live_map(signed_map)
        if live.bundle_id != bundle_id or not live.fits(count):
            raise FormatError("a carried bundle with the live map of another")
    size = sum(index.blocks.entries[i].length for i in live.indices())
    if len(raw) != at + size:
        raise FormatError("a carried bundle was cut, or has something behind it")
    return Parcel(index, signed_map, live, raw, at)


def _part(raw: bytes, at: int, most: int) -> tuple[bytes, int]:
    """What lies behind its length, and where it ends."""
    start = at + _LENGTH.size
    if len(raw) < start:
        raise FormatError("a carried bundle was cut")
    (length,) = _LENGTH.unpack_from(raw, at)
    if length > most or len(raw) < start + length:
        raise FormatError("a carried bundle was cut")
    return raw[start : start + length], start + length
