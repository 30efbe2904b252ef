from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from p2pstore.cli.app import _COMMANDS
from p2pstore.cli.shell import gravest
from p2pstore.errors import (
    FormatError,
    IntegrityError,
    P2PStoreError,
    PortInUse,
    UsageError,
)

GROUPS = {"words": ["show", "confirm"], "service": ["install", "uninstall", "allow"],
          "desktop": ["install", "remove"]}  # fmt: skip
ALL = [
    *([name] for name in _COMMANDS),
    *([group, name] for group, names in GROUPS.items() for name in names),
]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_help_has_an_example(line, words):
    ran = line(*words, "--help")
    assert ran.code == 0
    assert "Example:" in ran.out
    assert f"p2pstore {' '.join(words)}" in ran.out.partition("Example:")[2]


def test_help_lists_every_command(line):
    out = line("--help").out
    assert all(f"  {name} " in out for name in _COMMANDS)


def test_version(line):
    assert line("--version").out == "p2pstore 0.1.0\n"


@pytest.mark.parametrize(
    "words",
    [["nope"], ["status", "--nope"], ["cat"], ["upload"], ["invite", "--role", "boss"], []],
    ids=" ".join,
)
def test_wrong_usage_is_exit_2(line, words):
    assert line(*words).code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["add-folder", "/x"],
        ["remove-folder", "/x"],
        ["folders"],
        ["status"],
        ["ls"],
        ["hydrate", "/x"],
        ["dehydrate", "/x"],
        ["free-up", "/x"],
        ["pin", "/x"],
        ["unpin", "/x"],
        ["evict"],
        ["restore", "/x", "--to", "/y"],
        ["undelete", "/x"],
        ["pause", "/x"],
        ["resume", "/x"],
        ["invite"],
        ["peers"],
        ["connect", "h:1"],
        ["leave"],
    ],
    ids=" ".join,
)
def test_stopped_node_is_exit_6_with_a_remedy(line, words):
    ran = line(*words)
    assert ran.code == 6
    assert ran.err == (
        "The node is not running. Start it: p2pstore service install (always) "
        "or p2pstore run (now)\n"
    )


def test_left_over_control_file_is_no_node(line, home, tmp_path):
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(dead))
    (home / "control").write_text(f"{dead}\n")
    assert line("status").code == 6


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (P2PStoreError("what to do"), 1),
        (UsageError("what to do"), 2),
        (FormatError("what to do"), 3),
        (IntegrityError("what to do"), 4),
        (PortInUse("what to do"), 5),
    ],
)
def test_error_of_the_node_is_its_code_and_one_sentence(line, served, raised, code):
    served.answers["pause"] = raised
    ran = line("pause", "/x")
    assert (ran.code, ran.out, ran.err) == (code, "", "what to do\n")


def test_traceback_only_with_v(line, served):
    served.answers["pause"] = IntegrityError("bad")
    assert "Traceback" not in line("pause", "/x").err
    assert "Traceback" in line("-v", "pause", "/x").err


def test_bug_is_exit_1_without_traceback(line, served, monkeypatch):
    monkeypatch.setattr("p2pstore.cli.folders.show.path", lambda text: 1 / 0)
    ran = line("pause", "/x")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert "ZeroDivisionError" in ran.err


@pytest.mark.parametrize(
    ("codes", "grave"), [([0, 5, 4], 4), ([5, 3], 3), ([0], 0), ([], 0), ([2, 5], 2), ([5, 1], 1)]
)
def test_gravest_code_wins(codes, grave):
    assert gravest(codes) == grave


def test_home_comes_from_the_environment(served, home, monkeypatch):
    from p2pstore import cli

    monkeypatch.setenv("P2PSTORE_HOME", str(home))
    assert cli.main(["-q", "pause", "/x"]) == 0
    assert served.asked("pause") == [{"dir": "/x"}]


def test_run_hands_home_and_overrides_to_the_node(line, home):
    handed = []

    def run_node(config, where):
        handed.append((config, where))
        return 0

    ran = line("run", "--listen", "127.0.0.1:0", "--ui", "off", "--no-mdns", run_node=run_node)
    assert ran.code == 0, ran.err
    assert handed[0][1] == home


def test_port_in_use_at_run_is_exit_5(line):
    def run_node(config, home):
        raise PortInUse("Port 8080 is in use (nginx, pid 812).")

    ran = line("run", run_node=run_node)
    assert ran.code == 5
    assert ran.err.startswith("Port 8080 is in use")


# -- real processes


@pytest.mark.slow
def test_help_starts_quickly(program, environment):
    """The budget is in processor time: other tests may use the machine at the same moment."""
    code = (
        "import os, sys; from p2pstore.cli import main; main(['--help']); "
        "sys.stderr.write(str(sum(os.times()[:2])))"
    )
    times = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, check=True
            ).stderr
        )
        for _ in range(3)
    ]
    assert min(times) < 0.15


@pytest.mark.slow
def test_help_imports_nothing_heavy(environment):
    code = (
        "import sys; from p2pstore.cli import main; main(['--help']); "
        "heavy = {'aiohttp', 'asyncio', 'rich', 'msgspec', 'nacl', 'http.client', 'blake3'}; "
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.slow
def test_real_process_against_the_node(program, environment, served, home):
    name = os.fsdecode(b"/v/\xff\n.f")
    served.answers["status"] = {
        "node": {"name": "n"},
        "files": [{"path": name, "state": "pending"}],
    }
    command = [*program, "--home", str(home), "status", "--json", name]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["files"][0]["path"] == name
    assert served.asked("status")[0]["paths"] == [name]


@pytest.mark.slow
def test_reader_that_has_enough_is_no_error(program, environment, served, home):
    served.pieces = [b"x" * 1_000_000] * 20
    command = [*program, "--home", str(home), "cat", "/v/a"]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    _, err = process.communicate(timeout=20)
    assert err == b""


@pytest.mark.slow
def test_ctrl_c_stops_the_waiting_only(program, environment, served, home):
    began = threading.Event()
    ended = threading.Event()

    async def work(args, progress):
        began.set()
        await asyncio.to_thread(ended.wait, 20)
        return {"results": []}

    served.answers["hydrate"] = work
    command = [*program, "--home", str(home), "hydrate", "/v/a.f"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert began.wait(20)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    ended.set()
    assert process.returncode == 130
    assert "The node goes on hydrating; to undo it: p2pstore dehydrate" in err
    assert "Traceback" not in err
