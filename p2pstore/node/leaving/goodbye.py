"""Every holder is asked to let our bundles go; it keeps them for 7 days in its trash."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from p2pstore.errors import Busy, P2PStoreError
from p2pstore.ids import BundleId, NodeId
from p2pstore.node.build import Node
from p2pstore.store import copies
from p2pstore.text import plural
from p2pstore.threads import in_thread
from p2pstore.wire import Unknown

Progress = Callable[[dict[str, Any]], None]

RELEASE_PAGE = 500


class _Asked(NamedTuple):
    """A copy that a holder is asked to let go."""

    bundle: int
    bundle_id: BundleId


async def release_all(node: Node, progress: Progress) -> None:
    """Ask every holder to let our bundles go; it keeps them for 7 days in its trash.

    Those that may hold are asked in any case: a catalog that was just rebuilt does not know yet
    what they keep, and they could never leave in their turn.
    """
    holders = set(await in_thread(node.pool, node.catalog.view, _holders))
    others = node.network.holder_ids()
    if node.is_rebuilding():
        holders |= others
    async with asyncio.TaskGroup() as group:
        for holder in others - holders:  # absent ones have nothing, as far as anybody knows
            group.create_task(_release(node, holder, lambda _: None))
        for holder in holders:
            group.create_task(_release(node, holder, progress))


def _holders(db: sqlite3.Connection) -> list[NodeId]:
    query = "SELECT DISTINCT holder FROM copies WHERE state IN ('proved', 'suspect', 'moving')"
    return [NodeId(holder) for (holder,) in db.execute(query)]


async def _release(node: Node, holder: NodeId, progress: Progress) -> None:
    name = node.name_of(holder)
    try:
        kept = await _release_known(node, holder)
        if node.network.places.name_of(holder) is None:  # a carrier says nothing by itself
            kept |= await _release_listed(node, holder)
    except P2PStoreError as exc:
        progress({"text": f"{name} was not asked to let its copies go: {exc}"})
        return
    if kept:
        progress(
            {"text": f"{name} keeps {plural(len(kept), 'bundle')} for now, for somebody else."}
        )


async def _release_known(node: Node, holder: NodeId) -> set[BundleId]:
    """What the catalog says; the bundles that another device has locked there."""
    after, kept = 0, set[BundleId]()
    while page := await in_thread(node.pool, node.catalog.view, partial(_page, holder, after)):
        for one in page:
            if await _let_go(node, holder, one.bundle_id):
                await node.catalog.awrite(partial(_released, one.bundle, holder))
            else:
                kept.add(one.bundle_id)
        after = page[-1].bundle
    return kept


async def _release_listed(node: Node, holder: NodeId) -> set[BundleId]:
    """What the holder itself says that it still has of this device."""
    ours = [h.bundle async for h in node.pusher.holdings(holder) if h.opener == node.group.public]
    return {bundle for bundle in ours if not await _let_go(node, holder, bundle)}


async def _let_go(node: Node, holder: NodeId, bundle: BundleId) -> bool:
    try:
        await node.pusher.release(bundle, holder)
    except Unknown:
        return True  # it has it not any more
    except Busy:
        return False  # another device has locked it there
    return True


def _page(holder: NodeId, after: int, db: sqlite3.Connection) -> list[_Asked]:
    query = (
        "SELECT c.bundle, b.bundle_id FROM copies c JOIN bundles b ON b.id=c.bundle"
        " WHERE c.holder=? AND c.bundle>? AND b.own=1"
        " AND c.state IN ('proved', 'suspect', 'moving') ORDER BY c.bundle LIMIT ?"
    )
    found = db.execute(query, (holder, after, RELEASE_PAGE))
    return [_Asked(bundle, BundleId(bundle_id)) for bundle, bundle_id in found]


def _released(bundle: int, holder: NodeId, db: sqlite3.Connection) -> None:
    copies.set_state(db, bundle, holder, copies.CopyState.RELEASED)
