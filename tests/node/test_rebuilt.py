"""A node that lost its catalog goes on as if nothing had been."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.ids import NodeId, PublicKey
from p2pstore.keys import Role
from p2pstore.maintenance import Holding
from p2pstore.node import rebuilding
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


class Forgetful:
    """A holder that keeps nothing."""

    async def get_heads(self, holder: NodeId) -> Any:
        return SimpleNamespace(heads=())

    async def holdings(self, holder: NodeId) -> AsyncIterator[Holding]:
        for holding in ():
            yield holding


async def test_who_links_is_asked_at_once_what_it_keeps(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recovery waits for the answer, and is not to wait for the next look as well."""
    monkeypatch.setattr(rebuilding, "GATHER_S", 3600.0)
    async with place.running() as node:
        await place.filled(node)
        admin = node.home.admin()
        assert admin is not None
        nas = PublicKey(bytes(SigningKey.generate().verify_key))
        node.group.admit(nas, Role.DEVICE, "nas", signer=admin, now=node.clock.wall())
    lose_catalog(place)
    async with place.running() as node, asyncio.timeout(20):
        while not any(
            r.name == "complete" and r.last_run for r in node.maintenance.loops.reports()
        ):
            await asyncio.sleep(0)
        (other,) = node.group.others()
        node.pusher = Forgetful()  # type: ignore[assignment]
        monkeypatch.setattr(node.network, "holders", lambda: [SimpleNamespace(node_id=other)])
        node._linked(other)
        await node.completed.wait()


async def test_what_is_laid_out_is_no_mass_change(place: Place) -> None:
    """A look that meets a recovery at work finds many files that the catalog has otherwise."""
    async with place.running() as node:
        await place.filled(node)
        folder = node.folders.at(os.fspath(place.folder))
        await node.folders.pause(os.fspath(place.folder))
        folder.losses.changed(100, node.clock.monotonic())
        await node.folders.recovered(folder)
        await settled(node, place.folder)
        assert not folder.is_paused, folder.entry.paused
