"""A `.f` is opened by any program; editors save over it; scanners read hundreds of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import (
    Node,
    contents_of,
    files_below,
    names,
    some_bytes,
    until,
    write,
)

WITHIN_S = 2.0
BUSY_S = 10.0  # more, when others write to the same disk: all of it is synced first


@pytest.fixture
def quiet(new_node: NewNode) -> Node:
    """A node of its own: opens of other tests would count for the scanner rule."""
    node = new_node()
    node.init()
    return node.start()


@pytest.fixture
def vault(quiet: Node, tmp_path: Path) -> Path:
    folder = tmp_path / "Vault"
    write(folder, [("a.txt", b"alpha"), ("b.bin", some_bytes(400_000)), ("sub/c.txt", b"gamma")])
    quiet.add(folder)
    return folder


@pytest.fixture
def rested(vault: Path) -> Path:
    """Opens of a fresh placeholder pass for our own read-back for two seconds."""
    newest = max(path.lstat().st_ctime for path in vault.rglob("*.f"))
    until(lambda: time.time() > newest + 2.2, "rest")
    return vault


def come_back(*paths: Path) -> float:
    """All of these are originals; after how many seconds."""
    began = time.monotonic()
    until(lambda: all(path.exists() for path in paths), f"{paths}", WITHIN_S + BUSY_S)
    return time.monotonic() - began


# -- by somebody's program ---


def test_reading_a_placeholder_brings_the_original_back(quiet: Node, rested: Path) -> None:
    with open(rested / "b.bin.f", "rb") as file:
        file.read()
    come_back(rested / "b.bin")
    assert (rested / "b.bin").read_bytes() == some_bytes(400_000)
    until(lambda: not (rested / "b.bin.f").exists(), "its placeholder gone")


def test_an_original_is_back_within_the_promised_time(quiet: Node, rested: Path) -> None:
    took = []
    for name in ("a.txt", "b.bin", "sub/c.txt"):
        (rested / f"{name}.f").read_bytes()
        took.append(come_back(rested / name))
    assert min(took) < WITHIN_S, took  # one of them: a busy disk is not the program's doing


def test_cat_of_two_placeholders_brings_both_back(quiet: Node, rested: Path) -> None:
    subprocess.run(["cat", rested / "a.txt.f", rested / "sub" / "c.txt.f"], check=True,
                   capture_output=True)  # fmt: skip
    come_back(rested / "a.txt", rested / "sub" / "c.txt")
    assert (rested / "sub" / "c.txt").read_bytes() == b"gamma"


def test_listing_stat_and_moving_bring_nothing_back(quiet: Node, vault: Path) -> None:
    subprocess.run(["ls", "-laR", vault], check=True, capture_output=True)
    subprocess.run(["du", "-a", vault], check=True, capture_output=True)
    subprocess.run(["stat", vault / "a.txt.f"], check=True, capture_output=True)
    subprocess.run(["mv", vault / "a.txt.f", vault / "z.txt.f"], check=True)
    until(lambda: "z.txt" in quiet.ok("ls", vault).out, "the move is seen")
    assert names(vault) == ["b.bin.f", "sub", "z.txt.f"]


def test_a_moved_placeholder_takes_its_file_along(quiet: Node, vault: Path) -> None:
    os.rename(vault / "a.txt.f", vault / "sub" / "renamed.txt.f")
    until(lambda: "renamed.txt" in quiet.ok("ls", vault / "sub").out, "the move is seen")
    quiet.ok("hydrate", vault / "sub" / "renamed.txt.f")
    assert (vault / "sub" / "renamed.txt").read_bytes() == b"alpha"


def test_a_copied_placeholder_is_valid_too(quiet: Node, vault: Path) -> None:
    shutil.copy(vault / "a.txt.f", vault / "copy.txt.f")
    until(lambda: "copy.txt" in quiet.ok("ls", vault).out, "the copy is seen")
    quiet.ok("hydrate", vault / "copy.txt.f")
    assert (vault / "copy.txt").read_bytes() == b"alpha"
    assert quiet.ok("cat", vault / "a.txt").raw == b"alpha"


def test_a_placeholder_beyond_any_watched_folder_opens_beside_it(
    quiet: Node, vault: Path, tmp_path: Path
) -> None:
    shutil.copy(vault / "a.txt.f", tmp_path / "elsewhere.txt.f")
    quiet.ok("open", tmp_path / "elsewhere.txt.f", "--print")
    assert (tmp_path / "elsewhere.txt").read_bytes() == b"alpha"


def test_a_placeholder_renamed_without_f_is_never_taken_as_content(
    quiet: Node, vault: Path
) -> None:
    os.rename(vault / "a.txt.f", vault / "photo.jpg")
    write(vault, [("later.txt", b"later")])
    quiet.wait_replaced(vault / "later.txt")
    assert (vault / "photo.jpg").exists()
    assert not (vault / "photo.jpg.f").exists()
    quiet.ok("hydrate", vault / "photo.jpg")
    assert (vault / "photo.jpg").read_bytes() == b"alpha"


def test_hydrate_never_overwrites_another_file(quiet: Node, vault: Path) -> None:
    (vault / "a.txt").write_bytes(b"mine, and newer")
    quiet.type("hydrate", vault / "a.txt.f")
    contents = contents_of(vault.iterdir())
    assert b"mine, and newer" in contents


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
        lambda raw: b"hello",
    ],
    ids=["cut", "flipped", "overwritten"],
)
def test_a_damaged_placeholder_is_kept_and_the_file_comes_from_the_catalog(
    quiet: Node, vault: Path, damage: Callable[[bytes], bytes]
) -> None:
    with open(vault / "a.txt.f", "r+b") as file:
        changed = damage(file.read())
        file.seek(0)
        file.truncate()
        file.write(changed)
    done = quiet.type("hydrate", vault / "a.txt.f")
    contents = contents_of(vault.iterdir())
    if done.code == 0:
        assert b"alpha" in contents
    # Whatever was made of it, what the owner (or the disk) wrote there is not lost.
    assert changed in contents
    assert quiet.ok("cat", vault / "a.txt").raw == b"alpha"


# -- scanners ---


@pytest.fixture(scope="module")
def scanned(nodes: NewNode, tmp_path_factory: pytest.TempPathFactory) -> tuple[Node, Path]:
    """A node of its own with 50 placeholders."""
    node = nodes("scanned")
    node.init()
    node.start()
    folder = tmp_path_factory.mktemp("scan") / "Vault"
    write(folder, [(f"{n:02}.txt", b"number %d" % n) for n in range(50)])
    node.add(folder)
    return node, folder


@pytest.mark.parametrize(
    "command",
    [
        ["tar", "-cf", "{out}", "-C", "{dir}", "."],
        ["grep", "-r", "number", "{dir}"],
        ["gio", "list", "-a", "standard::content-type", "{dir}"],
        ["sh", "-c", "file {dir}/*.f"],
        ["sh", "-c", "cat {dir}/*.f"],
        ["cp", "-a", "{dir}", "{copy}"],
    ],
    ids=["tar", "grep", "gio", "file", "cat", "cp"],
)
def test_a_scanner_brings_nothing_back(
    scanned: tuple[Node, Path], tmp_path: Path, command: list[str]
) -> None:
    node, folder = scanned
    program = command[-1].split()[0] if command[0] == "sh" else command[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    places = {"out": tmp_path / "out.tar", "dir": folder, "copy": tmp_path / "copy"}
    words = [word.format(**places) for word in command]
    subprocess.run(words, check=False, capture_output=True, timeout=60)
    # Longer than an open waits to be judged: then the node protects what is new, and has judged.
    sentinel = folder / f"after-{tmp_path.name}"
    sentinel.write_bytes(b"later")
    node.wait_replaced(sentinel)
    sentinel.with_name("again-" + sentinel.name).write_bytes(b"later still")
    node.wait_replaced(sentinel.with_name("again-" + sentinel.name))
    assert all(name.endswith(".f") for name in names(folder))


def test_status_counts_the_opens_of_scanners(scanned: tuple[Node, Path]) -> None:
    node, folder = scanned
    subprocess.run(["grep", "-r", "number", folder], check=False, capture_output=True)
    until(lambda: "opens ignored" in node.ok("status").out, "the count")


def test_gio_info_on_one_placeholder(scanned: tuple[Node, Path]) -> None:
    _, folder = scanned
    if shutil.which("gio") is None:
        pytest.skip("gio is not installed")
    done = subprocess.run(["gio", "info", folder / "07.txt.f"], capture_output=True, check=False)
    assert done.returncode == 0


# -- editors ---


def save_over(path: Path, content: bytes) -> None:
    """Open, truncate, write: nano, and shells by `>`."""
    path.write_bytes(content)


def save_by_rename(path: Path, content: bytes) -> None:
    """A temporary beside it, renamed over it: Vim with backupcopy=no, gedit, VS Code."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    os.rename(temporary, path)


