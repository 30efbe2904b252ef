"""Days that a wrong clock does not make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.maintenance.age import Age, Steady
from p2pstore.store import Catalog

from .nodes import DAY_MS, JumpingClock

DAY_S = DAY_MS / 1000


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.sqlite") as catalog:
        yield catalog


def test_each_that_counts_has_a_count_of_its_own(catalog: Catalog) -> None:
    clock = JumpingClock()
    first = Age(catalog, clock, key="first")
    first.now()
    clock.advance(DAY_S)
    assert first.now() == DAY_MS
    assert Age(catalog, clock, key="second").now() == 0


def test_it_goes_with_the_clock(catalog: Catalog) -> None:
    clock = JumpingClock()
    steady = Steady(catalog, clock, key="k")
    for _ in range(3):
        assert steady.now_ms() == int(clock.wall() * 1000)
        clock.advance(DAY_S)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_jump_ahead_makes_nothing_older_than_a_week(catalog: Catalog, restarts: bool) -> None:
    clock = JumpingClock()
    steady = Steady(catalog, clock, key="k")
    before = steady.now_ms()
    clock.jump(400 * DAY_S)
    if restarts:
        steady = Steady(catalog, clock, key="k")
    assert steady.now_ms() - before <= 7 * DAY_MS


def test_a_clock_that_was_ahead_and_is_set_right_is_followed(catalog: Catalog) -> None:
    clock = JumpingClock()
    clock.jump(400 * DAY_S)
    steady = Steady(catalog, clock, key="k")
    steady.now_ms()
    clock.jump(-400 * DAY_S)
    assert steady.now_ms() == int(clock.wall() * 1000)
