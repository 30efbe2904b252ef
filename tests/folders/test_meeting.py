"""MEET: placeholders that come in great numbers are recorded together."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from p2pstore.folders.meeting import BATCH, Meeting
from p2pstore.folders.reconcile import still
from p2pstore.ids import node_id_of
from p2pstore.store import State, files
from p2pstore.watch import Seen
from tests.faults.world import GROUP, RING, World

NUMBER = 40


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def meeting(made: World) -> Meeting:
    opens = cast(Any, SimpleNamespace(mark_own=lambda path: None))
    return Meeting(
        path=made.path,
        row=made.row,
        catalog=made.catalog,
        store=made.store,
        opens=opens,
        ring=lambda: RING,
        me=node_id_of(GROUP),
    )


def forgotten(made: World, number: int) -> list[Seen]:
    """Placeholders that lie there, and of which the catalog knows nothing."""
    names = [f"file {i}" for i in range(number)]
    for name in names:
        made.write(name, name.encode())
    assert not any(made.replace(*names).values())
    rows = [made.file_row(name) for name in names]
    made.catalog.write(
        lambda db: files.forget(db, [row.id for row in rows if row is not None])
    ).result()
    paths = [os.fsencode(name) + b".f" for name in names]
    return list(still(made.root, paths).values())


def test_many_placeholders_share_commits(made: World) -> None:
    found = forgotten(made, NUMBER)
    assert NUMBER < BATCH
    may_go = threading.Event()
    made.catalog.write(lambda db: may_go.wait(20) and None)  # the disk is slow
    before = made.catalog.commits
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(meeting(made).placeholders, made.root, found)
        deadline = time.monotonic() + 10
        while made.catalog._jobs.qsize() < NUMBER and time.monotonic() < deadline:
            may_go.wait(0.005)
        waiting = made.catalog._jobs.qsize()
        may_go.set()
        met, ordinary = work.result(20)
    assert (len(met), ordinary) == (NUMBER, [])
    assert waiting == NUMBER
    assert made.catalog.commits - before <= 2
    for name in met:
        row = made.file_row(name)
        assert row is not None
        assert row.state == State.PLACEHOLDER


def test_what_cannot_be_read_is_not_met(made: World) -> None:
    found = forgotten(made, 3)
    made.at("file 0.f").unlink()
    raw = made.at("file 1.f").read_bytes()
    made.at("file 1.f").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    made.at("file 2.f").write_bytes(b"      PROGRAM FORTRAN\n")
    met, ordinary = meeting(made).placeholders(made.root, found)
    assert met == []
    assert [seen.path for seen in ordinary] == [b"file 2.f"]
