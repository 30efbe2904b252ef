"""What the swarm makes of bad weather: everything arrives in the end, and only what was sent."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from p2pstore.dht import LOOPBACK, Dht
from p2pstore.errors import P2PStoreError
from p2pstore.ids import NodeId, PublicKey, Tag
from p2pstore.wire import PeerRecord, sign_record
from tests.chaos import Faults, TcpProxy, UdpProxy
from tests.swarm.world import Node, Sealed, World

MIB = 1 << 20
TRIES = 60  # reconnections, each after a cut
SEED = 7


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, "tls")
    yield made
    await made.close()


@asynccontextmanager
async def pair_in(world: World, faults: Faults) -> AsyncIterator[tuple[Node, Node, TcpProxy]]:
    """Two devices of one group; what the first knows as the other's address is the proxy's."""
    laptop, nas = world.node("laptop"), world.node("nas")
    async with TcpProxy(await nas.address(), faults, seed=SEED) as proxy:
        laptop.book.note_address(nas.node_id, proxy.address)
        yield laptop, nas, proxy


async def pushed(laptop: Node, nas: Node, sealed: Sealed) -> int:
    """How often it took to push a bundle."""
    for tried in range(1, TRIES + 1):
        try:
            await laptop.connections.connect(nas.node_id)
            await laptop.pusher.push(sealed.bundle_id, sealed.tag, nas.node_id)
            return tried
        except P2PStoreError:
            # The other side notices a moment later; until then it is busy with the first attempt.
            await asyncio.sleep(0.01)
    raise AssertionError("it never went through")


@pytest.mark.slow
async def test_a_push_goes_on_after_every_cut(world: World) -> None:
    async with pair_in(world, Faults(cut_every=4 * MIB)) as (laptop, nas, proxy):
        sealed = laptop.seal(number=64, size=256 * 1024)
        tried = await pushed(laptop, nas, sealed)
        assert tried > 1
        assert proxy.told["cuts"] >= 2
        ids = [block.block_id for block in sealed.blocks]
        assert nas.held.read_blocks(sealed.bundle_id, ids) == sealed.content()
        size = sum(len(block.block) for block in sealed.blocks)
        # Had each attempt begun anew, few would ever have come to the end of 16 MiB.
        assert proxy.told["bytes"] < size + (proxy.told["cuts"] + 1) * MIB


@pytest.mark.slow
async def test_corrupted_bytes_never_become_wrong_blocks(world: World) -> None:
    async with pair_in(world, Faults(corrupt_every=3 * MIB)) as (laptop, nas, proxy):
        sealed = laptop.seal(number=32, size=256 * 1024)
        await pushed(laptop, nas, sealed)
        laptop.drop(sealed)
        laptop.holders[sealed.bundle_id] = [nas.node_id]
        got: dict[bytes, bytes] = {}
        for _ in range(TRIES):
            missing = [wanted for wanted in sealed.wanted() if wanted.block_id not in got]
            if not missing:
                break
            try:
                await laptop.connections.connect(nas.node_id)
                got |= await laptop.source.blocks(missing[:8])
            except P2PStoreError:
                await asyncio.sleep(0.01)
        assert got == sealed.content()
        assert proxy.told["flips"] >= 2, "both ways were spoiled"


@pytest.mark.slow
async def test_a_stall_ends_by_the_limit_of_slowness(world: World) -> None:
    async with pair_in(world, Faults(stall_every=2 * MIB)) as (laptop, nas, proxy):
        sealed = laptop.seal(number=32, size=256 * 1024)
        await laptop.connections.connect(nas.node_id)
        push = asyncio.ensure_future(laptop.pusher.push(sealed.bundle_id, sealed.tag, nas.node_id))
        async with asyncio.timeout(10):
            while not proxy.told["stalls"]:
                await asyncio.sleep(0.01)
        limits = laptop.transport.limits
        laptop.transport.check()
        world.clock.advance(limits.rate_window_s - 1)
        laptop.transport.check()
        assert not push.done(), "slow is no reason before the window has passed"
        for _ in range(100):
            if push.done():
                break
            world.clock.advance(limits.rate_window_s + 1)
            laptop.transport.check()
            await asyncio.sleep(0.02)
        with pytest.raises(P2PStoreError):
            await asyncio.wait_for(push, 1)
        proxy.faults = Faults()
        await pushed(laptop, nas, sealed)


@pytest.mark.slow
async def test_a_silent_line_does_not_hold_a_dialler(world: World) -> None:
    async with pair_in(world, Faults(stall_every=200)) as (laptop, nas, proxy):
        laptop.transport.limits = replace(laptop.transport.limits, handshake_s=0.2)
        with pytest.raises(P2PStoreError):
            async with asyncio.timeout(5):
                await laptop.connections.connect(nas.node_id)
        assert proxy.told["stalls"]


# -- the DHT ---------------------------------------------------------------------------------------


def dht(number: int) -> Dht:
    key = SigningKey((number + 1).to_bytes(32, "big"))

    def record() -> bytes:
        public = PublicKey(bytes(key.verify_key))
        issued = int(time.time() * 1000)
        body = PeerRecord(public, "main", (("127.0.0.1", 9000 + number),), issued, f"n{number}")
        return sign_record(body, key)

    return Dht(key, "main", record, settings=LOOPBACK)


@pytest.mark.slow
async def test_the_dht_finds_all_with_a_third_of_its_datagrams_lost() -> None:
    """Each node hears the first one through weather of its own, in both directions."""
    faults = Faults(loss=0.3, reorder=0.1, duplicate=0.1, delay_s=(0.001, 0.01))
    first, announcer, seeker = (dht(number) for number in range(3))
    port = await first.start("127.0.0.1", 0, [])
    tags = [Tag(random.Random(i).randbytes(20)) for i in range(30)]
    async with (
        UdpProxy(("127.0.0.1", port), faults, seed=SEED) as one,
        UdpProxy(("127.0.0.1", port), faults, seed=SEED + 1) as other,
    ):
        try:
            await announcer.start("127.0.0.1", 0, [one.address])
            await seeker.start("127.0.0.1", 0, [other.address])
            async with asyncio.timeout(30):
                while not (announcer.nodes() and seeker.nodes()):
                    await asyncio.sleep(0.02)
                until_ms = int((time.time() + 3600) * 1000)
                # A request is sent three times; one in seven is lost for all that, and repeated.
                while not (await announcer.announce(tags, until_ms)).nodes:
                    pass
                found: dict[Tag, set[NodeId]] = {}
                while found != {tag: {announcer.node_id} for tag in tags}:
                    found = {t: names(r) for t, r in (await seeker.providers(tags)).items()}
            assert one.told["lost"] + other.told["lost"] > 3
        finally:
            for node in (seeker, announcer, first):
                await node.close()


def names(records: list[PeerRecord]) -> set[NodeId]:
    return {record.node_id for record in records}
