"""RECONCILE: what a look finds of a folder that the catalog knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.folders.reconcile import look_at_all
from tests.faults.world import World


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.close()


def test_known_lock_file_still_says_that_its_neighbour_is_open(made: World) -> None:
    for name in (".~lock.letter#", "letter"):
        made.write(name, b"content")
        made.take(name, replace=False)
    findings = look_at_all(made.root, made.catalog, made.row)
    assert findings.siblings == {b"": {b".~lock.letter#"}}
    assert findings.changed == findings.gone == []


def test_change_and_loss_are_found_among_what_is_as_it_was(made: World) -> None:
    for name in ("same", "changed", "lost"):
        made.write(name, b"content")
        made.take(name, replace=False)
    made.write("changed", b"other content")
    (made.path / "lost").unlink()
    findings = look_at_all(made.root, made.catalog, made.row)
    assert [seen.path for seen in findings.changed] == findings.modified == [b"changed"]
    assert [gone.path for gone in findings.gone] == [b"lost"]
