"""What every transport must do: run on TLS over loopback and on the in-memory one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from nacl.signing import SigningKey

from p2pstore.errors import (
    Busy,
    LocalProtocolError,
    NoRoom,
    NotAllowed,
    P2PStoreError,
    PeerUnreachable,
    PortInUse,
    RemoteProtocolError,
    Unavailable,
)
from p2pstore.ids import BlockId, BundleId, PublicKey, Tag, node_id_of
from p2pstore.net import Endpoint, Limits, Link, Request, WrongPeer
from p2pstore.wire import (
    BlockReply,
    Get,
    GetDone,
    Hello,
    Ok,
    Ping,
    Pong,
    Put,
    PutBlock,
    PutEnd,
    PutReady,
    Receipt,
    Unlock,
)

Until = Callable[[Callable[[], bool]], Awaitable[None]]
BLOCK = BlockReply(BlockId(bytes(32)))
UNLOCK = Unlock(BundleId(bytes(32)))
PUT = Put(BundleId(bytes(32)), Tag(bytes(20)), b"", (), 0, 60)


async def ok(request: Request) -> None:
    await request.reply(Ok())


async def never(request: Request) -> None:
    await asyncio.Event().wait()


async def test_request_is_answered(nodes: Any) -> None:
    link, server = await nodes.linked(ok)
    assert await link.request(UNLOCK) == (Ok(), b"")
    assert link.node_id == server.node_id
    assert link.role == "device"


async def test_accepted_side_asks_too(nodes: Any, until: Until) -> None:
    server, client = nodes.make(), nodes.make(ok)
    await client.dial(*await server.listen("127.0.0.1", 0))
    await until(lambda: bool(server.links()))
    assert await server.links()[0].request(UNLOCK) == (Ok(), b"")


async def test_ping_is_answered_without_a_handler(nodes: Any) -> None:
    link, _ = await nodes.linked()
    assert await link.request(Ping()) == (Pong(), b"")


async def test_payload_comes_back_whole(nodes: Any) -> None:
    sizes = [0, 1, 4096, 16_384, 262_144, 1_048_576, 2 * 1024 * 1024]

    async def serve(request: Request) -> None:
        for size in sizes:
            await request.reply(BLOCK, bytes([size % 251]) * size, final=False)
        await request.reply(GetDone())

    link, _ = await nodes.linked(serve)
    got = [payload async for _, payload in link.stream(Get(b"x"))]
    assert got == [bytes([size % 251]) * size for size in [*sizes, 0]]


async def test_many_requests_at_once_find_their_answers(nodes: Any) -> None:
    async def serve(request: Request) -> None:
        await asyncio.sleep(0)
        await request.reply(BLOCK, request.message.request)  # type: ignore[attr-defined]

    link, _ = await nodes.linked(serve)
    answers = await asyncio.gather(*(link.request(Get(b"%d" % i)) for i in range(300)))
    assert [payload for _, payload in answers] == [b"%d" % i for i in range(300)]


async def test_put_goes_both_ways_within_one_exchange(nodes: Any) -> None:
    async def serve(request: Request) -> None:
        got = [request.payload]
        await request.reply(PutReady(b"\x07"), final=False)
        while True:
            message, payload = await request.receive()
            if isinstance(message, PutEnd):
                break
            got.append(payload)
        await request.reply(Receipt(b"|".join(got)))

    link, _ = await nodes.linked(serve)
    async with link.exchange(PUT, b"list") as put:
        assert await put.receive() == (PutReady(b"\x07"), b"")
        for index in range(3):
            await put.send(PutBlock(index), b"block%d" % index)
        await put.send(PutEnd(bytes(32)))
        assert await put.receive() == (Receipt(b"list|block0|block1|block2"), b"")
        assert put.is_done


async def test_refused_put_ends_early(nodes: Any) -> None:
    async def serve(request: Request) -> None:
        raise NoRoom("the offer is used up")

    link, _ = await nodes.linked(serve)
    async with link.exchange(PUT, b"list") as put:
        with pytest.raises(NoRoom, match="the offer is used up"):
            await put.receive()
        await put.send(PutBlock(0), b"too late")
    assert await link.request(Ping()) == (Pong(), b"")


async def test_sender_waits_for_a_slow_receiver(nodes: Any, until: Until) -> None:
    sent = 0
    limits = Limits(check_every_s=3600, peer_bytes=1 << 20, write_high=1 << 18)
    go = asyncio.Event()

    async def serve(request: Request) -> None:
        await go.wait()
        while not isinstance((await request.receive())[0], PutEnd):
            pass
        await request.reply(Ok())

    server = nodes.make(serve, limits=limits)
    client = nodes.make(limits=limits)
    link = await client.dial(*await server.listen("127.0.0.1", 0))
    block = bytes(1 << 18)

    async def push() -> None:
        nonlocal sent
        async with link.exchange(PUT) as put:
            for _ in range(256):
                await put.send(PutBlock(0), block)
                sent += len(block)
            await put.send(PutEnd(bytes(32)))
            await put.receive()

    pushing = asyncio.ensure_future(push())
    last = -1
    while sent != last or not sent:  # until nothing moves for many turns
        last = sent
        for _ in range(300):
            await asyncio.sleep(0)
    assert sent < 64 << 18
    assert server.held_bytes <= 3 << 20
    go.set()
    await pushing
    assert sent == 256 << 18
    await until(lambda: server.held_bytes == 0)


async def test_answers_nobody_takes_stop_the_other_side(nodes: Any) -> None:
    replied = 0

    async def serve(request: Request) -> None:
        nonlocal replied
        for _ in range(200):
            await request.reply(BLOCK, bytes(1 << 18), final=False)
            replied += 1
        await request.reply(GetDone())

    limits = Limits(check_every_s=3600, peer_bytes=1 << 20, write_high=1 << 18)
    server, client = nodes.make(serve, limits=limits), nodes.make(limits=limits)
    link = await client.dial(*await server.listen("127.0.0.1", 0))
    async with link.exchange(Get(b"x")) as got:
        await got.receive()
        last = 0
        while replied != last:
            last = replied
            for _ in range(300):
                await asyncio.sleep(0)
        assert replied < 64
        count = 1
        while not got.is_done:
            await got.receive()
            count += 1
    assert (count, client.held_bytes) == (201, 0)


async def test_more_requests_than_fit_wait_their_turn(nodes: Any) -> None:
    running, most = 0, 0

    async def serve(request: Request) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(3):
            await asyncio.sleep(0)
        running -= 1
        await request.reply(Ok())

    link, _ = await nodes.linked(serve)
    await asyncio.gather(*(link.request(UNLOCK) for _ in range(200)))
    assert most <= 64


async def test_error_of_the_handler_reaches_the_asker(nodes: Any) -> None:
    async def serve(request: Request) -> None:
        raise Busy("try later")

    link, _ = await nodes.linked(serve)
    with pytest.raises(Busy, match="try later"):
        await link.request(UNLOCK)


async def test_bug_of_the_handler_says_nothing(
    nodes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(request: Request) -> None:
        raise ValueError("/home/anna/secret")

    link, _ = await nodes.linked(serve)
    with pytest.raises(Unavailable) as caught:
        await link.request(UNLOCK)
    assert "anna" not in str(caught.value)
    assert "Serving Unlock failed" in caplog.text


async def test_handler_without_answer_still_answers(nodes: Any) -> None:
    async def serve(request: Request) -> None:
        return

    link, _ = await nodes.linked(serve)
    with pytest.raises(Unavailable):
        await link.request(UNLOCK)


async def test_without_handler_all_is_refused(nodes: Any) -> None:
    link, _ = await nodes.linked()
    with pytest.raises(NotAllowed):
        await link.request(UNLOCK)


async def test_silence_is_unavailable_and_cancels_there(nodes: Any) -> None:
    ended = asyncio.Event()

    async def serve(request: Request) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    link, _ = await nodes.linked(serve)
    with pytest.raises(Unavailable):
        await link.request(UNLOCK, timeout_s=0.01)
    await asyncio.wait_for(ended.wait(), 5)
    assert await link.request(Ping()) == (Pong(), b"")


async def test_leaving_a_stream_stops_it_there(nodes: Any) -> None:
    ended = asyncio.Event()

    async def serve(request: Request) -> None:
        try:
            while True:
                await request.reply(BLOCK, bytes(1 << 16), final=False)
                await asyncio.sleep(0)
        finally:
            ended.set()

    link, _ = await nodes.linked(serve)
    stream = link.stream(Get(b"x"))
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    await asyncio.wait_for(ended.wait(), 5)
    assert await link.request(Ping()) == (Pong(), b"")


async def test_taking_more_than_the_final_answer_is_our_bug(nodes: Any) -> None:
    link, _ = await nodes.linked(ok)
    async with link.exchange(UNLOCK) as exchange:
        await exchange.receive()
        with pytest.raises(LocalProtocolError):
            await exchange.receive()


async def test_closed_link_fails_what_is_under_way(nodes: Any, until: Until) -> None:
    link, server = await nodes.linked(never)
    asking = asyncio.ensure_future(link.request(UNLOCK))
    await until(lambda: link.session.own_exchanges == 1)
    await server.close()
    with pytest.raises(PeerUnreachable):
        await asking
    with pytest.raises(PeerUnreachable):
        await link.request(UNLOCK)
    await link.wait_closed()


async def test_aborted_link_fails_what_is_under_way(nodes: Any, until: Until) -> None:
    link, server = await nodes.linked(never)
    asking = asyncio.ensure_future(link.request(UNLOCK))
    await until(lambda: link.session.own_exchanges == 1)
    await until(lambda: bool(server.links()))
    server.links()[0].abort()
    with pytest.raises(PeerUnreachable):
        await asking


async def test_handlers_end_with_their_link(nodes: Any) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def serve(request: Request) -> None:
        began.set()
        try:
            await request.receive()
        finally:
            ended.set()

    link, _ = await nodes.linked(serve)
    async with link.exchange(PUT) as put:
        await put.open()
        await asyncio.wait_for(began.wait(), 5)
        await link.close()
    await asyncio.wait_for(ended.wait(), 5)


async def test_retired_link_ends_when_nothing_is_under_way(nodes: Any, until: Until) -> None:
    go = asyncio.Event()

    async def serve(request: Request) -> None:
        await go.wait()
        await request.reply(Ok())

    link, _ = await nodes.linked(serve)
    asking = asyncio.ensure_future(link.request(UNLOCK))
    await until(lambda: link.session.own_exchanges == 1)
    link.retire()
    assert not link.is_closed
    go.set()
    assert await asking == (Ok(), b"")
    await asyncio.wait_for(link.wait_closed(), 5)


async def test_expected_node_is_found(nodes: Any) -> None:
    server, client = nodes.make(), nodes.make()
    address = await server.listen("127.0.0.1", 0)
    link = await client.dial(*address, expect=server.node_id)
    assert link.node_id == server.node_id


async def test_another_node_than_expected_is_refused(nodes: Any) -> None:
    server, client = nodes.make(), nodes.make()
    address = await server.listen("127.0.0.1", 0)
    with pytest.raises(WrongPeer):
        await client.dial(*address, expect=client.node_id)
    assert client.links() == []


async def test_dialling_oneself_is_refused(nodes: Any) -> None:
    node = nodes.make()
    with pytest.raises(WrongPeer):
        await node.dial(*await node.listen("127.0.0.1", 0))


async def test_other_network_is_refused_on_both_sides(nodes: Any) -> None:
    server, client = nodes.make(ok, network="main"), nodes.make(network="other")
    seen: list[Link] = []
    server.watch(lambda link, up: seen.append(link))
    with pytest.raises(P2PStoreError) as caught:
        await client.dial(*await server.listen("127.0.0.1", 0))
    assert isinstance(caught.value, NotAllowed | PeerUnreachable)
    assert "network" in str(caught.value)
    assert seen == server.links() == client.links() == []


async def test_no_common_version_is_refused(nodes: Any) -> None:
    server = nodes.make(hello=lambda hello: msgspec.structs.replace(hello, versions=(2, 3)))
    client = nodes.make()
    with pytest.raises(P2PStoreError, match="version"):
        await client.dial(*await server.listen("127.0.0.1", 0))


async def test_hello_with_another_key_is_refused(nodes: Any) -> None:
    stolen = PublicKey(bytes(SigningKey.generate().verify_key))

    def lie(hello: Hello) -> Hello:
        return msgspec.structs.replace(hello, public_key=stolen)

    server, client = nodes.make(hello=lie), nodes.make()
    with pytest.raises(RemoteProtocolError):
        await client.dial(*await server.listen("127.0.0.1", 0))
    assert client.links() == []


async def dial_and_stay(client: Endpoint, address: tuple[str, int]) -> None:
    """Raise why the link ended: the other side may judge HELLO after this one did."""
    link = await client.dial(*address)
    await asyncio.wait_for(link.wait_closed(), 5)
    raise link.gone()


async def test_refused_role_ends_the_link(nodes: Any) -> None:
    def nobody(hello: Hello) -> str:
        raise NotAllowed("revoked")

    server, client = nodes.make(role_of=nobody), nodes.make()
    address = await server.listen("127.0.0.1", 0)
    with pytest.raises(P2PStoreError, match="revoked"):
        await dial_and_stay(client, address)
    assert server.links() == []


async def test_stranger_cannot_send_payload(nodes: Any) -> None:
    link, _ = await nodes.linked(ok, role="stranger")
    async with link.exchange(PUT, b"list") as put:
        with pytest.raises(PeerUnreachable):
            await put.receive()


async def test_port_of_another_is_in_use(nodes: Any) -> None:
    one, two = nodes.make(), nodes.make()
    address = await one.listen("127.0.0.1", 0)
    with pytest.raises(PortInUse):
        await two.listen(*address)


async def test_nobody_there_is_unreachable(nodes: Any) -> None:
    server, client = nodes.make(), nodes.make()
    address = await server.listen("127.0.0.1", 0)
    await server.close()
    with pytest.raises(PeerUnreachable):
        await client.dial(*address)


async def test_closed_transport_dials_no_more(nodes: Any) -> None:
    node = nodes.make()
    await node.close()
    await node.close()
    with pytest.raises(PeerUnreachable):
        await node.dial("127.0.0.1", 1)


async def test_watchers_see_links_come_and_go(nodes: Any, until: Until) -> None:
    seen: list[tuple[bytes, bool]] = []
    server, client = nodes.make(), nodes.make()
    server.watch(lambda link, up: seen.append((link.node_id, up)))
    link = await client.dial(*await server.listen("127.0.0.1", 0))
    await until(lambda: len(seen) == 1)
    await link.close()
    await until(lambda: len(seen) == 2)
    assert seen == [(client.node_id, True), (client.node_id, False)]


async def test_connections_of_one_address_are_limited(nodes: Any, until: Until) -> None:
    server = nodes.make(limits=Limits(check_every_s=3600, per_loopback=2))
    address = await server.listen("127.0.0.1", 0)
    links = [await nodes.make().dial(*address) for _ in range(2)]
    await until(lambda: len(server.links()) == 2)
    with pytest.raises(PeerUnreachable):
        await nodes.make().dial(*address)
    await links[0].close()
    await until(lambda: not server.links() or len(server.links()) == 1)
    await links[0].wait_closed()
    await until(lambda: server.count == 1)
    assert (await nodes.make().dial(*address)).is_ready


def strangers(*devices: Endpoint) -> Callable[[Hello], str]:
    known = {device.public_key for device in devices}
    return lambda hello: "device" if hello.public_key in known else "stranger"


async def test_full_house_gives_a_strangers_place_to_a_device(nodes: Any, until: Until) -> None:
    device, other = nodes.make(), nodes.make()
    server = nodes.make(
        limits=Limits(check_every_s=3600, max_peers=2), role_of=strangers(device, other)
    )
    address = await server.listen("127.0.0.1", 0)
    await device.dial(*address)
    stranger = await nodes.make().dial(*address)
    await until(lambda: len(server.links()) == 2)
    late = nodes.make()
    with pytest.raises(P2PStoreError, match="as many connections"):
        await dial_and_stay(late, address)
    await other.dial(*address)
    await asyncio.wait_for(stranger.wait_closed(), 5)
    await until(lambda: len(server.links()) == 2)
    assert {link.role for link in server.links()} == {"device"}


async def test_traffic_of_links_that_ended_is_still_counted(nodes: Any, until: Until) -> None:
    async def serve(request: Request) -> None:
        await request.reply(BLOCK, bytes(300_000), final=False)
        await request.reply(GetDone())

    link, server = await nodes.linked(serve)
    client = next(node for node in nodes.made if node is not server)
    async for _ in link.stream(Get(b"x", 0)):
        pass
    during = client.traffic()
    assert 300_000 < during.received < 302_000
    assert 0 < during.sent < 5_000
    await link.close()
    await until(lambda: client.count == 0 and server.count == 0)
    assert client.traffic().received >= during.received
    assert server.traffic().sent >= 300_000
    assert server.traffic().received >= during.sent


async def test_silent_peer_is_asked_and_dropped(nodes: Any, until: Until) -> None:
    link, server = await nodes.linked()
    await until(lambda: len(server.links()) == 1)
    (there,) = server.links()
    server.check()
    before = there.received_bytes
    nodes.clock.advance(61)
    server.check()
    await until(lambda: there.received_bytes > before)
    nodes.clock.advance(1)
    server.check()
    assert not there.is_closed  # it answered
    link._transport.pause_reading()
    there.pulse._limits = Limits(check_every_s=3600, pong_s=0.01)
    nodes.clock.advance(61)

    def checked() -> bool:
        server.check()
        return there.is_closed

    await until(checked)
    link.abort()


async def test_peer_that_takes_nothing_is_dropped(nodes: Any, until: Until) -> None:
    async def serve(request: Request) -> None:
        while True:
            await request.reply(BLOCK, bytes(1 << 20), final=False)

    link, server = await nodes.linked(serve)
    link._transport.pause_reading()
    await until(lambda: len(server.links()) == 1)
    (there,) = server.links()
    async with link.exchange(Get(b"x")) as got:
        await got.open()
        await until(lambda: there.outflow.is_full)
        server.check()
        nodes.clock.advance(29)
        server.check()
        assert not there.is_closed
        nodes.clock.advance(2)
        server.check()
        await asyncio.wait_for(there.wait_closed(), 5)


async def test_what_a_closed_link_still_holds_is_given_back_once(nodes: Any, until: Until) -> None:
    async def serve(request: Request) -> None:
        await request.reply(BLOCK, bytes(1 << 20), final=False)
        await request.reply(BLOCK, bytes(1 << 20), final=False)
        await asyncio.Event().wait()

    server, client = nodes.make(serve), nodes.make()
    link = await client.dial(*await server.listen("127.0.0.1", 0))
    async with link.exchange(Get(b"x")) as got:
        await got.receive()
        await until(lambda: client.held_bytes > 0)
        await link.close()
        assert client.held_bytes == 0
        assert len((await got.receive())[1]) == 1 << 20  # it had come before the end
    assert client.held_bytes == 0


async def test_half_a_frame_for_ever_is_dropped(nodes: Any, until: Until) -> None:
    link, server = await nodes.linked(ok)
    await until(lambda: len(server.links()) == 1)
    (there,) = server.links()
    link._transport.write(b"\0\0\0")
    await until(lambda: there.session.is_mid_frame)
    server.check()
    nodes.clock.advance(29)
    link._transport.write(b"\1")
    server.check()
    assert not there.is_closed
    nodes.clock.advance(2)
    server.check()
    await asyncio.wait_for(there.wait_closed(), 5)


async def test_garbage_ends_the_link(nodes: Any, until: Until) -> None:
    link, server = await nodes.linked(ok)
    link._transport.write(b"\xff" * 64)
    await asyncio.wait_for(link.wait_closed(), 5)
    assert "longer than allowed" in str(link.gone())
    await until(lambda: not server.links())


async def test_node_id_is_the_hash_of_the_key(nodes: Any) -> None:
    link, server = await nodes.linked()
    assert link.node_id == node_id_of(server.public_key)


async def test_answers_at_hand_are_taken_together(nodes: Any) -> None:
    async def serve(request: Request) -> None:
        for number in range(6):
            await request.reply(BLOCK, bytes([number]) * 100, final=False)
        await request.reply(GetDone())

    link, _ = await nodes.linked(serve)
    async with link.exchange(Get(b"x")) as got:
        first = await got.receive()
        taken: list[bytes] = []
        while not got.is_done:
            some = await got.receive_some(250)
            assert 1 <= len(some) <= 3
            taken += [payload for _, payload in some]
    assert [first[1], *taken] == [bytes([n]) * 100 for n in range(6)] + [b""]


async def test_a_failure_among_answers_at_hand_is_raised(nodes: Any) -> None:
    async def serve(request: Request) -> None:
        await request.reply(BLOCK, b"block", final=False)
        raise NoRoom("The disk is full.")

    link, _ = await nodes.linked(serve)

    async def take() -> None:
        async with link.exchange(Get(b"x")) as got:
            while not got.is_done:
                await got.receive_some(1 << 20)

    with pytest.raises(NoRoom):
        await take()
