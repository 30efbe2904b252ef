"""What is kept here for others is moved to other holders, by the devices that gave it.

They are asked again every moment, which tells whether they still can: an owner answers that it is
at it, or why nothing more can be done at present. While anything goes on it is waited for, however
long that takes. When nothing has for a while, this node stays what it was, and it is said whose
files would lose a copy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from p2pstore.config import format_size
from p2pstore.errors import NoRoom, P2PStoreError
from p2pstore.ids import NodeId, short
from p2pstore.maintenance import Kept
from p2pstore.node.build import Node
from p2pstore.threads import in_thread

Progress = Callable[[dict[str, Any]], None]

ASK_S = 1.0
PATIENCE_S = 10.0  # links come up, and a holder that was asked too much rests for 5 s


async def hand_over(node: Node, progress: Progress) -> list[str]:
    """Empty when nothing of others is here any more; else why it still is, owner by owner."""
    kept = first = await in_thread(node.pool, node.upkeep.handing.kept)
    deadline = node.clock.monotonic() + PATIENCE_S
    while kept:
        before = _bundles(kept)
        answers = await node.upkeep.handing.tell()
        kept = await in_thread(node.pool, node.upkeep.handing.kept)
        progress(_progress(node, first, kept))
        now = node.clock.monotonic()
        if _bundles(kept) < before or any(answers.get(owner) is None for owner in kept):
            deadline = now + PATIENCE_S
        elif now > deadline or all(isinstance(answers.get(one), NoRoom) for one in kept):
            return [_reason(node, *item, answers) for item in sorted(kept.items())]
        if kept:
            await asyncio.sleep(ASK_S)
    return []


def _bundles(kept: Mapping[NodeId, Kept]) -> int:
    return sum(one.bundles for one in kept.values())


def _bytes(kept: Mapping[NodeId, Kept]) -> int:
    return sum(one.bytes for one in kept.values())


def _progress(
    node: Node, first: Mapping[NodeId, Kept], kept: Mapping[NodeId, Kept]
) -> dict[str, Any]:
    total, size = _bundles(first), _bytes(first)
    left, left_size = min(_bundles(kept), total), min(_bytes(kept), size)
    # Where they go is the owners' to choose; of one owner's bundles it is any other device.
    linked = {link.node_id for link in node.network.holders()}
    takers = [other for other in linked if len(kept) > 1 or other not in kept] if kept else []
    names = ", ".join(sorted(_name(node, taker) for taker in takers))
    return {
        "stage": "move",
        "bundles": total - left,
        "bundles_total": total,
        "bytes": size - left_size,
        "bytes_total": size,
        "note": f"to: {names}" if names else "",
    }


def _reason(
    node: Node, owner: NodeId, kept: Kept, answers: Mapping[NodeId, P2PStoreError | None]
) -> str:
    name = _name(node, owner)
    said = answers.get(owner)
    return (
        f"{format_size(kept.bytes)} of the files of {name} have a copy here and would lose it: "
        f"{name} must have copied them to another device first."
        + (f" {name} says: {said}" if said else "")
    )


def _name(node: Node, other: NodeId) -> str:
    """As our group calls it, else as it calls itself: a friend's devices are not in our group."""
    link = node.network.connections.get(other)
    said = link.hello.name if link is not None else ""
    return node.group.name_of(other) or said or f"a device unknown here ({short(other)})"
