from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from p2pstore.content import (
    BUNDLE_BLOCKS,
    HEADER_SIZE,
    BlockEntry,
    BlockList,
    BundleHeader,
    EpochKeys,
    Kind,
    ReadAt,
    Replaced,
    SealedBlock,
    Sealer,
    block_list,
    bundle_tag,
    decode_header,
    decode_signed_list,
    encode_header,
    read_index,
    record_head,
    salvage,
    signed_list,
    trailer,
    trailer_of,
    verify_signed_list,
)
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import BlockId, BundleId, PublicKey, Tag


def reader(raw: bytes) -> ReadAt:
    return lambda offset, size: raw[offset : offset + size]


def header_of(device: SigningKey) -> BundleHeader:
    opener = PublicKey(bytes(device.verify_key))
    return BundleHeader(
        BundleId(b"b" * 32), PublicKey(b"g" * 32), opener, Kind.DATA, 1_700_000_000_000
    )


def bundle_file(
    device: SigningKey, sealed: list[SealedBlock], replaces: tuple[Replaced, ...] = ()
) -> bytes:
    head = encode_header(header_of(device))
    records = b"".join(record_head(s.block_id, len(s.block)) + s.block for s in sealed)
    blocks = BlockList(block_list((s.block_id, s.block) for s in sealed).entries, replaces)
    return head + records + trailer(head, blocks, device)


@pytest.fixture(scope="module")
def sealed() -> list[SealedBlock]:
    return Sealer(b"s" * 32).seal_many([b"first", b"second" * 50, b"third"])


@pytest.fixture(scope="module")
def whole(device: SigningKey, sealed: list[SealedBlock]) -> bytes:
    return bundle_file(device, sealed, (Replaced(BundleId(b"o" * 32), Tag(b"t" * 20)),))


def test_a_sealed_bundle_tells_where_each_block_is(
    device: SigningKey, whole: bytes, sealed: list[SealedBlock]
) -> None:
    index = read_index(reader(whole), len(whole))
    assert index.header == header_of(device)
    assert index.blocks.replaces == (Replaced(BundleId(b"o" * 32), Tag(b"t" * 20)),)
    for number, (offset, block) in enumerate(zip(index.blocks.offsets(), sealed, strict=True)):
        assert whole[offset : offset + len(block.block)] == block.block
        assert index.blocks.find(block.block_id) == number
    assert index.blocks.find(BlockId(bytes(32))) is None


def test_of_two_equal_blocks_the_first_is_found(sealed: list[SealedBlock]) -> None:
    blocks = block_list([(sealed[0].block_id, sealed[0].block)] * 2)
    assert blocks.find(sealed[0].block_id) == 0


def test_every_cut_is_noticed_and_whole_blocks_are_salvaged(
    whole: bytes, sealed: list[SealedBlock]
) -> None:
    ends = [
        offset + len(block.block)
        for offset, block in zip(
            read_index(reader(whole), len(whole)).blocks.offsets(), sealed, strict=True
        )
    ]
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            read_index(reader(whole[:size]), size)
        if size < HEADER_SIZE:
            with pytest.raises(FormatError):
                salvage(reader(whole[:size]), size)
        else:
            found = salvage(reader(whole[:size]), size)[1]
            assert len(found) == sum(end <= size for end in ends)


def test_salvage_ends_at_the_first_damaged_block(whole: bytes, sealed: list[SealedBlock]) -> None:
    damaged = bytearray(whole)
    offset = read_index(reader(whole), len(whole)).blocks.offsets()[1]
    damaged[offset] ^= 1
    assert len(salvage(reader(bytes(damaged)), len(whole))[1]) == 1


def test_junk_behind_is_noticed(whole: bytes) -> None:
    for junk in (b"\0", whole[-16:], bytes(4096)):
        with pytest.raises(FormatError):
            read_index(reader(whole + junk), len(whole) + len(junk))


def test_a_byte_more_or_less_among_the_blocks_is_noticed(whole: bytes) -> None:
    middle = HEADER_SIZE + 50
    for moved in (whole[:middle] + whole[middle + 1 :], whole[:middle] + b"x" + whole[middle:]):
        with pytest.raises(FormatError):
            read_index(reader(moved), len(moved))


