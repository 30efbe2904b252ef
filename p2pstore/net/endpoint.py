"""What all transports have in common: links, their number, the turn of the clock, the end.

The limits on connections are kept here: at most `max_unidentified` links that have not said HELLO,
`per_address` accepted ones of one address, `max_peers` in all; a device or friend that finds the
house full takes the place of the stranger who has been here longest.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, NamedTuple, Protocol

from nacl.signing import SigningKey

from p2pstore.clock import Clock, SystemClock
from p2pstore.errors import Busy, NotAllowed, PeerUnreachable, RemoteProtocolError
from p2pstore.ids import NodeId, PublicKey, node_id_of
from p2pstore.net.limits import Limits
from p2pstore.net.link import STRANGER, Address, Exchange, Link, Request
from p2pstore.net.tasks import TaskOwner
from p2pstore.net.tunnel import OPEN_S, AnsweringLine, AskedLine, carry
from p2pstore.wire import Hello, Ok, Side, TunnelData, TunnelTo

log = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[None]]
LinkWatcher = Callable[[Link, bool], None]


class Traffic(NamedTuple):
    """Bytes from and to peers."""

    received: int = 0
    sent: int = 0

    def with_link(self, link: Link) -> Traffic:
        if link.via is not None:
            return self
        return Traffic(self.received + link.received_bytes, self.sent + link.sent_bytes)


class Transport(Protocol):
    """How nodes reach each other. One contract suite runs on every implementation."""

    handler: Handler
    hello: Callable[[], Hello]

    @property
    def node_id(self) -> NodeId: ...

    def links(self) -> list[Link]:
        """The ready links."""

    def watch(self, watcher: LinkWatcher) -> None:
        """Call `watcher(link, True)` when a link becomes ready, with False when it ends."""

    async def listen(self, host: str, port: int) -> Address:
        """Accept connections; the bound address. PortInUse."""

    async def dial(self, host: str, port: int, expect: NodeId | None = None) -> Link:
        """A ready link. PeerUnreachable, WrongPeer, NotAllowed, RemoteProtocolError."""

    async def probe(self, host: str, port: int, expect: NodeId) -> None:
        """Return when that node's key answers there, and hang up. PeerUnreachable, WrongPeer."""

    async def dial_through(self, relay: Link, target: NodeId) -> Link:
        """A ready link to `target` over a peer that has one to it. Raises what `dial` does."""

    async def accept_through(self, request: Request) -> None:
        """Serve TUNNEL_TO at its far end: a peer of the asker's becomes a link of ours."""

    async def close(self) -> None:
        """End all links and listeners; no task is left."""


async def refuse_all(request: Request) -> None:
    raise NotAllowed("This node serves nothing.")


def everybody_is_a_stranger(hello: Hello) -> str:
    return STRANGER


