"""Which small chunks share a block, and that each comes back out of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.content import BundleRef, Entry, Kind
from p2pstore.errors import IntegrityError
from p2pstore.ingest.sharing import SHARED_CHUNKS, shared
from p2pstore.store import blocks
from tests.faults.world import World


@given(st.lists(st.integers(1, 150), max_size=60))
def test_runs_cover_everything_in_order(lengths: list[int]) -> None:
    runs = list(shared(lengths, 100))
    assert [p for first, end in runs for p in range(first, end)] == list(range(len(lengths)))
    for first, end in runs:
        assert end == first + 1 or sum(lengths[first:end]) <= 100


def test_neighbours_share_as_long_as_they_fit() -> None:
    assert list(shared([40, 60, 1, 100, 101, 3, 4], 100)) == [
        (0, 2),
        (2, 3),
        (3, 4),
        (4, 5),
        (5, 7),
    ]


linux = pytest.mark.skipif(sys.platform != "linux", reason="replacing needs Linux")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def _blocks(made: World, kind: Kind) -> int:
    rows = made.catalog.view(lambda db: blocks.list_bundles(db, states=["sealed"]))
    return sum(row.blocks for row in rows if row.kind == kind)


@linux
def test_small_files_share_blocks_and_come_back(made: World) -> None:
    contents = {f"file-{n}": os.urandom(9000) for n in range(20)}
    for name, content in contents.items():
        made.write(name, content)
    made.replace(*contents)
    assert _blocks(made, Kind.DATA) == -(-20 // (SHARED_CHUNKS // 9000))
    assert _blocks(made, Kind.META) < 4
    made.hydrate(*(f"{name}.f" for name in contents))
    for name, content in contents.items():
        assert made.at(name).read_bytes() == content


@linux
def test_known_chunk_in_a_shared_block_is_found_at_its_place(made: World) -> None:
    contents = {f"file-{n}": os.urandom(5000 + n) for n in range(8)}
    for name, content in contents.items():
        made.write(name, content)
    made.replace(*contents)
    before = _blocks(made, Kind.DATA)
    made.write("again", contents["file-5"])
    made.write("twice", contents["file-5"])
    made.replace("again", "twice")
    assert _blocks(made, Kind.DATA) == before, "nothing new was sealed"
    made.hydrate("again.f", "twice.f")
    assert made.at("again").read_bytes() == made.at("twice").read_bytes() == contents["file-5"]


@linux
def test_manifest_lies_where_its_row_says(made: World) -> None:
    for n in range(30):
        made.write(f"file-{n}", b"%d" % n)
    made.replace(*(f"file-{n}" for n in range(30)))
    for n in range(30):
        row = made.file_row(f"file-{n}")
        assert row is not None
        ref, entry = msgspec.msgpack.decode(row.manifest_ref, type=tuple[BundleRef, Entry])
        block = made.store.read_blocks(ref.bundle_id, [entry.block])[entry.block]
        payload = made.ingest._tools.unsealer().unseal(block, entry.key)
        there = payload[entry.offset : entry.offset + entry.length]
        assert there == made.at(f"file-{n}.f").read_bytes()


@linux
def test_part_that_reads_back_at_another_place_is_noticed(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two chunks of a block that changed places: the block is whole, each file would be wrong."""
    for name in ("one", "two"):
        made.write(name, os.urandom(3000))
    sealer = made.ingest._tools.sealer

    class Swapping:
        def __init__(self, keys: object) -> None:
            self.inner = sealer(keys)  # type: ignore[arg-type]

        def seal(self, payload: bytes) -> object:
            return self.inner.seal(payload[3000:] + payload[:3000])

    monkeypatch.setattr(made.ingest._tools, "sealer", Swapping)
    with pytest.raises(IntegrityError, match="does not read back"):
        made.replace("one", "two")
    assert made.names() == {b"one", b"two"}
