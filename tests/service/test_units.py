"""The unit files as systemd itself judges them, and the promise that they are one source."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from p2pstore.cli import service

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "p2pstore" / "data"
ANALYZE = shutil.which("systemd-analyze")
EXPOSURE = re.compile(r"Overall exposure level for \S+: ([0-9.]+)")
MOST_EXPOSURE = 2.5

needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


def analyze(runtime: Path, *words: str) -> subprocess.CompletedProcess[str]:
    runtime.mkdir(mode=0o700, exist_ok=True)
    env = os.environ | {"XDG_RUNTIME_DIR": str(runtime), "SYSTEMD_PAGER": ""}
    return subprocess.run(
        [str(ANALYZE), *words], capture_output=True, text=True, env=env, check=False
    )


def written(directory: Path, *, system: bool) -> Path:
    """The unit as `service install` writes it, started by a program that exists."""
    owner = service.Owner("root", 0, 0, Path("/root"))
    unit = service.Unit(owner, system, directory)
    program = directory / "a program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = directory / unit.name
    path.write_text(service.unit_text(unit, [str(program)]))
    return path


@needs_analyze
@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_systemd_finds_nothing_to_say(tmp_path: Path, system: bool) -> None:
    scope = [] if system else ["--user"]
    path = written(tmp_path, system=system)
    done = analyze(tmp_path / "run", *scope, "verify", "--man=no", str(path))
    ours = [line for line in done.stderr.splitlines() if "p2pstore" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@needs_analyze
def test_a_broken_unit_would_be_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, system=True)
    path.write_text(path.read_text().replace("WatchdogSec=", "WatchDog="))
    done = analyze(tmp_path / "run", "verify", "--man=no", str(path))
    assert "WatchDog" in done.stderr


@needs_analyze
def test_the_system_unit_is_exposed_little(tmp_path: Path) -> None:
    path = written(tmp_path, system=True)
    done = analyze(tmp_path / "run", "security", "--offline=yes", "--no-pager", str(path))
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze knows no --offline (older than 250)")
    found = EXPOSURE.search(done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found.group(1)) <= MOST_EXPOSURE


@pytest.mark.parametrize("name", ["p2pstore.service", "p2pstore@.service"])
def test_units_at_the_top_are_the_packaged_ones(name: str) -> None:
    shown = ROOT / "systemd" / name
    assert shown.is_symlink()
    assert shown.resolve() == UNITS / name


@pytest.mark.parametrize("name", ["p2pstore.service", "p2pstore@.service"])
def test_the_node_tells_when_ready_and_is_watched(name: str) -> None:
    lines = (UNITS / name).read_text().splitlines()
    assert {"Type=notify", "LimitNOFILE=65536", "WatchdogSec=120"} <= set(lines)


@pytest.mark.parametrize("name", ["p2pstore.service", "p2pstore@.service"])
def test_systemd_never_gives_up(name: str) -> None:
    """A limit counts restarts by hand too: five `service allow` would leave the node stopped."""
    lines = (UNITS / name).read_text().splitlines()
    assert {"Restart=on-failure", "StartLimitIntervalSec=0"} <= set(lines)


def test_the_user_unit_makes_no_name_space() -> None:
    """In a user's manager these need a user namespace, where foreign owners become nobody."""
    text = (UNITS / "p2pstore.service").read_text()
    for option in ("ProtectSystem", "ProtectHome", "PrivateTmp", "ReadWritePaths", "PrivateUsers"):
        assert not re.search(rf"^{option}=", text, re.MULTILINE)
