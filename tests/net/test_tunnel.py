"""Links through a common peer, on both transports."""

from __future__ import annotations

import asyncio
import os
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pstore.errors import P2PStoreError, PeerUnreachable, RemoteProtocolError
from p2pstore.ids import BlockId, BundleId, NodeId, Tag
from p2pstore.net import Connections, Endpoint, Limits, Link, PeerBook, Request, WrongPeer, pair
from p2pstore.net import connections as connections_module
from p2pstore.net.tunnel import WINDOW, Window, carry
from p2pstore.wire import (
    BlockReply,
    GetDone,
    Have,
    HaveReply,
    Put,
    PutBlock,
    PutEnd,
    PutReady,
    TunnelData,
    TunnelTo,
    Unknown,
)

PUT = Put(BundleId(bytes(32)), Tag(bytes(20)), b"", (), 1, 1)

Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Between:
    """A peer that pairs whoever asks; `spoil` may change what is carried."""

    def __init__(self, nodes: Any) -> None:
        self.node: Endpoint = nodes.make(self.serve)
        self.carried = 0
        self.pairs = 0

    async def serve(self, request: Request) -> None:
        assert isinstance(request.message, TunnelTo)
        for link in self.node.links():
            if link.node_id == request.message.node:
                break
        else:
            raise Unknown("no link to it")
        async with link.exchange(TunnelTo(link.node_id)) as onward:
            await onward.receive()
            await request.reply(TunnelData(), final=False)
            self.pairs += 1
            try:
                await pair(request, onward, self.pay)
            finally:
                self.pairs -= 1

    def pay(self, count: int) -> None:
        self.carried += count


class Far:
    """A node that nobody can dial: it takes tunnels, and answers HAVE and PUT."""

    def __init__(self, nodes: Any, **options: Any) -> None:
        self.node: Endpoint = nodes.make(self.serve, **options)
        self.got: list[bytes] = []

    async def serve(self, request: Request) -> None:
        if isinstance(request.message, TunnelTo):
            await self.node.accept_through(request)
        elif isinstance(request.message, Put):
            await request.reply(PutReady(b""), final=False)
            while True:
                message, payload = await request.receive()
                if isinstance(message, PutEnd):
                    await request.reply(GetDone())
                    return
                self.got.append(payload)
        else:
            for _ in range(6):
                await request.reply(BlockReply(BlockId(bytes(32))), bytes(1 << 20), final=False)
            await request.reply(GetDone())


async def scene(nodes: Any, **options: Any) -> tuple[Between, Far, Endpoint, Link]:
    between, far = Between(nodes), Far(nodes, **options)
    near = nodes.make()
    address = await between.node.listen("127.0.0.1", 0)
    await far.node.dial(*address)
    return between, far, near, await near.dial(*address)


async def test_a_tunnelled_link_is_a_link(nodes: Any) -> None:
    between, far, near, relay = await scene(nodes)
    link = await near.dial_through(relay, far.node.node_id)
    assert link.node_id == far.node.node_id
    assert link.role == "device"
    assert link.via is relay
    assert between.pairs == 1
    async with link.exchange(PUT, b"list") as put:
        await put.receive()
        pieces = [os.urandom(300_000) for _ in range(12)]
        for i, piece in enumerate(pieces):
            await put.send(PutBlock(i), piece)
        await put.send(PutEnd(bytes(32)))
        await put.receive()
    assert far.got == pieces
    assert between.carried > sum(map(len, pieces))


async def test_answers_come_back_whole_and_in_the_windows_steps(nodes: Any) -> None:
    _, far, near, relay = await scene(nodes)
    link = await near.dial_through(relay, far.node.node_id)
    size = 0
    async for _message, payload in link.stream(Have()):
        size += len(payload)
    assert size == 6 << 20


async def test_the_far_end_may_ask_too(nodes: Any, until: Until) -> None:
    _, far, near, relay = await scene(nodes)

    async def answer(request: Request) -> None:
        await request.reply(HaveReply((True,)))

    near.handler = answer
    await near.dial_through(relay, far.node.node_id)
    [back] = [link for link in far.node.links() if link.node_id == near.node_id]
    assert back.via is not None
    assert not back.is_dialled
    assert (await back.request(Have()))[0] == HaveReply((True,))


