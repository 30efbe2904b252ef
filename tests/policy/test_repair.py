from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pstore.policy import (
    Action,
    BackOff,
    Condition,
    Copy,
    Holder,
    counted,
    judge,
    to_repair,
)

NOW, DAY = 1e9, 86_400.0


def copy(name: str, seen: float = 0.0, *, since: float = 90.0, prefix: str = "") -> Copy:
    """A copy at a device that was seen so many days ago, received so many days ago."""
    holder = Holder(name.encode(), "device", prefix=prefix, last_seen=NOW - seen * DAY)
    return Copy(holder, NOW - DAY, NOW + 100 * DAY, since=NOW - since * DAY)


def friend(name: str, *, vetted: bool) -> Copy:
    holder = Holder(name.encode(), "friend", owner=name.encode(), vetted=vetted, last_seen=NOW)
    return Copy(holder, NOW - DAY, NOW + 100 * DAY, since=NOW)


def condition(*copies: Copy, is_local: bool = True, **change: object) -> Condition:
    base = Condition(b"b", is_local, copies, min_copies=2, target=4, since=NOW - 100 * DAY)
    return base._replace(**change)  # type: ignore[arg-type]


def action(*copies: Copy, is_local: bool = True, **change: object) -> Action:
    return judge(condition(*copies, is_local=is_local, **change), NOW).action


FOUR = [copy(name) for name in "abcd"]


def test_enough_copies_need_nothing() -> None:
    assert action(*FOUR) is Action.NOTHING
    assert action(*FOUR, is_local=False) is Action.NOTHING


def test_what_is_missing_is_pushed_from_here_or_brought_back_first() -> None:
    assert judge(condition(*FOUR[:1]), NOW)[:3] == (Action.PUSH, 1, 3)
    assert judge(condition(*FOUR[:1], is_local=False), NOW)[:3] == (Action.BRING_BACK, 1, 3)


def test_a_copy_is_replaced_when_it_is_suspect_not_before() -> None:
    assert action(*FOUR[:3], copy("d", 0.9)) is Action.NOTHING
    assert judge(condition(*FOUR[:3], copy("d", 1.1)), NOW)[:3] == (Action.PUSH, 3, 1)


def test_what_nobody_has_now_waits_for_them_to_come_back() -> None:
    assert action(copy("a", 2), is_local=False) is Action.AWAIT
    assert action(is_local=False) is Action.AWAIT
    assert action(copy("a", 2)) is Action.PUSH


def test_friends_in_their_vetting_are_not_sent_for_twice() -> None:
    new = [friend(name, vetted=False) for name in "xyz"]
    assert judge(condition(copy("a"), copy("b"), *new), NOW)[:3] == (Action.NOTHING, 2, 0)
    # But what is needed at least has to count.
    assert judge(condition(copy("a"), *new), NOW)[:3] == (Action.PUSH, 1, 1)


def test_a_failed_bundle_rests_and_longer_each_time() -> None:
    once = BackOff().failed(NOW)
    assert action(*FOUR[:1], back_off=once) is Action.REST
    assert not once.is_resting(NOW + 60)
    twice = once.failed(NOW)
    assert twice.is_resting(NOW + 60)
    many = BackOff()
    for _ in range(5000):
        many = many.failed(NOW)
    assert many.is_resting(NOW + 6 * 3600 - 1)
    assert not many.is_resting(NOW + 6 * 3600)


def test_a_rest_ends_when_the_clock_was_set_back() -> None:
    assert not BackOff().failed(NOW).is_resting(NOW - 10 * 365 * DAY)


def test_one_bad_bundle_does_not_hold_up_others() -> None:
    bad = condition(bundle=b"bad", back_off=BackOff().failed(NOW))
    good = condition(*FOUR[:3], bundle=b"good")
    assert [c.bundle for c, _ in to_repair([bad, good], NOW)] == [b"good"]


def test_the_last_copy_at_another_comes_first_then_the_fewest_then_the_oldest() -> None:
    conditions = [
        condition(*FOUR[:2], bundle=b"two", is_local=False),
        condition(*FOUR[:1], bundle=b"one, young", since=NOW),
        condition(*FOUR[:1], bundle=b"one, old"),
        condition(bundle=b"none"),
        condition(*FOUR[:1], bundle=b"last", is_local=False, since=NOW),
        condition(*FOUR, bundle=b"enough"),
        condition(bundle=b"gone", is_local=False),
    ]
    order = [c.bundle for c, _ in to_repair(conditions, NOW)]
    assert order == [b"last", b"none", b"one, old", b"one, young", b"two"]


