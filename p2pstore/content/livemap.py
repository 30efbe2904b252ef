"""Which blocks of a bundle are still wanted: a map that only ever loses bits.

    LiveMap        = [bundle id (32), seq, bits]
                     bit i (of byte i // 8, least significant first) = block i of the list is live;
                     the bits beyond the last block are zero
    SignedLiveMap  = [payload: LiveMap encoded, signer (32), chain, signature (64)]
                     context "p2pstore 2026 live map"; chain = the credential when the signer is an
                     admin and not the opener, else empty

Seq 0 with all blocks live is what a bundle begins with; it need not be signed by anybody. Blocks
that are not live may be punched out of the file. A holder takes a map only when its seq is higher
and no dead block comes back to life: a replayed map can then never bring back what was given up.

Limit: 16,384 blocks are 2 KiB of bits.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from blake3 import blake3
from nacl.signing import SigningKey

from p2pstore.content.bundle import BUNDLE_BLOCKS
from p2pstore.content.codec import (
    MAX_CHAIN,
    MAX_INT,
    decode,
    encode,
    public_key_of,
    sign,
    verify,
)
from p2pstore.errors import FormatError
from p2pstore.ids import BundleId, Bytes64, PublicKey

MAX_BITS = BUNDLE_BLOCKS // 8
MAX_LIVE_MAP = MAX_BITS + 64
MAX_SIGNED_LIVE_MAP = MAX_LIVE_MAP + MAX_CHAIN + 128

LIVE_MAP_CONTEXT = b"p2pstore 2026 live map"


class LiveMap(msgspec.Struct, frozen=True, array_like=True):
    bundle_id: BundleId
    seq: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
    bits: Annotated[bytes, msgspec.Meta(max_length=MAX_BITS)]

    def is_live(self, index: int) -> bool:
        byte = index >> 3
        return 0 <= byte < len(self.bits) and bool(self.bits[byte] >> (index & 7) & 1)

    def count(self) -> int:
        return int.from_bytes(self.bits, "little").bit_count()

    def indices(self) -> list[int]:
        """The live blocks, ascending."""
        bits = self.bits
        return [i for i in range(len(bits) * 8) if bits[i >> 3] >> (i & 7) & 1]

    def without(self, dead: set[int]) -> LiveMap:
        """The next map, in which those blocks are dead as well."""
        bits = bytearray(self.bits)
        for index in dead:
            bits[index >> 3] &= ~(1 << (index & 7))
        return LiveMap(self.bundle_id, self.seq + 1, bytes(bits))

    def fits(self, blocks: int) -> bool:
        """It can be a map of a bundle with so many blocks."""
        value = int.from_bytes(self.bits, "little")
        return len(self.bits) == -(-blocks // 8) and value.bit_length() <= blocks

    @staticmethod
    def all_live(bundle_id: BundleId, blocks: int) -> LiveMap:
        bits = ((1 << blocks) - 1).to_bytes(-(-blocks // 8), "little")
        return LiveMap(bundle_id, 0, bits)


class SignedLiveMap(msgspec.Struct, frozen=True, array_like=True):
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_LIVE_MAP)]
    signer: PublicKey
    chain: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN)]
    signature: Bytes64


_MAP = msgspec.msgpack.Decoder(LiveMap)
_SIGNED = msgspec.msgpack.Decoder(SignedLiveMap)


def sign_live_map(live: LiveMap, key: SigningKey, chain: bytes = b"") -> SignedLiveMap:
    payload = encode(live)
    signature = sign(LIVE_MAP_CONTEXT, payload, key)
    return SignedLiveMap(payload, public_key_of(key), chain, signature)


def verify_live_map(signed: SignedLiveMap) -> LiveMap:
    """The map, when `signer` signed it; whether the signer may is for the caller to judge."""
    verify(LIVE_MAP_CONTEXT, signed.payload, signed.signature, signed.signer)
    live = decode(_MAP, signed.payload, MAX_LIVE_MAP, "a live map")
    if not live.bits:
        raise FormatError("a live map without bits")
    return live


def encode_live_map(signed: SignedLiveMap) -> bytes:
    return encode(signed)


def decode_live_map(raw: bytes) -> SignedLiveMap:
    """FormatError when it is damaged; `verify_live_map` comes next."""
    return decode(_SIGNED, raw, MAX_SIGNED_LIVE_MAP, "a signed live map")


def live_map_hash(live: LiveMap) -> bytes:
    """What a receipt names: BLAKE3-256 of the encoded map, without signature."""
    return blake3(encode(live)).digest()


def accept_live_map(old: LiveMap, new: LiveMap) -> bool:
    """`new` follows `old`: the same bundle, a higher seq, and no dead block alive again."""
    if new.bundle_id != old.bundle_id or len(new.bits) != len(old.bits) or new.seq <= old.seq:
        return False
    revived = int.from_bytes(new.bits, "little") & ~int.from_bytes(old.bits, "little")
    return revived == 0
