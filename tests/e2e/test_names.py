"""Names and kinds of files that are hard to handle: each goes in and comes back as it was."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.e2e.nodes import Node, contents_of, some_bytes, until

NAMES = {
    "newline": b"two\nlines.txt",
    "quotes": b'it\'s "quoted" $HOME `id`.txt',
    "not utf-8": b"caf\xe9 \xff\xfe.txt",
    "spaces and dashes": b"--help  -rf .txt",
    "backslash": b"a\\b.txt",
    "escape codes": b"\x1b[31mred\x07.txt",
    "right-to-left": "\u202etxt.exe".encode(),
    "combining": "e\u0301te\u0301.txt".encode(),
    "fortran": b"solver.f",
    "fortran of fortran": b"other.f.f",
    "hidden": b".hidden",
    "253 bytes": b"n" * 253,
}


@pytest.fixture(scope="module")
def gallery(node: Node, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, bytes]]:
    """A folder with all these names, replaced."""
    folder = os.fsencode(tmp_path_factory.mktemp("names") / "Vault")
    os.mkdir(folder)
    contents = {}
    for label, name in NAMES.items():
        contents[label] = b"content of " + name
        with open(folder + b"/" + name, "wb") as file:
            file.write(contents[label])
    node.add(Path(os.fsdecode(folder)))
    return folder, contents


@pytest.mark.parametrize("label", NAMES)
def test_every_name_is_replaced_and_read_through_its_placeholder(
    node: Node, gallery: tuple[bytes, dict[str, bytes]], label: str
) -> None:
    folder, contents = gallery
    path = folder + b"/" + NAMES[label]
    assert not os.path.lexists(path)
    assert os.path.lexists(path + b".f")
    assert node.ok("cat", path + b".f").raw == contents[label]


@pytest.mark.parametrize("label", NAMES)
def test_every_name_comes_back_under_exactly_this_name(
    node: Node, gallery: tuple[bytes, dict[str, bytes]], label: str
) -> None:
    folder, contents = gallery
    path = folder + b"/" + NAMES[label]
    node.ok("hydrate", b"--", path + b".f")
    with open(path, "rb") as file:
        assert file.read() == contents[label]
    node.ok("dehydrate", b"--", path)
    until(lambda: os.path.lexists(path + b".f"), "the placeholder")


def test_hostile_names_cannot_paint_the_terminal(
    node: Node, gallery: tuple[bytes, dict[str, bytes]]
) -> None:
    folder, _ = gallery
    shown = node.ok("ls", folder).raw + node.ok("status", folder).raw
    assert b"\x1b" not in shown
    assert b"\x07" not in shown
    assert "\u202e".encode() not in shown


def test_ls_json_carries_names_that_are_no_utf_8(
    node: Node, gallery: tuple[bytes, dict[str, bytes]]
) -> None:
    entries = node.ok("ls", gallery[0], "--json").json["entries"]
    listed = {os.fsencode(entry["name"]) for entry in entries}
    assert NAMES["not utf-8"] in listed
    assert NAMES["newline"] in listed


@pytest.mark.parametrize("length", [254, 255])
def test_a_name_too_long_for_dot_f_is_protected_and_stays(
    node: Node, folder: Path, length: int
) -> None:
    path = folder / ("n" * length)
    path.write_bytes(b"long")
    line = node.wait_state(path, "protected")
    assert path.read_bytes() == b"long"
    assert "long" in line["reason"]
    assert node.ok("cat", path).raw == b"long"


def test_a_fortran_source_whose_placeholders_name_is_taken_by_another(
    node: Node, folder: Path
) -> None:
    (folder / "solver.f.f").write_bytes(b"      PROGRAM OTHER")
    node.wait_replaced(folder / "solver.f.f")
    (folder / "solver.f.f").write_bytes(b"      PROGRAM NEWER")
    (folder / "solver.f").write_bytes(b"      PROGRAM SOLVER")
    node.wait_state(folder / "solver.f", "protected", "placeholder")
    assert node.ok("cat", folder / "solver.f").raw == b"      PROGRAM SOLVER"
    kept = contents_of(folder.iterdir())
    assert b"      PROGRAM NEWER" in kept or (
        node.ok("cat", folder / "solver.f.f.f").raw == b"      PROGRAM NEWER"
    )


# -- contents ---


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1",
        bytes(3_000_000),
        some_bytes(64 * 1024, 1),
        some_bytes(1_048_576, 2),
        some_bytes(1_048_577, 3),
        b"abc" * 700_000,
    ],
    ids=["empty", "1 byte", "zeros", "64 KiB", "1 MiB", "1 MiB + 1", "compressible"],
)
def test_contents_of_every_kind_round_trip(node: Node, folder: Path, content: bytes) -> None:
    path = folder / "file.bin"
    path.write_bytes(content)
    node.wait_replaced(path)
    node.ok("hydrate", path)
    assert path.read_bytes() == content


def test_a_sparse_file_comes_back_sparse(node: Node, folder: Path) -> None:
    path = folder / "sparse.bin"
    with open(path, "wb") as file:
        file.write(b"begin")
        file.seek(200_000_000)
        file.write(b"end")
    node.wait_replaced(path)
    assert node.ok("cat", path, "--range", "199999998-").raw == b"\0\0end"
    node.ok("hydrate", path)
    assert path.stat().st_size == 200_000_003
    assert path.stat().st_blocks * 512 < 2_000_000
    with open(path, "rb") as file:
        assert file.read(10) == b"begin" + bytes(5)
        file.seek(199_999_999)
        assert file.read() == b"\0end"


def test_a_hole_alone_comes_back(node: Node, folder: Path) -> None:
    path = folder / "hole.bin"
    with open(path, "wb") as file:
        file.truncate(50_000_000)
    node.wait_replaced(path)
    node.ok("hydrate", path)
    assert path.stat().st_size == 50_000_000
    assert path.stat().st_blocks * 512 < 1_000_000


# -- kinds ---


def test_a_hard_link_is_protected_and_stays_one(node: Node, folder: Path) -> None:
    one = folder / "one.txt"
    one.write_bytes(b"shared")
    # Made elsewhere and moved in with both names at once, so that it never looks single.
    os.link(one, folder.parent / "outside.txt")
    line = node.wait_state(one, "protected")
    assert line["reason"] == "hard link"
    assert one.stat().st_nlink == 2


def test_a_symlink_out_of_the_folder_is_not_followed(node: Node, folder: Path) -> None:
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_bytes(b"secret")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "linked").symlink_to(outside)
    (folder / "dangling").symlink_to("nowhere")
    (folder / "a.txt").write_bytes(b"alpha")
    node.wait_replaced(folder / "a.txt")
    node.wait_state(folder / "link.txt", "protected")
    assert (folder / "link.txt").is_symlink()
    assert (folder / "linked").is_symlink()
    assert (folder / "dangling").is_symlink()
    assert [p.name for p in outside.iterdir()] == ["secret.txt"]
    assert (outside / "secret.txt").read_bytes() == b"secret"


def test_fifo_and_socket_are_skipped_and_stop_nothing(node: Node, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(folder)  # socket names are limited to 107 bytes
        try:
            unix.bind("socket")
        finally:
            os.chdir(here)
        (folder / "a.txt").write_bytes(b"alpha")
        node.wait_replaced(folder / "a.txt")
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)
    assert node.wait_state(folder / "pipe", "skipped")["reason"] == "no regular file"
    assert stat.S_ISSOCK((folder / "socket").stat().st_mode)


def test_status_says_why_each_kind_stays(node: Node, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("/etc/passwd")
    (folder / ("n" * 254)).write_bytes(b"long")
    (folder / "twice").write_bytes(b"shared")
    os.link(folder / "twice", folder.parent / "other name")
    (folder / "data.sqlite3").write_bytes(b"database")
    (folder / "half.part").write_bytes(b"half")
    node.add(folder)
    lines = node.ok("status", folder).out.splitlines()
    said = {line.split()[0].rpartition("/")[2]: line for line in lines}
    for name, words in {
        "pipe": "skipped: no regular file",
        "link": "protected: a link",
        "n" * 254: "protected, on this device only: name too long for .f",
        "twice": "protected, on this device only: hard link",
        "data.sqlite3": "protected, on this device only: database",
        "half.part": "skipped: temporary or system file",
    }.items():
        assert said[name].endswith(words)


@pytest.mark.parametrize("name", ["x.part", "x.crdownload", "x.tmp", ".x.swp", "~$x.docx", ".#x"])
def test_temporary_files_are_skipped(node: Node, folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"half")
    assert node.wait_state(folder / name, "skipped")["reason"] == "temporary or system file"
    assert (folder / name).read_bytes() == b"half"


def test_a_set_uid_program_is_protected_and_stays(node: Node, folder: Path) -> None:
    path = folder / "tool"
    path.write_bytes(b"#!")
    path.chmod(0o4755)
    node.wait_state(path, "protected")
    assert path.stat().st_mode & stat.S_ISUID


def test_what_is_in_a_repository_stays(node: Node, folder: Path) -> None:
    (folder / "project" / ".git").mkdir(parents=True)
    (folder / "project" / "main.c").write_bytes(b"int main;")
    line = node.wait_state(folder / "project" / "main.c", "protected")
    assert line["reason"] == "in a repository"


def test_a_file_that_is_being_written_is_not_replaced(node: Node, folder: Path) -> None:
    path = folder / "growing.log"
    with open(path, "wb") as file:
        for n in range(20):
            file.write(b"line %d\n" % n)
            file.flush()
        until(lambda: node.state(path)["reason"] != "comes to rest", "it was tried")
        assert path.exists()
        assert not (folder / "growing.log.f").exists()
        file.write(b"last line\n")
    node.wait_replaced(path)
    assert node.ok("cat", path).raw.endswith(b"last line\n")


def test_a_file_mapped_for_writing_is_not_replaced(node: Node, folder: Path) -> None:
    import mmap

    path = folder / "mapped.bin"
    path.write_bytes(bytes(8192))
    descriptor = os.open(path, os.O_RDWR)
    memory = mmap.mmap(descriptor, 8192)
    os.close(descriptor)
    try:
        until(lambda: node.state(path)["reason"] not in ("comes to rest", ""), "it was tried")
        memory[4096:4100] = b"late"
        assert path.exists()
    finally:
        memory.close()
    node.wait_replaced(path)
    assert node.ok("cat", path, "--range", "4096-4099").raw == b"late"
