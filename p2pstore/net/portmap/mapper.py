"""Keeping our port open at the router, for as long as this node runs.

TCP and UDP of our own listening port are asked for, nothing else ever, in the languages PCP,
NAT-PMP and UPnP in this order; the one that worked is kept. Half of a lease before its end it is
renewed. A router that refuses or is silent is asked again from time to time, and at once after
`retry`: the machine may have come to another network. `close` takes the mapping back; if the node
dies instead, the router forgets it within the hour.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from p2pstore.errors import P2PStoreError
from p2pstore.net.portmap.asking import LEASE_S, Granted, Protocol, Wish
from p2pstore.net.portmap.gateway import Gateway, default_gateway
from p2pstore.net.portmap.igd import CONFLICT, Fault
from p2pstore.net.portmap.pcp import NONCE
from p2pstore.net.portmap.speaking import IgdRouter, NatPmpRouter, PcpRouter, Router, RouterPorts
from p2pstore.net.tasks import pause_or_wake

log = logging.getLogger(__name__)

RETRY_S: Final = 900.0
LEAST_REST_S: Final = 30.0  # a router that grants seconds only is not asked every second
CLOSE_S: Final = 2.0  # a stop has ten seconds for everything
OTHER_PORTS: Final = 3  # tried when ours is taken at the router
HIGH_PORTS: Final = (20_000, 60_000)


class PortMapping(NamedTuple):
    """What comes to `host:port` from outside reaches us. `host` None: the router does not say."""

    host: str | None
    port: int
    how: str


class _Held(NamedTuple):
    router: Router
    wishes: tuple[Wish, Wish]


class PortMapper:
    def __init__(
        self,
        port: int,
        *,
        changed: Callable[[], None] = lambda: None,
        gateway: Callable[[], Gateway | None] = default_gateway,
        ports: RouterPorts | None = None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        random_bytes: Callable[[int], bytes] = os.urandom,
        dice: Callable[[int, int], int] = random.randint,
    ) -> None:
        """`changed` is called when there is another mapping, or none any more."""
        self._port = port
        self._changed = changed
        self._gateway = gateway
        self._ports = ports or RouterPorts()
        self._pause = pause
        self._nonce = random_bytes(NONCE)
        self._dice = dice
        self._wake = asyncio.Event()
        self._held: _Held | None = None
        self._faults = 0
        self.asked = asyncio.Event()  # the router was asked, whatever came of it
        self.mapping: PortMapping | None = None
        self.trouble = "the router has not been asked yet"  # why there is no mapping

    def retry(self) -> None:
        """This machine may be in another network now."""
        self._wake.set()

    async def run(self) -> None:
        """For ever; owned by whoever calls it, who calls `close` afterwards."""
        while True:
            self._wake.clear()
            rest_s = await self._careful_turn()
            self.asked.set()
            await pause_or_wake(self._pause, rest_s, self._wake)

    async def close(self) -> None:
        """Take the mapping back, in a moment or not at all."""
        held, self._held = self._held, None
        self.mapping = None
        if held is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S):
                for wish in held.wishes:
                    await held.router.take_back(wish)
        except (P2PStoreError, OSError) as exc:  # TimeoutError is an OSError
            log.debug("The mapping at the router was not taken back: %s", exc)

    async def _careful_turn(self) -> float:
        """What a router sends must not end the node: a fault is logged once, and asked later."""
        try:
            return await self._turn()
        except Exception:
            level = logging.DEBUG if self._faults else logging.ERROR
            self._faults += 1
            log.log(level, "Asking the router failed unexpectedly.", exc_info=True)
            self._set(None, "asking it failed")
            return RETRY_S

    async def _turn(self) -> float:
        """Ask once; the seconds until it is to be asked again."""
        gateway = await asyncio.to_thread(self._gateway)
        if gateway is None:
            self._set(None, "no router is known")
            return RETRY_S
        troubles: list[str] = []
        for router in self._routers(gateway):
            try:
                granted = await self._both(router)
                host = granted.host or await router.outer_address()
            except (P2PStoreError, OSError) as exc:
                log.debug("Asking the router %s in %s: %s", gateway.host, router.name, exc)
                troubles.append(f"{router.name}: {exc}")
                continue
            self._set(PortMapping(host, granted.outer, router.name), "")
            return max(LEAST_REST_S, (granted.lease_s or LEASE_S) / 2)
        self._held = None
        self._set(None, " ".join(troubles))
        return RETRY_S

    def _routers(self, gateway: Gateway) -> list[Router]:
        """The one that worked comes first, as long as it is the same router."""
        routers: list[Router] = [
            PcpRouter(gateway, self._ports, self._nonce),
            NatPmpRouter(gateway, self._ports),
            IgdRouter(gateway, self._ports),
        ]
        if self.mapping is not None:
            how = self.mapping.how
            routers.sort(key=lambda router: router.name != how)
        return routers

    async def _both(self, router: Router) -> Granted:
        """TCP and UDP, at the same outer port where possible."""
        outer = self._port if self.mapping is None else self.mapping.port
        for _ in range(OTHER_PORTS):
            try:
                return await self._at(router, outer)
            except Fault as exc:
                if exc.code != CONFLICT:
                    raise
                outer = self._dice(*HIGH_PORTS)
        return await self._at(router, outer)

    async def _at(self, router: Router, outer: int) -> Granted:
        tcp = Wish(Protocol.TCP, self._port, outer)
        granted = await router.grant(tcp)
        tcp = tcp._replace(outer=granted.outer)
        udp = Wish(Protocol.UDP, self._port, granted.outer)
        try:
            also = await router.grant(udp)
        except (P2PStoreError, OSError):
            await router.take_back(tcp)  # one without the other is of no use
            raise
        self._held = _Held(router, (tcp, udp._replace(outer=also.outer)))
        return granted

    def _set(self, mapping: PortMapping | None, trouble: str) -> None:
        self.trouble = trouble
        if mapping == self.mapping:
            return
        if mapping is not None:
            log.info(
                "The router lets others through to port %d (%s, outer port %d).",
                self._port,
                mapping.how,
                mapping.port,
            )
        elif self.mapping is not None:
            log.info("The router does not let others through any more: %s.", trouble)
        self.mapping = mapping
        self._changed()
