"""`check` names what is not as it should be, and changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.content import RECORD_HEAD, Kind, signed_list
from p2pstore.maintenance.check import Checked, check
from p2pstore.store import BundleState, DiskBundles, HeldStore, blocks
from tests.maintenance.world import NOW, World, noise
from tests.store.making import dead, sealed


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.replace({"a.bin": noise(300_000, 1), "b.txt": b"bravo"})
    yield made
    made.close()


@pytest.fixture
def held(world: World) -> Iterator[HeldStore]:
    store = HeldStore(world.home.path / "held", world.clock, boot_id="b")
    yield store
    store.close()


def run(world: World, held: HeldStore, *, read_data: bool = True, **options: object) -> Checked:
    fresh = DiskBundles(world.store.root)
    try:
        return check(
            fresh,
            held,
            world.catalog,
            read_data=read_data,
            ring=world.group.ring(),
            **options,
        )
    finally:
        fresh.close()


def data_bundle(world: World) -> Path:
    (one,) = [b for b, row in world.bundles_of("a.bin").items() if row.kind == Kind.DATA]
    return world.store.path(one)


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize("read_data", [False, True])
def test_sound_store_has_no_problems(world: World, held: HeldStore, read_data: bool) -> None:
    said: list[dict] = []
    done = run(world, held, read_data=read_data, progress=said.append)
    assert done.problems == ()
    assert done.bundles == len(world.store.list()) == 2
    assert done.blocks >= 4
    assert done.bytes > 300_000
    assert said[-1]["bundles"] == said[-1]["bundles_total"] == 2


def test_as_much_is_told_whether_it_was_read_or_not(world: World, held: HeldStore) -> None:
    """What is alive: neither what lies between blocks nor what needs no room any more."""
    keep_one(world, held)
    index, _ = sealed(world.store)
    bundle_id = index.header.bundle_id
    world.store.set_live_map(bundle_id, dead(index, world.store.live_map(bundle_id), {0}))
    world.store.punch(bundle_id)
    listed, read = (run(world, held, read_data=read_data) for read_data in (False, True))
    assert (listed.bundles, listed.blocks, listed.bytes) == (read.bundles, read.blocks, read.bytes)


def test_flipped_bit_is_found_by_reading(world: World, held: HeldStore) -> None:
    flip(data_bundle(world), 128 + RECORD_HEAD + 100)
    assert run(world, held, read_data=False).problems == ()
    (problem,) = run(world, held).problems
    assert "1 of" in problem.text
    assert problem.code == 4


@pytest.mark.parametrize("place", range(0, RECORD_HEAD, 7))
def test_flipped_bit_between_blocks_is_found_by_reading(
    world: World, held: HeldStore, place: int
) -> None:
    flip(data_bundle(world), 128 + place)
    (problem,) = run(world, held).problems
    assert "between its blocks" in problem.text
    assert problem.bundle is not None, "it can be healed"


def test_cut_bundle_is_found_without_reading(world: World, held: HeldStore) -> None:
    path = data_bundle(world)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)
    (problem,) = run(world, held, read_data=False).problems
    assert "damaged" in problem.text


def test_missing_bundle_is_named(world: World, held: HeldStore) -> None:
    data_bundle(world).unlink()
    (problem,) = run(world, held).problems
    assert "missing" in problem.text
    assert problem.code == 5


def test_unknown_bundle_is_named(world: World, held: HeldStore) -> None:
    sealed(world.store)
    (problem,) = run(world, held).problems
    assert "does not know" in problem.text


def test_wrong_key_in_the_dedup_index_is_found(world: World, held: HeldStore) -> None:
    world.catalog.write(
        lambda db: db.execute("UPDATE dedup SET block_key=zeroblob(32)") and None
    ).result()
    assert run(world, held, read_data=True).problems
    assert run(world, held, read_data=False).problems == ()


def test_wrong_fingerprint_in_the_dedup_index_is_found(world: World, held: HeldStore) -> None:
    query = "UPDATE dedup SET key=randomblob(16)"
    world.catalog.write(lambda db: db.execute(query) and None).result()
    assert run(world, held).problems


def test_damaged_manifest_in_the_catalog_is_named(world: World, held: HeldStore) -> None:
    query = "UPDATE manifests SET raw=substr(raw, 1, length(raw) - 1)||x'00' WHERE file=1"
    world.catalog.write(lambda db: db.execute(query) and None).result()
    assert run(world, held, read_data=False).problems == ()
    (problem,) = run(world, held).problems
    assert str(world.folder) in problem.text
    assert problem.remedy == "p2pstore rebuild-catalog"


def test_file_whose_blocks_are_nowhere_is_told(world: World, held: HeldStore) -> None:
    (row,) = [r for r in world.bundles_of("b.txt").values() if r.kind == Kind.DATA]
    data_bundle(world).unlink()
    lost = row._replace(state=BundleState.LOST)
    world.catalog.write(lambda db: blocks.put_bundle(db, lost)).result()
    (problem,) = run(world, held).problems
    assert problem.text == "2 files with blocks that are nowhere."


def test_damaged_catalog_is_told(world: World, held: HeldStore) -> None:
    class Damaged:
        def damages(self) -> list[str]:
            return ["row 3 missing from index"]

        def __getattr__(self, name: str) -> object:
            return getattr(world.catalog, name)

    done = check(world.store, held, Damaged(), read_data=False)  # type: ignore[arg-type]
    assert [p.text for p in done.problems] == ["The catalog is damaged: row 3 missing from index"]


def keep_one(world: World, held: HeldStore) -> str:
    """For another device; its id."""
    elsewhere = DiskBundles(world.base / "elsewhere")
    index, made = sealed(elsewhere)
    upload = held.begin_put(signed_list(index), b"t" * 20, b"", int(NOW * 1000) + 10**9)
    for i, block in enumerate(made):
        upload.write(i, block.block)
    upload.finish()
    elsewhere.close()
    return index.header.bundle_id.hex()


def test_a_damaged_side_file_is_named(world: World, held: HeldStore) -> None:
    keep_one(world, held)
    (side,) = [path for path in held.root.rglob("*") if path.suffix == ".side"]
    flip(side, 40)
    held.close()
    again = HeldStore(held.root, world.clock, boot_id="b")
    for read_data in (False, True):
        (problem,) = run(world, again, read_data=read_data).problems
        assert "promise is damaged" in problem.text
        assert "owner" in problem.remedy
    again.close()


def test_bundles_kept_for_others_are_read_too(world: World, held: HeldStore) -> None:
    name = keep_one(world, held)
    sound = run(world, held)
    assert sound.problems == ()
    assert sound.bundles == 3
    flip(held.root / "bundles" / name[:2] / f"{name}.bundle", 128 + RECORD_HEAD + 7)
    for _ in range(2):
        (problem,) = run(world, held).problems
        assert "another device" in problem.text


def test_stop_ends_it_soon(world: World, held: HeldStore) -> None:
    stop = threading.Event()
    stop.set()
    assert run(world, held, stop=stop).bundles == 0
