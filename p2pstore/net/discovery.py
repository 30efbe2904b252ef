"""Nodes of the same network on the same local network, found by mDNS (DNS-SD).

Service `_p2pstore._tcp.local.`; the instance is the node id in base32, the TXT record has `v=1`,
`id` (the node id in base32) and `n` (the network's name). Nothing in it is trusted: what is found
is an address to dial, and TLS proves who is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from p2pstore.ids import NodeId, base32, unbase32
from p2pstore.net.link import Address
from p2pstore.net.tasks import TaskOwner
from p2pstore.wire import MAX_ADDRESSES

if TYPE_CHECKING:
    from zeroconf import ServiceInfo, Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

log = logging.getLogger(__name__)

SERVICE = "_p2pstore._tcp.local."
RESOLVE_MS = 3000
MAX_RESOLVING = 16  # a flood of names on the local network stops here

Found = Callable[[NodeId, tuple[Address, ...]], None]


def build_service(
    node_id: NodeId, network: str, port: int, addresses: Sequence[str]
) -> ServiceInfo:
    """What this node announces; `addresses` are numeric."""
    from zeroconf import ServiceInfo

    label = base32(node_id)
    return ServiceInfo(
        SERVICE,
        f"{label}.{SERVICE}",
        port=port,
        parsed_addresses=list(addresses),
        properties={"v": "1", "id": label, "n": network},
        server=f"{label}.local.",
    )


def read_service(info: ServiceInfo, network: str) -> tuple[NodeId, tuple[Address, ...]] | None:
    """Which node it is and where; None when it is no node of `network`, or not well-formed."""
    from zeroconf import IPVersion

    text = info.properties
    if text.get(b"v") != b"1" or text.get(b"n") != network.encode() or not info.port:
        return None
    try:
        node_id = unbase32((text.get(b"id") or b"").decode("ascii"))
    except ValueError:
        return None
    if len(node_id) != 20:
        return None
    hosts = info.parsed_scoped_addresses(IPVersion.All)[:MAX_ADDRESSES]
    addresses = tuple((host, info.port) for host in hosts)
    return (NodeId(node_id), addresses) if addresses else None


def local_addresses() -> list[str]:
    """The numeric addresses of this machine that others can reach; empty without a network."""
    import ifaddr

    found: list[str] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            if isinstance(ip.ip, str):
                host, is_useful = ip.ip, not ip.ip.startswith("127.")
            else:
                host = ip.ip[0]
                # Link-local ones need the interface's name, which means nothing elsewhere.
                is_useful = not host.startswith("fe80:") and host != "::1"
            if is_useful and host not in found:
                found.append(host)
    return found[:MAX_ADDRESSES]


class Discovery:
    """Announces this node and calls `found` for each other one, possibly several times."""

    def __init__(self, node_id: NodeId, network: str, port: int, found: Found) -> None:
        self._node_id = node_id
        self._network = network
        self._port = port
        self._found = found
        self._tasks = TaskOwner()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None

    async def start(self, interfaces: Sequence[str] | None = None) -> None:
        """OSError when the machine has no network that can multicast: go on without."""
        from zeroconf import InterfaceChoice
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        places = list(interfaces) if interfaces else InterfaceChoice.All
        addresses = list(interfaces) if interfaces else await asyncio.to_thread(local_addresses)
        self._zeroconf = AsyncZeroconf(interfaces=places)
        service = build_service(self._node_id, self._network, self._port, addresses)
        await self._zeroconf.async_register_service(service)
        self._browser = AsyncServiceBrowser(
            self._zeroconf.zeroconf, SERVICE, handlers=[self._changed]
        )

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: object
    ) -> None:
        from zeroconf import ServiceStateChange

        if state_change is ServiceStateChange.Removed or len(self._tasks) >= MAX_RESOLVING:
            return
        if name != f"{base32(self._node_id)}.{SERVICE}":
            self._tasks.start(self._resolve(zeroconf, name))

    async def _resolve(self, zeroconf: Zeroconf, name: str) -> None:
        from zeroconf import Error
        from zeroconf.asyncio import AsyncServiceInfo

        try:
            info = AsyncServiceInfo(SERVICE, name)
            answered = await info.async_request(zeroconf, RESOLVE_MS)
        except (Error, OSError) as exc:
            log.debug("A neighbour's record cannot be read: %s", exc)
            return
        found = read_service(info, self._network) if answered else None
        if found is not None and found[0] != self._node_id:
            self._found(*found)

    async def close(self) -> None:
        browser, self._browser = self._browser, None
        zeroconf, self._zeroconf = self._zeroconf, None
        if browser is not None:
            await browser.async_cancel()
        await self._tasks.close()
        if zeroconf is not None:
            await zeroconf.async_unregister_all_services()
            await zeroconf.async_close()
