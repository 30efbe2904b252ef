"""A tunnel: a stream of bytes carried as TUNNEL_DATA between two nodes, over a common peer.

An end is a socket pair. One socket is given to the program, which runs the same TLS over it as over
TCP, so that the peer between sees sealed bytes only and can do no more than drop them. `carry`
moves bytes between the other socket and the exchange. The kernel's buffers and the window (see
wire.TunnelData) are the back-pressure: what is not taken at one end is not read at the other. The
peer between passes on what comes, by `pair`, and holds at most a window in either direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from p2pstore.errors import P2PStoreError, RemoteProtocolError
from p2pstore.net.link import Exchange, Request
from p2pstore.wire import Message, TunnelData

log = logging.getLogger(__name__)

WINDOW: Final = 1 << 20  # bytes under way in one direction; at 50 ms there and back 20 MB/s
PIECE: Final = 64 * 1024
REPORT: Final = WINDOW // 4  # taken bytes are told in steps of this
OPEN_S: Final = 10.0  # for the peer between and the far end to agree
IDLE_S: Final = 180.0  # the link inside asks for a sign of life every minute
LINGER_S: Final = 5.0  # without anything moving, when one direction has ended


class Line(Protocol):
    """One end of the exchange that carries a tunnel."""

    async def send(self, message: TunnelData, payload: bytes) -> None: ...
    async def receive(self) -> tuple[Message, bytes]:
        """The next message; Unavailable when nothing came for IDLE_S."""


class AskedLine:
    """The end that asked for the tunnel."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def send(self, message: TunnelData, payload: bytes) -> None:
        await self._exchange.send(message, payload)

    async def receive(self) -> tuple[Message, bytes]:
        return await self._exchange.receive(IDLE_S)


class AnsweringLine:
    """The end that was asked."""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def send(self, message: TunnelData, payload: bytes) -> None:
        await self._request.reply(message, payload, final=False)

    async def receive(self) -> tuple[Message, bytes]:
        return await self._request.receive(IDLE_S)


class Window:
    """How far the sender of one direction is ahead of what the other end has taken."""

    def __init__(self, size: int = WINDOW) -> None:
        self._size = size
        self._ahead = 0
        self._room = asyncio.Event()
        self._room.set()

    async def wait(self) -> int:
        """Bytes that may be sent now, at least one."""
        await self._room.wait()
        return self._size - self._ahead

    def sent(self, count: int) -> None:
        """RemoteProtocolError when that is more than was allowed: who counts is not who sends."""
        self._ahead += count
        if self._ahead > self._size:
            raise RemoteProtocolError("A tunnel's end sends more than its window.")
        if self._ahead == self._size:
            self._room.clear()

    def taken(self, count: int) -> None:
        self._ahead -= count
        if self._ahead < 0:
            raise RemoteProtocolError("A tunnel's end took more than was sent.")
        self._room.set()


class _Carrier:
    def __init__(self, line: Line, sock: socket.socket) -> None:
        self._line = line
        self._sock = sock
        self._window = Window()
        self._taken = 0
        self._report = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._open = {"out", "in"}
        self.over = asyncio.Event()
        self.moved = 0  # grows while anything goes either way

    @property
    def is_ending(self) -> bool:
        """One direction has ended."""
        return len(self._open) < 2

    async def outwards(self) -> None:
        """From the socket into the tunnel, until the program closes it."""
        while True:
            room = await self._window.wait()
            piece = await self._loop.sock_recv(self._sock, min(room, PIECE))
            self.moved += 1
            if not piece:
                await self._line.send(TunnelData(end=True), b"")
                self._ended("out")
                return
            self._window.sent(len(piece))
            await self._line.send(TunnelData(), piece)

    async def inwards(self) -> None:
        """From the tunnel to the socket, and what the other end has taken.

        It never waits to send: two ends that both did would wait for each other.
        """
        while True:
            message, payload = await self._line.receive()
            if not isinstance(message, TunnelData):
                self.over.set()
                return
            self.moved += 1
            self._window.taken(message.taken)
            if payload:
                await self._loop.sock_sendall(self._sock, payload)
                self._taken += len(payload)
                if self._taken >= REPORT:
                    self._report.set()
            if message.end:
                self._sock.shutdown(socket.SHUT_WR)
                self._ended("in")

    async def report(self) -> None:
        """Tell the other end what was taken, as long as the tunnel lasts."""
        while True:
            await self._report.wait()
            self._report.clear()
            taken, self._taken = self._taken, 0
            await self._line.send(TunnelData(taken=taken), b"")

    def _ended(self, direction: str) -> None:
        self._open.discard(direction)
        if not self._open:
            self.over.set()


async def carry(line: Line, sock: socket.socket) -> None:
    """Move bytes both ways until both ends have no more, or one fails; closes `sock`.

    When one direction has ended and nothing moves any more, the other one is not waited for long.
    Raises nothing but cancellation: whoever uses the stream sees that it ended.
    """
    sock.setblocking(False)
    carrier = _Carrier(line, sock)

    async def quiet(way: Coroutine[Any, Any, None]) -> None:
        try:
            await way
        except (P2PStoreError, OSError) as exc:
            log.debug("A tunnel ended: %s", exc)
            carrier.over.set()

    ways = (carrier.outwards(), carrier.inwards(), carrier.report())
    tasks = [asyncio.ensure_future(quiet(way)) for way in ways]
    try:
        while not carrier.over.is_set():
            moved = carrier.moved
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    await carrier.over.wait()
            if carrier.is_ending and carrier.moved == moved:
                break
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        sock.close()


async def pair(request: Request, onward: Exchange, pay: Callable[[int], None]) -> None:
    """The peer between: pass on what the asker and the far end say, until one of them ends.

    `pay` is told of each payload's bytes before they are passed on, and may raise. An end that is
    further ahead than its window is RemoteProtocolError; both then see that the tunnel ended.
    """
    there, back = Window(), Window()
    far = AskedLine(onward)
    near = AnsweringLine(request)

    async def move(source: Line, target: Line, ahead: Window, behind: Window) -> None:
        while True:
            message, payload = await source.receive()
            if not isinstance(message, TunnelData):
                return
            ahead.sent(len(payload))
            behind.taken(message.taken)
            pay(len(payload))
            await target.send(message, payload)

    ways = [
        asyncio.ensure_future(move(near, far, there, back)),
        asyncio.ensure_future(move(far, near, back, there)),
    ]
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in done:
            way.result()
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
