"""One connection to one peer: requests and answers in both directions over a `wire.Session`.

A link is the protocol object that the event loop feeds (TLS or an in-memory pipe below it), and the
object that the rest of the program asks. It becomes ready when both HELLOs have come and are judged
true: same network, a common version, the key that the transport proved, the node that was expected.
Nothing is served or asked before. Which role the peer has is said by the endpoint's `role_of`.

Back-pressure: who sends waits while more than `write_high` bytes are unsent; reading stops while
more than `peer_bytes` (or `total_bytes` over all links) were received and not taken by anyone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from p2pstore.errors import (
    LocalProtocolError,
    NotAllowed,
    P2PStoreError,
    PeerUnreachable,
    RemoteProtocolError,
    Unavailable,
)
from p2pstore.ids import NodeId, PublicKey, node_id_of, short
from p2pstore.net.limits import Limits, Pace
from p2pstore.net.tasks import TaskOwner
from p2pstore.wire import (
    VERSIONS,
    Cancelled,
    Event,
    Fail,
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

REQUEST_TIMEOUT_S = 30.0
STRANGER = "stranger"
JOIN_BELOW = 32 * 1024  # smaller pieces are joined before TLS: one record instead of many
FLUSH_AT = 128 * 1024

Address = tuple[str, int]


class WrongPeer(PeerUnreachable):
    """Another node than the expected one answers at an address."""


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


class Request:
    """What a peer asks. The handler replies until final; raising answers with FAIL."""

    __slots__ = ("_answered", "_exchange", "_inbox", "_waiter", "link", "message", "payload")

    def __init__(self, link: Link, exchange: int, message: Message, payload: bytes) -> None:
        self.link = link
        self.message = message
        self.payload = payload
        self._exchange = exchange
        self._inbox: deque[tuple[Message, bytes]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._answered = False

    @property
    def is_answered(self) -> bool:
        return self._answered

    async def reply(self, message: Message, payload: bytes = b"", final: bool = True) -> None:
        """Send an answer, as soon as the link has room; PeerUnreachable when it is gone."""
        link = self.link
        if link.must_wait:
            await link.wait_room()
        if final:
            self._answered = True
        link.write(link.session.send_reply(self._exchange, message, payload, final=final))

    async def receive(self, timeout_s: float = REQUEST_TIMEOUT_S) -> tuple[Message, bytes]:
        """The asker's next message within this exchange; Unavailable after `timeout_s`."""
        while not self._inbox:
            if self.link.is_closed:
                raise self.link.gone()
            self._waiter = self.link.waiter(timeout_s)
            try:
                await self._waiter
            except TimeoutError as exc:
                raise Unavailable("The asker stopped sending.") from exc
            finally:
                self._waiter = None
        message, payload = self._inbox.popleft()
        if payload:
            self.link.release(len(payload))
        return message, payload

    def put(self, message: Message, payload: bytes) -> None:
        self._inbox.append((message, payload))
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def drop_inbox(self) -> int:
        size = sum(len(payload) for _, payload in self._inbox)
        self._inbox.clear()
        return size


