"""Carriers and folders keep apart, and a carrier that is given up is relied on by nothing.

A piece that lies in a watched folder would be taken for a file of the user's: copied to the carrier
again without end, and replaced, so that the carrier has it no more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pstore.carriers import CarrierConfig, FolderConfig, PictureFolderConfig
from p2pstore.errors import UsageError
from p2pstore.maintenance import Place, carrier_id
from p2pstore.node.build import Node
from p2pstore.policy import refuse_carrier
from p2pstore.store import BundleRow

Progress = Callable[[dict[str, Any]], None]


async def add_carrier(node: Node, name: str, config: CarrierConfig) -> Place:
    """Set it up, and take up what others have left there; UsageError, and what trying it raises."""
    if isinstance(config, FolderConfig | PictureFolderConfig):
        path = Path(os.path.realpath(config.path))
        watched = [Path(os.path.realpath(folder.path)) for folder in node.folders.all()]
        reason = refuse_carrier(path, Path(os.path.realpath(node.home.path)), watched)
        if reason is not None:
            raise UsageError(f"{config.path}: {reason}")
    place = await node.network.places.add(name, config)
    await node.network.read_letters()
    return place


def check_folder(node: Node, directory: str) -> None:
    """UsageError when a carrier lies in a directory that is to be watched."""
    path = Path(os.path.realpath(directory))
    for place in node.network.places.all():
        if isinstance(place.config, FolderConfig | PictureFolderConfig):
            there = Path(os.path.realpath(place.config.path))
            if path == there or path in there.parents:
                raise UsageError(f"{directory}: The carrier {place.name} lies in it ({there}).")


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

    tried: set[int] = set()

    def relying() -> list[BundleRow]:
        rows = [row for row in places.only_away(name) if row.id not in tried]
        return node.maintenance.relying(rows, carrier_id(name))

    while rows := await asyncio.to_thread(relying):  # more may be evicted meanwhile
        total, done = sum(row.bytes for row in rows), 0
        for row in rows:
            progress({"stage": "fetch", "bytes": done, "bytes_total": total})
            await node.upkeep.refetcher.refetch(row)
            tried.add(row.id)
            done += row.bytes
    await places.remove(name)
