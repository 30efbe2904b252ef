"""A recovery concludes nothing before everything that is named is in its place."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from p2pstore.errors import PeerUnreachable
from p2pstore.folders.laying import LaidOut
from p2pstore.home import RECOVERING, Followed, Home
from p2pstore.ids import FolderId
from p2pstore.maintenance import Later
from p2pstore.maintenance.rebuild import State, save_state
from p2pstore.members import is_recovering
from p2pstore.node.laying import Laying
from p2pstore.placement import TAKEN, TOO_LONG
from p2pstore.store import Catalog

FOLDER = FolderId(b"f" * 16)


class InUse:
    """A node whose only folder was recovered, and is in use."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.folder = SimpleNamespace(
            folder_id=FOLDER, path=Path("/v"), entry=SimpleNamespace(paused="", follows=())
        )
        self.events: list[str] = []
        self.slow = asyncio.Event()  # until then laying out goes on
        self.completed = asyncio.Event()
        self.completed.set()
        self.folders = self
        self.maintenance = self
        self.catalog = SimpleNamespace(view=lambda look: None)

    def all(self) -> list[Any]:
        return [self.folder]

    async def open_again(self, folder: Any) -> bool:
        self.events.append("rests")
        assert is_recovering(self.home), "the mark comes first"
        folder.entry.paused = RECOVERING
        return True

    async def lay_out(self, folder: Any, progress: Any) -> LaidOut:
        self.events.append("begins to lay out")
        await self.slow.wait()
        self.events.append("has laid out")
        return LaidOut(0, 0, ())

    async def recovered(self, folder: Any, follows: Any) -> None:
        folder.entry.paused = ""

    def changed(self) -> None: ...

    def follow(self, folder: Any, follows: Any) -> None:
        folder.entry.follows = follows


@pytest.fixture
def in_use(tmp_path: Path) -> Iterator[Any]:
    home = Home(tmp_path / "home")
    home.make_directory()
    home.write_state(b"whole")
    node: Any = InUse(home)
    with ThreadPoolExecutor(1) as pool:
        node.pool = pool
        yield node


async def test_nothing_is_laid_out_before_all_is_filed(in_use: Any) -> None:
    in_use.slow.set()
    laying = Laying(in_use)
    task = asyncio.create_task(laying.run())
    async with laying.filing():
        assert await laying.open_again(FOLDER)
        ended = asyncio.create_task(laying.end())
        for _ in range(20):
            await asyncio.sleep(0)
        assert in_use.events == ["rests"]
        in_use.events.append("filed")
    await ended
    assert in_use.events[:2] == ["rests", "filed"]
    async with asyncio.timeout(20):
        while is_recovering(in_use.home):
            await asyncio.sleep(0.01)
    assert in_use.folder.entry.paused == ""
    task.cancel()


async def test_nothing_is_filed_while_something_is_laid_out(in_use: Any) -> None:
    in_use.folder.entry.paused = RECOVERING
    laying = Laying(in_use)
    work = asyncio.create_task(laying.lay_out())
    while not in_use.events:
        await asyncio.sleep(0)
    async with laying.filing():
        opening = asyncio.create_task(laying.open_again(FOLDER))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not opening.done()
        in_use.slow.set()
        assert await opening
    await work
    assert in_use.events[:3] == ["begins to lay out", "has laid out", "rests"]


async def test_what_was_read_is_recorded_when_nothing_is_to_be_laid_out(in_use: Any) -> None:
    laying = Laying(in_use)
    follows = (Followed(b"d" * 20, 1, 2),)
    laying.has_read(Later(FOLDER, follows, ()))
    assert in_use.folder.entry.follows == follows
    in_use.folder.entry.paused = RECOVERING
    laying.has_read(Later(FOLDER, (), ()))
    assert in_use.folder.entry.follows == follows, "not before it lies there"


class Around:
    """A node with one folder that is being recovered, as `lay_out` sees it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.laid = LaidOut(0, 0, ())
        self.concluded = False
        self.is_news = asyncio.Event()  # for the next index
        self.copied: list[str] = []
        self.holder_is_there = True

    def unread(self, *folders: FolderId) -> None:
        state = State(1, False, len(folders), folders=folders)
        self.catalog.write(lambda db: save_state(db, state)).result()

    async def lay(self) -> list[dict[str, Any]]:
        folder = SimpleNamespace(
            folder_id=FOLDER, path=Path("/v"), entry=SimpleNamespace(paused=RECOVERING)
        )

        async def laid(*_: Any) -> LaidOut:
            return self.laid

        async def recovered(*_: Any) -> None:
            self.concluded = True

        async def is_there(*_: Any) -> bool:
            return False

        async def copy(logical: str, _: str) -> None:
            if not self.holder_is_there:
                raise PeerUnreachable("it is away")
            self.copied.append(logical)

        async def take_in(*_: Any) -> None: ...

        with ThreadPoolExecutor(1) as pool:
            node: Any = SimpleNamespace(
                completed=asyncio.Event(),
                pool=pool,
                catalog=self.catalog,
                vfs=SimpleNamespace(copy=copy),
                maintenance=SimpleNamespace(changed=self.is_news.set),
                folders=SimpleNamespace(
                    all=lambda: [folder],
                    lay_out=laid,
                    recovered=recovered,
                    is_there=is_there,
                    take_in=take_in,
                ),
            )
            node.completed.set()
            return await Laying(node).lay_out()


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    with Catalog.open(tmp_path / "catalog.sqlite") as catalog:
        yield Around(catalog)


async def test_a_folder_that_is_whole_is_watched_and_indexed(around: Around) -> None:
    assert await around.lay() == []
    assert around.concluded
    assert around.is_news.is_set()


async def test_while_its_index_was_not_read_whole_it_waits(around: Around) -> None:
    around.unread(FOLDER)
    (lack,) = await around.lay()
    assert "who keeps the rest of its list" in lack["error"]["message"]
    assert not around.concluded, "what comes to be known later would be taken for deleted"


async def test_another_folders_index_is_no_reason_to_wait(around: Around) -> None:
    around.unread(FolderId(b"o" * 16))
    assert await around.lay() == []
    assert around.concluded


@pytest.mark.parametrize("reason", [TOO_LONG, TAKEN])
async def test_what_can_have_no_placeholder_comes_back_whole(around: Around, reason: str) -> None:
    around.laid = LaidOut(0, 0, ((b"name", reason),))
    assert await around.lay() == []
    assert around.copied == ["/v/name"]
    assert around.concluded


async def test_while_who_keeps_that_is_away_the_folder_waits(around: Around) -> None:
    around.laid = LaidOut(0, 0, ((b"name", TOO_LONG),))
    around.holder_is_there = False
    (lack,) = await around.lay()
    assert lack["path"] == "/v/name"
    assert not around.concluded


async def test_without_its_manifest_a_file_is_waited_for(around: Around) -> None:
    around.laid = LaidOut(0, 0, ((b"name", "its manifest has not been found yet"),))
    assert len(await around.lay()) == 1
    assert not around.concluded
