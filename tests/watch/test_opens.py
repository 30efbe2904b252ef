from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import p2pstore.watch.opens as door
from p2pstore import syscalls
from p2pstore.clock import ManualClock
from p2pstore.errors import Unavailable
from p2pstore.watch.opens import OpenWatcher

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watching is of Linux")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def watcher(clock: ManualClock) -> AsyncIterator[OpenWatcher]:
    async with OpenWatcher(clock) as running:
        yield running


def touch(path: Path | bytes) -> None:
    with open(path, "rb") as file:
        file.read()


async def told(watcher: OpenWatcher, root: Path) -> list[bytes]:
    """What was opened up to now: all that is told before the open of a file of our own."""
    end = root / "end.of.this"
    watcher.add_directory(root, b"")
    end.touch()
    touch(end)
    found: list[bytes] = []
    async with asyncio.timeout(10):
        async for opened in watcher:
            assert opened.root == root
            if opened.path == b"end.of.this":
                return found
            found.append(opened.path)
    raise AssertionError("the watcher ended")


async def test_open_is_told_with_root_and_path(watcher: OpenWatcher, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one.f").touch()
    (tmp_path / "two.f").touch()
    assert watcher.add_directory(tmp_path, b"a/b")
    assert watcher.add_directory(tmp_path, b"")
    touch(tmp_path / "a" / "b" / "one.f")
    touch(tmp_path / "two.f")
    assert await told(watcher, tmp_path) == [b"a/b/one.f", b"two.f"]


async def test_looking_is_not_opening(watcher: OpenWatcher, tmp_path: Path) -> None:
    (tmp_path / "a.f").touch()
    (tmp_path / "dir").mkdir()
    watcher.add_directory(tmp_path, b"")
    watcher.add_directory(tmp_path, b"dir")
    os.stat(tmp_path / "a.f")
    os.listdir(tmp_path)
    os.listdir(tmp_path / "dir")
    os.rename(tmp_path / "a.f", tmp_path / "b.f")
    os.link(tmp_path / "b.f", tmp_path / "c.f")
    assert await told(watcher, tmp_path) == []


async def test_only_names_with_the_suffix_are_told(clock: ManualClock, tmp_path: Path) -> None:
    for name in ("a.f", "b", "b.f.txt"):
        (tmp_path / name).touch()
    async with OpenWatcher(clock, suffix=b".f") as watcher:
        watcher.add_directory(tmp_path, b"")
        for name in ("b", "b.f.txt", "a.f"):
            touch(tmp_path / name)
        async with asyncio.timeout(10):
            assert (await anext(watcher)).path == b"a.f"


async def test_only_watched_directories_tell(watcher: OpenWatcher, tmp_path: Path) -> None:
    (tmp_path / "quiet").mkdir()
    (tmp_path / "quiet" / "a.f").touch()
    watcher.add_directory(tmp_path, b"")
    touch(tmp_path / "quiet" / "a.f")
    assert await told(watcher, tmp_path) == []


async def test_two_roots_are_told_apart(watcher: OpenWatcher, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.f").touch()
        watcher.add_directory(tmp_path / name, b"")
    touch(tmp_path / "two" / "a.f")
    touch(tmp_path / "one" / "a.f")
    async with asyncio.timeout(10):
        opened = [await anext(watcher), await anext(watcher)]
        assert [(one.root, one.path) for one in opened] == [
            (tmp_path / "two", b"a.f"),
            (tmp_path / "one", b"a.f"),
        ]


async def test_any_bytes_are_a_name(watcher: OpenWatcher, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path)
    name = b"\xff\n" + b"n" * 251 + b".f"
    os.mkdir(root + b"/\xfe")
    with open(root + b"/\xfe/" + name, "wb"):
        pass
    watcher.add_directory(tmp_path, b"\xfe")
    touch(root + b"/\xfe/" + name)
    assert await told(watcher, tmp_path) == [b"\xfe/" + name]


async def test_our_own_opens_are_not_told_for_a_second(
    watcher: OpenWatcher, tmp_path: Path, clock: ManualClock
) -> None:
    for name in ("ours.f", "theirs.f"):
        (tmp_path / name).touch()
    watcher.add_directory(tmp_path, b"")
    watcher.mark_own(tmp_path / "ours.f")
    touch(tmp_path / "ours.f")
    touch(tmp_path / "theirs.f")
    assert await told(watcher, tmp_path) == [b"theirs.f"]
    clock.advance(1.0)
    touch(tmp_path / "ours.f")
    assert await told(watcher, tmp_path) == []
    clock.advance(0.1)
    touch(tmp_path / "ours.f")
    assert await told(watcher, tmp_path) == [b"ours.f"]


async def test_marks_are_renewed_and_forgotten(watcher: OpenWatcher, clock: ManualClock) -> None:
    watcher.mark_own(b"/x/a", clock.monotonic())
    clock.advance(0.9)
    watcher.mark_own(b"/x/a", clock.monotonic())
    clock.advance(0.9)
    assert watcher._is_own(Path("/x"), b"a")
    for number in range(5_000):
        clock.advance(0.01)
        watcher.mark_own(b"/x/%d" % number, clock.monotonic())
    assert len(watcher._own) < 500
    assert len(watcher._own_order) < 500


async def test_removed_directory_takes_its_watch_along(
    watcher: OpenWatcher, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    watcher.add_directory(tmp_path, b"a")
    shutil.rmtree(tmp_path / "a")
    await told(watcher, tmp_path)
    assert watcher.directories == 1  # the root, which `told` watches
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.f").touch()
    assert watcher.add_directory(tmp_path, b"a")
    touch(tmp_path / "a" / "x.f")
    assert await told(watcher, tmp_path) == [b"a/x.f"]


async def test_moved_directory_is_told_under_its_new_name_once_added_again(
    watcher: OpenWatcher, tmp_path: Path
) -> None:
    (tmp_path / "old" / "in").mkdir(parents=True)
    (tmp_path / "old" / "in" / "x.f").touch()
    watcher.add_directory(tmp_path, b"old")
    watcher.add_directory(tmp_path, b"old/in")
    (tmp_path / "old").rename(tmp_path / "new")
    await told(watcher, tmp_path)
    assert watcher.directories == 1
    watcher.add_directory(tmp_path, b"new")
    watcher.add_directory(tmp_path, b"new/in")
    touch(tmp_path / "new" / "in" / "x.f")
    assert await told(watcher, tmp_path) == [b"new/in/x.f"]


async def test_same_directory_again_mends_its_name(watcher: OpenWatcher, tmp_path: Path) -> None:
    (tmp_path / "old" / "in").mkdir(parents=True)
    (tmp_path / "old" / "in" / "x.f").touch()
    watcher.add_directory(tmp_path, b"old/in")
    (tmp_path / "old").rename(tmp_path / "new")  # `old` itself was not watched
    watcher.add_directory(tmp_path, b"new/in")
    assert watcher.directories == 1
    touch(tmp_path / "new" / "in" / "x.f")
    assert await told(watcher, tmp_path) == [b"new/in/x.f"]


async def test_directory_replaced_by_another_of_its_name(
    watcher: OpenWatcher, tmp_path: Path
) -> None:
    (tmp_path / "p" / "a").mkdir(parents=True)
    watcher.add_directory(tmp_path, b"p/a")
    (tmp_path / "p").rename(tmp_path / "away")
    (tmp_path / "p" / "a").mkdir(parents=True)
    (tmp_path / "p" / "a" / "x.f").touch()
    (tmp_path / "away" / "a" / "y.f").touch()
    watcher.add_directory(tmp_path, b"p/a")
    assert watcher.directories == 1
    touch(tmp_path / "away" / "a" / "y.f")
    touch(tmp_path / "p" / "a" / "x.f")
    assert await told(watcher, tmp_path) == [b"p/a/x.f"]


async def test_old_name_of_a_moved_directory_is_free_for_another(
    watcher: OpenWatcher, tmp_path: Path
) -> None:
    (tmp_path / "old" / "in").mkdir(parents=True)
    watcher.add_directory(tmp_path, b"old/in")
    (tmp_path / "old").rename(tmp_path / "new")
    watcher.add_directory(tmp_path, b"new/in")
    (tmp_path / "old" / "in").mkdir(parents=True)
    watcher.add_directory(tmp_path, b"old/in")
    assert watcher.directories == 2
    (tmp_path / "new" / "in" / "x.f").touch()
    (tmp_path / "old" / "in" / "y.f").touch()
    assert await told(watcher, tmp_path) == [b"new/in/x.f", b"old/in/y.f"]


async def test_removing_covers_what_is_below_and_no_namesake(
    watcher: OpenWatcher, tmp_path: Path
) -> None:
    for name in ("a/b", "ab"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "x.f").touch()
        watcher.add_directory(tmp_path, os.fsencode(name))
    watcher.add_directory(tmp_path, b"a")
    watcher.remove_directory(tmp_path, b"a")
    touch(tmp_path / "a" / "b" / "x.f")
    touch(tmp_path / "ab" / "x.f")
    assert await told(watcher, tmp_path) == [b"ab/x.f"]
    watcher.remove_root(tmp_path)
    assert watcher.directories == 0


async def test_what_is_no_directory_is_not_watched(watcher: OpenWatcher, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert not watcher.add_directory(tmp_path, b"none")
    assert not watcher.add_directory(tmp_path, b"file")
    assert not watcher.add_directory(tmp_path, b"link")
    assert watcher.directories == 0


async def test_limit_of_watches_is_said(
    watcher: OpenWatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, path: bytes, mask: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(syscalls, "inotify_watch", full)
    with pytest.raises(Unavailable, match="max_user_watches"):
        watcher.add_directory(tmp_path, b"")


async def test_slow_reader_is_bounded(
    watcher: OpenWatcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "MOST_WAITING", 2)
    watcher.add_directory(tmp_path, b"")
    for name in "abc":
        (tmp_path / name).touch()
    watcher._drain()
    assert watcher.dropped == 1
    async with asyncio.timeout(10):
        assert [(await anext(watcher)).path for _ in range(2)] == [b"a", b"b"]


async def test_a_crowd_of_opens_does_not_wake_the_loop_for_each(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pstore.watch.opens.PAUSE_S", 3600)
    async with OpenWatcher(clock) as watcher:
        watcher.add_directory(tmp_path, b"")
        heard: set[int] = set()
        for number in range(50):
            (tmp_path / f"{number}").touch()
            await asyncio.sleep(0)
            heard.add(len(watcher._waiting))
        assert len(heard) <= 2  # one look, then a pause
        watcher.catch_up()
        assert len(watcher._waiting) == 50


async def test_cancelled_reader_loses_nothing(watcher: OpenWatcher, tmp_path: Path) -> None:
    watcher.add_directory(tmp_path, b"")
    for _ in range(3):
        reader = asyncio.ensure_future(anext(watcher))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
    (tmp_path / "a").touch()
    async with asyncio.timeout(10):
        assert (await anext(watcher)).path == b"a"


async def test_closing_ends_the_reader(tmp_path: Path) -> None:
    watcher = OpenWatcher()
    await watcher.start()
    watcher.add_directory(tmp_path, b"")
    reader = asyncio.ensure_future(anext(watcher, None))
    await asyncio.sleep(0)
    await watcher.close()
    await watcher.close()
    assert await reader is None
    with pytest.raises(Unavailable):
        watcher.add_directory(tmp_path, b"")


def test_works_under_uvloop(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> list[bytes]:
        async with OpenWatcher() as watcher:
            (tmp_path / "a.f").touch()
            watcher.add_directory(tmp_path, b"")
            touch(tmp_path / "a.f")
            return await told(watcher, tmp_path)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == [b"a.f"]