def save_with_backup(path: Path, content: bytes) -> None:
    """The old one renamed away, the new one created: Emacs, Vim with backup."""
    if path.exists():
        os.rename(path, path.with_name(f"{path.name}~"))
    path.write_bytes(content)


SAVES = pytest.mark.parametrize("save", [save_over, save_by_rename, save_with_backup])


@SAVES
def test_a_new_file_beside_its_placeholder_is_its_next_version(
    node: Node, folder: Path, save: Callable[[Path, bytes], None]
) -> None:
    node.ok("add-folder", folder, "--keep", "0")
    path = folder / "text.txt"
    path.write_bytes(b"first version")
    node.wait_replaced(path)
    save(path, b"second version")
    node.wait_replaced(path)
    assert node.ok("cat", path).raw == b"second version"


@SAVES
def test_an_edit_of_a_hydrated_file_is_protected(
    node: Node, folder: Path, save: Callable[[Path, bytes], None]
) -> None:
    path = folder / "text.txt"
    path.write_bytes(b"first version")
    node.wait_replaced(path)
    node.ok("hydrate", path)
    save(path, b"second version")
    line = until(
        lambda: (
            line
            if (line := node.state(path))["state"] == "protected" and line["size"] == 14
            else {}
        ),
        "the edit is protected",
        tell=lambda: node.state(path),
    )
    assert line["reason"] == "in work"
    assert path.read_bytes() == b"second version"
    node.ok("dehydrate", path)
    assert node.ok("cat", path).raw == b"second version"


