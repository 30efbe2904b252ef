"""kill -9 at system calls, those of SQLite and of threads included, by strace."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.killing import Killing, Server
from tests.faults.test_kill import EVERY, SCENARIOS, SEED

CALLS = ["renameat2", "linkat", "fdatasync", "fsync", "syncfs", "rename"]


def why_not() -> str:
    """Why strace cannot be used here; empty when it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True)
    return "strace may not trace here" if tried.returncode else ""


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.mark.parametrize("name", ["replace", "next version", "hydrate"])
def test_killed_at_a_system_call_nothing_is_lost(name: str, server: Server, tmp_path: Path) -> None:
    killing = Killing(server, tmp_path, SCENARIOS[name])
    dice = random.Random(f"{SEED} {name}")
    for _ in range(40 if EVERY else 2):
        call, when = dice.choice(CALLS), dice.randint(1, 4)
        print(f"{name}: killed at {call} number {when} (seed {SEED})")
        at = killing._fresh()
        inject = f"inject={call}:signal=SIGKILL:when={when}"
        command = [
            *("strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", inject),
            *(sys.executable, "-m", "tests.faults.child"),
            *(str(at), killing.scenario.job, *killing.scenario.names),
        ]
        subprocess.run(command, cwd=Path(__file__).parents[2], timeout=60, capture_output=True)
        killing.look(at)
        killing.check(at)
