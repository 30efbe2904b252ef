"""A UDP proxy: each client has a socket of its own towards the target, as behind a NAT."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Final

from tests.chaos.faults import DatagramWay, Faults
from tests.chaos.streams import Address

MAX_CLIENTS: Final = 256  # a test has a few; others are not served

Send = Callable[[bytes], None]


class _Socket(asyncio.DatagramProtocol):
    def __init__(self, received: Callable[[bytes, Address], None]) -> None:
        self._received = received

    def datagram_received(self, data: bytes, addr: Address) -> None:  # type: ignore[override]
        self._received(data, addr[:2])


class UdpProxy:
    """Listens between `start` and `close`; `told` counts what happened."""

    def __init__(self, target: Address, faults: Faults, *, seed: int) -> None:
        self.target = target
        self.faults = faults
        self.told: Counter[str] = Counter()
        self.address: Address = ("", 0)
        self._seed = seed
        self._front: asyncio.DatagramTransport | None = None
        self._clients: dict[Address, _Client] = {}
        self._later: set[asyncio.TimerHandle] = set()

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> Address:
        loop = asyncio.get_running_loop()
        self._front, _ = await loop.create_datagram_endpoint(
            lambda: _Socket(self._from_client), local_addr=(host, port)
        )
        self.address = self._front.get_extra_info("sockname")[:2]
        return self.address

    async def close(self) -> None:
        for handle in self._later:
            handle.cancel()
        for client in self._clients.values():
            client.close()
        if self._front is not None:
            self._front.close()
        await asyncio.sleep(0)  # transports end in the next turn

    async def __aenter__(self) -> UdpProxy:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def _from_client(self, content: bytes, source: Address) -> None:
        client = self._clients.get(source)
        if client is None:
            if len(self._clients) >= MAX_CLIENTS:
                return
            client = self._clients[source] = _Client(self, source, len(self._clients))
        client.send(content)

    def answer(self, content: bytes, client: Address) -> None:
        if self._front is not None and not self._front.is_closing():
            self._front.sendto(content, client)

    def deliver(self, way: DatagramWay, content: bytes, send: Send) -> None:
        loop = asyncio.get_running_loop()
        for late in way.judge(content):
            if late.delay_s <= 0:
                send(late.content)
                continue
            handle = loop.call_later(late.delay_s, send, late.content)
            self._later.add(handle)
            self._later = {one for one in self._later if one.when() >= loop.time()}


class _Client:
    """One address that sends to us, and its socket towards the target."""

    def __init__(self, proxy: UdpProxy, source: Address, number: int) -> None:
        self._proxy = proxy
        self._source = source
        seed = f"{proxy._seed}/{number}"
        self._there, self._back = (
            DatagramWay(proxy.faults, f"{seed}/{way}", proxy.told) for way in ("there", "back")
        )
        self._socket: asyncio.DatagramTransport | None = None
        self._opening = asyncio.create_task(self._open())
        self._early: list[bytes] = []

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        self._socket, _ = await loop.create_datagram_endpoint(
            lambda: _Socket(self._from_target), remote_addr=self._proxy.target
        )
        early, self._early = self._early, []
        for content in early:
            self.send(content)

    def send(self, content: bytes) -> None:
        if self._socket is None:
            self._early.append(content)
        else:
            self._proxy.deliver(self._there, content, self._onward)

    def _onward(self, content: bytes) -> None:
        if self._socket is not None and not self._socket.is_closing():
            self._socket.sendto(content)

    def _from_target(self, content: bytes, source: Address) -> None:
        del source
        self._proxy.deliver(
            self._back, content, lambda content: self._proxy.answer(content, self._source)
        )

    def close(self) -> None:
        self._opening.cancel()
        if self._socket is not None:
            self._socket.close()