async def test_the_end_of_the_tunnel_is_pinned(nodes: Any) -> None:
    """A peer between that answers itself, or leads elsewhere, is not taken for the other."""
    between, _, near, relay = await scene(nodes)
    liar = Far(nodes)
    await liar.node.dial(*relay.address)
    wanted = NodeId(b"another node, surely")
    real = between.serve

    async def lead_astray(request: Request) -> None:
        request.message = TunnelTo(liar.node.node_id)
        await real(request)

    between.node.handler = lead_astray
    with pytest.raises(WrongPeer):
        await near.dial_through(relay, wanted)


async def test_a_peer_that_lets_nothing_through_is_given_up(nodes: Any) -> None:
    async def swallow(request: Request) -> None:
        await request.reply(TunnelData(), final=False)
        await asyncio.Event().wait()

    hole = nodes.make(swallow)
    near = nodes.make()
    relay = await near.dial(*await hole.listen("127.0.0.1", 0))
    near.limits = Limits(connect_s=0.05, first_frame_s=0.05, handshake_s=0.2)
    with pytest.raises(PeerUnreachable):
        await near.dial_through(relay, NodeId(bytes(20)))
    assert not relay.is_closed


async def test_a_peer_without_a_link_to_it_says_so(nodes: Any) -> None:
    _, _, near, relay = await scene(nodes)
    with pytest.raises(Unknown):
        await near.dial_through(relay, NodeId(bytes(20)))


async def test_a_refusal_of_the_far_end_is_told(nodes: Any) -> None:
    _, far, near, relay = await scene(nodes, limits=Limits(check_every_s=3600, per_relay=1))
    await near.dial_through(relay, far.node.node_id)
    with pytest.raises(P2PStoreError, match="no more connections"):
        await near.dial_through(relay, far.node.node_id)


@pytest.mark.parametrize("who", ["near", "far", "relay", "between"])
async def test_whoever_ends_it_ends_it_for_all(nodes: Any, until: Until, who: str) -> None:
    between, far, near, relay = await scene(nodes)
    link = await near.dial_through(relay, far.node.node_id)
    [back] = [one for one in far.node.links() if one.node_id == near.node_id]
    if who == "near":
        await link.close()
    elif who == "far":
        await back.close()
    elif who == "relay":
        await relay.close()
    else:
        await between.node.close()
    async with asyncio.timeout(10):
        await link.wait_closed()
        await back.wait_closed()
    await until(lambda: between.pairs == 0)
    await until(lambda: near.count == (0 if who in ("relay", "between") else 1))
    await until(lambda: far.node.count == (0 if who == "between" else 1))


async def test_last_words_come_through(nodes: Any) -> None:
    _, far, near, relay = await scene(nodes)
    link = await near.dial_through(relay, far.node.node_id)
    [back] = [one for one in far.node.links() if one.node_id == near.node_id]
    back.end(RemoteProtocolError("I do not like this."))
    async with asyncio.timeout(10):
        await link.wait_closed()
    assert "I do not like this." in str(link.gone())


async def test_garbage_in_the_tunnel_ends_it(tls: Any) -> None:
    _between, far, near, relay = await scene(tls)
    link = await near.dial_through(relay, far.node.node_id)
    [back] = [one for one in far.node.links() if one.node_id == near.node_id]
    assert back.via is not None
    request = next(iter(back.via.serving._running.values()))[0]
    await request.reply(TunnelData(), b"garbage" * 100, final=False)
    async with asyncio.timeout(10):
        await link.wait_closed()
    assert not relay.is_closed


