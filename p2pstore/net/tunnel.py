"""A tunnel: a stream of bytes carried as TUNNEL_DATA between two nodes, over a common peer.

An end is a socket pair. One socket is given to the program, which runs the same TLS over it as over
TCP, so that the peer between sees sealed bytes only and can do no more than drop them. `carry`
moves bytes between the other socket and the exchange. The kernel's buffers and the window (see
wire.TunnelData) are the back-pressure: what is not taken at one end is not read at the other. The
peer between passes on what comes, by `pair`, and holds at most a window in either direction.
"""

from __future__ import annotations

import asyncio
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
LINGER_S: Final = 5.0  # for the second direction, when the first has ended


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
        self._loop = asyncio.get_running_loop()

    async def outwards(self) -> None:
        """From the socket into the tunnel, until the program closes it."""
        while True:
            room = await self._window.wait()
            piece = await self._loop.sock_recv(self._sock, min(room, PIECE))
            if not piece:
                await self._line.send(TunnelData(end=True), b"")
                return
            self._window.sent(len(piece))
            await self._line.send(TunnelData(), piece)

    async def inwards(self) -> None:
        """From the tunnel to the socket, until the other end has no more."""
        waiting = 0
        while True:
            message, payload = await self._line.receive()
            if not isinstance(message, TunnelData):
                return
            self._window.taken(message.taken)
            if payload:
                await self._loop.sock_sendall(self._sock, payload)
                waiting += len(payload)
                if waiting >= REPORT:
                    await self._line.send(TunnelData(taken=waiting), b"")
                    waiting = 0
            if message.end:
                self._sock.shutdown(socket.SHUT_WR)
                return


async def carry(line: Line, sock: socket.socket) -> None:
    """Move bytes both ways until one side ends, then wait a moment for the other; closes `sock`.

    Raises nothing but cancellation: whoever uses the stream sees that it ended.
    """
    sock.setblocking(False)
    carrier = _Carrier(line, sock)
    ways = [asyncio.ensure_future(_quiet(way())) for way in (carrier.outwards, carrier.inwards)]
    try:
        done, open_ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if open_ and all(way.result() for way in done):
            await asyncio.wait(open_, timeout=LINGER_S)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)
        sock.close()


async def _quiet(way: Coroutine[Any, Any, None]) -> bool:
    """Whether it came to a good end."""
    try:
        await way
    except (P2PStoreError, OSError) as exc:
        log.debug("A tunnel ended: %s", exc)
        return False
    return True


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
