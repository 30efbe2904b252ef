from __future__ import annotations

import json
import os
import shutil

import pytest

from p2pstore.errors import BlocksMissing, FormatError, IntegrityError


@pytest.mark.parametrize(
    ("command", "method"),
    [
        ("hydrate", "hydrate"),
        ("dehydrate", "dehydrate"),
        ("free-up", "free_up"),
        ("pin", "pin"),
        ("unpin", "unpin"),
        ("evict", "evict"),
    ],
)
def test_all_paths_are_tried_and_the_gravest_code_wins(line, served, command, method):
    served.answers[method] = {
        "results": [
            {"path": "/v/a", "error": {"code": 5, "message": "blocks are missing"}},
            {"path": "/v/b", "to": "/v/b2", "bytes": 10},
            {"path": "/v/c\n", "error": {"code": 4, "message": "block is\nwrong"}},
            {"path": "/v/d", "error": {"code": 2, "message": "no such file"}},
        ]
    }
    ran = line("-q", command, "/v/a", "/v/b", "/v/c", "/v/d")
    assert ran.code == 4
    assert ran.err.splitlines() == [
        "/v/a: blocks are missing",
        "/v/c\\n: block is\\nwrong",
        "/v/d: no such file",
    ]
    assert served.asked(method) == [{"paths": ["/v/a", "/v/b", "/v/c", "/v/d"]}]


@pytest.mark.parametrize("command", ["hydrate", "dehydrate", "free-up", "pin", "unpin"])
def test_a_path_is_needed(line, served, command):
    assert line(command).code == 2


def test_names_that_are_no_utf8_reach_the_node(line, served):
    line("hydrate", os.fsdecode(b"/v/\xff\n'\".f"))
    assert served.asked("hydrate") == [{"paths": [os.fsdecode(b"/v/\xff\n'\".f")]}]


def test_hydrate_prints_where_originals_are(line, served):
    served.answers["hydrate"] = {"results": [{"path": "/v/a.f", "to": "/v/a", "bytes": 5_000}]}
    ran = line("hydrate", "/v/a.f")
    assert (ran.code, ran.out, ran.err) == (0, "/v/a\n", "5.0 kB brought back\n")


def test_free_up_that_is_done(line, served):
    served.answers["free_up"] = {"replaced_bytes": 812_000_000, "freed_bytes": 812_000_000}
    ran = line("free-up", "/v")
    assert (ran.code, ran.out) == (0, "812 MB replaced; 812 MB freed\n")


ELSEWHERE = {"path": "/x", "error": {"code": 2, "message": "/x lies in no watched folder."}}


@pytest.mark.parametrize(
    ("command", "answer", "out"),
    [
        ("free-up", {"freed_bytes": 5_000}, "5.0 kB freed\n"),
        ("free-up", {"replaced_files": 1, "replaced_bytes": 0}, "0 B replaced; 0 B freed\n"),
        ("free-up", {"freed_bytes": 0}, "Nothing was left to replace or to free.\n"),
        ("evict", {"freed_bytes": 0}, "Nothing was left to free.\n"),
    ],
)
def test_what_was_done_before_is_not_told_again(line, served, command, answer, out):
    served.answers[command.replace("-", "_")] = {"results": [], **answer}
    ran = line(command, "/v")
    assert (ran.code, ran.out, ran.err) == (0, out, "")


@pytest.mark.parametrize(
    ("results", "told"),
    [
        ([], "Nothing was left to replace.\n"),
        ([ELSEWHERE], "/x lies in no watched folder.\nNothing was replaced.\n"),
    ],
)
def test_dehydrate_that_replaced_nothing(line, served, results, told):
    served.answers["dehydrate"] = {"results": results, "replaced_bytes": 0}
    assert line("dehydrate", "/v").err == told


def test_nothing_is_said_to_be_done_where_nothing_could_be(line, served):
    served.answers["evict"] = {"results": [ELSEWHERE]}
    ran = line("evict", "/x")
    assert (ran.code, ran.out) == (2, "Nothing was freed.\n")


def test_free_up_that_waits_is_exit_5_with_the_reason(line, served):
    served.answers["free_up"] = {
        "replaced_bytes": 812_000_000,
        "freed_bytes": 0,
        "waiting": [{"reason": "1 more holder", "bytes": 812_000_000, "files": 3}],
    }
    ran = line("free-up", "/v")
    assert ran.code == 5
    assert ran.out == "812 MB replaced; 0 B freed yet: 1 more holder\n"


def test_evict_lists_several_reasons(line, served):
    served.answers["evict"] = {
        "freed_bytes": 1_000,
        "waiting": [{"reason": "1 more holder", "bytes": 5}, {"reason": "a proof", "bytes": 70}],
    }
    ran = line("evict")
    assert ran.code == 5
    assert ran.out == (
        "1.0 kB freed yet; the rest stays:\n   5 B  1 more holder\n  70 B  a proof\n"
    )
    assert served.asked("evict") == [{"paths": []}]


def test_evict_says_what_goes_by_itself_and_has_done_all(line, served):
    served.answers["evict"] = {"freed_bytes": 1_000, "waiting": [], "leftover_bytes": 5_000}
    ran = line("evict")
    assert (ran.code, ran.out) == (0, "1.0 kB freed\n")
    assert ran.err == "5.0 kB that no file needs any more go by themselves, in time.\n"