async def test_an_end_that_sends_beyond_its_window_is_cut_off(nodes: Any, until: Until) -> None:
    between, far, _near, relay = await scene(nodes)

    async def take_nothing(request: Request) -> None:
        await request.reply(TunnelData(), final=False)
        await asyncio.Event().wait()

    far.node.handler = take_nothing
    async with relay.exchange(TunnelTo(far.node.node_id)) as flood:
        await flood.receive()
        for _ in range(WINDOW // 65_536 + 1):
            await flood.send(TunnelData(), bytes(65_536))
        with pytest.raises(RemoteProtocolError, match="window"):
            await flood.receive()
    assert between.carried == WINDOW


async def test_a_slow_end_stops_its_sender_and_not_the_link_between(
    nodes: Any, until: Until
) -> None:
    limits = Limits(check_every_s=3600, peer_bytes=1 << 20)
    between, far, near, relay = await scene(nodes, limits=limits)
    held = asyncio.Event()

    async def hold(request: Request) -> None:
        await request.reply(PutReady(b""), final=False)
        await held.wait()
        await request.reply(GetDone())

    link = await near.dial_through(relay, far.node.node_id)
    far.node.handler = hold
    # More than all buffers on the way have room for: nothing at the far end takes it.
    async with link.exchange(PUT) as put:
        await put.receive()

        async def flood() -> None:
            for i in range(20):
                await put.send(PutBlock(i), bytes(1 << 20))

        flooding = asyncio.ensure_future(flood())
        before = -1
        while before != between.carried:
            before = between.carried
            for _ in range(500):
                await asyncio.sleep(0)
        assert not flooding.done()
        assert between.carried < 10 << 20
        # The peer between still answers both.
        with pytest.raises(Unknown):
            await near.dial_through(relay, NodeId(bytes(20)))
        flooding.cancel()
        held.set()


def test_a_window_counts() -> None:
    window = Window(10)
    window.sent(10)
    window.taken(3)
    window.sent(3)
    with pytest.raises(RemoteProtocolError):
        window.sent(1)
    with pytest.raises(RemoteProtocolError):
        Window(10).taken(1)


class Wire:
    """One end of an exchange, in memory: what is sent comes out at the other."""

    def __init__(self, out: asyncio.Queue[Any], into: asyncio.Queue[Any]) -> None:
        self._out, self._into = out, into

    async def send(self, message: TunnelData, payload: bytes) -> None:
        await self._out.put((message, payload))

    async def receive(self) -> tuple[TunnelData, bytes]:
        got: tuple[TunnelData, bytes] = await self._into.get()
        return got


@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 3 * WINDOW // 2), max_size=4),
    st.lists(st.integers(1, 3 * WINDOW // 2), max_size=4),
)
def test_whatever_is_sent_arrives_in_order_both_ways(there: list[int], back: list[int]) -> None:
    async def story() -> None:
        one: asyncio.Queue[Any] = asyncio.Queue(1)
        two: asyncio.Queue[Any] = asyncio.Queue(1)
        ends = [socket.socketpair() for _ in range(2)]
        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            group.create_task(carry(Wire(one, two), ends[0][0]))
            group.create_task(carry(Wire(two, one), ends[1][0]))
            programs = [await asyncio.open_unix_connection(sock=end[1]) for end in ends]
            sent = [[random.Random(n).randbytes(n) for n in sizes] for sizes in (there, back)]

            async def speak(writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                writer.write_eof()

            for (_, writer), pieces in zip(programs, sent, strict=True):
                group.create_task(speak(writer, pieces))
            heard = [group.create_task(reader.read()) for reader, _ in programs]
            for reading in heard:
                await reading
            assert heard[1].result() == b"".join(sent[0])
            assert heard[0].result() == b"".join(sent[1])
            for _, writer in programs:
                writer.close()
                await writer.wait_closed()

    asyncio.run(story())


# -- connections ------------------------------------------------------------------------------


class Home:
    """A node with connections; `pauses` do not pass unless the test lets them."""

    def __init__(self, nodes: Any, handler: Any = None, **options: Any) -> None:
        self.node: Endpoint = nodes.make(handler, **options)
        self.node.handler = self.serve if handler is None else handler
        self.turn = asyncio.Event()
        self.book = PeerBook()
        self.connections = Connections(
            self.node, self.book, clock=nodes.clock, dice=lambda: 0.0, pause=self.pause
        )

    async def serve(self, request: Request) -> None:
        assert isinstance(request.message, TunnelTo)
        await self.node.accept_through(request)

    async def pause(self, seconds: float) -> None:
        await self.turn.wait()


@pytest.fixture
async def street(nodes: Any) -> Any:
    """Two homes that cannot dial each other, each with a link to the same peer."""
    between = Between(nodes)
    address = await between.node.listen("127.0.0.1", 0)
    a, c = Home(nodes), Home(nodes)
    for home in (a, c):
        home.book.note_address(between.node.node_id, address)
        await home.connections.connect(between.node.node_id)
    yield between, a, c
    for home in (a, c):
        await home.connections.close()


async def test_what_cannot_be_dialled_is_reached_through_a_peer(street: Any) -> None:
    between, a, c = street
    link = await a.connections.connect(c.node.node_id)
    assert link.via is a.connections.get(between.node.node_id)
    assert a.connections.get(c.node.node_id) is link
    assert a.book.addresses(c.node.node_id) == ()  # the peer's address is not the node's
    assert c.connections.get(a.node.node_id).via is not None


async def test_without_a_common_peer_it_stays_unreachable(street: Any, nodes: Any) -> None:
    _, a, _ = street
    with pytest.raises(PeerUnreachable, match="No address"):
        await a.connections.connect(NodeId(bytes(20)))


async def test_a_direct_link_takes_over(street: Any, until: Until) -> None:
    _, a, c = street
    tunnelled = await a.connections.connect(c.node.node_id)
    a.connections.want(c.node.node_id)
    address = await c.node.listen("127.0.0.1", 0)
    a.book.note_address(c.node.node_id, address)
    for _ in range(5):
        await asyncio.sleep(0)
    assert a.connections.get(c.node.node_id) is tunnelled
    a.connections.retry(c.node.node_id)
    await until(lambda: a.connections.get(c.node.node_id) is not tunnelled)
    assert a.connections.get(c.node.node_id).via is None
    async with asyncio.timeout(10):
        await tunnelled.wait_closed()
    await until(lambda: c.connections.get(a.node.node_id).via is None)


async def test_a_tunnel_that_comes_later_does_not_replace_a_direct_link(street: Any) -> None:
    between, a, c = street
    a.book.note_address(c.node.node_id, await c.node.listen("127.0.0.1", 0))
    direct = await a.connections.connect(c.node.node_id)
    relay = a.connections.get(between.node.node_id)
    await a.node.dial_through(relay, c.node.node_id)
    assert a.connections.get(c.node.node_id) is direct


async def test_a_wanted_peer_is_reached_again_when_the_tunnel_broke(
    street: Any, until: Until
) -> None:
    _, a, c = street
    a.connections.want(c.node.node_id)
    await until(lambda: a.connections.get(c.node.node_id) is not None)
    first = a.connections.get(c.node.node_id)
    await first.close()
    a.turn.set()
    await until(lambda: a.connections.get(c.node.node_id) not in (None, first))
    a.turn.clear()


async def test_a_wanted_peer_is_tried_again_when_a_peer_between_is_there(
    nodes: Any, until: Until
) -> None:
    between = Between(nodes)
    address = await between.node.listen("127.0.0.1", 0)
    a, c = Home(nodes), Home(nodes)
    await c.connections.connect(address)
    a.connections.want(c.node.node_id)
    for _ in range(50):
        await asyncio.sleep(0)
    assert a.connections.get(c.node.node_id) is None
    await a.connections.connect(address)
    await until(lambda: a.connections.get(c.node.node_id) is not None)
    for home in (a, c):
        await home.connections.close()


async def test_a_slow_address_does_not_hold_the_tunnel_up(
    street: Any, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_module, "TUNNEL_AFTER_S", 0.01)
    _, a, c = street
    never = asyncio.Event()

    async def stall(*_: Any, **__: Any) -> Link:
        await never.wait()
        raise AssertionError

    monkeypatch.setattr(a.node, "dial", stall)
    a.book.note_address(c.node.node_id, ("192.0.2.1", 8080))
    async with asyncio.timeout(5):
        link = await a.connections.connect(c.node.node_id)
    assert link.via is not None


async def test_no_tunnel_goes_through_a_tunnel(street: Any, nodes: Any) -> None:
    _, a, c = street
    await a.connections.connect(c.node.node_id)
    asked: list[Link] = []
    real = a.node.dial_through

    async def note(relay: Link, target: NodeId) -> Link:
        asked.append(relay)
        link: Link = await real(relay, target)
        return link

    a.node.dial_through = note
    with pytest.raises(PeerUnreachable):
        await a.connections.connect(NodeId(bytes(20)))
    assert len(asked) == 1
    assert asked[0].via is None
