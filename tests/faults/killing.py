"""Scenarios that are killed at their n-th write, and what must hold before and after recovery."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from p2pstore.placement import SUFFIX
from tests.faults.world import (
    Oracle,
    World,
    assert_journal_closed,
    assert_trash_known,
    copied,
    world,
)


class Server:
    """The forking process of `tests.faults.child`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )

    def run(
        self,
        base: Path,
        job: str,
        names: Sequence[str] = (),
        *,
        kill_at: int = 0,
        mutant: str = "",
        power: Path | None = None,
        flush: bool = False,
    ) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "base": str(base),
            "job": job,
            "names": list(names),
            "kill_at": kill_at,
            "mutant": mutant,
            "power": None if power is None else str(power),
            "flush": flush,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        assert isinstance(answer, dict)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(20)
        self._process.stdout.close()


@dataclass
class Scenario:
    """A starting point, the job that is killed, and every version that must survive."""

    job: str
    names: list[str]
    prepare: Callable[[World], None]
    versions: dict[bytes, list[bytes]]  # path -> contents that it may have, all to be kept
    both: bool = False  # a newer `name` may lie beside the `.f` of its earlier version
    keeps: set[bytes] = field(default_factory=set)  # paths that must not change at all


class Killing:
    """Runs one scenario many times from the same starting point."""

    def __init__(self, server: Server, base: Path, scenario: Scenario) -> None:
        self._server = server
        self._base = base
        self.scenario = scenario
        self._start = base / "start"
        with world(self._start) as made:
            scenario.prepare(made)

    def calls(self) -> int:
        """How many writes the job makes when it is left alone."""
        at = self._fresh()
        answer = self._server.run(at, self.scenario.job, self.scenario.names)
        assert not answer["error"], answer["error"]
        self.check(at)
        return int(answer["calls"])

    def kill(self, at_call: int, *, recovery_at: Sequence[int] = (), mutant: str = "") -> None:
        """Kill before that write, check; recover (killed before those writes), check again."""
        at = self._fresh()
        scenario = self.scenario
        self._server.run(at, scenario.job, scenario.names, kill_at=at_call, mutant=mutant)
        self.look(at)
        for moment in recovery_at:
            self._server.run(at, "recover", kill_at=moment, mutant=mutant)
            self.look(at)
        if mutant:
            answer = self._server.run(at, "recover", mutant=mutant)
            assert not answer["error"], answer["error"]
        self.check(at)

    def look(self, at: Path) -> None:
        """I1 and I2: at every instant, before any recovery."""
        oracle = Oracle(at)
        try:
            oracle.assert_nothing_lost(c for all_ in self.scenario.versions.values() for c in all_)
            oracle.assert_names_are_whole(self.scenario.versions)
        finally:
            oracle.close()

    def check(self, at: Path) -> None:
        """After recovery: I4 as well; then the trash goes, and still nothing is lost."""
        scenario = self.scenario
        with world(at) as made:
            made.recover()
            self.look(at)
            oracle = Oracle(at)
            oracle.assert_one_of_two(self._logical(), may_have_both=scenario.both)
            assert_no_strangers(made, self._logical())
            assert_journal_closed(made)
            assert_trash_known(made)
            assert not made.empty_trash()
            assert not made.waiting()
            oracle.assert_nothing_lost(all_[-1] for all_ in scenario.versions.values())
            oracle.assert_one_of_two(self._logical(), may_have_both=scenario.both)
            oracle.close()

    def _logical(self) -> Iterable[bytes]:
        return self.scenario.versions

    def _fresh(self) -> Path:
        at = self._base / "run"
        shutil.rmtree(at, ignore_errors=True)
        copied(self._start, at)
        return at


def assert_no_strangers(made: World, names: Iterable[bytes]) -> None:
    """Nothing new has appeared in the user's tree."""
    allowed = {name for known in names for name in (known, known + SUFFIX)}
    there = {name for name in made.names() if not name.startswith(b"lost+found/")}
    assert there <= allowed, there - allowed


def contents(seed: int, sizes: Mapping[str, int]) -> dict[bytes, bytes]:
    """Different bytes for each name, the same at every run."""
    made = {}
    for name, size in sizes.items():
        stamp = f"{seed} {name} ".encode()
        made[name.encode()] = (stamp * (1 + size // len(stamp)))[:size]
    return made
