from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from p2pstore.clock import SystemClock
from p2pstore.config import FolderSettings
from p2pstore.folders import Folder, Parts
from p2pstore.ids import node_id_of
from p2pstore.placement import Root
from p2pstore.store import FileRow, files
from p2pstore.watch import OpenWatcher
from tests.faults.world import GROUP, RING, World

if sys.platform != "linux":
    collect_ignore_glob = ["test_*.py"]

DEADLINE_S = 20.0


class Room:
    def lacks(self, root: Root, incoming: int) -> str | None:
        return None


class Watched:
    """A folder that is watched by the real thing, and ways to wait for what it does."""

    def __init__(self, made: World, opens: OpenWatcher, *, trash_hold_s: float = 0.0) -> None:
        self.world = made
        self.entry = made.entry()
        self.folder = Folder(
            self.entry,
            made.row,
            Parts(
                catalog=made.catalog,
                store=made.store,
                taking=made.taking,
                keeper=made.keeper,
                opens=opens,
                ring=lambda: RING,
                clock=made.clock,
                pool=made.pool,
                turns=asyncio.Semaphore(2),
                room=Room(),
                me=node_id_of(GROUP),
                trash_hold_s=trash_hold_s,
                trash_hold_short_s=trash_hold_s,
                volatile=None,
                protected=lambda: None,
            ),
        )
        self.task = asyncio.create_task(self.folder.run())

    def set(self, **changes: object) -> None:
        settings = self.folder.settings.changed(changes)
        assert isinstance(settings, FolderSettings)
        self.folder.change_settings(settings)

    def rows(self) -> dict[bytes, FileRow]:
        found = self.world.catalog.view(lambda db: list(files.walk(db, self.world.row)))
        return {row.path: row for row in found}

    def state(self, path: bytes) -> str:
        row = self.world.file_row(path)
        return "" if row is None else row.state

    async def until(self, what: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE_S
        while not what():
            assert not self.task.done(), self.task
            assert time.monotonic() < end, f"it did not happen; rows {self.rows()}"
            await asyncio.sleep(0.02)

    async def settled(self) -> None:
        """Everything is replaced or has its reason, also what changed last."""
        self.folder.ask_rescan("the test asks")
        await self.until(self.folder.is_settled)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture
def made(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    yield made  # type: ignore[misc]
    made.close()


@pytest.fixture
async def watched(made: World) -> AsyncIterator[Watched]:
    async with OpenWatcher(SystemClock()) as opens:
        running = Watched(made, opens)
        yield running
        await running.stop()
