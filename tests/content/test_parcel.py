"""A bundle as it lies with a carrier."""

from __future__ import annotations

import pytest
from nacl.signing import SigningKey

from p2pstore.content import (
    MAX_PARCEL,
    BlockList,
    BundleHeader,
    BundleIndex,
    Kind,
    LiveMap,
    SignedLiveMap,
    block_id_of,
    block_list,
    decode_parcel,
    encode_parcel,
    sign_live_map,
    trailer,
)
from p2pstore.content.bundle import SIGNATURE_SIZE, encode_header
from p2pstore.errors import FormatError, IntegrityError, P2PStoreError
from p2pstore.ids import BundleId, PublicKey
from tests.content.conftest import make_stream

BLOCKS = [make_stream(f"block {i}", 100 + i) for i in range(5)]
IDS = [block_id_of(block) for block in BLOCKS]


@pytest.fixture
def index(device: SigningKey) -> BundleIndex:
    key = PublicKey(bytes(device.verify_key))
    header = BundleHeader(BundleId(b"b" * 32), PublicKey(b"g" * 32), key, int(Kind.DATA), 1)
    blocks: BlockList = block_list(zip(IDS, BLOCKS, strict=True))
    raw = trailer(encode_header(header), blocks, device)
    start = len(blocks.encode())
    return BundleIndex(header, blocks, raw[start : start + SIGNATURE_SIZE])


@pytest.fixture
def thinned(index: BundleIndex, device: SigningKey) -> SignedLiveMap:
    """Blocks 1 and 3 are dead."""
    live = LiveMap.all_live(index.header.bundle_id, len(index.blocks))
    return sign_live_map(live.without({1, 3}), device)


def test_a_parcel_brings_everything_back(index: BundleIndex) -> None:
    parcel = decode_parcel(encode_parcel(index, None, BLOCKS))
    assert parcel.index == index
    assert parcel.live.seq == 0
    parcel.check()
    assert parcel.blocks(IDS) == dict(zip(IDS, BLOCKS, strict=True))
    assert parcel.blocks([IDS[3], block_id_of(b"unknown")]) == {IDS[3]: BLOCKS[3]}


def test_dead_blocks_are_left_out(index: BundleIndex, thinned: SignedLiveMap) -> None:
    raw = encode_parcel(index, thinned, BLOCKS[::2])
    assert BLOCKS[1] not in raw
    parcel = decode_parcel(raw)
    assert (parcel.live.seq, parcel.signed_map) == (1, thinned)
    parcel.check()
    assert parcel.blocks(IDS) == {IDS[i]: BLOCKS[i] for i in (0, 2, 4)}


def test_every_changed_byte_is_noticed(index: BundleIndex, thinned: SignedLiveMap) -> None:
    for raw in (encode_parcel(index, None, BLOCKS), encode_parcel(index, thinned, BLOCKS[::2])):
        for place in range(len(raw)):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << place % 8
            with pytest.raises((FormatError, IntegrityError)):
                decode_parcel(bytes(damaged)).check()


def test_what_is_cut_or_has_something_behind_is_refused(index: BundleIndex) -> None:
    raw = encode_parcel(index, None, BLOCKS)
    for bad in (*(raw[:n] for n in range(len(raw))), raw + b"\0", bytes(MAX_PARCEL + 1)):
        with pytest.raises(P2PStoreError):
            decode_parcel(bad)


def test_the_map_of_another_bundle_is_refused(index: BundleIndex, device: SigningKey) -> None:
    strange = sign_live_map(LiveMap.all_live(BundleId(b"x" * 32), 5).without({0}), device)
    with pytest.raises(FormatError):
        decode_parcel(encode_parcel(index, strange, BLOCKS[1:]))
