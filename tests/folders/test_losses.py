from __future__ import annotations

from p2pstore.folders.losses import WINDOW_S, Losses


def missing(losses: Losses, count: int, due: float = 5.0) -> None:
    for n in range(count):
        losses.missing(b"%d" % n, due=due)


def test_a_missing_path_is_ripe_after_settle_and_not_when_it_came_back() -> None:
    losses = Losses()
    losses.missing(b"a", due=5)
    losses.missing(b"a", due=9)
    losses.missing(b"b", due=5)
    assert losses.ripe(4.9) == []
    losses.found([b"b"])
    assert losses.ripe(5) == [b"a"]
    assert losses.next_due() == 5


def test_twenty_files_are_no_mass_change_and_twenty_one_of_two_hundred_are() -> None:
    losses = Losses()
    missing(losses, 20)
    assert not losses.is_mass(100)
    losses.missing(b"one more", due=5)
    assert losses.is_mass(200)
    assert losses.change == (21, 200)
    assert not Losses().is_mass(0)


def test_ten_per_cent_are_needed_too() -> None:
    losses = Losses()
    missing(losses, 100)
    assert not losses.is_mass(1001)
    assert losses.is_mass(999)


def test_edits_and_deletions_within_a_minute_count_together() -> None:
    losses = Losses()
    losses.changed(15, now=0)
    missing(losses, 10)
    assert losses.is_mass(100)
    later = Losses()
    later.changed(15, now=0)
    missing(later, 10, due=WINDOW_S + 1)
    assert later.is_quiet(WINDOW_S + 0.5)
    assert not later.is_mass(100)


def test_what_is_concluded_counts_for_a_minute_and_is_known_by_name() -> None:
    losses = Losses()
    missing(losses, 15)
    losses.conclude([b"1", b"2"], now=5)
    losses.conclude([b"3"], now=6)
    assert losses.concluded == [b"1", b"2", b"3"]
    missing(losses, 30)
    assert losses.is_mass(97)
    assert losses.change == (33, 100)
    assert not losses.is_quiet(WINDOW_S + 5.5)
    assert losses.concluded == [b"3"]
    losses.accept()
    assert losses.concluded == []
    losses.conclude([b"4"], now=7)
    assert losses.concluded == [], "it was meant"


def test_accepting_what_never_comes_holds_for_a_minute() -> None:
    losses = Losses()
    losses.accept()
    losses.comes_to_rest(5, is_busy=True)
    losses.comes_to_rest(10, is_busy=False)
    missing(losses, 50)
    losses.comes_to_rest(30, is_busy=False)
    assert not losses.is_mass(100), "it has come"
    losses.found(losses.gone)
    losses.comes_to_rest(40, is_busy=False)
    losses.comes_to_rest(40 + WINDOW_S, is_busy=False)
    missing(losses, 50)
    assert losses.is_mass(100)


def test_accepting_holds_for_one_change_only() -> None:
    losses = Losses()
    missing(losses, 50)
    assert losses.is_mass(100)
    losses.accept()
    assert not losses.is_mass(100)
    losses.found(losses.gone)
    losses.settle()
    missing(losses, 50)
    assert losses.is_mass(100)
