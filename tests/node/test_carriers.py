"""Carriers as they are set up and given up by commands, and what they must keep apart from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from p2pstore.config import Config
from p2pstore.errors import UsageError
from p2pstore.node.build import Node
from p2pstore.node.control import NodeControl
from tests.node.conftest import Place


async def ask(node: Node, method: str, **args: Any) -> Any:
    control = NodeControl(None, node.home, Config())  # type: ignore[arg-type]
    control.node = node
    return await control.dispatch(method, args, lambda _: None)


def folder_at(path: Path) -> dict[str, str]:
    return {"kind": "folder", "path": os.fspath(path)}


async def test_no_carrier_lies_in_a_watched_folder(place: Place, tmp_path: Path) -> None:
    """Its pieces would be taken for files: copied there again without end, and replaced."""
    (tmp_path / "link").symlink_to(place.folder)
    async with place.running() as node:
        await node.folders.add(os.fspath(place.folder), {}, force=False)
        album = {"kind": "picture-folder", "path": os.fspath(place.folder / "album")}
        for config in (
            folder_at(place.folder),
            folder_at(place.folder / "usb"),
            folder_at(tmp_path / "link/usb"),
            album,
        ):
            with pytest.raises(UsageError, match="watched folder"):
                await ask(node, "add_carrier", name="usb", config=config)
        assert os.listdir(place.folder) == [".p2pstore"]
        assert not node.network.places.all()


async def test_no_carrier_lies_in_the_store(place: Place, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(place.home.path)
    async with place.running() as node:
        for path in (place.home.path, place.home.path / "usb", tmp_path / "link/usb"):
            with pytest.raises(UsageError, match="own store"):
                await ask(node, "add_carrier", name="usb", config=folder_at(path))


async def test_no_folder_is_watched_with_a_carrier_in_it(place: Place) -> None:
    async with place.running() as node:
        usb = place.folder / "usb"
        await ask(node, "add_carrier", name="usb", config=folder_at(usb))
        for method in ("preview", "add_folder"):
            for directory in (place.folder, usb):
                with pytest.raises(UsageError, match="carrier usb"):
                    await ask(node, method, dir=os.fspath(directory))
        assert node.folders.all() == []


async def test_a_disk_may_have_a_carrier_beside_a_watched_folder(place: Place) -> None:
    async with place.running() as node:
        await node.folders.add(os.fspath(place.folder), {}, force=False)
        disk = place.folder.parent / "disk"
        await ask(node, "add_carrier", name="usb", config=folder_at(disk))
        assert [one.name for one in node.network.places.all()] == ["usb"]


@pytest.mark.parametrize("into", ["", "catalog.sqlite", "bundles", "new"])
async def test_nothing_is_written_into_the_store(place: Place, tmp_path: Path, into: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to(place.home.path)
    async with place.running() as node:
        key = (await ask(node, "upload", path=os.fspath(tmp_path / "file")))["key"]
        for home in (place.home.path, tmp_path / "link"):
            with pytest.raises(UsageError, match="own store"):
                await ask(node, "download", key=key, to=os.fspath(home / into), force=True)
        got = await ask(node, "download", key=key, to=os.fspath(tmp_path / "got"))
        assert Path(got["path"]).read_bytes() == b"content"
