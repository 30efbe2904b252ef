"""Talking to the router: one class for each language, the same three questions in all.

Only the router is listened to: the datagram sockets are connected to it where the language allows
it, and else drop what comes from elsewhere; redirections are not followed, and no name is resolved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from p2pstore.net.portmap import igd, natpmp, pcp
from p2pstore.net.portmap.asking import Granted, NotSpoken, Wish
from p2pstore.net.portmap.gateway import Gateway

T = TypeVar("T")

TRIES_S: Final = (0.25, 0.5, 1.0, 2.0)  # the first waits of RFC 6886
SEARCH_S: Final = (1.2, 1.2)  # a router answers M-SEARCH within the second that MX allows
HTTP_S: Final = 5.0
QUEUE: Final = 64  # datagrams that wait to be looked at: more are noise


class RouterPorts(NamedTuple):
    """Where routers listen; tests have other places."""

    pcp: int = pcp.PORT
    ssdp: int = igd.SSDP_PORT
    group: str | None = igd.SSDP_GROUP


class Router(Protocol):
    """A router, spoken to in one language. Raises NotSpoken, Refused, OSError."""

    name: str

    async def grant(self, wish: Wish) -> Granted: ...
    async def take_back(self, wish: Wish) -> None: ...
    async def outer_address(self) -> str | None:
        """None: `grant` says it."""


class PcpRouter:
    name = "PCP"

    def __init__(self, gateway: Gateway, ports: RouterPorts, nonce: bytes) -> None:
        self._gateway = gateway
        self._address = (gateway.host, ports.pcp)
        self._nonce = nonce

    async def grant(self, wish: Wish) -> Granted:
        raw = pcp.ask_mapping(wish, self._gateway.own, self._nonce)
        return await _ask(self._address, raw, lambda a: pcp.read_mapping(a, wish, self._nonce))

    async def take_back(self, wish: Wish) -> None:
        await self.grant(wish._replace(lease_s=0))

    async def outer_address(self) -> str | None:
        return None


class NatPmpRouter:
    name = "NAT-PMP"

    def __init__(self, gateway: Gateway, ports: RouterPorts) -> None:
        self._address = (gateway.host, ports.pcp)

    async def grant(self, wish: Wish) -> Granted:
        raw = natpmp.ask_mapping(wish)
        return await _ask(self._address, raw, lambda a: natpmp.read_mapping(a, wish))

    async def take_back(self, wish: Wish) -> None:
        await self.grant(wish._replace(lease_s=0))

    async def outer_address(self) -> str | None:
        return await _ask(self._address, natpmp.ASK_ADDRESS, natpmp.read_address)


class IgdRouter:
    name = "UPnP"

    def __init__(self, gateway: Gateway, ports: RouterPorts) -> None:
        self._gateway = gateway
        self._ports = ports
        self._service: igd.Service | None = None

    async def grant(self, wish: Wish) -> Granted:
        service = await self._found()
        own = self._gateway.own
        try:
            return igd.read_mapping(*await _post(igd.ask_mapping(service, wish, own)), wish)
        except igd.Fault as exc:
            if exc.code != igd.ONLY_PERMANENT:
                raise
        wish = wish._replace(lease_s=0)
        return igd.read_mapping(*await _post(igd.ask_mapping(service, wish, own)), wish)

    async def take_back(self, wish: Wish) -> None:
        service = await self._found()
        try:
            igd.read_mapping(*await _post(igd.ask_removal(service, wish)), wish)
        except igd.Fault as exc:
            if exc.code != igd.ABSENT:
                raise

    async def outer_address(self) -> str | None:
        service = await self._found()
        return igd.read_address(*await _post(igd.ask_address(service)))

    async def _found(self) -> igd.Service:
        if self._service is None:
            location = await self._search()
            status, raw = await _get(location)
            if status != 200:
                raise NotSpoken(f"The router's description is not there (HTTP status {status}).")
            self._service = igd.read_description(raw, location, self._gateway.host)
        return self._service

    async def _search(self) -> str:
        """Asked are the router itself and, where there is one, the group that it listens to."""
        host = self._gateway.host
        targets = [(host, self._ports.ssdp)]
        if self._ports.group is not None:
            targets.append((self._ports.group, self._ports.ssdp))
        async with _Datagrams((self._gateway.own, 0), from_host=host) as datagrams:
            for patience_s in SEARCH_S:
                for target in targets:
                    datagrams.send(igd.SEARCH, target)
                location = await datagrams.wait(lambda a: igd.read_location(a, host), patience_s)
                if location is not None:
                    return location
        raise NotSpoken("No router answers to UPnP.")


class _Datagrams(asyncio.DatagramProtocol):
    """A datagram socket that hears one host only."""

    def __init__(
        self,
        local: tuple[str, int] | None = None,
        remote: tuple[str, int] | None = None,
        *,
        from_host: str,
    ) -> None:
        self._local = local
        self._remote = remote
        self._from_host = from_host
        self._transport: Any = None
        self._came: asyncio.Queue[bytes | OSError] = asyncio.Queue(QUEUE)

    async def __aenter__(self) -> _Datagrams:
        self._transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: self, local_addr=self._local, remote_addr=self._remote
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._transport.close()

    def datagram_received(self, raw: bytes, source: Any) -> None:
        if source[0] == self._from_host and len(raw) <= igd.MAX_DATAGRAM:
            self._put(raw)

    def error_received(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self._put(error)

    def _put(self, came: bytes | OSError) -> None:
        if not self._came.full():
            self._came.put_nowait(came)

    def send(self, raw: bytes, target: tuple[str, int] | None = None) -> None:
        self._transport.sendto(raw, target)

    async def wait(self, read: Callable[[bytes], T | None], patience_s: float) -> T | None:
        """What `read` makes of the first datagram that it knows; None when none came in time."""
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    came = await self._came.get()
                    if isinstance(came, OSError):
                        raise came
                    answer = read(came)
                    if answer is not None:
                        return answer
        except TimeoutError:
            return None


async def _ask(address: tuple[str, int], raw: bytes, read: Callable[[bytes], T | None]) -> T:
    try:
        async with _Datagrams(remote=address, from_host=address[0]) as datagrams:
            for patience_s in TRIES_S:
                datagrams.send(raw)
                answer = await datagrams.wait(read, patience_s)
                if answer is not None:
                    return answer
    except ConnectionRefusedError as exc:
        raise NotSpoken("The router does not listen for it.") from exc
    raise NotSpoken("The router does not answer.")


async def _get(url: str) -> tuple[int, bytes]:
    async def get(session: Any) -> tuple[int, bytes]:
        async with session.get(url, allow_redirects=False) as response:
            return response.status, await _limited(response, igd.MAX_DESCRIPTION)

    return await _http(get)


async def _post(call: igd.Call) -> tuple[int, bytes]:
    async def post(session: Any) -> tuple[int, bytes]:
        async with session.post(
            call.url, headers=call.headers, data=call.body, allow_redirects=False
        ) as response:
            return response.status, await _limited(response, igd.MAX_ANSWER)

    return await _http(post)


async def _http(work: Callable[[Any], Awaitable[tuple[int, bytes]]]) -> tuple[int, bytes]:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=HTTP_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, trust_env=False) as session:
            return await work(session)
    except (aiohttp.ClientError, TimeoutError, ValueError) as exc:
        raise NotSpoken(f"The router's web service fails ({exc or 'no answer'}).") from exc


async def _limited(response: Any, limit: int) -> bytes:
    raw = bytearray()
    async for piece in response.content.iter_chunked(16 * 1024):
        raw += piece
        if len(raw) > limit:
            raise NotSpoken("The router's answer is longer than any honest one.")
    return bytes(raw)
