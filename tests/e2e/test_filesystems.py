"""Folders on other file systems, on disks that come and go, and where nothing can be written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, names, some_bytes, until, write
from tests.faults.loop import Loop, run, why_not
from tests.faults.mounts import KINDS, MIB, mounted, read_only

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

FILES = [
    ("small.txt", b"small"),
    ("sub/deep.bin", some_bytes(300_000)),
    ("empty", b""),
    ("solver.f", b"      PROGRAM MAIN"),
]


# -- other file systems ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[kind for kind in KINDS if kind != "fuse"])
def vault(
    node: Node, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder there, with files, added."""
    with mounted(request.param, tmp_path_factory.mktemp("mounts")) as place:
        folder = place / "Vault"
        folder.mkdir()
        write(folder, FILES)
        with open(folder / "sparse", "wb") as file:
            file.write(b"a" * 4096)
            file.seek(2 * MIB)
            file.write(b"b" * 4096)
        os.setxattr(folder / "small.txt", "user.note", b"mine")
        node.add(folder)
        yield folder
        node.ok("remove-folder", folder, "--leave-placeholders")


def test_everything_is_replaced_there(node: Node, vault: Path) -> None:
    assert names(vault) == ["empty.f", "small.txt.f", "solver.f.f", "sparse.f", "sub"]
    assert names(vault / "sub") == ["deep.bin.f"]


def test_reading_a_placeholder_there_brings_the_original_back(node: Node, vault: Path) -> None:
    (vault / "small.txt.f").read_bytes()
    until(lambda: (vault / "small.txt").exists(), "the original", tell=lambda: node.log)
    until(lambda: not (vault / "small.txt.f").exists(), "its placeholder gone")
    assert (vault / "small.txt").read_bytes() == b"small"
    assert os.getxattr(vault / "small.txt", "user.note") == b"mine"


def test_the_next_version_takes_the_place_of_the_placeholder_there(node: Node, vault: Path) -> None:
    (vault / "empty").write_bytes(b"not empty any more")
    node.wait_state(vault / "empty", "protected")
    node.ok("dehydrate", vault / "empty")
    node.wait_replaced(vault / "empty")
    assert node.ok("cat", vault / "empty.f").raw == b"not empty any more"


def test_a_deleted_placeholder_comes_back_there(node: Node, vault: Path) -> None:
    (vault / "solver.f.f").unlink()
    until(lambda: node.type("undelete", vault / "solver.f").code == 0, "undeleted")
    assert node.ok("cat", vault / "solver.f.f").raw == b"      PROGRAM MAIN"


def test_a_misnamed_placeholder_changes_places_with_its_original_there(
    node: Node, vault: Path
) -> None:
    os.rename(vault / "sub" / "deep.bin.f", vault / "sub" / "photo")
    node.wait_state(vault / "sub" / "photo", "conflict")
    node.ok("hydrate", vault / "sub" / "photo")
    assert (vault / "sub" / "photo").read_bytes() == dict(FILES)["sub/deep.bin"]


def test_holes_stay_holes_there(node: Node, vault: Path) -> None:
    node.ok("hydrate", vault / "sparse")
    content = (vault / "sparse").read_bytes()
    assert content == b"a" * 4096 + bytes(2 * MIB - 4096) + b"b" * 4096
    assert os.stat(vault / "sparse").st_blocks * 512 < MIB


def test_the_trash_there_is_emptied(node: Node, vault: Path) -> None:
    trash = vault / ".p2pstore" / "trash"
    until(lambda: not os.listdir(trash), "trash empty", tell=lambda: os.listdir(trash))
    assert os.listdir(vault / ".p2pstore" / "tmp") == []


# -- where other programs write unseen ------------------------------------------------------------


