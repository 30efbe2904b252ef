from __future__ import annotations

import hashlib
import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pstore.ids import Tag
from p2pstore.swarm.sweep import MARGIN_S, PART_TAGS, Sweep

HOUR = 3600.0
NOW = 1_800_000_000.0


TAGS = [Tag(hashlib.sha256(b"%d" % i).digest()[:20]) for i in range(10 * PART_TAGS)]


def tags(count: int) -> list[Tag]:
    return TAGS[:count]


def sweep(count: int, now: float = NOW) -> tuple[Sweep, list[list[Tag]]]:
    made = Sweep(now, every_s=12 * HOUR, lifetime_s=24 * HOUR)
    return made, made.lay_out(tags(count))


@pytest.mark.parametrize(
    ("count", "parts"), [(0, 1), (1, 1), (PART_TAGS, 1), (PART_TAGS + 1, 2), (10 * PART_TAGS, 16)]
)
def test_parts_follow_the_number_of_tags(count: int, parts: int) -> None:
    made, laid = sweep(count)
    assert len(laid) == parts
    assert list(itertools.chain(*laid)) == sorted(tags(count))
    assert made.keys == count
    assert made.due(NOW) == [part for part in range(parts) if laid[part]]


def test_a_part_is_due_again_after_its_time() -> None:
    made, _ = sweep(10)
    made.told(0, NOW, 1.0)
    assert made.due(NOW + 12 * HOUR - 1) == []
    assert made.next_due(NOW + 12 * HOUR - 1) == 1
    assert made.due(NOW + 12 * HOUR) == [0]
    assert made.next_due(NOW + 13 * HOUR) == 0


def test_the_part_told_longest_ago_comes_first() -> None:
    made, laid = sweep(3 * PART_TAGS)
    for i, part in enumerate([2, 0, 3, 1]):
        made.told(part, NOW + i, 1.0)
    assert made.due(NOW + 13 * HOUR) == [2, 0, 3, 1]
    assert made.oldest == NOW
    assert len(laid) == 4


def test_times_from_a_clock_that_was_wrong_say_nothing() -> None:
    made, _ = sweep(10)
    made.told(0, NOW + 10 * 365 * 24 * HOUR, 1.0)
    assert made.due(NOW) == [0]


def test_more_or_fewer_parts_inherit_when_they_were_told() -> None:
    made, _ = sweep(PART_TAGS)
    made.told(0, NOW, 1.0)
    made.lay_out(tags(4 * PART_TAGS))
    assert made.due(NOW + 1) == []
    made.told(1, NOW - 5, 1.0)
    made.lay_out(tags(PART_TAGS))
    assert made.oldest == NOW - 5


def test_an_outlook_tells_when_a_sweep_ends() -> None:
    made, laid = sweep(3 * PART_TAGS)
    assert made.outlook(NOW).due == len(laid)
    made.told(0, NOW, 60.0)
    assert made.outlook(NOW) == (3, NOW + 180, 0)


def test_parts_that_will_be_forgotten_are_late() -> None:
    made, _ = sweep(4 * PART_TAGS)
    pace = (24 * HOUR - MARGIN_S) / 4
    made.told(0, NOW, pace)
    assert made.outlook(NOW).late == 0
    made, _ = sweep(4 * PART_TAGS)
    made.told(0, NOW, 2 * pace)
    assert made.outlook(NOW).late > 0


def test_what_was_forgotten_while_the_node_was_off_is_not_late() -> None:
    made, _ = sweep(4 * PART_TAGS)
    for part in range(8):
        made.told(part % 4, NOW - 48 * HOUR, 60.0)
    assert made.outlook(NOW).late == 0
    assert made.outlook(NOW + 24 * HOUR).late == 4


def test_progress_is_saved() -> None:
    made, laid = sweep(9 * PART_TAGS)
    made.told(3, NOW, 1.0)
    again = Sweep(NOW, every_s=12 * HOUR, lifetime_s=24 * HOUR)
    assert again.load(made.encode(b"mark"), b"mark")
    assert again.lay_out(tags(9 * PART_TAGS)) == laid
    assert 3 not in again.due(NOW + 1)
    assert len(again.due(NOW + 1)) == 15


def test_progress_under_another_mark_is_void() -> None:
    made, _ = sweep(9 * PART_TAGS)
    assert not made.load(made.encode(b"mark"), b"other")


def test_a_short_sweep_is_rather_made_anew() -> None:
    made, _ = sweep(2 * PART_TAGS)
    assert not made.load(made.encode(b""), b"")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xc1",
        msgspec.msgpack.encode([1, b"", 3, [0] * 7]),
        msgspec.msgpack.encode([2, b"", 3, [0] * 8]),
        msgspec.msgpack.encode([1, b"", 40, [0] * 8]),
    ],
)
def test_damaged_notes_are_no_notes(raw: bytes) -> None:
    made, _ = sweep(10)
    assert not made.load(raw, b"")


@settings(max_examples=20)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=4))
def test_whatever_changes_each_tag_is_in_one_part_and_none_is_told_too_late(
    counts: list[int],
) -> None:
    made = Sweep(NOW, every_s=12 * HOUR, lifetime_s=24 * HOUR)
    told: dict[Tag, float] = {}
    now = NOW
    for count in counts:
        laid = made.lay_out(tags(count))
        assert list(itertools.chain(*laid)) == sorted(tags(count))
        for part in made.due(now):
            made.told(part, now, 1.0)
            told |= dict.fromkeys(laid[part], now)
        for part, members in enumerate(laid):
            for tag in members:
                assert made.part_of(tag) == part
        now += made.next_due(now)
        # What was here all the time never waits longer than a turn.
        always = tags(min(counts))
        assert all(now - told[tag] <= 12 * HOUR for tag in always)
