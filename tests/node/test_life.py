"""What a node says of itself when it begins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pstore import sdnotify
from p2pstore.config import load
from p2pstore.folders import looking
from p2pstore.node import life
from p2pstore.node.control import NodeControl
from tests.node.conftest import SETTINGS, Place

DEADLINE_S = 20.0


class Faceless:
    """A frontend that serves nobody."""

    ui = None

    def __init__(self, control: NodeControl, path: Path) -> None:
        self.serves = asyncio.Event()

    async def start(self, ui_address: tuple[str, int] | None) -> None:
        self.serves.set()

    async def close(self) -> None:
        return None


class Beginning:
    """A node with a folder whose first look ends when the test says so."""

    def __init__(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        self.happened: list[str] = []
        self.is_ready = asyncio.Event()
        self.may_end = threading.Event()
        look_at_all: Callable[..., Any] = looking.look_at_all

        def look(*args: Any, **options: Any) -> Any:
            assert self.may_end.wait(DEADLINE_S)
            self.happened.append("looked")
            return look_at_all(*args, **options)

        def notify(state: str) -> bool:
            if state == "READY=1":
                self.happened.append("ready")
                self.is_ready.set()
            return True

        monkeypatch.setattr(looking, "look_at_all", look)
        monkeypatch.setattr(sdnotify, "notify", notify)
        monkeypatch.setattr(life, "_quit_late", lambda: None)  # it would end the tests
        config = load(place.home.path, {}, SETTINGS)
        self.running = life._Running(config, place.home, self._make)

    def _make(self, control: NodeControl, path: Path) -> Faceless:
        self.frontend = Faceless(control, path)
        return self.frontend


@pytest.fixture
async def beginning(place: Place, monkeypatch: pytest.MonkeyPatch) -> Beginning:
    async with place.running() as node:
        await place.filled(node)
    return Beginning(place, monkeypatch)


async def test_it_is_ready_when_its_folders_were_looked_at(beginning: Beginning) -> None:
    """Before that nobody hears of a placeholder that is opened."""
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(beginning.running.serve())
        await beginning.frontend.serves.wait()  # commands are answered meanwhile
        beginning.may_end.set()
        await beginning.is_ready.wait()
        beginning.running.stop()
    assert beginning.happened == ["looked", "ready"]


async def test_a_large_folder_is_not_waited_for_long(
    beginning: Beginning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "FIRST_LOOK_S", 0.01)
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(beginning.running.serve())
        await beginning.is_ready.wait()
        beginning.may_end.set()
        beginning.running.stop()
    assert beginning.happened[0] == "ready"


async def test_a_folder_that_is_not_there_is_not_waited_for(
    beginning: Beginning, place: Place
) -> None:
    place.folder.rename(place.base / "unplugged")
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(beginning.running.serve())
        await beginning.is_ready.wait()
        beginning.running.stop()
    assert beginning.happened == ["ready"]


async def test_told_to_end_it_does_not_wait_for_the_first_look(beginning: Beginning) -> None:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        group.create_task(beginning.running.serve())
        await beginning.frontend.serves.wait()
        beginning.running.stop()
        beginning.may_end.set()
    assert "ready" not in beginning.happened
