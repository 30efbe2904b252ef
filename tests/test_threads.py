"""Work in threads: a caller that goes away waits for it, and no error of it is left lying about."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from p2pstore.threads import in_thread


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as made:
        yield made


class Work:
    """Runs until it is let go; then ends, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.began = threading.Event()
        self.may_end = threading.Event()
        self.has_ended = False
        self._error = error

    def __call__(self, result: int) -> int:
        self.began.set()
        assert self.may_end.wait(10)
        self.has_ended = True
        if self._error is not None:
            raise self._error
        return result


async def cancelled_in(pool: ThreadPoolExecutor, work: Work) -> asyncio.Task[int]:
    caller = asyncio.create_task(in_thread(pool, work, 7))
    await asyncio.to_thread(work.began.wait, 10)
    caller.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    return caller


async def test_result_and_error_come_through(pool: ThreadPoolExecutor) -> None:
    good, bad = Work(), Work(ValueError("no"))
    good.may_end.set()
    bad.may_end.set()
    assert await in_thread(pool, good, 7) == 7
    with pytest.raises(ValueError, match="no"):
        await in_thread(pool, bad, 7)


async def test_cancelled_caller_waits_for_its_thread(pool: ThreadPoolExecutor) -> None:
    work = Work()
    caller = await cancelled_in(pool, work)
    assert not caller.done()
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.has_ended


async def test_cancelled_again_it_still_waits(pool: ThreadPoolExecutor) -> None:
    work = Work()
    caller = await cancelled_in(pool, work)
    caller.cancel()
    for _ in range(10):
        await asyncio.sleep(0)
    assert not caller.done()
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert work.has_ended


async def test_error_of_work_whose_caller_went_is_not_logged_as_unhandled(
    pool: ThreadPoolExecutor,
) -> None:
    said: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    work = Work(ValueError("the link broke"))
    caller = await cancelled_in(pool, work)
    work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    del caller
    gc.collect()
    await asyncio.sleep(0)
    assert said == []
