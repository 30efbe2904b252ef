from __future__ import annotations

import pytest

from p2pstore.cli.progress import Meter, Rate, describe

FULL = {
    "stage": "protect",
    "files": 12_400,
    "files_total": 32_118,
    "bytes": 3_100_000_000,
    "bytes_total": 9_800_000_000,
}


def test_line_reads_as_promised():
    rate = Rate(0.0, 0)
    now = 3_100_000_000 / 212_000_000
    assert describe(FULL, rate, now) == (
        "Protecting  12,400 of 32,118 files   3.1 of 9.8 GB   212 MB/s   31 s left"
    )


@pytest.mark.parametrize(
    ("news", "line"),
    [
        ({"stage": "scan"}, "Looking"),
        ({"stage": "scan", "files": 7}, "Looking  7 files"),
        ({"stage": "scan", "files": 7, "files_total": None}, "Looking  7 files"),
        ({"stage": "scan", "files": 0, "bytes": 0}, "Looking"),
        ({"stage": "check", "bundles": 1, "bundles_total": 3}, "Checking  1 of 3 bundles"),
        ({"stage": "replace", "files": 0, "files_total": 0}, "Replacing"),
        ({"stage": "replace", "files": 0, "files_total": 8}, "Replacing  8 files"),
        ({"stage": "replace", "files": 3, "files_total": 8}, "Replacing  3 of 8 files"),
        ({"stage": "push", "bytes": 0, "bytes_total": 0}, "Copying"),
        ({"stage": "push", "bytes": 0, "bytes_total": 5_000}, "Copying  0 B of 5.0 kB"),
        ({"stage": "push", "bytes": 5_000}, "Copying  5.0 kB"),
        ({"stage": "odd\n", "files": 1}, "Odd\\n  1 file"),
        (
            {"stage": "move", "bundles": 12, "bundles_total": 41, "note": "to: a", "bytes": 5_000},
            "Moving  12 of 41 bundles   to: a   5.0 kB",
        ),
        ({}, "Work"),
    ],
)
def test_absent_counts_are_left_out(news, line):
    assert describe(news, Rate(0.0, 0), 0.1) == line


def test_plain_lines_at_most_one_a_second(capsys):
    now = 0.0
    meter = Meter(terminal=False, monotonic=lambda: now)
    for step in range(25):
        now = step * 0.1
        meter({"stage": "scan", "files": step})
    assert capsys.readouterr().err.splitlines() == [
        "Looking",
        "Looking  10 files",
        "Looking  20 files",
    ]


def test_texts_are_shown_always_and_harmless(capsys):
    meter = Meter(terminal=False, monotonic=lambda: 0.0)
    meter({"text": "one\x1b[2J"})
    meter({"text": "two"})
    assert capsys.readouterr().err == "one\\x1b[2J\ntwo\n"


def test_quiet_shows_nothing(capsys):
    Meter(quiet=True, terminal=True)(dict(FULL))
    Meter(quiet=True, terminal=False)({"text": "x"})
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal(capsys):
    with Meter(terminal=True, monotonic=lambda: 0.0) as meter:
        meter(dict(FULL))
        meter({"stage": "[red]odd[/]", "files": 1})
        meter({"text": "[bold]text"})
    assert "[bold]text" in capsys.readouterr().err


def test_a_new_stage_takes_the_place_of_the_last_bar():
    with Meter(terminal=True, monotonic=lambda: 0.0) as meter:
        meter({"stage": "scan", "files": 1})
        meter(dict(FULL))
        assert meter._bar is not None
        assert [task.visible for task in meter._bar.tasks] == [False, True]