@pytest.fixture(scope="module")
def foreign(node: Node, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a FUSE mount."""
    with mounted("fuse", tmp_path_factory.mktemp("mounts")) as place:
        folder = place / "Vault"
        folder.mkdir()
        write(folder, FILES)
        node.add(folder)
        yield folder
        node.ok("remove-folder", folder, "--leave-placeholders")


def test_where_others_write_unseen_files_are_protected_and_stay(node: Node, foreign: Path) -> None:
    assert names(foreign) == ["empty", "small.txt", "solver.f", "sub"]
    said = node.ok("status", foreign / "small.txt").out
    assert "protected" in said
    assert "it lies on a mount of another program (fuse" in said
    assert node.ok("cat", foreign / "small.txt").raw == b"small"


def test_the_preview_says_so_before(node: Node, foreign: Path) -> None:
    other = foreign.parent / "Other"
    write(other, FILES)
    done = node.ok("add-folder", other, "--dry-run")
    assert "become .f" not in done.out
    assert "it lies on a mount of another program" in done.out


def test_a_placeholder_that_came_there_opens_there(
    node: Node, foreign: Path, tmp_path: Path
) -> None:
    """Without unnamed files the original is made in a directory of ours and moved into place."""
    home = tmp_path / "Vault"
    write(home, [("film", some_bytes(3 * MIB, 7)), ("note", b"a note")])
    node.add(home)
    for name in ("film.f", "note.f"):
        shutil.copy(home / name, foreign / name)
    node.ok("hydrate", foreign / "film.f", foreign / "note.f")
    assert (foreign / "film").read_bytes() == some_bytes(3 * MIB, 7)
    assert (foreign / "note").read_bytes() == b"a note"
    assert os.listdir(foreign / ".p2pstore" / "tmp") == []


def test_a_placeholder_deleted_there_comes_back(node: Node, foreign: Path, tmp_path: Path) -> None:
    home = tmp_path / "Vault"
    write(home, [("gone", b"soon")])
    node.add(home)
    shutil.copy(home / "gone.f", foreign / "gone.f")
    node.wait_state(foreign / "gone", "placeholder")
    (foreign / "gone.f").unlink()
    until(lambda: node.type("undelete", foreign / "gone").code == 0, "undeleted")
    assert node.ok("cat", foreign / "gone.f").raw == b"soon"


# -- read-only ------------------------------------------------------------------------------------


def test_a_read_only_folder_is_refused_with_the_reason(node: Node, tmp_path: Path) -> None:
    folder = tmp_path / "Vault"
    write(folder, FILES)
    with read_only(folder):
        done = node.type("add-folder", folder, "--yes")
    assert done.code == 2
    assert is_one_sentence(done)
    assert "cannot be written (Read-only file system)" in done.err


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Loop]:
    """A small disk, plugged in."""
    loop = Loop(tmp_path / "image", tmp_path / "disk", size=32 * MIB)
    loop.mount()
    yield loop
    loop.close()


def test_a_disk_that_becomes_read_only_loses_nothing_and_goes_on_when_it_is_writable(
    new_node: NewNode, disk: Loop
) -> None:
    node = new_node(trash_hold="1h")
    node.init()
    node.start()
    folder = disk.at / "Vault"
    write(folder, [("before", b"before"), ("other", b"other")])
    node.add(folder)
    node.ok("add-folder", folder, "--settle", "10m")
    (folder / "late").write_bytes(b"late")  # still coming to rest
    run("mount", "-o", "remount,ro", str(disk.at))
    node.ok("add-folder", folder, "--settle", "300ms")
    stays = ("protected", "the folder cannot be written")
    until(
        lambda: (line := node.state(folder / "late")) and (line["state"], line["reason"]) == stays,
        "protected only",
        tell=lambda: node.state(folder / "late"),
    )
    assert "cannot be written" in node.ok("status").out
    # Bringing back fails in one sentence, reading does not.
    done = node.type("hydrate", folder / "before")
    assert done.code == 5
    assert "Read-only file system" in done.err
    assert node.ok("cat", folder / "before.f").raw == b"before"
    # The same after a restart.
    node.restart()
    assert node.ok("cat", folder / "before.f").raw == b"before"
    until(lambda: node.folder(folder)["protected"] == 1, "looked at again")
    run("mount", "-o", "remount,rw", str(disk.at))
    node.wait_replaced(folder / "late")
    node.ok("hydrate", folder)
    assert {name: (folder / name).read_bytes() for name in names(folder)} == {
        "before": b"before",
        "other": b"other",
        "late": b"late",
    }


# -- a disk that comes and goes -------------------------------------------------------------------


def test_an_unplugged_disk_is_waited_for_and_another_one_is_not_taken_for_it(
    new_node: NewNode, disk: Loop, tmp_path: Path
) -> None:
    node = new_node()
    node.init()
    node.start()
    folder = disk.at / "Vault"
    write(folder, FILES)
    node.add(folder)
    node.wait_trash_empty()
    # Nothing is kept open on a disk at which nothing happens: its owner can take it out.
    until(disk.can_umount, "unmounted")
    until(lambda: node.folder(folder)["missing_since"], "noticed")
    assert node.folder(folder)["placeholders"] == len(FILES)
    assert "not plugged in since" in node.ok("status").out
    # Another disk at its place, with a folder of the same name: nothing of it is touched.
    other = Loop(tmp_path / "other", disk.at, size=32 * MIB)
    other.mount()
    try:
        write(folder, [("small.txt", b"of another disk")])
        node.restart()
        assert node.folder(folder)["missing_since"]
        assert names(folder) == ["small.txt"]
        assert not (folder / ".p2pstore").exists()
        assert node.type("hydrate", folder).code == 5
    finally:
        other.close()
    disk.mount()
    node.wait_rows(folder, missing_since=None, placeholders=len(FILES))
    node.ok("hydrate", folder)
    assert {name: (folder / name).read_bytes() for name, _ in FILES} == dict(FILES)
