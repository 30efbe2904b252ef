"""Which bundles go to whom, and what is made of the answers."""

from __future__ import annotations

import asyncio
import sqlite3
from dataclasses import replace
from typing import Any

import pytest

from p2pstore.config import FolderSettings
from p2pstore.content import Kind
from p2pstore.ids import FolderId, NodeId
from p2pstore.net import Request
from p2pstore.store import BundleRow, BundleState, blocks, copies, dying
from p2pstore.swarm import Receipt as Signed
from p2pstore.wire import Put, ReceiptBody, sign_receipt, verify_receipt

from .nodes import DAY_MS, Device, Group


def lacks(device: Device, holder: Device) -> list[BundleRow]:
    return device.ledger.lacking(device.look(), holder.node_id, 1000)


async def test_a_receipt_becomes_a_copy(group: Group) -> None:
    a, b = await group.devices(2)
    filed = a.protect("one")

    assert await a.replicator.serve(b.node_id)

    copy = a.copies(filed.data)[b.node_id]
    assert (copy.state, copy.seq) == (copies.CopyState.PROVED, 0)
    assert copy.lease_until == int(group.clock.wall() * 1000) + 180 * DAY_MS
    assert copy.receipt
    assert b.held.has(filed.data.bundle_id)
    assert lacks(a, b) == []


@pytest.mark.parametrize("wrong", ["proof", "seq", "nonce", "bundle", "key"])
async def test_a_wrong_receipt_becomes_nothing(group: Group, wrong: str) -> None:
    a, b = await group.devices(2)
    filed = a.protect("one")
    honest = b.server._taker._finish

    def lying(*args: Any) -> bytes:
        body = verify_receipt(honest(*args), b.public)
        fields = {name: getattr(body, name) for name in ReceiptBody.__struct_fields__}
        changed = {"proof": b"x" * 32, "seq": 5, "nonce": b"y" * 32, "bundle": b"z" * 32}
        if wrong != "key":
            fields[wrong] = changed[wrong]
        return sign_receipt(ReceiptBody(**fields), a.key if wrong == "key" else b.key)

    b.server._taker._finish = lying

    assert not await a.replicator.serve(b.node_id)

    assert a.copies(filed.data) == {}
    assert a.replicator.trouble[b.node_id]
    assert lacks(a, b)


async def test_the_target_is_four_or_all_that_there_are(group: Group) -> None:
    a, *others = await group.devices(7)
    row = a.protect("one").data
    for number, other in enumerate(others):
        wanted = row.id in {r.id for r in lacks(a, other)}
        assert wanted is (number < 4)
        if wanted:
            a.note_copy(row, other)


async def test_what_came_to_nothing_goes_to_nobody_until_something_needs_it(group: Group) -> None:
    """A kill between sealing and recording leaves bundles; their files are taken anew."""
    a, b = await group.devices(2)
    row = a.protect("one").data
    (file,) = [
        n for (n,) in a.catalog.read("SELECT file FROM file_bundles WHERE bundle=?", (row.id,))
    ]

    def leave(db: sqlite3.Connection) -> None:
        blocks.set_file_bundles(db, [(file, [])])
        dying.leave_unnamed(db, row.id)

    a.catalog.write(leave).result()
    assert row.id not in {r.id for r in lacks(a, b)}
    a.catalog.write(lambda db: blocks.set_file_bundles(db, [(file, [row.id])])).result()
    assert row.id in {r.id for r in lacks(a, b)}


async def test_meta_bundles_get_one_copy_more_and_go_first(group: Group) -> None:
    a, *others = await group.devices(7)
    first = a.protect("one")
    second = a.protect("two")
    order = lacks(a, others[0])
    kinds = [row.kind for row in order]
    assert kinds == sorted(kinds, reverse=True), "META is 2, DATA is 1"
    assert {row.id for row in order} >= {first.data.id, second.meta.id}
    for other in others[:4]:
        a.note_copy(first.meta, other)
        a.note_copy(first.data, other)
    left = {row.id for row in lacks(a, others[4])}
    assert first.meta.id in left
    assert first.data.id not in left


