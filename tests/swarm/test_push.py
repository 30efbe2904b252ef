"""Giving bundles away, and asking about them afterwards; what honest nodes do."""

from __future__ import annotations

import asyncio
import threading
from typing import cast

import msgspec
import pytest

from p2pstore.content import Kind, encode_live_map, live_map_hash, sign_live_map, signed_list
from p2pstore.errors import (
    Busy,
    IntegrityError,
    NoRoom,
    NotAllowed,
    P2PStoreError,
    RemoteProtocolError,
)
from p2pstore.ids import BundleId, GroupId, group_id_of
from p2pstore.net import Request
from p2pstore.store import BundleDamaged, StaleMap
from p2pstore.swarm import Receipt as SwarmReceipt
from p2pstore.wire import (
    Challenge,
    Holding,
    HoldingsPage,
    LiveMapUpdate,
    Message,
    Proof,
    Put,
    PutBlock,
    PutEnd,
    PutReady,
    Receipt,
    ReceiptBody,
    Unknown,
    sign_receipt,
    verify_receipt,
)

from .world import OTHER_GROUP_KEY, Node, Sealed, World

DAY_MS = 86_400_000


async def pushed(world: World) -> tuple[Node, Node, Sealed]:
    a, b = await world.pair()
    sealed = a.seal()
    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    return a, b, sealed


async def test_a_push_ends_with_a_receipt_over_the_whole_bundle(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal(number=40)

    receipt = await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)

    assert receipt.holder == b.node_id
    assert receipt.seq == 0
    assert receipt.size == sum(len(block.block) for block in sealed.blocks)
    assert receipt.lease_until_ms == int(world.clock.wall() * 1000) + 180 * DAY_MS
    assert verify_receipt(receipt.raw, b.public).bundle == sealed.bundle_id
    assert b.held.has(sealed.bundle_id)
    assert b.kept == [sealed.tag]
    ids = [block.block_id for block in sealed.blocks]
    assert b.held.read_blocks(sealed.bundle_id, ids) == sealed.content()


async def test_a_second_push_sends_no_block(world: World) -> None:
    a, b, sealed = await pushed(world)
    received = sum(link.received_bytes for link in b.transport.links())

    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)

    assert sum(link.received_bytes for link in b.transport.links()) - received < 5000


async def test_a_push_that_was_cut_goes_on_where_it_ended(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal(number=8, size=1 << 20)
    link = a.connections.get(b.node_id)
    assert link is not None
    task = asyncio.ensure_future(a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id))
    while sum(one.received_bytes for one in b.transport.links()) < 5 << 20:
        await asyncio.sleep(0)
    link.abort()
    with pytest.raises(P2PStoreError):
        await task
    while b.server._taker._puts:
        await asyncio.sleep(0)

    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)

    assert b.held.has(sealed.bundle_id)
    again = sum(one.received_bytes for one in b.transport.links())
    assert again < 6 << 20  # two blocks at least had come, and were kept


