from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import (
    Candidate,
    Copy,
    Holder,
    choose_holders,
    counted_holders,
    house,
    one_house,
    reliability,
    why_not_holder,
)

NOW, DAY, GIB, SIZE = 1e9, 86_400.0, 1 << 30, 16 << 20


def device(name: str, prefix: str = "", **change: object) -> Candidate:
    holder = Holder(name.encode(), "device", b"us", prefix)
    return Candidate(holder, offer=GIB, last_seen=NOW)._replace(**change)  # type: ignore[arg-type]


def friend(name: str, owner: str, prefix: str = "") -> Candidate:
    holder = Holder(name.encode(), "friend", owner.encode(), prefix, vetted=True)
    return Candidate(holder, offer=GIB, last_seen=NOW)


def names(candidates: list[Candidate], count: int = 9, **more: object) -> list[str]:
    options: dict[str, object] = {"holding": [], "size": SIZE, "now": NOW, **more}
    chosen = choose_holders(candidates, count=count, **options)  # type: ignore[arg-type]
    return [candidate.holder.node.decode() for candidate in chosen]


def test_who_holds_the_rest_of_the_file_comes_first() -> None:
    ours = [device("a", "home"), device("b", "work"), device("c", "home")]
    some = {b"c": 3, b"a": 1}
    assert names(ours, siblings=some) == ["c", "a", "b"]


def test_another_house_comes_before_another_device() -> None:
    ours = [device("a", "home"), device("b", "home"), friend("f", "anna", "hers")]
    assert names(ours)[1] == "f"
    assert names(ours, holding=[device("c", "hers").holder])[2] == "f"


def test_an_unknown_house_is_never_a_new_one() -> None:
    for known, unknown in ("ab", "ba"):
        assert names([device(unknown), device(known, "work")]) == [known, unknown]


def test_devices_come_before_friends() -> None:
    for ours, hers in ("ab", "ba"):
        assert names([friend(hers, "anna", "hers"), device(ours, "home")]) == [ours, hers]


def test_a_friends_second_node_comes_after_everybody() -> None:
    friends = [friend("f", "anna", "x"), friend("g", "anna", "y"), friend("h", "ben", "x")]
    chosen = names([*friends, device("a", "x")])
    assert chosen[0] == "a"
    assert chosen[-1] in "fg"
    assert names(friends, holding=[friends[0].holder]) == ["h", "g"]


def test_more_room_comes_first_then_who_answers() -> None:
    for one, other in ("ab", "ba"):
        small = device(other, "home", free=GIB)
        wide = device(one, "home", free=4 * GIB)
        assert names([small, wide]) == [one, other]
        good = device(one, "home", free=GIB)
        poor = device(other, "home", free=GIB + SIZE, reliability=reliability(85, 100))
        assert names([poor, good]) == [one, other]


def test_reliability_begins_whole_and_falls_with_what_is_not_answered() -> None:
    assert reliability(0, 0) == reliability(9, 9) == 1.0
    assert reliability(0, 1) == 0.9
    assert reliability(0, 9) == 0.5


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (device("a", revoked=True), "revoked"),
        (device("a", leaving=True), "leaving"),
        (device("a", offer=0), "no room"),
        (device("a", free=SIZE - 1), "no room"),
        (device("a", last_seen=NOW - DAY), "away"),
        (device("a", reliability=reliability(0, 3)), "loses"),
        (device("a", holder=Holder(b"a", "device", lied_at=NOW - DAY)), "wrong proof"),
        (device("a", holder=Holder(b"a", "stranger", vetted=True)), "neither"),
    ],
)
def test_who_gets_nothing(bad: Candidate, said: str) -> None:
    assert said in str(why_not_holder(bad, SIZE, NOW))
    assert names([bad, device("b")]) == ["b"]


def test_bundles_of_one_file_go_the_same_way_and_files_spread() -> None:
    ours = [device(name, name) for name in "abcdefgh"]
    sets = [tuple(sorted(names(ours, 4, seed=bytes([n])))) for n in range(200)]
    assert names(ours, 4, seed=b"file") == names(ours, 4, seed=b"file")
    shares = Counter(name for chosen in sets for name in chosen)
    assert len(set(sets)) > 40  # of 70
    assert min(shares.values()) > 60  # of 100 on the average


CANDIDATES = st.lists(
    st.builds(
        Candidate,
        st.builds(
            Holder,
            node=st.binary(min_size=1, max_size=1),
            role=st.sampled_from(["device", "admin", "friend", "stranger", "carrier"]),
            owner=st.sampled_from([b"x", b"y"]),
            prefix=st.sampled_from(["", "home", "work"]),
            vetted=st.just(True),
        ),
        offer=st.integers(0, 4 * SIZE),
        last_seen=st.floats(NOW - 2 * DAY, NOW + DAY),
        revoked=st.booleans(),
        leaving=st.booleans(),
        free=st.none() | st.integers(0, 4 * SIZE),
        reliability=st.floats(0, 1),
    ),
    max_size=8,
    unique_by=lambda c: c.holder.node,
)


@pytest.mark.slow
@given(CANDIDATES, st.randoms(use_true_random=False), st.integers(0, 8))
def test_the_order_of_candidates_does_not_matter(
    candidates: list[Candidate], dice: object, count: int
) -> None:
    shuffled = list(candidates)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (
        choose_holders(some, holding=[], size=SIZE, now=NOW, count=count)
        for some in (candidates, shuffled)
    )
    assert one == other
    assert len(one) <= count


@pytest.mark.slow
@given(CANDIDATES, CANDIDATES, st.integers(1, 8))
def test_the_chosen_are_good_and_count_as_much_as_could_be_had(
    candidates: list[Candidate], others: list[Candidate], count: int
) -> None:
    holding = [candidate.holder for candidate in others]
    chosen = choose_holders(candidates, holding=holding, size=SIZE, now=NOW, count=count)
    assert not {c.holder.node for c in chosen} & {h.node for h in holding}
    assert all(why_not_holder(c, SIZE, NOW) is None for c in chosen)
    # All the good ones together could not count for more, as far as `count` goes.
    able = [c.holder for c in candidates if why_not_holder(c, SIZE, NOW) is None]
    possible = counted_holders([*holding, *able]) - counted_holders(holding)
    got = counted_holders([*holding, *(c.holder for c in chosen)]) - counted_holders(holding)
    assert got >= min(possible, count)


def test_a_house_is_known_by_its_network() -> None:
    assert house("192.0.2.7") == house("192.0.2.200") == "192.0.2.0/24"
    assert house("::ffff:192.0.2.7") == "192.0.2.0/24"
    assert house("2001:db8:1:2::1") == house("2001:db8:1:ffff::9") == "2001:db8:1::/48"
    assert house("fe80::1%eth0") == house("fe80::2")
    assert house("nas.example") == house("") == ""


def test_all_copies_in_one_house_are_warned_of() -> None:
    home = [
        Copy(device(name, "home").holder, proved_at=NOW - DAY, lease_until=NOW + DAY)
        for name in "abc"
    ]
    away = Copy(device("d", "work").holder, proved_at=NOW - DAY, lease_until=NOW + DAY)
    unknown = away._replace(holder=device("e").holder)
    assert one_house(home, NOW) == "all copies in one house"
    assert one_house([*home, away._replace(failed=True)], NOW) == "all copies in one house"
    assert one_house([*home, away], NOW) is None
    assert one_house([*home, unknown], NOW) is None
    assert one_house([unknown, unknown], NOW) is None
    assert one_house(home[:1], NOW) is None
