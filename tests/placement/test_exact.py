"""What comes back is what went in (I3): every kind of name, content and attribute."""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from p2pstore.content import FileMeta
from p2pstore.placement import Arrival, Landed, Landing, Root, arrive, finish
from tests.faults.world import FOLDER_ID, World

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="replacing needs Linux")


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def there_and_back(made: World, *names: bytes) -> None:
    """Replace, empty the trash, bring back; every step must succeed for every name."""
    assert made.replace(*names) == dict.fromkeys(names, "")
    for name in names:
        assert not os.path.lexists(made.at(name))
        assert made.at(name + b".f").is_file()
    assert made.empty_trash() == []
    brought = made.hydrate(*(name + b".f" for name in names))
    assert [b.error for b in brought] == [None] * len(names)
    assert sorted(b.path for b in brought) == sorted(names)
    for name in names:
        assert not os.path.lexists(made.at(name + b".f"))


NAMES = [
    b"new\nline",
    b"quote'\"`$(rm)",
    b"back\\slash",
    b"not utf-8 \xff\xfe",
    b"\xc3\xa4 and a\xcc\x88",
    b" leading, trailing ",
    b"-rf",
    b"solver.f",
    b".f",
    b".hidden",
    b"a" * 253,
    b"deep/" * 30 + b"file",
]


def test_any_name_comes_back(made: World) -> None:
    for name in NAMES:
        made.write(name, b"content of " + name)
    there_and_back(made, *NAMES)
    for name in NAMES:
        assert made.at(name).read_bytes() == b"content of " + name


@pytest.mark.parametrize("length", [254, 255])
def test_name_without_room_for_the_suffix_stays(made: World, length: int) -> None:
    name = b"n" * length
    made.write(name, b"content")
    assert made.replace(name) == {name: "name too long for .f"}
    assert made.at(name).read_bytes() == b"content"
    assert made.file_row(name).state == "protected"


CONTENTS = {
    "empty": b"",
    "one byte": b"\0",
    "zeros": bytes(3 << 20),
    "chunk": os.urandom(1 << 16),
    "chunk and one": os.urandom((1 << 16) + 1),
    "window": b"w" * (4 << 20),
    "window and one": b"v" * ((4 << 20) + 1),
}


def test_any_content_comes_back(made: World) -> None:
    for name, content in CONTENTS.items():
        made.write(name, content)
    there_and_back(made, *map(os.fsencode, CONTENTS))
    for name, content in CONTENTS.items():
        assert made.at(name).read_bytes() == content, name


def test_long_chunk_list_comes_back(made: World) -> None:
    content = os.urandom(9 << 20)
    made.write("long", content)
    there_and_back(made, b"long")
    assert made.at("long").read_bytes() == content


@pytest.mark.parametrize("gap", [1 << 20, 20 << 20], ids=["small", "large"])
def test_holes_come_back_as_holes(made: World, gap: int) -> None:
    """A file of few bytes is brought back whole, with others; a large one window by window."""
    path = made.at("sparse")
    with open(path, "wb") as file:
        file.write(b"head")
        file.seek(gap)
        file.write(b"middle")
        file.truncate(3 * gap)
    before, used = path.read_bytes(), path.stat().st_blocks
    there_and_back(made, b"sparse")
    assert path.read_bytes() == before
    assert path.stat().st_blocks <= used + 16


