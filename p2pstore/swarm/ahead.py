"""Blocking calls one after the other in a pool, each begun while the result before it is used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

T = TypeVar("T")


async def ahead(pool: Executor, calls: Iterable[Callable[[], T]]) -> AsyncGenerator[T, None]:
    """The results in order; never two calls at a time. Use it with `aclosing`: then no call
    outlives the caller."""
    loop = asyncio.get_running_loop()
    running: asyncio.Future[T] | None = None
    try:
        for call in calls:
            if running is None:
                running = loop.run_in_executor(pool, call)
                continue
            result = await asyncio.shield(running)
            running = loop.run_in_executor(pool, call)
            yield result
        if running is not None:
            yield await asyncio.shield(running)
    finally:
        while running is not None and not running.done():
            await asyncio.wait([running])
        if running is not None and not running.cancelled():
            running.exception()  # seen: whoever asked has gone