def test_evict_why_drops_nothing(line, served):
    served.answers["evict_why"] = {
        "evictable_bytes": 16,
        "bundles": [
            {"bundle": "ab" * 32, "bytes": 16, "missing": ["1 more holder"], "files": ["/v/a\n"]},
            {"bundle": "cd" * 32, "bytes": 16, "missing": [], "files": []},
        ],
    }
    ran = line("evict", "--why", "/v")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "16 B could be freed now",
        "abababababab      16 B  1 more holder",
        "    /v/a\\n",
        "cdcdcdcdcdcd      16 B  can go",
    ]
    assert served.asked("evict") == []


# -- cat


def test_cat_writes_bytes_and_nothing_else(line, served):
    served.pieces = [b"\x00\xff", b"abc\n"]
    ran = line("cat", os.fsdecode(b"/v/a b\xff.f"))
    assert (ran.code, ran.raw, ran.err) == (0, b"\x00\xffabc\n", "")
    assert served.cats == [(os.fsdecode(b"/v/a b\xff.f"), 0, None)]


@pytest.mark.parametrize(
    ("given", "start", "end"), [("0-0", 0, 1), ("5-9", 5, 10), ("7-", 7, None)]
)
def test_cat_range_is_inclusive(line, served, given, start, end):
    assert line("cat", "/v/a", "--range", given).code == 0
    assert served.cats == [("/v/a", start, end)]


@pytest.mark.parametrize("given", ["9-5", "x", "-5", "1", "1-2-3"])
def test_cat_bad_range_is_exit_2(line, served, given):
    assert line("cat", "/v/a", f"--range={given}").code == 2
    assert served.cats == []


@pytest.mark.parametrize(
    ("raised", "code"),
    [(FormatError("no manifest"), 3), (IntegrityError("wrong"), 4), (BlocksMissing("gone"), 5)],
)
@pytest.mark.parametrize("before", [[], [b"some", b"bytes"]], ids=["at once", "later"])
def test_cat_error_keeps_its_code_at_any_moment(line, served, raised, code, before):
    served.pieces = [*before, raised]
    ran = line("cat", "/v/a.f")
    assert (ran.code, ran.err) == (code, f"{raised}\n")


def test_cat_works_while_the_node_is_stopped(line, control, stopped, home):
    control.pieces = [b"off", b"line"]
    ran = line("cat", "/v/a.f", "--range", "1-5")
    assert (ran.code, ran.raw) == (0, b"offline")
    assert control.cats == [("/v/a.f", 1, 6)]
    assert stopped.opened == [home]
    assert not stopped.is_open


def test_error_offline_closes_the_home_again(line, control, stopped):
    control.pieces = [IntegrityError("wrong")]
    assert line("cat", "/v/a.f").code == 4
    assert not stopped.is_open


def test_no_home_at_all_is_exit_6(line, stopped, home):
    shutil.rmtree(home)
    assert line("cat", "/v/a.f").code == 6


def test_a_directory_in_which_no_node_lives_stays_as_it_is(line, home):
    ran = line("cat", "/v/a.f")
    assert (ran.code, os.listdir(home)) == (6, [])
    assert ran.err == f"There is no node in {home}. Start one: p2pstore run\n"


# -- one file


INSPECTED = {
    "name": "film\n.mkv",
    "size": 1_234_567,
    "mode": 0o100644,
    "blocks": 41,
    "bundles": ["ab" * 32, "cd" * 32],
    "device": "laptop",
    "signature": "valid",
    "hash": "ef" * 32,
    "copies": 2,
}


def test_inspect(line, served):
    served.answers["inspect"] = INSPECTED
    out = line("inspect", "/v/film.mkv.f").out
    assert "name       film\\n.mkv\n" in out
    assert "size       1.2 MB (1,234,567 bytes)\n" in out
    assert "mode       0644\n" in out
    assert "blocks     41 in 2 bundles\n" in out
    assert "signature  valid\n" in out
    assert json.loads(line("inspect", "/v/film.mkv.f", "--json").out) == INSPECTED


def test_inspect_of_a_fortran_file_is_exit_3_also_offline(line, control, stopped):
    control.answers["inspect"] = FormatError("solver.f is no p2pstore manifest.")
    assert line("inspect", "/v/solver.f").code == 3


def test_restore(line, served):
    served.answers["restore"] = {"path": "/y/film.mkv", "bytes": 5}
    assert line("restore", "/v/film.mkv.f", "--to", "/y").out == "/y/film.mkv   5 B\n"
    assert served.asked("restore") == [{"path": "/v/film.mkv.f", "to": "/y"}]
    assert line("restore", "/v/film.mkv.f").code == 2


def test_undelete(line, served):
    taken = {"path": "/v/d/b", "error": {"code": 5, "message": "name.f is taken"}}
    served.answers["undelete"] = {"results": [{"path": "/v/d/a", "to": "/v/d/a.f"}, taken]}
    ran = line("undelete", "/v/d")
    assert (ran.code, ran.out) == (5, "/v/d/a.f\n")
    assert "/v/d/b: name.f is taken" in ran.err


@pytest.mark.parametrize(
    "words", [["restore", "/v/a.f", "--to"], ["download", "KEY"]], ids=" ".join
)
def test_destination_with_a_slash_is_a_directory_that_is_there(line, served, tmp_path, words):
    ran = line(*words, f"{tmp_path}/absent/")
    assert ran.code == 2
    assert "there is no directory" in ran.err
    assert served.calls == []
