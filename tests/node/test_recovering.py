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
from p2pstore.home import RECOVERING
from p2pstore.ids import FolderId
from p2pstore.maintenance.rebuild import State, save_state
from p2pstore.node.recovering import lay_out
from p2pstore.placement import TAKEN, TOO_LONG
from p2pstore.store import Catalog

FOLDER = FolderId(b"f" * 16)


class Around:
    """A node with one folder that is being recovered, as `lay_out` sees it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.laid = LaidOut(0, 0, ())
        self.concluded = False
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

        async def recovered(_: Any) -> None:
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
                folders=SimpleNamespace(
                    all=lambda: [folder],
                    lay_out=laid,
                    recovered=recovered,
                    is_there=is_there,
                    take_in=take_in,
                ),
            )
            node.completed.set()
            return await lay_out(node)


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    with Catalog.open(tmp_path / "catalog.sqlite") as catalog:
        yield Around(catalog)


async def test_a_folder_that_is_whole_is_watched(around: Around) -> None:
    assert await around.lay() == []
    assert around.concluded


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
