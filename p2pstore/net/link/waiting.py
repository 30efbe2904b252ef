"""Waiting without a task or a timeout context for each wait, which a busy link has thousands of."""

from __future__ import annotations

import asyncio


class Bell:
    """Wakes all who wait; each of them looks for himself whether what he waits for is there."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def ring(self) -> None:
        if not self._waiters:
            return
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


def alarm(timeout_s: float) -> asyncio.Future[None]:
    """A future that fails with TimeoutError, unless somebody gives it a result before."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(timeout_s, _expire, future)
    future.add_done_callback(lambda _: timer.cancel())
    return future


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())
