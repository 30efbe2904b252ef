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
from tests.faults.world import copied, world

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

CUTS = 3  # of each scenario, unless all are asked for
SIZE = 40 << 20


class PowerCut(Killing):
    """Each run begins from a copy of an image that was unmounted cleanly.

    `part` says what lies on the image: the folder, HOME, or both. With one of them the other loses
    nothing, as on another disk that wrote back at once: no sync of the one covers for the other.
    """

    def __init__(
        self, server: Server, base: Path, scenario: Scenario, part: str, *, size: int = SIZE
    ) -> None:
        self._server = server
        self._base = base
        self.scenario = scenario
        self._at = base / "world"
        self._at.mkdir()
        self._whole = part == "both"
        self._loop = Loop(base / "image", self._at / ("" if self._whole else part), size=size)
        self._loop.mount()
        with world(self._at) as made:
            scenario.prepare(made)
        self._loop.umount()
        shutil.copyfile(self._loop.image, base / "start image")
        if not self._whole:
            copied(self._at, base / "start")

    def _fresh(self) -> Path:
        if os.path.ismount(self._loop.at):
            self._loop.umount()
        shutil.copyfile(self._base / "start image", self._loop.image)
        if not self._whole:
            shutil.rmtree(self._at)
            copied(self._base / "start", self._at)
        self._loop.mount()
        return self._at

    def cut(
        self, at_call: int, *, recovery_at: int = 0, flush: bool = False, mutant: str = ""
    ) -> None:
        at, scenario = self._fresh(), self.scenario
        self._run(at, scenario.job, at_call, flush, mutant)
        self.look(at)
        if recovery_at:
            self._run(at, "recover", recovery_at, flush, mutant)
            self.look(at)
        self.check(at)

    def _run(self, at: Path, job: str, kill_at: int, flush: bool, mutant: str) -> None:
        self._server.run(
            at,
            job,
            self.scenario.names,
            kill_at=kill_at,
            power=self._loop.at,
            flush=flush,
            mutant=mutant,
        )
        self._loop.umount()
        self._loop.mount()

    def close(self) -> None:
        self._loop.close()


@pytest.fixture
def cutting(
    request: pytest.FixtureRequest, server: Server, tmp_path: Path
) -> Iterator[tuple[str, PowerCut]]:
    name, part = request.param
    made = PowerCut(server, tmp_path, SCENARIOS[name], part)
    yield f"{name}, {part}", made
    made.close()


@pytest.mark.parametrize(
    "cutting",
    [
        ("replace", "both"),
        ("replace", "folder"),
        ("replace", "home"),
        ("next version", "folder"),
        ("next version", "home"),
        ("hydrate", "folder"),
        ("hydrate", "home"),
        ("hydrate in place", "both"),
        ("empty trash", "home"),
    ],
    indirect=True,
    ids=", ".join,
)
def test_power_cut_at_any_write_costs_no_file(cutting: tuple[str, PowerCut]) -> None:
    name, power = cutting
    calls = power.calls()
    dice = random.Random(SEED)
    # The later half is where names change.
    points = list(range(1, calls + 1))
    if not EVERY:
        late = points[calls // 3 :]
        points = sorted(dice.sample(late, min(CUTS, len(late))))
    for point in points:
        recovery_at = dice.choice([0, dice.randint(1, 10)])
        flush = dice.random() < 0.6
        print(f"{name}: cut at {point} of {calls}, {recovery_at}, flush {flush} (seed {SEED})")
        power.cut(point, recovery_at=recovery_at, flush=flush)
