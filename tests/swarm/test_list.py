"""GET_LIST: what was signed of a bundle, for who dropped its own copy."""

from __future__ import annotations

import pytest

from p2pstore.content import LiveMap, encode_live_map, sign_live_map, signed_list
from p2pstore.errors import IntegrityError, NotAllowed
from p2pstore.net import Request
from p2pstore.wire import BlockList, GetList, Unknown

from .world import OTHER_GROUP_KEY, Node, Sealed, World


async def pushed(world: World) -> tuple[Node, Node, Sealed]:
    a, b = await world.pair()
    sealed = a.seal()
    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    return a, b, sealed


async def test_a_holder_knows_what_was_signed(world: World) -> None:
    a, b, sealed = await pushed(world)
    a.drop(sealed)
    index, signed = await a.pusher.block_list(sealed.bundle_id, b.node_id)
    assert signed_list(index) == signed_list(sealed.listed)
    assert signed is None


async def test_the_live_map_comes_with_it(world: World) -> None:
    a, b, sealed = await pushed(world)
    live = LiveMap.all_live(sealed.bundle_id, len(sealed.blocks)).without({3})
    map_of_a = sign_live_map(live, a.key)
    b.held.accept_live_map(sealed.bundle_id, map_of_a)
    _, signed = await a.pusher.block_list(sealed.bundle_id, b.node_id)
    assert signed is not None
    assert encode_live_map(signed) == encode_live_map(map_of_a)


async def test_what_is_not_there_is_unknown(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    with pytest.raises(Unknown):
        await a.pusher.block_list(sealed.bundle_id, b.node_id)


async def test_another_group_is_refused(world: World) -> None:
    _, b, sealed = await pushed(world)
    friend = world.node("friend", OTHER_GROUP_KEY)
    b.friends = frozenset((friend.group,))
    await friend.meet(b)
    with pytest.raises(NotAllowed):
        await friend.pusher.block_list(sealed.bundle_id, b.node_id)


async def test_a_list_or_map_of_another_bundle_is_refused(world: World) -> None:
    a, b, sealed = await pushed(world)
    other = a.seal("other")
    stray = LiveMap.all_live(other.bundle_id, len(other.blocks)).without({3})
    raw_map = encode_live_map(sign_live_map(stray, a.key))
    answers = [
        (BlockList(), signed_list(other.listed)),
        (BlockList(raw_map), signed_list(sealed.listed)),
    ]

    async def lie(request: Request) -> None:
        assert isinstance(request.message, GetList)
        message, payload = answers.pop()
        await request.reply(message, payload)

    b.transport.handler = lie
    for _ in range(2):
        with pytest.raises(IntegrityError):
            await a.pusher.block_list(sealed.bundle_id, b.node_id)
    assert not answers
