from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import Lapsed, to_drop

DAY = 86_400_000
lapsed = st.builds(
    Lapsed,
    bundle=st.binary(min_size=1, max_size=2),
    size=st.integers(1, 100),
    lease_until_ms=st.integers(0, 10),
    seen_at=st.integers(0, 60 * DAY),
)


def one(number: int, *, seen_at: int = 0, ended: int = 0) -> Lapsed:
    return Lapsed(bytes([number]), 10, ended, seen_at)


def test_nothing_goes_while_there_is_room() -> None:
    assert to_drop([one(1)], age=99 * DAY, missing=0) == []


def test_nothing_goes_before_thirty_days() -> None:
    assert to_drop([one(1)], age=30 * DAY - 1, missing=10) == []
    assert to_drop([one(1)], age=30 * DAY, missing=10) == [one(1)]


def test_the_oldest_leases_go_first_and_no_more_than_is_needed() -> None:
    ones = [one(1, ended=3), one(2, ended=1), one(3, ended=2)]
    assert to_drop(ones, age=40 * DAY, missing=11) == [ones[1], ones[2]]


@given(st.lists(lapsed, max_size=8), st.integers(0, 90 * DAY), st.integers(-50, 500))
def test_only_what_is_due_and_as_little_as_will_do(
    ones: list[Lapsed], age: int, missing: int
) -> None:
    chosen = to_drop(ones, age=age, missing=missing)
    assert all(age - one.seen_at >= 30 * DAY for one in chosen)
    if chosen:
        assert sum(one.size for one in chosen[:-1]) < missing
