"""RENEW: one question makes the leases of many bundles longer, durably, and never shorter."""

from __future__ import annotations

import pytest

from p2pstore.errors import NotAllowed
from p2pstore.ids import BundleId
from p2pstore.wire import Release, Renew, Renewed

from .world import OTHER_GROUP_KEY, Node, Sealed, World

YEAR_S = 365 * 86_400


async def renew(a: Node, b: Node, *bundles: BundleId, lease_s: int = YEAR_S) -> Renewed:
    link = await a.connections.connect(b.node_id)
    answer, _ = await link.request(Renew(bundles, lease_s))
    assert isinstance(answer, Renewed)
    return answer


async def pushed(a: Node, b: Node, *names: str) -> list[Sealed]:
    found = [a.seal(name, number=2) for name in names]
    for one in found:
        await a.pusher.push(one.bundle_id, one.tag, b.node_id)
    return found


async def test_leases_are_made_longer(world: World) -> None:
    a, b = await world.pair()
    one, two = await pushed(a, b, "one", "two")
    answer = await renew(a, b, two.bundle_id, BundleId(bytes(32)), one.bundle_id)
    assert answer == Renewed(YEAR_S, (0, None, 0))
    until_ms = int((world.clock.wall() + YEAR_S) * 1000)
    assert [b.held.side(s.bundle_id).lease_until_ms for s in (one, two)] == [until_ms] * 2


async def test_a_shorter_one_changes_nothing(world: World) -> None:
    a, b = await world.pair()
    (one,) = await pushed(a, b, "one")
    before = b.held.side(one.bundle_id).lease_until_ms
    assert (await renew(a, b, one.bundle_id, lease_s=1)).seqs == (0,)
    assert b.held.side(one.bundle_id).lease_until_ms == before


async def test_any_device_of_the_group_renews(world: World) -> None:
    a, b = await world.pair()
    c = world.node("nas")
    await c.meet(b)
    (one,) = await pushed(a, b, "one")
    assert (await renew(c, b, one.bundle_id)).seqs == (0,)


async def test_nothing_is_promised_of_what_was_released_or_opened_there(world: World) -> None:
    a, b = await world.pair()
    (one,) = await pushed(a, b, "one")
    own = b.seal("own")
    link = await a.connections.connect(b.node_id)
    await link.request(Release(one.bundle_id))
    assert (await renew(a, b, one.bundle_id, own.bundle_id)).seqs == (None, None)


async def test_another_group_learns_nothing(world: World) -> None:
    a, b = await world.pair()
    (one,) = await pushed(a, b, "one")
    friend = world.node("friend", OTHER_GROUP_KEY)
    b.friends = frozenset((friend.group,))
    await friend.meet(b)
    before = b.held.side(one.bundle_id).lease_until_ms
    assert (await renew(friend, b, one.bundle_id)).seqs == (None,)
    assert b.held.side(one.bundle_id).lease_until_ms == before


async def test_strangers_are_refused(world: World) -> None:
    _, b = await world.pair()
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    await stranger.meet(b)
    with pytest.raises(NotAllowed):
        await renew(stranger, b, BundleId(bytes(32)))
