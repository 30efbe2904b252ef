"""A friend keeps copies that he cannot read, has a group of his own, and brings everything back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, some_bytes, until, write

FILES = {"secret.txt": b"nobody's business " * 50, "film.bin": some_bytes(700_000, 3)}


class Friends(NamedTuple):
    laptop: Node
    words: str
    anna: Node
    bert: Node
    folder: Path


def befriend(owner: Node, friend: Node, offer: str = "1GB") -> None:
    link = owner.ok("invite", "--role", "friend", "--yes").out.strip()
    done = friend.ok("join", "-", "--offer", offer, "--name", friend.name, stdin=link + "\n")
    assert "your own group stays yours" in done.out


@pytest.fixture(scope="module")
def friends(nodes: NewNode, tmp_path_factory: pytest.TempPathFactory) -> Friends:
    laptop, anna, bert = nodes(vetting="0"), nodes("anna", vetting="0"), nodes("bert")
    words = laptop.init()
    laptop.start()
    anna.init()
    anna.start()  # runs already, with a group of her own
    befriend(laptop, anna)
    befriend(laptop, bert)  # has nothing yet: gets a group of his own
    bert.start()
    laptop.wait_connected(anna, bert)
    folder = tmp_path_factory.mktemp("friends") / "Vault"
    write(folder, FILES.items())
    laptop.add(folder)
    until(
        lambda: all(laptop.state(folder / name)["copies"] == 2 for name in FILES),
        "a copy with each friend",
        60.0,
        tell=lambda: [laptop.state(folder / name) for name in FILES],
    )
    return Friends(laptop, words, anna, bert, folder)


def peer(node: Node, name: str) -> dict[str, object]:
    (line,) = [peer for peer in node.call("peers")["peers"] if peer["name"] == name]
    return dict(line)


def test_groups_stay_apart(friends: Friends) -> None:
    groups = {n.status()["node"]["group"] for n in (friends.laptop, friends.anna, friends.bert)}
    assert len(groups) == 3
    line = peer(friends.laptop, "anna")
    assert (line["role"], line["connected"]) == ("friend", True)
    assert int(str(line["holds_bytes"])) > 700_000
    assert friends.anna.status()["space"]["held_for_others_bytes"] > 700_000
    assert friends.bert.ok("words", "show").out.strip() != friends.words


def test_the_durability_report_is_signed_and_can_be_checked(
    friends: Friends, tmp_path: Path
) -> None:
    shown = friends.laptop.ok("status", "--report", friends.folder)
    assert "anna" in shown.out
    assert "film.bin" in shown.out
    signed = friends.laptop.ok("status", "--report", "--json").out
    path = tmp_path / "report.json"
    path.write_text(signed)
    checked = friends.laptop.ok("check", "--report", path)
    assert "a device of this group" in checked.out
    assert "a device of another group" in friends.anna.ok("check", "--report", path).out
    path.write_text(signed.replace('"bundles": ', '"bundles": 1'))
    assert friends.laptop.type("check", "--report", path).code == 4


def test_a_friend_reads_nothing(friends: Friends, tmp_path: Path) -> None:
    until(lambda: (friends.folder / "secret.txt.f").exists(), "replaced")
    copied = tmp_path / "secret.txt.f"
    shutil.copy(friends.folder / "secret.txt.f", copied)
    refused = friends.anna.type("cat", copied)
    assert refused.code != 0
    assert refused.raw == b""
    held = b"".join(p.read_bytes() for p in (friends.anna.home / "held").rglob("*") if p.is_file())
    assert b"nobody's business" not in held
    assert b"secret.txt" not in held


def test_room_comes_free_and_files_come_back_from_friends(friends: Friends) -> None:
    film = friends.folder / "film.bin"  # nobody has opened it: it is not in work
    # The list of its blocks may reach them a little later than the blocks.
    until(
        lambda: friends.laptop.type("free-up", film).code == 0,
        "freed",
        60.0,
        tell=lambda: friends.laptop.type("evict", "--why", film).out,
    )
    assert not friends.laptop.state(film)["local"]
    friends.laptop.ok("hydrate", film)
    assert film.read_bytes() == FILES["film.bin"]


def test_a_friend_who_lends_no_room_is_told_how(friends: Friends, nodes: NewNode) -> None:
    carl = nodes("carl")
    link = friends.laptop.ok("invite", "--role", "friend", "--yes").out.strip()
    refused = carl.type("join", "-", stdin=link + "\n")
    assert (refused.code, "--offer" in refused.err) == (2, True)
    assert not carl.home.exists() or not (carl.home / "device.key").exists()


def test_words_and_a_friend_bring_everything_back(
    friends: Friends, new_node: NewNode, tmp_path: Path
) -> None:
    friends.laptop.type("evict")  # the index is written and told now
    second = new_node("second", vetting="0", listen="127.0.0.1:0", mdns="false")
    address = f"127.0.0.1:{friends.anna.port()}"
    friends.laptop.stop()
    try:
        options = ("--bootstrap", address, "--to", tmp_path / "back", "-")
        second.ok("recover", *options, stdin=friends.words)
    finally:
        friends.laptop.start()
    assert {n: (tmp_path / "back" / "Vault" / n).read_bytes() for n in FILES} == FILES
