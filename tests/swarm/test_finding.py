"""Requests whose holder is known to the DHT only."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from p2pstore.content import Grant, encode_grant, sign_grant, token_hash
from p2pstore.ids import BlockId, Tag
from p2pstore.net import Request
from p2pstore.swarm import Asker, BlocksNotFound, get_blocks
from p2pstore.swarm import finding as finding_module
from p2pstore.wire import BlockReply, Get, GetDone, Have, HaveReply, PeerRecord

from .world import OTHER_GROUP_KEY, Node, Sealed, World


async def scene(world: World, *, standing: str = "device") -> tuple[Node, Node, Node, Sealed]:
    """A knows B only; B has no link to C, which has a bundle, but finds it in the DHT."""
    group = {} if standing == "device" else {"group_key": OTHER_GROUP_KEY}
    a, b, c = world.node("a", **group), world.node("b"), world.node("c")
    await a.meet(b)
    sealed = c.seal()
    b.records[sealed.tag] = [await c.record()]
    return a, b, c, sealed


async def get(
    a: Node, b: Node, sealed: Sealed, number: int = 1, token: bytes = b""
) -> set[BlockId]:
    ask = Asker(a.key, lambda: a.certificate, a.clock, lambda n: bytes([number]) * n)
    ids = [block.block_id for block in sealed.blocks]
    raw = ask.sign(sealed.bundle_id, sealed.tag, ids, token=token)
    link = a.connections.get(b.node_id)
    assert link is not None
    found: set[BlockId] = set()
    async for batch in get_blocks(link, raw, (), hops=0, pool=a.world.pool, budget=1 << 30):
        found.update(batch)
    return found


async def test_a_provider_that_only_the_dht_knows_is_dialled_and_asked(world: World) -> None:
    a, b, c, sealed = await scene(world)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert b.connections.get(c.node_id) is not None
    assert a.connections.get(c.node_id) is None


async def test_peers_that_have_it_are_asked_without_a_look_up(world: World) -> None:
    a, b, c, sealed = await scene(world)
    await b.meet(c)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert b.looked_up == []


async def test_only_the_node_that_the_asker_asked_looks_it_up(world: World) -> None:
    _a, b, _c, sealed = await scene(world)
    between = world.node("between")
    other = world.node("other")
    await other.meet(between)
    await between.meet(b)
    with pytest.raises(BlocksNotFound):
        await other.source.blocks(sealed.wanted())
    assert "Get" in b.served
    assert between.looked_up == [sealed.tag]
    assert b.looked_up == []


async def test_requests_for_one_bundle_share_a_look_up(world: World) -> None:
    a, b, _c, sealed = await scene(world)
    found = await asyncio.gather(*(get(a, b, sealed, number) for number in range(1, 4)))
    assert [len(one) for one in found] == [10, 10, 10]
    assert b.looked_up == [sealed.tag]


async def test_what_nobody_has_is_not_looked_up_again_for_a_while(world: World) -> None:
    a, b, _c, sealed = await scene(world)
    b.records.clear()
    for number in range(3):
        assert await get(a, b, sealed, number) == set()
    assert b.looked_up == [sealed.tag]
    world.clock.advance(finding_module.QUIET_S)
    await get(a, b, sealed, 9)
    assert b.looked_up == [sealed.tag] * 2


async def test_a_caller_that_goes_away_leaves_the_look_up_to_the_next(world: World) -> None:
    a, b, c, sealed = await scene(world)
    began = asyncio.Event()

    async def stall(tags: Sequence[Tag]) -> Mapping[Tag, Sequence[PeerRecord]]:
        if not began.is_set():
            began.set()
            await asyncio.Event().wait()
        return {sealed.tag: [await c.record()]}

    b.finder._providers = stall
    first = asyncio.ensure_future(get(a, b, sealed, 1))
    await began.wait()
    second = asyncio.ensure_future(get(a, b, sealed, 2))
    while len(b.served) < 2:
        await asyncio.sleep(0)
    first.cancel()
    assert len(await second) == 10


async def test_strangers_pay_look_ups_from_one_purse(world: World) -> None:
    a, b, c, sealed = await scene(world, standing="stranger")
    b.finder._purses._strangers.left = 1
    grant = Grant(sealed.bundle_id, None, token_hash(b"token"), 2**50)
    c.grants = [encode_grant(sign_grant(grant, c.key))]
    lost = world.node("gone").seal("lost")
    assert await get(a, b, lost, 1, b"token") == set()
    assert await get(a, b, sealed, 2, b"token") == set()
    assert b.looked_up == [lost.tag]
    world.clock.advance(86_400)
    assert len(await get(a, b, sealed, 3, b"token")) == 10


async def test_a_stranger_without_a_token_causes_no_look_up(world: World) -> None:
    a, b, _c, sealed = await scene(world, standing="stranger")
    with pytest.raises(BlocksNotFound):
        await a.source.blocks(sealed.wanted())
    assert b.looked_up == []


async def test_few_providers_are_dialled(world: World) -> None:
    a, b, _c, sealed = await scene(world)
    crowd = [world.node(f"n{i}") for i in range(6)]
    b.records[sealed.tag] = [await node.record() for node in crowd]
    assert await get(a, b, sealed) == set()
    assert sum(b.connections.get(node.node_id) is not None for node in crowd) == 3


async def test_a_dht_that_does_not_answer_holds_nobody_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding_module, "LOOKUP_S", 0.01)
    a, b, c, sealed = await scene(world)

    async def stall(tags: Sequence[Tag]) -> Mapping[Tag, Sequence[PeerRecord]]:
        await asyncio.Event().wait()
        raise AssertionError

    b.finder._providers = stall
    between = world.node("between")
    await b.meet(between)
    await between.meet(c)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()


async def test_a_liar_in_the_middle_costs_no_block(world: World) -> None:
    """A - liar and A - B - C: what the liar makes of the blocks goes no further than A and B."""
    a, b, _c, sealed = await scene(world)
    liar = world.node("liar")
    await a.meet(liar)
    await b.meet(liar)

    async def garbage(request: Request) -> None:
        message = request.message
        liar.served.append(type(message).__name__)
        if isinstance(message, Have):
            await request.reply(HaveReply((True,) * len(message.tags), (0,) * len(message.bundles)))
        elif isinstance(message, Get):
            await request.reply(BlockReply(sealed.blocks[0].block_id), b"garbage", final=False)
            await request.reply(GetDone())

    liar.transport.handler = garbage
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert liar.served.count("Get") == 2  # by A and by B, each once


async def test_a_peer_that_lied_is_asked_last_from_then_on(world: World) -> None:
    a, b, _c, sealed = await scene(world)
    liar, honest = world.node("liar"), world.node("honest")
    for node in (liar, honest):
        await b.meet(node)
    b.records.clear()
    order: list[str] = []

    async def lie(request: Request) -> None:
        order.append("liar")
        if isinstance(request.message, Get):
            await request.reply(BlockReply(sealed.blocks[0].block_id), b"garbage", final=False)

    async def serve(request: Request) -> None:
        order.append("honest")
        await honest.serve(request)

    liar.transport.handler, honest.transport.handler = lie, serve
    b.forwarder._has = lambda link, asked: asyncio.sleep(0, False)  # type: ignore[method-assign]
    for number in range(2):
        await get(a, b, sealed, number)
    assert order[-2:] == ["honest", "liar"]
