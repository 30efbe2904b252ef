from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import p2pstore.watch.changes as door
from p2pstore.errors import UsageError
from p2pstore.watch.changes import (
    Changed,
    ChangeWatcher,
    Event,
    RescanWanted,
    RootBack,
    RootGone,
    _Mailbox,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watching is of Linux")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "DEBOUNCE_MS", 40)
    monkeypatch.setattr(door, "STEP_MS", 5)
    monkeypatch.setattr(door, "TICK_MS", 10)
    monkeypatch.setattr(door, "PRESENCE_S", 0.02)
    monkeypatch.setattr(door, "RESTART_S", 0.02)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / ".p2pstore").mkdir(parents=True)
    return tmp_path / "root"


async def until(watcher: ChangeWatcher, wanted: Callable[[list[Event]], bool]) -> list[Event]:
    events: list[Event] = []
    async with asyncio.timeout(15):
        async for event in watcher:
            events.append(event)
            if wanted(events):
                return events
    raise AssertionError("the watcher ended")


def paths(events: list[Event]) -> set[bytes]:
    return {path for event in events if isinstance(event, Changed) for path in event.paths}


def rescans(events: list[Event]) -> list[str]:
    return [event.reason for event in events if isinstance(event, RescanWanted)]


async def ready(watcher: ChangeWatcher) -> None:
    await until(watcher, lambda events: bool(rescans(events)))


async def test_first_a_rescan_is_wanted(root: Path) -> None:
    async with ChangeWatcher(root) as watcher:
        async with asyncio.timeout(15):
            first = await anext(watcher)
    assert isinstance(first, RescanWanted)


async def test_changes_are_named_below_the_root(root: Path) -> None:
    (root / "dir").mkdir()
    (root / "dir" / "changed").write_bytes(b"1")
    (root / "removed").write_bytes(b"1")
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        (root / "dir" / "changed").write_bytes(b"22")
        (root / "removed").unlink()
        (root / "new").touch()
        wanted = {b"dir/changed", b"removed", b"new"}
        assert paths(await until(watcher, lambda events: paths(events) >= wanted)) == wanted


