"""The contract of every bundle store, run on each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pstore.content import (
    BUNDLE_BLOCKS,
    BUNDLE_BYTES,
    Replaced,
    SealedBlock,
    SignedLiveMap,
    block_id_of,
    sign_live_map,
)
from p2pstore.errors import IntegrityError, LocalProtocolError, NoRoom
from p2pstore.ids import BlockId, BundleId, Tag
from p2pstore.store import (
    BundleDamaged,
    BundleMissing,
    BundleStore,
    DiskBundles,
    MemoryBundles,
    StoreFailed,
)
from p2pstore.store import bundles as bundles_module

from .faulty import Fault, Faults, FaultyBundles
from .making import KEY, blocks, dead, header, sealed

MAKERS: dict[str, Callable[[Path], BundleStore]] = {
    "disk": lambda path: DiskBundles(path / "bundles"),
    "memory": lambda path: MemoryBundles(),
    "faulty": lambda path: FaultyBundles(DiskBundles(path / "bundles")),
}


@pytest.fixture(params=list(MAKERS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BundleStore]:
    made = MAKERS[request.param](tmp_path)
    yield made
    inner = made.inner if isinstance(made, FaultyBundles) else made
    if isinstance(inner, DiskBundles):
        inner.close()


def test_blocks_come_back_by_index_and_by_id(store: BundleStore) -> None:
    index, made = sealed(store)
    bundle_id = index.header.bundle_id
    assert store.read(bundle_id, [3, 0, 9, 3]) == [made[i].block for i in (3, 0, 9, 3)]
    wanted = [made[i].block_id for i in (9, 1, 2)]
    assert store.read_blocks(bundle_id, wanted) == {
        made[i].block_id: made[i].block for i in (9, 1, 2)
    }


def test_indices_count_over_several_appends(store: BundleStore) -> None:
    made = blocks(7)
    bundle = store.create(header(), KEY)
    assert bundle.append(made[:3]) == [0, 1, 2]
    assert bundle.append([]) == []
    assert bundle.append(made[3:]) == [3, 4, 5, 6]
    assert bundle.count == 7
    index = bundle.seal()
    assert store.read(index.header.bundle_id, range(7)) == [block.block for block in made]


def test_what_seal_returns_is_what_a_reader_finds(store: BundleStore) -> None:
    index, made = sealed(store)
    found = store.index(index.header.bundle_id)
    assert found.header == header()
    assert [entry.block_id for entry in found.blocks.entries] == [one.block_id for one in made]
    assert found == index


def test_a_bundle_says_for_which_ones_it_answers(store: BundleStore) -> None:
    bundle = store.create(header(), KEY)
    bundle.append(blocks(2))
    old = (
        Replaced(BundleId(b"o" * 32), Tag(b"t" * 20)),
        Replaced(BundleId(b"p" * 32), Tag(b"u" * 20)),
    )
    bundle.seal(old)
    assert store.index(header().bundle_id).blocks.replaces == old


def test_many_small_blocks_need_several_calls_and_come_back(store: BundleStore) -> None:
    index, made = sealed(store, number=1500, size=60)
    assert store.read(index.header.bundle_id, range(1500)) == [one.block for one in made]


def test_large_and_small_neighbours_come_back(store: BundleStore) -> None:
    sizes = [100_000, 50, 50, 70_000, 65_535, 65_536, 300, 60_000, 60_000]
    made = []
    for i, size in enumerate(sizes):
        block = bytes([i]) * size
        made.append(SealedBlock(block_id_of(block), b"k" * 32, block))
    bundle = store.create(header(), KEY)
    bundle.append(made)
    bundle_id = bundle.seal().header.bundle_id
    assert store.read(bundle_id, range(len(sizes))) == [one.block for one in made]


def test_an_open_bundle_is_not_there_for_readers(store: BundleStore) -> None:
    bundle = store.create(header(), KEY)
    bundle.append(blocks(1))
    assert not store.has(header().bundle_id)
    assert store.list() == []
    with pytest.raises(BundleMissing):
        store.read(header().bundle_id, [0])
    bundle.abandon()


def test_an_abandoned_bundle_leaves_nothing(store: BundleStore) -> None:
    bundle = store.create(header(), KEY)
    bundle.append(blocks(2))
    bundle.abandon()
    assert store.list() == []
    assert store.salvage_all() == []
    store.create(header(), KEY).abandon()


def test_a_closed_bundle_takes_nothing_more(store: BundleStore) -> None:
    bundle = store.create(header(), KEY)
    bundle.append(blocks(1))
    bundle.seal()
    with pytest.raises(LocalProtocolError):
        bundle.append(blocks(1))
    with pytest.raises(LocalProtocolError):
        bundle.seal()


def test_an_empty_bundle_is_not_sealed(store: BundleStore) -> None:
    bundle = store.create(header(), KEY)
    with pytest.raises(LocalProtocolError):
        bundle.seal()
    bundle.abandon()


def test_a_bundle_id_is_used_once(store: BundleStore) -> None:
    sealed(store)
    with pytest.raises(LocalProtocolError):
        store.create(header(), KEY)


def test_full_by_bytes(store: BundleStore) -> None:
    bundle = store.create(header(), KEY)
    block = bytes(BUNDLE_BYTES // 8)
    one = SealedBlock(block_id_of(block), b"k" * 32, block)
    for _ in range(7):
        bundle.append([one])
    assert not bundle.is_full
    bundle.append([one])
    assert bundle.is_full
    bundle.abandon()


def test_full_by_blocks(store: BundleStore) -> None:
    bundle = store.create(header(), KEY)
    one = blocks(1, 50)[0]
    bundle.append([one] * (BUNDLE_BLOCKS - 1))
    assert not bundle.is_full
    assert bundle.room() == 1
    with pytest.raises(LocalProtocolError):
        bundle.append([one, one])
    bundle.append([one])
    assert bundle.is_full
    bundle.abandon()


def test_unknown_bundles_and_blocks(store: BundleStore) -> None:
    nobody = BundleId(bytes(32))
    for ask in (
        lambda: store.read(nobody, [0]),
        lambda: store.read_blocks(nobody, []),
        lambda: store.index(nobody),
        lambda: store.size(nobody),
        lambda: store.to_trash(nobody),
        lambda: store.from_trash(nobody),
    ):
        with pytest.raises(BundleMissing):
            ask()
    store.purge(nobody)
    index, _ = sealed(store)
    assert store.read_blocks(index.header.bundle_id, [BlockId(bytes(32))]) == {}
    with pytest.raises(BundleMissing):
        store.read(index.header.bundle_id, [10])
    with pytest.raises(BundleMissing):
        store.read(index.header.bundle_id, [-1])


def test_list_has_all_in_order(store: BundleStore) -> None:
    names = ["a", "b", "c", "d"]
    for name in names:
        sealed(store, name, number=1)
    assert store.list() == sorted(header(name).bundle_id for name in names)


def test_trash_hides_and_gives_back(store: BundleStore) -> None:
    index, made = sealed(store)
    bundle_id = index.header.bundle_id
    store.read(bundle_id, [0])
    store.to_trash(bundle_id)
    assert not store.has(bundle_id)
    assert store.list() == []
    assert store.trash() == [bundle_id]
    with pytest.raises(BundleMissing):
        store.read(bundle_id, [0])
    store.from_trash(bundle_id)
    assert store.trash() == []
    assert store.read(bundle_id, [0]) == [made[0].block]


def test_purge_ends_it(store: BundleStore) -> None:
    index, _ = sealed(store)
    bundle_id = index.header.bundle_id
    store.purge(bundle_id)
    assert store.has(bundle_id), "purge reaches only into the trash"
    store.to_trash(bundle_id)
    store.purge(bundle_id)
    assert store.trash() == []
    with pytest.raises(BundleMissing):
        store.from_trash(bundle_id)


def test_all_blocks_live_until_a_map_says_otherwise(store: BundleStore) -> None:
    index, made = sealed(store)
    bundle_id = index.header.bundle_id
    assert store.signed_live_map(bundle_id) is None
    signed = dead(index, store.live_map(bundle_id), {2, 3, 7})
    assert store.set_live_map(bundle_id, signed)
    assert store.live_map(bundle_id).indices() == [0, 1, 4, 5, 6, 8, 9]
    assert store.signed_live_map(bundle_id) == signed
    ids = [one.block_id for one in made]
    assert set(store.read_blocks(bundle_id, ids)) == {ids[i] for i in (0, 1, 4, 5, 6, 8, 9)}
    with pytest.raises(BundleMissing):
        store.read(bundle_id, [2])


def test_punching_frees_room_and_leaves_the_living(store: BundleStore) -> None:
    index, made = sealed(store, number=20, size=9000)
    bundle_id = index.header.bundle_id
    size, stored = store.size(bundle_id), store.stored(bundle_id)
    assert store.punch(bundle_id) == 0
    gone = set(range(3, 15))
    store.set_live_map(bundle_id, dead(index, store.live_map(bundle_id), gone))
    assert store.punch(bundle_id) >= sum(len(made[i].block) for i in gone)
    assert store.size(bundle_id) == size
    assert store.stored(bundle_id) < stored - 80_000
    left = [i for i in range(20) if i not in gone]
    assert store.read(bundle_id, left) == [made[i].block for i in left]
    ids = [one.block_id for one in made]
    assert list(store.read_blocks(bundle_id, ids).values()) == [made[i].block for i in left]


def test_a_record_head_that_differs_from_the_list_is_counted(tmp_path: Path) -> None:
    store = DiskBundles(tmp_path)
    index, _ = sealed(store, number=20)
    bundle_id, offsets = index.header.bundle_id, index.blocks.offsets()
    assert store.wrong_heads(bundle_id, range(20)) == 0
    with open(store.path(bundle_id), "r+b") as file:
        for i in (0, 7, 19):
            file.seek(offsets[i] - 1)
            byte = file.read(1)
            file.seek(offsets[i] - 1)
            file.write(bytes([byte[0] ^ 0x80]))
    assert store.wrong_heads(bundle_id, range(20)) == 3
    assert store.wrong_heads(bundle_id, [1, 2, 19]) == 1, "only those that are asked for"
    store.close()


def test_only_a_newer_map_with_fewer_blocks_is_taken(store: BundleStore) -> None:
    index, _ = sealed(store)
    bundle_id = index.header.bundle_id
    first = store.live_map(bundle_id)
    second = first.without({1})
    assert store.set_live_map(bundle_id, sign_live_map(second, KEY))
    assert not store.set_live_map(bundle_id, sign_live_map(second, KEY))
    revived = first.without({2}).without({3})
    assert not store.set_live_map(bundle_id, sign_live_map(revived, KEY))
    other = sealed(store, "two")[0]
    stray = store.live_map(other.header.bundle_id).without({1})
    assert not store.set_live_map(bundle_id, sign_live_map(stray, KEY))
    good = sign_live_map(second.without({4}), KEY)
    forged = SignedLiveMap(good.payload, good.signer, b"", bytes(64))
    with pytest.raises(IntegrityError):
        store.set_live_map(bundle_id, forged)
    assert store.live_map(bundle_id) == second


def test_readers_and_writers_at_once(store: BundleStore) -> None:
    index, made = sealed(store, number=50)
    bundle_id = index.header.bundle_id
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for i in range(50):
                assert store.read(bundle_id, [i]) == [made[i].block]
        except BaseException as exc:
            errors.append(exc)

    def write(number: int) -> None:
        try:
            for i in range(5):
                sealed(store, f"{number}/{i}", number=2)
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=read) for _ in range(3)]
    threads += [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.list()) == 16


def test_few_indices_are_kept(store: BundleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles_module, "CACHED_ENTRIES", 25)
    ids = [sealed(store, str(n))[0].header.bundle_id for n in range(5)]
    inner = store.inner if isinstance(store, FaultyBundles) else store
    assert isinstance(inner, DiskBundles | MemoryBundles)
    for bundle_id in ids * 2:
        assert len(store.index(bundle_id).blocks) == 10
    assert len(inner._indices) <= 2
    assert inner._entries == 10 * len(inner._indices)


@given(
    sizes=st.lists(
        st.sampled_from([49, 50, 4000, 65_535, 65_536, 70_000]), min_size=1, max_size=12
    ),
    asked=st.lists(st.integers(0, 11), max_size=12),
    gone=st.sets(st.integers(0, 11)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_selection_of_blocks(sizes: list[int], asked: list[int], gone: set[int]) -> None:
    store = MemoryBundles()
    made = [
        SealedBlock(block_id_of(block), b"k" * 32, block)
        for block in (bytes([i]) * size for i, size in enumerate(sizes))
    ]
    bundle = store.create(header(), KEY)
    bundle.append(made)
    index = bundle.seal()
    bundle_id = index.header.bundle_id
    gone = {i for i in gone if i < len(sizes)}
    store.set_live_map(bundle_id, dead(index, store.live_map(bundle_id), gone))
    store.punch(bundle_id)
    wanted = [i for i in asked if i < len(sizes) and i not in gone]
    assert store.read(bundle_id, wanted) == [made[i].block for i in wanted]


# The faulty store itself


def test_a_full_disk_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    store = FaultyBundles(DiskBundles(tmp_path), Faults({3: Fault.ENOSPC}))
    made = blocks(6)
    bundle = store.create(header(), KEY)
    bundle.append(made[:3])
    with pytest.raises(NoRoom):
        bundle.append(made[3:])
    bundle.append(made[3:])
    bundle_id = bundle.seal().header.bundle_id
    assert store.read(bundle_id, range(6)) == [one.block for one in made]


def test_a_failed_disk_takes_nothing_more(tmp_path: Path) -> None:
    store = FaultyBundles(DiskBundles(tmp_path), Faults({3: Fault.TORN}))
    bundle = store.create(header(), KEY)
    bundle.append(blocks(4))
    with pytest.raises(StoreFailed):
        bundle.append(blocks(4))
    with pytest.raises(StoreFailed):
        bundle.seal()
    with pytest.raises(StoreFailed):
        store.create(header("two"), KEY)


def test_a_flipped_bit_reaches_the_caller_who_compares(tmp_path: Path) -> None:
    store = FaultyBundles(MemoryBundles(), Faults({4: Fault.FLIP}))
    index, made = sealed(store)
    found = store.read(index.header.bundle_id, [0])[0]
    assert found != made[0].block
    assert block_id_of(found) != made[0].block_id


def test_damage_names_the_bundle() -> None:
    store = MemoryBundles()
    index, made = sealed(store)
    bundle_id = index.header.bundle_id
    store._sealed[bundle_id][index.blocks.offsets()[4]] ^= 1
    assert made[3].block_id in store.read_blocks(bundle_id, [made[3].block_id])
    with pytest.raises(BundleDamaged) as caught:
        store.read_blocks(bundle_id, [made[4].block_id])
    assert caught.value.bundle_id == bundle_id
