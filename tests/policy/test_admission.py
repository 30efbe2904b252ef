from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import admit_put, may_drop_held, room_for_batch, why_no_lock

BYTES = st.integers(0, 1 << 50)
DAY = 86_400.0


@given(BYTES, BYTES, BYTES, BYTES, BYTES)
def test_what_is_admitted_fits_offer_and_disk(
    size: int, offer: int, used: int, free: int, keep_free: int
) -> None:
    admitted = admit_put(size, offer, used, free, keep_free) is None
    assert admitted == (offer > 0 and used + size <= offer and free - size >= keep_free)


def test_the_last_byte_of_offer_and_room_may_be_used() -> None:
    assert admit_put(10, 100, 90, 30, 20) is None
    assert admit_put(11, 100, 90, 99, 20) == "beyond the offer"
    assert admit_put(10, 100, 90, 29, 20) == "the disk is nearly full"
    assert admit_put(0, 0, 0, 99, 0) == "no room is offered to this group"
    assert admit_put(-1, 100, 0, 99, 0) is not None


def test_a_batch_needs_twice_its_size() -> None:
    assert room_for_batch(10, 70, 50)
    assert not room_for_batch(10, 69, 50)


@pytest.mark.parametrize(
    ("change", "granted"),
    [
        ({}, True),
        ({"is_sealed": False}, False),
        ({"in_trash": True}, False),
        ({"being_removed": True}, False),
        ({"lease_left_s": 59 * DAY}, False),
        ({"lease_left_s": 59 * DAY, "renews": True}, True),
    ],
)
def test_a_lock_is_promised_for_what_will_stay(change: dict[str, bool], granted: bool) -> None:
    facts: dict[str, object] = {
        "is_sealed": True,
        "in_trash": False,
        "being_removed": False,
        "lease_left_s": 60 * DAY,
        "renews": False,
    }
    assert (why_no_lock(**{**facts, **change}) is None) == granted  # type: ignore[arg-type]


def test_a_holder_drops_late_and_only_under_pressure() -> None:
    def may(after_days: float, locked: bool = False, short: bool = True) -> bool:
        now = 1e9
        until = now - after_days * DAY
        return may_drop_held(lease_until=until, now=now, locked=locked, room_is_short=short)

    assert may(31)
    assert not may(29)
    assert not may(31, locked=True)
    assert not may(31, short=False)
