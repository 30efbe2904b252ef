"""A key for anybody: upload here, download there, also from outside the group."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pstore import Client
from p2pstore.errors import UsageError
from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, join, some_bytes, until

CONTENT = some_bytes(6_000_000, 90) + b"the same line again\n" * 50_000


@pytest.fixture(scope="module")
def pair(nodes: NewNode) -> tuple[Node, Node]:
    """Two nodes of two groups."""
    made = []
    for name in ("anna", "ben"):
        node = nodes(name)
        node.init()
        made.append(node.start())
    return made[0], made[1]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    path = tmp_path / "film.bin"
    path.write_bytes(CONTENT)
    return path


def key_of(node: Node, *args: str | Path, stdin: str = "") -> str:
    return node.ok("-q", "upload", *args, stdin=stdin).out.strip()


def shared(node: Node) -> set[str]:
    return {one["key"] for one in node.call("shares")["shares"]}


def test_a_stranger_with_the_key_gets_the_file(
    pair: tuple[Node, Node], film: Path, tmp_path: Path
) -> None:
    anna, ben = pair
    film.chmod(0o755)
    done = anna.ok("upload", film)
    key = done.out.partition("YOUR DOWNLOAD KEY IS : ")[2].strip()
    assert "film.bin, 7.0 MB" in done.err
    (tmp_path / "here").mkdir()
    assert "film.bin" in ben.ok("download", key, tmp_path / "here").out
    got = tmp_path / "here" / "film.bin"
    assert got.read_bytes() == CONTENT
    assert got.stat().st_mode & 0o777 == 0o644, "nothing that a stranger sends may be run"
    assert int(got.stat().st_mtime) == int(film.stat().st_mtime)


def test_a_range_of_it_needs_no_download(pair: tuple[Node, Node], film: Path) -> None:
    anna, ben = pair
    key = key_of(anna, film)
    assert ben.ok("cat", key, "--range", "5999990-6000009").raw == CONTENT[5_999_990:6_000_010]
    assert ben.ok("cat", "-", "--range", "0-2", stdin=key + "\n").raw == CONTENT[:3]
    assert ben.type("cat", key, "--range", "9999999-").code == 2
    assert ben.call("stat", path=key) == {"name": "film.bin", "size": len(CONTENT)}


def test_nothing_is_overwritten_without_force(
    pair: tuple[Node, Node], film: Path, tmp_path: Path
) -> None:
    anna, ben = pair
    key = key_of(anna, film)
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    refused = ben.type("download", key, mine)
    assert refused.code == 2
    assert is_one_sentence(refused)
    assert mine.read_bytes() == b"mine"
    ben.ok("download", key, mine, "--force")
    assert mine.read_bytes() == CONTENT
    assert sorted(os.listdir(tmp_path)) == ["film.bin", "mine"], "nothing half-written is left"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda key: key[:-5] + "aaaaa", 3),
        (lambda key: key[:40], 3),
        (lambda key: "p2p:", 3),
        (lambda key: "hello", 2),
    ],
)
def test_a_wrong_key_is_said_to_be_one(pair: tuple[Node, Node], film: Path, spoil, code) -> None:  # type: ignore[no-untyped-def]
    anna, ben = pair
    done = ben.type("download", spoil(key_of(anna, film)))
    assert done.code == code
    assert is_one_sentence(done)


def test_a_password_is_asked_for_by_the_holder(
    pair: tuple[Node, Node], film: Path, tmp_path: Path
) -> None:
    anna, ben = pair
    key = key_of(anna, film, "--password", stdin="open sesame\n")
    to = tmp_path / "got"
    assert ben.type("download", key, to).code == 2
    assert ben.type("download", key, to, "--password", stdin="close sesame\n").code == 5
    assert not to.exists()
    ben.ok("download", "-", to, "--password", stdin=f"{key}\nopen sesame\n")
    assert to.read_bytes() == CONTENT
    assert anna.type("upload", film, "--password", stdin="\n").code == 2


def test_once_is_once(pair: tuple[Node, Node], film: Path, tmp_path: Path) -> None:
    anna, ben = pair
    key = key_of(anna, film, "--once")
    ben.ok("download", key, tmp_path / "first")
    until(lambda: key not in shared(anna), "ended by itself")
    again = ben.type("download", key, tmp_path / "second")
    assert again.code == 5
    assert "ended" in again.err or "No node" in again.err
    assert not (tmp_path / "second").exists()


def test_what_has_expired_gives_nothing(
    pair: tuple[Node, Node], film: Path, tmp_path: Path
) -> None:
    anna, ben = pair
    key = key_of(anna, film, "--expires", "1s")
    until(lambda: key not in shared(anna), "expired")
    assert ben.type("download", key, tmp_path / "late").code == 5


def test_what_was_taken_back_gives_nothing(
    pair: tuple[Node, Node], film: Path, tmp_path: Path
) -> None:
    anna, ben = pair
    before = anna.status()["space"]["bundles_bytes"]
    key, other = key_of(anna, film), key_of(anna, film)
    assert ben.type("unshare", key).code == 2, "only who made it takes it back"
    anna.ok("unshare", key)
    assert key not in shared(anna)
    refused = ben.type("download", key, tmp_path / "late")
    assert refused.code == 5
    assert ben.ok("cat", other, "--range", "0-3").raw == CONTENT[:4]
    anna.ok("unshare", other)
    until(lambda: anna.status()["space"]["bundles_bytes"] <= before, "the room came back")


def test_shares_outlive_a_restart_and_the_catalog(
    pair: tuple[Node, Node], film: Path, tmp_path: Path
) -> None:
    anna, ben = pair
    key = key_of(anna, film)
    anna.stop()
    for path in anna.home.glob("catalog.sqlite*"):
        path.unlink()
    anna.listen = "127.0.0.1:0"
    anna.start()
    assert key in shared(anna)
    ben.ok("connect", anna.status()["node"]["listen"])  # the key names the port of before
    ben.ok("download", key, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == CONTENT


def test_the_empty_file_and_odd_names_are_files_too(
    pair: tuple[Node, Node], tmp_path: Path
) -> None:
    anna, ben = pair
    (tmp_path / "to").mkdir()
    for name, appears in ((b"empty", b"empty"), (b"a\nb\xff.txt", b"a_b\xff.txt"), (b".rc", b"rc")):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb"):
            pass
        ben.ok("download", key_of(anna, os.fsdecode(path)), tmp_path / "to")
        assert os.path.getsize(os.path.join(os.fsencode(tmp_path / "to"), appears)) == 0


def test_a_key_is_no_path_and_is_not_repeated(pair: tuple[Node, Node], film: Path) -> None:
    anna, ben = pair
    key = key_of(anna, film)
    for command in ("hydrate", "inspect", "upload", "open"):
        done = ben.type(command, key)
        assert done.code == 2
        assert "p2pstore download" in done.err
        assert key not in done.err


def test_what_is_no_file_is_not_shared(pair: tuple[Node, Node], tmp_path: Path) -> None:
    anna, _ = pair
    for path in (tmp_path, tmp_path / "nothing", Path("/dev/null")):
        done = anna.type("upload", path)
        assert done.code == 2
        assert is_one_sentence(done)


def test_a_placeholder_shares_its_content(new_node: NewNode, tmp_path: Path) -> None:
    node = new_node("carol")
    node.init()
    node.start()
    folder = tmp_path / "Vault"
    folder.mkdir()
    (folder / "letter.txt").write_bytes(b"Dear reader, " * 3000)
    node.add(folder)
    node.wait_replaced(folder / "letter.txt")
    for name in ("letter.txt.f", "letter.txt"):
        key = key_of(node, folder / name)
        node.ok("download", key, tmp_path / "back", "--force")
        assert (tmp_path / "back").read_bytes() == b"Dear reader, " * 3000
        assert node.call("stat", path=key)["name"] == "letter.txt"


def test_holders_give_it_when_its_maker_is_away_and_nothing_when_it_was_taken_back(
    new_node: NewNode, film: Path, tmp_path: Path
) -> None:
    """Anna's nas keeps the bundles with their grants; Ben is of another group."""
    anna, nas, ben = (new_node(name) for name in ("anna", "nas", "ben"))
    anna.init()
    anna.start()
    join(anna, nas)
    ben.init()
    ben.start("--bootstrap", f"127.0.0.1:{nas.port()}")
    key = key_of(anna, film)
    once = key_of(anna, film, "--once")

    def copies(of: str) -> int:
        (line,) = (one for one in anna.call("shares")["shares"] if one["key"] == of)
        return int(line["copies"])

    until(lambda: copies(key) == 1, "copied to nas")
    assert copies(once) == 0, "what is given once lies in one place"
    anna.stop()
    ben.ok("download", key, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == CONTENT
    assert ben.type("download", once, tmp_path / "never").code == 5

    anna.start()
    anna.wait_connected(nas)
    anna.ok("unshare", key)
    done = ben.type("download", key, tmp_path / "late")
    assert done.code == 5, done.out
    assert not (tmp_path / "late").exists()


async def test_programs_share_and_read_too(pair: tuple[Node, Node], film: Path) -> None:
    anna, ben = pair
    async with Client(anna.home) as maker, Client(ben.home) as reader:
        key = (await maker.upload(film, password="open sesame")).key
        async with reader.open(key, password="open sesame") as file:
            assert (file.name, file.size) == ("film.bin", len(CONTENT))
            await file.seek(5_999_990)
            assert await file.read(20) == CONTENT[5_999_990:6_000_010]
        with pytest.raises(UsageError, match="password"):
            await reader.open(key)
        got = await reader.download(key, film.with_name("got"), password="open sesame")
        assert Path(got.path).read_bytes() == CONTENT
