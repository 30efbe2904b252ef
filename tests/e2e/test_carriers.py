"""Carriers from the command line: a disk as the second copy, a host of pictures for one file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.carriers.servers import make_bucket, picture_host, s3_server
from tests.e2e.conftest import NewNode
from tests.e2e.nodes import Node, is_one_sentence, join, some_bytes, until, write

FILES = {"film.bin": some_bytes(3_000_000, 95), "letter.txt": b"Dear reader, " * 3000}


@pytest.fixture(scope="module")
def lonely(nodes: NewNode) -> Node:
    node = nodes("carol")
    node.init()
    return node.start()


def carrier(node: Node, name: str) -> dict[str, object]:
    (line,) = (one for one in node.call("carriers")["carriers"] if one["name"] == name)
    return dict(line)


def freed(node: Node, folder: Path) -> bool:
    return node.type("free-up", folder).code == 0


def wait_freed(node: Node, folder: Path) -> None:
    def why() -> str:
        return node.ok("evict", "--why").out

    until(lambda: freed(node, folder), "freed", 60.0, tell=why)


def test_a_disk_is_the_second_copy_and_brings_everything_back(
    new_node: NewNode, tmp_path: Path
) -> None:
    laptop, nas = new_node("laptop"), new_node("nas")
    laptop.init()
    laptop.start()
    folder, disk = tmp_path / "Vault", tmp_path / "disk"
    write(folder, FILES.items())
    assert "same disk" in laptop.ok("carriers", "add", "usb", "folder", disk).err
    laptop.add(folder, "--carrier", "usb")
    until(lambda: carrier(laptop, "usb")["bytes"], "copied to the disk")
    assert laptop.type("free-up", folder).code == 5, "a disk alone frees nothing"
    join(laptop, nas)
    until(
        lambda: freed(laptop, folder), "freed", 60.0, tell=lambda: laptop.ok("evict", "--why").out
    )
    assert "usb" in laptop.ok("status").out

    # The other node is gone for good: what is left of the data lies on the disk.
    nas.kill()
    shutil.rmtree(nas.home)
    laptop.ok("hydrate", folder)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_what_rots_on_the_disk_is_found_and_frees_nothing(
    new_node: NewNode, tmp_path: Path
) -> None:
    laptop, nas = new_node("laptop"), new_node("nas")
    laptop.init()
    laptop.start()
    folder, disk = tmp_path / "Vault", tmp_path / "disk"
    write(folder, FILES.items())
    laptop.ok("carriers", "add", "usb", "folder", disk)
    join(laptop, nas)
    laptop.add(folder, "--carrier", "usb")
    until(lambda: laptop.folder(folder)["safe"]["files"] == len(FILES), "two copies")
    pieces = [p for p in disk.rglob("*-0-0") if p.stat().st_size > 100_000]
    for piece in pieces:
        raw = bytearray(piece.read_bytes())
        raw[-1] ^= 1
        piece.write_bytes(raw)
    assert laptop.type("evict", folder).code == 5
    # It is put there anew, and then the room comes free.
    until(
        lambda: freed(laptop, folder), "freed", 60.0, tell=lambda: laptop.ok("evict", "--why").out
    )


def test_an_unplugged_disk_is_waited_for(lonely: Node, tmp_path: Path) -> None:
    folder, disk = tmp_path / "Vault", tmp_path / "disk"
    write(folder, FILES.items())
    lonely.ok("carriers", "add", "plug", "folder", disk)
    disk.rename(tmp_path / "elsewhere")
    disk.mkdir()
    away = lonely.type("carriers", "test", "plug")
    assert away.code == 5
    assert is_one_sentence(away)
    lonely.add(folder, "--carrier", "plug")
    assert not os.listdir(disk), "an empty mount point is no disk"
    until(lambda: carrier(lonely, "plug")["trouble"], "told")
    assert "plug: " in lonely.type("doctor").out
    disk.rmdir()
    (tmp_path / "elsewhere").rename(disk)
    lonely.ok("carriers", "test", "plug")
    until(lambda: carrier(lonely, "plug")["bytes"], "copied when it was back", 60.0)


def test_carriers_are_named_tried_and_removed(lonely: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for wrong in (
        ("carriers", "add", "Big Name", "folder", tmp_path / "a"),
        ("carriers", "add", "none", "folder", tmp_path / "a"),
        ("carriers", "add", "file", "folder", tmp_path / "file"),
        ("carriers", "add", "x", "moon", tmp_path / "a"),
        ("carriers", "add", "x", "s3", "s3://bucket", "--endpoint", "http://127.0.0.1:1"),
        ("carriers", "test", "nobody"),
        ("carriers", "remove", "nobody"),
        ("add-folder", tmp_path, "--carrier", "nobody", "--yes"),
    ):
        done = lonely.type(*wrong, stdin="secret\n")
        assert done.code == 2, (wrong, done)
        assert "Traceback" not in done.err
    lonely.ok("carriers", "add", "spare", "folder", tmp_path / "spare")
    assert "spare" in lonely.ok("carriers", "list").out
    folder = tmp_path / "Vault"
    write(folder, FILES.items())
    lonely.add(folder, "--carrier", "spare")
    refused = lonely.type("carriers", "remove", "spare")
    assert refused.code == 2
    assert "--carrier none" in refused.err
    lonely.ok("add-folder", folder, "--carrier", "none", "--yes")
    lonely.ok("carriers", "remove", "spare")
    assert lonely.type("carriers", "test", "spare").code == 2


def test_a_file_goes_to_a_host_of_pictures_and_comes_back(lonely: Node, tmp_path: Path) -> None:
    film = tmp_path / "film.bin"
    film.write_bytes(some_bytes(5_000_000, 96))
    with picture_host(tmp_path / "pictures") as address:
        lonely.ok("carriers", "add", "host", "png", f"{address}/upload")
        key = lonely.ok("-q", "upload", "--carrier", "host", film).out.strip()
        assert key.startswith("p2pc:")
        lonely.ok("download", "--carrier", "host", key, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == film.read_bytes()
        assert lonely.type("download", "--carrier", "host", key, tmp_path / "got").code == 2
        assert lonely.type("download", "--carrier", "host", key[:-3] + "aaa").code == 3
        assert lonely.type("upload", "--carrier", "host", "--once", film).code == 2
        names = {path.name for path in (tmp_path / "pictures").rglob("*.png")}
        assert len(names) > 4
    away = lonely.type("download", "--carrier", "host", key, tmp_path / "late")
    assert away.code == 5
    assert not (tmp_path / "late").exists()
    lonely.ok("carriers", "remove", "host")


def test_a_bucket_holds_copies_and_files(lonely: Node, tmp_path: Path) -> None:
    folder, film = tmp_path / "Vault", tmp_path / "film.bin"
    write(folder, FILES.items())
    film.write_bytes(some_bytes(9_000_000, 98))
    with s3_server() as address:
        make_bucket(address)
        where = ("--endpoint", address, "--allow-http", "--access-key", "someone")
        for bucket, code in (("s3://missing/one", 2), ("s3://pieces/one", 0)):
            add = lonely.type("carriers", "add", "cloud", "s3", bucket, *where, stdin="secret\n")
            assert add.code == code, add
        lonely.add(folder, "--carrier", "cloud")
        until(lambda: carrier(lonely, "cloud")["bytes"], "copied to the bucket")
        key = lonely.ok("-q", "upload", "--carrier", "cloud", film).out.strip()
        lonely.ok("download", "--carrier", "cloud", key, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == film.read_bytes()
        lonely.ok("add-folder", folder, "--carrier", "none", "--yes")
        lonely.ok("carriers", "remove", "cloud")
    config = lonely.home / "carriers" / "cloud.toml"
    assert not config.exists()
    assert "secret" not in lonely.log


@pytest.mark.parametrize("how", ["jpeg", "palette", "rgba", "scale"])
def test_a_host_that_changes_pictures_is_no_carrier(lonely: Node, tmp_path: Path, how: str) -> None:
    with picture_host(tmp_path / "pictures", "--reencode", how) as address:
        done = lonely.type("carriers", "add", f"bad-{how}", "png", f"{address}/upload")
    assert done.code == 4, done
    assert is_one_sentence(done)


def test_parts_of_it_can_be_read_without_the_rest(lonely: Node, tmp_path: Path) -> None:
    film = tmp_path / "film.bin"
    film.write_bytes(some_bytes(5_000_000, 97))
    lonely.ok("carriers", "add", "album", "png", tmp_path / "album")
    key = lonely.ok("-q", "upload", "--carrier", "album", film).out.strip()
    assert lonely.call("stat", path=key) == {"name": "film.bin", "size": 5_000_000}
    part = lonely.ok("cat", key, "--range", "2499990-2500009").raw
    assert part == film.read_bytes()[2_499_990:2_500_010]
    lonely.ok("carriers", "remove", "album")
