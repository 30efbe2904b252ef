from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import Rest, in_work_for


def test_a_file_rests_after_two_equal_looks_a_settle_apart() -> None:
    rest = Rest(5)
    assert not rest.observe(b"a", "1", 100)
    assert rest.next_due() == 105
    assert rest.due(104.9) == []
    assert rest.due(105) == [b"a"]
    assert rest.observe(b"a", "1", 105)
    assert len(rest) == 0


def test_a_change_begins_anew() -> None:
    rest = Rest(5)
    rest.observe(b"a", "1", 100)
    assert not rest.observe(b"a", "2", 104.9)
    assert not rest.observe(b"a", "2", 105.1)
    assert rest.observe(b"a", "2", 109.9)


def test_an_event_begins_anew_although_all_looks_the_same() -> None:
    rest = Rest(5)
    rest.observe(b"a", "1", 100)
    rest.event(b"a", 104)
    assert not rest.observe(b"a", "1", 105)
    assert rest.observe(b"a", "1", 110)


def test_a_storm_of_events_wants_few_looks_and_little_memory() -> None:
    rest = Rest(5)
    looks = 0
    for n in range(10_000):
        now = 100 + n / 1000
        rest.event(b"a", now)
        for path in rest.due(now):
            looks += 1
            assert not rest.observe(path, n, now)
    assert 20 <= looks <= 41
    assert len(rest) == 1
    assert len(rest._due) <= 100


def test_a_forgotten_path_is_never_due() -> None:
    rest = Rest(5)
    rest.event(b"a", 0)
    rest.forget(b"a")
    assert rest.due(100) == []
    assert rest.next_due() is None


def test_without_settle_one_look_is_enough() -> None:
    assert Rest(0).observe(b"a", "1", 100)


@given(
    st.floats(0.1, 10),
    st.lists(
        st.tuples(st.sampled_from(["look", "event", "change", "wait"]), st.floats(0, 4)),
        max_size=40,
    ),
)
def test_rest_is_never_called_before_settle_passed(
    settle: float, steps: list[tuple[str, float]]
) -> None:
    rest, now, stamp = Rest(settle), 0.0, 0
    quiet_since, first_look = 0.0, None
    for what, gap in steps:
        now += gap
        if what == "event":
            rest.event(b"a", now)
            quiet_since, first_look = now, None
        elif what == "change":
            stamp += 1
            quiet_since = now
        elif what == "look":
            if rest.observe(b"a", stamp, now):
                assert first_look is not None
                assert now - quiet_since >= settle * 0.999999
                assert now - first_look >= settle * 0.999999
                first_look = None
            elif first_look is None:
                first_look = now


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(0, 3)), max_size=60))
def test_every_path_comes_to_rest_when_the_caller_follows_what_is_due(
    steps: list[tuple[int, bool, float]],
) -> None:
    rest, now, touched, rested = Rest(1.1), 0.0, set(), set()
    for number, is_event, gap in steps:
        now += gap
        path = b"%d" % number
        touched.add(path)
        rested.discard(path)
        if is_event:
            rest.event(path, now)
        elif rest.observe(path, "same", now):
            rested.add(path)
    while (due := rest.next_due()) is not None:
        now = max(now, due)
        rested |= {path for path in rest.due(now) if rest.observe(path, "same", now)}
    assert rested == touched
    assert len(rest) == 0


def test_a_file_in_work_stays_for_keep_after_its_last_use() -> None:
    def left(last_use: float, *, replaced: bool = False, edited: bool = False) -> float:
        return in_work_for(
            last_use=last_use,
            now=1000,
            keep_s=100,
            replaced_before=replaced,
            edited_since_protected=edited,
        )

    assert left(1000) == 0
    assert left(1000, replaced=True) == 100
    assert left(950, edited=True) == 50
    assert left(900, replaced=True) == 0
    assert left(99_999, replaced=True) == 100  # the clock was set back
