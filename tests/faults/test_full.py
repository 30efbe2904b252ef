"""A small disk that is full: what does not fit stays as it is, and nothing is half done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from p2pstore.errors import NoRoom, P2PStoreError
from tests.faults.loop import Loop, why_not
from tests.faults.world import Oracle, World, assert_journal_closed

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    loop = Loop(tmp_path / "image", tmp_path / "mount", size=32 * MIB)
    loop.mount()
    yield loop.at
    loop.close()


def fill(path: Path, *, leave: int) -> None:
    """Take all room but `leave` bytes."""
    with open(path / "ballast", "wb", buffering=0) as file, suppress(OSError):
        while True:
            usage = os.statvfs(path)
            free = usage.f_bavail * usage.f_frsize - leave
            if free <= 0:
                break
            file.write(bytes(min(free, MIB)))


def test_files_that_do_not_fit_stay(disk: Path) -> None:
    contents = {b"%d" % i: os.urandom(2 * MIB) for i in range(8)}
    made = World(disk / "world")
    for name, content in contents.items():
        made.write(name, content)
    oracle = Oracle(disk / "world")
    failed = 0
    for name in contents:
        failed += 1
        with suppress(NoRoom):
            made.replace(name)
            failed -= 1
        oracle.assert_nothing_lost(contents.values())
    assert failed
    made.recover()
    assert_journal_closed(made)
    made.empty_trash()
    oracle.assert_nothing_lost(contents.values())
    oracle.assert_one_of_two(contents)
    # Room again: all of them go.
    for name in [name for name in contents if made.at(name).exists()]:
        with suppress(NoRoom):
            made.replace(name)
        made.empty_trash()
    oracle.assert_nothing_lost(contents.values())
    oracle.close()
    made.close()


@pytest.mark.parametrize("leave", [0, 8192, 65536, 300_000])
def test_disk_without_room_costs_no_file(disk: Path, leave: int) -> None:
    contents = {b"%d" % i: os.urandom(3000) for i in range(20)}
    made = World(disk / "world")
    for name, content in contents.items():
        made.write(name, content)
    os.sync()
    fill(disk, leave=leave)
    oracle = Oracle(disk / "world")
    with suppress(P2PStoreError, OSError):
        made.replace(*contents)
    oracle.assert_nothing_lost(contents.values())
    made.close()
    (disk / "ballast").unlink()
    made = World(disk / "world")
    made.recover()
    oracle.assert_one_of_two(contents)
    assert_journal_closed(made)
    made.empty_trash()
    oracle.assert_nothing_lost(contents.values())
    oracle.close()
    made.close()


@pytest.mark.parametrize("size", [1000, 6 * MIB])
def test_file_that_does_not_fit_keeps_its_placeholder(disk: Path, size: int) -> None:
    made = World(disk / "world")
    content = os.urandom(size)
    made.write("file", content)
    made.replace("file")
    made.empty_trash()
    raw = made.at("file.f").read_bytes()
    os.sync()
    # The catalog still needs a little for its journal row.
    fill(disk, leave=0 if size < MIB else 256 << 10)
    with suppress(P2PStoreError):
        (brought,) = made.hydrate("file.f")
        assert brought.error is not None or made.at("file").read_bytes() == content
    if made.at("file.f").exists():
        assert made.at("file.f").read_bytes() == raw
    (disk / "ballast").unlink()
    made.recover()
    if made.at("file.f").exists():
        (brought,) = made.hydrate("file.f")
        assert brought.error is None
    assert made.at("file").read_bytes() == content
    made.close()