async def test_moved_in_tree_is_named_by_its_top(root: Path, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").touch()
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        (tmp_path / "tree").rename(root / "tree")
        await until(watcher, lambda events: b"tree" in paths(events))
        (root / "tree" / "deep" / "later").touch()
        await until(watcher, lambda events: b"tree/deep/later" in paths(events))


async def test_our_own_directory_is_silent(root: Path) -> None:
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        (root / ".p2pstore" / "trash").mkdir()
        (root / ".p2pstore" / "trash" / "file").touch()
        (root / "end").touch()
        events = await until(watcher, lambda events: b"end" in paths(events))
        assert paths(events) == {b"end"}


async def test_burst_wants_a_rescan(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BURST", 5)
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        for number in range(20):
            (root / str(number)).touch()
        await until(watcher, lambda events: "many changes at once" in rescans(events))


async def test_sleep_wants_a_rescan(root: Path) -> None:
    slept = [100.0]
    async with ChangeWatcher(root, asleep_s=lambda: slept[0]) as watcher:
        await ready(watcher)
        slept[0] += 3600.0
        events = await until(watcher, lambda events: bool(rescans(events)))
        assert rescans(events) == ["the computer was asleep"]


async def test_name_that_cannot_be_said_wants_a_rescan_and_does_not_end_it(root: Path) -> None:
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        with open(os.fsencode(root) + b"/\xff\xfe", "wb"):
            pass
        await until(watcher, lambda events: any("broke off" in r for r in rescans(events)))
        # The second rescan comes when the new watches stand.
        await until(watcher, lambda events: any("broke off" in r for r in rescans(events)))
        (root / "after").touch()
        await until(watcher, lambda events: b"after" in paths(events))


async def test_limit_of_watches_wants_rescans(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "BACK_OFF_S", (0.001, 0.002))

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "OS file watch limit reached")

    real = door.watchfiles.watch
    monkeypatch.setattr(door.watchfiles, "watch", full)
    async with ChangeWatcher(root) as watcher:
        for _ in range(2):
            events = await until(watcher, lambda events: bool(rescans(events)))
            assert "watch limit" in rescans(events)[0]
        monkeypatch.setattr(door.watchfiles, "watch", real)
        while True:
            (root / "after").touch()
            async with asyncio.timeout(15):
                event = await anext(watcher)
            if isinstance(event, Changed):
                break


# --- links ---------------------------------------------------------------------------------


async def test_root_that_is_a_link_or_file_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(UsageError):
            await ChangeWatcher(tmp_path / name).start()


async def test_linked_directory_is_not_looked_through(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "real" / "deep").mkdir(parents=True)
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        assert watcher._plain
        (tmp_path / "outside" / "file").touch()
        (root / "real" / "deep" / "file").touch()
        events = await until(watcher, lambda events: b"real/deep/file" in paths(events))
        assert paths(events) == {b"real/deep/file"}


async def test_new_directories_beside_a_link_are_watched_too(root: Path, tmp_path: Path) -> None:
    (root / "link").symlink_to(tmp_path)
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        (root / "new").mkdir()
        await until(watcher, lambda events: "directories were added" in rescans(events))
        (root / "new" / "file").touch()
        await until(watcher, lambda events: b"new/file" in paths(events))


async def test_link_in_a_moved_in_tree_is_not_looked_through_for_long(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        (tmp_path / "tree").rename(root / "tree")
        await until(watcher, lambda events: b"tree" in paths(events))
        (tmp_path / "outside" / "file").touch()
        events = await until(watcher, lambda events: bool(rescans(events)))
        assert paths(events) <= {b"tree"}
        assert watcher._plain


# --- the root ------------------------------------------------------------------------------


async def test_root_that_goes_and_comes_back(root: Path, tmp_path: Path) -> None:
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        root.rename(tmp_path / "unplugged")
        await until(watcher, lambda events: RootGone() in events)
        (tmp_path / "unplugged" / "meanwhile").touch()
        (tmp_path / "unplugged").rename(root)
        events = await until(watcher, lambda events: bool(rescans(events)))
        assert events == [RootBack(), RescanWanted("the folder is back")]
        (root / "after").touch()
        await until(watcher, lambda events: b"after" in paths(events))


async def test_missing_root_is_waited_for(tmp_path: Path) -> None:
    async with ChangeWatcher(tmp_path / "later") as watcher:
        await until(watcher, lambda events: events == [RootGone()])
        (tmp_path / "later" / ".p2pstore").mkdir(parents=True)
        await until(watcher, lambda events: events[-2:-1] == [RootBack()])


async def test_root_without_its_marker_is_gone(root: Path) -> None:
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        (root / ".p2pstore").rmdir()
        await until(watcher, lambda events: RootGone() in events)
        (root / ".p2pstore").mkdir()
        await until(watcher, lambda events: RootBack() in events)


async def test_root_without_a_marker_wanted(tmp_path: Path) -> None:
    async with ChangeWatcher(tmp_path, marker=None) as watcher:
        await ready(watcher)


async def test_other_directory_in_its_place_is_told_as_gone_and_back(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "other" / ".p2pstore").mkdir(parents=True)
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        root.rename(tmp_path / "away")
        (tmp_path / "other").rename(root)
        events = await until(watcher, lambda events: bool(rescans(events)))
        assert [event for event in events if not isinstance(event, Changed)] == [
            RootGone(),
            RootBack(),
            RescanWanted("the folder is back"),
        ]


async def test_root_that_becomes_a_link_is_gone(root: Path, tmp_path: Path) -> None:
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        root.rename(tmp_path / "away")
        root.symlink_to(tmp_path / "away")
        await until(watcher, lambda events: RootGone() in events)


async def test_nothing_is_said_about_the_content_of_a_removed_root(root: Path) -> None:
    for number in range(50):
        (root / str(number)).touch()
    async with ChangeWatcher(root) as watcher:
        await ready(watcher)
        shutil.rmtree(root)
        events = await until(watcher, lambda events: RootGone() in events)
        assert events[-1] == RootGone()


# --- the mailbox ---------------------------------------------------------------------------


def drained(mailbox: _Mailbox) -> list[Event]:
    events = []
    while (event := mailbox.take()) is not None:
        events.append(event)
    return events


def test_hints_that_wait_are_joined() -> None:
    mailbox = _Mailbox()
    mailbox.changed([b"a", b"b"])
    mailbox.changed([b"b", b"c"])
    assert drained(mailbox) == [Changed(frozenset((b"a", b"b", b"c")))]


def test_too_many_hints_become_a_rescan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MOST_PENDING", 3)
    mailbox = _Mailbox()
    mailbox.changed([b"a", b"b", b"c"])
    assert mailbox.has_news()
    mailbox.changed([b"d"])
    assert drained(mailbox) == [RescanWanted("more changes than can be listed")]
    assert not mailbox.has_news()


def test_hints_from_before_the_root_went_are_forgotten() -> None:
    mailbox = _Mailbox()
    mailbox.changed([b"a"])
    mailbox.rescan("why")
    mailbox.root(gone=True)
    assert drained(mailbox) == [RootGone()]
    mailbox.root(gone=True)
    assert drained(mailbox) == []


def test_absence_shorter_than_a_slow_reader_is_told() -> None:
    mailbox = _Mailbox()
    mailbox.root(gone=True)
    mailbox.root(gone=False)
    mailbox.rescan("the folder is back")
    assert drained(mailbox) == [RootGone(), RootBack(), RescanWanted("the folder is back")]


# --- around --------------------------------------------------------------------------------


async def test_closing_ends_the_reader_and_the_thread(root: Path) -> None:
    watcher = ChangeWatcher(root)
    await watcher.start()
    thread = watcher._thread
    reader = asyncio.ensure_future(_all(watcher))
    await asyncio.sleep(0)
    await watcher.close()
    await watcher.close()
    await reader
    assert thread is not None
    assert not thread.is_alive()


async def _all(watcher: ChangeWatcher) -> list[Event]:
    return [event async for event in watcher]


def test_works_under_uvloop(root: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> set[bytes]:
        async with ChangeWatcher(root) as watcher:
            await ready(watcher)
            (root / "new").touch()
            return paths(await until(watcher, lambda events: bool(paths(events))))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(main()) == {b"new"}


def test_clock_that_counts_sleep_is_ahead() -> None:
    assert door._asleep_s() >= -0.01