def test_file_of_nothing_but_a_hole_comes_back(made: World) -> None:
    with open(made.at("hole"), "wb") as file:
        file.truncate(5 << 20)
    there_and_back(made, b"hole")
    assert made.at("hole").read_bytes() == bytes(5 << 20)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """(tag, permissions, id) as the kernel keeps POSIX ACLs."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
NOBODY_ID = 65534
ACL = acl((1, 6, NOBODY), (2, 4, 1), (4, 4, NOBODY), (0x10, 4, NOBODY), (0x20, 0, NOBODY))


def put_attribute(path: Path, name: str, value: bytes) -> None:
    try:
        os.setxattr(path, name, value)
    except OSError as exc:
        pytest.skip(f"this file system has no {name}: {exc.strerror}")


def test_mode_and_times_come_back(made: World) -> None:
    path = made.write("file", b"content")
    os.chmod(path, 0o741)
    os.utime(path, ns=(1_500_000_000_123_456_789, 1_400_000_000_987_654_321))
    there_and_back(made, b"file")
    after = path.stat()
    assert stat.S_IMODE(after.st_mode) == 0o741
    assert after.st_mtime_ns == 1_400_000_000_987_654_321


@pytest.mark.parametrize("mtime_ns", [-1_000_000_001, 0, 4_000_000_000_000_000_001])
def test_strange_times_come_back(made: World, mtime_ns: int) -> None:
    path = made.write("file", b"content")
    os.utime(path, ns=(0, mtime_ns))
    there_and_back(made, b"file")
    assert path.stat().st_mtime_ns == mtime_ns


def test_attributes_come_back(made: World) -> None:
    path = made.write("file", b"content")
    put_attribute(path, "user.colour", b"blue\0\xff")
    put_attribute(path, "user.empty", b"")
    there_and_back(made, b"file")
    assert os.getxattr(path, "user.colour") == b"blue\0\xff"
    assert os.getxattr(path, "user.empty") == b""


def test_attributes_too_long_for_the_placeholder_come_back(made: World) -> None:
    path = made.write("file", b"content")
    put_attribute(path, "user.long", b"x" * 3000)
    there_and_back(made, b"file")
    assert os.getxattr(path, "user.long") == b"x" * 3000


def test_access_list_comes_back(made: World) -> None:
    path = made.write("file", b"content")
    os.chmod(path, 0o640)
    put_attribute(path, "system.posix_acl_access", ACL)
    mode = path.stat().st_mode
    there_and_back(made, b"file")
    assert os.getxattr(path, "system.posix_acl_access") == ACL
    assert path.stat().st_mode == mode


@pytest.mark.skipif(os.geteuid() != 0, reason="root overcomes a mode, others must not need to")
@pytest.mark.root
def test_attributes_of_a_read_only_file_come_back_to_its_owner(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.write_bytes(b"")
    put_attribute(probe, "user.colour", b"blue")
    folder = tmp_path / "folder"
    folder.mkdir()
    Root.mark(folder, FOLDER_ID)
    root = Root(folder, FOLDER_ID)
    for directory, names, files in os.walk(folder):
        for name in (".", *names, *files):
            os.chown(os.path.join(directory, name), NOBODY_ID, NOBODY_ID)
    meta = FileMeta(
        name=b"file",
        size=7,
        mode=stat.S_IFREG | 0o444,
        uid=NOBODY_ID,
        gid=NOBODY_ID,
        user="",
        group="",
        mtime_ns=5,
        xattrs=((b"user.colour", b"blue"),),
    )
    os.seteuid(NOBODY_ID)
    try:
        (landed,) = arrive(root, [(Landing(b"file", b"file.f", meta, "1", b""), b"content")])
    finally:
        os.seteuid(0)
        root.close()
    assert isinstance(landed, Landed)
    assert os.getxattr((folder / "file"), "user.colour") == b"blue"
    assert stat.S_IMODE((folder / "file").stat().st_mode) == 0o444


def test_setuid_does_not_come_back(made: World) -> None:
    path = made.write("file", b"content")
    os.chmod(path, 0o4755)
    there_and_back(made, b"file")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


# -- a new version of nothing but metadata --------------------------------------------------------


def test_new_mode_is_kept_although_the_content_is_the_same(made: World) -> None:
    path = made.write("script", b"#!/bin/sh\n")
    os.chmod(path, 0o644)
    there_and_back(made, b"script")
    os.chmod(path, 0o755)
    there_and_back(made, b"script")
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_new_mode_of_a_protected_file_is_kept(made: World) -> None:
    path = made.write("script", b"#!/bin/sh\n")
    made.take(b"script", replace=False)
    os.chmod(path, 0o700)
    os.utime(path, ns=(5, 5))
    there_and_back(made, b"script")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert path.stat().st_mtime_ns == 5


def test_new_attribute_is_kept_although_the_content_is_the_same(made: World) -> None:
    path = made.write("file", b"content")
    there_and_back(made, b"file")
    put_attribute(path, "user.colour", b"red")
    there_and_back(made, b"file")
    assert os.getxattr(path, "user.colour") == b"red"


def test_unchanged_file_keeps_its_placeholder_to_the_byte(made: World) -> None:
    made.write("file", b"content")
    made.replace(b"file")
    raw = made.at("file.f").read_bytes()
    made.hydrate(b"file.f")
    made.replace(b"file")
    assert made.at("file.f").read_bytes() == raw


def test_file_that_only_rested_again_is_known_as_it_lies(made: World) -> None:
    path = made.write("file", b"content")
    made.take(b"file", replace=False)
    os.link(path, made.at("other"))
    made.at("other").unlink()  # a new ctime, nothing else
    made.take(b"file", replace=False)
    row, now = made.file_row("file"), path.stat()
    assert (row.ino, row.ctime_ns, row.state) == (now.st_ino, now.st_ctime_ns, "protected")


# -- what is no file of the user's -----------------------------------------------------------------


def test_what_is_not_a_file_is_left_alone(made: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"not ours")
    os.symlink(outside, made.at("link"))
    os.symlink("nowhere", made.at("dangling"))
    os.mkfifo(made.at("fifo"))
    made.at("directory").mkdir()
    results = made.replace(b"link", b"dangling", b"fifo", b"directory")
    assert all(results.values())
    assert outside.read_bytes() == b"not ours"
    assert os.readlink(made.at("link")) == str(outside)
    assert stat.S_ISFIFO(made.at("fifo").stat().st_mode)
    assert made.at("directory").is_dir()


def test_directory_that_is_a_link_is_not_entered(made: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"not ours")
    os.symlink(outside, made.at("below"))
    assert made.replace(b"below/file") == {b"below/file": "a link"}
    assert os.listdir(outside) == ["file"]


@pytest.mark.parametrize("most", [1, 3, 5, 4096])
def test_pieces_land_at_their_places_however_little_is_written_at_once(
    made: World, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    def some(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        assert len(buffers) <= 1024
        return os.pwrite(fd, b"".join(buffers)[:most], offset)

    monkeypatch.setattr(os, "pwritev", some)
    pieces = [(0, b"abc"), (3, b""), (3, b"defg"), (7, b"h"), (20, b"behind a gap"), (10, b"in it")]
    pieces += [(40 + i, bytes([i % 251])) for i in range(1100)]  # more than one call takes
    expected = bytearray(1140)
    for offset, piece in pieces:
        expected[offset : offset + len(piece)] = piece
    meta = FileMeta(
        name=b"file",
        size=1140,
        mode=stat.S_IFREG | 0o644,
        uid=os.getuid(),
        gid=os.getgid(),
        user="",
        group="",
        mtime_ns=5,
    )
    arrival = Arrival(made.root, Landing(b"file", b"file.f", meta, "1", b""))
    arrival.begin()
    arrival.write(pieces)
    (landed,) = finish(made.root, [arrival], synced=False)
    arrival.close()
    assert isinstance(landed, Landed)
    assert made.at("file").read_bytes() == expected


def test_a_large_files_writing_begins_before_its_sync(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    arrival_module = sys.modules[Arrival.__module__]
    monkeypatch.setattr(
        arrival_module, "start_writing", lambda _, offset, length: begun.append((offset, length))
    )
    content = os.urandom(9 << 20)
    made.write("file", content)
    there_and_back(made, b"file")
    assert sum(length for _, length in begun) >= 8 << 20  # a last short piece is not worth a call
    assert made.at("file").read_bytes() == content
