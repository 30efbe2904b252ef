"""What who waits for a folder is told."""

from __future__ import annotations

import itertools
import threading
from typing import Any

from p2pstore.folders import settling
from p2pstore.folders.settling import wait
from p2pstore.ingest import reading
from p2pstore.ingest.contents import Contents
from tests.folders.conftest import Watched

Heard = list[dict[str, Any]]


async def test_while_files_come_to_rest_it_says_so(watched: Watched) -> None:
    watched.set(settle_s=0.8)
    watched.world.write("one", b"content")
    await watched.until(lambda: watched.folder.pending() == 1)
    heard: Heard = []
    report = await wait(watched.folder, heard.append)
    assert {"stage": "rest", "files": 1, "bytes": 7} in heard
    assert (report["files"], report["replaced"], report["left"]) == (1, 1, [])


async def test_a_large_file_shows_how_far_it_is(watched: Watched, monkeypatch: Any) -> None:
    monkeypatch.setattr(settling, "POLL_S", 0.001)
    monkeypatch.setattr(settling, "COUNT_SHARE", 0)
    size = 6 * reading.WINDOW
    halfway: Heard = []
    was_seen, windows = threading.Event(), itertools.count()
    seal = Contents._seal_window

    def seal_when_seen(self: Contents, *window: Any) -> Any:
        if next(windows) == 3:
            assert was_seen.wait(10)
        return seal(self, *window)

    def hear(said: dict[str, Any]) -> None:
        if said["stage"] == "protect" and 0 < said["bytes"] < size:
            halfway.append(said)
            was_seen.set()

    monkeypatch.setattr(Contents, "_seal_window", seal_when_seen)
    watched.world.write("large", bytes(range(256)) * (size // 256))
    await watched.until(lambda: watched.folder.pending() == 1)
    await wait(watched.folder, hear)
    assert {said["bytes_total"] for said in halfway} == {size}


async def test_what_stays_is_told_with_its_reason(watched: Watched) -> None:
    world = watched.world
    world.write("data.sqlite3", b"database")
    world.write("one", b"content")
    with open(world.write("log", b"begin"), "ab"):
        await watched.until(lambda: bool(watched.folder.waiting.reasons()))
        report = await wait(watched.folder, lambda _: None)
    assert report["reasons"] == {"database": 1, "open in another program": 1}
    assert report["left_total"] == len(report["left"]) == 2
