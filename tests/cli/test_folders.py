from __future__ import annotations

import json
import os

import pytest

from p2pstore.errors import UsageError

PREVIEW = {
    "path": "/v",
    "files": 40,
    "bytes": 9_800_000_000,
    "replace": {"files": 30, "bytes": 9_000_000_000},
    "protect_only": {"files": 8, "bytes": 700_000_000, "reasons": {"in a repository": 8}},
    "skipped": {"files": 2, "bytes": 100, "reasons": {"temporary": 2}},
    "room_needed_bytes": 9_700_000_000,
    "room_free_bytes": 81_000_000_000,
    "keep_free_bytes": 2_000_000_000,
    "holders": 1,
    "min_copies": 2,
    "notes": ["HOME lies on another disk."],
}


def test_preview_then_added_on_a_pipe(line, served):
    served.answers["preview"] = PREVIEW
    ran = line("add-folder", "/v")
    assert ran.code == 0
    text = "\n".join(" ".join(row.split()) for row in ran.out.splitlines())
    for expected in (
        "/v: 40 files, 9.8 GB",
        "30 become .f 9.0 GB",
        "8 are stored and stay 700 MB 8 in a repository",
        "2 are left out 100 B 2 temporary",
        "Room: at most 9.7 GB of 81.0 GB free in HOME (2.0 GB stay free)",
        "Copies: 1 other node reachable now, 2 are needed before room is freed: p2pstore invite",
        "HOME lies on another disk.",
        "Watching /v. How far it is: p2pstore status",
    ):
        assert expected in text
    assert served.asked("add_folder") == [{"dir": "/v", "settings": {}, "force": False}]
    assert served.asked("wait_folder") == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, ""),
        ({"placeholders": 1_200}, " (beside 1,200 .f)"),
        ({"watched": True, "placeholders": 2}, " (watched already, beside 2 .f)"),
    ],
)
def test_preview_tells_placeholders_apart(line, served, more, words):
    served.answers["preview"] = {**PREVIEW, **more}
    ran = line("add-folder", "/v", "--dry-run")
    assert ran.out.splitlines()[0] == f"/v: 40 files, 9.8 GB{words}"


def test_dry_run_stops_after_the_preview(line, served):
    served.answers["preview"] = PREVIEW
    assert line("add-folder", "/v", "--dry-run", "--yes").code == 0
    assert served.asked("add_folder") == []


@pytest.mark.parametrize(
    ("answer", "added"), [("n\n", 0), ("y\n", 1), ("\n", 1)], ids=["no", "yes", "enter"]
)
def test_terminal_is_asked(line, served, answer, added):
    served.answers["preview"] = PREVIEW
    ran = line("add-folder", "/v", terminal=True, stdin=answer)
    assert ran.code == 0
    assert "Go on?" in ran.err
    assert len(served.asked("add_folder")) == added


def test_yes_asks_nothing(line, served):
    ran = line("add-folder", "/v", "--yes", terminal=True)
    assert "Go on?" not in ran.err
    assert len(served.asked("add_folder")) == 1


def test_given_settings_only_go_to_the_node(line, served):
    line("add-folder", "/v", "--exclude", "*.a", "--exclude", "*.b", "--protect-only", "c",
         "--replace", "d", "--settle", "1m", "--keep", "2d", "--min-copies", "3",
         "--min-size", "1MB", "--pin", "--force")  # fmt: skip
    assert served.asked("add_folder") == [
        {
            "dir": "/v",
            "settings": {
                "exclude": ["*.a", "*.b"],
                "protect_only": ["c"],
                "replace": ["d"],
                "settle_s": 60.0,
                "keep_s": 172_800.0,
                "min_copies": 3,
                "min_size": 1_000_000,
                "pin": True,
            },
            "force": True,
        }
    ]


@pytest.mark.parametrize(
    "words",
    [["--settle", "soon"], ["--min-size", "1XB"], ["--min-copies", "0"], ["--keep", "-1"]],
    ids=" ".join,
)
def test_bad_setting_is_exit_2(line, served, words):
    assert line("add-folder", "/v", *words).code == 2
    assert served.calls == []


def test_settings_of_a_watched_folder_are_changed_without_a_question(line, served):
    served.answers["preview"] = {**PREVIEW, "watched": True}
    ran = line("add-folder", "/v", "--pin", terminal=True)
    assert "The settings are changed." in ran.out
    assert "Go on?" not in ran.err


def test_refused_folder_is_exit_2_with_the_reason(line, served):
    served.answers["preview"] = UsageError("/ is the whole system; choose a folder below it.")
    ran = line("add-folder", "/")
    assert (ran.code, ran.err) == (2, "/ is the whole system; choose a folder below it.\n")
    assert served.asked("add_folder") == []


def test_wait_lists_reasons_to_stay_and_is_exit_0(line, served):
    def wait(args, progress):
        progress({"stage": "protect", "files": 1, "files_total": 3})
        return {
            "files": 40,
            "bytes": 9_800_000_000,
            "replaced": 30,
            "reasons": {"open": 1, "in a repository": 9},
            "left": [{"path": f"/v/{n}", "reason": "in a repository"} for n in range(10)],
            "left_total": 10,
        }

    served.answers["wait_folder"] = wait
    ran = line("add-folder", "/v", "--wait")
    assert ran.code == 0
    assert "30 files of 40 replaced, 9.8 GB protected" in ran.out
    assert "staying: 9 in a repository, 1 open" in ran.out
    assert "/v/3: in a repository" in ran.out
    assert "Protecting  1 of 3 files" in ran.err


