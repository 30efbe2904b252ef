"""Somebody else works on the same files at the same time; his bytes are never lost."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

from p2pstore.errors import Unavailable
from p2pstore.folders.taking import Taken
from p2pstore.placement import Claim, claim
from p2pstore.store import blocks, files
from tests.faults.world import World, assert_journal_closed, assert_trash_known

replacing = import_module("p2pstore.placement.replace")  # the door has a function of that name
arriving = import_module("p2pstore.placement.arrive")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="replacing needs Linux")

DEADLINE_S = 10.0


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


class Writer:
    """Opens a file for writing in a thread of its own, which blocks while it is leased."""

    def __init__(self, path: Path, text: bytes, flags: int = os.O_WRONLY) -> None:
        self._path, self._text, self._flags = path, text, flags
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        fd = os.open(self._path, self._flags)
        os.write(fd, self._text)
        os.close(fd)

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the writer hangs"


def wait_until(condition: Callable[[], bool]) -> None:
    done = threading.Event()
    limit = threading.Timer(DEADLINE_S, done.set)
    limit.start()
    while not condition():
        assert not done.wait(0.002), "it did not happen in time"
    limit.cancel()


def before(monkeypatch: pytest.MonkeyPatch, where: object, name: str, act: Callable[[], None]):
    """Do something once, just before a function is called."""
    original = getattr(where, name)
    done: list[bool] = []

    def acting(*args: object, **kwargs: object) -> object:
        if not done:
            done.append(True)
            act()
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, acting)


def let_go(taken: Taken) -> dict[bytes, str]:
    for entry in taken.claims:
        entry.close()
    return {o.path: "" if o.state == "placeholder" else o.reason for o in taken.outcomes}


# -- claiming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND])
def test_file_that_is_open_for_writing_waits(made: World, flags: int) -> None:
    fd = os.open(made.write("file", b"content"), flags)
    assert made.replace("file") == {b"file": "open in another program"}
    os.close(fd)
    assert made.replace("file") == {b"file": ""}


def test_writable_map_without_descriptor_counts_as_open(made: World) -> None:
    import mmap

    with open(made.write("file", b"content"), "r+b") as file:
        shared = mmap.mmap(file.fileno(), 0)
    assert made.replace("file") == {b"file": "open in another program"}
    shared[:7] = b"CONTENT"
    shared.close()
    assert made.replace("file") == {b"file": ""}
    made.hydrate("file.f")
    assert made.at("file").read_bytes() == b"CONTENT"


def test_file_that_changed_since_it_was_seen_waits(made: World) -> None:
    path = made.write("file", b"content")
    seen = made.candidate("file")
    path.write_bytes(b"CONTENT")
    assert let_go(made.taking.take(made.root, made.row, [seen])) == {b"file": "changed just now"}


def test_claim_gives_way_at_once(made: World) -> None:
    path = made.write("file", b"content")
    (held,) = claim(made.root, [b"file"], made.keeper, replaceable=lambda _: True)
    assert isinstance(held, Claim)
    assert held.is_good()
    Writer(path, b"CONTENT").join()
    assert not held.is_good()
    held.close()
    assert path.read_bytes() == b"CONTENT"


# -- replacing -------------------------------------------------------------------------------------


def test_writer_during_the_protection_keeps_his_file(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.write("file", b"content")
    made.write("other", b"other")
    before(monkeypatch, made.ingest, "protect", lambda: Writer(path, b"CONTENT").join())
    assert made.replace("file", "other") == {b"file": "changed meanwhile", b"other": ""}
    assert path.read_bytes() == b"CONTENT"
    assert made.names() == {b"file", b"other.f"}
    assert_trash_known(made)


def test_writer_just_before_the_rename_keeps_his_file(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.write("file", b"content")
    before(monkeypatch, Claim, "move", lambda: Writer(path, b"CONTENT").join())
    assert made.replace("file") == {b"file": "opened for writing meanwhile"}
    assert path.read_bytes() == b"CONTENT"
    assert made.names() == {b"file"}
    assert_trash_known(made)
    assert made.empty_trash() == []


def test_writer_who_waits_during_the_rename_writes_into_his_file(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He holds the inode when it is renamed: the check afterwards brings it back to its name."""
    path = made.write("file", b"content")
    writers: list[Writer] = []
    original = Claim.move

    def move(self: Claim, rename: Callable[[], None], undo: Callable[[], None]) -> bool:
        def renamed() -> None:
            writers.append(Writer(path, b"CONTENT"))
            wait_until(lambda: not made.keeper.held(self.fd))
            rename()

        return original(self, renamed, undo)

    monkeypatch.setattr(Claim, "move", move)
    assert made.replace("file") == {b"file": "opened for writing meanwhile"}
    writers[0].join()
    assert path.read_bytes() == b"CONTENT"
    assert made.names() == {b"file"}


