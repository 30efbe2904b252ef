"""Fetching blocks: from this disk, from holders, from anybody; and what strangers get."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from p2pstore.content import Grant, block_id_of, encode_grant, sign_grant, token_hash
from p2pstore.errors import Busy, NotAllowed, P2PStoreError, Unavailable
from p2pstore.ids import NodeId
from p2pstore.net import Request
from p2pstore.swarm import Asker, BlockCache, BlocksNotFound, get_blocks
from p2pstore.wire import (
    MAX_WANTED,
    BlockReply,
    Challenge,
    Get,
    GetDone,
    GetHeads,
    GetPeers,
    Have,
    HaveReply,
    Holdings,
    Lock,
    PeerRecord,
    Put,
    PutHeads,
    Release,
    sign_get,
    verify_get,
)

from .world import OTHER_GROUP_KEY, Node, Sealed, World

Answer = Callable[[Request, Get], Awaitable[None]]


async def held_elsewhere(
    world: World, number: int = 10, size: int = 5000
) -> tuple[Node, Node, Sealed]:
    """The first node has lost its copy; the second holds one, and the catalog says so."""
    a, b = await world.pair()
    sealed = a.seal(number=number, size=size)
    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    a.drop(sealed)
    a.holders[sealed.bundle_id] = [b.node_id]
    b.served.clear()
    return a, b, sealed


async def get(node: Node, other: Node, request: bytes, hops: int = 3) -> set[bytes]:
    """What a GET brings, asked by hand."""
    link = node.connections.get(other.node_id)
    assert link is not None
    found: set[bytes] = set()
    async for batch in get_blocks(
        link, request, (), hops=hops, pool=node.world.pool, budget=1 << 30
    ):
        found.update(batch)
    return found


def asker(node: Node) -> Asker:
    return Asker(node.key, lambda: node.certificate, node.clock, lambda n: bytes(n))


async def test_own_blocks_need_nobody(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal(number=300, size=200)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert b.served == []


async def test_blocks_held_for_others_need_nobody_either(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    a.served.clear()
    assert await b.source.blocks(sealed.wanted()) == sealed.content()
    assert a.served == []


async def test_a_known_holder_is_asked_without_further_questions(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert set(b.served) == {"Get"}


async def test_more_blocks_than_one_request_may_name(world: World) -> None:
    a, _b, sealed = await held_elsewhere(world, number=3000, size=100)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()


async def test_any_device_that_has_it_is_found_by_asking(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    a.holders.clear()
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert "Have" in b.served


async def test_a_known_holder_is_dialled(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    link = a.connections.get(b.node_id)
    assert link is not None
    await link.close()
    assert await a.source.blocks(sealed.wanted()) == sealed.content()


async def test_a_provider_that_the_dht_names_is_dialled(world: World) -> None:
    _a, b, sealed = await held_elsewhere(world)
    c = world.node("tablet")
    c.records[sealed.tag] = [PeerRecord(b.public, "main", (await b.address(),), 1, "desk")]
    assert await c.source.blocks(sealed.wanted()) == sealed.content()


async def test_a_damaged_local_block_comes_from_another_copy(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    a.spoil(sealed, 3)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert "damaged" in caplog.text


async def test_holders_share_the_work(world: World) -> None:
    a, b, sealed = await held_elsewhere(world, number=200, size=1000)
    c = world.node("tower")
    await b.meet(c)
    await b.pusher.push(sealed.bundle_id, sealed.tag, c.node_id)
    await a.meet(c)
    a.holders[sealed.bundle_id].append(c.node_id)
    b.served.clear()
    c.served.clear()
    before = sum(link.received_bytes for link in a.transport.links())
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    came = sum(link.received_bytes for link in a.transport.links()) - before
    assert came < 1.5 * sum(map(len, sealed.content().values()))  # nothing came twice
    assert b.served.count("Get") >= 1
    assert c.served.count("Get") >= 1


async def test_what_nobody_has_is_named_with_those_who_are_away(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    away = world.node("attic")
    a.holders[sealed.bundle_id] = [away.node_id, NodeId(b"x" * 20)]
    await b.transport.close()
    with pytest.raises(BlocksNotFound, match="attic") as caught:
        await a.source.blocks(sealed.wanted())
    assert caught.value.missing == {block.block_id for block in sealed.blocks}
    assert len(caught.value.offline) == 2
    assert "10 blocks" in str(caught.value)


async def test_the_same_blocks_wanted_twice_are_fetched_once(world: World) -> None:
    a, b, sealed = await held_elsewhere(world, size=100_000)
    results = await asyncio.gather(*(a.source.blocks(sealed.wanted()) for _ in range(3)))
    assert results == [sealed.content()] * 3
    sent = sum(link.sent_bytes for link in b.transport.links())
    assert sent < 2 * sum(map(len, sealed.content().values()))


async def test_who_waited_for_a_fetch_that_was_cancelled_fetches_itself(world: World) -> None:
    a, b, sealed = await held_elsewhere(world, size=200_000)
    first = asyncio.ensure_future(a.source.blocks(sealed.wanted()))
    while "Get" not in b.served:
        await asyncio.sleep(0)
    second = asyncio.ensure_future(a.source.blocks(sealed.wanted()))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == sealed.content()
    assert first.cancelled() or ((await asyncio.wait([first])) and first.cancelled())


async def test_what_is_read_once_is_not_kept(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    await a.source.blocks(sealed.wanted())
    b.served.clear()
    await a.source.blocks(sealed.wanted())
    assert b.served == ["Get"]


async def test_who_gave_some_of_a_bundle_is_asked_for_the_rest_at_once(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    a.holders.clear()
    first, *rest = sealed.wanted()
    await a.source.blocks([first])
    assert b.served == ["Have", "Get"]
    b.served.clear()
    await a.source.blocks(rest)
    assert set(b.served) == {"Get"}


async def test_blocks_to_keep_are_cached_but_are_no_copy(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    await a.source.blocks(sealed.wanted(), keep=True)
    b.served.clear()
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert b.served == []
    assert not a.shelf.find(sealed.bundle_id, sealed.tag)


def test_the_cache_is_bounded_and_forgives_damage(world: World) -> None:
    sealed = world.node("laptop").seal(number=20, size=1000)
    root = world.root / "small"
    cache = BlockCache(root, limit=5500)
    for block_id, block in sealed.content().items():
        cache.write({block_id: block})
    assert sum(path.stat().st_size for path in root.iterdir()) <= 5500
    newest = sealed.blocks[-1].block_id
    assert cache.read([newest]) == {newest: sealed.blocks[-1].block}
    again = BlockCache(root, limit=5500)
    assert newest in again.read([newest])
    (root / newest.hex()).write_bytes(b"damage")
    assert again.read([newest]) == {}
    assert again.read([newest]) == {}


# Peers that lie or stall


async def with_liar(world: World, answer: Answer) -> tuple[Node, Sealed, list[str]]:
    """A liar and an honest node both count as holders; what the liar was asked."""
    a, _b, sealed = await held_elsewhere(world, number=40)
    liar = world.node("liar")
    await a.meet(liar)
    asked: list[str] = []

    async def handler(request: Request) -> None:
        asked.append(type(request.message).__name__)
        if isinstance(request.message, Get):
            await answer(request, request.message)
        elif isinstance(request.message, Have):
            have = request.message
            await request.reply(HaveReply((True,) * len(have.tags), (0,) * len(have.bundles)))

    liar.transport.handler = handler
    a.holders[sealed.bundle_id].insert(0, liar.node_id)
    return a, sealed, asked


async def wrong_bytes(request: Request, message: Get) -> None:
    for block_id in verify_get(message.request).blocks:
        await request.reply(BlockReply(block_id), b"garbage", final=False)
    await request.reply(GetDone())


async def unasked_blocks(request: Request, message: Get) -> None:
    await request.reply(BlockReply(block_id_of(b"spam")), b"spam", final=False)
    await request.reply(GetDone())


async def nothing(request: Request, message: Get) -> None:
    await request.reply(GetDone())


async def refusal(request: Request, message: Get) -> None:
    raise Unavailable("Not in the mood.")


async def silence(request: Request, message: Get) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("answer", [wrong_bytes, unasked_blocks, nothing, refusal])
async def test_whoever_does_not_deliver_is_left_for_somebody_who_does(
    world: World, answer: Answer
) -> None:
    a, sealed, asked = await with_liar(world, answer)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert 1 <= asked.count("Get") <= 3


@pytest.mark.parametrize("is_known", [True, False])
async def test_many_liars_do_not_hide_the_honest_one(world: World, is_known: bool) -> None:
    """A few blocks are asked of one peer at a time: each liar costs a turn that brings nothing."""
    a, honest, sealed = await held_elsewhere(world)
    link = a.connections.get(honest.node_id)
    assert link is not None
    await link.close()
    for i, answer in enumerate([nothing, refusal, unasked_blocks, wrong_bytes, refusal, nothing]):
        liar = world.node(f"liar {i}")
        await a.meet(liar)
        a.holders[sealed.bundle_id].insert(i, liar.node_id)

        async def handler(request: Request, answer: Answer = answer) -> None:
            if isinstance(request.message, Get):
                await answer(request, request.message)
            elif isinstance(request.message, Have):
                have = request.message
                await request.reply(HaveReply((True,) * len(have.tags), (0,) * len(have.bundles)))

        liar.transport.handler = handler
    await a.meet(honest)  # the last of all that are linked
    if not is_known:
        a.holders.clear()
    assert await a.source.blocks(sealed.wanted()) == sealed.content()


@pytest.mark.slow
async def test_a_stalling_peer_costs_a_while_once_and_not_the_blocks(world: World) -> None:
    a, sealed, asked = await with_liar(world, silence)
    a.source._answer_s = 0.4
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    times = asked.count("Get")
    a.source._cache = None
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert asked.count("Get") == times
    world.clock.advance(301)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert asked.count("Get") > times


async def test_a_shunned_peer_is_asked_when_nobody_else_has_it(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    a.source._shun(b.node_id)
    assert await a.source.blocks(sealed.wanted()) == sealed.content()


# Who may have what


async def test_a_stranger_gets_nothing_but_peers(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    link = await stranger.meet(b)
    await link.request(GetPeers())
    bundle, group = sealed.bundle_id, a.gate.group_id
    for question in (
        Have((sealed.tag,), (bundle,)),
        Challenge(bundle, 0, bytes(32)),
        Lock(bundle, 0, 10),
        Release(bundle),
        Holdings(group),
        GetHeads(group),
        PutHeads(group, None, ()),
        Put(bundle, sealed.tag, b"", (), 1, 1),
        Get(asker(stranger).sign(bundle, sealed.tag, [sealed.blocks[0].block_id])),
    ):
        with pytest.raises(NotAllowed):
            await link.request(question)
    with pytest.raises(BlocksNotFound):
        await stranger.source.blocks(sealed.wanted())


async def test_a_friend_gets_its_own_bundles_only(world: World) -> None:
    holder = world.node("holder", friends=(OTHER_GROUP_KEY,))
    mine = world.node("desk")
    friend = world.node("friend", OTHER_GROUP_KEY)
    await mine.meet(holder)
    link = await friend.meet(holder)
    ours, theirs = mine.seal("ours"), friend.seal("theirs")
    await mine.pusher.push(ours.bundle_id, ours.tag, holder.node_id)
    await friend.pusher.push(theirs.bundle_id, theirs.tag, holder.node_id)
    friend.drop(theirs)
    friend.holders = {one.bundle_id: [holder.node_id] for one in (ours, theirs)}

    assert await friend.source.blocks(theirs.wanted()) == theirs.content()
    with pytest.raises(BlocksNotFound):
        await friend.source.blocks(ours.wanted())
    with pytest.raises(NotAllowed):
        await link.request(Challenge(ours.bundle_id, 0, bytes(32)))
    listed = [one.bundle async for one in friend.pusher.holdings(holder.node_id)]
    assert listed == [theirs.bundle_id]
    reply, _ = await link.request(Have((ours.tag, theirs.tag), (ours.bundle_id,)))
    assert reply == HaveReply((False, True), (None,))


async def test_a_revoked_device_gets_nothing_from_then_on(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    b.revoked = frozenset({a.public})
    with pytest.raises(BlocksNotFound):
        await a.source.blocks(sealed.wanted())
    with pytest.raises(NotAllowed):
        await a.pusher.release(sealed.bundle_id, b.node_id)


async def test_a_request_speaks_for_its_signer_whoever_brings_it(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    await stranger.meet(b)
    ids = [block.block_id for block in sealed.blocks]
    assert await get(stranger, b, asker(a).sign(sealed.bundle_id, sealed.tag, ids)) == set(ids)


async def test_a_forged_or_expired_request_is_refused(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    raw = asker(a).sign(sealed.bundle_id, sealed.tag, [sealed.blocks[0].block_id])
    with pytest.raises(P2PStoreError):
        await get(a, b, raw[:-1] + bytes([raw[-1] ^ 1]))
    world.clock.advance(3600)
    with pytest.raises(NotAllowed, match="expired"):
        await get(a, b, raw)


async def test_a_token_opens_the_blocks_of_its_grant_only(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    granted = tuple(block.block_id for block in sealed.blocks[:3])
    expires_ms = int(world.clock.wall() * 1000) + 3600_000
    grant = Grant(sealed.bundle_id, granted, token_hash(b"token"), expires_ms)
    a.grants = [encode_grant(sign_grant(grant, a.key))]
    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    everything = [block.block_id for block in sealed.blocks]
    ask = asker(stranger)
    for node in (a, b):  # the owner's own store, and a holder's
        await stranger.meet(node)
        raw = ask.sign(sealed.bundle_id, sealed.tag, everything, token=b"token")
        assert await get(stranger, node, raw) == set(granted)
        # Whoever has only the key of a share knows the tag, and no block of the bundle.
        raw = ask.sign(sealed.bundle_id, sealed.tag, [], token=b"token", budget=1 << 20)
        assert await get(stranger, node, raw) == set(granted)
        with pytest.raises(NotAllowed):
            await get(
                stranger, node, ask.sign(sealed.bundle_id, sealed.tag, everything, token=b"?")
            )
    world.clock.advance(3601)
    with pytest.raises(NotAllowed):
        await get(stranger, b, ask.sign(sealed.bundle_id, sealed.tag, everything, token=b"token"))


async def test_a_grant_that_somebody_else_signed_opens_nothing(world: World) -> None:
    a, _b = await world.pair()
    sealed = a.seal()
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    grant = Grant(sealed.bundle_id, None, token_hash(b"token"), 2**50)
    a.grants = [encode_grant(sign_grant(grant, stranger.key))]
    await stranger.meet(a)
    with pytest.raises(NotAllowed):
        await get(
            stranger, a, asker(stranger).sign(sealed.bundle_id, sealed.tag, [], token=b"token")
        )


async def test_the_budget_of_a_request_is_kept(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    ids = [block.block_id for block in sealed.blocks]
    raw = asker(a).sign(sealed.bundle_id, sealed.tag, ids, budget=12_000)
    assert len(await get(a, b, raw)) == 2


async def test_more_than_1024_blocks_wanted_at_once_are_refused(world: World) -> None:
    a, b, sealed = await held_elsewhere(world, number=1100, size=3000)
    ids = [block.block_id for block in sealed.blocks[:MAX_WANTED]]
    link = a.connections.get(b.node_id)
    assert link is not None
    first = link.exchange(Get(asker(a).sign(sealed.bundle_id, sealed.tag, ids), 3))
    async with first:
        await first.receive()
        with pytest.raises(Busy):
            await get(a, b, asker(a).sign(sealed.bundle_id, sealed.tag, ids[:1]))
    while b.server._giver._wanted[b.transport.links()[0]]:
        await asyncio.sleep(0)
    assert await get(a, b, asker(a).sign(sealed.bundle_id, sealed.tag, ids[:1])) == {ids[0]}


async def test_nobody_signs_for_another(world: World) -> None:
    a, b, sealed = await held_elsewhere(world)
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    await stranger.meet(b)
    # The stranger shows the device's chain, which is no secret, with its own signature.
    raw = Asker(stranger.key, lambda: a.certificate, world.clock, lambda n: bytes(n)).sign(
        sealed.bundle_id, sealed.tag, [sealed.blocks[0].block_id]
    )
    with pytest.raises(NotAllowed):
        await get(stranger, b, raw)
    with pytest.raises(P2PStoreError):
        sign_get(verify_get(asker(a).sign(sealed.bundle_id, sealed.tag, [])), stranger.key)
