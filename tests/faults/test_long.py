"""The ways of `make faults` that the short run has no tests of: a few points of each."""

from __future__ import annotations

import asyncio

import pytest

from tests.faults.folder import flips
from tests.faults.swarms import evictions, liars
from tests.faults.table import Order, Row, place

SEED = 20_261_121


@pytest.mark.slow
def test_each_flipped_bit_is_found_and_none_is_delivered() -> None:
    row = flips(Order(SEED, 4))
    assert not row.lost
    assert row.counts["found"] == row.points == 4


@pytest.mark.slow
def test_devices_that_evict_at_once_leave_enough() -> None:
    with place(in_memory=True) as base:
        row = asyncio.run(evictions(base, Order(SEED, 2)))
    assert not row.lost
    assert row.counts["copies given up"], "nobody came so far as to harm anything"


@pytest.mark.slow
def test_files_come_from_the_one_holder_that_does_not_lie() -> None:
    with place(in_memory=True) as base:
        row = asyncio.run(liars(base, Order(SEED, 4)))
    assert not row.lost
    assert row.counts["came from the honest one"] == 4


def test_losses_of_all_parts_are_told() -> None:
    def fails() -> None:
        raise AssertionError("a file is gone")

    whole, part = Row("kills"), Row("kills")
    part.attempt("point 7", fails)
    part.attempt("point 8", lambda: None)
    whole.add(part)
    whole.add(part)
    assert whole.points == 4
    assert whole.lost == ["point 7: AssertionError: a file is gone"] * 2
    assert "2 lost" in whole.line(1.0)


def test_time_ends_a_way() -> None:
    assert list(Order(1, 3).numbers()) == [0, 1, 2]
    assert list(Order(1, 3, until=0.0).numbers()) == []
