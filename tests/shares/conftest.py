"""Shares of one device, with the real store, catalog and collector behind them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from p2pstore.home import Home
from p2pstore.ingest import Author, Ingest
from p2pstore.shares import Maker, Reader, ShareRecord, Shares
from p2pstore.store import BundleRow, blocks
from tests.maintenance.nodes import Device, Group


class Sharing:
    """What is shared here; `begin` starts anew, as after an end that nobody saw coming."""

    def __init__(self, device: Device, path: Path) -> None:
        self.device = device
        self.path = path
        self.home = Home(path / "home")
        self.home.make_directory()
        self.free = 1 << 40
        self.asked: list[str] = []  # for the content of placeholders
        self.placeholder = b""  # what any placeholder stands for
        self.shares = self.begin()

    def begin(self) -> Shares:
        device = self.device
        author = Author(device.key, b"", device.group)
        self.shares = Shares(
            self.home,
            store=device.bundles,
            catalog=device.catalog,
            author=lambda: author,
            maker=Maker(
                store=device.bundles,
                catalog=device.catalog,
                author=lambda: author,
                ingest=lambda ring: Ingest(
                    store=device.bundles,
                    catalog=device.catalog,
                    author=lambda: author,
                    ring=lambda: ring,
                    clock=device.clock,
                    pool=device.world.pool,
                ),
                clock=device.clock,
            ),
            reader=Reader(
                self.home.path,
                content=self._content,
                size=self._size,
                free=lambda: self.free,
                pool=device.world.pool,
            ),
            hints=list,
            changed=_nobody_hears,
            end=device.collector.end,
            clock=device.clock,
            pool=device.world.pool,
        )
        return self.shares

    async def _content(self, path: str) -> AsyncIterator[bytes]:
        self.asked.append(path)
        yield self.placeholder

    async def _size(self, path: str) -> int:
        return len(self.placeholder)

    async def upload(self, content: bytes, **terms: bool) -> ShareRecord:
        path = self.path / "file"
        path.write_bytes(content)
        return await self.shares.upload(
            os.fspath(path), once=terms.get("once", False), progress=_quiet
        )

    def rows(self, record: ShareRecord) -> list[BundleRow]:
        ids = [ref.bundle_id for ref in record.bundles]
        return list(self.device.catalog.view(lambda db: blocks.get_bundles(db, ids)).values())


def _quiet(done: int, total: int) -> None:
    """Nobody watches."""


async def _nobody_hears() -> None: ...


MakeSharing = Callable[[Device], Sharing]


@pytest.fixture
async def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Group]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    before = asyncio.all_tasks()
    made = Group(tmp_path)
    yield made
    await made.close()
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}, "a task outlived close()"


@pytest.fixture
def sharing(tmp_path: Path) -> MakeSharing:
    return lambda device: Sharing(device, tmp_path / device.name)
