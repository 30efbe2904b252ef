"""Giving a carrier up: what relies on it is brought back first."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from p2pstore.errors import UsageError
from p2pstore.node.build import Node

Progress = Callable[[dict[str, Any]], None]


async def remove_carrier(node: Node, name: str, progress: Progress) -> None:
    """UsageError while a folder names it; NoRoom, or what bringing bundles back raises: then it
    stays, and what came back stays here as well."""
    for folder in node.folders.all():
        if name in folder.settings.carriers:
            where = os.fspath(folder.path)
            raise UsageError(
                f"{where} keeps copies at {name}. First: p2pstore add-folder {where} --carrier none"
            )
    places = node.network.places
    rows = await asyncio.to_thread(places.relying, name)
    total, done = sum(row.bytes for row in rows), 0
    for row in rows:
        progress({"stage": "fetch", "bytes": done, "bytes_total": total})
        await node.refetcher.refetch(row)
        done += row.bytes
    await places.remove(name)
