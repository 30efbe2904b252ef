from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import Evictable, room_for_batch, room_wanted, to_evict

NOW, DAY, GB = 1e9, 86_400.0, 10**9


def used(name: str, days: float, size: int = 10, *, is_pinned: bool = False) -> Evictable:
    return Evictable(name.encode(), size, NOW - days * DAY, is_pinned)


def names(bundles: list[Evictable], room: int) -> str:
    return "".join(b.bundle.decode() for b in to_evict(bundles, room, NOW))


def test_the_longest_unused_go_first_and_no_more_than_needed() -> None:
    bundles = [used("a", 3), used("b", 300), used("c", 30)]
    assert names(bundles, 1) == "b"
    assert names(bundles, 11) == "bc"
    assert names(bundles, 999) == "bca"
    assert names(bundles, 0) == names(bundles, -1) == ""


def test_of_about_the_same_age_the_larger_go_first() -> None:
    assert names([used("a", 100, 5), used("b", 90, 50)], 1) == "b"


def test_pinned_and_lately_used_ones_stay() -> None:
    assert names([used("a", 300, is_pinned=True), used("b", 0.9), used("c", -9)], 99) == ""


def test_what_the_last_one_made_needless_stays() -> None:
    assert names([used("a", 300, 5), used("b", 3, 100)], 50) == "b"
    assert names([used("a", 300, 5), used("b", 3, 100)], 105) == "ab"


def test_room_is_made_late_and_then_for_a_while() -> None:
    disk = {"keep_free": 5 * GB, "total": 100 * GB}
    assert room_wanted(free=10 * GB, **disk) == 0
    assert room_wanted(free=10 * GB - 1, **disk) == 5 * GB + 1
    assert room_wanted(free=0, **disk) == 15 * GB


def test_waiting_files_find_room_afterwards() -> None:
    wanted = room_wanted(free=9 * GB, keep_free=5 * GB, total=100 * GB, waiting=20 * GB)
    assert room_for_batch(20 * GB, 9 * GB + wanted, 5 * GB)


@given(
    st.lists(
        st.builds(
            Evictable,
            st.binary(min_size=2, max_size=2),
            st.integers(0, 100),
            st.floats(NOW - 999 * DAY, NOW + DAY),
            st.booleans(),
        ),
        max_size=12,
        unique_by=lambda b: b.bundle,
    ),
    st.integers(-10, 600),
)
def test_enough_goes_if_it_can_and_nothing_of_it_is_needless(
    bundles: list[Evictable], room: int
) -> None:
    chosen = to_evict(bundles, room, NOW)
    able = [b for b in bundles if not b.is_pinned and NOW - b.last_use >= DAY]
    assert set(chosen) <= set(able)
    assert sum(b.size for b in chosen) >= min(room, sum(b.size for b in able))
    if chosen and sum(b.size for b in chosen) >= room:
        assert sum(b.size for b in chosen) - min(b.size for b in chosen) < room
