"""`leave`: every file is back before anybody says that HOME may be deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, join, names, some_bytes, until, write

FILES = {"letter.txt": b"Dear reader, " * 500, "sub/film.bin": some_bytes(900_000, 8)}


@pytest.fixture
def vault(new_node: NewNode, tmp_path: Path) -> tuple[Node, Path]:
    node = new_node()
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    write(folder, FILES.items())
    node.add(folder)
    return node, folder


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def has_ended(node: Node) -> bool:
    assert node.process is not None
    return node.process.poll() is not None


def test_leave_brings_everything_back_and_the_home_may_go(vault: tuple[Node, Path]) -> None:
    node, folder = vault
    done = node.ok("leave", "--yes")
    assert "may be deleted now" in done.out
    assert contents(folder) == FILES
    assert names(folder) == ["letter.txt", "sub"]
    assert names(folder / "sub") == ["film.bin"]
    until(lambda: has_ended(node), "the node ends by itself")
    shutil.rmtree(node.home)
    assert contents(folder) == FILES


def test_leave_to_a_directory_exports_everything_there(
    vault: tuple[Node, Path], tmp_path: Path
) -> None:
    node, _ = vault
    out = tmp_path / "everything"
    node.ok("leave", "--yes", "--to", out)
    found = {path.name: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == {name.rpartition("/")[2]: content for name, content in FILES.items()}


def test_leave_does_not_finish_while_bytes_are_missing(vault: tuple[Node, Path]) -> None:
    node, folder = vault
    node.wait_trash_empty()
    largest = max(
        (path for path in (node.home / "bundles").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    aside = largest.with_name("aside")
    largest.rename(aside)
    done = node.type("leave", "--yes")
    assert done.code != 0
    assert "may be deleted" not in done.out
    assert node.home.exists()
    aside.rename(largest)
    assert "film.bin.f" in names(folder / "sub")


@pytest.fixture
def trio(vault: tuple[Node, Path], new_node: NewNode) -> tuple[Node, Node, Path]:
    """The owner, one of two holders, and the folder, freed."""
    node, folder = vault
    nas, desk = new_node("nas"), new_node("desk")
    join(node, nas)
    join(node, desk)
    until(lambda: node.type("free-up", folder).code == 0, "free-up", 40.0)
    return node, nas, folder


def test_leave_fetches_what_was_freed(trio: tuple[Node, Node, Path]) -> None:
    node, _, folder = trio
    node.ok("leave", "--yes")
    assert contents(folder) == FILES


def test_a_holder_does_not_leave_while_others_would_lose_a_copy(
    trio: tuple[Node, Node, Path],
) -> None:
    node, nas, folder = trio
    done = nas.type("leave", "--yes")
    assert done.code == 5
    assert node.name in done.err
    assert "may be deleted" not in done.out
    node.ok("hydrate", folder)
    assert contents(folder) == FILES
