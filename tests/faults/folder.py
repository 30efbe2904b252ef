"""Harm to one folder of 500 files and its store: kills, power cuts, turned bits."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from p2pstore.maintenance import check
from p2pstore.store import DiskBundles, HeldStore
from tests.faults.killing import Killing, Scenario, Server
from tests.faults.loop import why_not
from tests.faults.table import Order, Row, place
from tests.faults.test_power import PowerCut
from tests.faults.world import RING, Oracle, World, world

FILES = 500
IMAGE = 128 << 20
DELIVERED = 20  # every so many flips all placeholders are read as well


def corpus(seed: int) -> dict[bytes, bytes]:
    """Small files mostly, some of several chunks, some equal ones, an empty one."""
    dice = random.Random(seed)
    made: dict[bytes, bytes] = {b"empty": b""}
    for number in range(FILES - 3):
        size = dice.choice([1, 300, 2_000, 9_000, 30_000, 70_000])
        content = dice.randbytes(size) if dice.random() < 0.5 else b"%d " % number * (size // 4)
        made[b"d%d/file %d" % (number % 17, number)] = content
    made[b"d0/large"] = dice.randbytes(3 << 20)
    made[b"d0/twin"] = made[b"d0/large"]
    return made


def scenarios(seed: int) -> dict[str, Scenario]:
    files = corpus(seed)
    names = [os.fsdecode(name) for name in files]
    versions = {name: [content] for name, content in files.items()}

    def write(made: World) -> None:
        for name, content in files.items():
            made.write(name, content)

    def in_trash(made: World) -> None:
        write(made)
        made.replace(*names)

    def placeholders(made: World) -> None:
        in_trash(made)
        made.empty_trash()

    dotted = [name + ".f" for name in names]
    return {
        "replace": Scenario("replace", names, write, versions),
        "hydrate": Scenario("hydrate", dotted, placeholders, versions),
        "empty": Scenario("empty", [], in_trash, versions),
    }


def kills(order: Order) -> Row:
    row, dice = Row("kills"), random.Random(order.seed)
    with place(in_memory=True) as base, _server() as server:
        jobs = []
        for job, scenario in scenarios(order.seed).items():
            (base / job).mkdir()
            killing = Killing(server, base / job, scenario)
            jobs.append((job, killing, killing.calls()))
        for number in order.numbers():
            job, killing, calls = jobs[number % len(jobs)]
            point = dice.randint(1, calls)
            again = [dice.randint(1, 40)] if dice.random() < 0.34 else []
            what = f"{job} {point}/{calls} {again} (seed {order.seed})"
            row.attempt(what, partial(killing.kill, point, recovery_at=again))
            row.files += len(killing.scenario.versions)
            row.counts["recoveries killed"] += len(again)
    return row


def power(order: Order) -> Row:
    row, dice = Row("power"), random.Random(order.seed)
    if why_not():
        row.note = why_not()
        return row
    with place(in_memory=True) as base, _server() as server, ExitStack() as stack:
        jobs = []
        for job, scenario in scenarios(order.seed).items():
            (base / job).mkdir()
            try:
                cutting = PowerCut(server, base / job, scenario, "both", size=IMAGE)
            except pytest.skip.Exception as exc:
                row.note = str(exc)
                return row
            stack.callback(cutting.close)
            jobs.append((job, cutting, cutting.calls()))
        for number in order.numbers():
            job, cutting, calls = jobs[number % len(jobs)]
            point, flush = dice.randint(1, calls), dice.random() < 0.6
            again = dice.choice([0, dice.randint(1, 40)])
            what = f"{job} {point}/{calls} {again} {flush} (seed {order.seed})"
            row.attempt(what, partial(cutting.cut, point, recovery_at=again, flush=flush))
            row.files += len(cutting.scenario.versions)
            row.counts["recoveries cut"] += bool(again)
    return row


def flips(order: Order) -> Row:
    """Bits of bundles; whoever reads gets the right bytes or an error, and a check finds each."""
    row, dice = Row("flips"), random.Random(order.seed)
    with place(in_memory=True) as base:
        scenario = scenarios(order.seed)["hydrate"]
        with world(base) as made:
            scenario.prepare(made)
            paths = [made.disk.path(one) for one in made.disk.list()]
            held = HeldStore(base / "held", made.clock, boot_id="here")
            wanted = {all_[0] for all_ in scenario.versions.values()}
            for number in order.numbers():
                path = dice.choice(paths)
                raw = path.read_bytes()
                at, bit = dice.randrange(len(raw)), 1 << dice.randrange(8)
                path.write_bytes(raw[:at] + bytes([raw[at] ^ bit]) + raw[at + 1 :])
                what = f"{path.name} byte {at} of {len(raw)}, bit {bit} (seed {order.seed})"
                row.attempt(what, partial(_is_found, made, held, row))
                if number % DELIVERED == 0:
                    _delivers(base, wanted, row, what)
                path.write_bytes(raw)
            held.close()
    return row


def _is_found(made: World, held: HeldStore, row: Row) -> None:
    # A new store: lists that were read before must not stand for what is there now.
    fresh = DiskBundles(made.disk.root)
    try:
        seen = check(fresh, held, made.catalog, read_data=True, ring=RING)
    finally:
        fresh.close()
    assert seen.problems, "not found"
    row.counts["found"] += 1


def _delivers(base: Path, wanted: set[bytes], row: Row, what: str) -> None:
    """Every placeholder: its content, or an error."""
    oracle = Oracle(base)
    try:
        for path in sorted((base / "folder").rglob("*.f")):
            content = oracle.content_of(path.read_bytes())
            row.files += 1
            if content is not None and content not in wanted:
                row.lost.append(f"{what}: {path.name} came as something else")
    finally:
        oracle.close()


@contextmanager
def _server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.close()