def test_quiet_wait_shows_no_progress(line, served):
    served.answers["wait_folder"] = lambda args, progress: progress({"stage": "x"}) or {}
    assert line("-q", "add-folder", "/v", "--wait").err == ""


def test_path_is_made_absolute_and_its_parent_resolved(line, served, tmp_path, monkeypatch):
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    line("pause", "link")
    line("hydrate", "link/../link/x.f", "real/./sub")
    assert served.asked("pause") == [{"dir": f"{tmp_path}/real"}]
    assert served.asked("hydrate") == [{"paths": [f"{tmp_path}/real/x.f", f"{tmp_path}/real/sub"]}]


def test_link_itself_is_not_followed(line, served, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "link").symlink_to("file")
    line("hydrate", str(tmp_path / "link"))
    assert served.asked("hydrate") == [{"paths": [str(tmp_path / "link")]}]


# -- remove


def test_remove_with_placeholders_and_no_terminal_is_exit_2(line, served):
    served.answers["folders"] = {"folders": [{"path": "/v", "placeholders": 7}]}
    ran = line("remove-folder", "/v")
    assert ran.code == 2
    assert "--hydrate" in ran.err
    assert "--leave-placeholders" in ran.err
    assert served.asked("remove_folder") == []


@pytest.mark.parametrize(("option", "how"), [("--hydrate", "hydrate"),
                                             ("--leave-placeholders", "leave")])  # fmt: skip
def test_remove_says_how(line, served, option, how):
    served.answers["remove_folder"] = {"placeholders": 0, "hydrated": 3}
    ran = line("remove-folder", "/v", option)
    assert served.asked("remove_folder") == [{"dir": "/v", "how": how}]
    assert ran.out == "/v is not watched any more; 3 files brought back\n"


def test_remove_without_placeholders_needs_no_option(line, served):
    served.answers["folders"] = {"folders": [{"path": "/v", "placeholders": 0}]}
    assert line("remove-folder", "/v").code == 0
    assert served.asked("remove_folder") == [{"dir": "/v", "how": None}]


@pytest.mark.parametrize(
    ("answer", "calls"), [("leave\n", [{"dir": "/v", "how": "leave"}]), ("cancel\n", [])]
)
def test_remove_asks_a_terminal(line, served, answer, calls):
    served.answers["folders"] = {"folders": [{"path": "/v", "placeholders": 7}]}
    assert line("remove-folder", "/v", terminal=True, stdin=answer).code == 0
    assert served.asked("remove_folder") == calls


# -- lists


def test_folders(line, served):
    folder = {
        "path": "/v\n",
        "files": 3,
        "bytes": 1_000,
        "paused": True,
        "settings": {"exclude": ["*.a"], "settle_s": 5.0, "min_copies": 2, "pin": False},
    }
    served.answers["folders"] = {"folders": [folder]}
    assert line("folders").out == (
        "/v\\n   3 files   1.0 kB   paused\n  exclude *.a · settle 5 s · min-copies 2\n"
    )
    assert json.loads(line("folders", "--json").out) == {"folders": [folder]}


def test_no_folder_says_how_to_begin(line, served):
    served.answers["folders"] = {"folders": []}
    assert "p2pstore add-folder DIR" in line("folders").out


def test_ls(line, served):
    entry = {"name": os.fsdecode(b"a\xff\nb"), "type": "file", "size": 5, "state": "placeholder",
             "copies": 2, "mtime": 1_000_000_000.0}  # fmt: skip
    entries = [entry, {"name": "sub", "type": "folder", "files": 2}]
    served.answers["ls"] = {"path": "/v", "entries": entries}
    assert line("ls", "/v").out == "a\\xff\\nb\nsub/\n"
    long = line("ls", "-l").out.splitlines()
    assert "placeholder, safe on 2 others" in long[0]
    assert long[1].split() == ["2", "files", "sub/"]
    name = json.loads(line("ls", "--json").out)["entries"][0]["name"]
    assert os.fsencode(name) == b"a\xff\nb"
    assert served.asked("ls")[:2] == [{"path": "/v"}, {"path": None}]


def test_ls_says_nothing_of_copies_of_a_link(line, served):
    link = {"name": "l", "type": "link", "size": 6, "state": "protected", "reason": "a link"}
    served.answers["ls"] = {"path": "/v", "entries": [{**link, "copies": 0}]}
    assert line("ls", "-l", "/v").out == "6 B    protected (a link)  l\n"


# -- pause and resume


@pytest.mark.parametrize(
    ("words", "how"), [([], None), (["--accept"], "accept"), (["--undo"], "undo")]
)
def test_resume(line, served, words, how):
    served.answers["resume"] = {"path": "/v", "restored": 4 if how == "undo" else 0}
    ran = line("resume", "/v", *words)
    assert served.asked("resume") == [{"dir": "/v", "how": how}]
    assert ran.out == (
        "/v goes on; 4 placeholders brought back\n" if how == "undo" else "/v goes on\n"
    )


@pytest.mark.parametrize(
    "words",
    [
        ["resume", "/v", "--accept", "--undo"],
        ["remove-folder", "/v", "--hydrate", "--leave-placeholders"],
    ],
    ids=" ".join,
)
def test_options_that_contradict_each_other_do_nothing(line, served, words):
    ran = line(*words)
    assert ran.code == 2
    assert "contradict" in ran.err
    assert served.calls == []


def test_pause_says_how_to_go_on(line, served):
    assert line("pause", "/my v").out == "/my v is paused. Go on with: p2pstore resume '/my v'\n"
