"""Carriers as holders: what counts, what is found out, and what never goes because of one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from nacl.signing import SigningKey

from p2pstore.config import FolderSettings
from p2pstore.content import (
    LIST_CONTEXT,
    BlockList,
    BundleIndex,
    decode_parcel,
    encode_parcel,
    sign_live_map,
)
from p2pstore.content.bundle import encode_header
from p2pstore.content.codec import sign
from p2pstore.errors import IntegrityError, Unavailable, UsageError
from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance import carried
from p2pstore.maintenance.carried import keys_of
from p2pstore.store import BundleRow, BundleState, StaleMap, copies
from p2pstore.wire import Unknown
from tests.carriers.faulty import Fault, Faults, FaultyCarrier
from tests.carriers.memory import MemoryCarrier

from .nodes import HEAD, STATE, Device, Group


async def ready(
    group: Group, carrier: Any = None, others: int = 1
) -> tuple[Device, Any, NodeId, MemoryCarrier]:
    """A file that a device and a carrier hold, as safe as can be with them."""
    a, *holders = await group.devices(1 + others)
    kept = MemoryCarrier() if carrier is None else carrier
    usb = a.use("usb", kept)
    filed = a.protect("one")
    assert await a.replicator.serve(usb)
    await a.copy_to(*holders)
    acknowledge(a, usb)
    return a, filed, usb, kept


def acknowledge(device: Device, node: NodeId) -> None:
    ack = copies.HeadAck(node, device.folder_id, *HEAD, *STATE)
    device.catalog.write(lambda db: copies.acknowledge(db, ack)).result()


def parts_of(device: Device, bundle: BundleRow, node: NodeId) -> list[str]:
    return keys_of(device.copies(bundle)[node].receipt)


async def test_a_carrier_counts_as_one_copy_beside_a_node(group: Group) -> None:
    a, filed, _, _ = await ready(group)
    assert a.ledger.counts(a.look())[filed.data.id] == 2
    assert await a.evict(filed.data) == {}
    assert a.row(filed.data).state == BundleState.EVICTED


async def test_carriers_alone_are_no_copy_at_all(group: Group) -> None:
    a, filed, _, _ = await ready(group, others=0)
    more = a.use("cloud", MemoryCarrier())
    await a.replicator.serve(more)
    acknowledge(a, more)
    assert a.ledger.counts(a.look()).get(filed.data.id, 0) == 0
    assert await a.evict(filed.data)
    assert a.is_here(filed.data)


async def test_two_carriers_are_not_two_copies(group: Group) -> None:
    a, filed, _, _ = await ready(group)
    more = a.use("cloud", MemoryCarrier())
    await a.replicator.serve(more)
    assert a.ledger.counts(a.look())[filed.data.id] == 2


async def test_only_folders_that_name_it_are_copied_to_a_carrier(group: Group) -> None:
    (a,) = await group.devices(1)
    carrier = MemoryCarrier()
    usb = a.use("usb", carrier)
    other = a.add_folder(FolderId(b"o" * 16), FolderSettings())
    strange = a.bundle("of another folder", folder=other)
    ours = a.bundle("ours")
    await a.replicator.serve(usb)
    assert usb in a.copies(ours)
    assert usb not in a.copies(strange)


@pytest.mark.parametrize("fault", [Fault.LIE, Fault.TRUNCATE, Fault.GONE, Fault.FAIL])
async def test_what_cannot_be_read_back_whole_frees_nothing(group: Group, fault: Fault) -> None:
    faults = Faults()
    a, filed, usb, _ = await ready(group, FaultyCarrier(MemoryCarrier(), faults))
    faults.always = fault
    assert await a.evict(filed.data)
    assert a.is_here(filed.data)
    if fault is not Fault.FAIL:
        assert a.copies(filed.data)[usb].state == copies.CopyState.LOST


@pytest.mark.parametrize("fault", [Fault.TRUNCATE, Fault.LOSE, Fault.FAIL, Fault.FULL])
async def test_nothing_is_noted_of_what_was_not_stored(group: Group, fault: Fault) -> None:
    (a,) = await group.devices(1)
    usb = a.use("usb", FaultyCarrier(MemoryCarrier(), Faults(always=fault)))
    filed = a.protect("one")
    await a.replicator.serve(usb)
    assert usb not in a.copies(filed.data)


async def test_a_bundle_lies_in_as_many_pieces_as_it_needs(group: Group) -> None:
    carrier = MemoryCarrier(5000, keeps_names=False)
    a, filed, usb, _ = await ready(group, carrier)
    assert len(parts_of(a, filed.data, usb)) == 4
    blocks = a.bundles.index(filed.data.bundle_id).blocks.entries
    wanted = [entry.block_id for entry in blocks]
    found = await a.carried[usb].blocks(filed.data.bundle_id, 0, wanted)
    assert list(found) == wanted


async def test_pieces_that_are_too_small_are_said_to_be(group: Group) -> None:
    (a,) = await group.devices(1)
    a.use("usb", MemoryCarrier(10))
    row = a.bundle("one")
    with pytest.raises(UsageError, match="too small"):
        await a.pusher.push(row.bundle_id, row.tag, next(iter(a.carried)))


@pytest.mark.parametrize("size", [5000, 1 << 20])
async def test_what_a_lost_catalog_knew_is_found_by_name(group: Group, size: int) -> None:
    a, filed, usb, _ = await ready(group, MemoryCarrier(size))
    a.catalog.write(lambda db: copies.forget_holder(db, usb)).result()
    await a.carried[usb].check(filed.data.bundle_id, 0)
    strange = a.bundle("never put there")
    with pytest.raises(Unknown):
        await a.carried[usb].check(strange.bundle_id, 0)


async def test_dead_blocks_leave_the_carrier_too(group: Group) -> None:
    a, filed, usb, carrier = await ready(group)
    bundle_id = filed.data.bundle_id
    before = set(parts_of(a, filed.data, usb))
    live = a.bundles.live_map(bundle_id).without({0, 2})
    a.bundles.set_live_map(bundle_id, sign_live_map(live, a.key))
    with pytest.raises(StaleMap):
        await a.pusher.challenge(bundle_id, usb, 1)
    await a.pusher.push(bundle_id, filed.data.tag, usb)
    assert not before & carrier.stored.keys(), "what lay there before is gone"


async def test_what_is_released_is_deleted(group: Group) -> None:
    a, filed, usb, carrier = await ready(group)
    keys = parts_of(a, filed.data, usb)
    assert keys[0] in carrier.stored
    await a.pusher.release(filed.data.bundle_id, usb)
    assert not set(keys) & carrier.stored.keys()


async def test_where_nothing_can_be_deleted_a_release_forgets(group: Group) -> None:
    a, filed, usb, carrier = await ready(group, MemoryCarrier(deletes=False))
    await a.pusher.release(filed.data.bundle_id, usb)
    assert carrier.stored


async def test_an_evicted_bundle_comes_back_from_a_carrier_alone(group: Group) -> None:
    a, filed, usb, _ = await ready(group)
    assert await a.evict(filed.data) == {}
    index, live = await a.pusher.block_list(filed.data.bundle_id, usb)
    wanted = [entry.block_id for entry in index.blocks.entries]
    found = await a.carried[usb].blocks(filed.data.bundle_id, 0, wanted)
    assert found.keys() == set(wanted)
    assert live is None


async def test_a_random_sample_finds_a_rotten_block(group: Group) -> None:
    a, filed, usb, carrier = await ready(group)
    (key,) = parts_of(a, filed.data, usb)
    raw = carrier.stored[key]
    carrier.stored[key] = raw[:-1] + bytes([raw[-1] ^ 1])
    last = a.bundles.index(filed.data.bundle_id).blocks.entries[-1].block_id
    with pytest.raises(IntegrityError):
        await a.pusher.sample(filed.data.bundle_id, filed.data.tag, usb, [last])


@pytest.mark.parametrize("what", ["list", "map"])
async def test_what_somebody_else_signed_is_no_copy(group: Group, what: str) -> None:
    """Whoever may write to the place can lay a parcel there in which everything fits."""
    a, filed, usb, carrier = await ready(group)
    (key,) = parts_of(a, filed.data, usb)
    there = decode_parcel(carrier.stored[key])
    entries = there.index.blocks.entries
    some = there.blocks([entries[0].block_id])[entries[0].block_id]
    liar = SigningKey.generate()
    if what == "list":
        header = msgspec.structs.replace(there.index.header, opener=bytes(liar.verify_key))
        blocks = BlockList(entries[:1])
        signature = sign(LIST_CONTEXT, encode_header(header) + blocks.encode(), liar)
        carrier.stored[key] = encode_parcel(BundleIndex(header, blocks, signature), None, [some])
    else:
        a.bundles.set_live_map(
            filed.data.bundle_id,
            sign_live_map(there.live.without({5}), a.key),
        )
        live = there.live.without(set(range(1, len(entries))))
        carrier.stored[key] = encode_parcel(there.index, sign_live_map(live, liar), [some])
    seq = a.bundles.live_map(filed.data.bundle_id).seq
    with pytest.raises(IntegrityError):
        await a.pusher.challenge(filed.data.bundle_id, usb, seq)
    assert await a.evict(a.row(filed.data))
    assert a.is_here(filed.data)


async def test_what_has_rotted_is_put_there_anew(group: Group) -> None:
    a, filed, usb, carrier = await ready(group)
    (key,) = parts_of(a, filed.data, usb)
    carrier.stored[key] = b"rotten"
    with pytest.raises(IntegrityError):
        await a.pusher.challenge(filed.data.bundle_id, usb, 0)
    await a.pusher.push(filed.data.bundle_id, filed.data.tag, usb)
    assert await a.pusher.challenge(filed.data.bundle_id, usb, 0)


async def test_a_carrier_that_is_away_is_asked_again(group: Group) -> None:
    faults = Faults(always=Fault.FAIL)
    (a,) = await group.devices(1)
    usb = a.use("usb", FaultyCarrier(MemoryCarrier(), faults))
    filed = a.protect("one")
    assert not await a.replicator.serve(usb)
    with pytest.raises(Unavailable):
        await a.pusher.challenge(filed.data.bundle_id, usb, 0)
    faults.always = None
    a.replicator.retry(usb)
    assert await a.replicator.serve(usb)
    assert usb in a.copies(filed.data)


async def test_a_carrier_is_not_read_beyond_the_largest_bundle(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, filed, usb, carrier = await ready(group, MemoryCarrier(5000))
    monkeypatch.setattr(carried, "MAX_PARCEL", 30_000)
    read = 0
    get = carrier.get

    async def counted(key: str) -> bytes:
        nonlocal read
        read += 1
        await get(parts_of(a, filed.data, usb)[0])
        return bytes(5000)

    monkeypatch.setattr(carrier, "get", counted)
    a.carried[usb]._keys = lambda _, __: []
    with pytest.raises(IntegrityError, match="more than"):
        await a.carried[usb].check(filed.data.bundle_id, 0)
    a.carried[usb]._keys = lambda _, __: ["key"] * 200
    with pytest.raises(IntegrityError, match="more than"):
        await a.carried[usb].check(filed.data.bundle_id, 0)
    assert read == 14


async def test_many_carriers_keep_little_in_memory(group: Group) -> None:
    (a,) = await group.devices(1)
    filed = a.protect("one")
    kept = carried.KeptParcels()
    block = a.bundles.index(filed.data.bundle_id).blocks.entries[0].block_id
    for number in range(5):
        node = a.use(f"usb{number}", MemoryCarrier())
        a.carried[node]._kept = kept
        await a.replicator.serve(node)
        assert await a.carried[node].blocks(filed.data.bundle_id, 0, [block])
    assert len(kept._parcels) == carried.KEPT_PARCELS


async def test_what_relies_on_a_carrier_is_what_counts_for_too_little_without_it(
    group: Group,
) -> None:
    """Another carrier, and a device that is of the group no more, make up for nothing."""
    a, filed, usb, _ = await ready(group, others=2)
    b, c = (node for node in a.world.nodes if node is not a)
    more = a.use("cloud", MemoryCarrier())
    await a.replicator.serve(more)
    row = a.row(filed.data)
    assert a.ledger.relying(a.look(), [row], usb) == []
    a.leavers.add(c.node_id)
    assert a.ledger.relying(a.look(), [row], usb) == [], "the other carrier takes its place"
    a.catalog.write(lambda db: copies.forget_holder(db, more)).result()
    assert a.ledger.relying(a.look(), [row], usb) == [row]
    a.leavers.add(b.node_id)
    assert a.ledger.relying(a.look(), [row], b.node_id) == [row]
