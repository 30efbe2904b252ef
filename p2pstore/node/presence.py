"""Where this node is, for others: its addresses, what the router lets through, who gets in.

Wiring: the port mapper and the look from outside are made, run and told of each other here. The
addresses in our signed record are, in this order: the one that the router opened for us, the one at
which a relation outside found us, those of this machine. A router's outer address that is not
public (there is another router behind it) is told to nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable
from typing import Final

from p2pstore.clock import Clock
from p2pstore.dht import is_public
from p2pstore.net import (
    Address,
    Gateway,
    PortMapper,
    PortMapping,
    RouterPorts,
    default_gateway,
    local_addresses,
)
from p2pstore.swarm import Peers, Reachability, Verdict

log = logging.getLogger(__name__)

LOOK_S: Final = 60.0  # for other addresses of this machine
ROUTER_S: Final = 15.0  # others are asked to dial once the router has been asked to let them in


class Presence:
    def __init__(
        self,
        peers: Peers,
        *,
        clock: Clock,
        listening: Callable[[], Address],
        maps_port: bool,
        gateway: Callable[[], Gateway | None] = default_gateway,
        ports: RouterPorts | None = None,
        own_addresses: Callable[[], list[str]] = local_addresses,
    ) -> None:
        """`listening` is the address and port of ours; `maps_port`: the router may be asked."""
        self._listening = listening
        self._maps_port = maps_port
        self._gateway = gateway
        self._ports = ports
        self._own_addresses = own_addresses
        self._mapper: PortMapper | None = None
        self._changed = asyncio.Event()
        self.reachability = Reachability(
            peers, clock=clock, port=self.outer_port, changed=self._changed.set
        )

    async def run(self) -> None:
        """For ever, once this node listens; owned by whoever calls it."""
        async with asyncio.TaskGroup() as group:
            self._mapper = self._make_mapper()
            if self._mapper is not None:
                group.create_task(self._keep_mapped(self._mapper))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ROUTER_S):
                        await self._mapper.asked.wait()
            group.create_task(self.reachability.run())

    async def wait(self) -> None:
        """Until something changed, or may have."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_S):
                await self._changed.wait()
        self._changed.clear()

    def moved(self) -> None:
        """This machine has other addresses: maybe there is another router."""
        if self._mapper is not None:
            self._mapper.retry()
        self.reachability.ask_again()

    # -- what is known ------------------------------------------------------------------------

    @property
    def mapping(self) -> PortMapping | None:
        return None if self._mapper is None else self._mapper.mapping

    @property
    def verdict(self) -> Verdict:
        """Whether others get in, and if not, what the router said."""
        found = self.reachability.verdict
        if is_loopback(self._listening()[0]):
            return Verdict("unknown", "this node listens on this machine only")
        if found.state != "no" or self._mapper is None or self._mapper.mapping is not None:
            return found
        return found._replace(why=f"{found.why.rstrip('.')}. The router: {self._mapper.trouble}")

    def outer_port(self) -> int:
        """Where others are to dial."""
        mapping = self.mapping
        return self._listening()[1] if mapping is None else mapping.port

    def addresses(self) -> list[Address]:
        """Where others can reach this node, the best first."""
        found = [*self._outer(), *self.local()]
        return list(dict.fromkeys(found))

    def local(self) -> list[Address]:
        """Of this machine."""
        host, port = self._listening()
        if ipaddress.ip_address(host).is_unspecified:
            return [(one, port) for one in self._own_addresses()] or [("127.0.0.1", port)]
        return [(host, port)]

    def _outer(self) -> list[Address]:
        found: list[Address] = []
        mapping = self.mapping
        if mapping is not None and mapping.host is not None and is_public(mapping.host):
            found.append((mapping.host, mapping.port))
        outer = self.reachability.verdict.outer
        if outer is not None:
            found.append(outer)
        return found

    # -- the router ---------------------------------------------------------------------------

    def _make_mapper(self) -> PortMapper | None:
        """None where there is nothing to ask: switched off, on loopback, or no router between."""
        host, port = self._listening()
        address = ipaddress.ip_address(host)
        if not self._maps_port or address.is_loopback:
            return None
        if address.version == 6 and not address.is_unspecified:
            return None  # only IPv4 is translated
        if any(is_public(one) and ":" not in one for one, _ in self.local()):
            return None
        return PortMapper(
            port, changed=self._mapping_changed, gateway=self._router, ports=self._ports
        )

    def _router(self) -> Gateway | None:
        """None also when this node does not listen where the router would send others."""
        gateway, host = self._gateway(), self._listening()[0]
        if gateway is None or ipaddress.ip_address(host).is_unspecified:
            return gateway
        return gateway if gateway.own == host else None

    async def _keep_mapped(self, mapper: PortMapper) -> None:
        try:
            await mapper.run()
        finally:
            await mapper.close()

    def _mapping_changed(self) -> None:
        self.reachability.ask_again()
        self._changed.set()


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host).is_loopback
