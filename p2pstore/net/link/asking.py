"""Our requests on one link, and their answers."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import TYPE_CHECKING

from p2pstore.errors import (
    LocalProtocolError,
    RemoteProtocolError,
    Unavailable,
)
from p2pstore.net.link.inflow import Inbox
from p2pstore.net.link.waiting import Bell
from p2pstore.wire import Fail, Message, ReplyReceived, error_of

if TYPE_CHECKING:
    from p2pstore.net.link.link import Link

REQUEST_TIMEOUT_S = 30.0


class Exchange:
    """What we ask, with as many answers and further messages as the kind of request has.

    Use it as an async context manager: leaving it cancels what is not finished.
    """

    __slots__ = ("_done", "_first", "_inbox", "_number", "link")

    def __init__(self, link: Link, message: Message, payload: bytes) -> None:
        self.link = link
        self._first: tuple[Message, bytes] | None = (message, payload)
        self._number = 0
        self._inbox = Inbox(link.inflow)
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
        while self._first is not None and not link.asking.may_open:
            await link.asking.wait_place()
            await link.wait_room()
        if self._first is not None:
            message, payload = self._first
            self._first = None
            self._number = link.asking.open(self, message, payload)

    async def send(self, message: Message, payload: bytes = b"") -> None:
        """A further message; waits for room. Nothing is sent once the final answer has come."""
        await self.open()
        await self.link.wait_room()
        if not self._done:
            self.link.write(self.link.session.send_more(self._number, message, payload))

    async def receive(self, timeout_s: float = REQUEST_TIMEOUT_S) -> tuple[Message, bytes]:
        """The next answer. FAIL is raised as its error, silence as Unavailable."""
        await self._wait(timeout_s)
        message, payload = self._inbox.take()
        if type(message) is Fail:
            raise error_of(message)
        return message, payload

    async def receive_some(
        self, most: int, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> list[tuple[Message, bytes]]:
        """The answers at hand, at least one, and no more once their payloads have `most` bytes.

        Like `receive`, at a lower price where thousands of small ones come.
        """
        await self._wait(timeout_s)
        some: list[tuple[Message, bytes]] = []
        while self._inbox and most > 0:
            message, payload = self._inbox.take()
            if type(message) is Fail:
                raise error_of(message)
            some.append((message, payload))
            most -= len(payload)
        return some

    async def _wait(self, timeout_s: float) -> None:
        """Until an answer is at hand."""
        try:
            if self._first is not None:
                await self._open_within(timeout_s)
            while not self._inbox:
                if self.link.is_closed:
                    raise self.link.gone()
                if self._done:
                    raise LocalProtocolError("The final answer was taken already.")
                await self._inbox.wait(timeout_s)
        except TimeoutError as exc:
            raise Unavailable(f"{self.link} did not answer in time.") from exc

    async def _open_within(self, timeout_s: float) -> None:
        if self.link.asking.may_open:
            await self.open()  # at once: the timeout costs more than the opening
            return
        async with asyncio.timeout(timeout_s):
            await self.open()

    def close(self) -> None:
        """Want no more. Answers that are on their way are thrown away."""
        self._inbox.clear()
        self._first = None
        if not self._done:
            self._done = True
            if self._number:
                self.link.asking.abandon(self._number)

    def put(self, message: Message, payload: bytes, *, final: bool) -> None:
        self._done = final
        self._inbox.put(message, payload)

    def wake(self) -> None:
        self._inbox.wake()


class Asking:
    """The exchanges that we have open on a link: at most as many as the peer serves at once."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._exchanges: dict[int, Exchange] = {}
        self._places = Bell()

    @property
    def may_open(self) -> bool:
        """There is a place and room, so that a request leaves at once."""
        link = self._link
        return link.session.may_open and not link.must_wait

    async def wait_place(self) -> None:
        """Until another request may be opened, as far as the peer's limit is concerned."""
        while not self._link.session.may_open and not self._link.is_closed:
            await self._places.wait()

    def open(self, exchange: Exchange, message: Message, payload: bytes) -> int:
        link = self._link
        if not link.is_ready or link.is_closed:
            raise link.gone()
        try:
            number, frames = link.session.send_request(message, payload)
        except Unavailable:
            link.retire()  # its numbers are used up; another link begins anew
            raise
        self._exchanges[number] = exchange
        link.write(frames)
        return number

    def answered(self, event: ReplyReceived) -> None:
        exchange = self._exchanges.get(event.exchange)
        if event.final:
            self._exchanges.pop(event.exchange, None)
            self._places.ring()
        elif type(event.message) is Fail:
            raise RemoteProtocolError("FAIL is a final answer.")
        if exchange is not None:
            exchange.put(event.message, event.payload, final=event.final)

    def abandon(self, number: int) -> None:
        if self._exchanges.pop(number, None) is not None:
            self._link.write(self._link.session.send_cancel(number))

    def close(self) -> None:
        """All who wait are woken, and see that the link is closed."""
        for exchange in self._exchanges.values():
            exchange.wake()
        self._exchanges.clear()
        self._places.ring()
