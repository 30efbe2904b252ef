"""What is changed for a folder holds at once, for those too who read it from the catalog."""

from __future__ import annotations

import os

import msgspec

from p2pstore.config import Config, FolderSettings
from p2pstore.node.control import NodeControl
from p2pstore.store import folders
from tests.node.conftest import CONTENTS, Place


async def test_settings_of_a_watched_folder_reach_the_catalog(place: Place) -> None:
    async with place.running() as node:
        path = os.fspath(place.folder)
        await node.folders.add(path, {}, force=False)
        assert await node.folders.add(path, {"min_copies": 1}, force=False)
        (row,) = node.catalog.view(folders.every)
        assert msgspec.msgpack.decode(row.settings, type=FolderSettings).min_copies == 1


async def test_the_preview_asks_for_as_many_copies_as_the_folder_wants(place: Place) -> None:
    async with place.running() as node:
        control = NodeControl(None, node.home, Config())  # type: ignore[arg-type]
        control.node = node
        asked = {"dir": os.fspath(place.folder), "settings": {"min_copies": 1}}
        said = await control.dispatch("preview", asked, lambda _: None)
        assert said["min_copies"] == 1
        await node.folders.add(os.fspath(place.folder), asked["settings"], force=False)  # type: ignore[arg-type]
        said = await control.dispatch("preview", {"dir": asked["dir"]}, lambda _: None)
        assert said["min_copies"] == 1


async def test_the_preview_of_a_watched_folder_knows_its_placeholders(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        control = NodeControl(None, node.home, Config())  # type: ignore[arg-type]
        control.node = node
        asked = {"dir": os.fspath(place.folder)}
        said = await control.dispatch("preview", asked, lambda _: None)
        assert (said["files"], said["bytes"], said["placeholders"]) == (0, 0, len(CONTENTS))
