"""The peer's requests on one link: each is handled in a task of its own."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from p2pstore.errors import LocalProtocolError, P2PStoreError, Unavailable
from p2pstore.net.link.inflow import Inbox
from p2pstore.wire import Fail, Message, MoreReceived, RequestReceived, fail_of

if TYPE_CHECKING:
    from p2pstore.net.link.link import Household, Link

log = logging.getLogger(__name__)

MORE_TIMEOUT_S = 30.0


class Request:
    """What a peer asks. The handler replies until final; raising answers with FAIL."""

    __slots__ = ("_number", "inbox", "is_answered", "link", "message", "payload")

    def __init__(self, link: Link, number: int, message: Message, payload: bytes) -> None:
        self.link = link
        self.message = message
        self.payload = payload
        self.inbox = Inbox(link.inflow)
        self.is_answered = False  # the final answer was sent
        self._number = number

    async def reply(self, message: Message, payload: bytes = b"", final: bool = True) -> None:
        """Send an answer, as soon as the link has room; PeerUnreachable when it is gone."""
        if self.link.must_wait:
            await self.link.wait_room()
        self.is_answered = self.is_answered or final
        self.link.write(self.link.session.send_reply(self._number, message, payload, final=final))

    async def receive(self, timeout_s: float = MORE_TIMEOUT_S) -> tuple[Message, bytes]:
        """The asker's next message within this exchange; Unavailable after `timeout_s`."""
        while not self.inbox:
            if self.link.is_closed:
                raise self.link.gone()
            try:
                await self.inbox.wait(timeout_s)
            except TimeoutError as exc:
                raise Unavailable("The asker stopped sending.") from exc
        return self.inbox.take()


class Serving:
    """The requests that are being served, by their exchange."""

    def __init__(self, link: Link, home: Household) -> None:
        self._link = link
        self._home = home
        self._running: dict[int, tuple[Request, asyncio.Task[Any]]] = {}

    def begin(self, event: RequestReceived) -> None:
        request = Request(self._link, event.exchange, event.message, event.payload)
        self._link.inflow.hold(len(event.payload))
        task = self._home.tasks.start(self._serve(event.exchange, request))
        self._running[event.exchange] = (request, task)

    def more(self, event: MoreReceived) -> None:
        """Dropped when the request has its final answer already."""
        if event.exchange in self._running:
            request, _ = self._running[event.exchange]
            request.inbox.put(event.message, event.payload)

    def cancel(self, number: int) -> None:
        if number in self._running:
            _, task = self._running[number]
            task.cancel()

    def close(self) -> None:
        for request, task in list(self._running.values()):
            request.inbox.wake()
            task.cancel()

    async def _serve(self, number: int, request: Request) -> None:
        fail = Fail("unavailable", "The node had no answer.")
        try:
            await self._home.handler(request)
        except asyncio.CancelledError:
            fail = Fail("unavailable", "Cancelled.")
            raise
        except Exception as exc:
            if not isinstance(exc, P2PStoreError) or isinstance(exc, LocalProtocolError):
                log.error("Serving %s failed.", type(request.message).__name__, exc_info=exc)
            fail = fail_of(exc)
        finally:
            self._end(number, request, fail)

    def _end(self, number: int, request: Request, fail: Fail) -> None:
        del self._running[number]
        request.inbox.clear()
        self._link.inflow.release(len(request.payload))
        if self._link.is_closed:
            return
        if not request.is_answered:
            self._link.write(self._link.session.send_reply(number, fail))
        self._link.close_if_retired()
