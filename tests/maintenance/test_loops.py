"""A loop's turns: when they come, what they remember, what a failure costs, what can be seen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pstore.clock import ManualClock
from p2pstore.errors import Unavailable
from p2pstore.maintenance import loops as module
from p2pstore.maintenance.loops import Doing, Loop, Loops
from p2pstore.store import Catalog, folders
from p2pstore.threads import in_thread

MONTH = 30 * 86_400.0


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.sqlite") as made:
        yield made


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of these tests is moved by hand: loops look at it all the time."""
    monkeypatch.setattr(module, "LONGEST_WAIT_S", 0.001)


class Turns:
    """A turn that counts, and does as it is told."""

    def __init__(self) -> None:
        self.count = 0
        self.places: list[bytes] = []
        self.does: Callable[[Loop], float | None] = lambda loop: None

    async def __call__(self, loop: Loop) -> float | None:
        self.loop = loop
        self.count += 1
        self.places.append(loop.place)
        return self.does(loop)

    async def begin(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.count < count:
                await asyncio.sleep(0.001)

    async def reach(self, count: int) -> None:
        """So many turns, and what the last one came to is known: the clock may be moved."""
        await self.begin(count)
        async with asyncio.timeout(10):
            while self.loop.report().state == "works":
                await asyncio.sleep(0.001)

    async def stay(self) -> None:
        """Not one more turn, however often the loop looks."""
        before = self.count
        for _ in range(10):
            await asyncio.sleep(0.002)
        assert self.count == before


@contextlib.asynccontextmanager
async def going(
    catalog: Catalog, clock: ManualClock, turns: Turns, *, period_s: float | None, lasts: bool
) -> AsyncIterator[Loop]:
    loops = Loops(catalog, clock)
    loop = loops.add("test", turns, period_s=period_s, lasts=lasts)
    task = asyncio.create_task(loops.run())
    try:
        yield loop
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_turns_come_at_once_and_then_with_the_period(
    catalog: Catalog, clock: ManualClock
) -> None:
    turns = Turns()
    async with going(catalog, clock, turns, period_s=60, lasts=False) as loop:
        await turns.reach(1)
        await turns.stay()
        clock.advance(59)
        await turns.stay()
        assert loop.report().next_run == pytest.approx(clock.wall() + 1)
        clock.advance(1)
        await turns.reach(2)


async def test_without_a_period_only_a_wake_makes_a_turn(
    catalog: Catalog, clock: ManualClock
) -> None:
    turns = Turns()
    async with going(catalog, clock, turns, period_s=None, lasts=False) as loop:
        clock.advance(1e9)
        await turns.stay()
        loop.wake()
        await turns.reach(1)
        await turns.stay()


async def test_a_wake_during_a_turn_makes_one_more(catalog: Catalog, clock: ManualClock) -> None:
    turns = Turns()

    def once(loop: Loop) -> None:
        if turns.count == 1:
            loop.wake()

    turns.does = once
    async with going(catalog, clock, turns, period_s=60, lasts=False):
        await turns.reach(2)
        await turns.stay()


async def test_what_was_heard_makes_no_further_turn(catalog: Catalog, clock: ManualClock) -> None:
    turns = Turns()

    def covers(loop: Loop) -> None:
        loop.wake()
        loop.heard()

    turns.does = covers
    async with going(catalog, clock, turns, period_s=60, lasts=False):
        await turns.reach(1)
        await turns.stay()


async def test_a_turn_may_ask_for_the_next_one_sooner(catalog: Catalog, clock: ManualClock) -> None:
    turns = Turns()
    turns.does = lambda loop: 5.0
    async with going(catalog, clock, turns, period_s=60, lasts=False):
        await turns.reach(1)
        clock.advance(5)
        await turns.reach(2)


async def test_a_failure_is_told_and_tried_again_after_pauses_that_grow(
    catalog: Catalog, clock: ManualClock
) -> None:
    turns = Turns()

    def fails(loop: Loop) -> None:
        raise Unavailable("the disk sulks")

    turns.does = fails
    async with going(catalog, clock, turns, period_s=60, lasts=True) as loop:
        await turns.reach(1)
        for number, pause in enumerate((1, 2, 4, 8), 1):
            loop.wake()  # does not help
            clock.advance(pause - 0.5)
            await turns.stay()
            report = loop.report()
            assert report.state == "rests"
            assert report.failures == number
            assert report.last_error == "the disk sulks"
            assert report.failed_at is not None
            assert report.last_run is None
            clock.advance(0.5)
            await turns.reach(number + 1)
        turns.does = lambda loop: None
        clock.advance(16)
        await turns.reach(6)
        await turns.stay()
        report = loop.report()
        assert (report.state, report.failures) == ("waits", 0)
        assert report.last_error, "kept, to be shown with its time"


@pytest.mark.slow
async def test_pauses_grow_to_a_limit(catalog: Catalog, clock: ManualClock) -> None:
    turns = Turns()

    def fails(loop: Loop) -> None:
        raise OSError(5, "Input/output error")

    turns.does = fails
    async with going(catalog, clock, turns, period_s=60, lasts=False):
        for number in range(1, 12):
            await turns.reach(number)
            await turns.stay()
            clock.advance(module.LONGEST_REST_S)


async def test_a_period_goes_on_over_restarts(catalog: Catalog, clock: ManualClock) -> None:
    turns = Turns()
    async with going(catalog, clock, turns, period_s=MONTH, lasts=True):
        await turns.reach(1)
        await turns.stay()
    clock.advance(MONTH - 10)
    async with going(catalog, clock, turns, period_s=MONTH, lasts=True) as loop:
        await turns.stay()
        assert loop.report().last_run is not None
        clock.advance(10)
        await turns.reach(2)


async def test_what_does_not_last_begins_anew(catalog: Catalog, clock: ManualClock) -> None:
    turns = Turns()
    for count in (1, 2):
        async with going(catalog, clock, turns, period_s=MONTH, lasts=False):
            await turns.reach(count)


async def test_a_clock_that_was_set_back_is_not_waited_for(
    catalog: Catalog, clock: ManualClock
) -> None:
    turns = Turns()
    async with going(catalog, clock, turns, period_s=MONTH, lasts=True):
        await turns.reach(1)
        await turns.stay()
    earlier = ManualClock(clock.wall() - 10 * 365 * 86_400)
    async with going(catalog, earlier, turns, period_s=MONTH, lasts=True):
        await turns.reach(2)


async def test_a_turn_that_was_cut_off_goes_on_where_it_was(
    catalog: Catalog, clock: ManualClock
) -> None:
    class Long(Turns):
        async def __call__(self, loop: Loop) -> float | None:
            await loop.keep(b"half")
            await super().__call__(loop)
            await asyncio.Event().wait()
            return None

    long, after = Long(), Turns()
    async with going(catalog, clock, long, period_s=MONTH, lasts=True):
        await long.begin(1)
    async with going(catalog, clock, after, period_s=MONTH, lasts=True):
        await after.reach(1)
    assert after.places == [b"half"]


async def test_a_place_that_cannot_be_read_is_the_beginning(
    catalog: Catalog, clock: ManualClock
) -> None:
    catalog.write(lambda db: folders.kv_set(db, "loop:test", b"\xc1")).result()
    turns = Turns()
    async with going(catalog, clock, turns, period_s=MONTH, lasts=True):
        await turns.reach(1)
    assert turns.places == [b""]


async def test_what_a_turn_is_at_can_be_seen_until_it_ends(
    catalog: Catalog, clock: ManualClock
) -> None:
    ends = asyncio.Event()

    class Slow(Turns):
        async def __call__(self, loop: Loop) -> float | None:
            loop.say("reads", 3, 10)
            await super().__call__(loop)
            await ends.wait()
            return None

    slow = Slow()
    async with going(catalog, clock, slow, period_s=60, lasts=False) as loop:
        await slow.begin(1)
        assert loop.report().state == "works"
        assert loop.report().doing == Doing("reads", 3, 10)
        ends.set()
        await slow.stay()
        assert loop.report().state == "waits"
        assert loop.report().doing == Doing()
    assert loop.report().state == "stopped"


async def test_threads_of_a_stopped_loop_are_told(catalog: Catalog, clock: ManualClock) -> None:
    """Or its end would wait for as long as they work."""

    class Threaded(Turns):
        async def __call__(self, loop: Loop) -> float | None:
            await super().__call__(loop)
            with ThreadPoolExecutor(1) as pool:
                assert await in_thread(pool, loop.stopped.wait, 10)
            return None

    turns = Threaded()
    async with asyncio.timeout(5):
        async with going(catalog, clock, turns, period_s=60, lasts=False) as loop:
            await turns.begin(1)
            assert not loop.stopped.is_set()
    assert loop.stopped.is_set()


async def test_a_bug_in_one_turn_ends_no_other_loop(catalog: Catalog, clock: ManualClock) -> None:
    good, bad = Turns(), Turns()

    def fails(loop: Loop) -> None:
        raise RuntimeError("a bug")

    bad.does = fails
    loops = Loops(catalog, clock)
    loops.add("bad", bad, period_s=60)
    loops.add("good", good, period_s=60)
    task = asyncio.create_task(loops.run())
    try:
        await bad.reach(1)
        for count in (1, 2, 3):
            await good.reach(count)
            await good.stay()
            clock.advance(60)
        await bad.reach(3)
        assert [report.name for report in loops.reports()] == ["bad", "good"]
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
