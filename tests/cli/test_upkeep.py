from __future__ import annotations

import json
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import p2pstore.cli
from p2pstore.cli import desktop, service
from p2pstore.errors import FormatError, HomeLocked

CHECKED = {"bundles": 12, "blocks": 3_400, "bytes": 9_100_000_000, "problems": []}


def test_check_that_is_good(line, served):
    served.answers["check"] = CHECKED
    ran = line("check")
    assert ran.code == 0
    assert ran.out.startswith("12 bundles, 3,400 blocks, 9.1 GB: good")
    assert served.asked("check") == [{"read_data": False, "repair": False}]


def test_check_that_finds_damage_is_exit_4(line, served):
    problems = [{"text": "bundle ab: block 7 is wrong", "code": 4}, {"text": "x", "code": 5}]
    served.answers["check"] = {**CHECKED, "problems": problems}
    ran = line("check", "--read-data")
    assert ran.code == 4
    assert ran.err.splitlines() == ["bundle ab: block 7 is wrong", "x"]
    assert "2 problems" in ran.out
    assert served.asked("check") == [{"read_data": True, "repair": False}]


def test_check_says_what_was_mended_and_what_mends_the_rest(line, served):
    problems = [
        {"text": "Bundle ab is damaged.", "code": 4, "remedy": "", "healed": True},
        {"text": "Bundle cd is missing.", "code": 5, "remedy": "connect nas", "healed": False},
    ]
    served.answers["check"] = {**CHECKED, "problems": problems}
    ran = line("check", "--repair")
    assert ran.code == 5
    assert ran.err.splitlines() == ["Bundle cd is missing.  Mend it: connect nas"]
    assert "Bundle ab is damaged.  Mended." in ran.out
    assert "1 problem, 1 mended" in ran.out
    assert served.asked("check") == [{"read_data": False, "repair": True}]


@pytest.mark.parametrize(
    ("command", "method"), [("check", "check"), ("rebuild-catalog", "rebuild_catalog")]
)
def test_works_while_the_node_is_stopped(line, control, stopped, command, method):
    assert line(command).code == 0
    assert [name for name, _ in control.calls] == [method]
    assert not stopped.is_open


def test_rebuild_catalog_says_what_is_missing(line, served):
    served.answers["rebuild_catalog"] = {
        "files": 40, "placeholders": 38, "bundles": 3, "missing": 2,
    }  # fmt: skip
    assert line("rebuild-catalog").out == (
        "Rebuilt: 40 files, 38 of them placeholders, 3 bundles; "
        "2 bundles nowhere at the moment (p2pstore doctor)\n"
    )


# -- doctor


def test_healthy_node(line, served):
    findings = [
        {"level": "ok", "text": "Port 8080 answers."},
        {"level": "hint", "text": "No other node yet.", "command": "p2pstore invite"},
    ]
    served.answers["doctor"] = {"findings": findings}
    ran = line("doctor")
    assert ran.code == 0
    assert ran.out == "ok  Port 8080 answers.\n--  No other node yet.   p2pstore invite\n"
    assert json.loads(line("doctor", "--json").out) == {"findings": findings}


def test_problem_is_exit_1(line, served):
    served.answers["doctor"] = {"findings": [{"level": "problem", "text": "The clock is wrong."}]}
    assert line("doctor").code == 1


def test_doctor_of_a_stopped_node_says_that_first(line, control, stopped):
    control.answers["doctor"] = {"findings": [{"level": "ok", "text": "The disk is good."}]}
    ran = line("doctor")
    assert ran.code == 1
    assert ran.out.splitlines()[0].startswith("!!  The node is not running.")
    assert "ok  The disk is good." in ran.out


def test_doctor_reports_a_home_that_cannot_be_opened(line, control, stopped):
    control.answers["doctor"] = FormatError("config.toml is damaged.")
    ran = line("doctor")
    assert ran.code == 1
    assert "!!  config.toml is damaged." in ran.out


def test_doctor_without_any_home(line, stopped, home):
    shutil.rmtree(home)
    ran = line("doctor", "--json")
    assert ran.code == 1
    assert len(json.loads(ran.out)["findings"]) == 2


def test_locked_home_is_exit_5(line, control, stopped):
    control.answers["check"] = HomeLocked("Another process works on this HOME.")
    assert line("check").code == 5


# -- service and desktop


def test_service_commands_call_the_service(line, home, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        service, "install", lambda **args: calls.append(("install", args)) or "One.\nTwo."
    )
    monkeypatch.setattr(
        service, "uninstall", lambda **args: calls.append(("uninstall", args)) or "Gone."
    )
    monkeypatch.setattr(
        service, "allow", lambda dir, **args: calls.append(("allow", dir, args)) or "Allowed."
    )
    assert line("service", "install").out == "One.\nTwo.\n"
    assert line("service", "uninstall", "--system").out == "Gone.\n"
    assert line("service", "allow", str(tmp_path), "--system").out == "Allowed.\n"
    assert calls == [
        ("install", {"system": False, "home": home}),
        ("uninstall", {"system": True}),
        ("allow", Path(tmp_path), {"system": True}),
    ]


def test_desktop_commands_call_the_desktop(line, monkeypatch):
    monkeypatch.setattr(desktop, "install", lambda: "Installed.")
    monkeypatch.setattr(desktop, "remove", lambda: "Removed.")
    assert line("desktop", "install").out == "Installed.\n"
    assert line("desktop", "remove").out == "Removed.\n"


# -- completion and demo


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(line, shell):
    ran = line("completion", shell)
    assert ran.code == 0
    assert "_P2PSTORE_COMPLETE" in ran.out


def test_completion_for_another_shell_is_exit_2(line):
    assert line("completion", "tcsh").code == 2


@pytest.mark.slow
def test_completion_knows_the_commands(program, environment):
    env = {**environment, "_P2PSTORE_COMPLETE": "bash_complete", "COMP_WORDS": "p2pstore re",
           "COMP_CWORD": "1"}  # fmt: skip
    done = subprocess.run(program, env=env, capture_output=True, text=True)
    assert done.stdout.split() == [
        "plain,remove-folder", "plain,restore", "plain,resume", "plain,rebuild-catalog",
            "plain,recover",
    ]  # fmt: skip


@pytest.mark.parametrize(("words", "keep"), [([], False), (["--keep"], True)])
def test_demo(line, monkeypatch, words, keep):
    asked = []
    fake = types.ModuleType("p2pstore.cli.demo")
    fake.main = lambda keep: asked.append(keep) or 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "p2pstore.cli.demo", fake)
    monkeypatch.setattr(p2pstore.cli, "demo", fake, raising=False)
    assert line("demo", *words).code == 3
    assert asked == [keep]
