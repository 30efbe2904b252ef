"""A whole node in a process of its own, driven through its folders.

    python -m tests.bench.node protect|replace FOLDER HOME   ... then re-scan, and restore
    python -m tests.bench.node serve FOLDER HOME             serve what it took until stdin ends
    python -m tests.bench.node fetch PLACEHOLDER HOME LINK   join by the link, fetch over TLS

The settle time is a wish of the user and no work: it is left out of the walls.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

from p2pstore.config import Config, load
from p2pstore.home import Home
from p2pstore.members import found
from p2pstore.node.build import Node
from p2pstore.node.inviting import invite, join_group
from p2pstore.node.life import run_loop, tune
from tests.bench.measure import Phase

SETTLE_S = 0.3


def config_of(home: Path, **more: str) -> Config:
    settings = {
        "listen": "127.0.0.1:0",
        "mdns": "false",
        "settle": f"{SETTLE_S}s",
        "trash_hold": "1h",
        "keep_free": "0",
        "allow_volatile_store": "true",
        **more,
    }
    return load(home, {}, settings)


def _quiet(_: dict[str, Any]) -> None:
    pass


async def _work(how: str, folder: Path, home: Path) -> None:
    node = Node(Home(home), config_of(home))
    async with node.running():
        with Phase(how) as phase:
            phase.waited_s = SETTLE_S
            settings = {"protect_only": ["**"]} if how == "protect" else {}
            await node.folders.add(os.fspath(folder), settings, force=True)
            await node.folders.wait(os.fspath(folder), _quiet)
        (watched,) = node.folders.all()
        gc.collect()
        with Phase("rescan"):
            looking = watched._looking  # only the folder itself knows when it has looked
            looked = looking._ended
            watched.ask_rescan("bench")
            while looking._ended == looked:
                await asyncio.sleep(0.002)
        if how == "replace":
            await asyncio.sleep(1.5)  # leases are held for a second
            with Phase("restore"):
                brought = await node.folders.hydrate([os.fspath(folder)], _quiet)
            for one in brought:
                if one.error is not None:
                    raise one.error


async def _serve(folder: Path, home: Path) -> None:
    node = Node(Home(home), config_of(home))
    async with node.running():
        await node.folders.add(os.fspath(folder), {}, force=True)
        await node.folders.wait(os.fspath(folder), _quiet)
        print("link", invite(node, "device", confirm=False)["link"], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def joined(home: Path, link: str) -> Node:
    """A second node of the group. It takes no copies, which would come while it fetches."""
    config = config_of(home, offer="0")
    await join_group(Home(home), config, {"link": link, "name": "second"}, _quiet)
    return Node(Home(home), config)


async def linked(node: Node) -> None:
    async with asyncio.timeout(30):
        while not node.network.connections.links():
            await asyncio.sleep(0.02)


async def _fetch(placeholder: Path, home: Path, link: str) -> None:
    node = await joined(home, link)
    async with node.running():
        await linked(node)
        with Phase("fetch"):
            brought = await node.folders.hydrate([os.fspath(placeholder)], _quiet)
        for one in brought:
            if one.error is not None:
                raise one.error


def main(how: str, first: str, second: str, *rest: str) -> None:
    tune()
    home = Path(second)
    if how == "fetch":
        run_loop(_fetch(Path(first), home, *rest))
        return
    found(Home(home), "bench", now=time.time(), random=os.urandom(32))
    run_loop(_serve(Path(first), home) if how == "serve" else _work(how, Path(first), home))


if __name__ == "__main__":
    main(*sys.argv[1:])
