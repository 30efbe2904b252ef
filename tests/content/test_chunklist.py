from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pstore.content import (
    INLINE_ENTRIES,
    LIST_ENTRIES,
    MAX_DEPTH,
    MAX_PAYLOAD,
    BundleRef,
    ChunkList,
    Entry,
    ListBuilder,
    decode_list,
    encode_list,
    spill_list,
    walk,
)
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import BlockId, BundleId, Tag

Build = Callable[..., Entry]


def build(blocks: Any, entries: list[Entry]) -> ChunkList:
    builder = ListBuilder(blocks.store)
    for each in entries:
        builder.add(blocks.ref, each)
    return builder.finish()


@pytest.mark.parametrize(
    ("count", "depth"),
    [
        (0, 0),
        (1, 0),
        (INLINE_ENTRIES, 0),
        (INLINE_ENTRIES + 1, 1),
        (1023, 1),
        (1024, 1),
        (LIST_ENTRIES, 1),
        (LIST_ENTRIES + 1, 1),
        (40_000, 2),
    ],
)
def test_a_list_of_any_length_is_walked_in_order(
    blocks: Any, entry: Build, count: int, depth: int
) -> None:
    entries = [entry(i, 1 + i % 1000) for i in range(count)]
    root = build(blocks, entries)
    assert (root.depth, len(root.entries) <= INLINE_ENTRIES) == (depth, True)
    assert root.size() == sum(each.length for each in entries)
    position = 0
    walked = list(walk(root, blocks.load))
    assert len(walked) == count
    for each, (at, ref, found) in zip(entries, walked, strict=True):
        assert (at, ref, found.block, found.key) == (position, blocks.ref, each.block, each.key)
        position += each.length


@settings(max_examples=30)
@given(start=st.integers(0, 1_700_000), length=st.integers(0, 9_000))
def test_a_range_needs_only_its_chunks(start: int, length: int) -> None:
    entries = [
        Entry(BlockId(i.to_bytes(32, "big")), 0, bytes(32), 0, 1 + i % 1000) for i in range(3000)
    ]
    kept: dict[bytes, bytes] = {}
    ref = BundleRef(BundleId(bytes(32)), Tag(bytes(20)))

    def store(raw: bytes) -> tuple[BundleRef, Entry]:
        block_id = BlockId(len(kept).to_bytes(32, "big"))
        kept[block_id] = raw
        return ref, Entry(block_id, 0, bytes(32), 0, len(raw))

    builder = ListBuilder(store)
    for each in entries:
        builder.add(ref, each)
    found = list(walk(builder.finish(), lambda _, e: kept[e.block], start, start + length))
    position, expected = 0, []
    for each in entries:
        if position < start + length and position + each.length > start:
            expected.append((position, each.block))
        position += each.length
    assert [(at, each.block) for at, _, each in found] == expected


def test_an_insertion_leaves_most_leaves_alone(blocks: Any, entry: Build) -> None:
    entries = [entry(i) for i in range(20_000)]
    build(blocks, entries)
    before = set(blocks.kept)
    build(blocks, [entry(99_999), *entries])
    assert len(set(blocks.kept) - before) <= 3


def test_bundles_are_named_once(blocks: Any, entry: Build) -> None:
    builder = ListBuilder(blocks.store)
    refs = [BundleRef(BundleId(bytes([i]) * 32), Tag(bytes([i]) * 20)) for i in range(3)]
    for i in range(9):
        builder.add(refs[i % 3], entry(i, table=7))
    root = builder.finish()
    assert root.bundles == tuple(refs)
    assert [each.table for each in root.entries] == [0, 1, 2] * 3


def test_the_longest_list_fits_a_block(entry: Build) -> None:
    big = [
        Entry(BlockId(bytes(32)), LIST_ENTRIES - 1, bytes(32), MAX_PAYLOAD - 1, 1)
    ] * LIST_ENTRIES
    refs = (BundleRef(BundleId(bytes(32)), Tag(bytes(20))),) * LIST_ENTRIES
    chunks = ChunkList(1, refs, tuple(big), (2**50,) * LIST_ENTRIES)
    raw = encode_list(chunks)
    assert len(raw) < MAX_PAYLOAD
    assert decode_list(raw) == chunks
    more = msgspec.structs.replace(chunks, entries=chunks.entries + chunks.entries[:1])
    with pytest.raises(LocalProtocolError):
        encode_list(more)
    with pytest.raises(FormatError):
        decode_list(msgspec.msgpack.encode(more))


