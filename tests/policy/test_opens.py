from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2pstore.policy import OpenGate

GIB = 1 << 30
ROOM = 1 << 50


def decide(gate: OpenGate, now: float, size: int = 1, room: int = ROOM) -> list[bytes]:
    return gate.decide(now, size_of=lambda path: size, room=room)


def one(gate: OpenGate, path: bytes, now: float, size: int = 1, room: int = ROOM) -> bool:
    gate.seen(path, now)
    return decide(gate, now + 0.5, size, room) == [path]


def test_one_open_is_answered_after_half_a_second() -> None:
    gate = OpenGate()
    assert gate.next_due() is None
    gate.seen(b"a.f", 10)
    assert gate.next_due() == 10.5
    assert decide(gate, 10.49) == []
    assert decide(gate, 10.5) == [b"a.f"]
    assert decide(gate, 11) == []
    assert gate.next_due() is None


def test_three_files_at_once_are_a_person() -> None:
    gate = OpenGate()
    for path in (b"a", b"b", b"c", b"a"):
        gate.seen(path, 10)
    assert decide(gate, 10.5) == [b"a", b"b", b"c"]
    assert gate.ignored_total == 0


def test_four_files_within_the_window_are_a_scanner() -> None:
    gate = OpenGate()
    for n, path in enumerate((b"a", b"b", b"c", b"d", b"e")):
        gate.seen(path, 10 + n * 0.1)
    assert decide(gate, 11) == []
    assert gate.ignored == {"backup or indexer": 5}
    assert gate.last_ignored == 10.4
    assert gate.is_scanning(69)


def test_a_window_that_slides_finds_a_scanner_across_decisions() -> None:
    gate = OpenGate()
    for n, path in enumerate((b"a", b"b", b"c")):
        gate.seen(path, 10 + n * 0.2)
    assert decide(gate, 10.5) == [b"a"]
    gate.seen(b"d", 10.51)
    gate.seen(b"e", 10.52)
    assert decide(gate, 12) == []
    assert gate.is_scanning(12)


def test_a_scanner_is_ignored_until_a_minute_of_quiet() -> None:
    gate = OpenGate()
    for path in (b"a", b"b", b"c", b"d"):
        gate.seen(path, 10)
    assert not one(gate, b"x", 60)  # within the minute: begins it anew
    assert not one(gate, b"x", 119)
    assert one(gate, b"x", 179.1)
    assert gate.ignored_total == 6


def test_the_first_file_of_a_minute_is_allowed_whatever_its_size() -> None:
    gate = OpenGate()
    assert one(gate, b"film", 0, size=500 * GIB)
    assert one(gate, b"small", 10, size=GIB)
    assert not one(gate, b"more", 20, size=1)
    assert gate.ignored == {"too many at once": 1}
    assert one(gate, b"film2", 60.5, size=500 * GIB)


def test_ten_further_files_a_minute() -> None:
    gate = OpenGate()
    allowed = [one(gate, b"%d" % n, n * 2.0) for n in range(14)]
    assert allowed == [True] * 11 + [False] * 3


def test_two_hundred_further_files_a_day_and_one_always() -> None:
    gate = OpenGate()
    allowed = [one(gate, b"%d" % n, n * 6.1) for n in range(400)]
    first_ones = len({int(n * 6.1 // 60) for n in range(400)})
    assert 200 < sum(allowed) <= 200 + first_ones + 1
    assert one(gate, b"late", 400 * 6.1 + 60)
    assert one(gate, b"tomorrow 1", 90_000)
    assert one(gate, b"tomorrow 2", 90_002)


def test_nothing_goes_into_the_room_that_is_kept_free() -> None:
    gate = OpenGate()
    assert not one(gate, b"a", 0, size=101, room=100)
    assert gate.ignored == {"no room": 1}
    gate.seen(b"b", 10)
    gate.seen(b"c", 10)
    assert decide(gate, 10.5, size=60, room=100) == [b"b"]


@given(
    st.lists(st.tuples(st.floats(0, 30), st.integers(0, 20), st.integers(0, 2 * GIB)), max_size=120)
)
def test_budgets_hold_whatever_is_opened(opens: list[tuple[float, int, int]]) -> None:
    gate, now = OpenGate(), 0.0
    allowed: list[tuple[float, int]] = []
    for gap, number, size in opens:
        now += gap
        gate.seen(b"%d" % number, now)
        allowed += [(now + 0.6, size) for _ in decide(gate, now + 0.6, size=size)]
        assert len(gate._waiting) <= 64
        assert len(gate._recent) < 4
    for start, _ in allowed:
        minute = sorted(size for when, size in allowed if start <= when < start + 59.9)
        assert len(minute) <= 12  # the first one of a minute may fall twice into any 60 s
        assert sum(minute[:-2]) <= 2 * GIB


@given(st.lists(st.floats(0, 0.1), min_size=4, max_size=200))
def test_many_files_in_a_row_bring_none_back(gaps: list[float]) -> None:
    gate, now = OpenGate(), 0.0
    for number, gap in enumerate(gaps):
        now += gap
        gate.seen(b"%d" % number, now)
        assert decide(gate, now) == []
    assert decide(gate, now + 10) == []
    assert gate.ignored["backup or indexer"] == len(gaps)
