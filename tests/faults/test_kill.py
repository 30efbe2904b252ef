"""kill -9 before every write of a job, and of the recovery after it (SAFETY.md 8)."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.faults.killing import Killing, Scenario, Server, contents
from tests.faults.world import World

SEED = int(os.environ.get("FAULT_SEED", "20260101"))
EVERY = os.environ.get("FAULT_POINTS") == "all"
POINTS = 10  # of each scenario, unless all are asked for: the whole takes minutes

NEW = contents(1, {"small": 900, "below/large": 300_000, "empty": 0})
OLD = contents(2, {"small": 700, "below/large": 200_000})
BIG = contents(3, {"big": 5 << 20})
NAMES = [name.decode() for name in NEW]


def _write(made: World, files: dict[bytes, bytes]) -> None:
    for name, content in files.items():
        made.write(name, content)


def _first(made: World) -> None:
    _write(made, NEW)


def _next(made: World) -> None:
    """Newer files beside the placeholders of their earlier versions."""
    _write(made, OLD)
    made.replace(*OLD)
    made.empty_trash()
    _write(made, NEW)


def _same(made: World) -> None:
    """Brought back and unchanged; the old `.f` stands beside one of them."""
    _write(made, NEW)
    made.replace(*NEW)
    made.empty_trash()
    placeholder = made.at("small.f").read_bytes()
    made.hydrate(*(name + b".f" for name in NEW))
    made.at("small.f").write_bytes(placeholder)


def _placeholders(made: World) -> None:
    _write(made, NEW | BIG)
    made.replace(*NEW, *BIG)
    made.empty_trash()


def _renamed(made: World) -> None:
    """A placeholder that bears the original's own name."""
    _write(made, NEW)
    made.replace(*NEW)
    made.empty_trash()
    os.rename(made.at("small.f"), made.at("small"))


def _in_trash(made: World) -> None:
    _write(made, NEW)
    made.replace(*NEW)


SCENARIOS = {
    "replace": Scenario("replace", NAMES, _first, {k: [v] for k, v in NEW.items()}),
    "next version": Scenario(
        "replace",
        NAMES,
        _next,
        {k: ([OLD[k]] if k in OLD else []) + [v] for k, v in NEW.items()},
        both=True,
    ),
    "same content": Scenario("replace", NAMES, _same, {k: [v] for k, v in NEW.items()}, both=True),
    "hydrate": Scenario(
        "hydrate",
        [name + ".f" for name in [*NAMES, "big"]],
        _placeholders,
        {k: [v] for k, v in (NEW | BIG).items()},
    ),
    "hydrate in place": Scenario("hydrate", ["small"], _renamed, {k: [v] for k, v in NEW.items()}),
    "empty trash": Scenario("empty", [], _in_trash, {k: [v] for k, v in NEW.items()}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_any_write_nothing_is_lost(name: str, server: Server, tmp_path: Path) -> None:
    killing = Killing(server, tmp_path, SCENARIOS[name])
    calls = killing.calls()
    points = list(range(1, calls + 1))
    if not EVERY and calls > POINTS:
        points = sorted(random.Random(SEED).sample(points, POINTS))
    for point in points:
        print(f"{name}: killed before write {point} of {calls} (seed {SEED})")
        killing.kill(point)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["replace", "next version", "hydrate", "hydrate in place"])
def test_recovery_may_be_killed_too(name: str, server: Server, tmp_path: Path) -> None:
    killing = Killing(server, tmp_path, SCENARIOS[name])
    calls = killing.calls()
    dice = random.Random(SEED)
    for _ in range(60 if EVERY else 4):
        point = dice.randint(calls // 3, calls)
        moments = [dice.randint(1, 12) for _ in range(2)]
        print(f"{name}: {point} of {calls}, recovery before {moments} (seed {SEED})")
        killing.kill(point, recovery_at=moments)