@pytest.mark.parametrize(
    "fields",
    [
        {"bundles": ()},
        {"depth": MAX_DEPTH + 1},
        {"depth": 1},
        {"spans": (5,)},
        {"depth": 1, "spans": (5, 5)},
        {"depth": 1, "spans": (0,)},
        {"depth": 1, "spans": (-5,)},
        {"depth": 1, "spans": (2**63,)},
    ],
)
def test_a_list_whose_parts_do_not_fit_is_refused(
    blocks: Any, entry: Build, fields: dict[str, Any]
) -> None:
    good = ChunkList(0, (blocks.ref,), (entry(1),))
    assert decode_list(encode_list(good)) == good
    with pytest.raises(FormatError):
        decode_list(msgspec.msgpack.encode(msgspec.structs.replace(good, **fields)))


@pytest.mark.parametrize(
    "fields",
    [
        {"table": 1},
        {"table": -1},
        {"block": bytes(31)},
        {"key": bytes(33)},
        {"length": 0},
        {"length": MAX_PAYLOAD + 1},
        {"offset": 1, "length": MAX_PAYLOAD},
        {"offset": -1},
    ],
)
def test_an_entry_beyond_its_limits_is_refused(
    blocks: Any, entry: Build, fields: dict[str, Any]
) -> None:
    bad = ChunkList(0, (blocks.ref,), (msgspec.structs.replace(entry(1), **fields),))
    with pytest.raises(FormatError):
        decode_list(msgspec.msgpack.encode(bad))


def test_spans_that_overflow_are_refused(blocks: Any, entry: Build) -> None:
    bad = ChunkList(1, (blocks.ref,), (entry(1), entry(2)), (2**62, 2**62))
    with pytest.raises(FormatError):
        decode_list(msgspec.msgpack.encode(bad))


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_list_or_a_format_error(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert decode_list(raw).size() >= 0


def test_deep_nesting_is_a_format_error() -> None:
    skipped = b"\x95\x00\x90\x90\x90" + b"\x91" * 500_000 + b"\xc0"  # in a field not known
    for raw in (b"\x91" * 500_000, b"\x94\x00\x90" + b"\x91" * 500_000, skipped):
        with pytest.raises(FormatError):
            decode_list(raw)


def test_fields_of_a_later_version_are_skipped(blocks: Any, entry: Build) -> None:
    good = ChunkList(0, (blocks.ref,), (entry(1),))
    later = [*msgspec.to_builtins(good, builtin_types=(bytes,)), "a later field"]
    assert decode_list(msgspec.msgpack.encode(later)) == good


def test_a_list_below_must_be_what_its_parent_says(blocks: Any, entry: Build) -> None:
    root = build(blocks, [entry(i) for i in range(20)])
    good = blocks.kept[root.entries[0].block]
    shorter = decode_list(good)
    for wrong in (
        msgspec.structs.replace(shorter, entries=shorter.entries[1:]),
        spill_list(shorter, blocks.store),
        root,
    ):
        blocks.kept[root.entries[0].block] = encode_list(wrong)
        with pytest.raises(IntegrityError):
            list(walk(root, lambda _, e: blocks.kept[e.block]))


def test_spilling_keeps_the_content(blocks: Any, entry: Build) -> None:
    chunks = ChunkList(0, (blocks.ref,), tuple(entry(i) for i in range(16)))
    spilled = spill_list(chunks, blocks.store)
    assert (spilled.depth, len(spilled.entries), spilled.size()) == (1, 1, chunks.size())
    assert [each for _, _, each in walk(spilled, blocks.load)] == list(chunks.entries)
    for _ in range(MAX_DEPTH - 1):
        spilled = spill_list(spilled, blocks.store)
    with pytest.raises(LocalProtocolError):
        spill_list(spilled, blocks.store)
