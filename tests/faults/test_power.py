"""The power goes at any write: what was not synced is lost, and still no file is (SAFETY.md 8).

kill -9 leaves the page cache alone; here the file system itself loses what was not written back.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.killing import Killing, Scenario, Server
from tests.faults.loop import Loop, why_not
from tests.faults.test_kill import EVERY, SCENARIOS, SEED
from tests.faults.world import world

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

CUTS = 7  # of each scenario, unless all are asked for
SIZE = 48 << 20


class PowerCut(Killing):
    """Each run begins from a copy of an image that was unmounted cleanly."""

    def __init__(self, server: Server, base: Path, scenario: Scenario) -> None:
        self._server = server
        self._base = base
        self.scenario = scenario
        self._loop = Loop(base / "image", base / "mount", size=SIZE)
        self._loop.mount()
        with world(self._loop.at / "world") as made:
            scenario.prepare(made)
        self._loop.umount()
        shutil.copyfile(self._loop.image, base / "start")

    def _fresh(self) -> Path:
        if os.path.ismount(self._loop.at):
            self._loop.umount()
        shutil.copyfile(self._base / "start", self._loop.image)
        self._loop.mount()
        return self._loop.at / "world"

    def cut(self, at_call: int, *, recovery_at: int = 0) -> None:
        at, scenario = self._fresh(), self.scenario
        names = scenario.names
        self._server.run(at, scenario.job, names, kill_at=at_call, power=True)
        self._power_is_back()
        self.look(at)
        if recovery_at:
            self._server.run(at, "recover", kill_at=recovery_at, power=True)
            self._power_is_back()
            self.look(at)
        self.check(at)

    def _power_is_back(self) -> None:
        self._loop.umount()
        self._loop.mount()

    def close(self) -> None:
        self._loop.close()


@pytest.fixture
def cutting(
    request: pytest.FixtureRequest, server: Server, tmp_path: Path
) -> Iterator[tuple[str, PowerCut]]:
    made = PowerCut(server, tmp_path, SCENARIOS[request.param])
    yield request.param, made
    made.close()


@pytest.mark.parametrize(
    "cutting", ["replace", "next version", "hydrate", "hydrate in place"], indirect=True
)
def test_power_cut_at_any_write_costs_no_file(cutting: tuple[str, PowerCut]) -> None:
    name, power = cutting
    calls = power.calls()
    dice = random.Random(SEED)
    # The later half is where names change.
    points = list(range(1, calls + 1))
    if not EVERY:
        points = sorted(dice.sample(points[calls // 3 :], CUTS))
    for point in points:
        recovery_at = dice.choice([0, dice.randint(1, 10)])
        print(f"{name}: power cut at write {point} of {calls}, then {recovery_at} (seed {SEED})")
        power.cut(point, recovery_at=recovery_at)