def test_a_flipped_bit_outside_the_blocks_is_always_noticed(whole: bytes) -> None:
    blocks = read_index(reader(whole), len(whole)).blocks
    places = [*range(HEADER_SIZE), *range(blocks.records_end, len(whole))]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        with pytest.raises((FormatError, IntegrityError)):
            read_index(reader(bytes(damaged)), len(damaged))


def test_a_list_signed_by_somebody_else_is_refused(whole: bytes, sealed: list[SealedBlock]) -> None:
    stranger = SigningKey(b"x" * 32)
    ours, theirs = whole, bundle_file(stranger, sealed)
    forged = ours[:HEADER_SIZE] + theirs[HEADER_SIZE:]
    with pytest.raises(IntegrityError):
        read_index(reader(forged), len(forged))
    with pytest.raises(LocalProtocolError):
        trailer(ours[:HEADER_SIZE], block_list([(sealed[0].block_id, sealed[0].block)]), stranger)


def test_the_signed_list_travels_alone(whole: bytes) -> None:
    index = read_index(reader(whole), len(whole))
    raw = signed_list(index)
    assert decode_signed_list(raw) == index
    assert verify_signed_list(whole[:HEADER_SIZE], raw) == index
    assert verify_signed_list(b"", raw) == index
    with pytest.raises(FormatError):
        verify_signed_list(bytes(HEADER_SIZE), raw)
    for bad in (raw[:-1], raw + b"\0", b"", raw[: HEADER_SIZE + 63]):
        with pytest.raises((FormatError, IntegrityError)):
            decode_signed_list(bad)
    for place in range(0, len(raw), 3):
        damaged = bytearray(raw)
        damaged[place] ^= 4
        with pytest.raises((FormatError, IntegrityError)):
            decode_signed_list(bytes(damaged))


@given(st.lists(st.integers(48, 2 * 1024 * 1024), max_size=40))
def test_lists_round_trip(lengths: list[int]) -> None:
    entries = tuple(
        BlockEntry(BlockId(i.to_bytes(32, "big")), length) for i, length in enumerate(lengths)
    )
    blocks = BlockList(entries)
    assert BlockList.decode(blocks.encode()) == blocks
    assert BlockList.decode(blocks.encode()).hash() == blocks.hash()


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_list_or_a_format_error(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert BlockList.decode(raw).encode() == raw


def test_limits_of_the_list() -> None:
    full = BlockList((BlockEntry(BlockId(b"b" * 32), 48),) * BUNDLE_BLOCKS)
    raw = full.encode()
    assert BlockList.decode(raw) == full
    one_more = (BUNDLE_BLOCKS + 1).to_bytes(4, "big") + raw[4:] + raw[8:44]
    with pytest.raises(FormatError):
        BlockList.decode(one_more)
    with pytest.raises(LocalProtocolError):
        BlockList(full.entries + full.entries[:1]).encode()
    for length in (0, 47, 2 * 1024 * 1024 + 1):
        with pytest.raises(FormatError):
            BlockList.decode(BlockList((BlockEntry(BlockId(b"b" * 32), length),)).encode())


def test_an_empty_bundle_is_never_sealed(device: SigningKey) -> None:
    with pytest.raises(LocalProtocolError):
        trailer(encode_header(header_of(device)), BlockList(()), device)


def test_a_later_version_says_so(whole: bytes) -> None:
    later = whole[:7] + b"\x02" + whole[8:HEADER_SIZE]
    with pytest.raises(FormatError, match="version 2"):
        decode_header(later)


def test_golden_bundles(
    device: SigningKey, keys: EpochKeys, vectors: Callable[[str], list[dict[str, Any]]]
) -> None:
    for vector in vectors("bundles"):
        raw = bytes.fromhex(vector["file"])
        index = read_index(reader(raw), len(raw))
        assert index.header == header_of(device)
        assert [entry.block_id.hex() for entry in index.blocks.entries] == vector["block_ids"]
        assert index.blocks.offsets() == vector["offsets"]
        assert index.blocks.hash().hex() == vector["list_hash"]
        assert bundle_tag(keys.tag, index.header.bundle_id).hex() == vector["tag"]
        rewritten = raw[:HEADER_SIZE], index.blocks, device
        assert raw.endswith(trailer(*rewritten))
        assert trailer_of(index) == trailer(*rewritten)
        assert encode_header(index.header) == raw[:HEADER_SIZE]
