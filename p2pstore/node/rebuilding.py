"""A rebuilt catalog learns from the group's devices what its own disk could not tell.

Runs beside everything else until every other device has been asked once; meanwhile files can be
read and brought back, and nothing is evicted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from p2pstore.errors import P2PStoreError
from p2pstore.ids import NodeId
from p2pstore.maintenance import Completed, Holding, complete_with_holdings, rebuild_state
from p2pstore.node.build import Node

log = logging.getLogger(__name__)

GATHER_S = 3.0  # devices that come back together are asked together
RETRY_S = 30.0

Progress = Callable[[dict[str, Any]], None]


async def complete(node: Node) -> None:
    """Until all other devices of the group have been asked."""
    asked: set[NodeId] = set()
    while True:
        state = rebuild_state(node.catalog)
        others = set(node.group.others())
        connected = {link.node_id for link in node.network.devices()}
        if others and not connected - asked:
            if asked >= others or (asked and state is not None and not state.pending):
                return
            await asyncio.sleep(GATHER_S)
            continue
        await asyncio.sleep(GATHER_S if others else 0)
        connected = {link.node_id for link in node.network.devices()}
        try:
            done = await ask(node, connected, lambda _: None)
        except P2PStoreError as exc:
            log.warning("The rebuild of the catalog goes on later: %s", exc)
            await asyncio.sleep(RETRY_S)
            continue
        asked |= connected
        node.maintenance.rebuilding = False
        node.completed.set()
        if done.missing:
            log.warning("%d bundles are needed and were found nowhere yet.", done.missing)
        for folder in node.folders.all():
            folder.ask_rescan("the catalog was rebuilt", judge_anew=True)
        node.maintenance.changed()
        if not others:
            return


async def ask(node: Node, connected: set[NodeId], progress: Progress) -> Completed:
    """Ask these devices what they keep for us, and record it."""

    async def holdings() -> AsyncIterator[tuple[NodeId, Holding]]:
        for holder in sorted(connected):
            async for holding in node.pusher.holdings(holder):
                yield holder, holding

    async def heads() -> AsyncIterator[bytes]:
        for holder in sorted(connected):
            for raw in (await node.pusher.get_heads(holder)).heads:
                yield raw

    return await complete_with_holdings(
        node.catalog,
        home=node.home,
        store=node.store,
        author=node.group.author(),
        ring=node.group.ring(),
        judge=node.group.judge,
        clock=node.clock,
        pool=node.pool,
        source=node.source,
        holdings=holdings,
        heads=heads,
        progress=progress,
    )
