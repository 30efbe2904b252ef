"""Files are replaced and brought back while other programs write them: no write is ever lost."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from p2pstore.errors import P2PStoreError
from p2pstore.folders.taking import Candidate
from p2pstore.store import files
from tests.faults.test_kill import EVERY, SEED
from tests.faults.world import Oracle, World, assert_journal_closed

WRITERS = 3
NAMES = 4  # of each writer


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEED, SEED + (20 if EVERY else 2)))
def test_no_write_of_another_program_is_lost(made: World, seed: int) -> None:
    rounds = 1500 if EVERY else 400
    names = [[f"w{w}-{n}" for n in range(NAMES)] for w in range(WRITERS)]
    script = Path(__file__).with_name("saboteur.py")
    writers = [
        subprocess.Popen(
            [sys.executable, "-S", script, made.path, str(seed * 10 + w), str(rounds), *names[w]],
            stdout=subprocess.PIPE,
            text=True,
        )
        for w in range(WRITERS)
    ]
    dice = random.Random(seed)
    every = [name for part in names for name in part]
    replaced = turns = 0
    while any(writer.poll() is None for writer in writers):
        turns += 1
        replaced += meddle(made, every, dice)
    last: dict[str, str] = {}
    for writer in writers:
        out, _ = writer.communicate(timeout=20)
        assert writer.returncode == 0
        last |= json.loads(out)
    print(f"seed {seed}: {replaced} replacements in {turns} turns")
    assert replaced, "nothing was replaced: nothing was tried"
    oracle = Oracle(made.base)
    oracle.assert_nothing_lost(content.encode() for content in last.values())
    made.recover()
    while made.empty_trash():
        pass
    assert_journal_closed(made)
    # Under its own name, or as the newest version that its placeholder stands for.
    for name, content in last.items():
        path = made.at(name)
        if path.exists():
            assert path.read_bytes() == content.encode(), name
        else:
            held = oracle.content_of(made.at(name + ".f").read_bytes())
            assert held == content.encode(), name
    oracle.close()


def meddle(made: World, names: list[str], dice: random.Random) -> int:
    """One turn of what a node does; how many files it replaced."""
    candidates: list[Candidate] = []
    for name in names:
        with suppress(FileNotFoundError):
            candidates.append(made.candidate(name))
    done = 0
    if candidates:
        taken = made.taking.take(made.root, made.row, candidates)
        done = sum(outcome.state == "placeholder" for outcome in taken.outcomes)
        if dice.random() < 0.5:
            made.empty_trash()
        for entry in taken.claims:
            entry.close()
    if dice.random() < 0.5:
        there = [name + ".f" for name in names if os.path.exists(made.at(name + ".f"))]
        with suppress(P2PStoreError):
            made.hydrate(*dice.sample(there, min(2, len(there))))
    return done


def test_history_keeps_what_a_later_version_replaced(made: World) -> None:
    """Each content that was protected can be had again, the newest and all before it."""
    contents = [f"version {number}".encode() for number in range(6)]
    for content in contents:
        made.write("file", content)
        assert made.replace("file") == {b"file": ""}
        made.empty_trash()
    past = made.catalog.view(lambda db: files.history(db, made.row, b"file"))
    oracle = Oracle(made.base)
    kept = [oracle.content_of(row.manifest) for row in reversed(past)]
    assert kept == contents[:-1]
    assert oracle.content_of(made.at("file.f").read_bytes()) == contents[-1]
    oracle.close()
