"""Blocking work in a pool of threads, without pulling the floor from under it.

A thread cannot be cancelled. So a caller that is cancelled, however often, waits until its thread
has ended, and only then goes: descriptors and locks that the work uses are never closed while it
runs. An error of such work has nobody left to be told to; it goes to the log, as a detail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


async def in_thread(
    pool: Executor, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """The result of the call, made in a thread of `pool`."""
    work = asyncio.get_running_loop().run_in_executor(pool, partial(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        while not work.done():
            try:
                await asyncio.wait([work])
            except asyncio.CancelledError:
                continue  # cancelled once more; the first is raised below
        if not work.cancelled() and (error := work.exception()) is not None:
            log.debug("Work whose caller has gone failed: %s", error)
        raise
