from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import (
    Copy,
    Holder,
    Standing,
    is_barred,
    is_disowned,
    seen_by_us,
    standing_of,
)

NOW, HOUR, DAY = 1e9, 3600.0, 86_400.0
NAS = Holder(b"nas", "device", last_seen=NOW)
GOOD = Copy(NAS, proved_at=NOW - 60 * DAY, lease_until=NOW + 100 * DAY)


def away(seconds: float) -> Copy:
    return GOOD._replace(holder=NAS._replace(last_seen=NOW - seconds))


@pytest.mark.parametrize(
    ("seconds", "standing"),
    [
        (-10 * 365 * DAY, Standing.LIVE),  # our clock was set back
        (0, Standing.LIVE),
        (DAY - 1, Standing.LIVE),
        (DAY, Standing.SUSPECT),
        (14 * DAY - 1, Standing.SUSPECT),
        (14 * DAY, Standing.LOST),
    ],
)
def test_who_is_away_is_suspect_after_a_day_and_lost_after_fourteen(
    seconds: float, standing: Standing
) -> None:
    assert standing_of(away(seconds), NOW) is standing
    owing = GOOD._replace(suspect_since=NOW - seconds)  # it is there, and does not answer
    assert standing_of(owing, NOW) is standing


def test_who_comes_back_counts_again_at_once() -> None:
    assert standing_of(away(300 * DAY), NOW) is Standing.LOST
    assert standing_of(away(0), NOW) is Standing.LIVE


def test_an_answer_ends_the_suspicion() -> None:
    owing = GOOD._replace(suspect_since=NOW - 3 * DAY)
    assert standing_of(owing, NOW) is Standing.SUSPECT
    assert standing_of(owing._replace(audited_at=NOW - 2 * DAY), NOW) is Standing.LIVE
    assert standing_of(owing._replace(proved_at=NOW - 2 * DAY), NOW) is Standing.LIVE
    assert standing_of(owing._replace(audited_at=NOW - 4 * DAY), NOW) is Standing.SUSPECT
    same_second = owing._replace(audited_at=NOW - 3 * DAY)
    assert standing_of(same_second, NOW) is Standing.LIVE


def test_a_copy_that_was_never_proved_is_suspect() -> None:
    assert standing_of(GOOD._replace(proved_at=None), NOW) is Standing.SUSPECT


def test_a_copy_that_is_gone_is_lost_and_says_nothing_of_the_holder() -> None:
    assert standing_of(GOOD._replace(failed=True), NOW) is Standing.LOST
    assert standing_of(GOOD, NOW) is Standing.LIVE


def test_a_lie_uncounts_all_copies_of_the_holder_until_each_is_proved_anew() -> None:
    liar = NAS._replace(lied_at=NOW - HOUR)
    copies = [GOOD._replace(holder=liar), GOOD._replace(holder=liar, audited_at=NOW)]
    assert [standing_of(copy, NOW) for copy in copies] == [Standing.LOST] * 2
    again = copies[0]._replace(proved_at=NOW - 60)
    assert standing_of(again, NOW) is Standing.LIVE
    assert is_disowned(copies[0])
    assert not is_disowned(again)
    assert is_disowned(again._replace(proved_at=liar.lied_at))


def test_a_liar_gets_nothing_new_for_a_month() -> None:
    assert not is_barred(NAS, NOW)
    assert is_barred(NAS._replace(lied_at=NOW - 29 * DAY), NOW)
    assert is_barred(NAS._replace(lied_at=NOW + DAY), NOW)
    assert not is_barred(NAS._replace(lied_at=NOW - 30 * DAY), NOW)


def test_an_ended_lease_is_suspect_and_lost_when_the_holder_may_drop_it() -> None:
    assert standing_of(GOOD._replace(lease_until=NOW), NOW) is Standing.SUSPECT
    assert standing_of(GOOD._replace(lease_until=NOW - 30 * DAY), NOW) is Standing.LOST


def test_nobody_is_away_while_we_have_just_come_back_ourselves() -> None:
    seen = NOW - 3 * DAY
    assert seen_by_us(seen, watching_since=NOW - HOUR + 1, now=NOW) == NOW
    assert seen_by_us(seen, watching_since=NOW - HOUR, now=NOW) == seen


def test_who_was_last_seen_in_the_future_is_away_when_we_have_watched_in_vain() -> None:
    """The clock was ten years ahead when it was seen last."""
    watching = NOW - 2 * DAY
    assert seen_by_us(NOW + 3650 * DAY, watching_since=watching, now=NOW) == watching
    assert seen_by_us(NOW + 0.01, watching_since=watching, now=NOW) == NOW + 0.01, "linked"


TIMES = st.floats(NOW - 500 * DAY, NOW + 500 * DAY)
COPIES = st.builds(
    Copy,
    st.builds(
        Holder,
        node=st.just(b"n"),
        role=st.just("device"),
        last_seen=st.none() | TIMES,
        lied_at=st.none() | TIMES,
    ),
    proved_at=st.none() | TIMES,
    lease_until=TIMES,
    failed=st.booleans(),
    audited_at=st.none() | TIMES,
    suspect_since=st.none() | TIMES,
)


@given(COPIES)
def test_only_what_was_proved_after_every_lie_is_live(copy: Copy) -> None:
    if standing_of(copy, NOW) is Standing.LIVE:
        assert copy.proved_at is not None
        assert copy.holder.lied_at is None or copy.proved_at > copy.holder.lied_at
        assert not copy.failed
        assert copy.lease_until > NOW


@given(COPIES, st.floats(0, 100 * DAY))
def test_time_alone_makes_no_copy_better(copy: Copy, later: float) -> None:
    order = [Standing.LIVE, Standing.SUSPECT, Standing.LOST]
    assert order.index(standing_of(copy, NOW)) <= order.index(standing_of(copy, NOW + later))
