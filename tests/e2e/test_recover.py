"""The computer is gone: the 24 words and one holder bring everything back."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, join, names, some_bytes, until, write

FILES = {
    "letter.txt": b"Dear reader, " * 2000,
    "film.bin": some_bytes(2_500_000, 5),
    "sub/caf\u00e9.txt": b"coffee",
    "sub/deep/empty": b"",
    "work/.git/config": b"stays an original",
    "n" * 254: b"can have no placeholder",
    **{f"many/{number}": b"%d" % number for number in range(30)},
}


class Lost(NamedTuple):
    """A laptop that was lost with its folder, and who has copies."""

    words: str
    folder: Path  # where it was
    nas: Node

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.nas.port()}"


def lose(laptop: Node, nas: Node, folder: Path) -> Lost:
    """A laptop has copies of all its files with the nas, and is gone."""
    words = laptop.init()
    laptop.start()
    join(laptop, nas)
    write(folder, FILES.items())
    (folder / "link").symlink_to("letter.txt")
    os.utime(folder / "letter.txt", ns=(10**18 + 7, 10**18 + 7))
    (folder / "film.bin").chmod(0o640)
    laptop.add(folder, "--exclude", "*.iso")
    laptop.type("evict")  # nothing may go yet; but the index is written and told now
    assert all(laptop.state(folder / name)["copies"] == 1 for name in FILES)
    laptop.stop()
    shutil.rmtree(laptop.home)
    shutil.rmtree(folder)
    return Lost(words, folder, nas)


@pytest.fixture(scope="module")
def lost(nodes: NewNode, tmp_path_factory: pytest.TempPathFactory) -> Lost:
    """Shared: whoever recovers from it does so into a place of its own."""
    return lose(nodes(), nodes("nas"), tmp_path_factory.mktemp("lost") / "Vault")


def fresh(new_node: NewNode, name: str = "second") -> Node:
    """A new computer, with nothing on it."""
    node = new_node(name)
    node.env |= {"P2PSTORE_LISTEN": "127.0.0.1:0", "P2PSTORE_MDNS": "false"}
    return node


def placeholders(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.f") if ".p2pstore" not in path.parts]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_words_and_one_holder_bring_everything_back(new_node: NewNode, tmp_path: Path) -> None:
    lost = lose(new_node(), new_node("nas"), tmp_path / "Vault")
    second, desk = fresh(new_node), new_node("desk")
    done = second.ok("recover", "--bootstrap", lost.address, "-", stdin=lost.words)
    assert f"{lost.folder} is back ({len(FILES) + 1} files" in done.out
    assert "), as of " in done.out
    assert contents(lost.folder) == FILES
    assert os.readlink(lost.folder / "link") == "letter.txt"
    assert (lost.folder / "letter.txt").stat().st_mtime_ns == 10**18 + 7
    assert (lost.folder / "film.bin").stat().st_mode & 0o777 == 0o640
    assert placeholders(lost.folder) == []
    assert not (second.home / "words.txt").exists()
    # It is a whole member and an admin: it invites, copies count again, room comes free.
    second.start()
    second.wait_connected(lost.nas)
    second.wait_rows(lost.folder, files=len(FILES) + 1, paused=False, pending=0)
    assert second.ok("folders", "--json").json["folders"][0]["settings"]["exclude"] == ["*.iso"]
    join(second, desk)
    film = lost.folder / "film.bin"
    second.ok("dehydrate", film)
    until(lambda: second.state(film)["copies"] >= 2, "two copies", 60.0)
    # The list of its blocks may reach the others a little later than the blocks.
    until(
        lambda: second.type("free-up", film).code == 0,
        "freed",
        60.0,
        tell=lambda: second.call("evict_why", paths=[os.fspath(film)]),
    )
    second.ok("hydrate", os.fspath(film) + ".f")
    assert film.read_bytes() == FILES["film.bin"]
    assert lost.words.split()[0] not in second.log


def test_placeholders_alone_come_back_elsewhere(
    lost: Lost, new_node: NewNode, tmp_path: Path
) -> None:
    second = fresh(new_node)
    there = tmp_path / "usb"
    options = ("--placeholders", "--to", there, "--bootstrap", lost.address)
    second.ok("recover", *options, "-", stdin=lost.words)
    folder = there / "Vault"
    assert (folder / "letter.txt.f").exists()
    assert not (folder / "letter.txt").exists()
    assert (folder / ("n" * 254)).read_bytes() == FILES["n" * 254]
    second.start()
    second.wait_connected(lost.nas)
    second.ok("hydrate", folder)
    assert contents(folder) == FILES


def home_is_begun(home: Path, folder: Path) -> bool:
    return (home / "recovering").exists()


def catalog_is_there(home: Path, folder: Path) -> bool:
    return (home / "catalog.sqlite").exists()


def placeholders_are_laid(home: Path, folder: Path) -> bool:
    return any(folder.glob("*.f"))


def test_killed_again_and_again_it_goes_on(lost: Lost, new_node: NewNode, tmp_path: Path) -> None:
    second = fresh(new_node)
    folder = tmp_path / "back" / "Vault"
    note = tmp_path / "note"
    note.write_text(lost.words)
    options = ("recover", "--bootstrap", lost.address, "--to", folder.parent, "-")

    def killed(moment: Callable[[Path, Path], bool]) -> None:
        with open(note, "rb") as stdin:
            process = second.spawn(*options, stdin=stdin)
            until(lambda: moment(second.home, folder) or process.poll() is not None, "a moment")
            process.kill()
            process.communicate()

    for moment in (home_is_begun, catalog_is_there, placeholders_are_laid):
        killed(moment)
    second.start()  # a node goes on by itself where the command was cut short
    until(lambda: not (second.home / "recovering").exists(), "laid out", 40.0)
    second.ok("hydrate", folder)
    assert contents(folder) == FILES
    assert placeholders(folder) == []


def test_what_only_a_late_holder_knows_comes_when_it_does(
    new_node: NewNode, tmp_path: Path
) -> None:
    """The nas was off when the laptop wrote its last list, and it alone answers at first."""
    laptop, nas, desk = new_node(), new_node("nas"), new_node("desk")
    words, vault = laptop.init(), tmp_path / "Vault"
    laptop.start()
    join(laptop, nas)
    join(laptop, desk)
    write(vault, [("letter.txt", b"as it was"), ("same.txt", b"the same"), ("own.txt", b"first")])
    laptop.add(vault)
    laptop.type("evict")
    until(lambda: laptop.state(vault / "same.txt")["copies"] == 2, "two copies")
    nas.stop()
    later = {"letter.txt": b"as it became", "own.txt": b"theirs", "sub/new.bin": some_bytes(9000)}
    write(vault, later.items())
    sizes = {vault / name: len(content) for name, content in later.items()}
    until(lambda: all(laptop.state(p)["size"] == n for p, n in sizes.items()), "protected")
    laptop.wait_rows(vault, pending=0)  # what is still in hand is in no list that is told
    laptop.type("evict")
    assert all(laptop.state(vault / name)["copies"] == 1 for name in later)
    laptop.kill()
    desk.stop()
    nas.start()

    second, back = fresh(new_node), tmp_path / "back" / "Vault"
    address = f"127.0.0.1:{nas.port()}"
    options = ("--placeholders", "--to", back.parent, "--bootstrap", address)
    second.ok("recover", *options, "-", stdin=words)
    old = {"letter.txt.f", "own.txt.f", "same.txt.f"}
    assert set(names(back)) == old
    second.start()
    second.ok("hydrate", back / "own.txt")
    (back / "own.txt").write_bytes(b"mine")
    desk.start("--bootstrap", address)
    until(lambda: (back / "sub/new.bin.f").exists(), "the late file", 40.0, lambda: second.log)
    until(lambda: not (second.home / "recovering").exists(), "laid out", 40.0)
    second.wait_rows(back, paused=False)
    assert set(names(back)) == {
        *("letter.txt.f", "own.conflict.txt.f", "own.txt", "same.txt.f", "sub")
    }
    second.ok("hydrate", back)
    assert (back / "own.txt").read_bytes() == b"mine"
    assert (back / "own.conflict.txt").read_bytes() == later["own.txt"]
    assert (back / "letter.txt").read_bytes() == later["letter.txt"]
    assert (back / "sub/new.bin").read_bytes() == later["sub/new.bin"]
    assert (back / "same.txt").read_bytes() == b"the same"
    assert "3 files came from a later list of laptop" in second.log


# -- what cannot be -------------------------------------------------------------------------------


def test_a_wrong_word_is_named(lost: Lost, new_node: NewNode) -> None:
    second = fresh(new_node)
    words = lost.words.split()
    words[4], words[5] = words[5], words[4]
    given = " ".join(words)
    done = second.type("recover", "--wait", "2s", "--bootstrap", lost.address, "-", stdin=given)
    assert done.code == 2
    assert is_one_sentence(done)
    if words[4] != words[5]:
        assert "Words 5 and 6 are swapped." in done.err
    missing = second.type("recover", "-", stdin=" ".join(words[1:]))
    assert (missing.code, "only 23" in missing.err) == (2, True)


def test_without_any_holder_it_says_so(new_node: NewNode) -> None:
    second = fresh(new_node)
    words = second.init()
    refused = second.type("recover", "-", stdin=words)
    assert (refused.code, "already has an identity" in refused.err) == (2, True)
    third = fresh(new_node, "third")
    done = third.type("recover", "--wait", "1s", "-", stdin=words)
    assert done.code == 5
    assert is_one_sentence(done)
    assert not (third.home / "group.state").exists()
    assert not (third.home / "device.key").exists()