def test_writer_after_the_rename_finds_no_file_to_spoil(made: World) -> None:
    """He opens what lies in trash, through a descriptor: while it is held, it goes back first."""
    path = made.write("file", b"content")
    fd = os.open(path, os.O_RDONLY)
    taken = made.take("file")
    Writer(Path(f"/proc/self/fd/{fd}"), b"CONTENT").join()
    os.close(fd)
    assert let_go(taken) == {b"file": ""}
    assert path.read_bytes() == b"CONTENT"
    assert made.empty_trash() == []
    assert path.read_bytes() == b"CONTENT"


def test_file_that_was_saved_by_rename_meanwhile_is_kept(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.write("file", b"content")
    made.write("file.new", b"CONTENT")
    before(monkeypatch, Claim, "move", lambda: os.replace(made.at("file.new"), path))
    assert set(made.replace("file").values()) != {""}
    assert path.read_bytes() == b"CONTENT"
    assert made.names() == {b"file"}
    assert_trash_known(made)


def test_file_saved_by_rename_twice_is_kept_twice(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second save comes while the first one lies in trash by mistake."""
    path = made.write("file", b"content")
    made.write("file.new", b"CONTENT")
    before(monkeypatch, Claim, "move", lambda: os.replace(made.at("file.new"), path))
    before(monkeypatch, replacing, "put_back", lambda: made.write("file", b"again") and None)
    made.replace("file")
    there = {made.at(name).read_bytes() for name in made.names()}
    assert there == {b"CONTENT", b"again"}
    assert_trash_known(made)


def test_file_that_was_deleted_meanwhile_stays_deleted(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made.write("file", b"content")
    before(monkeypatch, Claim, "move", path.unlink)
    assert set(made.replace("file").values()) != {""}
    assert made.names() == set()
    assert_trash_known(made)


def test_directory_moved_meanwhile_takes_its_placeholder_along(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.write("here/file", b"content")
    before(monkeypatch, Claim, "move", lambda: os.rename(made.at("here"), made.at("there")))
    made.replace("here/file")
    names = made.names()
    assert len(names) == 1
    if names == {b"there/file.f"}:
        made.hydrate("there/file.f")
    assert made.at("there/file").read_bytes() == b"content"


def test_foreign_placeholder_name_is_never_touched(made: World) -> None:
    made.write("solver", b"content")
    made.write("solver.f", b"      PROGRAM MAIN")
    assert made.replace("solver") == {b"solver": "name.f is taken"}
    assert made.at("solver.f").read_bytes() == b"      PROGRAM MAIN"
    assert made.at("solver").read_bytes() == b"content"


def test_foreign_placeholder_that_appears_meanwhile_is_never_touched(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.write("solver", b"content")
    before(monkeypatch, made.ingest, "protect", lambda: made.write("solver.f", b"FORTRAN") and None)
    assert made.replace("solver") == {b"solver": "name.f is taken"}
    assert made.at("solver.f").read_bytes() == b"FORTRAN"


# -- next versions ---------------------------------------------------------------------------------


def next_version(made: World) -> bytes:
    """`file` beside the placeholder of its earlier version, which is returned."""
    made.write("file", b"old content")
    made.replace("file")
    made.empty_trash()
    made.write("file", b"new content")
    return made.at("file.f").read_bytes()


def test_next_version_takes_the_place_of_the_old_placeholder(made: World) -> None:
    old = next_version(made)
    assert made.replace("file") == {b"file": ""}
    assert made.names() == {b"file.f"}
    assert made.at("file.f").read_bytes() != old
    assert made.empty_trash() == []
    made.hydrate("file.f")
    assert made.at("file").read_bytes() == b"new content"
    (past,) = made.catalog.view(lambda db: files.history(db, made.row, b"file"))
    assert past.manifest == old


def test_next_version_that_is_opened_keeps_the_old_placeholder(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = next_version(made)
    path = made.at("file")
    before(monkeypatch, Claim, "move", lambda: Writer(path, b"CONTENT").join())
    assert set(made.replace("file").values()) != {""}
    assert path.read_bytes() == b"CONTENTtent"
    assert made.at("file.f").read_bytes() == old
    assert made.names() == {b"file", b"file.f"}
    assert_trash_known(made)
    assert made.empty_trash() == []


def test_placeholder_that_was_edited_meanwhile_is_not_taken_away(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_version(made)
    before(
        monkeypatch,
        replacing,
        "rename_exchange",
        lambda: made.at("file.f").write_bytes(b"mine now") and None,
    )
    assert made.replace("file") == {b"file": "its .f changed meanwhile"}
    assert made.at("file.f").read_bytes() == b"mine now"
    assert made.at("file").read_bytes() == b"new content"
    assert_trash_known(made)


def test_batch_that_fails_before_its_commit_leaves_originals_alone(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = next_version(made)
    made.write("first", b"first")

    def broken(*_: object) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(replacing, "_reads_back", broken)
    with pytest.raises(OSError, match="Input/output"):
        made.replace("file", "first")
    monkeypatch.undo()
    assert made.names() == {b"file", b"file.f", b"first"}
    assert made.at("file.f").read_bytes() == old
    assert made.replace("file", "first") == {b"file": "", b"first": ""}


# -- trash -----------------------------------------------------------------------------------------


def test_original_that_was_changed_in_trash_comes_back(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    (lying,) = made.path.glob(".p2pstore/trash/*/file")
    lying.write_bytes(b"CONTENT")
    assert made.empty_trash() == []
    assert made.at("file").read_bytes() == b"CONTENT"
    assert made.at("file.f").exists()


def test_original_that_is_open_in_trash_waits(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    (lying,) = made.path.glob(".p2pstore/trash/*/file")
    with open(lying, "r+b"):
        assert len(made.empty_trash()) == 1
    assert made.empty_trash() == []
    assert not lying.exists()


def test_original_whose_bundle_is_away_waits(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    for bundle_id in made.disk.list():
        made.disk.to_trash(bundle_id)
    assert len(made.empty_trash()) == 1
    for bundle_id in made.disk.trash():
        made.disk.from_trash(bundle_id)
    assert made.empty_trash() == []


def test_original_whose_bundle_is_damaged_comes_back(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    for bundle_id in made.disk.list():
        made.disk.forget(bundle_id)
        path = made.disk.path(bundle_id)
        os.truncate(path, path.stat().st_size - 1)
    assert made.empty_trash() == []
    assert made.at("file").read_bytes() == b"content"


def test_original_that_the_catalog_forgot_comes_back(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    row = made.file_row("file")
    made.catalog.write(lambda db: files.forget(db, [row.id])).result()
    made.at("file.f").unlink()
    assert made.empty_trash() == []
    assert made.at("file").read_bytes() == b"content"


def test_original_without_references_comes_back(made: World) -> None:
    """A row that names no bundle proves nothing."""
    made.write("file", b"content")
    made.replace("file")
    row = made.file_row("file")
    made.catalog.write(lambda db: blocks.set_file_bundles(db, [(row.id, [])])).result()
    assert made.empty_trash() == []
    assert made.at("file").read_bytes() == b"content"


def test_original_goes_although_its_placeholder_was_moved(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    os.rename(made.at("file.f"), made.at("moved.f"))
    row = made.file_row("file")
    made.catalog.write(lambda db: files.rename(db, row.id, b"moved")).result()
    assert made.empty_trash() == []
    assert made.names() == {b"moved.f"}


def test_original_goes_although_its_placeholder_was_deleted(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    made.at("file.f").unlink()
    row = made.file_row("file")
    made.catalog.write(lambda db: files.retire(db, row.id, row.version, 1)).result()
    assert made.empty_trash() == []
    assert made.names() == set()
    assert_journal_closed(made)


def test_what_has_no_place_any_more_comes_to_the_root(made: World) -> None:
    made.write("here/file", b"content")
    made.replace("here/file")
    made.at("here/file.f").unlink()
    made.at("here").rmdir()
    made.write("here", b"a file now")
    row = made.file_row("here/file")
    made.catalog.write(lambda db: files.forget(db, [row.id])).result()
    assert made.empty_trash() == []
    assert made.at("file").read_bytes() == b"content"
    assert made.at("here").read_bytes() == b"a file now"


# -- hydrating -------------------------------------------------------------------------------------


def test_target_with_the_same_content_is_the_original(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    made.write("file", b"content")
    (brought,) = made.hydrate("file.f")
    assert (brought.error, brought.path) == (None, b"file")
    assert made.names() == {b"file"}
    assert made.file_row("file").state == "protected"


def test_newer_version_is_what_is_opened(made: World) -> None:
    old = next_version(made)
    (brought,) = made.hydrate("file.f")
    assert (brought.error, brought.path) == (None, b"file")
    assert made.at("file").read_bytes() == b"new content"
    assert made.at("file.f").read_bytes() == old


def test_target_of_somebody_else_is_never_overwritten(made: World) -> None:
    made.write("file.txt", b"content")
    made.replace("file.txt")
    os.rename(made.at("file.txt.f"), made.at("other.txt.f"))
    made.write("other.txt", b"somebody's")
    (brought,) = made.hydrate("other.txt.f")
    assert (brought.error, brought.path) == (None, b"other.hydrated.txt")
    assert made.at("other.txt").read_bytes() == b"somebody's"
    assert made.at("other.hydrated.txt").read_bytes() == b"content"


def test_file_saved_over_the_placeholder_meanwhile_is_kept(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.write("solver", b"content")
    made.replace("solver")
    made.empty_trash()
    before(
        monkeypatch,
        arriving,
        "to_trash",
        lambda: made.at("solver.f").write_bytes(b"      PROGRAM MAIN") and None,
    )
    made.hydrate("solver.f")
    assert made.at("solver").read_bytes() == b"content"
    assert made.at("solver.f").read_bytes() == b"      PROGRAM MAIN"
    assert made.empty_trash() == []
    assert made.at("solver.f").read_bytes() == b"      PROGRAM MAIN"


def test_no_file_of_the_users_is_unlinked_as_a_placeholder(made: World) -> None:
    """The journal says that a placeholder lies there; what lies there is none."""
    made.write("file", b"content")
    made.replace("file")
    made.hydrate("file.f")
    (lying,) = made.path.glob(".p2pstore/trash/*/file.f")
    stat = lying.stat()
    lying.write_bytes(b"x" * stat.st_size)
    os.utime(lying, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    made.empty_trash()
    assert made.at("file.f").read_bytes() == b"x" * stat.st_size


def test_one_file_that_cannot_land_does_not_stop_the_others(made: World) -> None:
    for name in ("one", "below/two", "three"):
        made.write(name, name.encode())
    made.replace("one", "below/two", "three")
    raw = made.at("below/two.f").read_bytes()
    made.at("below/two.f").unlink()
    made.at("below").rmdir()
    made.write("below", b"a file now")
    made.write("two.f", raw)
    results = made.hydrate("one.f", "below/two.f", "two.f", "three.f")
    assert [b.path for b in results if b.error is None] == [b"one", b"two", b"three"]
    assert_journal_closed(made)


def test_damaged_placeholder_is_kept_beside_and_the_file_comes_back(made: World) -> None:
    made.write("file", b"content")
    made.replace("file")
    raw = bytearray(made.at("file.f").read_bytes())
    raw[-1] ^= 1
    made.at("file.f").write_bytes(bytes(raw))
    (brought,) = made.hydrate("file.f")
    assert brought.error is None
    assert made.at("file").read_bytes() == b"content"
    (kept,) = made.path.glob("file.f.damaged-*")
    assert kept.read_bytes() == bytes(raw)


def test_damaged_placeholder_that_goes_meanwhile_is_an_error_of_its_own(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor that saves into it, for one; the node and the other files go on."""
    made.write("file", b"content")
    made.replace("file")
    made.at("file.f").write_bytes(made.at("file.f").read_bytes()[:-1] + b"?")
    exchange = replacing.rename_exchange

    def too_late(*names: object) -> None:
        made.at("file.f").unlink()
        exchange(*names)

    monkeypatch.setattr(replacing, "rename_exchange", too_late)
    (brought,) = made.hydrate("file.f")
    assert isinstance(brought.error, Unavailable)
    assert not list(made.path.glob("file*"))


def test_placeholder_under_the_originals_name_gives_way_to_it(made: World) -> None:
    made.write("photo.jpg", b"content")
    made.replace("photo.jpg")
    os.rename(made.at("photo.jpg.f"), made.at("photo.jpg"))
    (brought,) = made.hydrate("photo.jpg")
    assert (brought.error, brought.path) == (None, b"photo.jpg")
    assert made.at("photo.jpg").read_bytes() == b"content"
    assert made.names() == {b"photo.jpg"}
    assert_trash_known(made)


def test_file_saved_over_such_a_placeholder_meanwhile_is_kept(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.write("photo.jpg", b"content")
    made.replace("photo.jpg")
    os.rename(made.at("photo.jpg.f"), made.at("photo.jpg"))
    before(
        monkeypatch,
        arriving,
        "rename_exchange",
        lambda: made.at("photo.jpg").write_bytes(b"another photo") and None,
    )
    (brought,) = made.hydrate("photo.jpg")
    assert brought.error is not None
    assert made.at("photo.jpg").read_bytes() == b"another photo"
    assert list(made.path.glob(".p2pstore/tmp/*")) == []