class Endpoint(ABC):
    """Base of the transports."""

    def __init__(
        self,
        identity: SigningKey,
        *,
        hello: Callable[[], Hello],
        handler: Handler = refuse_all,
        role_of: Callable[[Hello], str] = everybody_is_a_stranger,
        limits: Limits | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`role_of` names the role of a peer whose key TLS has proved; NotAllowed refuses it.

        `handler` serves requests, each in its own task; it may be set later, before `listen`.
        """
        self.identity = identity
        self.public_key = PublicKey(bytes(identity.verify_key))
        self.node_id = node_id_of(self.public_key)
        self.hello = hello
        self.handler = handler
        self.limits = limits or Limits()
        self.clock: Clock = clock or SystemClock()
        self.held_bytes = 0
        self._role_of = role_of
        self.tasks = TaskOwner()
        self._links: set[Link] = set()
        self._addresses: Counter[str] = Counter()
        self._watchers: list[LinkWatcher] = []
        self._ended_traffic = Traffic()  # of the links that are no more
        self._keeper: asyncio.Task[Any] | None = None
        self._closed = False

    @abstractmethod
    async def listen(self, host: str, port: int) -> Address: ...

    @abstractmethod
    async def _connect(self, link: Link, host: str, port: int) -> None:
        """Make the connection for `link`; OSError, or a P2PStoreError."""

    @abstractmethod
    async def probe(self, host: str, port: int, expect: NodeId) -> None: ...

    @abstractmethod
    async def _secure(self, link: Link, connection: socket.socket) -> None:
        """Make `link`, which we dial, the user of one end of a socket pair; as `_connect`."""

    @abstractmethod
    async def _greet(self, link: Link, connection: socket.socket) -> None:
        """The same for a link that we accepted, over whatever socket; raises nothing."""

    @abstractmethod
    def peer_key(self, transport: Any) -> PublicKey: ...

    # -- for the caller ----------------------------------------------------------------------

    def links(self) -> list[Link]:
        return [link for link in self._links if link.is_ready and not link.is_closed]

    def traffic(self) -> Traffic:
        """All that went over connections of this node's since its start, TLS not counted.

        What goes through a peer is in the bytes of the connection to that peer.
        """
        total = self._ended_traffic
        for link in self._links:
            total = total.with_link(link)
        return total

    @property
    def count(self) -> int:
        """Connections of every kind, those that begin or end included."""
        return len(self._links)

    def watch(self, watcher: LinkWatcher) -> None:
        self._watchers.append(watcher)

    async def dial(self, host: str, port: int, expect: NodeId | None = None) -> Link:
        if self._closed:
            raise PeerUnreachable("The network was closed.")
        self._check_number()
        link = Link(self, Side.DIALLED, (host, port), expect)
        return await self._bring_up(link, self._connect(link, host, port))

    async def dial_through(self, relay: Link, target: NodeId) -> Link:
        """A ready link to `target` over a peer that has one to it. Raises what `dial` does."""
        if self._closed:
            raise PeerUnreachable("The network was closed.")
        exchange = relay.exchange(TunnelTo(target))
        try:
            first, _ = await exchange.receive(OPEN_S)
            if not isinstance(first, TunnelData):
                raise RemoteProtocolError(f"{relay} answers TUNNEL_TO with another message.")
            if self._closed:
                raise PeerUnreachable("The network was closed.")
            self._check_number()
        except BaseException:
            exchange.close()
            raise
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.tasks.start(self._carry(exchange, ours))
        link = Link(self, Side.DIALLED, relay.address, target, via=relay)
        return await self._bring_up(link, self._secure(link, theirs))

    async def _carry(self, exchange: Exchange, sock: socket.socket) -> None:
        async with exchange:
            await carry(AskedLine(exchange), sock)

    async def accept_through(self, request: Request) -> None:
        """Serve TUNNEL_TO at its far end: a peer of the asker's becomes a link of ours."""
        link = self._accept(request.link.address, via=request.link)
        if link is None:
            raise Busy("This node takes no more connections.")
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        try:
            await request.reply(TunnelData(), final=False)
            self.tasks.start(self._greet(link, theirs))
            await carry(AnsweringLine(request), ours)
        finally:
            ours.close()
            link.fail_to_connect(PeerUnreachable("The tunnel ended."))
        await request.reply(Ok())

    async def _bring_up(self, link: Link, connecting: Coroutine[Any, Any, None]) -> Link:
        """Wait until a dialled link is ready; close it and say why when that fails."""
        self._keep()
        self._links.add(link)
        try:
            async with asyncio.timeout(self.limits.connect_s + self.limits.first_frame_s):
                await connecting
                await link.wait_ready()
        except TimeoutError as exc:
            error = PeerUnreachable(f"{link} does not answer.")
            link.fail_to_connect(error)
            raise error from exc
        except OSError as exc:
            error = PeerUnreachable(f"{link} cannot be reached ({exc.strerror or exc}).")
            link.fail_to_connect(error)
            raise error from exc
        except BaseException:
            if not link.is_closed:
                link.fail_to_connect(PeerUnreachable(f"The dialling of {link} was given up."))
            raise
        return link

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self.tasks.close()
        await self.stop_listening()
        await asyncio.gather(*(link.close() for link in list(self._links)))

    async def stop_listening(self) -> None:
        return None

    def _check_number(self) -> None:
        if len(self._links) >= self.limits.max_peers + self.limits.max_unidentified:
            raise Busy("Too many connections are open.")

    # -- for links ---------------------------------------------------------------------------

    def role_of(self, hello: Hello) -> str:
        return self._role_of(hello)

    def joined(self, link: Link) -> None:
        ready = self.links()
        if len(ready) >= self.limits.max_peers:
            self._make_place(link, ready)
        self._tell(link, True, soon=True)

    def _make_place(self, link: Link, ready: Iterable[Link]) -> None:
        strangers = [other for other in ready if other.role == STRANGER]
        if link.role == STRANGER or not strangers:
            raise Busy("This node has as many connections as it can serve.")
        min(strangers, key=lambda other: other.connected_at).abort()

    def ended(self, link: Link) -> None:
        if link.is_ready:
            self._tell(link, False, soon=False)

    def gone(self, link: Link) -> None:
        self._links.discard(link)
        self._ended_traffic = self._ended_traffic.with_link(link)
        if not link.is_dialled:
            origin = _origin(link.address, link.via)
            self._addresses[origin] -= 1
            if not self._addresses[origin]:
                del self._addresses[origin]

    def _tell(self, link: Link, is_up: bool, *, soon: bool) -> None:
        if soon:
            # The link becomes ready when the caller of `joined` returns.
            asyncio.get_running_loop().call_soon(self._tell_up, link)
            return
        for watcher in self._watchers:
            watcher(link, is_up)

    def _tell_up(self, link: Link) -> None:
        if not link.is_closed:
            self._tell(link, True, soon=False)

    # -- for the transports ------------------------------------------------------------------

    def _accept(self, address: Address, via: Link | None = None) -> Link | None:
        """A link for a connection from there, or None when it is one too many."""
        unidentified = sum(not link.is_ready for link in self._links)
        origin = _origin(address, via)
        allowed = self.limits.per_address
        if via is not None or _is_loopback(origin):
            allowed = self.limits.per_relay if via is not None else self.limits.per_loopback
        if (
            self._closed
            or unidentified >= self.limits.max_unidentified
            or len(self._links) >= self.limits.max_peers + self.limits.max_unidentified
            or self._addresses[origin] >= allowed
        ):
            log.debug("Refused a connection from %s: too many.", address[0])
            return None
        self._keep()
        link = Link(self, Side.ACCEPTED, address, via=via)
        self._links.add(link)
        self._addresses[origin] += 1
        return link

    def _keep(self) -> None:
        if self._keeper is None:
            self._keeper = self.tasks.start(self._check_for_ever())

    async def _check_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self.limits.check_every_s)
            self.check()

    def check(self) -> None:
        """Look after all links once; happens by itself every `check_every_s`."""
        now = self.clock.monotonic()
        for link in list(self._links):
            link.check(now)


def origin_of(host: str) -> str:
    """What counts as one address: an IPv4 address, or the /64 that an IPv6 host chooses from."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        if mapped is not None:
            return str(mapped)
        if not address.is_loopback:
            return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _origin(address: Address, via: Link | None) -> str:
    """What connections are counted by: those through a peer by that peer."""
    return origin_of(address[0]) if via is None else f"through {via.node_id.hex()}"


def _is_loopback(origin: str) -> bool:
    return origin == "::1" or origin.startswith("127.")
