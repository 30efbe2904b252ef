"""Two and three nodes of one owner: invitations, copies, room, and files that come from holders."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, join, names, some_bytes, until, write

FILES = {
    "letter.txt": b"Dear reader, " * 2000,
    "film.bin": some_bytes(3_000_000, 1),
    "sub/notes.md": b"# notes\n",
    "empty": b"",
}


class Trio(NamedTuple):
    laptop: Node
    nas: Node
    desk: Node
    folder: Path  # on the laptop, freed; tests read it and put it back as it was


def is_freed(node: Node, folder: Path) -> bool:
    lines = node.call("status", paths=[os.fspath(folder)])["files"]
    return all(not line["local"] and line["copies"] >= 2 for line in lines if line["size"])


def free_up(node: Node, *paths: Path) -> None:
    """As an owner would: again until it says that everything came free."""
    until(lambda: node.type("free-up", *paths).code == 0, "free-up", 40.0,
          tell=lambda: node.type("evict", "--why", *paths).out)  # fmt: skip


@pytest.fixture(scope="module")
def trio(nodes: NewNode, tmp_path_factory: pytest.TempPathFactory) -> Trio:
    laptop, nas, desk = nodes("laptop"), nodes("nas"), nodes("desk")
    laptop.init()
    laptop.start()
    folder = tmp_path_factory.mktemp("trio") / "Vault"
    write(folder, FILES.items())
    laptop.add(folder)
    join(laptop, nas)
    join(laptop, desk)
    free_up(laptop, folder)
    return Trio(laptop, nas, desk, folder)


# -- joining ---


def test_invite_prints_the_link_alone(trio: Trio) -> None:
    done = trio.laptop.ok("invite", "--yes")
    assert done.out.startswith("p2ps://127.0.0.1:")
    assert len(done.out.splitlines()) == 1


def test_both_sides_list_each_other(trio: Trio) -> None:
    for node, others in ((trio.laptop, {"nas", "desk"}), (trio.nas, {"laptop"})):
        listed = {p["name"]: p for p in node.ok("peers", "--json").json["peers"]}
        assert others <= listed.keys()
        assert all(listed[name]["role"] == "device" for name in others)
        assert all({"id", "name", "address", "role"} <= listed[name].keys() for name in others)
    assert "nas" in trio.laptop.ok("peers").out


def test_all_are_of_one_group(trio: Trio) -> None:
    groups = {node.status()["node"]["group"] for node in trio[:3]}
    assert len(groups) == 1


def test_only_the_first_device_has_the_admin_key(trio: Trio) -> None:
    assert (trio.laptop.home / "admin.key").exists()
    assert not (trio.nas.home / "admin.key").exists()
    assert not (trio.nas.home / "words.txt").exists()


def test_invite_on_a_device_that_is_no_admin_names_the_admin(trio: Trio) -> None:
    done = trio.nas.type("invite", "--yes")
    assert done.code == 2
    assert "laptop" in done.err
    assert is_one_sentence(done)


# -- copies and room ---


def test_freed_files_have_two_copies_and_nothing_here(trio: Trio) -> None:
    for line in trio.laptop.ok("status", "--json", trio.folder).json["files"]:
        assert line["state"] == "placeholder"
        assert line["copies"] >= 2
        assert line["local"] is False or line["size"] == 0


def test_status_says_that_they_are_safe(trio: Trio) -> None:
    text = trio.laptop.ok("status").out
    assert "safe on 2+ others" in text
    assert "freed here" in text


def test_peers_tell_what_is_stored_with_whom(trio: Trio) -> None:
    text = trio.laptop.ok("peers").out
    assert "holds 3." in text
    assert "proved" in text


def test_holders_count_what_they_hold(trio: Trio) -> None:
    for holder in (trio.nas, trio.desk):
        assert holder.status()["space"]["held_for_others_bytes"] > 3_000_000


def test_the_store_of_the_laptop_holds_little_more_than_meta(trio: Trio) -> None:
    until(
        lambda: sum(p.stat().st_size for p in (trio.laptop.home / "bundles").rglob("*")
                    if p.is_file()) < 1_000_000,
        "room",
    )  # fmt: skip


def test_cat_and_range_come_from_holders(trio: Trio) -> None:
    film = trio.folder / "film.bin.f"
    assert trio.laptop.ok("cat", film).raw == FILES["film.bin"]
    done = trio.laptop.ok("cat", film, "--range", "1000000-1000099")
    assert done.raw == FILES["film.bin"][1_000_000:1_000_100]


def test_a_placeholder_copied_to_another_device_opens_there(trio: Trio, tmp_path: Path) -> None:
    shutil.copy(trio.folder / "film.bin.f", tmp_path / "film.bin.f")
    assert trio.desk.ok("inspect", tmp_path / "film.bin.f", "--json").json["device"] == "laptop"
    assert trio.desk.ok("cat", tmp_path / "film.bin.f").raw == FILES["film.bin"]
    trio.desk.ok("open", tmp_path / "film.bin.f", "--print")
    assert (tmp_path / "film.bin").read_bytes() == FILES["film.bin"]


def test_hydrate_brings_every_file_back_from_holders(trio: Trio) -> None:
    trio.laptop.ok("hydrate", trio.folder)
    assert {name: (trio.folder / name).read_bytes() for name in FILES} == FILES
    free_up(trio.laptop, trio.folder)


def test_evict_why_of_a_new_file_names_what_is_missing(trio: Trio, tmp_path: Path) -> None:
    folder = tmp_path / "More"
    write(folder, [("new.bin", some_bytes(200_000, 22))])
    trio.laptop.add(folder, "--min-copies", "3")
    done = trio.laptop.ok("evict", "--why", folder)
    assert "new.bin" in done.out
    assert "0 B could be freed now" in done.out


def test_more_copies_than_there_are_nodes_never_come_free(trio: Trio, tmp_path: Path) -> None:
    folder = tmp_path / "Careful"
    write(folder, [("gold.bin", some_bytes(200_000, 23))])
    trio.laptop.add(folder, "--min-copies", "3")
    until(
        lambda: trio.laptop.state(folder / "gold.bin")["copies"] == 2,
        "two copies",
        tell=lambda: trio.laptop.state(folder / "gold.bin"),
    )
    done = trio.laptop.type("free-up", folder)
    assert done.code == 5
    assert trio.laptop.state(folder / "gold.bin")["local"] is True
    status = trio.laptop.ok("status").out
    assert f"{folder} needs 3 other holders, there are 2" in status
    assert "p2pstore invite" in status or "--min-copies 2" in status


def test_connect_to_an_address(trio: Trio) -> None:
    done = trio.desk.ok("connect", f"127.0.0.1:{trio.nas.port()}")
    assert "nas" in done.out


def test_connect_to_nobody_is_5(trio: Trio) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    done = trio.desk.type("connect", f"127.0.0.1:{port}")
    assert done.code == 5
    assert is_one_sentence(done)


# -- strangers and garbage ---


@pytest.fixture(scope="module")
def stranger(nodes: NewNode) -> Node:
    """A node of the same network with a group of its own."""
    other = nodes("stranger")
    other.init()
    return other.start()


def test_a_stranger_connects_as_a_stranger_and_gets_no_file(
    trio: Trio, stranger: Node, tmp_path: Path
) -> None:
    done = stranger.ok("connect", f"127.0.0.1:{trio.nas.port()}")
    assert "stranger" in done.out
    shutil.copy(trio.folder / "film.bin.f", tmp_path / "film.bin.f")
    for words in (["cat", tmp_path / "film.bin.f"], ["open", tmp_path / "film.bin.f", "--print"]):
        refused = stranger.type(*words)
        assert refused.code in (3, 4, 5)
        assert refused.raw == b""
        assert is_one_sentence(refused)
    assert names(tmp_path) == ["film.bin.f"]


def test_a_stranger_is_no_holder(trio: Trio, stranger: Node) -> None:
    stranger.ok("connect", f"127.0.0.1:{trio.laptop.port()}")
    listed = {p["name"]: p for p in trio.laptop.ok("peers", "--json").json["peers"]}
    for peer in listed.values():
        if peer["role"] == "stranger":
            assert not peer["holder"]
            assert peer["holds_bytes"] == 0
    assert stranger.status()["space"]["held_for_others_bytes"] == 0


@pytest.mark.parametrize(
    "garbage",
    [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", os.urandom(4096), b"\x16\x03\x01" + bytes(300)],
    ids=["nothing", "http", "noise", "half a handshake"],
)
def test_garbage_at_the_port_troubles_nobody(trio: Trio, garbage: bytes) -> None:
    with socket.create_connection(("127.0.0.1", trio.nas.port()), timeout=10) as sock:
        sock.sendall(garbage)
        if garbage:
            sock.settimeout(15)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionError:
                pass
    assert trio.nas.ok("status").code == 0


def test_tls_without_a_certificate_is_turned_away(trio: Trio) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", trio.nas.port()), timeout=10) as plain:
            with context.wrap_socket(plain) as tls:
                tls.sendall(bytes(64))
                assert tls.recv(4096) == b""
    except (ssl.SSLError, ConnectionError):
        pass
    assert trio.nas.ok("status").code == 0


def test_noise_over_udp_is_not_answered(trio: Trio) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for size in (0, 1, 20, 500, 1400):
            udp.sendto(os.urandom(size), ("127.0.0.1", trio.nas.port()))
        udp.settimeout(0.3)
        with pytest.raises(TimeoutError):
            udp.recv(2000)
    assert trio.nas.ok("status").code == 0


# -- holders that are away (last: they change what the trio is, and put it back) ---


def test_with_one_holder_away_files_still_come(trio: Trio) -> None:
    trio.nas.stop()
    try:
        assert trio.laptop.ok("cat", trio.folder / "film.bin.f").raw == FILES["film.bin"]
    finally:
        trio.nas.start()
        trio.laptop.wait_connected(trio.nas)


def test_with_all_holders_away_it_says_whom_it_waits_for(trio: Trio, tmp_path: Path) -> None:
    folder = tmp_path / "Away"
    content = some_bytes(900_000, 31)
    write(folder, [("away.bin", content)])
    trio.laptop.add(folder)
    free_up(trio.laptop, folder)
    trio.nas.stop()
    trio.desk.stop()
    try:
        done = trio.laptop.type("cat", folder / "away.bin.f")
        assert done.code == 5
        assert done.raw == b""
        assert "nas" in done.err
        assert "desk" in done.err
        assert is_one_sentence(done)
        assert trio.laptop.type("hydrate", folder / "away.bin.f").code == 5
        assert names(folder) == ["away.bin.f"]
    finally:
        trio.nas.start()
        trio.desk.start()
        trio.laptop.wait_connected(trio.nas, trio.desk)
    trio.laptop.ok("hydrate", folder)
    assert (folder / "away.bin").read_bytes() == content


def test_a_holder_killed_and_started_keeps_what_it_promised(trio: Trio) -> None:
    before = trio.nas.status()["space"]["held_for_others_bytes"]
    trio.nas.kill()
    trio.nas.start()
    trio.laptop.wait_connected(trio.nas)
    assert trio.nas.status()["space"]["held_for_others_bytes"] >= before
