"""A folder was recovered, and a holder comes with a later list of the lost device."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from p2pstore.content import (
    Head,
    SignedHead,
    decode_head,
    encode_head,
    head_order,
    open_manifest,
    seal_manifest,
    sign_head,
    verify_head,
)
from p2pstore.folders.concluding import version_after
from p2pstore.folders.laying import LaidOut, lay_out
from p2pstore.home import RECOVERING, Followed
from p2pstore.ids import FolderId, NodeId, PublicKey, node_id_of
from p2pstore.ingest import Author, Protected, Version
from p2pstore.maintenance.complete import Completed, complete_with_holdings
from p2pstore.maintenance.filing import late as late_filing
from p2pstore.maintenance.index import HeadOrder
from p2pstore.placement import Root
from p2pstore.store import BundleState, DiskBundles, FileRow, State, files, folders
from tests.maintenance.test_rebuild import complete_args, move, other_device
from tests.maintenance.world import NOW, Memory, World


class Lost:
    """A device that filled the folder, and was lost; then its folder was recovered by ours."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.device = other_device(world)
        self.public = PublicKey(bytes(self.device.verify_key))
        self.node_id = node_id_of(self.public)
        self._last: HeadOrder | None = None
        self.be()

    def be(self) -> None:
        """What is written from now on is written by the lost device."""
        chain = self.world.group.state.chain_of(self.public)
        assert chain is not None
        author = Author(key=self.device, chain=chain, group=self.world.group.state.group_public)
        self.world.ingest._author = self.world.index._author = lambda: author

    def has(self, name: str, content: bytes) -> Protected:
        """A file of this name has a first, or the next, version."""
        row = self.world.maybe_file(name)
        follows = None
        if row is not None:
            follows = Version(row.file_id, vector(row), b"")  # type: ignore[arg-type]
            (self.world.folder / f"{name}.f").unlink(missing_ok=True)
        return self.world.replace({name: content}, follows=follows)[name]

    def deletes(self, name: str) -> None:
        delete(self.world, name, self.node_id)

    def index(self) -> bytes:
        folder = self.world.catalog.view(lambda db: folders.get(db, self.world.row))
        assert folder is not None
        raw = self.world.index.write(folder, self._last)
        assert raw is not None
        self._last = HeadOrder(*head_order(verify_head(decode_head(raw))))
        return raw

    def is_lost(self, known: bytes) -> None:
        """HOME, catalog and folder are what `recover` makes of that head."""
        world = self.world
        shutil.rmtree(world.folder)
        world.folder.mkdir()
        Root.mark(world.folder, world.folder_id)
        world.lose_catalog()
        shutil.rmtree(world.home.path / "heads")
        world.home.make_directory()
        found = verify_head(decode_head(known))
        group = world.group
        manifest = open_manifest(found.manifest, group.ring()).manifest
        raw = seal_manifest(
            manifest, group.ring().current, group.device, group.chain(), os.urandom(24)
        )
        head = Head(world.folder_id, group.node_id, 1, 1, raw)
        signed: SignedHead = sign_head(head, group.device, group.chain())
        world.home.write_head(world.folder_id, group.node_id, encode_head(signed))
        self.set_entry(
            paused=RECOVERING,
            follows=(Followed(self.node_id, *head_order(found)),),
            as_of_ns=manifest.meta.mtime_ns,
        )
        world.rebuild()
        self.lay()

    def set_entry(self, **changes: object) -> None:
        self.world.entry = msgspec.structs.replace(self.world.entry, **changes)
        self.world.home.write_folders([self.world.entry])

    def lay(self) -> LaidOut:
        world = self.world
        root = Root(world.folder, world.folder_id)
        try:
            ring = world.group.ring()
            return lay_out(root, world.catalog, world.row, ring, lambda *_: None, now_ms=1)
        finally:
            root.close()


@dataclass
class Hand:
    """Lets everything be filed, but what is in somebody's hands."""

    lost: Lost
    busy: set[bytes] = field(default_factory=set)
    may: bool = True
    opened: int = 0
    rows_then: list[FileRow] = field(default_factory=list)

    async def open_again(self, folder: FolderId) -> bool:
        assert folder == self.lost.world.folder_id
        if not self.opened:
            self.rows_then = all_rows(self.lost.world)
        self.opened += 1
        return self.may

    async def take(self, folder: FolderId, paths: Sequence[bytes]) -> Collection[bytes]:
        return set(paths) - self.busy

    async def let_go(self, folder: FolderId, paths: Collection[bytes]) -> None: ...


