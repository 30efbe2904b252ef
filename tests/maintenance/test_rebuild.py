"""A catalog that is gone or damaged is made anew from what it was a cache of."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from p2pstore.content import (
    Head,
    decode_head,
    encode_head,
    open_manifest,
    sign_head,
    signed_list,
    verify_head,
)
from p2pstore.errors import UsageError
from p2pstore.ids import NodeId, PublicKey, node_id_of
from p2pstore.ingest import Author, Version
from p2pstore.keys import Role
from p2pstore.maintenance.complete import complete_with_holdings
from p2pstore.maintenance.rebuild import state
from p2pstore.store import (
    BundleState,
    Catalog,
    DiskBundles,
    FileRow,
    HeldStore,
    State,
    blocks,
    copies,
    files,
    folders,
)
from tests.maintenance.world import NOW, Memory, World, each, holding, noise
from tests.store.making import sealed

LARGE = noise(3_000_000, 7)  # more chunks than stay inline in a `.f`: its list is a block
HOLDER = NodeId(b"h" * 20)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def filled(world: World) -> World:
    """Placeholders, a large one among them, an original that stays, a deleted file; indexed."""
    contents = {
        "a.txt": b"alpha",
        "gone.txt": b"soon deleted",
        "large.bin": LARGE,
        "stays.db": b"database",
        "sub/b.bin": noise(200_000, 1),
    }
    world.replace(contents, stays=["stays.db"])
    world.delete("gone.txt")
    world.write_index()
    return world


def complete_args(world: World, source: object, holdings: list, heads: list) -> dict:
    return {
        "home": world.home,
        "store": world.store,
        "author": world.group.author(),
        "ring": world.group.ring(),
        "judge": world.group.judge,
        "clock": world.clock,
        "pool": world.pool,
        "source": source,
        "holdings": lambda: each(holdings),
        "heads": lambda: each(heads),
    }


# -- when ------------------------------------------------------------------------------------------


def test_new_home_gets_an_empty_catalog_and_no_rebuild(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.lose_catalog()
    world.home.write_folders([])
    assert world.ensure() is None
    assert state(world.catalog) is None
    world.close()


def test_sound_catalog_is_opened_as_it_is(filled: World) -> None:
    filled.catalog.close()
    assert filled.ensure() is None
    assert filled.file("a.txt").state == State.PLACEHOLDER


def test_catalog_of_a_newer_program_is_not_rebuilt(filled: World) -> None:
    filled.catalog.write(lambda db: db.execute("PRAGMA user_version=99") and None).result()
    filled.catalog.close()
    with pytest.raises(UsageError, match="newer"):
        filled.ensure()
    filled.lose_catalog()
    filled.rebuild()


def test_missing_catalog_knows_the_same_again(filled: World) -> None:
    before = [row for row in filled.everything() if row[0] != b"stays.db"]
    filled.lose_catalog()
    rebuilt = filled.rebuild()
    after = [row for row in filled.everything() if row[0] != b"stays.db"]
    assert after == before
    assert (rebuilt.files, rebuilt.placeholders, rebuilt.missing) == (4, 3, 0)
    assert (rebuilt.damaged, rebuilt.unread, rebuilt.untrusted) == ((), 0, 0)


def test_damaged_catalog_is_rebuilt_and_kept_beside(filled: World) -> None:
    before = filled.everything()
    filled.damage_catalog()
    assert filled.rebuild().files == 4
    assert len(filled.everything()) == len(before)
    kept = list(filled.home.path.glob("catalog.sqlite.damaged-*"))
    assert len(kept) == 1
    assert not list(filled.home.path.glob("*.rebuilding*"))


def test_catalog_can_be_rebuilt_on_demand(filled: World) -> None:
    before = filled.everything()
    filled.catalog.close()
    filled.rebuild(anew=True)
    assert len(filled.everything()) == len(before)


def test_interrupted_rebuild_begins_again(filled: World) -> None:
    filled.lose_catalog()

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filled.ensure(progress=interrupt)
    assert not (filled.home.path / "catalog.sqlite").exists()
    assert filled.rebuild().files == 4


def test_stale_log_of_a_lost_catalog_is_moved_aside(filled: World) -> None:
    filled.lose_catalog()
    (filled.home.path / "catalog.sqlite-wal").write_bytes(b"left over")
    filled.rebuild()
    assert filled.catalog.damages() == []
    assert list(filled.home.path.glob("catalog.sqlite.damaged-*-wal"))


# -- what ------------------------------------------------------------------------------------------


def test_incarnation_is_one_more_than_the_greatest_known(filled: World) -> None:
    filled.home.write_incarnation(5)
    filled.lose_catalog()
    assert filled.rebuild().incarnation == 6
    assert filled.home.incarnation() == 6
    head = verify_head(decode_head(filled.write_index()))
    assert (head.incarnation, head.seq) == (6, 1)


def test_lost_incarnation_is_taken_from_the_heads(filled: World) -> None:
    (filled.home.path / "incarnation").unlink()
    filled.lose_catalog()
    assert filled.rebuild().incarnation == 2


def test_index_that_is_written_after_a_rebuild_says_the_same(filled: World) -> None:
    filled.lose_catalog()
    filled.rebuild()
    filled.write_index()
    before = filled.everything()
    filled.lose_catalog()
    filled.rebuild()
    assert len(filled.everything()) == len(before)


def test_original_that_is_as_its_manifest_says_is_protected_and_in_work(filled: World) -> None:
    filled.lose_catalog()
    filled.rebuild()
    row = filled.file("stays.db")
    stat = (filled.folder / "stays.db").stat()
    assert (row.state, row.reason, row.replaced_before) == (State.PROTECTED, "in work", 1)
    assert row.last_use == int(NOW * 1000)
    assert (row.ino, row.ctime_ns) == (stat.st_ino, stat.st_ctime_ns)


def test_original_that_was_edited_meanwhile_is_taken_again(filled: World) -> None:
    path = filled.folder / "stays.db"
    stat = path.stat()
    filled.lose_catalog()
    path.write_bytes(b"DATABASE")  # the same size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    filled.rebuild()
    row = filled.file("stays.db")
    assert row.state == State.PROTECTED
    assert row.ino == 0, "the scan must not find it as it was recorded"


def test_original_beside_its_placeholder_with_equal_content_is_hydrated(filled: World) -> None:
    filled.lose_catalog()
    (filled.folder / "a.txt").write_bytes(b"alpha")
    filled.rebuild()
    row = filled.file("a.txt")
    assert row.state == State.PROTECTED
    assert row.ino == (filled.folder / "a.txt").stat().st_ino


def into_trash(world: World, name: str, batch: str) -> None:
    """What hydration does with a placeholder."""
    there = world.folder / ".p2pstore/trash" / batch / f"{name}.f"
    there.parent.mkdir(parents=True, exist_ok=True)
    os.rename(world.folder / f"{name}.f", there)


def test_file_that_was_hydrated_before_any_index_named_it_is_known(filled: World) -> None:
    late = filled.replace({"late.txt": b"after the last index"})["late.txt"]
    into_trash(filled, "late.txt", "0000000000001-aaaaaa")
    (filled.folder / "late.txt").write_bytes(b"after the last index")
    filled.lose_catalog()
    filled.rebuild()
    row = filled.file("late.txt")
    assert (row.state, row.reason, row.file_id) == (State.PROTECTED, "in work", late.file_id)
    assert row.ino == (filled.folder / "late.txt").stat().st_ino


def test_file_that_was_edited_before_any_index_named_it_is_its_next_version(filled: World) -> None:
    late = filled.replace({"late.txt": b"after the last index"})["late.txt"]
    into_trash(filled, "late.txt", "0000000000001-aaaaaa")
    (filled.folder / "late.txt").write_bytes(b"edited")
    filled.lose_catalog()
    filled.rebuild()
    row = filled.file("late.txt")
    assert (row.state, row.file_id) == (State.PROTECTED, late.file_id)
    assert row.ino == 0, "the scan must not find it as it was recorded"


def test_placeholder_in_trash_of_a_deleted_file_brings_nothing_back(filled: World) -> None:
    filled.replace({"late.txt": b"after the last index"})
    into_trash(filled, "late.txt", "0000000000001-aaaaaa")
    filled.lose_catalog()
    filled.rebuild()
    assert filled.maybe_file("late.txt") is None


def test_newer_original_beside_its_placeholder_leaves_the_placeholder(filled: World) -> None:
    filled.lose_catalog()
    (filled.folder / "a.txt").write_bytes(b"beta")
    filled.rebuild()
    row = filled.file("a.txt")
    assert row.state == State.PLACEHOLDER
    assert row.ino == (filled.folder / "a.txt.f").stat().st_ino


def test_chunks_of_an_equal_original_are_known_again(filled: World) -> None:
    filled.lose_catalog()
    (filled.folder / "large.bin").write_bytes(LARGE)
    filled.rebuild()
    before = len(filled.store.list())
    again = filled.protect({"copy.bin": LARGE})["copy.bin"]
    assert again.stored == 0
    data = [b for b in filled.store.list() if filled.store.index(b).header.kind == 1]
    assert len(filled.store.list()) == before + 1, "nothing but a manifest was written"
    assert len(data) < before


def test_placeholder_that_no_index_has_is_filed_and_its_manifest_found(filled: World) -> None:
    late = filled.replace({"late.txt": b"after the last index"})["late.txt"]
    filled.lose_catalog()
    filled.rebuild()
    row = filled.file("late.txt")
    assert row.state == State.PLACEHOLDER
    assert row.hash == late.hash
    assert set(filled.bundles_of("late.txt")) == late.bundles


def test_placeholder_without_manifest_in_any_bundle_gets_one(world: World) -> None:
    late = world.replace({"late.txt": b"its meta bundle is gone"})["late.txt"]
    meta = late.place[0].bundle_id
    world.lose_catalog()
    world.store.to_trash(meta)
    world.store.purge(meta)
    world.rebuild()
    row = world.file("late.txt")
    assert row.manifest_ref
    assert meta not in world.bundles_of("late.txt")
    world.write_index()  # names it, so that it can be found again
    world.lose_catalog()
    (world.folder / "late.txt.f").unlink()
    world.rebuild()
    assert world.file("late.txt").hash == late.hash


def test_placeholder_that_was_moved_takes_its_row_along(filled: World) -> None:
    before = filled.file("a.txt")
    filled.lose_catalog()
    (filled.folder / "a.txt.f").rename(filled.folder / "sub" / "moved.txt.f")
    filled.rebuild()
    assert filled.maybe_file("a.txt") is None
    row = filled.file("sub/moved.txt")
    assert (row.file_id, row.version, row.manifest_ref) == (
        before.file_id,
        before.version,
        before.manifest_ref,
    )


def test_copied_placeholder_is_one_more_file(filled: World) -> None:
    filled.lose_catalog()
    shutil.copy(filled.folder / "a.txt.f", filled.folder / "copy.txt.f")
    filled.rebuild()
    assert filled.file("a.txt").file_id == filled.file("copy.txt").file_id
    assert filled.file("copy.txt").manifest_ref


def test_placeholder_that_is_gone_is_left_to_the_scan(filled: World) -> None:
    filled.lose_catalog()
    (filled.folder / "a.txt.f").unlink()
    filled.rebuild()
    row = filled.file("a.txt")
    assert (row.state, row.ino) == (State.PLACEHOLDER, 0)


def test_damaged_placeholder_is_known_from_the_index(filled: World) -> None:
    before = filled.file("a.txt")
    filled.lose_catalog()
    dot = filled.folder / "a.txt.f"
    raw = bytearray(dot.read_bytes())
    raw[-5] ^= 1
    dot.write_bytes(raw)
    filled.rebuild()
    assert filled.file("a.txt").hash == before.hash


def test_ordinary_file_with_that_suffix_is_no_placeholder(world: World) -> None:
    world.write_index()
    world.lose_catalog()
    (world.folder / "solver.f").write_bytes(b"      PROGRAM SOLVER\n")
    assert world.rebuild().files == 0


def test_deletion_stays_known(filled: World) -> None:
    before = filled.file("gone.txt")
    filled.lose_catalog()
    filled.rebuild()
    row = filled.file("gone.txt")
    assert (row.state, row.version) == (State.DELETED, before.version)


def test_a_deleted_file_can_be_brought_back_after_the_catalog_was_lost(filled: World) -> None:
    filled.lose_catalog()
    filled.rebuild()
    (old,) = filled.catalog.view(lambda db: files.history(db, filled.row, b"gone.txt"))
    assert (old.why, old.file_size) == ("deleted", len(b"soon deleted"))
    query = "SELECT count(*) FROM history_bundles WHERE history=?"
    assert filled.catalog.read(query, (old.id,)) == [(2,)]
    filled.write_index()
    filled.lose_catalog()
    filled.rebuild()
    assert filled.catalog.view(lambda db: files.history(db, filled.row, b"gone.txt")), "and again"


def test_a_deletion_whose_days_are_over_names_nothing(filled: World) -> None:
    (old,) = filled.catalog.view(lambda db: files.history(db, filled.row, b"gone.txt"))
    filled.catalog.write(lambda db: files.drop_history(db, [old.id])).result()
    filled.write_index()
    filled.lose_catalog()
    filled.rebuild()
    assert filled.file("gone.txt").state == State.DELETED
    assert filled.catalog.view(lambda db: files.history(db, filled.row, b"gone.txt")) == []


def test_link_is_known_as_it_lies_there(world: World) -> None:
    (world.folder / "link").symlink_to("somewhere/else")
    (world.folder / "gone").symlink_to("nowhere")
    rows = [
        FileRow(world.row, name, State.PROTECTED, "a link", kind="link", target=b"old")
        for name in (b"link", b"gone")
    ]
    world.catalog.write(lambda db: files.upsert_many(db, rows)).result()
    world.write_index()
    world.lose_catalog()
    (world.folder / "gone").unlink()
    world.rebuild()
    stat = (world.folder / "link").lstat()
    link = world.file("link")
    assert (link.kind, link.target, link.ino) == ("link", b"somewhere/else", stat.st_ino)
    assert (world.file("gone").target, world.file("gone").ino) == (b"old", 0)


def test_missing_folder_keeps_what_its_index_says(filled: World) -> None:
    filled.lose_catalog()
    shutil.rmtree(filled.folder)
    rebuilt = filled.rebuild()
    assert rebuilt.files == 4
    assert filled.file("large.bin").state == State.PLACEHOLDER
    filled.folder.mkdir()


def test_removed_folder_stays_removed_and_known(filled: World) -> None:
    removed = type(filled.entry)(
        folder_id=filled.folder_id,
        path=filled.entry.path,
        name="folder",
        settings=filled.entry.settings,
        removed=True,
    )
    again = type(filled.entry)(
        folder_id=b"g" * 16,
        path=filled.entry.path,
        name="folder",
        settings=filled.entry.settings,
    )
    filled.home.write_folders([again, removed])
    filled.lose_catalog()
    filled.rebuild()
    rows = filled.catalog.view(folders.every)
    assert {row.folder_id: row.state for row in rows} == {
        filled.folder_id: "removed",
        b"g" * 16: "watched",
    }


def test_pins_and_history_are_taken_from_a_catalog_that_can_be_read(filled: World) -> None:
    number = filled.file("a.txt").id
    filled.catalog.write(lambda db: files.set_pinned(db, [number], True)).result()
    filled.catalog.close()
    filled.rebuild(anew=True)
    assert filled.file("a.txt").pinned == 1
    (old,) = filled.catalog.view(lambda db: files.history(db, filled.row, b"gone.txt"))
    assert old.why == "deleted"
    needs = filled.catalog.read("SELECT bundle FROM history_bundles WHERE history=?", (old.id,))
    assert len(needs) == 2, "its data and its manifest"


def test_stored_bytes_add_up_to_what_is_stored(filled: World) -> None:
    filled.lose_catalog()
    filled.rebuild()
    stored = filled.catalog.read("SELECT sum(stored_bytes) FROM files")[0][0]
    data = filled.catalog.read("SELECT sum(bytes) FROM bundles WHERE kind=1")[0][0]
    assert 0.99 * data < stored <= data


def test_rebuilt_catalog_waits_for_holders(filled: World) -> None:
    filled.lose_catalog()
    filled.rebuild()
    left = state(filled.catalog)
    assert left is not None
    assert (left.at_ms, left.pending, left.unread) == (int(NOW * 1000), True, 0)


def test_every_held_bundle_counts_as_locked(filled: World) -> None:
    elsewhere = DiskBundles(filled.base / "elsewhere")
    index, made = sealed(elsewhere)
    held = HeldStore(filled.home.path / "held", filled.clock, boot_id="b")
    upload = held.begin_put(signed_list(index), b"t" * 20, b"", int(NOW * 1000) + 10**9)
    for i, block in enumerate(made):
        upload.write(i, block.block)
    upload.finish()
    bundle_id = index.header.bundle_id
    assert held.locked_for(bundle_id) == 0
    filled.lose_catalog()
    filled.rebuild(held=held)
    assert held.locked_for(bundle_id) > 590
    held.close()
    elsewhere.close()


# -- damage and lies -------------------------------------------------------------------------------


def test_bundle_that_was_cut_off_is_lost_and_named(filled: World) -> None:
    (cut,) = {b for b, row in filled.bundles_of("sub/b.bin").items() if row.kind == 1}
    path = filled.store.path(cut)
    filled.lose_catalog()
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    rebuilt = filled.rebuild()
    assert rebuilt.damaged == (cut,)
    assert rebuilt.missing == 1
    assert filled.bundles_of("sub/b.bin")[cut].state == BundleState.LOST
    assert filled.file("sub/b.bin").state == State.PLACEHOLDER


def test_bundle_that_was_being_evicted_comes_back(filled: World) -> None:
    bundle_id = next(iter(filled.bundles_of("a.txt")))
    filled.store.to_trash(bundle_id)
    filled.lose_catalog()
    assert filled.rebuild().missing == 0
    assert filled.store.has(bundle_id)


def test_old_head_does_not_lower_a_version(world: World) -> None:
    first = world.replace({"a.txt": b"one"})["a.txt"]
    old = world.write_index()
    (world.folder / "a.txt.f").unlink()
    follows = Version(first.file_id, first.vector, b"")
    second = world.replace({"a.txt": b"two"}, follows=follows)["a.txt"]
    world.write_index()
    world.home.write_head(world.folder_id, world.group.node_id, old)  # replayed
    world.lose_catalog()
    world.rebuild()
    assert world.file("a.txt").hash == second.hash


def test_head_with_a_wrong_signature_is_not_believed(filled: World) -> None:
    raw = bytearray(filled.home.heads()[0])
    raw[-3] ^= 1
    filled.home.write_head(filled.folder_id, filled.group.node_id, bytes(raw))
    filled.lose_catalog()
    filled.rebuild()
    assert filled.maybe_file("gone.txt") is None  # only an index knows of deletions
    assert filled.file("a.txt").state == State.PLACEHOLDER, "its `.f` speaks for itself"


def other_device(world: World) -> SigningKey:
    device = SigningKey.generate()
    admin = world.home.admin()
    assert admin is not None
    world.group.admit(
        PublicKey(bytes(device.verify_key)), Role.DEVICE, "other", signer=admin, now=NOW
    )
    return device


def head_of(world: World, device: SigningKey, name: str) -> tuple[bytes, bytes]:
    """An index by another device in which `name` has a higher version; (head, manifest hash)."""
    own = world.group
    chain = own.state.chain_of(PublicKey(bytes(device.verify_key)))
    assert chain is not None
    author = Author(key=device, chain=chain, group=own.state.group_public)
    row = world.file(name)
    raw = world.catalog.view(lambda db: files.manifest(db, row.id))
    assert raw is not None
    manifest = open_manifest(raw, own.ring()).manifest
    world.ingest._author = world.index._author = lambda: author
    follows = Version(manifest.file_id, manifest.version, b"")
    content = b"written by the other device"
    one = world.protect({name: content}, follows=follows)[name]
    (world.folder / name).unlink()
    folder = world.catalog.view(lambda db: folders.get(db, world.row))
    assert folder is not None
    signed = world.index.write(folder, None)
    assert signed is not None
    world.wire()
    return signed, one.hash


def test_head_of_another_device_tells_of_what_is_here(filled: World) -> None:
    device = other_device(filled)
    head, digest = head_of(filled, device, "a.txt")
    node_id = node_id_of(PublicKey(bytes(device.verify_key)))
    filled.home.write_head(filled.folder_id, node_id, head)
    filled.lose_catalog()
    filled.rebuild()
    assert filled.file("a.txt").hash == digest
    assert not any(row.own for row in filled.bundles_of("a.txt").values())


def test_older_head_of_another_device_does_not_lower_a_version(world: World) -> None:
    first = world.replace({"a.txt": b"one"})["a.txt"]
    device = other_device(world)
    public = PublicKey(bytes(device.verify_key))
    chain = world.group.state.chain_of(public)
    assert chain is not None
    author = Author(key=device, chain=chain, group=world.group.state.group_public)
    world.ingest._author = world.index._author = lambda: author
    folder = world.catalog.view(lambda db: folders.get(db, world.row))
    assert folder is not None
    old = world.index.write(folder, None)
    assert old is not None
    world.wire()
    (world.folder / "a.txt.f").unlink()
    follows = Version(first.file_id, first.vector, b"")
    second = world.replace({"a.txt": b"two"}, follows=follows)["a.txt"]
    world.write_index()
    world.home.write_head(world.folder_id, node_id_of(public), old)
    world.lose_catalog()
    (world.folder / "a.txt.f").write_bytes(first.manifest)  # even if the disk says so too
    world.rebuild()
    assert world.file("a.txt").hash == second.hash


def test_head_of_a_revoked_device_is_not_believed(filled: World) -> None:
    before = filled.file("a.txt").hash
    device = other_device(filled)
    head, _ = head_of(filled, device, "a.txt")
    public = PublicKey(bytes(device.verify_key))
    filled.home.write_head(filled.folder_id, node_id_of(public), head)
    admin = filled.home.admin()
    assert admin is not None
    filled.group.revoke(public, signer=admin, now=NOW)
    filled.lose_catalog()
    filled.rebuild()
    assert filled.file("a.txt").hash == before


def test_placeholder_of_a_revoked_device_is_not_filed(world: World) -> None:
    device = other_device(world)
    world.replace({"a.txt": b"mine"})
    head_of(world, device, "a.txt")
    row = world.file("a.txt")
    raw = world.catalog.view(lambda db: files.manifest(db, row.id))
    assert raw is not None
    (world.folder / "a.txt.f").unlink()
    (world.folder / "foreign.txt.f").write_bytes(raw)
    admin = world.home.admin()
    assert admin is not None
    world.group.revoke(PublicKey(bytes(device.verify_key)), signer=admin, now=NOW)
    world.lose_catalog()
    rebuilt = world.rebuild()
    assert rebuilt.untrusted == 1
    assert world.maybe_file("foreign.txt") is None


def test_head_that_names_no_index_is_not_believed(filled: World) -> None:
    manifest = (filled.folder / "a.txt.f").read_bytes()
    head = Head(filled.folder_id, filled.group.node_id, 9, 9, manifest)
    signed = encode_head(sign_head(head, filled.group.device, filled.group.chain()))
    filled.home.write_head(filled.folder_id, filled.group.node_id, signed)
    filled.lose_catalog()
    assert filled.rebuild().incarnation == 2


# -- holders ---------------------------------------------------------------------------------------


def evict(world: World, name: str, elsewhere: DiskBundles) -> list[blocks.BundleRow]:
    """The data bundles of a file leave the store; `elsewhere` has them."""
    rows = [row for row in world.bundles_of(name).values() if row.kind == 1]
    move(world, [row.bundle_id for row in rows], elsewhere)
    return rows


def move(world: World, ids: list, elsewhere: DiskBundles) -> None:
    for bundle_id in ids:
        target = elsewhere.path(bundle_id)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(world.store.path(bundle_id), target)
        world.store.to_trash(bundle_id)
        world.store.purge(bundle_id)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[DiskBundles]:
    store = DiskBundles(tmp_path / "elsewhere")
    yield store
    store.close()


async def test_evicted_bundle_is_known_again_but_not_proved(
    filled: World, elsewhere: DiskBundles
) -> None:
    (row,) = evict(filled, "sub/b.bin", elsewhere)
    filled.lose_catalog()
    assert filled.rebuild().missing == 1
    told = [(HOLDER, holding(filled, row))]
    done = await complete_with_holdings(
        filled.catalog, **complete_args(filled, Memory(elsewhere), told, [])
    )
    assert (done.bundles, done.copies, done.missing) == (1, 1, 0)
    again = filled.bundles_of("sub/b.bin")[row.bundle_id]
    assert (again.state, again.own, again.tag) == (BundleState.EVICTED, 1, row.tag)
    (copy,) = filled.catalog.view(lambda db: copies.of_bundle(db, again.id))
    assert (copy.holder, copy.state, copy.receipt) == (HOLDER, "suspect", b"")
    assert state(filled.catalog).pending is False


async def test_holder_is_told_of_once(filled: World, elsewhere: DiskBundles) -> None:
    (row,) = evict(filled, "sub/b.bin", elsewhere)
    filled.lose_catalog()
    filled.rebuild()
    told = [(HOLDER, holding(filled, row))]
    args = complete_args(filled, Memory(elsewhere), told, [])
    incarnation = filled.home.incarnation()
    await complete_with_holdings(filled.catalog, **args)
    done = await complete_with_holdings(filled.catalog, **args)
    assert (done.bundles, done.copies, done.incarnation) == (0, 0, incarnation)


async def test_proof_that_came_meanwhile_is_not_taken_back(
    filled: World, elsewhere: DiskBundles
) -> None:
    row = next(iter(filled.bundles_of("a.txt").values()))
    filled.lose_catalog()
    filled.rebuild()
    number = filled.bundles_of("a.txt")[row.bundle_id].id
    proved = copies.Copy(number, HOLDER, 0, 1, 2, b"receipt")
    filled.catalog.write(lambda db: copies.put(db, proved)).result()
    told = [(HOLDER, holding(filled, row))]
    await complete_with_holdings(
        filled.catalog, **complete_args(filled, Memory(elsewhere), told, [])
    )
    (kept,) = filled.catalog.view(lambda db: copies.of_bundle(db, number))
    assert kept[:7] == proved[:7]


async def test_bundles_of_other_devices_are_not_ours_to_list(
    filled: World, elsewhere: DiskBundles
) -> None:
    row = next(iter(filled.bundles_of("a.txt").values()))
    filled.lose_catalog()
    filled.rebuild()
    foreign = holding(filled, row, bundle=b"x" * 32, opener=b"o" * 32)
    done = await complete_with_holdings(
        filled.catalog, **complete_args(filled, Memory(elsewhere), [(HOLDER, foreign)], [])
    )
    assert (done.bundles, done.copies) == (0, 0)


async def test_original_whose_blocks_are_nowhere_is_taken_anew(
    filled: World, elsewhere: DiskBundles
) -> None:
    evict(filled, "stays.db", elsewhere)
    filled.lose_catalog()
    filled.rebuild()
    before = filled.file("stays.db")
    assert before.state == State.PROTECTED
    done = await complete_with_holdings(
        filled.catalog, **complete_args(filled, Memory(elsewhere), [], [])
    )
    assert done.doubtful == 1
    row = filled.file("stays.db")
    assert (row.state, row.version) == (State.DELETED, before.version)
    assert filled.file("a.txt").state == State.PLACEHOLDER, "it waits for a holder to come back"


async def test_the_version_before_is_not_forgotten_when_its_blocks_are_nowhere_yet(
    filled: World, elsewhere: DiskBundles
) -> None:
    """The original was edited since, and who holds the earlier version may only be late."""
    needs = set(filled.bundles_of("stays.db"))
    evict(filled, "stays.db", elsewhere)
    (filled.folder / "stays.db").write_bytes(b"edited since")
    filled.lose_catalog()
    filled.rebuild()
    await complete_with_holdings(filled.catalog, **complete_args(filled, Memory(elsewhere), [], []))
    (old,) = filled.catalog.view(lambda db: files.history(db, filled.row, b"stays.db"))
    assert open_manifest(old.manifest, filled.group.ring()).manifest.meta.size == len(b"database")
    query = (
        "SELECT b.bundle_id FROM history_bundles h JOIN bundles b ON b.id=h.bundle"
        " WHERE h.history=?"
    )
    assert {one for (one,) in filled.catalog.read(query, (old.id,))} == needs


async def test_index_that_is_not_here_is_fetched(filled: World, elsewhere: DiskBundles) -> None:
    (filled.folder / "a.txt.f").unlink()
    before = filled.everything()
    everything = filled.store.list()
    ids = [b for b in everything if filled.store.index(b).header.kind == 2]
    move(filled, ids, elsewhere)
    filled.lose_catalog()
    rebuilt = filled.rebuild()
    assert rebuilt.unread > 0
    assert filled.maybe_file("gone.txt") is None
    filled.write_index()  # the loop does not wait: what the old index said must not be lost
    done = await complete_with_holdings(
        filled.catalog, **complete_args(filled, Memory(elsewhere), [], [])
    )
    assert done.unread == 0
    assert filled.file("gone.txt").state == State.DELETED
    assert filled.file("a.txt").hash == next(r[5] for r in before if r[0] == b"a.txt")
    assert set(filled.bundles_of("large.bin")) >= {
        r[1] for r in before if r[0] == b"large.bin" and len(r) == 8 and r[3] == 1
    }


async def test_one_damaged_meta_bundle_does_not_stop_the_completing(
    filled: World, elsewhere: DiskBundles
) -> None:
    manifests = [b for b, row in filled.bundles_of("a.txt").items() if row.kind == 2]
    meta = [b for b in filled.store.list() if filled.store.index(b).header.kind == 2]
    move(filled, manifests, elsewhere)
    filled.lose_catalog()
    assert filled.rebuild().unread > 0
    for bundle_id in set(meta) - set(manifests):
        path = filled.store.path(bundle_id)
        elsewhere.path(bundle_id).parent.mkdir(exist_ok=True)
        shutil.copy(path, elsewhere.path(bundle_id))
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - 9)
        filled.store.forget(bundle_id)
    done = await complete_with_holdings(
        filled.catalog, **complete_args(filled, Memory(elsewhere), [], [])
    )
    assert done.unread == 0
    assert filled.file("gone.txt").state == State.DELETED


async def test_newer_head_of_ours_at_a_holder_is_read(world: World, elsewhere: DiskBundles) -> None:
    """HOME came from an older copy: holders have seen more of this device than it knows."""
    world.replace({"a.txt": b"one"})
    old = world.write_index()
    known = set(world.store.list())
    late = world.replace({"late.txt": b"two"})["late.txt"]
    world.home.write_incarnation(4)
    newer = world.write_index()
    move(world, [b for b in world.store.list() if b not in known], elsewhere)
    world.home.write_head(world.folder_id, world.group.node_id, old)
    world.home.write_incarnation(1)
    (world.folder / "late.txt.f").unlink()
    world.lose_catalog()
    world.rebuild()
    assert world.maybe_file("late.txt") is None
    done = await complete_with_holdings(
        world.catalog, **complete_args(world, Memory(elsewhere), [], [newer, b"junk"])
    )
    assert done.files == 1
    assert world.file("late.txt").hash == late.hash
    assert done.incarnation == world.home.incarnation() == 5


async def test_head_that_holders_had_is_read_also_after_a_new_one_was_written(
    world: World, elsewhere: DiskBundles
) -> None:
    world.replace({"a.txt": b"one"})
    old = world.write_index()
    late = world.replace({"late.txt": b"two"})["late.txt"]
    newer = world.write_index()
    world.home.write_head(world.folder_id, world.group.node_id, old)
    (world.folder / "late.txt.f").unlink()
    world.lose_catalog()
    world.rebuild()
    world.write_index()  # of a greater incarnation than `newer`
    done = await complete_with_holdings(
        world.catalog, **complete_args(world, Memory(elsewhere), [], [newer, old])
    )
    assert done.files == 1
    assert world.file("late.txt").hash == late.hash


def test_old_catalog_is_never_taken_for_the_new_one(filled: World) -> None:
    """A crash between the two renames leaves no catalog at all, so that the next start rebuilds."""
    filled.damage_catalog()
    path = filled.home.path / "catalog.sqlite"
    path.rename(path.with_name("catalog.sqlite.damaged-1"))
    with Catalog.open(path.with_name("catalog.sqlite.rebuilding")):
        pass
    assert filled.rebuild().files == 4
