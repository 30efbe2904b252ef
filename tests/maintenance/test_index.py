"""Indexes and the heads that name them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import pytest

from p2pstore.content import BundleRef, Entry, decode_head, head_order, verify_head
from p2pstore.ids import BlockId, BundleId, FolderId, Tag
from p2pstore.maintenance import recover
from p2pstore.maintenance.index import HeadOrder, index_bundles, index_root
from p2pstore.store import (
    FileRow,
    IntentKind,
    State,
    blocks,
    dying,
    files,
    folders,
    journal,
)

from .world import World, noise


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def folder_of(world: World) -> folders.FolderRow:
    folder = world.catalog.view(lambda db: folders.get(db, world.row))
    assert folder is not None
    return folder


def order_of(raw: bytes | None) -> HeadOrder:
    assert raw is not None
    return HeadOrder(*head_order(verify_head(decode_head(raw))))


def root_of(world: World) -> set[int]:
    query = "SELECT bundle FROM roots WHERE root=?"
    return {row[0] for row in world.catalog.read(query, (index_root(world.folder_id),))}


def place(dice: random.Random) -> bytes:
    some = dice.randbytes
    ref = BundleRef(BundleId(some(32)), Tag(some(20)))
    return msgspec.msgpack.encode((ref, Entry(BlockId(some(32)), 0, some(32), 0, 900)))


def add_rows(world: World, names: list[str], *, listed: bool = True) -> None:
    """The same for the same names: where an index is cut comes from what stands in it."""
    dice = random.Random(names[0])
    rows = [
        FileRow(
            world.row,
            name.encode(),
            State.PROTECTED,
            file_id=dice.randbytes(16),
            hash=dice.randbytes(32),
            manifest_ref=place(dice) if listed else b"",
        )
        for name in names
    ]
    world.catalog.write(lambda db: files.upsert_many(db, rows)).result()


def test_an_unchanged_folder_writes_no_new_head(world: World) -> None:
    world.protect({"a": b"1"})
    first = world.index.write(folder_of(world), None)
    before = world.store.list()
    assert world.index.write(folder_of(world), order_of(first)) is None
    assert world.store.list() == before


def test_the_next_head_has_the_next_number(world: World) -> None:
    world.protect({"a": b"1"})
    first = order_of(world.index.write(folder_of(world), None))
    world.protect({"b": b"2"})
    second = order_of(world.index.write(folder_of(world), first))
    assert (second.incarnation, second.seq) == (first.incarnation, first.seq + 1)


def test_a_head_that_was_not_published_is_written_again(world: World) -> None:
    """Killed between the catalog and HOME: the last head does not name the new index."""
    world.protect({"a": b"1"})
    first = order_of(world.index.write(folder_of(world), None))
    world.protect({"b": b"2"})
    lost = world.index.write(folder_of(world), first)
    again = world.index.write(folder_of(world), first)
    assert again is not None, "the head that is known does not cover b"
    assert order_of(again) == order_of(lost)


def test_the_first_head_that_was_not_published_is_written_again(world: World) -> None:
    world.protect({"a": b"1"})
    assert world.index.write(folder_of(world), None) is not None
    assert world.index.write(folder_of(world), None) is not None


def test_what_the_published_head_names_is_kept_until_the_next_is_published(world: World) -> None:
    world.protect({"a": b"1"})
    first = order_of(world.index.write(folder_of(world), None))
    named = root_of(world)
    for i in range(3):  # three heads that nobody published
        world.protect({f"b{i}": b"2%d" % i})
        lost = order_of(world.index.write(folder_of(world), first))
        assert named <= root_of(world)
    world.protect({"c": b"3"})
    world.index.write(folder_of(world), lost)
    assert not named <= root_of(world), "it is nobody's any more"


def test_after_a_rebuild_the_incarnation_leads(world: World) -> None:
    world.protect({"a": b"1"})
    first = order_of(world.index.write(folder_of(world), HeadOrder(1, 900)))
    world.home.write_incarnation(first.incarnation + 4)
    second = order_of(world.index.write(folder_of(world), first))
    assert second == (first.incarnation + 4, 1)
    assert second > first
    third = order_of(world.index.write(folder_of(world), HeadOrder(99, 7)))
    assert third == (99, 8), "never below what others know of us"


def test_two_versions_share_all_but_a_few_blocks(world: World) -> None:
    add_rows(world, [f"directory/file number {i:05}" for i in range(12_000)])
    first = order_of(world.index.write(folder_of(world), None))
    sizes = {bundle: world.store.size(bundle) for bundle in world.store.list()}
    add_rows(world, ["directory/file number 02500 and a half"])
    second = world.index.write(folder_of(world), first)
    assert second is not None
    new = sum(world.store.size(b) for b in world.store.list() if b not in sizes)
    assert sum(sizes.values()) > 1_500_000
    assert new < sum(sizes.values()) // 2


def test_an_index_that_cannot_be_written_leaves_nothing_open(world: World) -> None:
    world.protect({"a": b"1"})

    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    create = world.store.create
    world.store.create = full  # type: ignore[method-assign,assignment]
    with pytest.raises(OSError, match="No space"):
        world.index.write(folder_of(world), None)
    world.store.create = create  # type: ignore[method-assign]
    assert not world.catalog.view(journal.all_open)
    assert world.index.write(folder_of(world), None) is not None


def test_recovery_closes_what_a_killed_index_left_open(world: World) -> None:
    world.protect({"a": noise(1000)})
    bundle = next(iter(world.bundles_of("a").values()))

    def killed(db: object) -> int:
        number = journal.open_intent(db, IntentKind.INGEST, b"", 1)  # type: ignore[arg-type]
        blocks.claim(db, journal.root_of(number), [bundle.id])  # type: ignore[arg-type]
        return number

    world.catalog.write(killed).result()
    recover(world.catalog, world.store)
    assert not world.catalog.view(journal.all_open)
    assert world.catalog.write(lambda db: blocks.begin_evict(db, bundle.id)).result()


def test_each_folder_has_its_own_note(world: World) -> None:
    other = FolderId(b"o" * 16)
    row = world.catalog.write(
        lambda db: folders.add(db, other, b"/other", "other", folder_of(world).settings, other)
    ).result()
    first = order_of(world.index.write(folder_of(world), None))
    folder = world.catalog.view(lambda db: folders.get(db, row))
    assert folder is not None
    assert world.index.write(folder, None) is not None
    assert world.index.write(folder_of(world), first) is None


def test_one_file_without_a_place_does_not_stop_the_index(world: World) -> None:
    world.protect({"a": b"1"})
    add_rows(world, ["b"], listed=False)
    assert world.index.write(folder_of(world), None) is not None


def test_the_index_that_counts_for_eviction_is_the_last_one(world: World) -> None:
    """What the one before lay in is kept a while, and may have no copies anywhere."""
    world.protect({"a": b"1"})
    first = order_of(world.index.write(folder_of(world), None))
    look = partial(index_bundles, folder_id=world.folder_id)
    before = {row.id for row in world.catalog.view(look)}
    world.protect({"b": noise(5000)})
    world.index.write(folder_of(world), first)
    now = {row.id for row in world.catalog.view(look)}
    assert now
    assert not now & before
    assert before < root_of(world), "it is kept nevertheless"


def test_what_only_older_indexes_lay_in_is_marked_and_nothing_else(world: World) -> None:
    """Over many indexes: what the two newest lie in is never marked, the rest is."""
    last: HeadOrder | None = None
    for i in range(8):
        world.protect({f"file {i}": noise(2000, i)})
        last = order_of(world.index.write(folder_of(world), last))
        query = "SELECT bundle FROM roots WHERE root GLOB ?"
        marked = {row[0] for row in world.catalog.read(query, (dying.SUPERSEDED + "*",))}
        assert not marked & root_of(world)
    files_need = {row[0] for row in world.catalog.read("SELECT bundle FROM file_bundles")}
    metas = {row[0] for row in world.catalog.read("SELECT id FROM bundles")} - files_need
    assert marked
    assert marked | root_of(world) == metas, "every index bundle is one or the other"
    assert not marked & files_need
