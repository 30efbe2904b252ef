"""How the Makefile finds a Python and makes an environment; nothing here needs the network."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / ".ci" / "env.sh"
TOOLS = ("cat", "cmp", "cp", "dirname", "ls", "rm", "sh")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A PATH with the few tools that the script needs, and no Python."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for tool in TOOLS:
        (directory / tool).symlink_to(str(shutil.which(tool)))
    return directory


def make(
    path: Path, venv: Path, *, lock: Path | None = None, script: Path = SCRIPT, python: str = ""
) -> subprocess.CompletedProcess[str]:
    env = {"PATH": str(path), "HOME": str(path.parent), "PIP_NO_INDEX": "1"}
    if python:
        env["PYTHON"] = python
    words = ["sh", str(script), str(venv), str(lock or ROOT / "deploy" / "requirements.lock")]
    return subprocess.run(words, capture_output=True, text=True, env=env, check=False)


def command(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_without_a_fitting_python_one_sentence_says_so(path: Path, tmp_path: Path) -> None:
    command(path / "python3.12", 'echo "pyenv: python3.12: command not found" >&2; exit 127')
    done = make(path, tmp_path / "venv")
    assert done.returncode == 1
    assert done.stderr.startswith("p2pstore needs Python 3.11 to 3.14")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "venv").exists()


def test_a_python_that_was_named_and_does_not_fit_is_named(path: Path, tmp_path: Path) -> None:
    command(path / "python3.11", f'exec "{sys.executable}" "$@"')
    done = make(path, tmp_path / "venv", python="/bin/false")
    assert done.returncode == 1
    assert "/bin/false is none" in done.stderr


@pytest.mark.slow
def test_a_name_that_does_not_run_is_passed_over(path: Path, tmp_path: Path) -> None:
    command(path / "python3.14", "exit 127")
    command(path / "python3.11", f'exec "{sys.executable}" "$@"')
    nothing = tmp_path / "nothing.lock"
    nothing.write_text("# no package\n")
    venv = tmp_path / "my env"
    done = make(path, venv, lock=nothing)
    assert done.returncode == 0, done.stderr
    told = subprocess.run(
        [venv / "bin" / "python", "-c", "import sys; print(sys.prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == str(venv)
    assert (venv / ".p2pstore-lock").read_bytes() == nothing.read_bytes()


def test_a_changed_pip_is_refused(path: Path, tmp_path: Path) -> None:
    command(path / "python3", f'exec "{sys.executable}" "$@"')
    copy = tmp_path / "checkout" / ".ci"
    copy.mkdir(parents=True)
    shutil.copy(SCRIPT, copy)
    shutil.copy(ROOT / ".ci" / "requirements.lock", copy)
    (copy / "pip-1.0-py3-none-any.whl").write_bytes(b"not pip")
    done = make(path, tmp_path / "venv", script=copy / "env.sh")
    assert done.returncode != 0
    assert "is not the file that requirements.lock names" in done.stderr


def test_pips_wheel_is_the_locked_one() -> None:
    (wheel,) = (ROOT / ".ci").glob("pip-*.whl")
    lock = (ROOT / ".ci" / "requirements.lock").read_text()
    assert f"pip=={wheel.name.split('-')[1]} " in lock
    assert f"--hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" in lock


def test_the_builder_is_the_one_of_the_tests() -> None:
    """Or an installed program would come from another builder than the tested one."""
    every = (ROOT / ".ci" / "requirements.lock").read_text()
    assert "hatchling==" in (build := (ROOT / ".ci" / "build.lock").read_text())
    assert all(line in every for line in build.splitlines())


@pytest.mark.parametrize(
    "lock", [".ci/requirements.lock", ".ci/build.lock", "deploy/requirements.lock"]
)
def test_locks_are_hashed_and_name_no_host(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert "://" not in text
    packages = [block for block in text.split("\n") if block and not block.startswith((" ", "#"))]
    assert packages
    assert all(line.endswith("\\") and "==" in line for line in packages)


def test_the_script_can_be_run() -> None:
    assert os.access(SCRIPT, os.X_OK)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
