"""A TCP proxy: everything that connects is connected on, and suffers on the way."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import struct
from collections import Counter
from types import TracebackType

from tests.chaos.faults import Faults, StreamWay, Then

Address = tuple[str, int]

READ = 16 * 1024
IN_FLIGHT = 64  # pieces that were read and are not due yet: 1 MiB
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, 0 s


class TcpProxy:
    """Listens between `start` and `close`; `told` counts what happened.

    `faults` may be changed at any time: connections that are made later have the new ones.
    """

    def __init__(self, target: Address, faults: Faults, *, seed: int) -> None:
        self.target = target
        self.faults = faults
        self.told: Counter[str] = Counter()
        self.address: Address = ("", 0)
        self._seed = seed
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> Address:
        self._server = await asyncio.start_server(self._accepted, host, port)
        self.address = self._server.sockets[0].getsockname()[:2]
        return self.address

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> TcpProxy:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self.told["connections"]
        self.told["connections"] += 1
        task = asyncio.create_task(self._connect_on(number, reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect_on(
        self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            onward = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        seed = f"{self._seed}/{number}"
        ways = [StreamWay(self.faults, f"{seed}/{way}", self.told) for way in ("there", "back")]
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_carry(reader, onward[1], ways[0]))
                both.create_task(_carry(onward[0], writer, ways[1]))
            for end in (writer, onward[1]):
                end.close()
                await end.wait_closed()  # what is written still goes out
        except* (_Cut, ConnectionError):
            for end in (writer, onward[1]):
                _reset(end)
        finally:
            for end in (writer, onward[1]):
                end.transport.abort()


class _Cut(Exception):
    """The dice want this connection to end."""


# (when it is due, content); Then.CUT: it is cut here; None: the sender has ended.
_Due = asyncio.Queue[tuple[float, bytes] | Then | None]


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: StreamWay
) -> None:
    """One direction, until its end; the other one goes on after that."""
    due: _Due = asyncio.Queue(IN_FLIGHT)
    async with asyncio.TaskGroup() as both:
        both.create_task(_take(reader, way, due))
        both.create_task(_give(writer, due))


async def _take(reader: asyncio.StreamReader, way: StreamWay, due: _Due) -> None:
    loop = asyncio.get_running_loop()
    free_at = 0.0  # when the throttled line can take the next byte
    while content := await reader.read(READ):
        while content:
            piece = way.judge(content)
            free_at = max(free_at, loop.time()) + len(piece.content) / way.faults.rate
            await due.put((free_at + piece.delay_s, piece.content))
            if piece.then is Then.CUT:
                await due.put(Then.CUT)
                return
            if piece.then is Then.STALL:
                await _stand_still(way.faults.stall_s)
            content = piece.rest
    await due.put(None)


async def _give(writer: asyncio.StreamWriter, due: _Due) -> None:
    loop = asyncio.get_running_loop()
    while (piece := await due.get()) is not None:
        if isinstance(piece, Then):
            raise _Cut
        at, content = piece
        await _wait(at - loop.time())
        writer.write(content)
        await writer.drain()
    with contextlib.suppress(OSError):  # the other side may be gone already
        writer.write_eof()


async def _wait(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)


async def _stand_still(seconds: float) -> None:
    if math.isinf(seconds):
        await asyncio.get_running_loop().create_future()
    await _wait(seconds)


def _reset(writer: asyncio.StreamWriter) -> None:
    """As when a router forgets a connection: the other side hears of it at once, by RST."""
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
