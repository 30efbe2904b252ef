from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pstore.clock import ManualClock
from p2pstore.errors import Unavailable
from p2pstore.ids import Tag
from p2pstore.swarm import Announcer
from p2pstore.swarm import announce as announce_module


def tag(number: int) -> Tag:
    return Tag(number.to_bytes(20, "big"))


class Network:
    """Notes what it is told; fails as often as it is asked to."""

    def __init__(self) -> None:
        self.told: list[list[Tag]] = []
        self.until_ms: list[int] = []
        self.failures = 0
        self.news = asyncio.Event()

    async def announce(self, tags: Sequence[Tag], until_ms: int) -> int:
        if self.failures:
            self.failures -= 1
            raise Unavailable("nobody is there")
        self.told.append(list(tags))
        self.until_ms.append(until_ms)
        self.news.set()
        return 1

    async def next(self) -> list[Tag]:
        async with asyncio.timeout(5):
            await self.news.wait()
        self.news.clear()
        return self.told[-1]


class Setting:
    def __init__(self) -> None:
        self.network = Network()
        self.clock = ManualClock()
        self.pool = ThreadPoolExecutor(1)
        self.here = [tag(1), tag(2), tag(1)]
        self.pauses: list[float] = []
        self.runner: asyncio.Task[None] | None = None

    def start(self, every_s: float = 3600.0) -> Announcer:
        announcer = Announcer(
            self.network,
            lambda: self.here,
            pool=self.pool,
            clock=self.clock,
            every_s=every_s,
            pause=self.pause,
        )
        self.runner = asyncio.ensure_future(announcer.run())
        return announcer

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    made = Setting()
    yield made
    if made.runner is not None:
        made.runner.cancel()
        await asyncio.gather(made.runner, return_exceptions=True)
    made.pool.shutdown()


async def test_everything_is_announced_at_the_start_for_a_day(setting: Setting) -> None:
    setting.start()
    assert await setting.network.next() == [tag(1), tag(2)]
    assert setting.network.until_ms == [int(setting.clock.wall() * 1000) + 24 * 3600 * 1000]


async def test_new_tags_are_gathered_for_a_moment(setting: Setting) -> None:
    announcer = setting.start()
    await setting.network.next()
    announcer.announce_soon(tag(3))
    announcer.announce_soon(tag(4), tag(3))
    assert await setting.network.next() == [tag(3), tag(4)]
    assert setting.pauses == [announce_module.GATHER_S]


async def test_everything_is_announced_again_when_it_is_time(setting: Setting) -> None:
    setting.start(every_s=0.01)
    await setting.network.next()
    setting.here = [tag(9)]
    while await setting.network.next() != [tag(9)]:
        pass


async def test_what_failed_is_tried_again_whole(setting: Setting) -> None:
    setting.network.failures = 2
    setting.start()
    assert await setting.network.next() == [tag(1), tag(2)]
    assert setting.pauses == [announce_module.RETRY_S] * 2


async def test_too_many_new_tags_become_one_full_turn(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce_module, "MAX_WAITING", 3)
    announcer = setting.start()
    await setting.network.next()
    announcer.announce_soon(*(tag(i) for i in range(10)))
    assert await setting.network.next() == [tag(1), tag(2)]
