"""Who may be paired with whom, and what it may cost the peer between."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.errors import Busy, NotAllowed, PeerUnreachable
from p2pstore.net import Link
from p2pstore.swarm import Asker
from p2pstore.swarm import relay as relay_module
from p2pstore.wire import MAX_HOPS, Challenge, Get, Proof, Unknown

from .world import GROUP_KEY, OTHER_GROUP_KEY, Node, World


async def street(world: World, **between: Any) -> tuple[Node, Node, Node]:
    """A and C cannot reach each other; both have a link to B."""
    a, b, c = world.node("a"), world.node("b", **between), world.node("c")
    await a.meet(b)
    await c.meet(b)
    return a, b, c


async def dial(a: Node, b: Node, c: Node) -> Link:
    relay = a.connections.get(b.node_id)
    assert relay is not None
    return await a.transport.dial_through(relay, c.node_id)


async def test_bundles_are_pushed_and_proved_through_a_common_peer(world: World) -> None:
    a, b, c = await street(world)
    sealed = a.seal()
    link = await a.connections.connect(c.node_id)
    assert link.via is not None
    await a.pusher.push(sealed.bundle_id, sealed.tag, c.node_id)
    assert c.held.has(sealed.bundle_id)
    answer, _ = await link.request(Challenge(sealed.bundle_id, 0, bytes(32)))
    assert isinstance(answer, Proof)
    assert b.served.count("TunnelTo") == 1
    assert "Put" not in b.served
    assert b.relay.carried_bytes > sum(len(block.block) for block in sealed.blocks)
    assert b.relay.tunnels == 1


async def test_blocks_are_fetched_through_it(world: World) -> None:
    a, b, c = await street(world)
    sealed = c.seal()
    a.holders[sealed.bundle_id] = [c.node_id]
    assert await a.source.blocks(sealed.wanted()) == sealed.content()
    assert "Get" not in b.served


async def test_a_node_without_a_link_is_unknown(world: World) -> None:
    a, b, _ = await street(world)
    other = world.node("other")
    with pytest.raises(Unknown):
        await dial(a, b, other)


async def test_strangers_get_no_tunnel_and_are_led_to_nobody(world: World) -> None:
    a, b, _ = await street(world)
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    await stranger.meet(b)
    with pytest.raises(NotAllowed):
        await dial(stranger, b, a)
    with pytest.raises(Unknown):
        await dial(a, b, stranger)


@pytest.mark.parametrize("asker", ["friend", "device"])
async def test_a_friend_and_a_device_are_paired(world: World, asker: str) -> None:
    both = {"friends": [OTHER_GROUP_KEY]}
    a, b, _ = await street(world, **both)
    a.friends = b.friends
    friend = world.node("friend", OTHER_GROUP_KEY, friends=[GROUP_KEY])
    await friend.meet(b)
    near, far = (friend, a) if asker == "friend" else (a, friend)
    link = await dial(near, b, far)
    assert link.role == "friend" if asker == "device" else link.role in ("friend", "device")


async def test_friends_of_two_groups_are_not_paired(world: World) -> None:
    third = SigningKey(b"third".ljust(32, b"."))
    b = world.node("b", friends=[OTHER_GROUP_KEY, third])
    one = world.node("one", OTHER_GROUP_KEY, friends=[GROUP_KEY])
    two = world.node("two", third, friends=[GROUP_KEY])
    again = world.node("again", OTHER_GROUP_KEY, friends=[GROUP_KEY])
    for node in (one, two, again):
        await node.meet(b)
    with pytest.raises(NotAllowed):
        await dial(one, b, two)
    assert (await dial(one, b, again)).node_id == again.node_id


async def test_a_far_end_takes_tunnels_from_no_stranger(world: World) -> None:
    a, b, c = await street(world)
    c.gate.group = b"x" * 32  # type: ignore[assignment]
    for link in c.connections.links():
        link.role = "stranger"
    with pytest.raises(NotAllowed):
        await dial(a, b, c)
    assert b.relay.tunnels == 0


async def test_tunnels_are_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "PER_PEER", 2)
    a, b, c = await street(world)
    first = await dial(a, b, c)
    await dial(a, b, c)
    with pytest.raises(Busy):
        await dial(a, b, c)
    await first.close()
    async with asyncio.timeout(5):
        while b.relay.tunnels == 2:
            await asyncio.sleep(0)
    await dial(a, b, c)


async def test_all_tunnels_together_are_limited(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "MAX_TUNNELS", 1)
    a, b, c = await street(world)
    await dial(a, b, c)
    with pytest.raises(Busy):
        await dial(c, b, a)


async def test_a_friend_pays_for_what_is_carried(world: World) -> None:
    b = world.node("b", friends=[OTHER_GROUP_KEY], tunnel_bytes=20_000)
    one = world.node("one", OTHER_GROUP_KEY, friends=[GROUP_KEY])
    two = world.node("two", OTHER_GROUP_KEY, friends=[GROUP_KEY])
    await one.meet(b)
    await two.meet(b)
    sealed = two.seal()
    link = await dial(one, b, two)
    ask = Asker(one.key, lambda: one.certificate, world.clock, lambda n: bytes(n))
    ids = [block.block_id for block in sealed.blocks]
    request = Get(ask.sign(sealed.bundle_id, sealed.tag, ids), MAX_HOPS)
    with pytest.raises(PeerUnreachable):
        async for _ in link.stream(request):
            pass
    await link.wait_closed()
    assert b.relay.carried_bytes <= 20_000


async def test_no_tunnel_through_a_tunnel(world: World) -> None:
    a, b, c = await street(world)
    d = world.node("d")
    await d.meet(c)
    through = await dial(a, b, c)
    with pytest.raises(NotAllowed):
        await a.transport.dial_through(through, d.node_id)
