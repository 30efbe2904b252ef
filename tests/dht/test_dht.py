"""The network as a whole: announce, find, survive, end cleanly."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from kademlia.node import Node
from nacl.signing import SigningKey

from p2pstore.dht import LOOPBACK, Dht, DhtSettings
from p2pstore.dht import datagram as wire
from p2pstore.dht.claim import LIFETIME_MS, make_claim
from p2pstore.dht.proofs import prove_claim
from p2pstore.errors import PortInUse, Unavailable, UsageError
from p2pstore.ids import NodeId, PublicKey
from p2pstore.wire import PeerRecord, sign_record


def until(sim: Any, hours: float = 24) -> int:
    return int((sim.clock.wall() + hours * 3600) * 1000)


def names(found: dict[Any, list[Any]], tag: Any) -> set[Any]:
    return {record.node_id for record in found[tag]}


def test_every_announced_tag_is_found_with_all_providers(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        wanted = tags(100)
        for dht in nodes[:3]:
            assert (await dht.announce(wanted, until(sim))).nodes == 9
        found = await nodes[9].providers(wanted)
        assert all(names(found, t) == {d.node_id for d in nodes[:3]} for t in wanted)
        assert await nodes[5].providers([b"?" * 20]) == {b"?" * 20: []}

    sim.run(story())


def test_all_is_found_with_a_tenth_lost_and_a_dead_node(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        wanted = tags(300)
        sim.vanish(nodes[5])
        sim.loss = 0.1
        for dht in nodes[:3]:
            await dht.announce(wanted, until(sim))
        found = await nodes[9].providers(wanted)
        assert all(names(found, t) == {d.node_id for d in nodes[:3]} for t in wanted)
        assert await nodes[9].find(nodes[2].node_id) is not None

    sim.run(story())


def test_a_node_whose_first_words_were_lost_tries_again_soon(sim: Any) -> None:
    """A computer starts before its network does, or the line is bad for a moment."""

    async def story() -> None:
        await sim.node()
        sim.loss = 1.0
        late = await sim.node()
        assert late.nodes() == 0
        sim.loss = 0.0
        await asyncio.sleep(20)
        assert late.nodes() == 1

    sim.run(story())


def test_many_tags_share_datagrams(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        wanted = tags(500)
        sent = sim.carried["datagrams"]
        await nodes[0].announce(wanted, until(sim))
        # 11 datagrams to each of 9 nodes, as many answers, and the crawl
        assert sim.carried["datagrams"] - sent < 2 * 9 * 11 + 60
        sent = sim.carried["datagrams"]
        await nodes[9].providers(wanted)
        assert sim.carried["datagrams"] - sent < 200

    sim.run(story())


@pytest.mark.slow
@pytest.mark.parametrize("guess", [None, 1], ids=["guessed", "guessed far too small"])
def test_a_larger_network_is_swept_region_by_region(sim: Any, tags: Any, guess: Any) -> None:
    async def story() -> None:
        sim.settings = DhtSettings(
            k=4, packets_in_s=None, packets_out_s=None, unproven_in_s=None, subnet_limit=2
        )
        nodes = await sim.swarm(30)
        wanted = tags(60)
        if guess is not None:
            nodes[0]._server.protocol.router.size_of_network = lambda: guess
        await nodes[0].announce(wanted, until(sim))
        holding = [len(n._claims) for n in nodes[1:]]
        assert sum(holding) < 60 * 29 * 0.7  # not everything everywhere
        found = await nodes[29].providers(wanted)
        assert all(names(found, t) == {nodes[0].node_id} for t in wanted)

    sim.run(story())


@pytest.mark.slow
def test_look_ups_grow_with_the_network_not_with_the_keys(sim: Any, tags: Any) -> None:
    """A terabyte is 65,536 keys; at most 5,000 look-ups a cycle."""

    class Ideal:
        """Every look-up finds the nearest of 1,000 nodes."""

        def __init__(self) -> None:
            self.nodes = [Node(sim.dice.randbytes(20), "20.0.0.1", 1) for _ in range(1000)]
            self.lookups = 0

        async def nearest(self, target: Node, width: int) -> list[Node]:
            self.lookups += 1
            return sorted(self.nodes, key=target.distance_to)[:width]

    async def story() -> None:
        ideal = Ideal()
        dht = await sim.node()
        dht._server.nearest = ideal.nearest
        dht._server.protocol.router.size_of_network = lambda: 1000
        kept: set[bytes] = set()

        async def keep(node: Node, body: Any) -> Any:
            kept.update(body.keys[i : i + 20] for i in range(0, len(body.keys), 20))
            return wire.Added(1, False)

        dht._server.protocol.ask = keep
        wanted = tags(5000)
        told = await dht.announce(wanted, until(sim))
        assert told.lookups == ideal.lookups
        assert told.lookups <= 150  # 128 regions, some of them halved
        assert kept == set(wanted)

    sim.run(story())


def test_announcements_end(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(4)
        short, long = tags(2)
        await nodes[0].announce([short], until(sim, 1))
        await nodes[0].announce([long], until(sim, 1000))
        assert await nodes[0].announce([long], until(sim, -1)) == (0, 0, 0)
        await asyncio.sleep(2 * 3600)
        found = await nodes[3].providers([short, long])
        assert [len(found[short]), len(found[long])] == [0, 1]
        await asyncio.sleep(23 * 3600)
        assert await nodes[3].providers([long]) == {long: []}
        assert all(len(n._claims) == 0 for n in nodes)

    sim.run(story())


def test_records_of_the_dead_vanish_and_those_of_the_living_stay(sim: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(4)
        assert await nodes[3].find(nodes[1].node_id) is not None
        await nodes[1].close()
        await asyncio.sleep(25 * 3600)
        assert await nodes[3].find(nodes[1].node_id) is None
        assert await nodes[3].find(nodes[2].node_id) is not None
        assert nodes[3].nodes() == 2

    sim.run(story())


def test_find_returns_the_newest_address(sim: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(5)
        key = sim.key(77)
        host = ["20.7.7.1"]
        mover = await sim.node(77, "20.7.7.1", record=lambda: sim.record(key, host[0]))
        host[0] = "20.8.8.1"
        assert await mover.refresh_record() == 5
        for dht in nodes:
            record = await dht.find(mover.node_id)
            assert record.addresses == (("20.8.8.1", 8080),)
        assert (await mover.find(mover.node_id)).addresses == (("20.8.8.1", 8080),)
        assert await nodes[0].find(NodeId(bytes(20))) is None

    sim.run(story())


def test_a_liar_cannot_fill_the_result_slots(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        [tag] = tags(1)
        for dht in nodes[:3]:
            await dht.announce([tag], until(sim))
        now_ms = int(sim.clock.wall() * 1000)
        invented = [
            make_claim(SigningKey(sim.dice.randbytes(32)), "main", [tag], now_ms, now_ms + 1000)
            for _ in range(200)
        ]
        pages = 0

        def flood(sender: Any, body: Any) -> Any:
            nonlocal pages
            pages += 1
            some = invented[body.start : body.start + 4]
            proofs = tuple(prove_claim(c, (tag,)) for c in some)
            return wire.Providers(proofs, body.start + 4)

        for liar in nodes[3:6]:
            liar._server.protocol._handlers[wire.GetProviders] = flood
        found = await nodes[9].providers([tag])
        assert names(found, tag) >= {d.node_id for d in nodes[:3]}
        assert len(found[tag]) <= 64
        assert pages <= 3 * 40

    sim.run(story())


@pytest.mark.parametrize("lie", ["moved", "stretched", "garbage", "short"])
def test_false_proofs_are_worth_nothing(sim: Any, tags: Any, lie: str) -> None:
    async def story() -> None:
        nodes = await sim.swarm(4)
        mine, other = sorted(tags(2))
        now_ms = int(sim.clock.wall() * 1000)
        claim = make_claim(sim.key(1), "main", [mine], now_ms, now_ms + 1000)
        proof = prove_claim(claim, (mine,))
        false = {
            "moved": proof,
            "stretched": msgspec.structs.replace(proof, expires_ms=now_ms + LIFETIME_MS),
            "garbage": msgspec.structs.replace(proof, signature=bytes(64)),
            "short": msgspec.structs.replace(proof, asked=b"\xff"),
        }[lie]
        for dht in nodes[:3]:
            dht._server.protocol._handlers[wire.GetProviders] = lambda sender, body: wire.Providers(
                (false,), 0
            )
        assert await nodes[3].providers([other]) == {other: []}

    sim.run(story())


def test_related_providers_come_first(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(5)
        friend = nodes[2].node_id
        asker = await sim.node(90, related=lambda n: n == friend)
        for dht in nodes[:4]:
            await dht.announce(tags(1), until(sim))
        [records] = (await asker.providers(tags(1))).values()
        assert records[0].node_id == friend
        assert len(records) == 4

    sim.run(story())


def test_one_who_keeps_an_old_record_back_sends_nobody_astray(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(4)
        key, host = sim.key(77), ["20.7.7.1"]
        mover = await sim.node(77, "20.7.7.1", record=lambda: sim.record(key, host[0]))
        old = sim.record(key, "20.7.7.1", sim.clock.wall() - 60)
        await mover.announce(tags(1), until(sim))
        host[0] = "20.8.8.1"
        await mover.refresh_record()
        for liar in nodes[:1]:
            liar._server.protocol._handlers[wire.GetRecords] = lambda sender, body: wire.Records(
                (old,)
            )
        asker = await sim.node(90)
        assert [r.addresses[0][0] for r in (await asker.providers(tags(1)))[tags(1)[0]]] == [
            "20.8.8.1"
        ]

    sim.run(story())


def test_networks_do_not_mix(sim: Any, tags: Any) -> None:
    async def story() -> None:
        a = await sim.node()
        key = sim.key(60)

        def record() -> bytes:
            return sign_record(
                PeerRecord(
                    PublicKey(bytes(key.verify_key)),
                    "other",
                    (),
                    int(sim.clock.wall() * 1000),
                    "",
                ),
                key,
            )

        b = await sim.node(60, "20.6.6.1", network="other", record=record)
        assert a.nodes() == b.nodes() == 0
        assert a._server.protocol.dropped["network"] > 0

    sim.run(story())


def test_state_brings_a_node_back_without_bootstrap(sim: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(5)
        await asyncio.sleep(120)  # by then the first node, alone at its start, has told its record
        saved = nodes[4].state()
        assert not saved.startswith(b"\x80\x04")  # a pickle
        await nodes[4].close()
        again = sim.make(5, "20.0.5.1")
        sim.nodes.append(again)
        await again.start("20.0.5.1", 8080, [], saved)
        assert await again.joined() == 4
        assert again._records.get(nodes[1].node_id, 0) is not None

    sim.run(story())


@pytest.mark.parametrize(
    "saved", [b"", b"junk", b"\x91" * 3000, msgspec.msgpack.encode([9, [], []])]
)
def test_damaged_state_costs_the_contacts_only(sim: Any, saved: bytes) -> None:
    async def story() -> None:
        await sim.node()
        assert (await sim.node(saved=saved)).nodes() == 1

    sim.run(story())


def test_saved_host_names_are_no_contacts(sim: Any) -> None:
    async def story() -> None:
        state = msgspec.msgpack.encode([1, [["example.org", 80], ["20.0.1.1", 8080]], []])
        dht = sim.make(5, "20.0.5.1")
        dht._load(state)
        assert dht._ways_in == (("20.0.1.1", 8080),)

    sim.run(story())


def test_a_node_that_was_offline_finds_its_way_back(sim: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(4)
        cable = sim.sockets.pop(nodes[3]._server.transport.address)
        for _ in range(3):
            await nodes[3].find(NodeId(bytes(20)))
        assert nodes[3].nodes() == 0
        await asyncio.sleep(600)
        sim.sockets[cable.address] = cable
        await asyncio.sleep(120)
        assert nodes[3].nodes() == 3

    sim.run(story())


def test_keys_are_announced_at_a_pace_that_others_take(sim: Any, tags: Any) -> None:
    sim.settings = DhtSettings()

    async def story() -> None:
        nodes = [await sim.node(related=lambda _: True) for _ in range(3)]
        await nodes[0].announce(tags(6000), until(sim))
        dropped = [n._server.protocol.dropped["rate"] for n in nodes]
        assert dropped == [0, 0, 0]
        assert [len(n._claims) for n in nodes] == [6000] * 3

    sim.run(story())


def test_a_stranger_stores_a_thousand_keys_at_most(sim: Any, tags: Any) -> None:
    async def story() -> None:
        a, b = await sim.swarm(2)
        await a.announce(tags(1500), until(sim))
        assert len(b._claims) == 1000

    sim.run(story())


def test_closing_ends_what_is_under_way(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(4)
        for dht in nodes[:3]:
            sim.vanish(dht)
        asking = [
            asyncio.ensure_future(work)
            for work in (
                nodes[3].providers(tags(5)),
                nodes[3].announce(tags(5), until(sim)),
                nodes[3].find(NodeId(bytes(20))),
            )
        ]
        await asyncio.sleep(0.1)
        begun = sim.loop.time()
        await nodes[3].close()
        await nodes[3].close()
        await asyncio.wait(asking)
        assert sim.loop.time() - begun < 1
        assert all(t.exception() is None for t in asking)
        with pytest.raises(Unavailable):
            await nodes[3].providers(tags(1))

    sim.run(story())


def test_closing_while_joining(sim: Any) -> None:
    async def story() -> None:
        dht = sim.make(1, "20.0.0.1")
        await dht.start("20.0.0.1", 8080, [("20.0.0.9", 8080)])
        await dht.close()
        with pytest.raises(Unavailable):
            await dht.find(NodeId(bytes(20)))

    sim.run(story())


def test_a_taken_port_is_said_so(sim: Any) -> None:
    async def story() -> None:
        await sim.node(1, "20.0.0.1")
        with pytest.raises(PortInUse):
            await sim.make(2, "20.0.0.1").start("20.0.0.1", 8080)

    sim.run(story())


def test_impossible_settings(sim: Any) -> None:
    with pytest.raises(UsageError):
        sim.make(1, "20.0.0.1", network="")
    with pytest.raises(UsageError):
        sim.make(1, "20.0.0.1", network="x" * 65)
    with pytest.raises(UsageError):
        DhtSettings(k=21)
    sim.loop.close()


def loopback_node(number: int) -> Dht:
    key = SigningKey((number + 1).to_bytes(32, "big"))

    def record() -> bytes:
        return sign_record(
            PeerRecord(
                PublicKey(bytes(key.verify_key)),
                "main",
                (("127.0.0.1", 8080 + number),),
                int(time.time() * 1000),
                f"node {number}",
            ),
            key,
        )

    return Dht(key, "main", record, settings=LOOPBACK)


async def ten_nodes(tags: Callable[[int], list[Any]]) -> None:
    nodes: list[Dht] = []
    try:
        for number in range(10):
            dht = loopback_node(number)
            port = await dht.start("127.0.0.1", 0, [("localhost", nodes[0].port)] if nodes else [])
            nodes.append(dht)
            assert port == dht.port > 0
            await dht.joined()
        wanted = tags(100)
        for dht in nodes[:3]:
            await dht.announce(wanted, int((time.time() + 3600) * 1000))
        found = await nodes[9].providers(wanted)
        assert all(names(found, t) == {d.node_id for d in nodes[:3]} for t in wanted)
        record = await nodes[8].find(nodes[4].node_id)
        assert record is not None
        assert record.name == "node 4"
    finally:
        for dht in nodes:
            await dht.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()


@pytest.mark.slow
@pytest.mark.parametrize("uv", [False, True], ids=["asyncio", "uvloop"])
def test_ten_nodes_on_the_loopback(tags: Any, uv: bool) -> None:
    factory = None
    if uv:
        if importlib.util.find_spec("uvloop") is None:
            pytest.skip("uvloop is an extra")
        factory = importlib.import_module("uvloop").new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(ten_nodes(tags))


@pytest.mark.slow
def test_a_port_of_another_process_is_refused() -> None:
    async def story() -> None:
        first, second = loopback_node(1), loopback_node(2)
        port = await first.start("127.0.0.1", 0)
        with pytest.raises(PortInUse):
            await second.start("127.0.0.1", port)
        await first.close()
        await second.close()

    asyncio.run(story())
