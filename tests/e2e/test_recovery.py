"""What was lost or damaged comes back, or is said: catalog, bundles, placeholders, the folder."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, join, names, some_bytes, until, write

FILES = {
    "letter.txt": b"Dear reader, " * 2000,
    "film.bin": some_bytes(2_500_000, 5),
    "sub/caf\u00e9.txt": b"coffee",
    "empty": b"",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture
def vault(new_node: NewNode, tmp_path: Path) -> tuple[Node, Path]:
    """A node of its own with everything replaced."""
    node = new_node()
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    write(folder, FILES.items())
    node.add(folder)
    return node, folder


def wait_index(node: Node) -> None:
    """Until the folder's list is written and named by a head."""
    until(lambda: list((node.home / "heads").iterdir()), "an index", 70.0)


def lose_catalog(home: Path) -> None:
    for path in home.glob("catalog.sqlite*"):
        path.unlink()


def overwrite_catalog(home: Path) -> None:
    for path in home.glob("catalog.sqlite-*"):
        path.unlink()
    (home / "catalog.sqlite").write_bytes(os.urandom(50_000))


def cut_catalog(home: Path) -> None:
    path = home / "catalog.sqlite"
    os.truncate(path, path.stat().st_size // 2)


def smear_catalog(home: Path) -> None:
    path = home / "catalog.sqlite"
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))


# -- the catalog ---


@pytest.mark.parametrize("harm", [lose_catalog, overwrite_catalog, cut_catalog, smear_catalog])
def test_the_catalog_is_rebuilt_at_the_start(
    vault: tuple[Node, Path], harm: Callable[[Path], None]
) -> None:
    node, folder = vault
    node.stop()
    harm(node.home)
    node.start()
    node.ok("hydrate", folder)
    assert contents(folder) == FILES
    assert names(folder) == ["empty", "film.bin", "letter.txt", "sub"]


def test_after_a_rebuild_reading_a_placeholder_brings_the_original_back(
    vault: tuple[Node, Path],
) -> None:
    node, folder = vault
    node.wait_trash_empty()
    node.stop()
    lose_catalog(node.home)
    node.start()
    node.wait_rows(folder, placeholders=len(FILES), pending=0)
    newest = max(path.lstat().st_ctime for path in folder.rglob("*.f"))
    until(lambda: time.time() > newest + 2.2, "opens are no longer taken for our own")
    (folder / "letter.txt.f").read_bytes()
    until(lambda: (folder / "letter.txt").exists(), "the original")
    assert (folder / "letter.txt").read_bytes() == FILES["letter.txt"]


def test_originals_that_were_back_stay_in_work_after_a_rebuild(
    vault: tuple[Node, Path],
) -> None:
    node, folder = vault
    wait_index(node)
    node.ok("hydrate", folder / "letter.txt.f")
    node.stop()
    lose_catalog(node.home)
    node.start()
    line = node.wait_state(folder / "letter.txt", "protected")
    assert line["reason"] == "in work"
    assert (folder / "letter.txt").read_bytes() == FILES["letter.txt"]


def test_a_lost_placeholder_comes_back_by_a_rebuild_or_undelete(
    vault: tuple[Node, Path],
) -> None:
    """A placeholder that went with the catalog is still in the folder's index."""
    node, folder = vault
    wait_index(node)
    node.stop()
    lose_catalog(node.home)
    node.start()
    node.wait_rows(folder, pending=0)
    (folder / "letter.txt.f").unlink()
    until(lambda: "letter.txt" not in node.ok("ls", folder).out, "the deletion is seen")
    node.ok("undelete", folder / "letter.txt")
    assert node.ok("cat", folder / "letter.txt").raw == FILES["letter.txt"]


def test_rebuild_catalog_on_a_running_node(vault: tuple[Node, Path]) -> None:
    node, folder = vault
    done = node.ok("rebuild-catalog")
    assert "Rebuilt: " in done.out

    def answers() -> bool:
        return node.type("status").code == 0

    until(answers, "the node is back")
    node.ok("hydrate", folder)
    assert contents(folder) == FILES


