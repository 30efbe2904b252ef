"""Which small bundles are merged, and when the new one is as safe as they are."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import Copy, Holder, Limits, Small, counted, is_as_safe, merges
from p2pstore.policy.merging import FEWEST, REST_S, SMALL_BYTES

NOW = 1_700_000_000.0
DAY = 86_400.0
LIMITS = Limits(16 << 20, 16_384, 1024)


def small(number: int, size: int = 1000, **changes: object) -> Small:
    made = Small(number.to_bytes(32, "big"), "kin", size, 1 + size // 5000, 1, NOW - 2 * DAY)
    return made._replace(**changes)  # type: ignore[arg-type]


def plan(bundles: list[Small], limits: Limits = LIMITS, most: int = 100) -> list[tuple[Small, ...]]:
    return merges(bundles, limits, now=NOW, most=most)


def test_many_small_ones_become_one() -> None:
    bundles = [small(i) for i in range(20)]
    assert [sorted(merge) for merge in plan(bundles)] == [bundles]


def test_few_are_left_alone() -> None:
    assert plan([small(i) for i in range(FEWEST - 1)]) == []
    assert len(plan([small(i) for i in range(FEWEST)])) == 1


@pytest.mark.parametrize(
    "changes",
    [{"size": SMALL_BYTES}, {"since": NOW - REST_S + 1}, {"since": NOW + DAY}, {"kin": "other"}],
)
def test_what_is_large_or_new_or_of_another_kin_is_left_out(changes: dict) -> None:
    odd = small(99, changes.pop("size", 1000), **changes)
    (merge,) = plan([*(small(i) for i in range(FEWEST)), odd])
    assert odd not in merge


def test_one_that_is_larger_than_the_others_together_waits_for_more() -> None:
    tiny = [small(i, 100) for i in range(FEWEST)]
    assert plan([*tiny[1:], small(99, 100_000)]) == []
    (merge,) = plan([*tiny, small(99, 100_000)])
    assert sorted(merge) == tiny


def test_those_that_save_the_most_come_first() -> None:
    few = [small(i, kin="few") for i in range(FEWEST)]
    many = [small(100 + i, kin="many") for i in range(FEWEST + 5)]
    assert [len(merge) for merge in plan([*few, *many])] == [FEWEST + 5, FEWEST]
    assert [len(merge) for merge in plan([*few, *many], most=1)] == [FEWEST + 5]
    assert plan([*few, *many], most=0) == []


bundles = st.lists(
    st.tuples(
        st.integers(0, 2 * SMALL_BYTES),
        st.integers(1, 3000),
        st.integers(1, 200),
        st.sampled_from(["a", "b"]),
        st.sampled_from([0.0, DAY, 30 * DAY, -DAY]),
    ),
    max_size=80,
).map(
    lambda made: [
        Small(i.to_bytes(32, "big"), kin, size, count, names, NOW - age)
        for i, (size, count, names, kin, age) in enumerate(made)
    ]
)


@given(bundles, st.integers(0, 5))
def test_every_plan_keeps_the_limits(given_bundles: list[Small], most: int) -> None:
    found = plan(given_bundles, most=most)
    assert len(found) <= most
    chosen = [one for merge in found for one in merge]
    assert len(set(chosen)) == len(chosen), "none is merged twice"
    assert set(chosen) <= set(given_bundles)
    for merge in found:
        size = sum(one.bytes for one in merge)
        assert len(merge) >= FEWEST
        assert len({one.kin for one in merge}) == 1
        assert size <= LIMITS.bytes
        assert sum(one.blocks for one in merge) <= LIMITS.blocks
        assert sum(one.names for one in merge) <= LIMITS.names
        assert all(one.bytes < SMALL_BYTES and NOW - one.since >= REST_S for one in merge)
        assert all(2 * one.bytes <= size for one in merge), "each byte's bundle at least doubles"


# -- safe enough -----------------------------------------------------------------------------------


def holder(name: str, **changes: object) -> Holder:
    return Holder(name.encode(), "device", last_seen=NOW)._replace(**changes)  # type: ignore[arg-type]


def copy(name: str, *, seen: float = 0.0, proved: bool = True, **changes: object) -> Copy:
    who = holder(name, last_seen=NOW - seen, **changes)
    return Copy(who, NOW - DAY if proved else None, NOW + 100 * DAY)


def safe(new: list[Copy], *replaced: list[Copy], low: int = 2, eligible: int = 5) -> bool:
    return is_as_safe(new, replaced, min_copies=low, eligible=eligible, now=NOW)


def test_it_needs_as_many_copies_as_the_best_copied_of_the_old_ones() -> None:
    old = [copy("a"), copy("b"), copy("c")]
    assert not safe([copy("a"), copy("d")], [copy("a")], old)
    assert safe([copy("a"), copy("d"), copy("e")], [copy("a")], old)


def test_and_as_many_as_there_should_be() -> None:
    assert not safe([copy("a")], [copy("a")])
    assert safe([copy("a"), copy("b")], [copy("a")])
    assert not safe([], [])


def test_where_nobody_else_is_nobody_is_waited_for() -> None:
    assert safe([], [], eligible=0)
    assert safe([copy("a")], [copy("a")], eligible=1)
    assert not safe([], [copy("a")], eligible=0)


def test_a_copy_whose_holder_is_away_may_come_back() -> None:
    away = copy("c", seen=3 * DAY)
    assert not safe([copy("a"), copy("b")], [copy("a"), copy("b"), away])
    gone = copy("c", seen=20 * DAY)
    assert safe([copy("a"), copy("b")], [copy("a"), copy("b"), gone])


def test_copies_of_the_new_one_count_only_when_proved_and_there() -> None:
    old = [copy("a"), copy("b")]
    assert not safe([copy("a"), copy("b", proved=False)], old)
    assert not safe([copy("a"), copy("b", seen=2 * DAY)], old)


def test_friends_who_do_not_count_yet_are_not_worth_less_than_before() -> None:
    friend = {"role": "friend", "owner": b"f"}
    old = [copy("a"), copy("b"), copy("f", **friend)]
    assert not safe([copy("a"), copy("b")], old)
    assert safe([copy("a"), copy("b"), copy("f", **friend)], old)


copies_of = st.lists(
    st.builds(
        lambda name, seen, proved, role: copy(
            name, seen=seen, proved=proved, role=role, owner=name[:1].encode()
        ),
        st.sampled_from(["a", "b", "c", "d", "e"]),
        st.sampled_from([0.0, 2 * DAY, 20 * DAY]),
        st.booleans(),
        st.sampled_from(["device", "friend"]),
    ),
    max_size=6,
    unique_by=lambda made: made.holder.node,
)


@given(copies_of, st.lists(copies_of, max_size=4), st.integers(1, 4), st.integers(0, 6))
def test_no_block_has_fewer_copies_that_count_than_before(
    new: list[Copy], replaced: list[list[Copy]], low: int, eligible: int
) -> None:
    if is_as_safe(new, replaced, min_copies=low, eligible=eligible, now=NOW):
        has = counted(new, NOW)
        assert has >= max((counted(old, NOW) for old in replaced), default=0)
        assert has >= min(low, eligible)
