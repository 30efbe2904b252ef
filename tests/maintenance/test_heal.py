"""HEAL: whatever happened to a bundle's file, it is as it was, or as damaged as before."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from p2pstore.errors import NoRoom, P2PStoreError
from p2pstore.ids import BlockId
from p2pstore.maintenance import Healer
from p2pstore.restore import Wanted
from p2pstore.store import BundleRow, BundleState, blocks
from tests.swarm.world import Node

from .nodes import Device, Group


class Sick:
    """A device with a bundle that two others hold as well."""

    def __init__(self, group: Group, a: Device, holders: list[Device], row: BundleRow) -> None:
        self.group, self.a, self.holders, self.row = group, a, holders, row
        self.path = a.bundles.path(row.bundle_id)
        self.was = self.path.read_bytes()
        self.free = 1 << 30
        self.healer = Healer(
            catalog=a.catalog,
            store=a.bundles,
            refetcher=group.refetcher(a, free=lambda: self.free),
            source=a.source,
            free=lambda: self.free,
            pool=group.pool,
        )

    async def heal(self) -> bool:
        return await self.healer.heal(self.row.bundle_id)

    def change(self, at: int, raw: bytes) -> None:
        with open(self.path, "r+b") as file:
            file.seek(at)
            file.write(raw)
        self.a.bundles.forget(self.row.bundle_id)

    def leftovers(self) -> list[Path]:
        return [p for p in (self.a.bundles.root / "open").iterdir() if p.is_file()]

    def cut_off(self, *nodes: Node) -> None:
        for node in nodes:
            self.group.network.unreachable.add(self.group.addresses[node.node_id])
            for link in node.transport.links():
                link.abort()  # type: ignore[attr-defined]


@pytest.fixture
async def sick(group: Group) -> Sick:
    a, b, c = await group.devices(3)
    filed = a.protect("one")
    await a.copy_to(b, c)
    a.holders[filed.data.bundle_id] = [b.node_id, c.node_id]
    return Sick(group, a, [b, c], a.row(filed.data))


def flip_in(block: int) -> Callable[[Sick], None]:
    def damage(sick: Sick) -> None:
        offset = sick.a.bundles.index(sick.row.bundle_id).blocks.offsets()[block] + 7
        sick.change(offset, bytes([sick.was[offset] ^ 1]))

    return damage


def several(sick: Sick) -> None:
    for block in (0, 2, 5):
        flip_in(block)(sick)


def between_blocks(sick: Sick) -> None:
    at = sick.a.bundles.index(sick.row.bundle_id).blocks.offsets()[2] - 1
    sick.change(at, bytes([sick.was[at] ^ 1]))


def header(sick: Sick) -> None:
    sick.change(20, b"xxxx")


def list_at_the_end(sick: Sick) -> None:
    sick.change(len(sick.was) - 60, b"xxxx")


def cut_short(sick: Sick) -> None:
    os.truncate(sick.path, len(sick.was) // 2)
    sick.a.bundles.forget(sick.row.bundle_id)


def emptied(sick: Sick) -> None:
    os.truncate(sick.path, 0)
    sick.a.bundles.forget(sick.row.bundle_id)


def removed(sick: Sick) -> None:
    sick.path.unlink()
    sick.a.bundles.forget(sick.row.bundle_id)


def given_up(sick: Sick) -> None:
    removed(sick)
    sick.a.catalog.write(
        lambda db: blocks.move(db, sick.row.id, BundleState.LOST, only_from=[BundleState.SEALED])
    ).result()


DAMAGES = [
    flip_in(3),
    several,
    header,
    list_at_the_end,
    cut_short,
    emptied,
    removed,
    given_up,
]


@pytest.mark.parametrize("damage", [*DAMAGES, between_blocks])
async def test_it_is_as_it_was(sick: Sick, damage: Callable[[Sick], None]) -> None:
    damage(sick)
    assert await sick.heal()
    assert sick.path.read_bytes() == sick.was
    assert sick.a.row(sick.row) == sick.row
    assert not sick.leftovers()
    assert not await sick.heal()


@pytest.mark.parametrize("damage", DAMAGES)
async def test_nothing_is_made_worse_while_nobody_is_there(
    sick: Sick, damage: Callable[[Sick], None]
) -> None:
    damage(sick)
    before = sick.path.read_bytes() if sick.path.exists() else None
    sick.cut_off(*sick.holders)
    with pytest.raises(P2PStoreError):
        await sick.heal()
    assert (sick.path.read_bytes() if sick.path.exists() else None) == before
    assert not sick.leftovers()


async def test_what_lies_between_blocks_needs_nobody(sick: Sick) -> None:
    between_blocks(sick)
    sick.cut_off(*sick.holders)
    assert await sick.heal()
    assert sick.path.read_bytes() == sick.was


async def test_good_blocks_are_kept(sick: Sick, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[BlockId] = []
    real = sick.a.source.blocks

    async def noting(wanted: Sequence[Wanted], **options: bool) -> Mapping[BlockId, bytes]:
        asked.extend(one.block_id for one in wanted)
        return await real(wanted, **options)

    monkeypatch.setattr(sick.a.source, "blocks", noting)
    entries = sick.a.bundles.index(sick.row.bundle_id).blocks.entries
    flip_in(3)(sick)
    assert await sick.heal()
    assert asked == [entries[3].block_id]


async def test_a_lying_holder_heals_nothing(sick: Sick) -> None:
    """Its block is compared with its id; the honest one gives the right one."""
    flip_in(3)(sick)
    liar = sick.holders[0]
    path = liar.held._files.path(sick.row.bundle_id)  # type: ignore[attr-defined]
    raw = bytearray(path.read_bytes())
    offset = sick.a.bundles.index(sick.row.bundle_id).blocks.offsets()[3] + 9
    raw[offset] ^= 1
    path.write_bytes(raw)
    await sick.heal()
    assert sick.path.read_bytes() == sick.was


async def test_a_sound_bundle_is_left_alone(sick: Sick) -> None:
    inode = sick.path.stat().st_ino
    assert not await sick.heal()
    assert sick.path.stat().st_ino == inode


async def test_never_into_what_is_kept_free(sick: Sick) -> None:
    flip_in(3)(sick)
    sick.free = 10
    with pytest.raises(NoRoom):
        await sick.heal()
    assert not sick.leftovers()