class Exchange:
    """What we ask, with as many answers and further messages as the kind of request has.

    Use it as an async context manager: leaving it cancels what is not finished.
    """

    __slots__ = ("_done", "_first", "_id", "_inbox", "_waiter", "link")

    def __init__(self, link: Link, message: Message, payload: bytes) -> None:
        self.link = link
        self._first: tuple[Message, bytes] | None = (message, payload)
        self._id = 0
        self._inbox: deque[tuple[Message, bytes]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._done = False

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def is_done(self) -> bool:
        """The final answer has been taken."""
        return self._done and not self._inbox

    async def open(self) -> None:
        """Send the request, once there is a place and room for it."""
        link = self.link
        while self._first is not None and (link.must_wait or not link.session.may_open):
            await link.wait_place() if not link.must_wait else await link.wait_room()
        if self._first is not None:
            message, payload = self._first
            self._first = None
            self._id = link.open_exchange(self, message, payload)

    async def send(self, message: Message, payload: bytes = b"") -> None:
        """A further message; waits for room. Nothing is sent once the final answer has come."""
        if self._first is not None:
            await self.open()
        if self.link.must_wait:
            await self.link.wait_room()
        if not self._done:
            self.link.write(self.link.session.send_more(self._id, message, payload))

    async def receive(self, timeout_s: float = REQUEST_TIMEOUT_S) -> tuple[Message, bytes]:
        """The next answer. FAIL is raised as its error, silence as Unavailable."""
        link = self.link
        try:
            if self._first is not None:
                if link.must_wait or not link.session.may_open:
                    async with asyncio.timeout(timeout_s):
                        await self.open()
                else:
                    await self.open()
            while not self._inbox:
                if link.is_closed:
                    raise link.gone()
                if self._done:
                    raise LocalProtocolError("The final answer was taken already.")
                self._waiter = link.waiter(timeout_s)
                try:
                    await self._waiter
                finally:
                    self._waiter = None
        except TimeoutError as exc:
            raise Unavailable(f"{link} did not answer in time.") from exc
        message, payload = self._inbox.popleft()
        if payload:
            link.release(len(payload))
        if type(message) is Fail:
            raise error_of(message)
        return message, payload

    def close(self) -> None:
        """Want no more. Answers that are on their way are thrown away."""
        for _, payload in self._inbox:
            self.link.release(len(payload))
        self._inbox.clear()
        self._first = None
        if not self._done:
            self._done = True
            if self._id:
                self.link.abandon(self._id)

    def put(self, message: Message, payload: bytes, final: bool) -> None:
        self._inbox.append((message, payload))
        self._done = final
        self.wake()

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Link(asyncio.BufferedProtocol):
    """A connection; `hello`, `node_id`, `public_key` and `role` are set once it is ready."""

    hello: Hello
    node_id: NodeId
    public_key: PublicKey

    def __init__(
        self, home: Household, side: Side, address: Address, expect: NodeId | None = None
    ) -> None:
        self._home = home
        self._limits = home.limits
        self._loop = asyncio.get_running_loop()
        self.session = Session(side, max_exchanges=home.limits.requests_in_flight)
        self.address = address
        self.role = STRANGER
        self.is_dialled = side is Side.DIALLED
        self.connected_at = home.clock.wall()
        self.is_ready = False
        self.is_closed = False
        self._expect = expect
        self._since = home.clock.monotonic()
        self._transport: Any = None
        self._reason: P2PStoreError | None = None
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._serving: dict[int, tuple[Request, asyncio.Task[Any]]] = {}
        self._asking: dict[int, Exchange] = {}
        self._retiring = False
        # writing
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flush_due = False
        self._write_paused = False
        self._waiters: set[asyncio.Future[None]] = set()
        # reading
        self._held = 0
        self._read_paused = False
        self.received_bytes = 0
        self.sent_bytes = 0
        self._last_heard = self._since
        self._heard_bytes = 0
        self._pinging = False
        self._read_pace = Pace(self._limits.min_rate, self._limits.rate_window_s)
        self._write_pace = Pace(self._limits.min_rate, self._limits.rate_window_s)

    def __str__(self) -> str:
        place = format_address(*self.address)
        if self.is_ready:
            return f"{self.hello.name or 'node'} {short(self.node_id)} at {place}"
        return place

    # -- asking ------------------------------------------------------------------------------

    async def request(
        self, message: Message, payload: bytes = b"", timeout_s: float = REQUEST_TIMEOUT_S
    ) -> tuple[Message, bytes]:
        """One answer. FAIL is raised as its error, silence as Unavailable."""
        exchange = Exchange(self, message, payload)
        try:
            return await exchange.receive(timeout_s)
        finally:
            exchange.close()

    async def stream(
        self, message: Message, payload: bytes = b"", timeout_s: float = REQUEST_TIMEOUT_S
    ) -> AsyncIterator[tuple[Message, bytes]]:
        """All answers up to the final one; `timeout_s` for each."""
        exchange = Exchange(self, message, payload)
        try:
            while not exchange.is_done:
                yield await exchange.receive(timeout_s)
        finally:
            exchange.close()

    def exchange(self, message: Message, payload: bytes = b"") -> Exchange:
        """A conversation: it begins with the first `receive`, `send` or `open`."""
        return Exchange(self, message, payload)

    async def close(self) -> None:
        """Send what is written, say good-bye, end the link and what it serves."""
        self._end(PeerUnreachable("The link was closed here."))
        try:
            async with asyncio.timeout(self._limits.shutdown_s + 1):
                await asyncio.shield(self._gone)
        except TimeoutError:
            self.abort()
            await asyncio.shield(self._gone)

    def abort(self) -> None:
        """End the link at once, without a word."""
        self._reason = self._reason or PeerUnreachable("The link was ended here.")
        if self._transport is not None:
            self._transport.abort()

    def retire(self) -> None:
        """Close once nothing is under way: another link to the same peer has taken over."""
        self._retiring = True
        self._close_if_retired()

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

    def gone(self) -> P2PStoreError:
        """The error to raise for work on a closed link."""
        if self._reason is None:
            return PeerUnreachable(f"The connection to {self} ended.")
        error = PeerUnreachable(f"The connection to {self} ended: {self._reason}")
        error.__cause__ = self._reason
        return error

    # -- the other classes of this module ----------------------------------------------------

    def open_exchange(self, exchange: Exchange, message: Message, payload: bytes) -> int:
        if not self.is_ready or self.is_closed:
            raise self.gone()
        try:
            number, frames = self.session.send_request(message, payload)
        except Unavailable:
            self.retire()  # its numbers are used up; another link begins anew
            raise
        self._asking[number] = exchange
        self.write(frames)
        return number

    def abandon(self, number: int) -> None:
        if self._asking.pop(number, None) is not None and not self.is_closed:
            self.write(self.session.send_cancel(number))

    @property
    def must_wait(self) -> bool:
        return self._write_paused or self.is_closed

    async def wait_room(self) -> None:
        """Until what was written has mostly been sent; PeerUnreachable when the link is gone."""
        while self._write_paused and not self.is_closed:
            await self._wait()
        if self.is_closed:
            raise self.gone()

    async def wait_place(self) -> None:
        """Until another request may be opened."""
        while not self.session.may_open and not self.is_closed:
            await self._wait()
        if self.is_closed:
            raise self.gone()

    async def _wait(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def waiter(self, timeout_s: float) -> asyncio.Future[None]:
        """A future that fails with TimeoutError. An asyncio.timeout for each answer is dearer."""
        waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_s, _expire, waiter)
        waiter.add_done_callback(lambda _: timer.cancel())
        return waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def release(self, size: int) -> None:
        """`size` received bytes were taken by somebody."""
        if not size:
            return
        self._held -= size
        self._home.held_bytes -= size
        if self._read_paused and not self.is_closed:
            limits = self._limits
            if not self._held or (
                self._held <= limits.peer_bytes // 2 and self._home.held_bytes < limits.total_bytes
            ):
                self._read_paused = False
                self._transport.resume_reading()

    def _hold(self, size: int) -> None:
        self._held += size
        self._home.held_bytes += size

    # -- writing -----------------------------------------------------------------------------

    def write(self, frames: list[bytes]) -> None:
        """Queue frames; those of one turn of the loop leave together."""
        if self.is_closed:
            return
        for piece in frames:
            self._out.append(piece)
            self._out_bytes += len(piece)
        if self._out_bytes >= FLUSH_AT:
            self._flush()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_due = False
        self._flush()

    def _flush(self) -> None:
        pieces, self._out = self._out, []
        self.sent_bytes += self._out_bytes
        self._out_bytes = 0
        if not pieces or self._transport is None or self._transport.is_closing():
            return
        batch: list[bytes] = []
        small: list[bytes] = []
        for piece in pieces:
            if len(piece) < JOIN_BELOW:
                small.append(piece)
                continue
            if small:
                batch.append(b"".join(small))
                small = []
            batch.append(piece)
        if small:
            batch.append(b"".join(small))
        if len(batch) == 1:
            self._transport.write(batch[0])
        else:
            self._transport.writelines(batch)

    # -- the loop's side ---------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        if self._reason is not None:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=self._limits.write_high)
        try:
            self.public_key = self._home.peer_key(transport)
            self.node_id = node_id_of(self.public_key)
            self._check_key()
        except P2PStoreError as exc:
            self._end(exc)
            return
        self.write(self.session.send_hello(self._home.hello()))

    def _check_key(self) -> None:
        if self.public_key == self._home.public_key:
            raise WrongPeer("That address is this node itself.")
        if self._expect is not None and self.node_id != self._expect:
            raise WrongPeer(
                f"Node {short(self.node_id)} answers at {format_address(*self.address)}, "
                f"not {short(self._expect)}."
            )

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
            self._end(exc)
            return
        limits = self._limits
        if (
            self._held > limits.peer_bytes
            or (self._held and self._home.held_bytes > limits.total_bytes)
        ) and not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False  # close: an end in one direction has no use here

    def pause_writing(self) -> None:
        self._write_paused = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._wake()

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._reason is None and exc is not None:
            self._reason = PeerUnreachable(f"The connection broke ({exc}).")
            self._reason.__cause__ = exc
        self._finish()
        self._forget()

    def fail_to_connect(self, error: P2PStoreError) -> None:
        """The connection that this link was for could not be made, or is not wanted any more."""
        self._reason = self._reason or error
        self._finish()
        if self._transport is not None:
            self._transport.abort()
        else:
            self._forget()

    def _forget(self) -> None:
        if not self._gone.done():
            self._gone.set_result(None)
            self._home.gone(self)

    def _end(self, reason: P2PStoreError) -> None:
        """Say why, send what is written, and close."""
        if self.is_closed:
            return
        self._reason = self._reason or reason
        if self._transport is not None and not self._transport.is_closing():
            if not isinstance(reason, PeerUnreachable):
                log.debug("Closing the link to %s: %s", self, reason)
                self.write(self.session.send_failure(fail_of(reason)))
            self._flush()
            if self._read_paused:
                self._read_paused = False
                self._transport.resume_reading()  # TLS reads the peer's farewell
            self._transport.close()
        self._finish()

    def _finish(self) -> None:
        """From here on the link is closed for everybody; what was under way is told so."""
        if self.is_closed:
            return
        self.is_closed = True
        if not self._ready.done():
            error = self._reason or PeerUnreachable(f"{self} closed the connection.")
            self._ready.set_exception(error)
            self._ready.exception()  # seen, also when nobody waits
        for exchange in self._asking.values():
            exchange.wake()
        self._asking.clear()
        for request, task in list(self._serving.values()):
            request.wake()
            task.cancel()
        self._wake()
        self._home.held_bytes -= self._held
        self._held = 0
        self._out.clear()
        self._home.ended(self)

    # -- events ------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._take_request(event)
        elif isinstance(event, ReplyReceived):
            self._take_reply(event)
        elif isinstance(event, MoreReceived):
            serving = self._serving.get(event.exchange)
            if serving is not None:
                self._hold(len(event.payload))
                serving[0].put(event.message, event.payload)
        elif isinstance(event, Cancelled):
            serving = self._serving.get(event.exchange)
            if serving is not None:
                serving[1].cancel()
        elif isinstance(event, HelloReceived):
            self._take_hello(event.hello)
        elif isinstance(event, PeerFailed):
            raise PeerUnreachable(str(error_of(event.fail))) from error_of(event.fail)

    def _take_hello(self, hello: Hello) -> None:
        if hello.public_key != self.public_key:
            raise RemoteProtocolError("HELLO names another key than TLS proved.")
        ours = self._home.hello().network
        if hello.network != ours:
            raise NotAllowed(f"The peer is on the network {hello.network!r}, we on {ours!r}.")
        if not set(hello.versions) & set(VERSIONS):
            raise NotAllowed("The peer speaks no version of the protocol that we speak.")
        self.hello = hello
        self.role = self._home.role_of(hello)
        if self.role != STRANGER:
            self.session.allow_payload()
        self._home.joined(self)
        self.is_ready = True
        self._ready.set_result(None)

    def _take_request(self, event: RequestReceived) -> None:
        if type(event.message) is Ping:
            self.write(self.session.send_reply(event.exchange, Pong()))
            return
        request = Request(self, event.exchange, event.message, event.payload)
        self._hold(len(event.payload))
        task = self._home.tasks.start(self._serve(event.exchange, request))
        self._serving[event.exchange] = (request, task)

    async def _serve(self, number: int, request: Request) -> None:
        fail: Fail | None = None
        try:
            await self._home.handler(request)
            fail = Fail("unavailable", "The node had no answer.")
        except asyncio.CancelledError:
            fail = Fail("unavailable", "Cancelled.")
            raise
        except Exception as exc:
            if not isinstance(exc, P2PStoreError) or isinstance(exc, LocalProtocolError):
                log.error("Serving %s failed.", type(request.message).__name__, exc_info=exc)
            fail = fail_of(exc)
        finally:
            self._served(number, request, fail)

    def _served(self, number: int, request: Request, fail: Fail | None) -> None:
        del self._serving[number]
        if self.is_closed:
            return
        self.release(len(request.payload) + request.drop_inbox())
        if not request.is_answered and fail is not None:
            self.write(self.session.send_reply(number, fail))
        self._close_if_retired()

    def _take_reply(self, event: ReplyReceived) -> None:
        exchange = self._asking.get(event.exchange)
        if event.final:
            self._asking.pop(event.exchange, None)
            if self._waiters and not self._write_paused:
                self._wake()
        elif isinstance(event.message, Fail):
            raise RemoteProtocolError("FAIL is a final answer.")
        if exchange is not None:
            self._hold(len(event.payload))
            exchange.put(event.message, event.payload, event.final)
        if event.final and self._retiring:
            self._loop.call_soon(self._close_if_retired)

    def _close_if_retired(self) -> None:
        if self._retiring and not self.session.open_exchanges:
            self._end(PeerUnreachable("Another connection to the same peer took over."))

    # -- time --------------------------------------------------------------------------------

    def check(self, now: float) -> None:
        """Called about once a second: end what stalls, ask the silent whether they are there."""
        limits = self._limits
        if self.is_closed or self._transport is None:
            return
        if not self.is_ready:
            if now - self._since > limits.first_frame_s:
                self._stalled("did not introduce itself in time")
            return
        if self.received_bytes != self._heard_bytes:
            self._heard_bytes = self.received_bytes
            self._last_heard = now
        unsent = self._transport.get_write_buffer_size()
        if self._read_pace.is_too_slow(
            now, self.received_bytes, busy=self.session.is_mid_frame and not self._read_paused
        ):
            self._stalled("sends too slowly")
        elif self._write_pace.is_too_slow(now, self.sent_bytes - unsent, busy=unsent > 0):
            self._stalled("takes what it asked for too slowly")
        elif now - self._last_heard > limits.keepalive_s and not self._read_paused:
            self.session.shrink()
            if not self._pinging:
                self._pinging = True
                self._home.tasks.start(self._ask_for_life())

    def _stalled(self, what: str) -> None:
        log.debug("The peer %s %s.", self, what)
        self._reason = self._reason or PeerUnreachable(f"The peer {what}.")
        self.abort()

    async def _ask_for_life(self) -> None:
        try:
            await self.request(Ping(), timeout_s=self._limits.pong_s)
        except Unavailable:
            self._stalled("does not answer any more")
        except RemoteProtocolError as exc:
            self._end(exc)
        finally:
            self._pinging = False


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