def test_rebuild_catalog_on_a_stopped_node(vault: tuple[Node, Path]) -> None:
    node, folder = vault
    node.stop()
    assert "Rebuilt: " in node.ok("rebuild-catalog").out
    node.start()
    node.ok("hydrate", folder)
    assert contents(folder) == FILES


def test_a_catalog_of_a_newer_version_is_refused_untouched(vault: tuple[Node, Path]) -> None:
    node, _ = vault
    node.stop()
    with sqlite3.connect(node.home / "catalog.sqlite") as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        db.execute(f"PRAGMA user_version={version + 1}")
    db.close()
    done = node.type("run", "--listen", "127.0.0.1:0", "--ui", "off", "--no-mdns")
    assert done.code == 2
    assert "newer" in done.err
    with sqlite3.connect(node.home / "catalog.sqlite") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (version + 1,)
        db.execute(f"PRAGMA user_version={version}")
    db.close()


def test_freed_files_come_back_from_holders_after_the_catalog_is_lost(
    vault: tuple[Node, Path], new_node: NewNode
) -> None:
    node, folder = vault
    nas, desk = new_node("nas"), new_node("desk")
    join(node, nas)
    join(node, desk)
    until(lambda: node.type("free-up", folder).code == 0, "free-up", 40.0,
          tell=lambda: node.type("evict", "--why").out)  # fmt: skip
    node.stop()
    lose_catalog(node.home)
    node.start()
    node.wait_connected(nas, desk)
    until(lambda: node.type("hydrate", folder).code == 0, "hydrated", 40.0)
    assert contents(folder) == FILES


# -- the store ---


def data_bundles(node: Node) -> list[Path]:
    """Local bundle files, the largest first."""
    found = [path for path in (node.home / "bundles").rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: -path.stat().st_size)


def flip_a_byte(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))


def test_a_flipped_byte_is_found_by_check_read_data(vault: tuple[Node, Path]) -> None:
    node, _ = vault
    flip_a_byte(data_bundles(node)[0])
    done = node.type("check", "--read-data")
    assert done.code == 4
    assert "Traceback" not in done.err


def test_a_flipped_byte_is_never_served(vault: tuple[Node, Path]) -> None:
    node, folder = vault
    node.wait_trash_empty()
    flip_a_byte(data_bundles(node)[0])
    done = node.type("cat", folder / "film.bin.f")
    assert done.code in (4, 5)
    assert done.raw == FILES["film.bin"][: len(done.raw)]
    assert is_one_sentence(done)
    assert node.type("hydrate", folder / "film.bin.f").code in (4, 5)
    assert "film.bin" not in names(folder)
    assert "film.bin.f" in names(folder)


def test_a_missing_bundle_is_said_and_other_files_still_come(vault: tuple[Node, Path]) -> None:
    node, folder = vault
    (folder / "later.txt").write_bytes(b"in another bundle")
    node.wait_replaced(folder / "later.txt")
    node.wait_trash_empty()
    data_bundles(node)[0].unlink()
    assert node.type("check").code in (4, 5)
    assert node.type("cat", folder / "film.bin.f").code in (4, 5)
    assert node.ok("cat", folder / "later.txt").raw == b"in another bundle"


@pytest.fixture
def in_trash(new_node: NewNode, tmp_path: Path) -> tuple[Node, Path, bytes]:
    """A node, the path of a file that was just replaced and lies in trash, and its content."""
    node = new_node(trash_hold="5s")
    node.init()
    node.start()
    content = some_bytes(600_000, 77)
    write(tmp_path / "Vault", [("a.bin", content)])
    node.add(tmp_path / "Vault")
    return node, tmp_path / "Vault" / "a.bin", content


