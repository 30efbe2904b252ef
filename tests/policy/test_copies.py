from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import (
    Candidate,
    Copy,
    Holder,
    counted,
    counted_holders,
    eligible,
    target,
)

NOW = 1e9
HOLDERS = st.builds(
    Holder,
    node=st.binary(min_size=1, max_size=1),
    role=st.sampled_from(["device", "admin", "friend", "stranger", "carrier", "odd"]),
    owner=st.sampled_from([b"a", b"b"]),
    prefix=st.sampled_from(["", "10.0.0", "10.0.1"]),
    vetted=st.booleans(),
)


def device(name: bytes) -> Holder:
    return Holder(name, "device")


def test_each_own_node_counts_once() -> None:
    assert counted_holders([device(b"1"), device(b"2"), device(b"1")]) == 2


def test_one_friend_counts_once_however_many_nodes() -> None:
    friends = [Holder(bytes([n]), "friend", owner=b"anna", vetted=True) for n in range(5)]
    assert counted_holders(friends) == 1
    assert counted_holders([*friends, Holder(b"9", "friend", owner=b"ben", vetted=True)]) == 2


def test_a_friend_counts_after_vetting_an_own_device_at_once() -> None:
    assert counted_holders([Holder(b"9", "friend", owner=b"ben")]) == 0
    assert counted_holders([Holder(b"9", "device"), Holder(b"8", "admin")]) == 2


def test_strangers_count_by_network_after_vetting() -> None:
    def stranger(node: bytes, prefix: str, vetted: bool = True) -> Holder:
        return Holder(node, "stranger", b"", prefix, vetted)

    assert counted_holders([stranger(b"1", "10.0.0"), stranger(b"2", "10.0.0")]) == 1
    assert counted_holders([stranger(b"1", "10.0.0"), stranger(b"2", "10.0.1")]) == 2
    assert counted_holders([stranger(b"1", "10.0.0", vetted=False)]) == 0
    assert counted_holders([stranger(b"1", "")]) == 0


def test_a_carrier_counts_once_and_never_alone() -> None:
    carriers = [Holder(b"x", "carrier"), Holder(b"y", "carrier")]
    assert counted_holders(carriers) == 0
    assert counted_holders([*carriers, device(b"1")]) == 2


@given(st.lists(HOLDERS, max_size=8), HOLDERS)
def test_one_more_holder_adds_at_most_itself(holders: list[Holder], one: Holder) -> None:
    before, after = counted_holders(holders), counted_holders([*holders, one])
    # A first node may wake a carrier that did not count alone.
    assert before <= after <= before + (2 if before == 0 else 1)
    assert counted_holders([*holders, *holders]) == before <= len(holders)


def test_a_copy_counts_from_its_proof_until_it_fails_or_its_lease_ends() -> None:
    good = Copy(device(b"1"), proved_at=NOW - 1e6, lease_until=NOW + 1)
    assert counted([good], NOW) == 1
    assert counted([good._replace(proved_at=None)], NOW) == 0
    assert counted([good._replace(failed=True)], NOW) == 0
    assert counted([good._replace(lease_until=NOW)], NOW) == 0
    away = good.holder._replace(last_seen=NOW - 86_400)
    assert counted([good._replace(holder=away)], NOW) == 0
    assert counted([good._replace(holder=away)], NOW - 1) == 1


def test_who_may_come_to_hold_something() -> None:
    good = Candidate(device(b"1"), offer=1, last_seen=NOW - 13 * 86_400)
    assert eligible([good], NOW) == 1
    assert eligible([good._replace(offer=0)], NOW) == 0
    assert eligible([good._replace(revoked=True)], NOW) == 0
    assert eligible([good._replace(last_seen=NOW - 15 * 86_400)], NOW) == 0
    assert eligible([good._replace(leaving=True)], NOW) == 0
    assert eligible([good._replace(holder=Holder(b"1", "friend", owner=b"anna"))], NOW) == 1
    assert eligible([good._replace(holder=Holder(b"1", "stranger", vetted=True))], NOW) == 0


@given(st.integers(1, 64), st.integers(1, 64), st.integers(0, 64))
def test_the_target_is_what_can_be_had_between_the_limits(
    wanted: int, min_copies: int, holders: int
) -> None:
    aim = target(wanted, min_copies, holders)
    assert min_copies <= aim <= max(wanted, min_copies)
    assert target(4, 2, 3) == 3
