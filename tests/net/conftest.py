"""Nodes on both transports: the contract suite runs on each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.clock import ManualClock
from p2pstore.ids import PublicKey
from p2pstore.net import (
    Endpoint,
    Limits,
    Link,
    MemoryNetwork,
    MemoryTransport,
    Request,
    TlsTransport,
)
from p2pstore.wire import VERSIONS, Hello


class Nodes:
    """Makes transports and closes them; every one has a clock that stands still."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.clock = ManualClock()
        self.world = MemoryNetwork()
        self.made: list[Endpoint] = []

    def make(
        self,
        handler: Callable[[Request], Awaitable[None]] | None = None,
        *,
        key: SigningKey | None = None,
        hello: Callable[[Hello], Hello] = lambda hello: hello,
        network: str = "main",
        role: str = "device",
        limits: Limits | None = None,
        **options: Any,
    ) -> Endpoint:
        key = key or SigningKey.generate()
        said = hello(Hello(network, VERSIONS, PublicKey(bytes(key.verify_key)), name="node"))
        options.setdefault("role_of", lambda _: role)
        if handler is not None:
            options["handler"] = handler
        options |= {
            "hello": lambda: said,
            "limits": limits or Limits(check_every_s=3600),
            "clock": self.clock,
        }
        node: Endpoint
        if self.kind == "memory":
            node = MemoryTransport(self.world, key, **options)
        else:
            node = TlsTransport(key, **options)
        self.made.append(node)
        return node

    async def linked(
        self, handler: Callable[[Request], Awaitable[None]] | None = None, **options: Any
    ) -> tuple[Link, Endpoint]:
        """A link to a node that serves with `handler`, and that node."""
        server = self.make(handler, **options)
        client = self.make()
        link = await client.dial(*await server.listen("127.0.0.1", 0))
        return link, server

    async def close(self) -> None:
        for node in self.made:
            await node.close()


@pytest.fixture(params=["memory", "tls"])
async def nodes(request: pytest.FixtureRequest) -> AsyncIterator[Nodes]:
    before = asyncio.all_tasks()
    made = Nodes(request.param)
    yield made
    await made.close()
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}, "a task outlived close()"


@pytest.fixture
async def memory() -> AsyncIterator[Nodes]:
    made = Nodes("memory")
    yield made
    await made.close()


@pytest.fixture
async def tls() -> AsyncIterator[Nodes]:
    made = Nodes("tls")
    yield made
    await made.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Turn the loop until the condition holds; fails after many turns."""

    async def turn(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0)

    return turn