@pytest.fixture
def lost(tmp_path: Path) -> Iterator[Lost]:
    world = World(tmp_path)
    yield Lost(world)
    world.close()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[DiskBundles]:
    store = DiskBundles(tmp_path / "elsewhere")
    yield store
    store.close()


def vector(row: FileRow) -> dict[NodeId, int]:
    return msgspec.msgpack.decode(row.version, type=dict[NodeId, int])


def all_rows(world: World) -> list[FileRow]:
    states = tuple(State)
    return world.catalog.view(lambda db: list(files.walk(db, world.row, states=states)))


def delete(world: World, name: str, by: NodeId) -> None:
    row = world.file(name)
    version = version_after(row, by)
    world.catalog.write(lambda db: files.retire(db, row.id, version, int(NOW * 1000))).result()
    (world.folder / f"{name}.f").unlink(missing_ok=True)


async def tell(lost: Lost, *heads: bytes, hand: Hand | None = None, **more: object) -> Completed:
    """A holder has these heads."""
    args = complete_args(lost.world, None, [], list(heads)) | more
    return await complete_with_holdings(lost.world.catalog, **args, reopening=hand or Hand(lost))


def brought(done: Completed) -> int:
    return sum(count for later in done.later for _, count in later.files)


def hydrated(lost: Lost, name: str, content: bytes) -> FileRow:
    """Its owner has opened the file."""
    world = lost.world
    (world.folder / f"{name}.f").unlink()
    (world.folder / name).write_bytes(content)
    row, stat = world.file(name), (world.folder / name).stat()
    there = (row.id, State.PROTECTED, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    world.catalog.write(lambda db: files.set_on_disk(db, [there])).result()
    return world.file(name)


def edited(lost: Lost, name: str, content: bytes) -> FileRow:
    """Its owner has a next version of it, which stays as an original."""
    row = lost.world.file(name)
    follows = Version(row.file_id, vector(row), b"")  # type: ignore[arg-type]
    (lost.world.folder / f"{name}.f").unlink(missing_ok=True)
    lost.world.protect({name: content}, follows=follows)
    return lost.world.file(name)


# -- what each line becomes ------------------------------------------------------------------------


async def test_a_file_that_nothing_here_knows_gets_a_placeholder(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    late = lost.has("sub/late.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    done = await tell(lost, newer)
    row = lost.world.file("sub/late.txt")
    assert (row.state, row.ino, row.hash) == (State.PLACEHOLDER, 0, late.hash)
    assert set(lost.world.bundles_of("sub/late.txt")) == late.bundles
    (later,) = done.later
    assert later.files == ((lost.node_id, 1),)
    assert later.follows == (Followed(lost.node_id, 1, 2),)
    assert lost.lay().placeholders == 1
    assert (lost.world.folder / "sub/late.txt.f").read_bytes() == late.manifest


async def test_what_is_known_opens_no_recovery(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    lost.has("b.txt", b"one")
    old = lost.index()
    lost.deletes("b.txt")
    newer = lost.index()
    lost.is_lost(old)
    before = all_rows(lost.world)
    hand = Hand(lost)
    done = await tell(lost, old, newer, hand=hand)
    assert (hand.opened, all_rows(lost.world)) == (0, before), "a deletion removes nothing"
    assert done.later[0].follows == (Followed(lost.node_id, 1, 2),), "it was read, all the same"


async def test_a_placeholder_becomes_one_of_the_newer_version(lost: Lost) -> None:
    first = lost.has("a.txt", b"one")
    old = lost.index()
    second = lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    dot = lost.world.folder / "a.txt.f"
    assert dot.read_bytes() == first.manifest
    read: list[bytes] = []
    await tell(lost, newer, reads=read.append)
    assert set(read) == {os.fsencode(dot)}, "nobody asked for it: that is said before it is opened"
    row = lost.world.file("a.txt")
    assert (row.state, row.hash, row.reason) == (State.PLACEHOLDER, second.hash, files.OLD_DOT)
    (past,) = lost.world.catalog.view(lambda db: files.history(db, row.folder, b"a.txt"))
    assert past.hash == first.hash
    assert lost.lay().failed == ()
    assert dot.read_bytes() == second.manifest
    assert lost.world.file("a.txt").reason == ""


async def test_before_the_first_laying_out_the_newer_version_is_laid_at_once(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    second = lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    (lost.world.folder / "a.txt.f").unlink()
    gone = (lost.world.file("a.txt").id, State.PLACEHOLDER, 0, 0, 0, 0)
    lost.world.catalog.write(lambda db: files.set_on_disk(db, [gone])).result()
    await tell(lost, newer)
    lost.lay()
    assert (lost.world.folder / "a.txt.f").read_bytes() == second.manifest


async def test_an_original_stays_and_the_later_version_lies_beside(lost: Lost) -> None:
    lost.has("sub/a.txt", b"one")
    old = lost.index()
    second = lost.has("sub/a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    before = hydrated(lost, "sub/a.txt", b"one")
    await tell(lost, newer)
    assert lost.world.file("sub/a.txt") == before
    lost.lay()
    assert (lost.world.folder / "sub/a.txt").read_bytes() == b"one"
    assert (lost.world.folder / "sub/a.conflict.txt.f").read_bytes() == second.manifest


async def test_what_was_edited_on_both_sides_stays_and_gets_one_neighbour(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    second = lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    mine = edited(lost, "a.txt", b"mine")
    await tell(lost, newer)
    lost.lay()
    done = await tell(lost, newer)  # as after a crash: it is not recorded that it was read
    assert brought(done) == 0
    assert lost.world.file("a.txt") == mine
    names = sorted(row.path for row in all_rows(lost.world))
    assert names == [b"a.conflict.txt", b"a.txt"]
    assert lost.world.file("a.conflict.txt").hash == second.hash


async def test_placeholders_that_were_edited_on_both_sides_are_both_kept(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    second = lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    row = lost.world.file("a.txt")
    (lost.world.folder / "a.txt.f").unlink()
    follows = Version(row.file_id, vector(row), b"")  # type: ignore[arg-type]
    mine = lost.world.replace({"a.txt": b"mine"}, follows=follows)["a.txt"]
    await tell(lost, newer)
    assert lost.world.file("a.txt").hash == mine.hash
    assert lost.world.file("a.conflict.txt").hash == second.hash


async def test_an_original_of_the_very_content_is_the_later_version(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    second = lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    before = hydrated(lost, "a.txt", b"two")  # edited just so, and not looked at yet
    await tell(lost, newer)
    row = lost.world.file("a.txt")
    assert (row.hash, row.version) == (second.hash, msgspec.msgpack.encode(second.vector))
    assert (row.state, row.ino) == (State.PROTECTED, before.ino)
    assert len(all_rows(lost.world)) == 1


async def test_the_same_edit_on_both_sides_is_no_conflict(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    mine = edited(lost, "a.txt", b"two")
    await tell(lost, newer)
    assert all_rows(lost.world) == [mine]


async def test_what_was_deleted_here_stays_deleted(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    lost.has("b.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    delete(lost.world, "a.txt", lost.world.group.node_id)
    await tell(lost, newer)
    assert lost.world.file("a.txt").state == State.DELETED


async def test_a_version_that_nobody_saw_here_comes_back_after_a_deletion(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    second = lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    delete(lost.world, "a.txt", lost.world.group.node_id)
    deletion = vector(lost.world.file("a.txt"))
    await tell(lost, newer)
    row = lost.world.file("a.txt")
    assert (row.state, row.hash) == (State.PLACEHOLDER, second.hash)
    assert vector(row) == {**deletion, lost.node_id: 2}, "newer than the deletion, too"
    lost.lay()
    assert (lost.world.folder / "a.txt.f").read_bytes() == second.manifest
    delete(lost.world, "a.txt", lost.world.group.node_id)
    await tell(lost, newer)
    assert lost.world.file("a.txt").state == State.DELETED, "now it was seen"


async def test_a_file_that_its_owner_moved_does_not_come_twice(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    lost.has("late.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    row = lost.world.file("a.txt")
    (lost.world.folder / "a.txt.f").rename(lost.world.folder / "moved.txt.f")
    lost.world.catalog.write(lambda db: files.rename(db, row.id, b"moved.txt")).result()
    await tell(lost, newer)
    assert lost.world.maybe_file("a.txt") is None


async def test_two_copies_of_one_new_file_both_come(
    lost: Lost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(late_filing, "BATCH", 1)
    lost.has("a.txt", b"one")
    old = lost.index()
    lost.has("late.txt", b"two")
    late = lost.world.file("late.txt")
    raw = (lost.world.folder / "late.txt.f").read_bytes()
    copy = late._replace(id=0, path=b"copy.txt")
    lost.world.catalog.write(lambda db: files.upsert_many(db, [copy], [raw])).result()
    newer = lost.index()
    lost.is_lost(old)
    assert brought(await tell(lost, newer)) == 2


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_file_of_the_owners_keeps_the_name_that_it_took(lost: Lost, is_known: bool) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    late = lost.has("a.txt", b"theirs")
    newer = lost.index()
    lost.is_lost(old)
    if is_known:
        lost.world.protect({"a.txt": b"mine"})
    else:
        (lost.world.folder / "a.txt").write_bytes(b"mine")
    await tell(lost, newer)
    lost.lay()
    assert (lost.world.folder / "a.txt").read_bytes() == b"mine"
    assert (lost.world.folder / "a.conflict.txt.f").read_bytes() == late.manifest
    assert (lost.world.maybe_file("a.txt") is not None) == is_known


async def test_another_files_placeholder_keeps_the_name_that_it_took(lost: Lost) -> None:
    lost.has("z.txt", b"z")
    old = lost.index()
    late = lost.has("a.txt", b"theirs")
    newer = lost.index()
    lost.is_lost(old)
    shutil.copy(lost.world.folder / "z.txt.f", lost.world.folder / "a.txt.f")
    await tell(lost, newer)
    assert lost.world.maybe_file("a.txt") is None, "the scan meets it"
    assert lost.world.file("a.conflict.txt").hash == late.hash


async def test_where_its_directory_became_a_file_it_comes_to_the_root(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("d/a.txt", b"one")
    lost.has("e/a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    (lost.world.folder / "d").write_bytes(b"mine")
    (lost.world.folder / "e").symlink_to("z.txt")
    await tell(lost, newer)
    assert lost.lay().failed == ()
    assert {p.name for p in lost.world.folder.glob("a*")} == {"a.txt.f", "a.conflict.txt.f"}


async def test_a_link_comes_where_nothing_has_its_name(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    names = (b"link", b"taken", b"dir")
    made = [
        FileRow(lost.world.row, name, State.PROTECTED, "a link", kind="link", target=b"z.txt")
        for name in names
    ]
    lost.world.catalog.write(lambda db: files.upsert_many(db, made)).result()
    newer = lost.index()
    lost.is_lost(old)
    (lost.world.folder / "taken").write_bytes(b"mine")
    (lost.world.folder / "dir").mkdir()
    await tell(lost, newer)
    assert lost.lay() == LaidOut(0, 1, ())
    assert os.readlink(lost.world.folder / "link") == "z.txt"


async def test_what_came_and_went_unseen_can_be_undeleted(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"short")
    lost.deletes("a.txt")
    newer = lost.index()
    lost.is_lost(old)
    hand = Hand(lost)
    await tell(lost, newer, hand=hand)
    assert lost.world.file("a.txt").state == State.DELETED
    assert lost.world.catalog.view(lambda db: files.history(db, lost.world.row, b"a.txt"))
    assert hand.opened == 0, "nothing is to be laid out"


# -- how -------------------------------------------------------------------------------------------


async def test_the_recovery_is_open_again_before_any_row_says_so(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    before, hand = all_rows(lost.world), Hand(lost)
    await tell(lost, newer, hand=hand)
    assert (hand.opened, hand.rows_then) == (1, before)


async def test_a_folder_that_may_not_rest_now_is_asked_again(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    before = all_rows(lost.world)
    done = await tell(lost, newer, hand=Hand(lost, may=False))
    assert (done.unread, done.later[0].follows) == (1, lost.world.entry.follows)
    assert all_rows(lost.world) == before
    assert brought(await tell(lost, newer)) == 1


async def test_what_is_in_somebodys_hands_waits_for_the_next_reading(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    lost.has("a.txt", b"two")
    lost.has("b.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    before = lost.world.file("a.txt")
    done = await tell(lost, newer, hand=Hand(lost, busy={b"a.txt"}))
    assert (brought(done), done.unread, done.later[0].follows) == (
        1,
        1,
        lost.world.entry.follows,
    )
    assert lost.world.file("a.txt") == before
    done = await tell(lost, newer)
    assert (brought(done), done.unread) == (1, 0)
    assert done.later[0].follows == (Followed(lost.node_id, 1, 2),)


async def test_a_row_that_changed_since_it_was_judged_is_judged_anew(lost: Lost) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    second = lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)

    class Racing(Hand):
        async def take(self, folder: FolderId, paths: Sequence[bytes]) -> Collection[bytes]:
            if lost.world.file("a.txt").state == State.PLACEHOLDER:
                self.row = hydrated(lost, "a.txt", b"one")
            return paths

    hand = Racing(lost)
    done = await tell(lost, newer, hand=hand)
    assert (brought(done), done.unread) == (1, 0)
    assert lost.world.file("a.txt") == hand.row
    assert lost.world.file("a.conflict.txt").hash == second.hash


async def test_what_cannot_be_read_yet_comes_when_it_can(
    lost: Lost, elsewhere: DiskBundles
) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    lost.has("late.txt", b"two")
    wanted = [b for b, row in lost.world.bundles_of("late.txt").items() if row.kind == 2]
    newer = lost.index()
    lost.is_lost(old)
    empty = DiskBundles(lost.world.base / "empty")
    move(lost.world, wanted, elsewhere)
    done = await tell(lost, newer, source=Memory(empty))
    assert (brought(done), done.later[0].follows) == (0, lost.world.entry.follows)
    assert done.unread > 0
    done = await tell(lost, newer, source=Memory(elsewhere))
    assert (brought(done), done.unread) == (1, 0)
    assert done.later[0].follows == (Followed(lost.node_id, 1, 2),)
    empty.close()


async def test_while_the_newest_list_cannot_be_read_the_one_before_helps(
    lost: Lost, elsewhere: DiskBundles
) -> None:
    lost.has("a.txt", b"one")
    old = lost.index()
    lost.has("b.txt", b"two")
    middle = lost.index()
    before = set(lost.world.store.list())
    lost.has("c.txt", b"three")
    newest = lost.index()
    move(lost.world, [b for b in lost.world.store.list() if b not in before], elsewhere)
    lost.is_lost(old)
    empty = DiskBundles(lost.world.base / "empty")
    done = await tell(lost, middle, newest, source=Memory(empty))
    empty.close()
    assert lost.world.file("b.txt").state == State.PLACEHOLDER
    assert done.later[0].follows == (Followed(lost.node_id, 1, 2),)
    lost.set_entry(follows=done.later[0].follows)
    await tell(lost, newest, source=Memory(elsewhere))
    row = next(iter(lost.world.bundles_of("c.txt").values()))
    assert row.state == BundleState.LOST, "until its holder is asked"


async def test_a_head_that_came_to_home_is_read_too(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    lost.world.home.write_head(lost.world.folder_id, lost.node_id, newer)
    assert brought(await tell(lost)) == 1


async def test_a_catalog_that_is_made_anew_leaves_it_to_the_later_reading(lost: Lost) -> None:
    """A rebuild would take the original for what follows a version that its owner never saw."""
    first = lost.has("a.txt", b"one")
    old = lost.index()
    second = lost.has("a.txt", b"two")
    newer = lost.index()
    lost.is_lost(old)
    hydrated(lost, "a.txt", b"one")
    lost.world.home.write_head(lost.world.folder_id, lost.node_id, newer)
    lost.world.lose_catalog()
    lost.world.rebuild()
    assert lost.world.file("a.txt").hash == first.hash
    await tell(lost)
    assert lost.world.file("a.txt").hash == first.hash
    assert lost.world.file("a.conflict.txt").hash == second.hash


def test_a_placeholder_that_is_older_than_the_list_does_not_bring_old_bytes(lost: Lost) -> None:
    """Whatever put it there."""
    first = lost.has("a.txt", b"one")
    second = lost.has("a.txt", b"two")
    lost.is_lost(lost.index())
    (lost.world.folder / "a.txt.f").write_bytes(first.manifest)
    lost.world.lose_catalog()
    lost.world.rebuild()
    row = lost.world.file("a.txt")
    assert (row.hash, row.reason) == (second.hash, files.OLD_DOT)


# -- whose -----------------------------------------------------------------------------------------


async def test_a_folder_that_was_not_recovered_follows_nobody(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    lost.set_entry(follows=())
    assert (await tell(lost, newer)).later == ()


async def test_a_folder_that_its_owner_has_paused_waits_for_him(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    lost.set_entry(paused="paused by its owner")
    assert (await tell(lost, newer)).later == ()
    lost.set_entry(paused="")
    assert brought(await tell(lost, newer)) == 1


async def test_the_folder_of_a_device_that_is_there_is_left_to_it(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    assert (await tell(lost, newer, present={lost.node_id})).later == ()


async def test_a_list_of_a_revoked_device_is_not_believed(lost: Lost) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    admin = lost.world.home.admin()
    assert admin is not None
    lost.world.group.revoke(lost.public, signer=admin, now=NOW)
    assert (await tell(lost, newer)).later == ()


@pytest.mark.parametrize(("as_of", "count"), [(0, 1), (1 << 62, 0)])
async def test_of_a_device_never_heard_of_only_a_later_list_is_read(
    lost: Lost, as_of: int, count: int
) -> None:
    old = lost.has("z.txt", b"z") and lost.index()
    lost.has("a.txt", b"late")
    newer = lost.index()
    lost.is_lost(old)
    lost.set_entry(follows=(Followed(NodeId(b"q" * 20), 9, 9),), as_of_ns=as_of)
    assert brought(await tell(lost, newer)) == count
