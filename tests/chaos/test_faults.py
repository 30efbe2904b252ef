"""The dice alone: the same seed, the same weather, whatever the pieces."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.chaos.faults import DatagramWay, Faults, StreamWay, Then

CONTENT = bytes(20_000)


def passed(faults: Faults, seed: str, size: int) -> tuple[bytes, list[Then], Counter[str]]:
    """CONTENT through one direction, read in pieces of `size` bytes."""
    told: Counter[str] = Counter()
    way = StreamWay(faults, seed, told)
    out, events = b"", []
    for at in range(0, len(CONTENT), size):
        rest = CONTENT[at : at + size]
        while rest:
            piece = way.judge(rest)
            out += piece.content
            rest = piece.rest
            if piece.then is not Then.GO_ON:
                events.append(piece.then)
            if piece.then is Then.CUT:
                return out, events, told
    return out, events, told


@pytest.mark.parametrize(
    "faults",
    [
        Faults(corrupt_every=500),
        Faults(stall_every=4000, stall_s=0),
        Faults(cut_every=9000, corrupt_every=100, stall_every=2000),
    ],
    ids=["flips", "stalls", "all"],
)
def test_a_seed_spoils_the_same_bytes_however_they_are_read(faults: Faults) -> None:
    first = passed(faults, "7", 1)
    assert first[1] or first[2]["flips"], "something happened"
    for size in (7, 1000, len(CONTENT)):
        assert passed(faults, "7", size)[:2] == first[:2]
    assert passed(faults, "8", 1000)[:2] != first[:2]


def test_faults_come_as_often_as_was_said() -> None:
    out, events, told = passed(Faults(corrupt_every=100, stall_every=200, stall_s=0), "1", 4096)
    assert len(out) == len(CONTENT)
    assert 150 < told["flips"] < 250
    assert 70 < len(events) < 130
    differing = sum(bin(byte).count("1") for byte in out)
    assert 150 < differing <= told["flips"], "one bit each"


def test_another_fault_moves_none() -> None:
    alone = passed(Faults(corrupt_every=500), "7", 1000)[0]
    both = passed(Faults(corrupt_every=500, stall_every=900, stall_s=0), "7", 1000)[0]
    assert alone == both


def test_fair_weather_changes_nothing() -> None:
    assert passed(Faults(), "7", 4096)[:2] == (CONTENT, [])
    way = DatagramWay(Faults(), "7", Counter())
    assert all(way.judge(b"x") == [(b"x", 0.0)] for _ in range(100))


def test_datagrams_are_lost_doubled_and_late_as_often_as_was_said() -> None:
    told: Counter[str] = Counter()
    way = DatagramWay(Faults(loss=0.3, duplicate=0.1, reorder=0.2), "7", told)
    came = [way.judge(b"x") for _ in range(2000)]
    assert 520 < told["lost"] < 680
    assert told["lost"] == sum(not deliveries for deliveries in came)
    assert 110 < told["duplicates"] < 170
    assert told["duplicates"] == sum(len(deliveries) == 2 for deliveries in came)
    assert 220 < sum(bool(d) and d[0].delay_s > 0 for d in came) < 340