async def test_leases_are_made_longer_in_bulk(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    first = await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id, lease_s=DAY_MS // 1000)
    nowhere = BundleId(b"?" * 32)
    granted, seqs = await a.pusher.renew(
        b.node_id, [sealed.bundle_id, nowhere], lease_s=9 * DAY_MS // 1000
    )
    assert (granted, list(seqs)) == (9 * DAY_MS // 1000, [0, None])
    (holding,) = [h async for h in a.pusher.holdings(b.node_id)]
    assert holding.lease_until_ms == first.lease_until_ms + 8 * DAY_MS


async def test_only_live_blocks_are_pushed_and_proved(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    smaller = sign_live_map(a.bundles.live_map(sealed.bundle_id).without({0, 3}), a.key)
    a.bundles.set_live_map(sealed.bundle_id, smaller)

    receipt = await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)

    assert receipt.seq == 1
    assert receipt.size == sum(len(block.block) for block in sealed.blocks[1:]) - len(
        sealed.blocks[3].block
    )
    assert await a.pusher.challenge(sealed.bundle_id, b.node_id, 1) is True


async def test_another_live_map_is_stale_and_no_proof(world: World) -> None:
    a, b, sealed = await pushed(world)
    smaller = sign_live_map(a.bundles.live_map(sealed.bundle_id).without({0}), a.key)
    a.bundles.set_live_map(sealed.bundle_id, smaller)

    with pytest.raises(StaleMap) as caught:
        await a.pusher.challenge(sealed.bundle_id, b.node_id, 1)
    assert caught.value.seq == 0
    with pytest.raises(StaleMap):
        await a.pusher.lock(sealed.bundle_id, b.node_id)

    await a.pusher.send_live_map(sealed.bundle_id, b.node_id)
    await a.pusher.send_live_map(sealed.bundle_id, b.node_id)  # no news, no error
    assert await a.pusher.challenge(sealed.bundle_id, b.node_id, 1) is True


async def test_a_holder_that_has_it_not_says_so(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    with pytest.raises(Unknown):
        await a.pusher.challenge(sealed.bundle_id, b.node_id, 0)
    with pytest.raises(Unknown):
        await a.pusher.lock(sealed.bundle_id, b.node_id)


async def test_a_damaged_held_bundle_gives_no_proof_and_is_mended_by_a_push(world: World) -> None:
    a, b, sealed = await pushed(world)
    b.spoil(sealed, 4)
    with pytest.raises(IntegrityError):
        await a.pusher.challenge(sealed.bundle_id, b.node_id, 0)

    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)

    assert await a.pusher.challenge(sealed.bundle_id, b.node_id, 0) is True


async def test_a_damaged_own_bundle_is_not_pushed(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    a.spoil(sealed)
    with pytest.raises(BundleDamaged):
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    assert not b.held.has(sealed.bundle_id)


async def test_what_admission_refuses_costs_no_byte(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    b.refusal = "beyond the offer"

    with pytest.raises(NoRoom, match="beyond the offer"):
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)

    assert not b.held.has(sealed.bundle_id)
    assert list((world.root / "desk" / "held" / "incoming").iterdir()) == []


async def test_a_locked_bundle_is_not_released(world: World) -> None:
    a, b, sealed = await pushed(world)
    assert await a.pusher.lock(sealed.bundle_id, b.node_id) == 600
    with pytest.raises(Busy):
        await a.pusher.release(sealed.bundle_id, b.node_id)

    await a.pusher.unlock(sealed.bundle_id, b.node_id)
    await a.pusher.release(sealed.bundle_id, b.node_id)

    assert not b.held.has(sealed.bundle_id)
    assert sealed.bundle_id in b.held.trashed()


async def test_a_released_bundle_is_taken_back_by_a_push(world: World) -> None:
    a, b, sealed = await pushed(world)
    await a.pusher.release(sealed.bundle_id, b.node_id)
    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    assert b.held.has(sealed.bundle_id)


async def test_only_the_opener_or_an_admin_releases(world: World) -> None:
    _a, b, sealed = await pushed(world)
    c, admin = world.node("tablet"), world.node("tower", certified_as="admin")
    await c.meet(b)
    await admin.meet(b)
    with pytest.raises(NotAllowed):
        await c.pusher.release(sealed.bundle_id, b.node_id)
    assert b.held.has(sealed.bundle_id)
    await admin.pusher.release(sealed.bundle_id, b.node_id)
    assert not b.held.has(sealed.bundle_id)


async def test_a_live_map_of_somebody_else_is_refused(world: World) -> None:
    a, b, sealed = await pushed(world)
    c = world.node("tablet")
    await c.meet(b)
    forged = sign_live_map(a.bundles.live_map(sealed.bundle_id).without({0}), c.key)
    a.bundles.set_live_map(sealed.bundle_id, forged)
    with pytest.raises(NotAllowed):
        await a.pusher.send_live_map(sealed.bundle_id, b.node_id)
    with pytest.raises(NotAllowed):
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    assert b.held.live_map(sealed.bundle_id).seq == 0


async def test_holdings_come_in_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await world.pair()
    made = [a.seal(f"bundle {i}", number=2, size=100) for i in range(7)]
    for sealed in made:
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    monkeypatch.setattr("p2pstore.swarm.push.MAX_HOLDINGS", 3)

    found = [holding async for holding in a.pusher.holdings(b.node_id)]

    assert [one.bundle for one in found] == sorted(one.bundle_id for one in made)
    assert {one.tag for one in found} == {one.tag for one in made}
    assert all(one.opener == a.public and one.kind == Kind.DATA for one in found)
    assert b.served.count("Holdings") == 3


async def test_heads_go_there_and_come_back(world: World) -> None:
    a, b = await world.pair()
    kept = await a.pusher.put_heads(b.node_id, b"state", [b"head"])
    assert (kept.generation, kept.seq) == (1, 2)
    heads = await a.pusher.get_heads(b.node_id)
    assert heads.states == (b"state",)
    assert heads.heads == (b"head",)


async def test_a_sample_of_blocks_audits_without_own_bytes(world: World) -> None:
    a, b, sealed = await pushed(world)
    a.drop(sealed)
    ids = [sealed.blocks[i].block_id for i in (2, 7)]
    assert await a.pusher.sample(sealed.bundle_id, sealed.tag, b.node_id, ids)
    b.spoil(sealed, 7)
    assert not await a.pusher.sample(sealed.bundle_id, sealed.tag, b.node_id, ids)


async def test_own_bundles_are_proved_and_locked_for_other_devices(world: World) -> None:
    a, b, sealed = await pushed(world)  # b holds what a opened and still has
    assert await b.pusher.challenge(sealed.bundle_id, a.node_id, 0) is True
    assert await b.pusher.lock(sealed.bundle_id, a.node_id) == 600
    with pytest.raises(Busy):
        a.promises.begin_removal(sealed.bundle_id)
    await b.pusher.unlock(sealed.bundle_id, a.node_id)
    a.promises.begin_removal(sealed.bundle_id)


async def test_two_nodes_that_remove_the_same_bundle_answer_each_other_busy(world: World) -> None:
    a, b, sealed = await pushed(world)
    a.promises.begin_removal(sealed.bundle_id)
    b.held.begin_removal(sealed.bundle_id)
    for one, other in ((a, b), (b, a)):
        with pytest.raises(Busy):
            await one.pusher.lock(sealed.bundle_id, other.node_id)
    with pytest.raises(Busy):  # nor does anybody rely on what is about to go
        await b.pusher.challenge(sealed.bundle_id, a.node_id, 0)
    a.promises.end_removal(sealed.bundle_id)
    assert await b.pusher.lock(sealed.bundle_id, a.node_id) == 600


async def test_a_bundle_opened_here_is_not_released_by_others(world: World) -> None:
    a, _b, sealed = await pushed(world)
    admin = world.node("tower", certified_as="admin")
    await admin.meet(a)
    with pytest.raises(NotAllowed):
        await admin.pusher.release(sealed.bundle_id, a.node_id)
    assert a.bundles.has(sealed.bundle_id)


async def test_two_pushes_of_one_bundle_by_one_node_both_end(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal(number=30, size=50_000)
    results = await asyncio.gather(
        *(a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id) for _ in range(2)),
        return_exceptions=True,
    )
    assert any(not isinstance(result, BaseException) for result in results), results
    assert b.held.has(sealed.bundle_id)


async def test_all_of_it_over_tls(tls_world: World) -> None:
    a, b = await tls_world.pair()
    sealed = a.seal(number=6, size=1 << 20)
    await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
    assert await a.pusher.challenge(sealed.bundle_id, b.node_id, 0) is True
    assert await a.pusher.lock(sealed.bundle_id, b.node_id) == 600
    a.drop(sealed)
    a.holders[sealed.bundle_id] = [b.node_id]
    assert await a.source.blocks(sealed.wanted()) == sealed.content()


# Holders that lie


async def lying(world: World, handler_of: type[Liar]) -> tuple[Node, Node, Sealed, Liar]:
    a, b = await world.pair()
    liar = handler_of(b)
    b.transport.handler = liar
    return a, b, a.seal(), liar


class Liar:
    """Takes everything, and has a better idea of what to answer."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.proof = bytes(32)

    def receipt(self, put: Put, end: PutEnd) -> bytes:
        body = ReceiptBody(
            group=group_id_of(self.node.group),
            bundle=put.bundle,
            seq=0,
            live_map_hash=bytes(32),
            bytes=put.bytes,
            holder=self.node.public,
            lease_until_ms=1,
            nonce=end.nonce,
            proof=self.proof,
        )
        return sign_receipt(body, self.node.key)

    async def __call__(self, request: Request) -> None:
        if isinstance(request.message, Challenge):
            await request.reply(Proof(self.proof))
        elif isinstance(request.message, Put):
            await request.reply(PutReady(b""), final=False)
            end, _ = await request.receive()
            while isinstance(end, PutBlock):
                end, _ = await request.receive()
            assert isinstance(end, PutEnd)
            await request.reply(Receipt(self.receipt(request.message, end)))


async def test_a_wrong_receipt_is_no_receipt(world: World) -> None:
    a, b, sealed, _ = await lying(world, Liar)
    with pytest.raises(IntegrityError):
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)


async def test_a_receipt_without_the_bytes_is_no_receipt(world: World) -> None:
    class KnowsTheList(Liar):
        def receipt(self, put: Put, end: PutEnd) -> bytes:
            body = verify_receipt(super().receipt(put, end))
            true_hash = live_map_hash(a.bundles.live_map(put.bundle))
            return sign_receipt(
                msgspec.structs.replace(body, live_map_hash=true_hash), self.node.key
            )

    a, b, sealed, _ = await lying(world, KnowsTheList)
    with pytest.raises(IntegrityError, match="wrong proof"):
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)


async def test_a_wrong_proof_is_a_lie(world: World) -> None:
    a, b, sealed, _ = await lying(world, Liar)
    assert await a.pusher.challenge(sealed.bundle_id, b.node_id, 0) is False


async def test_the_answer_of_an_honest_node_is_useless_to_a_liar(world: World) -> None:
    """The liar passes the question on to a node that has the bytes."""
    a, liar, honest = world.node("laptop"), world.node("liar"), world.node("desk")
    await a.meet(liar)
    await a.meet(honest)
    relay = await liar.meet(honest)
    sealed = a.seal()
    await a.pusher.push(sealed.bundle_id, sealed.tag, honest.node_id)

    async def pass_on(request: Request) -> None:
        answer, _ = await relay.request(request.message)
        await request.reply(answer)

    liar.transport.handler = pass_on
    assert await a.pusher.challenge(sealed.bundle_id, honest.node_id, 0) is True
    assert await a.pusher.challenge(sealed.bundle_id, liar.node_id, 0) is False


async def test_garbage_in_place_of_blocks_is_refused_and_the_rest_is_kept(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    link = a.connections.get(b.node_id)
    assert link is not None
    put = Put(
        sealed.bundle_id,
        sealed.tag,
        b"",
        (),
        sum(len(block.block) for block in sealed.blocks),
        1000,
    )
    async with link.exchange(put, signed_list(sealed.listed)) as exchange:
        await exchange.receive()
        await exchange.send(PutBlock(0), sealed.blocks[0].block)
        await exchange.send(PutBlock(1), b"garbage")
        await exchange.send(PutEnd(bytes(32)))
        with pytest.raises(IntegrityError):
            await exchange.receive()
    async with link.exchange(put, signed_list(sealed.listed)) as exchange:
        ready, _ = await exchange.receive()
        assert isinstance(ready, PutReady)
        assert int.from_bytes(ready.missing, "little") == 0b11_1111_1110


async def test_a_list_of_another_size_or_bundle_is_refused(world: World) -> None:
    a, b = await world.pair()
    sealed, other = a.seal(), a.seal("two")
    link = a.connections.get(b.node_id)
    assert link is not None
    size = sum(len(block.block) for block in sealed.blocks)
    for put in (
        Put(sealed.bundle_id, sealed.tag, b"", (), size - 1, 1000),
        Put(other.bundle_id, sealed.tag, b"", (), size, 1000),
    ):
        with pytest.raises(P2PStoreError):
            await link.request(put, signed_list(sealed.listed))
    with pytest.raises(P2PStoreError):
        await link.request(put, b"no list at all" * 100)
    assert b.held.groups() == {}


async def test_a_holder_that_lists_for_ever_is_stopped(world: World) -> None:
    a, b = await world.pair()
    item = Holding(BundleId(bytes(32)), a.seal().tag, 1, a.public, 0, 1, 1)

    async def for_ever(request: Request) -> None:
        await request.reply(HoldingsPage((item,), True))

    b.transport.handler = for_ever
    with pytest.raises(P2PStoreError):
        async for _ in a.pusher.holdings(b.node_id):
            pass


async def test_two_nodes_do_not_send_one_bundle_at_once(world: World) -> None:
    a, b, sealed = await pushed(world)
    c = world.node("tower")
    await a.meet(c)
    link, other = a.connections.get(c.node_id), await b.meet(c)
    assert link is not None
    size = sum(len(block.block) for block in sealed.blocks)
    put = Put(sealed.bundle_id, sealed.tag, b"", (), size, 1000)
    async with link.exchange(put, signed_list(sealed.listed)) as exchange:
        await exchange.receive()
        with pytest.raises(Busy):
            await other.request(put, signed_list(sealed.listed))
    while c.server._taker._puts:
        await asyncio.sleep(0)
    await b.pusher.push(sealed.bundle_id, sealed.tag, c.node_id)  # from what b holds for a
    assert c.held.has(sealed.bundle_id)


async def test_a_newer_put_of_the_same_node_ends_the_older(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    link = a.connections.get(b.node_id)
    assert link is not None
    size = sum(len(block.block) for block in sealed.blocks)
    put = Put(sealed.bundle_id, sealed.tag, b"", (), size, 1000)
    async with link.exchange(put, signed_list(sealed.listed)) as older:
        await older.receive()
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
        with pytest.raises(P2PStoreError):
            await older.receive()
    assert b.held.has(sealed.bundle_id)


async def test_more_blocks_than_the_list_names_are_refused(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal(number=2)
    link = a.connections.get(b.node_id)
    assert link is not None
    size = sum(len(block.block) for block in sealed.blocks)
    put = Put(sealed.bundle_id, sealed.tag, b"", (), size, 1000)
    async with link.exchange(put, signed_list(sealed.listed)) as exchange:
        await exchange.receive()
        for _ in range(3):
            await exchange.send(PutBlock(0), sealed.blocks[0].block)
        with pytest.raises(RemoteProtocolError):
            await exchange.receive()


async def test_room_is_given_to_one_upload_after_the_other(world: World) -> None:
    """Two uploads of which the room takes one: the second sees what the first will take."""
    a, b = await world.pair()
    first, second = a.seal("first"), a.seal("second")
    size = sum(len(block.block) for block in first.blocks)
    inside = threading.Semaphore(0)

    def admission(group: GroupId, role: str, asked: int) -> str | None:
        used = b.held.used_bytes(group)
        inside.release()
        if not used:
            # Nobody else may look at the room before this upload has been begun.
            inside.acquire()
            assert not inside.acquire(timeout=0.1)
        return "beyond the offer" if used + asked > size + 100 else None

    b.server._taker._admission = admission
    results = await asyncio.gather(
        *(a.pusher.push(one.bundle_id, one.tag, b.node_id) for one in (first, second)),
        return_exceptions=True,
    )
    kinds = {type(result) for result in results}
    assert kinds == {SwarmReceipt, NoRoom}, results


async def test_what_a_revoked_opener_signs_counts_no_more(world: World) -> None:
    a, b, sealed = await pushed(world)
    smaller = sign_live_map(a.bundles.live_map(sealed.bundle_id).without({0}), a.key)
    b.revoked = frozenset({a.public})
    c = world.node("tablet")
    link = await c.meet(b)
    with pytest.raises(NotAllowed):
        await link.request(LiveMapUpdate(encode_live_map(smaller)))
    assert b.held.live_map(sealed.bundle_id).seq == 0


async def test_what_a_node_opened_itself_is_not_pushed_to_it(world: World) -> None:
    a, b, sealed = await pushed(world)
    with pytest.raises(NotAllowed):
        await b.pusher.push(sealed.bundle_id, sealed.tag, a.node_id)


async def test_a_revoked_device_is_refused_though_its_chain_was_good_before(world: World) -> None:
    holder = world.node("holder", friends=(OTHER_GROUP_KEY,))
    friend = world.node("friend", OTHER_GROUP_KEY)
    await friend.meet(holder)
    sealed = friend.seal()
    await friend.pusher.push(sealed.bundle_id, sealed.tag, holder.node_id)
    assert await friend.pusher.challenge(sealed.bundle_id, holder.node_id, 0) is True
    holder.revoked = frozenset({friend.public})
    with pytest.raises(NotAllowed):
        await friend.pusher.challenge(sealed.bundle_id, holder.node_id, 0)


async def test_the_blocks_that_came_before_a_cut_are_kept(world: World) -> None:
    a, b = await world.pair()
    sealed = a.seal()
    link = a.connections.get(b.node_id)
    assert link is not None
    size = sum(len(block.block) for block in sealed.blocks)
    put = Put(sealed.bundle_id, sealed.tag, b"", (), size, 1000)
    async with link.exchange(put, signed_list(sealed.listed)) as exchange:
        await exchange.receive()
        received = sum(one.received_bytes for one in b.transport.links())
        await exchange.send(PutBlock(4), sealed.blocks[4].block)
        while sum(one.received_bytes for one in b.transport.links()) < received + 5000:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    while b.server._taker._puts:
        await asyncio.sleep(0)
    async with link.exchange(put, signed_list(sealed.listed)) as exchange:
        ready, _ = await exchange.receive()
    assert isinstance(ready, PutReady)
    assert int.from_bytes(ready.missing, "little") == 0b11_1110_1111


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": bytes(32)},
        {"seq": 1},
        {"live_map_hash": bytes(32)},
        {"bytes": 1},
        {"bundle": bytes(32)},
        {"group": bytes(32)},
    ],
)
async def test_a_receipt_about_something_else_is_none(
    world: World, change: dict[str, object]
) -> None:
    """The holder has all the bytes and proves them; only its word is about another thing."""
    a, b = await world.pair()
    sealed = a.seal()
    honest = b.server.serve

    async def reword(request: Request) -> None:
        reply = request.reply

        async def reworded(message: Message, payload: bytes = b"", final: bool = True) -> None:
            if isinstance(message, Receipt):
                body = msgspec.structs.replace(verify_receipt(message.raw), **change)
                message = Receipt(sign_receipt(body, b.key))
            await reply(message, payload, final)

        class Reworded:
            def __getattr__(self, name: str) -> object:
                return reworded if name == "reply" else getattr(request, name)

        await honest(cast(Request, Reworded()))

    b.transport.handler = reword
    with pytest.raises(IntegrityError, match="something else"):
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)


async def test_a_receipt_signed_by_another_node_is_none(world: World) -> None:
    class Borrower(Liar):
        def receipt(self, put: Put, end: PutEnd) -> bytes:
            other = world.node("somebody")
            body = verify_receipt(super().receipt(put, end))
            return sign_receipt(msgspec.structs.replace(body, holder=other.public), other.key)

    a, b, sealed, _ = await lying(world, Borrower)
    with pytest.raises(P2PStoreError, match="another holder"):
        await a.pusher.push(sealed.bundle_id, sealed.tag, b.node_id)
