"""Whole members: HOME, group, invitations and exchange, linked in memory or over TLS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.clock import ManualClock
from p2pstore.content import Head, encode_head, sign_head
from p2pstore.errors import NotAllowed
from p2pstore.home import Home
from p2pstore.ids import FolderId, NodeId
from p2pstore.members import (
    Exchange,
    Group,
    Invitations,
    Joined,
    found,
    identity,
    join,
    newcomer,
)
from p2pstore.net import (
    Address,
    Endpoint,
    Limits,
    Link,
    MemoryNetwork,
    MemoryTransport,
    Request,
    TlsTransport,
)
from p2pstore.wire import GetHeads, Join, PutHeads

FOLDER = FolderId(b"f" * 16)


class World:
    def __init__(self, root: Path, kind: str, pool: Executor) -> None:
        self.root = root
        self.kind = kind
        self.pool = pool
        self.clock = ManualClock()
        self.network = MemoryNetwork()
        self.made: list[Endpoint] = []

    def transport(self, key: SigningKey, **options: Any) -> Endpoint:
        options |= {"limits": Limits(check_every_s=3600), "clock": self.clock}
        made: Endpoint
        if self.kind == "memory":
            made = MemoryTransport(self.network, key, **options)
        else:
            made = TlsTransport(key, **options)
        self.made.append(made)
        return made

    def home(self, name: str) -> Home:
        return Home(self.root / name)

    async def founder(self, name: str = "laptop") -> Member:
        home = self.home(name)
        found(home, name, now=self.clock.wall(), random=name.encode().ljust(32))
        return await Member(self, home).start()

    async def join(self, name: str, link: str, **options: Any) -> Joined:
        """From an empty HOME, before the first run."""
        home = self.home(name)
        device = identity(home)
        network = options.pop("network", "main")
        transport = self.transport(device, hello=lambda: newcomer(device, network, name))

        async def dial(address: Address, expect: NodeId) -> Link:
            return await transport.dial(*address, expect=expect)

        return await join(
            home, link, device=device, name=name, network=network, dial=dial, **options
        )

    async def device(self, inviter: Member, name: str) -> Member:
        """Another device of the inviter's group, running."""
        joined = await self.join(name, inviter.invitations.create().link)
        await joined.link.close()
        return await Member(self, self.home(name)).start()

    async def close(self) -> None:
        for transport in self.made:
            await transport.close()


class Member:
    def __init__(self, world: World, home: Home, network: str = "main") -> None:
        self.world = world
        self.home = home
        self.group = Group(home)
        self.changes = 0
        self.news: list[Head] = []
        self.exchange = Exchange(
            home,
            self.group,
            clock=world.clock,
            pool=world.pool,
            changed=self._changed,
            new_heads=self.news.extend,
        )
        self.transport = world.transport(
            self.group.device,
            hello=lambda: self.exchange.hello(network),
            role_of=self.exchange.role_of,
            handler=self.serve,
        )
        self.address: Address = ("", 0)
        self.more_addresses: list[Address] = []
        self.invitations = Invitations(
            home,
            self.group,
            network=network,
            addresses=lambda: [*self.more_addresses, self.address],
            clock=world.clock,
            pool=world.pool,
            changed=self._changed,
        )

    def _changed(self) -> None:
        self.changes += 1
        self.exchange.judge_links(self.transport.links())

    async def start(self) -> Member:
        self.address = await self.transport.listen("127.0.0.1", 0)
        return self

    async def serve(self, request: Request) -> None:
        message = request.message
        if isinstance(message, Join):
            await self.invitations.join(request)
        elif isinstance(message, GetHeads):
            await request.reply(await self.exchange.heads(message.group, request.link))
        elif isinstance(message, PutHeads):
            await request.reply(await self.exchange.put_heads(request.link, message))
        else:
            raise NotAllowed("not here")

    async def dial(self, other: Member) -> Link:
        return await self.transport.dial(*other.address, expect=other.group.node_id)

    async def dial_to(self, address: Address, expect: NodeId) -> Link:
        return await self.transport.dial(*address, expect=expect)

    def head(self, seq: int, incarnation: int = 1, content: bytes = b"m") -> bytes:
        author = self.group.author()
        head = Head(FOLDER, self.group.node_id, incarnation, seq, content)
        return encode_head(sign_head(head, author.key, author.chain))

    def orders(self) -> dict[NodeId, tuple[int, int]]:
        return {h.device: (h.incarnation, h.seq) for h in self.exchange.known_heads()}


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
async def make_world(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> AsyncIterator[Callable[[str], World]]:
    made: list[World] = []

    def make(kind: str) -> World:
        made.append(World(tmp_path, kind, pool))
        return made[-1]

    yield make
    for world in made:
        await world.close()


@pytest.fixture
def world(make_world: Callable[[str], World]) -> World:
    return make_world("memory")
