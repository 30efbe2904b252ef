"""A catalog that comes from a copy: it is noticed, and nothing is lost because of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.store import State

from .world import World, noise


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def copy_of(world: World) -> Path:
    """What a backup takes while the node is stopped."""
    world.catalog.close()
    copied = world.base / "backup"
    shutil.copy(world.home.path / "catalog.sqlite", copied)
    assert world.ensure() is None
    return copied


def put_back(world: World, copied: Path) -> None:
    world.lose_catalog()
    shutil.copy(copied, world.home.path / "catalog.sqlite")


def test_a_catalog_that_is_up_to_date_is_opened(world: World) -> None:
    world.replace({"a.txt": b"alpha"})
    world.write_index()
    world.catalog.close()
    assert world.ensure() is None


def test_a_crash_before_the_head_was_published_is_no_reason(world: World) -> None:
    world.replace({"a.txt": b"alpha"})
    world.write_index()
    before = world.home.heads()
    world.replace({"b.txt": b"beta"})
    world.write_index()
    for path in (world.home.path / "heads").iterdir():
        path.write_bytes(before[0])
    world.catalog.close()
    assert world.ensure() is None


def test_one_from_a_copy_is_rebuilt_with_a_new_incarnation(world: World) -> None:
    world.replace({"a.txt": b"alpha"})
    world.write_index()
    copied = copy_of(world)
    world.replace({"b.bin": noise(100_000)})
    world.write_index()
    before = world.home.incarnation()
    put_back(world, copied)
    rebuilt = world.ensure()
    assert rebuilt is not None
    assert rebuilt.incarnation == world.home.incarnation() == before + 1
    assert world.file("b.bin").state == State.PLACEHOLDER
    assert world.file("a.txt").state == State.PLACEHOLDER
    world.catalog.close()
    assert world.ensure() is None, "once"


def test_a_rebuilt_one_is_not_rebuilt_again(world: World) -> None:
    world.replace({"a.txt": b"alpha"})
    world.write_index()
    world.lose_catalog()
    world.rebuild()
    world.catalog.close()
    assert world.ensure() is None


def test_a_head_of_ours_that_a_holder_told_means_the_same(world: World) -> None:
    """HOME came from the copy too; what this device said since is with others."""
    world.replace({"a.txt": b"alpha"})
    world.write_index()
    copied = copy_of(world)
    world.replace({"b.txt": b"beta"})
    told = world.write_index()
    put_back(world, copied)
    world.home.write_head(world.folder_id, world.group.node_id, told)
    assert world.ensure() is not None