async def test_of_two_folders_the_greater_target_holds(group: Group) -> None:
    a, *others = await group.devices(7)
    filed = a.protect("one")
    for other in others[:4]:
        a.note_copy(filed.data, other)
    assert filed.data.id not in {row.id for row in lacks(a, others[5])}
    folder = a.add_folder(FolderId(b"5" * 16), FolderSettings(copies=5))
    assert filed.data.id not in {row.id for row in lacks(a, others[5])}
    a.refer(b"same", [filed.data, filed.meta], folder=folder)
    assert filed.data.id in {row.id for row in lacks(a, others[5])}


async def test_what_counts_no_more_is_sent_again(group: Group) -> None:
    a, b = await group.devices(2)
    row = a.protect("one").data
    now = int(group.clock.wall() * 1000)
    for changes in (
        {"state": copies.CopyState.LOST},
        {"state": copies.CopyState.SUSPECT},
        {"seq": 4},
        {"lease_until": now - 1},
        {"proved_at": 0},
    ):
        a.note_copy(row, b, **changes)
        assert row.id in {r.id for r in lacks(a, b)}, changes
    a.note_copy(row, b, proved_at=now - 29 * DAY_MS)
    assert row.id not in {r.id for r in lacks(a, b)}


async def test_bundles_that_are_not_here_or_not_ours_are_not_sent(group: Group) -> None:
    a, b = await group.devices(2)
    gone, other = a.protect("one").data, a.protect("two").data

    def change(db: Any) -> None:
        blocks.move(db, gone.id, BundleState.EVICTED, only_from=[BundleState.SEALED])
        blocks.put_bundle(db, other._replace(own=0))

    a.catalog.write(change).result()
    assert not {gone.id, other.id} & {row.id for row in lacks(a, b)}


async def test_a_full_holder_is_left_alone_for_a_while(group: Group) -> None:
    a, b = await group.devices(2)
    a.protect("one")
    b.refusal = "its disk is full"

    assert not await a.replicator.serve(b.node_id)
    tries = b.served.count("Put")
    assert not await a.replicator.serve(b.node_id)
    assert b.served.count("Put") == tries, "not asked again at once"
    assert "full" in a.replicator.trouble[b.node_id]

    pauses = []
    for _ in range(9):
        pauses.append(a.replicator._resting[b.node_id][1])
        group.clock.advance(pauses[-1] + 1)
        assert not await a.replicator.serve(b.node_id)
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (5.0, 600.0)

    b.refusal = None
    a.replicator.retry(b.node_id)
    assert await a.replicator.serve(b.node_id)
    assert not a.replicator.trouble
    assert a.replicator.sending[b.node_id] == 0


async def test_a_slow_holder_delays_nobody(group: Group) -> None:
    a, slow, quick = await group.devices(3)
    row = a.protect("one").data
    go_on = asyncio.Event()
    honest = slow.server.serve

    async def serve(request: Request) -> None:
        if isinstance(request.message, Put):
            await go_on.wait()
        await honest(request)

    slow.transport.handler = serve
    waiting = asyncio.create_task(a.replicator.serve(slow.node_id))

    assert await a.replicator.serve(quick.node_id)

    assert quick.held.has(row.bundle_id)
    assert not waiting.done()
    go_on.set()
    assert await waiting


async def test_a_push_that_was_cut_is_taken_up(group: Group) -> None:
    a, b = await group.devices(2)
    row = a.bundle("large", Kind.DATA, number=400)
    honest = b.server.serve
    sent: list[int] = []

    async def serve(request: Request) -> None:
        if isinstance(request.message, Put) and request.message.bundle == row.bundle_id:
            asyncio.get_running_loop().call_later(0.02, request.link.abort)
        await honest(request)

    b.transport.handler = serve
    await a.replicator.serve(b.node_id)
    b.transport.handler = honest
    before = sum(link.received_bytes for link in b.transport.links())
    a.replicator.retry(b.node_id)
    assert await a.replicator.serve(b.node_id)
    sent.append(sum(link.received_bytes for link in b.transport.links()) - before)
    assert b.held.has(row.bundle_id)
    assert a.copies(row)[b.node_id].state == copies.CopyState.PROVED


