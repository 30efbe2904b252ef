"""What comes out is exact, or an error that says what is missing (I3)."""

from __future__ import annotations

import asyncio
import os
import sys
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from p2pstore.content import open_manifest
from p2pstore.errors import FormatError, IntegrityError, P2PStoreError
from p2pstore.ids import BlockId
from p2pstore.restore import Restore, Wanted
from tests.faults.world import RING, LocalSource, World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="replacing needs Linux")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def placeholder(made: World, content: bytes) -> bytes:
    made.write("file", content)
    made.replace("file")
    return made.at("file.f").read_bytes()


class Tampering(LocalSource):
    """Gives the blocks, some of them not as they should be."""

    def __init__(self, made: World, change: str) -> None:
        super().__init__(made.store)
        self._change = change

    async def blocks(
        self, wanted: Sequence[Wanted], *, keep: bool = False
    ) -> Mapping[BlockId, bytes]:
        found = dict(await super().blocks(wanted, keep=keep))
        for block_id, block in list(found.items())[-1:]:
            if self._change == "flip":
                found[block_id] = block[:-1] + bytes([block[-1] ^ 1])
            elif self._change == "cut":
                found[block_id] = block[:-1]
            elif self._change == "empty":
                found[block_id] = b""
            elif self._change == "other":
                found[block_id] = next(iter(found.values())) if len(found) > 1 else b"x" * 100
        return found


def restoring(made: World, source: LocalSource) -> Restore:
    return Restore(source, ring=lambda: RING, judge=lambda _k, _c: True, pool=made.pool)


async def whole(restore: Restore, raw: bytes, start: int = 0, end: int | None = None) -> bytes:
    manifest = await restore.complete(restore.open(raw).manifest)
    stop = manifest.meta.size if end is None else min(end, manifest.meta.size)
    content = bytearray(max(0, stop - start))
    async for pieces in restore.stream(manifest, start, end):
        for offset, piece in pieces:
            content[offset - start : offset - start + len(piece)] = piece
    return bytes(content)


SIZES = [0, 1, 65_536, 300_000, 9 << 20]


@pytest.mark.parametrize("size", SIZES)
async def test_stream_is_exact(made: World, size: int) -> None:
    content = os.urandom(size)
    raw = placeholder(made, content)
    assert await whole(made.restore, raw) == content


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, 0), (0, 1), (1, 2), (65_535, 65_537), (100, 2_000_000), (2_999_999, None), (5, 9_999_999)],
)
async def test_range_is_exact(made: World, start: int, end: int | None) -> None:
    content = os.urandom(3_000_000)
    raw = placeholder(made, content)
    assert await whole(made.restore, raw, start, end) == content[start:end]


class Watched(LocalSource):
    """Remembers which blocks were to be kept."""

    def __init__(self, made: World) -> None:
        super().__init__(made.store)
        self.kept: list[bool] = []

    async def blocks(
        self, wanted: Sequence[Wanted], *, keep: bool = False
    ) -> Mapping[BlockId, bytes]:
        self.kept.append(keep)
        return await super().blocks(wanted, keep=keep)


@pytest.mark.parametrize(
    ("size", "start", "end", "kept"),
    [
        (1_000_000, 0, None, True),
        (5_000_000, 1, 900_000, True),
        (5_000_000, 0, None, False),
        pytest.param(18_000_000, 1, None, False, marks=pytest.mark.slow),
    ],
)
async def test_what_somebody_looks_at_is_kept_and_what_is_copied_is_not(
    made: World, size: int, start: int, end: int | None, kept: bool
) -> None:
    raw = placeholder(made, os.urandom(size))
    source = Watched(made)
    await whole(restoring(made, source), raw, start, end)
    assert set(source.kept) == {kept}


async def test_a_reader_that_goes_away_leaves_nothing_running(made: World) -> None:
    raw = placeholder(made, os.urandom(9 << 20))
    pieces = made.restore.stream(made.restore.open(raw).manifest)
    await anext(pieces)
    await pieces.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(("start", "end"), [(0, None), (10, 30 << 20), (8 << 20, 9 << 20)])
async def test_holes_are_zeros(made: World, start: int, end: int | None) -> None:
    with open(made.at("file"), "wb") as file:
        file.write(b"head")
        file.seek(16 << 20)
        file.write(os.urandom(5000))
        file.truncate(32 << 20)
    content = made.at("file").read_bytes()
    made.replace("file")
    raw = made.at("file.f").read_bytes()
    assert await whole(made.restore, raw, start, end) == content[start:end]


HOLE = 1 << 60


@pytest.mark.parametrize("offset", [0, 4, 8])
async def test_a_hole_of_exabytes_costs_what_is_read_of_it(made: World, offset: int) -> None:
    raw = placeholder(made, b"headtail")
    manifest = made.restore.open(raw).manifest
    meta = msgspec.structs.replace(manifest.meta, size=8 + HOLE, holes=((offset, HOLE),))
    lying = msgspec.structs.replace(manifest, meta=meta)
    tracemalloc.start()
    content = made.restore.content(lying)
    async with asyncio.timeout(20):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                for _ in range(3):
                    await anext(content)
        await content.aclose()
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    # A thread that went on would keep the loop from being closed.
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 5)


@pytest.mark.parametrize("change", ["flip", "cut", "empty", "other"])
@pytest.mark.parametrize("size", [100, 300_000, 9 << 20])
async def test_wrong_block_is_an_error(made: World, change: str, size: int) -> None:
    raw = placeholder(made, os.urandom(size))
    restore = restoring(made, Tampering(made, change))
    with pytest.raises(IntegrityError):
        await whole(restore, raw)
    if size < 4 << 20:
        manifest = restore.open(raw).manifest
        try:
            (result,) = await restore.small([manifest])
        except IntegrityError as exc:
            result = exc
        assert isinstance(result, IntegrityError)


async def test_missing_block_takes_one_file_only(made: World) -> None:
    raws = []
    for name in ("one", "two"):
        made.write(name, os.urandom(1000))
        made.replace(name)
        raws.append(made.at(name + ".f").read_bytes())
    manifests = [made.restore.open(raw).manifest for raw in raws]
    made.disk.to_trash(manifests[0].chunks.bundles[0].bundle_id)
    first, second = await made.restore.small(manifests)
    assert isinstance(first, P2PStoreError)
    assert isinstance(second, bytes)


async def test_wanted_names_every_block(made: World) -> None:
    raw = placeholder(made, os.urandom(9 << 20))
    manifest = made.restore.open(raw).manifest
    assert manifest.chunks.depth
    wanted = await made.restore.wanted(manifest)
    assert {w.ref.bundle_id for w in wanted} == set(made.disk.list())
    assert len({w.block_id for w in wanted}) == len(wanted)


@pytest.mark.parametrize("at", [0, 40, -1, -100])
def test_edited_placeholder_is_refused(made: World, at: int) -> None:
    raw = bytearray(placeholder(made, b"content"))
    raw[at] ^= 1
    with pytest.raises((FormatError, IntegrityError)):
        made.restore.open(bytes(raw))


def test_signer_who_is_not_trusted_is_refused(made: World) -> None:
    raw = placeholder(made, b"content")
    assert open_manifest(raw, RING)
    doubting = Restore(
        LocalSource(made.store), ring=lambda: RING, judge=lambda _k, _c: False, pool=made.pool
    )
    with pytest.raises(IntegrityError, match="does not trust"):
        doubting.open(raw)
