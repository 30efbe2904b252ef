from __future__ import annotations

import json
import os
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.cli import show

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain name.txt", "plain name.txt"),
        ("Müller 日本.f".encode(), "Müller 日本.f"),
        (b"a\nb\tc", "a\\nb\\tc"),
        (b"\xff\xfe", "\\xff\\xfe"),
        (b"\x1b[2J\x07", "\\x1b[2J\\x07"),
        ("\u202egpj.exe".encode(), "\\u202egpj.exe"),
        (b"quote\"s'", "quote\"s'"),
        (b"x" * 255, "x" * 255),
    ],
)
def test_name_is_harmless(raw, shown):
    assert show.name(os.fsdecode(raw)) == shown


@given(st.binary(max_size=40))
def test_any_name_is_one_printable_piece(raw):
    shown = show.name(os.fsdecode(raw))
    assert shown.isprintable()
    shown.encode()


@given(st.binary(max_size=40))
def test_json_gives_any_name_back(raw):
    text = show.as_json({"path": os.fsdecode(raw)})
    assert text.isascii()
    assert os.fsencode(json.loads(text)["path"]) == raw


def test_path_below_home_is_short():
    home = os.path.expanduser("~")
    assert show.path(f"{home}/Vault/a\nb") == "~/Vault/a\\nb"
    assert show.path(home) == "~"
    assert show.path(f"{home}x/a") == f"{home}x/a"


@pytest.mark.parametrize(
    "raw",
    [b"/v/a b", b"/v/it's", b"/v/$(rm)", b"/v/\\x", b"/v/\xff\n'\\", b"/v/-x", b"/v/\xc2\xa0"],
)
def test_argument_can_be_pasted_into_a_shell(raw):
    words = f"printf %s {show.argument(os.fsdecode(raw))}"
    assert subprocess.run(["bash", "-c", words], capture_output=True, check=True).stdout == raw


def test_argument_below_home_keeps_its_tilde():
    assert show.argument(os.path.expanduser("~/My Vault")) == "~/'My Vault'"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1.0 kB"),
        (61_200_000_000, "61.2 GB"),
        (812_000_000, "812 MB"),
        (999_960_000, "1.0 GB"),
        (None, "0 B"),
    ],
)
def test_size(count, shown):
    assert show.size(count) == shown


@pytest.mark.parametrize(
    ("done", "total", "shown"),
    [
        (3.1e9, 9.8e9, "3.1 of 9.8 GB"),
        (500e6, 9.8e9, "500 MB of 9.8 GB"),
        (0, 0, "0 of 0 B"),
    ],
)
def test_size_of(done, total, shown):
    assert show.size_of(done, total) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (3_600, "1 hour"),
        (7_200, "2 hours"),
        (3 * 86_400, "3 days"),
    ],
)
def test_span(seconds, shown):
    assert show.span(seconds) == shown


def test_moment_names_the_day_when_it_is_another():
    assert len(show.moment(NOW, NOW)) == len("21:04")
    assert len(show.moment(NOW - 2 * 86_400, NOW)) == len("Tue 21:04")
    assert len(show.moment(NOW - 90 * 86_400, NOW)) == len("2023-08-16 22:13")


def test_reasons_most_frequent_first():
    assert show.reasons({"open": 9, "in work": 7, "rare": 1_200}) == "1,200 rare, 9 open, 7 in work"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "on this device only"), (1, "on 1 other"), (3, "safe on 3 others")],
)
def test_copies(count, words):
    assert show.copies(count) == words


def test_table_aligns():
    assert show.table([["a", "1"], ["bbb", "22"]], right=frozenset({1})) == ["a     1", "bbb  22"]
    assert show.table([]) == []


def test_short_id_of_hex_and_of_words():
    assert show.short_id("00" * 32) == "aaaa-aa"
    assert show.short_id("7k2f-q9") == "7k2f-q9"
