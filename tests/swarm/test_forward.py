"""Requests that travel over other nodes."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from p2pstore.content import Grant, encode_grant, sign_grant, token_hash
from p2pstore.ids import BlockId
from p2pstore.net import Request
from p2pstore.swarm import Asker, BlocksNotFound, get_blocks
from p2pstore.swarm import forward as forward_module
from p2pstore.wire import BlockReply, Get, GetDone

from .world import OTHER_GROUP_KEY, Node, Sealed, World


async def chain_of(world: World, *names: str) -> tuple[list[Node], Sealed]:
    """Nodes in a row, each linked to the next only; the last one opened a bundle."""
    nodes = [world.node(name) for name in names]
    for one, other in itertools.pairwise(nodes):
        await one.meet(other)
    return nodes, nodes[-1].seal()


async def get(node: Node, other: Node, raw: bytes, hops: int = 0) -> dict[BlockId, bytes]:
    link = node.connections.get(other.node_id)
    assert link is not None
    found: dict[BlockId, bytes] = {}
    async for batch in get_blocks(link, raw, (), hops=hops, pool=node.world.pool, budget=1 << 30):
        found.update(batch)
    return found


def asker(node: Node) -> Asker:
    return Asker(node.key, lambda: node.certificate, node.clock, lambda n: bytes(n))


async def test_blocks_come_through_a_common_peer(world: World) -> None:
    (a, b, c), sealed = await chain_of(world, "a", "b", "c")
    assert a.connections.get(c.node_id) is None
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert "Get" in b.served
    assert "Get" in c.served
    assert not b.shelf.find(sealed.bundle_id, sealed.tag)


async def test_three_hops_are_enough_and_the_most(world: World) -> None:
    nodes, sealed = await chain_of(world, "a", "b", "c", "d", "e")
    assert await nodes[0].source.blocks(sealed.wanted()) == sealed.content()


async def test_a_fourth_hop_is_not_made(world: World) -> None:
    nodes, sealed = await chain_of(world, "a", "b", "c", "d", "e", "f")
    with pytest.raises(BlocksNotFound):
        await nodes[0].source.blocks(sealed.wanted())
    assert "Get" in nodes[4].served
    assert "Get" not in nodes[5].served
    assert nodes[4].connections.get(nodes[5].node_id) is not None  # nothing wrong was sent


async def test_a_ring_of_nodes_ends(world: World) -> None:
    nodes, _ = await chain_of(world, "a", "b", "c", "d")
    await nodes[3].meet(nodes[1])
    lost = world.node("gone").seal("lost")
    with pytest.raises(BlocksNotFound):
        await nodes[0].source.blocks(lost.wanted())
    assert sum(node.served.count("Get") for node in nodes) < 12


async def test_a_strangers_token_is_honoured_through_others_within_the_budget(
    world: World,
) -> None:
    owner = world.node("owner")
    between = world.node("between", stranger_bytes=12_000)
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    await between.meet(owner)
    await stranger.meet(between)
    sealed = owner.seal()
    grant = Grant(sealed.bundle_id, None, token_hash(b"token"), 2**50)
    owner.grants = [encode_grant(sign_grant(grant, owner.key))]
    ids = [block.block_id for block in sealed.blocks]

    def request(number: int) -> bytes:
        ask = Asker(stranger.key, lambda: b"", world.clock, lambda n: bytes([number]) * n)
        return ask.sign(sealed.bundle_id, sealed.tag, ids, token=b"token")

    assert len(await get(stranger, between, request(1))) == 2
    assert len(await get(stranger, between, request(2))) == 0
    world.clock.advance(86_400)
    assert len(await get(stranger, between, request(3))) == 2


async def test_the_same_request_is_passed_on_once(world: World) -> None:
    (a, b, c), sealed = await chain_of(world, "a", "b", "c")
    raw = asker(a).sign(sealed.bundle_id, sealed.tag, [sealed.blocks[0].block_id])
    assert len(await get(a, b, raw)) == 1
    assert len(await get(a, b, raw)) == 0
    assert c.served.count("Get") == 1


async def test_what_is_remembered_of_requests_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_module, "MAX_SEEN", 10)
    (a, b, _c), sealed = await chain_of(world, "a", "b", "c")
    for i in range(30):
        ask = Asker(a.key, lambda: a.certificate, world.clock, lambda n, i=i: bytes([i]) * n)  # type: ignore[misc]
        await get(a, b, ask.sign(sealed.bundle_id, sealed.tag, [sealed.blocks[0].block_id]))
    assert len(b.forwarder._seen) == 10
    world.clock.advance(3600)
    await get(a, b, asker(a).sign(sealed.bundle_id, sealed.tag, [sealed.blocks[0].block_id]))
    assert len(b.forwarder._seen) == 1


async def test_garbage_is_not_passed_on(world: World) -> None:
    (a, b, c), sealed = await chain_of(world, "a", "b", "c")

    async def garbage(request: Request) -> None:
        if isinstance(request.message, Get):
            await request.reply(BlockReply(sealed.blocks[0].block_id), b"garbage", final=False)
            await request.reply(GetDone())

    c.transport.handler = garbage
    raw = asker(a).sign(sealed.bundle_id, sealed.tag, [sealed.blocks[0].block_id])
    assert await get(a, b, raw) == {}


async def test_who_goes_away_ends_what_was_asked_for_him(world: World) -> None:
    (a, b, c), sealed = await chain_of(world, "a", "b", "c")
    waiting = asyncio.Event()
    ended = asyncio.Event()

    async def stall(request: Request) -> None:
        if isinstance(request.message, Get):
            waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    c.transport.handler = stall
    b.forwarder._has = lambda link, asked: asyncio.sleep(0, False)  # type: ignore[method-assign]
    raw = asker(a).sign(sealed.bundle_id, sealed.tag, [sealed.blocks[0].block_id])
    asking = asyncio.ensure_future(get(a, b, raw))
    await waiting.wait()
    link = a.connections.get(b.node_id)
    assert link is not None
    await link.close()
    await asyncio.wait([asking])
    asking.exception()
    async with asyncio.timeout(5):
        await ended.wait()