def test_when_a_bundle_is_damaged_the_original_comes_back_from_trash(
    in_trash: tuple[Node, Path, bytes],
) -> None:
    node, path, content = in_trash
    bundle = data_bundles(node)[0]
    os.truncate(bundle, bundle.stat().st_size // 2)
    until(path.exists, "the original")
    assert path.read_bytes() == content


def test_while_a_bundle_is_missing_the_original_waits_in_trash(
    in_trash: tuple[Node, Path, bytes],
) -> None:
    node, path, content = in_trash
    bundle = data_bundles(node)[0]
    aside = bundle.with_name("aside")
    bundle.rename(aside)
    due = node.status()["space"]["trash_until"]
    until(lambda: time.time() > due + 1, "its time in trash is over")
    kept = [p for p in (path.parent / ".p2pstore").rglob("a.bin") if p.is_file()]
    assert [p.read_bytes() for p in kept] == [content]
    aside.rename(bundle)
    node.wait_trash_empty()
    assert node.ok("cat", path).raw == content


# -- the folder ---


def test_a_folder_that_goes_away_is_waited_for_in_silence(vault: tuple[Node, Path]) -> None:
    node, folder = vault
    away = folder.with_name("unplugged")
    os.rename(folder, away)
    until(lambda: node.folder(folder).get("missing_since"), "it is missed")
    assert "not plugged in" in node.ok("status").out
    assert node.folder(folder)["placeholders"] == len(FILES)
    assert names(away) == ["empty.f", "film.bin.f", "letter.txt.f", "sub"]
    os.rename(away, folder)
    until(lambda: not node.folder(folder).get("missing_since"), "it is back")
    node.wait_rows(folder, placeholders=len(FILES), paused=False)
    node.ok("hydrate", folder)
    assert contents(folder) == FILES


def test_another_folder_in_its_place_is_not_taken_for_it(vault: tuple[Node, Path]) -> None:
    node, folder = vault
    os.rename(folder, folder.with_name("unplugged"))
    until(lambda: node.folder(folder).get("missing_since"), "it is missed")
    write(folder, [("stranger.txt", b"not ours")])
    other = folder.with_name("Other")
    write(other, [("b.txt", b"beta")])
    node.add(other)
    assert names(folder) == ["stranger.txt"]
    assert node.folder(folder)["placeholders"] == len(FILES)


# -- room and places ---


def test_within_keep_free_nothing_is_taken_and_status_says_so(
    new_node: NewNode, tmp_path: Path
) -> None:
    node = new_node(keep_free="100TB")
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    write(folder, FILES.items())
    node.ok("add-folder", folder, "--yes")
    until(lambda: "waiting for room" in node.ok("status").out, "it is said")
    assert contents(folder) == FILES


def test_files_wait_for_room_and_go_on_when_it_is_there(new_node: NewNode, tmp_path: Path) -> None:
    node = new_node(keep_free="100TB")
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    write(folder, FILES.items())
    node.ok("add-folder", folder, "--yes")
    until(lambda: "waiting for room" in node.ok("status").out, "it is said")
    node.stop()
    node.env["P2PSTORE_KEEP_FREE"] = "10MB"
    node.start()
    node.add(folder)
    assert names(folder) == ["empty.f", "film.bin.f", "letter.txt.f", "sub"]


def test_on_a_store_that_a_reboot_clears_nothing_is_replaced(
    new_node: NewNode, tmp_path: Path
) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or not os.access(memory, os.W_OK):
        pytest.skip("there is no /dev/shm")
    place = Path(tempfile.mkdtemp(dir=memory))
    try:
        node = new_node(data=os.fspath(place), allow_volatile_store="false")
        node.init()
        node.start()
        folder = tmp_path / "Vault"
        write(folder, [("a.txt", b"alpha")])
        done = node.add(folder)
        assert names(folder) == ["a.txt"]
        assert "a.txt" in done.out
        assert node.type("status", "--check").code == 1
        assert "Nothing is replaced" in node.ok("status").out
    finally:
        shutil.rmtree(place)