@SAVES
def test_saving_into_the_placeholder_itself_loses_neither(
    node: Node, folder: Path, save: Callable[[Path, bytes], None]
) -> None:
    """An editor that opened `text.txt.f` writes its buffer there."""
    path = folder / "text.txt"
    path.write_bytes(b"first version")
    node.wait_replaced(path)
    save(folder / "text.txt.f", b"typed into the placeholder")
    assert node.ok("cat", path).raw in (b"first version", b"typed into the placeholder")

    def kept() -> bool:
        found = contents_of(p for p in files_below(folder) if p.suffix != ".f")
        return b"typed into the placeholder" in found or any(
            node.type("cat", folder / name).raw == b"typed into the placeholder"
            for name in names(folder)
        )

    until(kept, "what was typed", tell=lambda: names(folder))


def test_a_file_with_an_editors_swap_file_stays(node: Node, folder: Path) -> None:
    (folder / ".text.txt.swp").write_bytes(b"vim")
    (folder / "text.txt").write_bytes(b"being edited")
    line = node.wait_state(folder / "text.txt", "protected")
    assert "editor" in line["reason"]
    assert (folder / "text.txt").exists()


def test_appending_through_an_open_placeholders_file_survives(node: Node, folder: Path) -> None:
    path = folder / "log.txt"
    path.write_bytes(b"one\n")
    node.wait_replaced(path)
    node.ok("hydrate", path)
    for n in range(5):
        with open(path, "ab") as file:
            file.write(b"%d\n" % n)
    node.ok("dehydrate", path)
    assert node.ok("cat", path).raw == b"one\n0\n1\n2\n3\n4\n"
