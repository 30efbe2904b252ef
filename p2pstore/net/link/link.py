"""The connection itself: what the event loop feeds and what the rest of the program asks.

A link is the protocol object above TLS (or an in-memory pipe). It becomes ready when both HELLOs
have come and are judged true; nothing is served or asked before. It ends once, for one reason,
which everything that was under way on it is told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from p2pstore.errors import P2PStoreError, PeerUnreachable
from p2pstore.ids import NodeId, PublicKey, short
from p2pstore.net.limits import Limits
from p2pstore.net.link.asking import REQUEST_TIMEOUT_S, Asking, Exchange
from p2pstore.net.link.inflow import Inflow
from p2pstore.net.link.judging import STRANGER, Address, judge_hello, judge_key
from p2pstore.net.link.outflow import Outflow
from p2pstore.net.link.pulse import Pulse
from p2pstore.net.link.serving import Request, Serving
from p2pstore.net.tasks import TaskOwner
from p2pstore.wire import (
    Cancelled,
    Event,
    Hello,
    HelloReceived,
    Message,
    MoreReceived,
    PeerFailed,
    Ping,
    Pong,
    ReplyReceived,
    RequestReceived,
    Session,
    Side,
    error_of,
    fail_of,
    format_address,
)

if TYPE_CHECKING:
    from p2pstore.clock import Clock

log = logging.getLogger(__name__)


class Household(Protocol):
    """What a link needs from the transport that made it."""

    handler: Callable[[Request], Awaitable[None]]
    hello: Callable[[], Hello]
    limits: Limits
    clock: Clock
    public_key: PublicKey
    held_bytes: int
    tasks: TaskOwner

    def role_of(self, hello: Hello) -> str: ...
    def peer_key(self, transport: Any) -> PublicKey: ...
    def joined(self, link: Link) -> None:
        """The link is about to be ready; may raise to refuse it."""

    def ended(self, link: Link) -> None:
        """The link is of no use any more."""

    def gone(self, link: Link) -> None:
        """Its connection has been taken down."""


class Link(asyncio.BufferedProtocol):
    """A connection; `hello`, `node_id`, `public_key` and `role` are set once it is ready."""

    hello: Hello
    node_id: NodeId
    public_key: PublicKey

    def __init__(
        self,
        home: Household,
        side: Side,
        address: Address,
        expect: NodeId | None = None,
        *,
        via: Link | None = None,
    ) -> None:
        """`via`: the link to the peer between, if there is one; `address` is then that peer's."""
        loop = asyncio.get_running_loop()
        self._home = home
        self._expect = expect
        self._transport: Any = None
        self._reason: P2PStoreError | None = None
        self._ready: asyncio.Future[None] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._is_retired = False
        self.address = address
        self.via = via
        self.role = STRANGER
        self.is_dialled = side is Side.DIALLED
        self.connected_at = home.clock.wall()
        self.is_ready = False
        self.is_closed = False
        self.received_bytes = 0
        # The parts, for each other; whoever uses the link asks the link.
        self.session = Session(side, max_exchanges=home.limits.requests_in_flight)
        self.inflow = Inflow(home, home.limits)
        self.outflow = Outflow()
        self.asking = Asking(self)
        self.serving = Serving(self, home)
        self.pulse = Pulse(self, home)

    def __str__(self) -> str:
        place = f"at {format_address(*self.address)}"
        if self.via is not None:
            place = f"through {self.via.hello.name or short(self.via.node_id)}"
        if self.is_ready:
            return f"{self.hello.name or 'node'} {short(self.node_id)} {place}"
        return place.removeprefix("at ")

    @property
    def sent_bytes(self) -> int:
        return self.outflow.passed_bytes

    # -- asking ------------------------------------------------------------------------------

    async def request(
        self, message: Message, payload: bytes = b"", timeout_s: float = REQUEST_TIMEOUT_S
    ) -> tuple[Message, bytes]:
        """One answer. FAIL is raised as its error, silence as Unavailable."""
        async with Exchange(self, message, payload) as exchange:
            return await exchange.receive(timeout_s)

    async def stream(
        self, message: Message, payload: bytes = b"", timeout_s: float = REQUEST_TIMEOUT_S
    ) -> AsyncIterator[tuple[Message, bytes]]:
        """All answers up to the final one; `timeout_s` for each."""
        async with Exchange(self, message, payload) as exchange:
            while not exchange.is_done:
                yield await exchange.receive(timeout_s)

    def exchange(self, message: Message, payload: bytes = b"") -> Exchange:
        """A conversation: it begins with the first `receive`, `send` or `open`."""
        return Exchange(self, message, payload)

    def promote(self, role: str) -> None:
        """The peer's role changed while it was connected: it has joined."""
        self.role = role
        if role != STRANGER:
            self.session.allow_payload()

    async def wait_ready(self) -> None:
        """Until both HELLOs are accepted; raises why not."""
        await asyncio.shield(self._ready)

    async def wait_closed(self) -> None:
        await asyncio.shield(self._gone)

    def check(self, now: float) -> None:
        """Called about once a second: end what stalls, ask the silent whether they are there."""
        if self._transport is not None and not self.is_closed:
            self.pulse.check(now)

    # -- sending, for the parts --------------------------------------------------------------

    def write(self, frames: list[bytes]) -> None:
        """Queue frames; those of one turn of the loop leave together."""
        self.outflow.write(frames)

    @property
    def must_wait(self) -> bool:
        """`wait_room` would wait, or raise; looking is cheaper where thousands are sent."""
        return self.outflow.is_full or self.is_closed

    async def wait_room(self) -> None:
        """Until the link takes more; PeerUnreachable when it is gone."""
        if self.outflow.is_full:
            await self.outflow.wait_room()
        if self.is_closed:
            raise self.gone()

    # -- the end -----------------------------------------------------------------------------

    async def close(self) -> None:
        """Send what is written, say good-bye, end the link and what it serves."""
        self.end(PeerUnreachable("The link was closed here."))
        try:
            async with asyncio.timeout(self._home.limits.shutdown_s + 1):
                await asyncio.shield(self._gone)
        except TimeoutError:
            self.abort()
            await asyncio.shield(self._gone)

    def abort(self, reason: P2PStoreError | None = None) -> None:
        """End the link at once, without a word."""
        self._reason = self._reason or reason or PeerUnreachable("The link was ended here.")
        if self._transport is not None:
            self._transport.abort()

    def retire(self) -> None:
        """Close once nothing is under way: another link to the same peer has taken over."""
        self._is_retired = True
        self.close_if_retired()

    def close_if_retired(self) -> None:
        if self._is_retired and not self.session.open_exchanges:
            self.end(PeerUnreachable("Another connection to the same peer took over."))

    def fail_to_connect(self, error: P2PStoreError) -> None:
        """The connection that this link was for could not be made, or is not wanted any more."""
        self._reason = self._reason or error
        self._finish()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._forget()

    def end(self, reason: P2PStoreError) -> None:
        """Say why, send what is written, and close."""
        if self.is_closed:
            return
        self._reason = self._reason or reason
        if self._transport is not None and not self._transport.is_closing():
            if not isinstance(reason, PeerUnreachable):
                log.debug("Closing the link to %s: %s", self, reason)
                self.write(self.session.send_failure(fail_of(reason)))
            self.outflow.flush()
            self.inflow.resume()  # TLS reads the peer's farewell
            self._transport.close()
        self._finish()

    def gone(self) -> P2PStoreError:
        """The error to raise for work on a closed link."""
        if self._reason is None:
            return PeerUnreachable(f"The connection to {self} ended.")
        error = PeerUnreachable(f"The connection to {self} ended: {self._reason}")
        error.__cause__ = self._reason
        return error

    def _finish(self) -> None:
        """From here on the link is closed for everybody; what was under way is told so."""
        if self.is_closed:
            return
        self.is_closed = True
        if not self._ready.done():
            error = self._reason or PeerUnreachable(f"{self} closed the connection.")
            self._ready.set_exception(error)
            self._ready.exception()  # seen, also when nobody waits
        self.asking.close()
        self.serving.close()
        self.inflow.close()
        self.outflow.close()
        self._home.ended(self)

    def _forget(self) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
            self._home.gone(self)

    # -- the loop's side ---------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self._reason is not None:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=self._home.limits.write_high)
        self.inflow.attach(transport)
        self.outflow.attach(transport)
        try:
            self.public_key = self._home.peer_key(transport)
            self.node_id = judge_key(
                self.public_key,
                self._home.public_key,
                expect=self._expect,
                address=self.address,
            )
        except P2PStoreError as exc:
            self.end(exc)
            return
        self.write(self.session.send_hello(self._home.hello()))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.session.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self.is_closed:
            return
        self.received_bytes += nbytes
        try:
            for event in self.session.buffer_updated(nbytes):
                self._take(event)
        except P2PStoreError as exc:
            self.end(exc)
            return
        self.inflow.pause_if_full()

    def eof_received(self) -> bool:
        return False  # close: an end in one direction has no use here

    def pause_writing(self) -> None:
        self.outflow.pause()

    def resume_writing(self) -> None:
        self.outflow.resume()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._reason is None and exc is not None:
            self._reason = PeerUnreachable(f"The connection broke ({exc}).")
            self._reason.__cause__ = exc
        self._finish()
        self._forget()

    # -- what came ---------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        match event:
            case ReplyReceived():
                self.asking.answered(event)
                if event.final and self._is_retired:
                    # Not before whoever waits for this answer has it.
                    asyncio.get_running_loop().call_soon(self.close_if_retired)
            case RequestReceived() if type(event.message) is Ping:
                self.write(self.session.send_reply(event.exchange, Pong()))
            case RequestReceived():
                self.serving.begin(event)
            case MoreReceived():
                self.serving.more(event)
            case Cancelled():
                self.serving.cancel(event.exchange)
            case HelloReceived():
                self._greet(event.hello)
            case PeerFailed():
                raise PeerUnreachable(str(error_of(event.fail))) from error_of(event.fail)

    def _greet(self, hello: Hello) -> None:
        judge_hello(hello, self.public_key, self._home.hello().network)
        self.hello = hello
        self.promote(self._home.role_of(hello))
        self._home.joined(self)
        self.is_ready = True
        self._ready.set_result(None)
