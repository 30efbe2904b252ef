"""A whole node in this process, on a HOME of its own, without the network around it."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from p2pstore.clock import SystemClock
from p2pstore.config import load
from p2pstore.home import Home
from p2pstore.members import found
from p2pstore.node.build import Node

SETTINGS = {
    "listen": "127.0.0.1:0",
    "ui": "off",
    "mdns": "false",
    "settle": "50ms",
    "trash_hold": "1h",
    "keep": "1h",
    "keep_free": "1MB",
    "allow_volatile_store": "true",
}
CONTENTS = {
    "a.txt": b"alpha",
    "sub/b.bin": random.Random(1).randbytes(150_000),
    "odd \n name.txt": b"newline",
    "empty": b"",
}


class Place:
    """A HOME and a folder that is to be watched."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = Home(base / "home")
        self.folder = base / "folder"
        self.folder.mkdir()
        self.words = found(self.home, "here", now=SystemClock().wall(), random=bytes(range(32)))

    def write(self, contents: Mapping[str, bytes]) -> None:
        for name, content in contents.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def contents(self, where: Path | None = None) -> dict[str, bytes]:
        """Everything below a directory, ours left out."""
        where = where or self.folder
        return {
            os.path.relpath(path, where): path.read_bytes()
            for path in where.rglob("*")
            if path.is_file() and ".p2pstore" not in path.parts
        }

    @contextlib.asynccontextmanager
    async def running(self, **settings: str) -> AsyncIterator[Node]:
        config = load(self.home.path, {}, {**SETTINGS, **settings})
        async with Node(self.home, config).running() as node:
            yield node

    async def filled(self, node: Node) -> None:
        """The folder is watched and everything in it replaced."""
        self.write(CONTENTS)
        await node.folders.add(os.fspath(self.folder), {}, force=False)
        done = await node.folders.wait(os.fspath(self.folder), lambda _: None)
        assert done["replaced"] == len(CONTENTS), done


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)
