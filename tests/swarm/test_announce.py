from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from p2pstore.clock import ManualClock
from p2pstore.dht import Announced
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
        self.count = 3
        self.took: Callable[[], None] = lambda: None
        self.news = asyncio.Event()

    async def announce(self, tags: Sequence[Tag], until_ms: int) -> Announced:
        if self.failures:
            self.failures -= 1
            raise Unavailable("nobody is there")
        self.told.append(list(tags))
        self.until_ms.append(until_ms)
        self.took()
        self.news.set()
        return Announced(self.count, 1, 5)

    def nodes(self) -> int:
        return self.count

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
        self.mark = b"main"
        self.noted: bytes | None = None

    def load(self) -> bytes | None:
        return self.noted

    def save(self, raw: bytes) -> None:
        self.noted = raw

    async def stop(self) -> None:
        assert self.runner is not None
        self.runner.cancel()
        await asyncio.wait((self.runner,))

    def start(self) -> Announcer:
        announcer = Announcer(
            self.network,
            lambda: self.here,
            pool=self.pool,
            clock=self.clock,
            notes=self,
            mark=self.mark,
            pause=self.pause,
        )
        self.runner = asyncio.ensure_future(announcer.run())
        return announcer

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await asyncio.sleep(0)


async def rest(announcer: Announcer) -> None:
    """Until the sweep is over."""
    async with asyncio.timeout(5):
        while announcer.state().is_working:
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
    while not announcer._wake._waiters:
        await asyncio.sleep(0)
    announcer.announce_soon(tag(3))
    announcer.announce_soon(tag(4), tag(3))
    assert await setting.network.next() == [tag(3), tag(4)]
    await asyncio.sleep(0)
    assert announcer.state().keys == 4
    assert setting.pauses == [announce_module.GATHER_S]


async def test_everything_is_announced_again_when_it_is_time(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce_module, "TICK_S", 0.001)
    setting.start()
    await setting.network.next()
    setting.here = [tag(9)]
    setting.clock.advance(announce_module.EVERY_S - 1)
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert len(setting.network.told) == 1
    setting.clock.advance(1)
    assert await setting.network.next() == [tag(9)]


async def test_what_failed_is_tried_again_whole(setting: Setting) -> None:
    setting.network.failures = 2
    setting.start()
    assert await setting.network.next() == [tag(1), tag(2)]
    assert setting.pauses == [announce_module.RETRY_S] * 2


async def test_new_tags_that_failed_are_not_lost(setting: Setting) -> None:
    announcer = setting.start()
    await setting.network.next()
    setting.network.failures = 1
    announcer.announce_soon(tag(3))
    assert await setting.network.next() == [tag(3)]


async def test_too_many_new_tags_become_one_full_turn(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce_module, "MAX_WAITING", 3)
    announcer = setting.start()
    await setting.network.next()
    announcer.announce_soon(*(tag(i) for i in range(10)))
    assert await setting.network.next() == [tag(1), tag(2)]


async def test_what_nobody_heard_is_told_when_somebody_comes(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce_module, "TICK_S", 0.001)
    setting.network.count = 0
    announcer = setting.start()
    await setting.network.next()
    await rest(announcer)
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert len(setting.network.told) == 1
    setting.network.count = 1
    setting.clock.advance(announce_module.RETRY_S)
    assert await setting.network.next() == [tag(1), tag(2)]


async def test_a_network_that_has_grown_is_told_anew(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce_module, "TICK_S", 0.001)
    announcer = setting.start()
    await setting.network.next()
    await rest(announcer)
    setting.network.count = 6
    setting.clock.advance(announce_module.RETRY_S)
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert len(setting.network.told) == 1
    setting.network.count = 7
    assert await setting.network.next() == [tag(1), tag(2)]


def many(count: int) -> list[Tag]:
    return sorted(Tag(hashlib.sha256(b"%d" % i).digest()[:20]) for i in range(count))


async def all_told(setting: Setting, tags: list[Tag]) -> None:
    async with asyncio.timeout(5):
        while sum(map(len, setting.network.told)) < len(tags):
            await asyncio.sleep(0)


async def test_many_tags_are_told_part_by_part(setting: Setting) -> None:
    setting.here = many(10_000)
    announcer = setting.start()
    await all_told(setting, setting.here)
    assert len(setting.network.told) == 16
    assert list(itertools.chain(*setting.network.told)) == setting.here
    await asyncio.sleep(0)
    state = announcer.state()
    assert (state.keys, state.parts_due, state.ends, state.late) == (10_000, 0, None, 0)
    assert (state.lookups, state.datagrams) == (16, 80)


async def test_a_long_sweep_goes_on_after_a_restart(setting: Setting) -> None:
    setting.here = many(10_000)
    half = asyncio.Event()

    def slow() -> None:
        setting.clock.advance(61)
        if len(setting.network.told) == 8:
            half.set()

    setting.network.took = slow
    setting.start()
    await half.wait()
    await setting.stop()
    told = sum(map(len, setting.network.told))
    assert 4_000 < told < 6_000
    setting.start()
    await all_told(setting, setting.here)
    assert len(setting.network.told) in (16, 17)  # one may have been told and not noted


async def test_another_network_begins_the_sweep_anew(setting: Setting) -> None:
    setting.here = many(10_000)
    setting.start()
    await all_told(setting, setting.here)
    await setting.stop()
    setting.mark = b"other"
    setting.network.told.clear()
    setting.start()
    await all_told(setting, setting.here)


async def test_a_network_too_slow_for_all_keys_is_an_alarm(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    setting.here = many(10_000)
    news = asyncio.Event()

    def slow() -> None:
        setting.clock.advance(2 * 3600)  # 16 parts: 32 hours for records that live for 24
        if len(setting.network.told) == 2:
            news.set()

    setting.network.took = slow
    announcer = setting.start()
    await news.wait()
    state = announcer.state()
    assert state.late > 0
    assert state.alarm is not None
    assert state.ends is not None
    assert state.ends - setting.clock.wall() == pytest.approx(14 * 2 * 3600)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    await all_told(setting, setting.here)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_a_pace_that_suffices_is_none(setting: Setting) -> None:
    setting.here = many(10_000)
    setting.network.took = lambda: setting.clock.advance(3600)
    announcer = setting.start()
    await all_told(setting, setting.here)
    assert announcer.state().alarm is None


async def test_a_node_that_hears_nothing_is_not_told_all_the_time(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce_module, "TICK_S", 0.001)

    async def silence(tags: Sequence[Tag], until_ms: int) -> Announced:
        setting.network.told.append(list(tags))
        setting.network.news.set()
        return Announced(0, 1, 3)

    monkeypatch.setattr(setting.network, "announce", silence)
    setting.start()
    await setting.network.next()
    for _ in range(10):
        await asyncio.sleep(0.001)
    assert len(setting.network.told) == 1