def test_two_copies_too_many_are_left_alone_for_ever() -> None:
    six = [*FOUR, copy("e"), copy("f")]
    verdict = judge(condition(*six, surplus_since=NOW - 900 * DAY), NOW)
    assert verdict == (Action.NOTHING, 6, 0, (), False)


def test_more_are_released_after_two_weeks_newest_first() -> None:
    eight = [copy(name, since=days) for days, name in enumerate("abcdefgh", start=20)]
    assert judge(condition(*eight), NOW)[0::4] == (Action.NOTHING, True)
    assert action(*eight, surplus_since=NOW - 13 * DAY) is Action.NOTHING
    verdict = judge(condition(*eight, surplus_since=NOW - 14 * DAY), NOW)
    assert verdict.action is Action.RELEASE
    assert [holder.node for holder in verdict.release] == [b"a", b"b"]


def test_only_holders_that_are_there_are_asked_to_release() -> None:
    away = copy("z", 3, since=1)
    seven = [copy(name, since=days) for days, name in enumerate("abcdefg", start=20)]
    verdict = judge(condition(away, *seven, surplus_since=NOW - 14 * DAY), NOW)
    assert [holder.node for holder in verdict.release] == [b"a"]


def test_the_only_copy_out_of_the_house_is_not_released() -> None:
    home = [copy(name, since=50, prefix="home") for name in "abcdef"]
    verdict = judge(
        condition(copy("z", since=1, prefix="work"), *home, surplus_since=NOW - 14 * DAY), NOW
    )
    assert [holder.node for holder in verdict.release] == [b"a"]


def test_a_flapping_holder_causes_no_storm() -> None:
    """It is away every other week for a year: the copies stop at one more than there are."""
    copies = list(FOUR)
    pushed = 0
    for week in range(52):
        flapping = copy("a", seen=3.0 if week % 2 else 0.0)
        copies[0] = flapping
        wanted = judge(condition(*copies), NOW).wanted
        copies += [copy(f"new {pushed + n}") for n in range(wanted)]
        pushed += wanted
    assert pushed == 1


HOLDERS = st.builds(
    Holder,
    node=st.binary(min_size=1, max_size=1),
    role=st.sampled_from(["device", "friend"]),
    owner=st.sampled_from([b"x", b"y"]),
    prefix=st.sampled_from(["", "home", "work"]),
    vetted=st.booleans(),
    last_seen=st.floats(NOW - 20 * DAY, NOW),
)
COPIES = st.lists(
    st.builds(
        Copy,
        HOLDERS,
        proved_at=st.none() | st.just(NOW - DAY),
        lease_until=st.just(NOW + DAY),
        since=st.floats(NOW - 90 * DAY, NOW),
    ),
    max_size=10,
    unique_by=lambda c: c.holder.node,
)
CONDITIONS = st.builds(
    Condition,
    bundle=st.binary(min_size=2, max_size=2),
    is_local=st.booleans(),
    copies=COPIES,
    min_copies=st.just(1),
    target=st.integers(1, 4),
    since=st.floats(NOW - 90 * DAY, NOW),
    back_off=st.sampled_from([BackOff(), BackOff(3, NOW + DAY / 8)]),
    surplus_since=st.none() | st.floats(NOW - 30 * DAY, NOW),
)


@pytest.mark.slow
@given(CONDITIONS)
def test_nothing_is_released_that_is_needed(one: Condition) -> None:
    verdict = judge(one, NOW)
    released = {holder.node for holder in verdict.release}
    kept = [c for c in one.copies if c.holder.node not in released]
    assert counted(kept, NOW) >= min(verdict.live, one.target + 2)
    if verdict.live < one.target:
        assert not released


@pytest.mark.slow
@given(CONDITIONS)
def test_work_is_asked_for_when_and_only_when_too_little_is_there(one: Condition) -> None:
    verdict = judge(one, NOW)
    assert verdict.live == counted(one.copies, NOW)
    if verdict.action in (Action.PUSH, Action.BRING_BACK):
        assert 0 < verdict.wanted <= one.target - verdict.live
        assert (verdict.action is Action.PUSH) == one.is_local
    if verdict.live < one.min_copies:
        assert verdict.action not in (Action.NOTHING, Action.RELEASE)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(CONDITIONS, max_size=4))
def test_the_order_of_work_is_that_of_danger(conditions: list[Condition]) -> None:
    work = to_repair(conditions, NOW)
    lives = [verdict.live for c, verdict in work if c.is_local or verdict.live != 1]
    assert lives == sorted(lives)
    last = [not c.is_local and verdict.live == 1 for c, verdict in work]
    assert last == sorted(last, reverse=True)
    assert work == to_repair(list(reversed(conditions)), NOW) or len(
        {c.bundle for c in conditions}
    ) < len(conditions)
