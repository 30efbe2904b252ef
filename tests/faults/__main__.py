"""`make faults`: the long run. Tries to lose a file, and prints what it tried and what it lost.

    python -m tests.faults [--only NAME]... [--share PERCENT] [--minutes N] [--workers N] [--seed N]

Each line of the table is one way to do harm:

    kills       a job on 500 files is killed before a random write, a third of the recoveries too
    power       the same on an ext4 whose power is cut there (root)
    flips       one bit of one bundle is turned over: a check must find it, a reader must not get
                other bytes than the file's
    evictions   five devices want to be rid of the same bundles at once, links are cut meanwhile
    liars       three of four holders lie, each in its own way: files come from the honest one, and
                nothing is evicted on a liar's word
    real        a node with 500 files and one holder is killed at random moments of its life
    mutants     mistakes planted into the program: each must be caught by some test

A loss ends with exit 1, the seed, and what happened. `--share` tries so many percent of the points,
`--minutes` ends each way after so long; they are dealt to `--workers` processes.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import random
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.faults.folder import flips, kills, power
from tests.faults.real import real
from tests.faults.swarms import evictions, liars
from tests.faults.table import Order, Row, place

Way = Callable[[Order], Row]

MUTANTS = ["tests/faults/test_mutants.py"]


def mutants(order: Order) -> Row:
    """As the short run has them: a test that passes has caught its mutant."""
    row = Row("mutants", order.points)
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *MUTANTS]
    environment = {**os.environ, "FAULT_SEED": str(order.seed)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    passed = re.search(r"(\d+) passed", done.stdout)
    row.counts["tests passed"] += int(passed[1]) if passed else 0
    if done.returncode:
        row.lost.append(done.stdout[-2000:])
    return row


def _evictions(order: Order) -> Row:
    with place(in_memory=True) as base:
        return asyncio.run(evictions(base, order))


def _liars(order: Order) -> Row:
    with place(in_memory=True) as base:
        return asyncio.run(liars(base, order))


WAYS: dict[str, tuple[Way, int, bool]] = {
    # name: (what is done, points, whether they can be dealt to several processes)
    "kills": (kills, 1000, True),
    "power": (power, 300, True),
    "flips": (flips, 1000, True),
    "evictions": (_evictions, 200, True),
    "liars": (_liars, 60, True),
    "real": (real, 60, False),
    "mutants": (mutants, 12, False),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=WAYS, default=[])
    parser.add_argument("--share", type=int, default=100, metavar="PERCENT")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    asked = parser.parse_args()
    logging.getLogger("p2pstore").setLevel(logging.ERROR)  # it warns of what is done to it here
    print(f"seed {asked.seed}", flush=True)
    rows = []
    with ProcessPoolExecutor(asked.workers) as pool:
        for name in asked.only or WAYS:
            way, points, can_be_dealt = WAYS[name]
            hands = asked.workers if can_be_dealt else 1
            each = -(-points * asked.share // (100 * hands))
            began, row = time.monotonic(), Row(name)
            until = began + 60 * asked.minutes
            orders = [Order(asked.seed + hand, each, until) for hand in range(hands)]
            for part in pool.map(partial(_guarded, name, way), orders):
                row.add(part)
            rows.append(row)
            print(row.line(time.monotonic() - began), flush=True)
    for row in rows:
        for loss in row.lost:
            print(f"!! {row.name}: {loss}")
    return 1 if any(row.lost for row in rows) else 0


def _guarded(name: str, way: Way, order: Order) -> Row:
    """A way that breaks is told as a loss: the others still run, and the table is printed."""
    try:
        return way(order)
    except Exception:
        return Row(name, lost=[f"seed {order.seed}: {traceback.format_exc()}"])


if __name__ == "__main__":
    sys.exit(main())
