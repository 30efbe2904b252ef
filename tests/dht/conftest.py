"""A network in the process: a loop whose time jumps, and sockets that lose, delay and reorder.

Nothing sleeps: when all tasks wait, the loop's clock moves to the next timer. `sim.run` drives one
story to its end and then checks that no task and no exception is left behind.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.dht import Dht, DhtSettings
from p2pstore.ids import PublicKey
from p2pstore.wire import PeerRecord, sign_record

WALL = 1_800_000_000.0


class JumpingSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Never waits: moves the time instead."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everything waits for nothing")
            self.time += max(0.0, timeout)
            if self.time > 40 * 24 * 3600:
                raise RuntimeError("a story of more than 40 days")
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.time


class LoopClock:
    def __init__(self, loop: JumpingLoop) -> None:
        self._loop = loop
        self.skew = 0.0

    def monotonic(self) -> float:
        return self._loop.time()

    def wall(self) -> float:
        return WALL + self._loop.time() + self.skew


class FakeSocket:
    """A datagram transport in the simulated network."""

    def __init__(self, sim: Sim, protocol: Any, address: tuple[str, int]) -> None:
        self.sim = sim
        self.protocol = protocol
        self.address = address

    def sendto(self, raw: bytes, address: tuple[str, int]) -> None:
        self.sim.carry(raw, self.address, address)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.address if name == "sockname" else default

    def close(self) -> None:
        self.sim.sockets.pop(self.address, None)
        self.sim.loop.call_soon(self.protocol.connection_lost, None)


class Stranger:
    """A socket in the hands of a test."""

    def __init__(self, sim: Sim, address: tuple[str, int]) -> None:
        self.got: list[tuple[bytes, tuple[str, int]]] = []
        self.answer: Callable[[bytes, tuple[str, int]], bytes | None] = lambda raw, addr: None
        self.socket = FakeSocket(sim, self, address)
        sim.sockets[address] = self.socket

    def connection_lost(self, exc: Exception | None) -> None:
        pass

    def datagram_received(self, raw: bytes, addr: tuple[str, int]) -> None:
        self.got.append((raw, addr))
        reply = self.answer(raw, addr)
        if reply is not None:
            self.socket.sendto(reply, addr)

    def send(self, raw: bytes, to: Dht | tuple[str, int]) -> None:
        self.socket.sendto(raw, to if isinstance(to, tuple) else home_of(to))


def home_of(dht: Dht) -> tuple[str, int]:
    return dht._server.transport.address


class Sim:
    def __init__(self, seed: int = 7) -> None:
        print(f"seed {seed}")
        self.loop = JumpingLoop()
        self.clock = LoopClock(self.loop)
        self.dice = random.Random(seed)
        self.sockets: dict[tuple[str, int], FakeSocket] = {}
        self.nodes: list[Dht] = []
        self.loss = 0.0
        self.latency_s = (0.005, 0.04)
        self.carried: Counter[str] = Counter()
        self.tap: Callable[[bytes, Any, Any], None] = lambda raw, source, target: None
        self.lose: Callable[[bytes, Any, Any], bool] = lambda raw, source, target: False
        self.settings = DhtSettings(packets_in_s=None, unproven_in_s=None, packets_out_s=None)
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda loop, context: self.errors.append(context))

    def key(self, number: int) -> SigningKey:
        return SigningKey(number.to_bytes(32, "big"))

    def carry(self, raw: bytes, source: tuple[str, int], target: tuple[str, int]) -> None:
        mine = isinstance(getattr(self.sockets.get(source), "protocol", None), Stranger)
        assert mine or len(raw) <= 1200
        self.carried["datagrams"] += 1
        self.carried["bytes"] += len(raw)
        self.tap(raw, source, target)
        if self.dice.random() >= self.loss and not self.lose(raw, source, target):
            self.loop.call_later(
                self.dice.uniform(*self.latency_s), self._deliver, raw, source, target
            )

    def _deliver(self, raw: bytes, source: tuple[str, int], target: tuple[str, int]) -> None:
        socket = self.sockets.get(target)
        if socket is not None:
            socket.protocol.datagram_received(raw, source)

    async def endpoint(self, create: Callable[[], Any], host: str, port: int) -> tuple[Any, Any]:
        if (host, port) in self.sockets:
            raise OSError("in use")
        protocol = create()
        socket = FakeSocket(self, protocol, (host, port))
        self.sockets[(host, port)] = socket
        protocol.connection_made(socket)
        return socket, protocol

    def record(self, key: SigningKey, host: str, issued_s: float | None = None) -> bytes:
        issued = self.clock.wall() if issued_s is None else issued_s
        record = PeerRecord(
            PublicKey(bytes(key.verify_key)), "main", ((host, 8080),), int(issued * 1000), "n"
        )
        return sign_record(record, key)

    def make(
        self,
        number: int,
        host: str,
        *,
        network: str = "main",
        random_bytes: Any = None,
        **more: Any,
    ) -> Dht:
        key = self.key(number)
        more.setdefault("settings", self.settings)
        more.setdefault("record", lambda: self.record(key, host))
        return Dht(
            key,
            network,
            clock=self.clock,
            endpoint=self.endpoint,
            random=random_bytes or self.dice.randbytes,
            **more,
        )

    async def node(
        self,
        number: int | None = None,
        host: str | None = None,
        saved: bytes | None = None,
        bootstrap: list[tuple[str, int]] | None = None,
        **more: Any,
    ) -> Dht:
        """Start a node in a subnet of its own; it joins through the first one."""
        number = number or len(self.nodes) + 1
        host = host or f"20.{number // 250}.{number % 250}.1"
        dht = self.make(number, host, **more)
        if bootstrap is None:
            bootstrap = [home_of(self.nodes[0])] if self.nodes else []
        await dht.start(host, 8080, bootstrap, saved)
        self.nodes.append(dht)
        await dht.joined()
        await asyncio.sleep(10)  # virtual: its first record is told, its pings are answered
        return dht

    async def swarm(self, count: int, **more: Any) -> list[Dht]:
        return [await self.node(**more) for _ in range(count)]

    def vanish(self, dht: Dht) -> None:
        """Pull its cable: it stays in the tables of others."""
        self.sockets.pop(home_of(dht), None)

    def stranger(self, host: str, port: int = 8080) -> Stranger:
        return Stranger(self, (host, port))

    def run(self, story: Coroutine[Any, Any, Any]) -> Any:
        async def whole() -> Any:
            try:
                return await story
            finally:
                for dht in self.nodes:
                    await dht.close()
                left = asyncio.all_tasks() - {asyncio.current_task()}
                assert not left, left

        try:
            result = self.loop.run_until_complete(whole())
        finally:
            self.loop.close()
        assert not self.errors, self.errors
        return result


@pytest.fixture
def sim() -> Sim:
    return Sim()


@pytest.fixture
def tags() -> Callable[[int], list[Any]]:
    """So many tags, always the same."""
    return lambda count: [random.Random(i).randbytes(20) for i in range(count)]
