from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import (
    AUDITS_A_DAY,
    Auditable,
    Budget,
    Copy,
    Holder,
    Method,
    audit_cost,
    earned,
    sample_of,
    to_audit,
    to_renew,
)

NOW, DAY, MIB = 1e9, 86_400.0, 1 << 20
NAS = Holder(b"nas", "device", last_seen=NOW)
PLENTY = Budget(1000, 1 << 40)


def one(number: int, days: float = 10, *, is_local: bool = True, **change: object) -> Auditable:
    copy = Copy(NAS, NOW - days * DAY, NOW + 170 * DAY)._replace(**change)  # type: ignore[arg-type]
    return Auditable(number.to_bytes(4, "big"), 16 * MIB, copy, is_local)


def audited(copies: list[Auditable], budget: Budget = PLENTY, seed: bytes = b"") -> list[int]:
    chosen = to_audit(copies, budget, now=NOW, seed=seed)
    return [int.from_bytes(audit.bundle, "big") for audit in chosen]


def test_own_bytes_are_compared_with_a_whole_proof_others_are_fetched() -> None:
    here, gone = to_audit([one(1), one(2, is_local=False)], PLENTY, now=NOW, seed=b"")
    assert (here.method, here.blocks) == (Method.WHOLE, 0)
    assert (gone.method, gone.blocks) == (Method.SAMPLE, 4)
    assert audit_cost(here) < 2048 < audit_cost(gone)


def test_a_copy_of_which_nothing_can_be_asked_is_left_out() -> None:
    assert audited([one(1, is_local=False)._replace(blocks=0)]) == []
    assert audited([one(1, failed=True)]) == []


def test_nothing_is_audited_twice_in_a_day() -> None:
    assert audited([one(1, 0.9)]) == []
    assert audited([one(1, audited_at=NOW - DAY / 2)]) == []
    assert audited([one(1)._replace(tried_at=NOW - DAY / 2)]) == []
    assert audited([one(1, 1.0)]) == [1]
    assert audited([one(1, audited_at=NOW + 365 * DAY)]) == [1]  # the clock was set back


def test_owed_answers_come_first_and_again_after_an_hour() -> None:
    owing = one(9, 0.5, suspect_since=NOW - DAY / 4)
    assert audited([one(1), owing], Budget(1, MIB)) == [9]
    assert audited([owing._replace(tried_at=NOW - 3599)]) == []
    assert audited([owing._replace(tried_at=NOW - 3600)]) == [9]


def test_all_copies_of_a_liar_are_owed_anew_and_those_never_proved() -> None:
    lied = NAS._replace(lied_at=NOW - 60)
    assert audited([one(1), one(2, 0.1, holder=lied)], Budget(1, MIB)) == [2]
    claimed = one(2, proved_at=None, audited_at=NOW - DAY / 2)
    assert audited([one(1), claimed], Budget(1, MIB)) == [2]


def test_half_go_to_the_oldest_half_to_chance() -> None:
    copies = [one(n, days=1000 - n) for n in range(500)]
    chosen = audited(copies, Budget(100, 1 << 30), seed=b"today")
    assert len(chosen) == 100
    assert set(range(45)) <= set(chosen)
    assert sum(n >= 60 for n in chosen) > 30
    assert chosen == audited(list(reversed(copies)), Budget(100, 1 << 30), seed=b"today")
    assert chosen != audited(copies, Budget(100, 1 << 30), seed=b"tomorrow")


def test_every_copy_has_its_turn() -> None:
    """1,000 copies, 100 audits a day: each is audited within 20 days, whatever chance draws."""
    last = dict.fromkeys(range(1000), 30.0)
    for day in range(20):
        copies = [one(n, days + day) for n, days in last.items()]
        for n in audited(copies, Budget(100, 1 << 30), seed=b"always the same"):
            last[n] = -day
    assert max(last.values()) <= 0


def test_the_budget_is_a_hundred_a_day_within_one_percent_of_the_line() -> None:
    budget = earned(Budget(0, 0), DAY / 4, bytes_a_second=1e6)
    assert budget == Budget(AUDITS_A_DAY / 4, 1e6 * DAY / 4 / 100)
    assert earned(budget, 100 * DAY, bytes_a_second=1e6) == Budget(AUDITS_A_DAY, 1e6 * DAY / 100)
    assert earned(budget, -100 * DAY, bytes_a_second=1e6) == budget


def test_a_slow_line_still_carries_whole_proofs() -> None:
    copies = [one(1, is_local=False), one(2, 5)]
    assert audited(copies, Budget(10, 100_000)) == [2]


@given(
    st.lists(st.tuples(st.floats(0, 400), st.booleans()), max_size=30),
    st.floats(0, 40),
    st.floats(0, 30 * MIB),
    st.binary(max_size=3),
)
def test_no_more_is_spent_than_there_is(
    some: list[tuple[float, bool]], audits: float, size: float, seed: bytes
) -> None:
    copies = [one(n, days, is_local=local) for n, (days, local) in enumerate(some)]
    budget = Budget(audits, size)
    chosen = to_audit(copies, budget, now=NOW, seed=seed)
    left = budget.after(chosen)
    assert left.audits >= 0
    assert left.bytes >= 0
    assert len({audit.bundle for audit in chosen}) == len(chosen)


def test_leases_are_renewed_in_bulk_below_150_days() -> None:
    def lease(days: float, *, failed: bool = False) -> Copy:
        return one(0, lease_until=NOW + days * DAY, failed=failed).copy

    copies = [
        (b"new", lease(179)),
        (b"edge", lease(150)),
        (b"due", lease(149)),
        (b"over", lease(-3)),
        (b"wrong clock", lease(3650)),
        (b"lost", lease(100, failed=True)),
    ]
    assert to_renew(copies, NOW) == [b"over", b"due", b"wrong clock"]


def test_blocks_to_sample_are_drawn_by_the_seed() -> None:
    blocks = [bytes([n]) for n in range(50)]
    drawn = sample_of(blocks, 4, b"seed")
    assert len(set(drawn)) == 4
    assert drawn == sample_of(list(reversed(blocks)), 4, b"seed") != sample_of(blocks, 4, b"x")
    assert sample_of(blocks[:2], 4, b"seed") == sample_of(blocks[:2], 2, b"seed")
