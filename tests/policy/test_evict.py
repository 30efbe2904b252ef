from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import Confirmation, Copy, Facts, Holder, counted_holders, why_not

NOW, MONO = 1e9, 5000.0


def device(number: int) -> Holder:
    return Holder(bytes([number]), "device")


def confirmation(number: int, **change: float | None) -> Confirmation:
    good = Confirmation(device(number), proved_at=MONO - 5, locked_at=MONO - 10, locked_until=5590)
    return good._replace(**change)  # type: ignore[arg-type]


GOOD = Facts(
    is_meta=False,
    is_sealed=True,
    min_copies=2,
    target=4,
    copies=[Copy(device(n), NOW - 9e5, NOW + 9e6) for n in (1, 2)],
    confirmations=[confirmation(1), confirmation(2)],
    meta_copies=[2, 3],
    head_acks=[device(1), device(2)],
    words_confirmed=True,
)


def reasons(under_lock: bool = True, **change: Any) -> list[str]:
    facts = dataclasses.replace(GOOD, **change)
    return why_not(facts, now=NOW, monotonic=MONO, under_lock=under_lock)


def test_nothing_is_missing() -> None:
    assert reasons() == []
    assert reasons(words_confirmed=False, second_device=True) == []
    assert reasons(under_lock=False, confirmations=[]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"is_meta": True}, "names and lists stay"),
        ({"is_sealed": False}, "still being written"),
        ({"rebuilding": True}, "being rebuilt"),
        ({"locked_for_others_s": 1.0}, "another node relies"),
        ({"in_the_way": {"pinned": 3}}, "3 files pinned"),
        ({"copies": GOOD.copies[:1]}, "needs 2 copies on other nodes, has 1"),
        ({"copies": [GOOD.copies[0]] * 2}, "needs 2 copies"),
        ({"for_room": True}, "waits for 4 copies"),
        ({"meta_copies": [2, 1]}, "list of blocks is on 1"),
        ({"meta_copies": []}, "list of blocks is not stored"),
        ({"has_meta": False}, "list of blocks is not stored"),
        ({"head_acks": [device(1)]}, "1 of 2 holders have the newest"),
        ({"head_acks": [device(1)] * 2}, "1 of 2 holders have the newest"),
        ({"words_confirmed": False}, "words not confirmed"),
        ({"min_copies": 0}, "make no sense"),
        ({"target": 1}, "make no sense"),
    ],
)
def test_each_missing_thing_is_a_reason(change: dict[str, Any], said: str) -> None:
    assert any(said in reason for reason in reasons(**change))
    assert any(said in reason for reason in reasons(under_lock=False, **change))


def test_what_somebody_can_do_is_told_first() -> None:
    found = reasons(words_confirmed=False, copies=[], meta_copies=[0], head_acks=[])
    assert [reason[:9] for reason in found[:2]] == ["recovery ", "needs 2 c"]


def test_one_holder_is_told_as_one() -> None:
    assert reasons(min_copies=1, copies=[], meta_copies=[0], head_acks=[], confirmations=[]) == [
        "needs 1 copy on other nodes, has 0",
        "its list of blocks is on 0 of 1 other node",
        "0 of 1 holder has the newest folder index",
        "0 of 1 holder proved its copy just now",
    ]


def test_space_driven_eviction_goes_on_at_the_target() -> None:
    copies = [Copy(device(n), NOW, NOW + 1) for n in range(4)]
    assert reasons(for_room=True, copies=copies) == []


@pytest.mark.parametrize(
    "change",
    [
        {"proved_at": None},
        {"locked_at": None},
        {"locked_until": None},
        {"proved_at": MONO - 601},
        {"proved_at": MONO + 1},  # from the future: another clock
        {"proved_at": MONO - 11},  # before the lock: the holder may have dropped it in between
        {"locked_until": MONO + 59},
    ],
)
def test_a_proof_counts_fresh_and_under_a_lock_that_lasts(change: dict[str, float | None]) -> None:
    found = reasons(confirmations=[confirmation(1), confirmation(2, **change)])
    assert found == ["1 of 2 holders proved their copy just now"]


def test_one_friend_with_two_nodes_is_one_holder() -> None:
    friends = [Holder(bytes([n]), "friend", owner=b"anna", vetted=True) for n in (1, 2)]
    confirmations = [confirmation(1)._replace(holder=friend) for friend in friends]
    assert "1 of 2 holders proved" in reasons(confirmations=confirmations)[0]


HOLDERS = st.builds(
    Holder,
    node=st.binary(min_size=1, max_size=1),
    role=st.sampled_from(["device", "friend", "stranger", "carrier"]),
    owner=st.sampled_from([b"a", b"b"]),
    prefix=st.just("10.0.0"),
    vetted=st.booleans(),
)
TIMES = st.none() | st.floats(MONO - 900, MONO + 900)


@given(
    st.lists(st.builds(Confirmation, HOLDERS, TIMES, TIMES, TIMES), max_size=6),
    st.integers(1, 4),
)
def test_nothing_goes_without_enough_fresh_proofs_under_lock(
    confirmations: list[Confirmation], min_copies: int
) -> None:
    found = reasons(
        confirmations=confirmations,
        min_copies=min_copies,
        copies=[Copy(device(n), NOW, NOW + 1) for n in range(4)],
        head_acks=[device(n) for n in range(4)],
        meta_copies=[4],
    )
    good = [
        c.holder
        for c in confirmations
        if c.proved_at is not None
        and c.locked_at is not None
        and c.locked_until is not None
        and MONO - 600 <= c.proved_at <= MONO
        and c.locked_at <= c.proved_at
        and c.locked_until >= MONO + 60
    ]
    assert (found == []) == (counted_holders(good) >= min_copies)
