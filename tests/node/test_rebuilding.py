"""A rebuilt catalog asks everybody once, whenever they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2pstore.content import BlockEntry, BlockList, BundleHeader, BundleIndex, Replaced
from p2pstore.errors import PeerUnreachable
from p2pstore.ids import BlockId, BundleId, NodeId, PublicKey, Tag
from p2pstore.maintenance import Loop, aliases, rebuild_state
from p2pstore.maintenance.rebuild import save_state
from p2pstore.node import rebuilding
from p2pstore.node.laying import Laying
from p2pstore.node.rebuilding import Completing
from p2pstore.store import BundleState, DiskBundles, blocks
from tests.maintenance.test_rebuild import evict
from tests.maintenance.world import Memory, World, holding, noise

A, B = NodeId(b"a" * 20), NodeId(b"b" * 20)


class Around:
    """A node as far as a rebuild sees it; two holders, each of which keeps one bundle."""

    def __init__(self, world: World, elsewhere: DiskBundles) -> None:
        self.world = world
        self.connected: set[NodeId] = set()
        self.unreachable: set[NodeId] = set()
        self.questions: list[NodeId] = []
        self.kept: dict[NodeId, list[blocks.BundleRow]] = {A: [], B: []}
        self.rescans = 0
        self.source = Memory(elsewhere)
        self.lists: dict[NodeId, list[BundleIndex]] = {}
        self.others: set[PublicKey] = set()  # whose word is not believed

    def begin(self) -> Completing:
        """As a new process would."""
        world = self.world
        node: Any = SimpleNamespace(
            catalog=world.catalog,
            home=world.home,
            store=world.store,
            group=world.group,
            clock=world.clock,
            pool=world.pool,
            source=self.source,
            pusher=SimpleNamespace(
                holdings=self.holdings, get_heads=self.heads, merged=self.merged
            ),
            is_ours=lambda key: key not in self.others,
            network=SimpleNamespace(
                holder_ids=lambda: set(self.kept),
                holders=lambda: [SimpleNamespace(node_id=one) for one in self.connected],
            ),
            maintenance=SimpleNamespace(rebuilding=True, changed=lambda: None),
            completed=asyncio.Event(),
            opens=SimpleNamespace(mark_own=lambda name: None),
            folders=SimpleNamespace(all=lambda: [SimpleNamespace(ask_rescan=self.rescan)]),
        )
        self.node = node
        node.laying = Laying(node)
        return Completing(node)

    def rescan(self, reason: str, *, judge_anew: bool) -> None:
        self.rescans += 1

    async def holdings(self, holder: NodeId) -> AsyncIterator[Any]:
        if holder in self.unreachable:
            raise PeerUnreachable("gone again")
        self.questions.append(holder)
        for row in self.kept[holder]:
            yield holding(self.world, row)

    async def heads(self, holder: NodeId) -> Any:
        return SimpleNamespace(heads=())

    async def merged(self, lost: Sequence[BundleId], holder: NodeId) -> AsyncIterator[BundleIndex]:
        if holder in self.unreachable:
            raise PeerUnreachable("gone again")
        for index in self.lists.get(holder, ()):
            if any(old.bundle_id in lost for old in index.blocks.replaces):
                yield index

    async def turn(self, completing: Completing) -> float:
        loop = Loop("complete", completing.turn, catalog=self.world.catalog, clock=self.world.clock)
        return await completing.turn(loop)

    def state_of(self, row: blocks.BundleRow) -> str:
        found = self.world.catalog.view(lambda db: blocks.get_bundle(db, row.bundle_id))
        assert found is not None
        return found.state


@pytest.fixture
def around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Around]:
    monkeypatch.setattr(rebuilding, "GATHER_S", 0.0)
    world = World(tmp_path)
    world.replace({"one.bin": noise(200_000, 1)})
    world.replace({"two.bin": noise(200_000, 2)})
    world.write_index()
    elsewhere = DiskBundles(tmp_path / "elsewhere")
    made = Around(world, elsewhere)
    made.kept[A] = evict(world, "one.bin", elsewhere)
    made.kept[B] = evict(world, "two.bin", elsewhere)
    world.lose_catalog()
    assert world.rebuild().missing == 2
    yield made
    elsewhere.close()
    world.close()


async def test_nothing_is_over_before_somebody_was_asked(around: Around) -> None:
    completing = around.begin()
    await around.turn(completing)
    assert not around.node.completed.is_set()
    assert rebuild_state(around.world.catalog).pending  # type: ignore[union-attr]


async def test_what_only_a_late_holder_keeps_is_found(around: Around) -> None:
    (one,), (two,) = around.kept[A], around.kept[B]
    completing = around.begin()
    around.connected = {A}
    await around.turn(completing)
    assert around.node.completed.is_set()
    assert not around.node.maintenance.rebuilding
    assert (around.state_of(one), around.state_of(two)) == (BundleState.EVICTED, BundleState.LOST)
    around.connected = {A, B}
    await around.turn(completing)
    assert around.state_of(two) == BundleState.EVICTED
    before = list(around.questions)
    await around.turn(completing)
    assert around.questions == before, "nobody is asked twice"


async def test_who_is_there_is_not_waited_for(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "GATHER_S", 3600.0)
    around.connected = {A, B}
    async with asyncio.timeout(20):
        await around.turn(around.begin())
    assert around.node.completed.is_set()


async def test_who_comes_a_moment_later_is_asked_together_with_the_first(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "GATHER_S", 3.0)
    completing = around.begin()
    around.connected = {A}
    assert await around.turn(completing) == 3.0
    around.world.clock.advance(1.0)
    assert await around.turn(completing) == 2.0, "another link woke it, not the last one"
    assert not around.questions
    around.connected = {A, B}
    await around.turn(completing)
    assert set(around.questions) == {A, B}
    assert around.node.completed.is_set()


async def test_who_does_not_come_is_waited_for_a_moment_only(
    around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuilding, "GATHER_S", 3.0)
    completing = around.begin()
    around.connected = {A}
    await around.turn(completing)
    around.world.clock.advance(3.0)
    await around.turn(completing)
    assert set(around.questions) == {A}


async def test_a_restart_does_not_forget_who_is_still_to_be_asked(around: Around) -> None:
    around.connected = {A}
    await around.turn(around.begin())
    (two,) = around.kept[B]
    around.connected = {A, B}
    await around.turn(around.begin())
    assert around.state_of(two) == BundleState.EVICTED
    assert around.questions.count(A) == 1 or A not in around.questions[2:]


async def test_after_a_restart_what_was_not_read_is_asked_for_again(around: Around) -> None:
    around.connected = {A}
    await around.turn(around.begin())
    catalog = around.world.catalog
    left = rebuild_state(catalog)
    assert left is not None
    unread = msgspec.structs.replace(left, folders=(around.world.folder_id,), unread=1)
    catalog.write(lambda db: save_state(db, unread)).result()
    around.questions.clear()
    completing = around.begin()
    await around.turn(completing)
    assert A in around.questions
    around.questions.clear()
    await around.turn(completing)
    assert not around.questions, "it has been read"


async def test_who_went_while_it_was_asked_is_asked_again(around: Around) -> None:
    """And keeps nobody waiting."""
    completing = around.begin()
    around.connected = {A, B}
    around.unreachable = {B}
    await around.turn(completing)
    (one,), (two,) = around.kept[A], around.kept[B]
    assert (around.state_of(one), around.state_of(two)) == (BundleState.EVICTED, BundleState.LOST)
    around.unreachable.clear()
    await around.turn(completing)
    assert around.state_of(two) == BundleState.EVICTED


async def test_when_nobody_answers_nothing_is_over(around: Around) -> None:
    completing = around.begin()
    around.connected = around.unreachable = {A, B}
    assert await around.turn(completing) == rebuilding.GATHER_S, "it is tried again soon"
    assert not around.node.completed.is_set()
    assert rebuild_state(around.world.catalog).pending  # type: ignore[union-attr]


def merge_elsewhere(around: Around) -> tuple[BundleIndex, blocks.BundleRow]:
    """What B keeps is one bundle, into which both were merged."""
    rows = [*around.kept[A], *around.kept[B]]
    new = rows[0]._replace(bundle_id=BundleId(b"m" * 32), tag=Tag(b"t" * 20), blocks=2)
    world = around.world
    header = BundleHeader(
        new.bundle_id, world.group.state.group_public, world.group.public, new.kind, 1
    )
    entries = tuple(BlockEntry(BlockId(bytes([i]) * 32), 1000) for i in range(2))
    replaced = tuple(Replaced(row.bundle_id, row.tag) for row in rows)
    index = BundleIndex(header, BlockList(entries, replaced), b"")
    around.kept[A], around.kept[B] = [], [new]
    around.lists[B] = [index]
    return index, new


async def test_what_was_merged_is_found_where_it_is_now(around: Around) -> None:
    olds = [*around.kept[A], *around.kept[B]]
    _, new = merge_elsewhere(around)
    completing = around.begin()
    around.connected = {A, B}
    await around.turn(completing)
    for old in olds:
        row = around.world.catalog.view(lambda db, old=old: blocks.get_bundle(db, old.bundle_id))
        assert (row.bundle_id, row.tag, row.state) == (new.bundle_id, new.tag, "evicted")
    assert around.world.catalog.view(aliases.lost) == []


async def test_a_list_of_somebody_else_is_not_believed(around: Around) -> None:
    olds = [*around.kept[A], *around.kept[B]]
    index, _ = merge_elsewhere(around)
    around.others.add(index.header.opener)
    around.connected = {A, B}
    await around.turn(around.begin())
    assert set(around.world.catalog.view(aliases.lost)) == {old.bundle_id for old in olds}


async def test_a_lonely_device_waits_for_nobody(around: Around) -> None:
    around.kept.clear()
    completing = around.begin()
    await around.turn(completing)
    assert around.node.completed.is_set()
    assert around.rescans == 1
