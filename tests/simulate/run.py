"""Runs worlds, and makes figures of them.

A loss with four copies is rare: bundles must be watched for millions of years to see one. Two
estimates are made of the same worlds. The plain one counts. The other splits (RESTART, after
Villen-Altamirano): whenever some group falls to a lower number of copies than it hardly ever has,
the world goes on in several futures, drawn anew, which count less; each ends when no group has so
few any more. Nothing is assumed by it but that deaths are without memory, so both estimate the
same, and the second from many more near misses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import get_context

from tests.simulate.nature import BEGIN, Tally
from tests.simulate.scenario import YEAR, Scenario
from tests.simulate.world import World

FUTURES = (16, 128)  # for each level of danger: the second is seldom reached, thus cheap
WORLD_YEARS = 25.0  # how long one world is watched


@dataclass(slots=True)
class Figures:
    """What all worlds of a scenario have seen."""

    scenario: Scenario
    total: Tally = field(default_factory=Tally)
    worlds: int = 0
    plain: list[float] = field(default_factory=list)  # lost bundles of each world
    rare: list[float] = field(default_factory=list)  # the same, by splitting

    def add(self, tally: Tally) -> None:
        total = self.total
        self.worlds += 1
        self.plain.append(tally.lost)
        self.rare.append(tally.rare)
        total.world_years += tally.world_years
        total.bundle_years += tally.bundle_years
        total.lost += tally.lost
        total.lost_groups += tally.lost_groups
        total.low_years += tally.low_years
        total.moved += tally.moved
        total.liars += tally.liars
        total.found_after += tally.found_after
        total.accused += tally.accused
        total.ended += tally.ended

    @property
    def group_years(self) -> float:
        return self.total.bundle_years / self.scenario.weight

    def loss(self) -> tuple[float, float]:
        """(per bundle-year, the 95 % bound above it), by splitting if it was done."""
        return self._rate(self.rare if self.is_split else self.plain)

    def plain_loss(self) -> tuple[float, float]:
        return self._rate(self.plain)

    @property
    def is_split(self) -> bool:
        return bool(_levels(self.scenario))

    def _rate(self, lost: Sequence[float]) -> tuple[float, float]:
        years = self.total.bundle_years
        total = sum(lost)
        if total == 0:
            return 0.0, 3 / self.group_years  # rule of three; a group is lost as a whole
        mean = total / len(lost)
        spread = math.sqrt(sum((x - mean) ** 2 for x in lost))
        return total / years, (total + 1.645 * spread) / years


def run(scenario: Scenario, seed: int, years: float = WORLD_YEARS) -> Tally:
    """One world."""
    world = World(scenario, seed)
    dice = random.Random(~seed)
    rare = _explore(world, BEGIN + years * YEAR, _levels(scenario), 0, 1.0, 0, dice)
    tally = world.close(BEGIN + years * YEAR)
    tally.rare = rare
    return tally


def run_all(
    scenario: Scenario,
    *,
    worlds: int,
    seed: int,
    workers: int = 1,
    years: float = WORLD_YEARS,
    tell: Callable[[int], None] = lambda done: None,
) -> Figures:
    """The same figures for the same seed, whatever the number of workers."""
    figures = Figures(scenario)
    seeds = [seed * 1_000_003 + n for n in range(worlds)]
    if workers == 1:
        for n, one in enumerate(seeds):
            figures.add(run(scenario, one, years))
            tell(n + 1)
        return figures
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(run, scenario, one, years) for one in seeds]
        for n, _ in enumerate(as_completed(tasks)):
            tell(n + 1)
        for task in tasks:
            figures.add(task.result())
    return figures


def _levels(scenario: Scenario) -> tuple[int, ...]:
    """Copies that the worst group has, each a level of danger of its own."""
    levels = range(scenario.copies - 2, 0, -1) if scenario.is_rare else ()
    return tuple(levels)[: len(FUTURES)]


def _explore(
    world: World,
    end: float,
    levels: tuple[int, ...],
    level: int,
    weight: float,
    floor: int,
    dice: random.Random,
) -> float:
    """Lost bundles, weighted, until the end or until the danger is below `floor`."""
    lost = 0.0
    while world.due() < end:
        lost += weight * world.step()
        fewest = world.fewest()
        danger = sum(fewest <= copies for copies in levels)
        while level < danger:
            weight /= FUTURES[level]
            level += 1
            for _ in range(FUTURES[level - 1] - 1):
                other = world.branch(dice.getrandbits(64))
                lost += _explore(other, end, levels, level, weight, level, dice)
        if danger < floor:
            break
        if danger < level:
            weight *= math.prod(FUTURES[danger:level])
            level = danger
    return lost
