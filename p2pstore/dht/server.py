"""kademlia's Server with our protocol in it: the socket, the way in, the upkeep of the table.

The stock `set`, `get`, `save_state` and `load_state` are never called: values live in `shelf`,
state is MessagePack, see `dht`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from kademlia.network import Server
from kademlia.node import Node

from p2pstore.dht.address import Address
from p2pstore.dht.crawl import Crawl, Region, region_bits, regions
from p2pstore.dht.datagram import Ping
from p2pstore.dht.protocol import SignedProtocol
from p2pstore.errors import LocalProtocolError, PortInUse
from p2pstore.ids import NodeId

Endpoint = Callable[[Callable[[], Any], str, int], Awaitable[tuple[Any, Any]]]
BOOTSTRAP_AT_ONCE = 16
REFRESH_AT_ONCE = 4
REGIONS_AT_ONCE = 4


async def udp_endpoint(
    protocol: Callable[[], asyncio.DatagramProtocol], host: str, port: int
) -> tuple[Any, Any]:
    """A UDP socket of the running loop."""
    loop = asyncio.get_running_loop()
    return await loop.create_datagram_endpoint(protocol, local_addr=(host, port))


class DhtServer(Server):  # type: ignore[misc]  # the package has no types
    def __init__(
        self,
        node_id: NodeId,
        create: Callable[[Node], SignedProtocol],
        *,
        ksize: int,
        alpha: int,
        subnet_limit: int | None,
        endpoint: Endpoint,
    ) -> None:
        super().__init__(ksize, alpha, node_id, storage=())
        self._create = create
        self._subnet_limit = subnet_limit
        self._endpoint = endpoint
        self.protocol: Any  # SignedProtocol once it listens

    def _create_protocol(self) -> SignedProtocol:
        return self._create(self.node)

    async def listen(self, port: int, interface: str = "0.0.0.0") -> None:
        try:
            self.transport, self.protocol = await self._endpoint(
                self._create_protocol, interface, port
            )
        except OSError as exc:
            raise PortInUse(f"UDP port {port} on {interface} cannot be used: {exc}") from exc

    def stop(self) -> None:
        if self.transport is not None:
            self.protocol.transport.close()
            self.protocol.give_up()

    def refresh_table(self, interval: float = 3600) -> None:
        # The package would start it as a task without an owner: whoever calls it has a bug.
        raise LocalProtocolError("`upkeep` refreshes the table, in a task that somebody owns")

    async def bootstrap(self, addrs: Sequence[Address]) -> int:
        """Meet who lives there, look for ourselves, then into the far buckets; contacts known."""
        gate = asyncio.Semaphore(BOOTSTRAP_AT_ONCE)

        async def meet(address: Address) -> None:
            async with gate:
                await self.bootstrap_node(address)

        async with asyncio.TaskGroup() as group:
            for address in dict.fromkeys(addrs):
                group.create_task(meet(address))
        table = self.protocol.router
        if len(table):
            await self.nearest(self.node)
            ours = table.bucket_of(self.node)
            await self._visit([b for b in table.buckets if b is not ours])
        return len(table)

    async def bootstrap_node(self, addr: Address) -> Node | None:
        reply = await self.protocol.request(addr, Ping())
        if reply is None:
            return None
        node = Node(reply.sender, addr.host, addr.port)
        self.protocol.handle_call_response((True, None), node)
        return node

    async def nearest(self, target: Node, width: int | None = None) -> list[Node]:
        """Nodes that answered just now, nearest to the target first.

        Among them are the `width` (k, when not given) nearest of all that are alive.
        """
        width = width or self.ksize
        table = self.protocol.router
        table.bucket_of(target).touch_last_updated()
        start = table.find_neighbors(target, width)
        return await Crawl(
            self.protocol, target, start, width, self.alpha, self._subnet_limit
        ).find()

    async def each_region(
        self,
        tags: Iterable[bytes],
        work: Callable[[list[bytes], list[Node]], Awaitable[None]],
    ) -> int:
        """Do the work for each region's tags with the nodes that are near to them; the look-ups."""
        k = self.ksize
        lookups = 0
        bits = region_bits(self.protocol.router.size_of_network(), k)
        gate = asyncio.Semaphore(REGIONS_AT_ONCE)

        async def one(region: Region) -> None:
            nonlocal lookups
            async with gate:
                lookups += 1
                lone = len(region.tags) == 1
                width = k if lone else 2 * k
                nodes = await self.nearest(Node(region.middle), width)
                if lone or sum(map(region.holds, nodes)) <= k:
                    await work(region.tags, nodes)
                    return
            for half in region.halves():
                group.create_task(one(half))

        async with asyncio.TaskGroup() as group:
            for region in regions(tags, bits):
                group.create_task(one(region))
        return lookups

    async def upkeep(self) -> None:
        """Visit the buckets that nothing was looked for in for an hour (Kademlia, 2.3)."""
        await self._visit(self.protocol.router.lonely_buckets())

    async def _visit(self, buckets: list[Any]) -> None:
        gate = asyncio.Semaphore(REFRESH_AT_ONCE)
        table = self.protocol.router

        async def visit(bucket: Any) -> None:
            async with gate:
                await self.nearest(Node(table.some_id_in(bucket, self.protocol.random(20))))

        async with asyncio.TaskGroup() as group:
            for bucket in buckets:
                group.create_task(visit(bucket))
