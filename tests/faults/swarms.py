"""Devices of one group that do harm to each other: all evict at once, most of them lie."""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from p2pstore.content import BundleRef
from p2pstore.errors import P2PStoreError
from p2pstore.net import Request
from p2pstore.restore import Wanted
from p2pstore.store import BundleRow
from p2pstore.wire import (
    BlockReply,
    Challenge,
    Get,
    GetDone,
    Proof,
    Unknown,
    verify_get,
)
from tests.faults.table import Order, Row
from tests.maintenance.nodes import Device, Group
from tests.maintenance.test_eviction_race import row_at, sharing, watch

STEADY = [300, 1000, 5000]  # turns of the loop between cuts, at most


async def evictions(base: Path, order: Order) -> Row:
    """Five devices, the same bundles in the store of each; links are cut at random moments."""
    row, dice = Row("evictions"), random.Random(order.seed)
    for number in order.numbers():
        group = Group(base / str(number))
        what = f"round {number} (seed {order.seed})"
        try:
            low = dice.choice([1, 2, 3])
            rows = await sharing(group, 5, bundles=2, low=low)
            for device in group.nodes:
                device.at_pause = partial(_pause, dice)
            broken = watch(group, low)
            cutting = asyncio.create_task(_cut(group, dice, dice.choice(STEADY)))

            freed = await asyncio.gather(*(_evict_twice(d, rows) for d in group.nodes))
            cutting.cancel()
            await asyncio.gather(cutting, return_exceptions=True)
            row.points += 1
            row.files += len(rows)
            row.counts["copies given up"] += sum(freed)
            row.counts["rounds with none"] += not sum(freed)
            row.lost += [f"{what}: {text}" for text in broken]
            row.lost += [
                f"{what}: {group.copies_of(one.bundle_id)} copies of {low} are left"
                for one in rows
                if group.copies_of(one.bundle_id) < low
            ]
        finally:
            await group.close()
            shutil.rmtree(base / str(number))
    return row


async def _pause(dice: random.Random) -> None:
    """Two that were busy for each other try again at different times, as they do outside."""
    for _ in range(dice.randrange(2000)):
        await asyncio.sleep(0)


async def _evict_twice(device: Device, rows: list[BundleRow]) -> int:
    freed = 0
    for _ in range(2):
        mine = [row_at(device, row.bundle_id) for row in rows if device.is_here(row)]
        freed += (await device.evictor.evict(mine, lambda _: None)).bundles
    return freed


async def _cut(group: Group, dice: random.Random, steady: int) -> None:
    while True:
        for _ in range(dice.randrange(1, steady)):
            await asyncio.sleep(0)
        group.network.unreachable.clear()
        if dice.random() < 0.5:
            group.network.unreachable.add(group.addresses[dice.choice(group.nodes).node_id])
        links = [link for node in group.nodes for link in node.transport.links()]
        for link in dice.sample(links, min(len(links), dice.randrange(3))):
            link.abort()


# -- liars -----------------------------------------------------------------------------------------

Answer = Callable[[Request], Awaitable[None]]


async def _wrong_proof(request: Request) -> None:
    await request.reply(Proof(bytes(32)))


async def _forgets(request: Request) -> None:
    raise Unknown("It was never here.")


async def _hangs_up(request: Request) -> None:
    request.link.abort()


async def _other_bytes(request: Request) -> None:
    assert isinstance(request.message, Get)
    for block_id in verify_get(request.message.request).blocks:
        await request.reply(BlockReply(block_id), b"something else", final=False)
    await request.reply(GetDone())


async def _nothing(request: Request) -> None:
    assert isinstance(request.message, Get)
    await request.reply(GetDone(verify_get(request.message.request).blocks))


PROOFS: list[Answer] = [_wrong_proof, _forgets, _hangs_up]
BLOCKS: list[Answer] = [_other_bytes, _nothing, _hangs_up, _forgets]


def corrupt(device: Device, proofs: Answer, gets: Answer) -> None:
    async def serve(request: Request) -> None:
        if isinstance(request.message, Challenge):
            await proofs(request)
        elif isinstance(request.message, Get):
            await gets(request)
        else:
            await device.serve(request)

    device.transport.handler = serve


async def liars(base: Path, order: Order) -> Row:
    """Four holders took a file and signed for it; then three of them turn bad."""
    row, dice = Row("liars"), random.Random(order.seed)
    for number in order.numbers():
        group = Group(base / str(number))
        what = f"round {number} (seed {order.seed})"
        try:
            owner, *holders = await group.devices(5)
            filed = owner.protect("one")
            await owner.copy_to(*holders)
            ways = []
            for device in dice.sample(holders, 3):
                proofs, gets = dice.choice(PROOFS), dice.choice(BLOCKS)
                corrupt(device, proofs, gets)
                ways.append(f"{device.name} {proofs.__name__} {gets.__name__}")
            what += f", {', '.join(ways)}"
            row.points += 1
            row.files += 1
            await owner.evict(filed.data)
            if not owner.is_here(filed.data):
                row.lost.append(f"{what}: evicted on a liar's word")
            came = await _comes_back(owner, filed.data)
            row.counts["came from the honest one"] += came
        except P2PStoreError as exc:
            row.lost.append(f"{what}: {exc}")
        finally:
            await group.close()
            shutil.rmtree(base / str(number))
    return row


async def _comes_back(owner: Device, row: BundleRow) -> bool:
    """Every block, from holders alone."""
    bundle_id, tag = row.bundle_id, row.tag
    entries = owner.bundles.index(bundle_id).blocks.entries
    owner.bundles.to_trash(bundle_id)
    wanted = [Wanted(BundleRef(bundle_id, tag), entry.block_id) for entry in entries]
    found = await owner.source.blocks(wanted)
    return len(found) == len(entries)
