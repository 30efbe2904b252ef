"""An owner of tasks that come and go: none outlives `close`, and no failure is silent.

A TaskGroup ends all of its tasks when one fails; here each stands for one peer, whose failure
concerns nobody else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

log = logging.getLogger(__name__)


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
