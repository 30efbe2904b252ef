"""`leave`: every file is back before anybody says that HOME may be deleted."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from p2pstore.node import confirm_words
from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, join, names, some_bytes, until, write

FILES = {"letter.txt": b"Dear reader, " * 500, "sub/film.bin": some_bytes(900_000, 8)}


@pytest.fixture
def words() -> list[str]:
    """Those of the vault's group, for whoever is asked for them."""
    return []


@pytest.fixture
def vault(new_node: NewNode, tmp_path: Path, words: list[str]) -> tuple[Node, Path]:
    node = new_node()
    words.append(node.init())
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
    for command in ("run", "init"):
        refused = node.type(command)
        assert (refused.code, "This node has left" in refused.err) == (2, True)
    assert not (node.home / "DO-NOT-DELETE.txt").exists()
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


def copied(node: Node, folder: Path, copies: int) -> None:
    """Until every file has that many proven copies on others."""
    files = [folder / name for name in FILES]
    until(
        lambda: all(node.state(path)["copies"] >= copies for path in files),
        f"{copies} copies",
        tell=lambda: [node.state(path) for path in files],
    )


def is_leaving(node: Node) -> bool:
    return any("node is leaving" in warning["text"] for warning in node.status()["warnings"])


def held_bytes(node: Node) -> int:
    return int(node.status()["space"]["held_for_others_bytes"])


def test_a_holder_does_not_leave_while_others_would_lose_a_copy(
    vault: tuple[Node, Path], new_node: NewNode, words: list[str]
) -> None:
    node, folder = vault
    nas = new_node("nas")
    join(node, nas)
    confirm_words(nas.home, words[0])
    copied(node, folder, 1)
    done = nas.type("leave", "--yes")
    assert done.code == 5
    assert f"of the files of {node.name} have a copy here" in done.err
    assert "There is no other device" in done.err
    assert "may be deleted" not in done.out
    assert held_bytes(nas) > 0
    copied(node, folder, 1)  # it stays a holder like before


def test_a_holder_leaves_when_others_have_what_it_had(
    vault: tuple[Node, Path], new_node: NewNode
) -> None:
    node, folder = vault
    nas, desk = new_node("nas"), new_node("desk")
    join(node, nas)
    copied(node, folder, 1)
    held = held_bytes(nas)
    join(node, desk)
    done = nas.ok("leave", "--yes")
    assert "may be deleted now" in done.out
    until(lambda: has_ended(nas), "nas ends by itself")
    assert held_bytes(desk) >= held
    copied(node, folder, 1)
    assert {node.state(folder / name)["copies"] for name in FILES} == {1}
    shutil.rmtree(nas.home)
    node.ok("hydrate", folder)
    assert contents(folder) == FILES


def test_what_was_freed_is_placed_elsewhere_when_a_holder_leaves(
    trio: tuple[Node, Node, Path], new_node: NewNode
) -> None:
    """Nobody but the two holders has the bytes; when one has left, the other and the owner do."""
    node, nas, folder = trio
    phone = new_node("phone")
    join(node, phone)
    nas.ok("leave", "--yes")
    until(lambda: has_ended(nas), "nas ends by itself")
    shutil.rmtree(nas.home)
    copied(node, folder, 2)
    assert held_bytes(phone) > 0
    node.ok("hydrate", folder)
    assert contents(folder) == FILES


def test_a_leave_that_was_killed_goes_on_and_ends(
    vault: tuple[Node, Path], new_node: NewNode
) -> None:
    node, folder = vault
    nas, desk = new_node("nas"), new_node("desk")
    join(node, nas)
    join(node, desk)
    copied(node, folder, 2)
    until(lambda: node.type("free-up", folder).code == 0, "free-up", 40.0)
    desk.stop()  # from now on nothing can move
    asked = nas.spawn("leave", "--yes")
    until(lambda: is_leaving(nas), "nas is leaving")
    nas.kill()
    asked.communicate()
    nas.start()
    assert is_leaving(nas)
    desk.start()
    node.wait_connected(nas, desk)
    nas.ok("leave", "--yes")
    until(lambda: has_ended(nas), "nas ends by itself")
    shutil.rmtree(nas.home)
    copied(node, folder, 1)
    node.ok("hydrate", folder)
    assert contents(folder) == FILES


def test_ctrl_c_leaves_it_going_on_and_cancel_ends_it(
    vault: tuple[Node, Path], new_node: NewNode, words: list[str]
) -> None:
    node, folder = vault
    nas = new_node("nas")
    join(node, nas)
    confirm_words(nas.home, words[0])
    copied(node, folder, 1)
    node.stop()  # the owner is away: it cannot move anything
    asked = nas.spawn("leave", "--yes")
    until(lambda: is_leaving(nas), "nas is leaving")
    asked.send_signal(signal.SIGINT)
    _, err = asked.communicate()
    assert b"p2pstore leave --cancel" in err
    assert is_leaving(nas)
    assert "This node stays." in nas.ok("leave", "--cancel").out
    assert not is_leaving(nas)
    assert "was not leaving" in nas.ok("leave", "--cancel").out
    node.start()
    copied(node, folder, 1)
    assert held_bytes(nas) > 0


def test_a_holder_without_room_has_its_copies_moved(
    vault: tuple[Node, Path], new_node: NewNode
) -> None:
    node, folder = vault
    nas, desk = new_node("nas"), new_node("desk")
    join(node, nas)
    copied(node, folder, 1)
    join(node, desk)
    copied(node, folder, 2)
    nas.stop()
    nas.env["P2PSTORE_KEEP_FREE"] = "1000TiB"
    nas.start()
    until(lambda: held_bytes(nas) == 0, "nothing is kept there any more", 40.0)
    bundles = nas.home / "held" / "bundles"
    until(lambda: not list(bundles.rglob("*.bundle")), "the trash of it is gone too")
    assert held_bytes(desk) > 0
    copied(node, folder, 1)
