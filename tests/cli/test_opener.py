from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from p2pstore.cli.opener import _handlers
from p2pstore.errors import BlocksMissing, FormatError


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with programs that write down how they are called, and a desktop to show them on."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    monkeypatch.setenv("DISPLAY", ":99")
    # What runs detached is waited for, so that the tests need not.
    monkeypatch.setattr("p2pstore.cli.opener._detached", _attached)
    for name in ("xdg-open", "notify-send", "gtk-launch", "gio"):
        said = (
            "Default application for “text/x-fortran”: org.editor.desktop" if name == "gio" else ""
        )
        program = directory / name
        program.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> {directory}/{name}.log\necho '{said}'\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return directory


def _attached(*command: str) -> None:
    import subprocess

    subprocess.run(command, check=True, capture_output=True)


def log(programs: Path, name: str) -> list[str]:
    path = programs / f"{name}.log"
    return path.read_text().splitlines() if path.exists() else []


def test_open_hands_the_original_to_the_desktop(line, served, programs):
    served.answers["open"] = {"path": "/v/film.mkv"}
    assert line("open", "/v/film.mkv.f").code == 0
    assert served.asked("open") == [{"path": "/v/film.mkv.f"}]
    assert log(programs, "xdg-open") == ["/v/film.mkv"]


def test_print_opens_nothing_and_keeps_every_byte(line, served, programs):
    served.answers["open"] = {"path": os.fsdecode(b"/v/a\xff\n")}
    ran = line("open", "--print", "/v/a.f")
    assert (ran.code, ran.raw, ran.err) == (0, b"/v/a\xff\n\n", "")
    assert log(programs, "xdg-open") == []


def test_print_on_a_terminal_is_harmless(line, served):
    served.answers["open"] = {"path": "/v/\x1b[2J"}
    assert line("open", "--print", "/v/a.f", terminal=True).out.startswith("/v/\\x1b[2J")


def test_without_a_desktop_the_path_is_told(line, served):
    served.answers["open"] = {"path": "/v/film.mkv"}
    ran = line("open", "/v/film.mkv.f")
    assert (ran.code, ran.out) == (0, "/v/film.mkv\n")


def test_what_is_no_manifest_goes_to_the_next_handler(line, served, programs):
    served.answers["open"] = FormatError("solver.f is no p2pstore manifest.")
    assert line("open", "/v/solver.f").code == 0
    assert log(programs, "gtk-launch") == ["org.editor.desktop", "/v/solver.f"]


def test_what_is_no_manifest_is_exit_3_on_a_terminal(line, served, programs):
    served.answers["open"] = FormatError("solver.f is no p2pstore manifest.")
    ran = line("open", "/v/solver.f", terminal=True)
    assert ran.code == 3
    assert log(programs, "gtk-launch") == []


def test_what_is_no_manifest_is_exit_3_without_a_desktop(line, served):
    served.answers["open"] = FormatError("solver.f is no p2pstore manifest.")
    assert line("open", "/v/solver.f").code == 3


def test_error_of_a_double_click_is_a_notification(line, served, programs):
    served.answers["open"] = BlocksMissing("3 of 41 blocks are only on <nas>")
    assert line("open", "/v/a.f").code == 5
    assert log(programs, "notify-send")[-1] == "3 of 41 blocks are only on &lt;nas&gt;"


def test_long_double_click_is_told_once(line, served, programs, monkeypatch):
    monkeypatch.setattr("p2pstore.cli.opener.SLOW_S", 0.0)

    def slow(args, progress):
        progress({"stage": "hydrate", "bytes": 1, "bytes_total": 9_800_000_000})
        progress({"text": "half"})
        return {"path": "/v/film.mkv"}

    served.answers["open"] = slow
    line("open", "/v/film.mkv.f")
    words = log(programs, "notify-send")
    assert words.count("Bringing the original back") == 1
    assert words[-1].startswith("film.mkv.f")


def test_stopped_node_with_a_chosen_home_works_in_process(line, control, stopped, programs):
    control.answers["open"] = {"path": "/v/film.mkv"}
    assert line("open", "--print", "/v/film.mkv.f").out == "/v/film.mkv\n"
    assert not stopped.is_open
    assert log(programs, "systemctl") == []


def test_our_own_handler_is_never_the_next_one():
    listed = (
        "Default application for “text/x-fortran”: p2pstore-open.desktop\n"
        "Registered applications:\n\tp2pstore.desktop\n\torg.gnome.TextEditor.desktop\n"
        "\tvim.desktop\n\tvim.desktop\n"
    )
    assert _handlers(listed) == ["org.gnome.TextEditor.desktop", "vim.desktop"]
