from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import (
    VETTING_AUDITS,
    Vetting,
    audit_failed,
    audit_passed,
    is_vetted,
    vetting_begins,
)

NOW, DAY = 1e9, 86_400.0
GOOD = Vetting(since=NOW - DAY, passed=VETTING_AUDITS)


def test_own_devices_need_no_vetting() -> None:
    assert is_vetted("device", Vetting(), NOW)
    assert is_vetted("admin", audit_failed(GOOD, NOW), NOW)


def test_a_friend_counts_after_a_day_and_some_audits() -> None:
    assert is_vetted("friend", GOOD, NOW)
    assert not is_vetted("friend", GOOD, NOW - 1)
    assert not is_vetted("friend", GOOD._replace(passed=VETTING_AUDITS - 1), NOW)
    assert not is_vetted("friend", GOOD._replace(since=None), NOW)
    assert is_vetted("friend", GOOD, NOW - DAY / 2, vetting_s=DAY / 2)


def test_a_role_that_we_do_not_know_never_counts() -> None:
    assert not is_vetted("odd", GOOD, NOW)


def test_who_fails_an_audit_starts_again() -> None:
    record = audit_failed(GOOD, NOW)
    for _ in range(VETTING_AUDITS):
        assert not is_vetted("friend", record, NOW + 2 * DAY)
        record = audit_passed(record)
    assert is_vetted("friend", record, NOW + DAY)
    assert not is_vetted("friend", record, NOW + DAY - 1)


@given(
    st.lists(st.tuples(st.floats(0, 3 * DAY), st.booleans()), max_size=12),
    st.floats(0, 5 * DAY),
)
def test_a_vetted_friend_passed_enough_since_its_last_failure(
    audits: list[tuple[float, bool]], age: float
) -> None:
    record = Vetting(since=NOW)
    now = NOW
    for pause, is_good in audits:
        now += pause
        record = audit_passed(record) if is_good else audit_failed(record, now)
    begins = vetting_begins(record)
    assert begins is not None
    assert begins >= NOW
    later = now + age
    last = [is_good for _, is_good in audits[-VETTING_AUDITS:]]
    expected = len(last) == VETTING_AUDITS and all(last) and later - begins >= DAY
    assert is_vetted("friend", record, later) == expected
