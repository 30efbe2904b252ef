"""An owner of tasks that come and go, and a pause that can be cut short.

No task outlives its owner's `close`, and no failure is silent.

A TaskGroup ends all of its tasks when one fails; here each stands for one peer, whose failure
concerns nobody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


async def pause_or_wake(
    pause: Callable[[float], Awaitable[None]], seconds: float, wake: asyncio.Event
) -> None:
    """Until `pause(seconds)` ends or `wake` is set; an error of the pause counts as its end."""
    pausing = asyncio.ensure_future(pause(seconds))
    waking = asyncio.ensure_future(wake.wait())
    try:
        await asyncio.wait({pausing, waking}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        pausing.cancel()
        waking.cancel()
        await asyncio.wait({pausing, waking})


class TaskOwner:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._awaited: set[asyncio.Task[Any]] = set()
        self._closed = False

    def __len__(self) -> int:
        return len(self._tasks)

    def start(
        self, work: Coroutine[Any, Any, Any], *, is_awaited: bool = False
    ) -> asyncio.Task[Any]:
        """`is_awaited`: whoever waits for the task hears of its failure; it is not logged here."""
        if self._closed:
            work.close()
            raise RuntimeError("tasks are started by an owner that is closed")
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if is_awaited:
            self._awaited.add(task)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task in self._awaited:
            self._awaited.discard(task)
            return
        if not task.cancelled() and task.exception() is not None:
            log.error("A task of the network ended unexpectedly.", exc_info=task.exception())

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        self._closed = True
        current = asyncio.current_task()
        while others := [task for task in self._tasks if task is not current]:
            for task in others:
                task.cancel()
            await asyncio.wait(others)
