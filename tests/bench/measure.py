"""One contender at work: wall, CPU seconds and peak memory of a process and its children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).parents[2]


class Failed(Exception):
    """A contender ended with an error; its last words."""


class Figure(NamedTuple):
    wall_s: float
    cpu_s: float
    peak_bytes: int


def command(args: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path) -> Figure:
    """A program from its start to its end."""
    log = cwd / "log"
    began = time.perf_counter()
    with open(log, "wb") as out:
        process = subprocess.Popen(
            args,
            env={**os.environ, **env},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
        _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise Failed(f"{args[0]}: {log.read_text(errors='replace')[-2000:]}")
    return Figure(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def phases(module: str, *args: str | Path) -> dict[str, Figure]:
    """A module of ours that measures its own phases (`Phase`) and prints a line for each."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=CHECKOUT,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.fspath(CHECKOUT)},
    )
    if done.returncode:
        raise Failed(f"{module}: {os.fsdecode(done.stderr)[-3000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    return {line["phase"]: Figure(line["wall_s"], line["cpu_s"], line["peak"]) for line in lines}


class Phase:
    """`with Phase("protect"): ...` inside a measured process; prints one line at its end."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.waited_s = 0.0  # what was no work: a settle time

    def __enter__(self) -> Phase:
        # 5: the peak begins anew (proc(5), clear_refs).
        Path("/proc/self/clear_refs").write_text("5")
        self._cpu, self._began = _cpu(), time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        wall, cpu = time.perf_counter() - self._began - self.waited_s, _cpu() - self._cpu
        if kind is None:
            line = {"phase": self._name, "wall_s": wall, "cpu_s": cpu, "peak": _peak()}
            print(json.dumps(line), flush=True)


def _cpu() -> float:
    times = os.times()
    return times.user + times.system


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
