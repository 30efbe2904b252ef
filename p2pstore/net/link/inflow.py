"""What has come in and was not yet taken by anyone, and when a link stops reading because of it.

Payloads count as held from their arrival until somebody takes them or throws them away. A link
reads no more while it holds over `peer_bytes`, or all links together hold over `total_bytes`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol

from p2pstore.net.limits import Limits
from p2pstore.net.link.waiting import alarm
from p2pstore.wire import Message


class Pool(Protocol):
    """Where the bytes held by all links are summed up."""

    held_bytes: int


class Inflow:
    """The bytes that one link holds."""

    def __init__(self, pool: Pool, limits: Limits) -> None:
        self._pool = pool
        self._limits = limits
        self._transport: Any = None
        self._held = 0
        self._closed = False
        self.is_paused = False

    def attach(self, transport: Any) -> None:
        self._transport = transport

    def hold(self, size: int) -> None:
        if not self._closed:
            self._held += size
            self._pool.held_bytes += size

    def release(self, size: int) -> None:
        """`size` held bytes were taken; reading goes on once there is room again."""
        if not size or self._closed:
            return
        self._held -= size
        self._pool.held_bytes -= size
        if self.is_paused and (
            not self._held
            or (
                self._held <= self._limits.peer_bytes // 2
                and self._pool.held_bytes < self._limits.total_bytes
            )
        ):
            self.resume()

    def pause_if_full(self) -> None:
        """Only a link that holds something: what it gives back is what lets it read again."""
        is_full = self._held > self._limits.peer_bytes or (
            self._held and self._pool.held_bytes > self._limits.total_bytes
        )
        if is_full and not self.is_paused:
            self.is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self.is_paused:
            self.is_paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """Nothing is counted any more; what was handed over already may still be taken."""
        self._pool.held_bytes -= self._held
        self._held = 0
        self._closed = True


class Inbox:
    """Messages of one exchange, in their order, until they are taken."""

    __slots__ = ("_inflow", "_messages", "_waiter")

    def __init__(self, inflow: Inflow) -> None:
        self._inflow = inflow
        self._messages: deque[tuple[Message, bytes]] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Message, payload: bytes) -> None:
        self._inflow.hold(len(payload))
        self._messages.append((message, payload))
        self.wake()

    def take(self) -> tuple[Message, bytes]:
        message, payload = self._messages.popleft()
        self._inflow.release(len(payload))
        return message, payload

    def clear(self) -> None:
        while self._messages:
            self.take()

    async def wait(self, timeout_s: float) -> None:
        """Until a message comes or somebody calls `wake`; TimeoutError."""
        self._waiter = alarm(timeout_s)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
