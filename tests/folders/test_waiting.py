from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.folders.waiting import SLACK, Waiting
from p2pstore.placement import Identity


def identity(size: int = 1) -> Identity:
    return Identity(1, size, 0, 0)


def names(waiting: Waiting, now: float, limit: int = 1000) -> list[bytes]:
    return [path for path, _ in waiting.due(now, limit)]


def test_a_path_is_due_when_it_stayed_the_same_for_settle() -> None:
    waiting = Waiting()
    waiting.observe(b"a", identity(), now=100, settle=5)
    waiting.observe(b"a", identity(), now=103, settle=5)
    assert names(waiting, 104.9) == []
    assert names(waiting, 105) == [b"a"]
    assert len(waiting) == 0


def test_a_change_begins_anew() -> None:
    waiting = Waiting()
    waiting.observe(b"a", identity(1), now=100, settle=5)
    waiting.observe(b"a", identity(2), now=104, settle=5)
    assert names(waiting, 105) == []
    assert names(waiting, 109) == [b"a"]


def test_an_event_begins_anew_although_all_looks_the_same() -> None:
    waiting = Waiting()
    waiting.observe(b"a", identity(), now=100, settle=5)
    waiting.touch(b"a", now=104, settle=5)
    assert names(waiting, 105) == []
    assert names(waiting, 109) == [b"a"]


def test_a_storm_of_events_needs_little_memory() -> None:
    waiting = Waiting()
    waiting.observe(b"a", identity(), now=0, settle=5)
    for n in range(10_000):
        waiting.touch(b"a", now=n / 1000, settle=5)
    assert len(waiting._heap) <= 2 + SLACK
    assert names(waiting, 100) == [b"a"]


def test_what_waits_for_a_reason_is_not_active() -> None:
    waiting = Waiting()
    waiting.observe(b"a", identity(10), now=0, settle=5)
    waiting.defer(b"b", identity(20), "open in another program", until=9)
    assert (waiting.active().files, waiting.active().bytes) == (1, 10)
    held = waiting.held_up()["open in another program"]
    assert (held.files, held.bytes) == (1, 20)
    assert waiting.reason(b"b") == "open in another program"


def test_force_makes_a_deferred_path_due_now_until_it_is_judged() -> None:
    waiting = Waiting()
    waiting.defer(b"a", identity(), "in work", until=86_400)
    waiting.force(b"a", now=10)
    waiting.touch(b"a", now=10, settle=5)
    assert names(waiting, 10) == [b"a"]
    # Taken out to be looked at, and not judged yet: whoever waits for it goes on waiting.
    assert waiting.has_forced()
    waiting.observe(b"a", identity(2), now=11, settle=5)
    assert names(waiting, 11) == [b"a"]
    assert waiting.take_forced(b"a")
    assert not waiting.take_forced(b"a")
    assert not waiting.has_forced()


def test_force_needs_to_know_what_does_not_wait() -> None:
    waiting = Waiting()
    waiting.force(b"a", now=10)
    assert not waiting.has_forced()
    waiting.force(b"a", now=10, identity=identity())
    assert names(waiting, 10) == [b"a"]


def test_what_is_gone_is_not_forced_any_more() -> None:
    waiting = Waiting()
    waiting.force(b"a", now=10, identity=identity())
    waiting.drop(b"a")
    assert not waiting.has_forced()


def test_below_names_a_path_and_what_lies_beneath_it() -> None:
    waiting = Waiting()
    for path in (b"a", b"a/b", b"ab", b"a/c/d"):
        waiting.observe(path, identity(), now=0, settle=0)
    assert sorted(waiting.below(b"a")) == [b"a", b"a/b", b"a/c/d"]
    assert len(waiting.below(b"")) == 4


@given(
    st.lists(
        st.tuples(st.sampled_from("otdx"), st.sampled_from([b"a", b"b"]), st.integers(0, 3)),
        max_size=30,
    )
)
def test_nothing_is_due_before_settle_passed_since_its_last_change(
    steps: list[tuple[str, bytes, int]],
) -> None:
    waiting = Waiting()
    changed: dict[bytes, tuple[float, int]] = {}
    for now, (step, path, size) in enumerate(steps):
        if step == "o":
            waiting.observe(path, identity(size), now=now, settle=3)
            if path not in changed or changed[path][1] != size:
                changed[path] = (now, size)
        elif step == "t" and path in changed:
            waiting.touch(path, now=now, settle=3)
            changed[path] = (now, changed[path][1])
        elif step == "d":
            waiting.drop(path)
            changed.pop(path, None)
        else:
            for due in names(waiting, now):
                assert now - changed.pop(due)[0] >= 3
    assert sorted(names(waiting, 1000)) == sorted(changed)
