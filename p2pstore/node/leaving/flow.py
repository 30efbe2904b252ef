"""The steps of LEAVE in their order, once at a time, whoever waits for them.

Typed while it is going on already, the command shows how that goes. A client that goes away changes
nothing; `cancel` ends it, and the node stays.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from p2pstore.errors import Busy, P2PStoreError, Unavailable
from p2pstore.ids import NodeId, short
from p2pstore.node.build import Node
from p2pstore.node.leaving.allowed import CONTENT, lacks_room, obstacles
from p2pstore.node.leaving.back import hydrate, not_back, totals
from p2pstore.node.leaving.export import Export, make_target
from p2pstore.node.leaving.goodbye import release_all
from p2pstore.node.leaving.handover import hand_over
from p2pstore.placement import Root
from p2pstore.store import State
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

HEAR_S = 5.0  # a device that is connected answers at once, or is not there any more

Json = dict[str, Any]
Progress = Callable[[Json], None]


class Leaving:
    """The LEAVE that is going on, if one is."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Json] | None = None
        self._to: str | None = None
        self._watching: list[Progress] = []

    async def leave(self, node: Node, to: str | None, progress: Progress) -> Json:
        """Do it, or go along with the one that is going on."""
        self._watching.append(progress)
        try:
            if self._task is None:
                return await self._lead(node, to)
            if to != self._to:
                raise Busy(
                    "This node is leaving in another way already. To choose anew: "
                    "p2pstore leave --cancel"
                )
            return await _outcome(self._task)
        finally:
            self._watching.remove(progress)

    async def _lead(self, node: Node, to: str | None) -> Json:
        """The first caller owns the task, which others watch and may cancel."""
        self._to = to
        self._task = task = asyncio.ensure_future(leave(node, to, self._tell))
        try:
            return await _outcome(task)
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._task = None

    async def cancel(self, node: Node) -> bool:
        """The node stays; whether it was leaving."""
        was_leaving = node.upkeep.handing.is_leaving
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await node.upkeep.handing.stay()
        return was_leaving

    def _tell(self, news: Json) -> None:
        for progress in self._watching:
            progress(news)


async def _outcome(task: asyncio.Task[Json]) -> Json:
    """What it returns or raises. Whoever waits may go away: that does not end it."""
    await asyncio.wait([task])
    if task.cancelled():
        raise Unavailable("It was cancelled: this node stays.")
    return task.result()


async def leave(node: Node, to: str | None, progress: Progress) -> Json:
    """The result as the contract has it; after "left" nothing here is needed by anybody."""
    await _hear_of_others(node)
    reasons = await in_thread(node.pool, obstacles, node)
    if not reasons:
        reasons = await in_thread(node.pool, lacks_room, node, to)
    if reasons:
        return _result(node, reasons, to)
    await node.upkeep.handing.leave()
    has_left = False
    try:
        result = await _leave(node, to, progress)
        has_left = result["left"]
        return result
    except asyncio.CancelledError:
        has_left = True  # interrupted by the node's own end, after which it goes on, or by `cancel`
        raise
    finally:
        if not has_left:
            await node.upkeep.handing.stay()


async def _hear_of_others(node: Node) -> None:
    """Who is of the group by now: word of a device that has just joined may not be here yet."""

    async def one(device: NodeId) -> None:
        try:
            async with asyncio.timeout(HEAR_S):
                await node.network.pull(device)
        except (P2PStoreError, TimeoutError) as exc:
            log.debug("%s tells nothing of the group: %s", short(device), exc)

    async with asyncio.TaskGroup() as group:
        for link in node.network.devices():
            group.create_task(one(link.node_id))


async def _leave(node: Node, to: str | None, progress: Progress) -> Json:
    reasons = await hand_over(node, progress)
    if reasons:
        return _result(node, reasons, to)
    exporting = Export(node, Path(to or os.devnull), progress)
    if to is None:
        reasons = await hydrate(node, progress)
    else:
        await in_thread(node.pool, make_target, Path(to))
        reasons = await exporting.export(node.folders.all(), CONTENT)
    if reasons:
        return _result(node, reasons, to)
    counted = await in_thread(node.pool, node.catalog.view, totals)
    watched = node.folders.all()
    for folder in watched:
        # The originals in trash are back, or exported: what may go need not wait.
        await folder.empty_trash()
        how = "hydrate" if to is None else "leave"
        await node.folders.remove(os.fspath(folder.path), how, progress)
    # Now that nothing is replaced any more: what came in while the rest was brought back.
    if to is None:
        reasons = await in_thread(node.pool, not_back, node, watched)
    else:
        reasons = await exporting.export(watched, (State.PLACEHOLDER,))
    if reasons:
        return _result(node, reasons, to)
    for folder in watched if to is None else ():
        await in_thread(node.pool, Root.unmark, folder.path)
    await release_all(node, progress)
    await in_thread(node.pool, node.home.mark_left)
    return {**_result(node, [], to), "left": True, "files": counted[0], "bytes": counted[1]}


def _result(node: Node, reasons: Sequence[str], to: str | None) -> Json:
    return {
        "left": False,
        "reasons": list(reasons),
        "home": os.fspath(node.home.path),
        "exported": None if to is None or reasons else os.path.realpath(to),
        "files": 0,
        "bytes": 0,
    }