async def test_a_holder_that_signs_old_times_is_not_asked_for_ever(group: Group) -> None:
    """Its receipt never satisfies us: it is asked once in a pass, not in a loop without end."""
    a, b = await group.devices(2)
    rows = [a.protect(f"file {i}").data for i in range(3)]
    asked: list[Any] = []

    async def push(bundle_id: Any, tag: Any, holder: NodeId) -> Signed:
        asked.append(bundle_id)
        return Signed(bundle_id, holder, 0, 1, 5, b"raw")  # a lease that ended in 1970

    a.pusher.push = push  # type: ignore[method-assign,assignment]
    assert await asyncio.wait_for(a.replicator.serve(b.node_id), 20)
    assert len(asked) == len(set(asked)) == 2 * len(rows) + 1


async def test_many_pages(group: Group, monkeypatch: Any) -> None:
    monkeypatch.setattr("p2pstore.maintenance.replicate.PAGE", 4)
    a, b = await group.devices(2)
    rows = [a.protect(f"file {i}").data for i in range(6)]
    assert await a.replicator.serve(b.node_id)
    assert all(b.held.has(row.bundle_id) for row in rows)
    served = len(b.served)
    assert await a.replicator.serve(b.node_id)
    assert len(b.served) == served


async def test_between_two_whole_looks_only_new_bundles_are_looked_at(group: Group) -> None:
    a, b = await group.devices(2)
    a.protect("one")
    assert await a.replicator.serve(b.node_id)
    seen: list[int] = []
    lacking = a.ledger.lacking

    def noting(*args: Any, after: int = 0) -> list[BundleRow]:
        seen.append(after)
        return lacking(*args, after=after)

    a.ledger.lacking = noting  # type: ignore[method-assign]
    new = a.protect("two").data
    assert await a.replicator.serve(b.node_id)
    assert b.held.has(new.bundle_id)
    assert all(seen)
    seen.clear()
    group.clock.advance(60)
    assert await a.replicator.serve(b.node_id)
    assert seen == [0]


async def test_no_eligible_holder_but_min_copies_is_wanted(group: Group) -> None:
    a, b = await group.devices(2)
    a.facts = replace(a.facts, eligible=1)
    row = a.protect("one").data
    assert row.id in {r.id for r in lacks(a, b)}


def test_untold_holders(tmp_path: Any) -> None:
    group = Group(tmp_path)
    a = group.device("a")
    b = group.device("b")
    c = group.device("c")
    a.acknowledge(b)
    assert a.ledger.untold(a.look(), [b.node_id, c.node_id]) == {c.node_id}
    a.facts = replace(a.facts, state=(9, 9))
    assert a.ledger.untold(a.look(), [b.node_id]) == {b.node_id}
    for device in (a, b, c):
        device.held.close()
        device.bundles.close()
        device.catalog.close()
    group.pool.shutdown()


async def test_one_damaged_bundle_does_not_stop_the_others(group: Group) -> None:
    a, b = await group.devices(2)
    first, second = a.protect("one"), a.protect("two")
    path = a.bundles.path(first.meta.bundle_id)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    a.bundles.forget(first.meta.bundle_id)
    a.bundles.path(first.data.bundle_id).unlink()
    a.bundles.forget(first.data.bundle_id)

    assert await a.replicator.serve(b.node_id)

    assert b.held.has(second.data.bundle_id)
    assert b.held.has(second.meta.bundle_id)
    assert not a.copies(first.meta)


async def test_one_bundle_that_is_refused_does_not_stop_the_others(group: Group) -> None:
    a, b = await group.devices(2)
    first, second = a.protect("one"), a.protect("two")
    b.bundle(f"{a.name}/one")  # opened by that node itself, as it believes

    assert await a.replicator.serve(b.node_id)

    assert b.held.has(second.data.bundle_id)
    assert not a.copies(first.data)
    assert a.replicator.trouble[b.node_id]


async def test_what_changes_during_the_last_look_is_looked_for_again(group: Group) -> None:
    a, b = await group.devices(2)
    look, seen = a.ledger.lacking, []

    def lacking(*args: Any, after: int = 0) -> list[BundleRow]:
        seen.append(after)
        if len(seen) == 1:
            a.replicator.look_anew()
        return look(*args, after=after)

    a.ledger.lacking = lacking  # type: ignore[method-assign]
    await a.replicator.serve(b.node_id)
    await a.replicator.serve(b.node_id)
    assert set(seen) == {0}
