"""Blocks of a share for whoever shows its token, and the search for its root."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from p2pstore.content import BundleRef, Grant, ShareKey, encode_grant, sign_grant, token_hash
from p2pstore.errors import BlocksMissing, Unavailable
from p2pstore.ids import BlockId
from p2pstore.swarm import ShareRefused, Ticket
from p2pstore.swarm.guesses import FREE, SECONDS_EACH
from tests.swarm.world import OTHER_GROUP_KEY, Node, Sealed, World

TOKEN = b"token".ljust(32, b".")
NEVER = 1 << 60


class Shared(NamedTuple):
    sealed: Sealed
    key: ShareKey

    @property
    def ref(self) -> BundleRef:
        return BundleRef(self.sealed.bundle_id, self.sealed.tag)

    @property
    def root(self) -> bytes:
        return self.sealed.blocks[0].block


def share(
    node: Node,
    number: int = 1,
    *,
    blocks: tuple[BlockId, ...] | None = None,
    hints: tuple[tuple[str, int], ...] = (),
    ends: int = NEVER,
) -> Shared:
    sealed = node.seal("shared", number=number)
    grant = Grant(sealed.bundle_id, blocks, token_hash(TOKEN), ends)
    node.grants = [encode_grant(sign_grant(grant, node.key))]
    return Shared(sealed, ShareKey(bytes(32), sealed.blocks[0].block_id[:16], hints=hints))


async def strangers(world: World) -> tuple[Node, Node]:
    owner, asker = world.node("owner"), world.node("asker", OTHER_GROUP_KEY)
    await asker.meet(owner)
    return owner, asker


async def test_the_token_gives_what_was_granted(world: World) -> None:
    owner, asker = await strangers(world)
    shared = share(owner, 20)
    ticket = Ticket(TOKEN, (owner.node_id,))
    got = await asker.source.blocks(shared.sealed.wanted(), ticket=ticket)
    assert got == shared.sealed.content()
    sent = {block for token, _, blocks in owner.told for block in blocks if token == TOKEN}
    assert sent == got.keys(), "whoever gives once must know what was given"


async def test_without_the_token_a_stranger_gets_nothing(world: World) -> None:
    owner, asker = await strangers(world)
    shared = share(owner)
    for token in (b"", b"another".ljust(32, b".")):
        ticket = Ticket(token, (owner.node_id,))
        with pytest.raises(BlocksMissing):
            await asker.source.blocks(shared.sealed.wanted(), ticket=ticket)
    assert not owner.told


async def test_who_tries_tokens_is_slowed_and_hears_nothing_from_the_right_one(
    world: World,
) -> None:
    owner, asker = await strangers(world)
    shared = share(owner)

    async def gives(token: bytes) -> bool:
        try:
            await asker.share_finder.root(shared.key, shared.ref, token)
        except ShareRefused:
            return False
        return True

    for number in range(FREE):
        assert not await gives(bytes([number]) * 32)
    assert not await gives(TOKEN), "else the refusal of the others would tell that they are wrong"
    world.clock.advance(SECONDS_EACH)
    assert await gives(TOKEN)
    assert not await gives(bytes(32))
    assert not await gives(TOKEN), "one guess each ten seconds, not all of them again"


async def test_only_the_granted_blocks_are_given(world: World) -> None:
    owner, asker = await strangers(world)
    whole = owner.seal("shared", number=4)
    granted = tuple(block.block_id for block in whole.blocks[:2])
    grant = Grant(whole.bundle_id, granted, token_hash(TOKEN), NEVER)
    owner.grants = [encode_grant(sign_grant(grant, owner.key))]
    ticket = Ticket(TOKEN, (owner.node_id,))
    assert len(await asker.source.blocks(whole.wanted()[:2], ticket=ticket)) == 2
    with pytest.raises(BlocksMissing):
        await asker.source.blocks(whole.wanted(), ticket=ticket)


async def test_a_grant_of_somebody_else_is_worth_nothing(world: World) -> None:
    owner, asker = await strangers(world)
    sealed = owner.seal("shared")
    grant = Grant(sealed.bundle_id, None, token_hash(TOKEN), NEVER)
    owner.grants = [encode_grant(sign_grant(grant, asker.key, asker.certificate))]
    ticket = Ticket(TOKEN, (owner.node_id,))
    with pytest.raises(BlocksMissing):
        await asker.source.blocks(sealed.wanted(), ticket=ticket)


async def test_the_root_is_found_by_its_tag_with_the_beginning_of_its_id(world: World) -> None:
    owner, asker = await strangers(world)
    shared = share(owner)
    block, ticket = await asker.share_finder.root(shared.key, shared.ref, TOKEN)
    assert (block, ticket) == (shared.root, Ticket(TOKEN))


async def test_the_root_that_is_here_is_asked_of_nobody(world: World) -> None:
    owner, asker = await strangers(world)
    shared = share(owner)
    assert (await owner.share_finder.root(shared.key, shared.ref, TOKEN))[0] == shared.root
    assert asker.served == []


async def test_a_node_that_the_key_names_is_dialled(world: World) -> None:
    owner, asker = world.node("owner"), world.node("asker", OTHER_GROUP_KEY)
    shared = share(owner, hints=(await owner.address(), ("127.0.0.1", 1)))
    block, ticket = await asker.share_finder.root(shared.key, shared.ref, TOKEN)
    assert (block, ticket) == (shared.root, Ticket(TOKEN, (owner.node_id,)))
    assert asker.looked_up == []


async def test_a_holder_that_the_dht_names_gives_what_the_owner_granted(world: World) -> None:
    owner, holder = world.node("owner"), world.node("holder")
    asker = world.node("asker", OTHER_GROUP_KEY)
    shared = share(owner)
    await owner.meet(holder)
    await owner.pusher.push(shared.sealed.bundle_id, shared.sealed.tag, holder.node_id)
    asker.records[shared.sealed.tag] = [await holder.record()]
    assert (await asker.share_finder.root(shared.key, shared.ref, TOKEN))[0] == shared.root


async def test_the_root_comes_over_a_node_that_has_none_of_it(world: World) -> None:
    owner, between = world.node("owner"), world.node("between")
    asker = world.node("asker", OTHER_GROUP_KEY)
    await between.meet(owner)
    await asker.meet(between)
    shared = share(owner)
    assert (await asker.share_finder.root(shared.key, shared.ref, TOKEN))[0] == shared.root


async def test_an_end_is_told_apart_from_a_node_that_is_away(world: World) -> None:
    owner, asker = await strangers(world)
    shared = share(owner, ends=1)
    with pytest.raises(ShareRefused):
        await asker.share_finder.root(shared.key, shared.ref, TOKEN)
    owner.drop(shared.sealed)
    with pytest.raises(Unavailable, match="No node was found"):
        await asker.share_finder.root(shared.key, shared.ref, TOKEN)


async def test_what_is_not_the_root_is_not_taken_for_it(world: World) -> None:
    owner, asker = await strangers(world)
    shared = share(owner)
    other = ShareKey(bytes(32), bytes(16))
    with pytest.raises(Unavailable):
        await asker.share_finder.root(other, shared.ref, TOKEN)


async def test_a_block_that_could_not_be_read_was_not_given(world: World) -> None:
    """What is given once must not end because it was asked for."""
    owner, asker = await strangers(world)
    shared = share(owner, 3)
    spoilt = shared.sealed.blocks[1]
    path = owner.bundles.path(shared.sealed.bundle_id)
    raw = path.read_bytes()
    at = raw.index(spoilt.block)
    path.write_bytes(raw[:at] + bytes(len(spoilt.block)) + raw[at + len(spoilt.block) :])
    with pytest.raises(BlocksMissing):
        await asker.source.blocks(shared.sealed.wanted(), ticket=Ticket(TOKEN, (owner.node_id,)))
    given = {block for _, _, blocks in owner.told for block in blocks}
    assert given == {shared.sealed.blocks[0].block_id, shared.sealed.blocks[2].block_id}


@pytest.mark.parametrize(
    "hint", [("127.0.0.1", 0), ("0.0.0.0", 9), ("255.255.255.255", 9), ("ff02::1", 9), ("::", 0)]
)
async def test_an_address_that_nobody_can_have_hinders_nothing(
    world: World, hint: tuple[str, int]
) -> None:
    owner, asker = await strangers(world)
    shared = share(owner, hints=(hint,))
    assert (await asker.share_finder.root(shared.key, shared.ref, TOKEN))[0] == shared.root
