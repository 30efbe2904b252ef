"""A node that lost its catalog goes on as if nothing had been."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from p2pstore.node.build import Node
from p2pstore.store import BundleState, State, files
from tests.node.conftest import CONTENTS, Place


def lose_catalog(place: Place) -> None:
    for path in place.home.path.glob("catalog.sqlite*"):
        path.unlink()


def empty_trash(place: Place) -> None:
    """As when `trash_hold` has passed."""
    shutil.rmtree(place.folder / ".p2pstore" / "trash")
    (place.folder / ".p2pstore" / "trash").mkdir()


def states(node: Node) -> dict[bytes, str]:
    return dict(node.catalog.read("SELECT path, state FROM files"))


async def settled(node: Node, folder: Path) -> None:
    await node.folders.wait(os.fspath(folder), lambda _: None)


async def test_placeholders_are_known_again_and_come_back(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        await node.maintenance.write_heads()
    lose_catalog(place)
    async with place.running() as node:
        assert node.rebuilt is not None
        await settled(node, place.folder)
        folder = node.folders.at(os.fspath(place.folder))
        assert not folder.is_paused, "a rebuild is no mass change"
        assert set(states(node).values()) == {State.PROTECTED}, "their originals came back"
        assert {**place.contents(), **CONTENTS} == place.contents()


async def test_placeholders_with_an_empty_trash_stay_placeholders(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        await node.maintenance.write_heads()
    empty_trash(place)
    lose_catalog(place)
    async with place.running() as node:
        before = node.store.list()
        await settled(node, place.folder)
        assert set(states(node).values()) == {State.PLACEHOLDER}
        assert node.store.list() == before
        brought = await node.folders.hydrate([os.fspath(place.folder)], lambda _: None)
        assert [one.error for one in brought if one.error] == []
        assert place.contents() == CONTENTS


async def test_originals_are_not_stored_again_and_stay_in_work(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        await node.folders.hydrate([os.fspath(place.folder)], lambda _: None)
        await settled(node, place.folder)
        await node.maintenance.write_heads()
    empty_trash(place)
    lose_catalog(place)
    async with place.running() as node:
        before = node.store.list()
        await settled(node, place.folder)
        assert node.store.list() == before
        assert states(node) == {os.fsencode(name): State.PROTECTED for name in CONTENTS}
        row = node.catalog.view(lambda db: files.get(db, 1, b"a.txt"))
        assert row is not None
        assert row.reason == "in work"


async def test_index_written_after_a_rebuild_names_everything(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)  # no index yet: the placeholders speak for themselves
    lose_catalog(place)
    async with place.running() as node:
        await settled(node, place.folder)
        await node.maintenance.write_heads()
    lose_catalog(place)
    for path in place.folder.rglob("*.f"):
        path.unlink()
    async with place.running() as node:
        assert set(states(node)) == {os.fsencode(name) for name in CONTENTS}
        lost = node.catalog.read("SELECT 1 FROM bundles WHERE state=?", (BundleState.LOST,))
        assert lost == []
