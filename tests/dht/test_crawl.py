from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kademlia.node import Node

from p2pstore.dht import DhtSettings
from p2pstore.dht import datagram as wire
from p2pstore.dht.address import Address, pack_contacts
from p2pstore.dht.crawl import MAX_QUESTIONS, region_bits, regions
from p2pstore.dht.protocol import SILENT_S, TRIES_S
from p2pstore.ids import PublicKey, node_id_of
from tests.dht.conftest import home_of


@pytest.mark.parametrize(
    ("nodes", "bits"), [(1, 0), (20, 0), (21, 2), (40, 2), (41, 3), (20_000, 11)]
)
def test_bits_of_a_region(nodes: int, bits: int) -> None:
    assert region_bits(nodes, 20) == bits


def test_regions_hold_every_tag_once_in_order(tags: Any) -> None:
    wanted = tags(500)
    for bits in (0, 1, 3, 9):
        found = regions(wanted + wanted, bits)
        assert sorted(t for region in found for t in region.tags) == sorted(wanted)
        assert len(found) <= 2**bits
        for region in found:
            assert region.tags == sorted(region.tags)
            assert all(region.holds(Node(t)) for t in (*region.tags, region.middle))
            halves = region.halves()
            assert [t for half in halves for t in half.tags] == region.tags
            assert len(halves) <= 2


def test_a_lone_tag_is_its_own_target(tags: Any) -> None:
    assert [r.middle for r in regions(tags(1), 0)] == tags(1)
    assert regions([], 3) == []


@pytest.mark.slow
def test_a_crawl_finds_the_nearest_of_all(sim: Any) -> None:
    sim.settings = DhtSettings(k=6, packets_in_s=None, packets_out_s=None, unproven_in_s=None)

    async def story() -> None:
        nodes = await sim.swarm(30)
        for i in range(5):
            target = Node(bytes([50 * i]) * 20)
            found = await nodes[-1]._server.nearest(target)
            everybody = [Node(n.node_id) for n in nodes[:-1]]
            best = sorted(everybody, key=target.distance_to)[:6]
            assert [n.id for n in found[:6]] == [n.id for n in best]

    sim.run(story())


def lie(dht: Any, told: list[tuple[bytes, Address]]) -> None:
    handlers = dht._server.protocol._handlers
    handlers[wire.FindNode] = lambda sender, body: wire.Contacts(pack_contacts(told))


def test_a_liar_who_tells_of_dead_nodes_delays_and_hides_nothing(sim: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        target = Node(b"t" * 20)
        near = [b"t" * 19 + bytes([i]) for i in range(20)]
        lie(nodes[3], [(near[i], Address(f"60.{i}.0.1", 80)) for i in range(20)])
        begun = sim.loop.time()
        found = await nodes[9]._server.nearest(target)
        assert {n.id for n in found} == {n.node_id for n in nodes[:9]}
        assert sim.loop.time() - begun < 15

    sim.run(story())


def test_who_did_not_answer_just_now_is_not_waited_for_again(sim: Any) -> None:
    """A device that is off is told of by all others, and each look-up would wait for it."""

    async def story() -> None:
        nodes = await sim.swarm(5)
        sim.vanish(nodes[2])
        server, target = nodes[4]._server, Node(b"t" * 20)
        others = {n.node_id for n in (nodes[0], nodes[1], nodes[3])}
        begun = sim.loop.time()
        assert {n.id for n in await server.nearest(target)} == others
        assert sim.loop.time() - begun > sum(TRIES_S) - 0.1
        begun = sim.loop.time()
        assert {n.id for n in await server.nearest(target)} == others
        assert sim.loop.time() - begun < 0.5
        sim.sockets[home_of(nodes[2])] = nodes[2]._server.transport
        await asyncio.sleep(SILENT_S)
        assert {n.id for n in await server.nearest(target)} == {*others, nodes[2].node_id}

    sim.run(story())


def test_one_liar_with_many_identities_in_one_place_fills_few_slots(sim: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        target = Node(b"t" * 20)
        false = []
        for i in range(20):
            key = sim.key(5000 + i)
            false.append((node_id_of(PublicKey(bytes(key.verify_key))), f"60.0.0.{i + 1}"))
            await sim.node(5000 + i, f"60.0.0.{i + 1}", bootstrap=[])
        lie(nodes[3], [(node_id, Address(host, 8080)) for node_id, host in false])
        found = await nodes[9]._server.nearest(target)
        liars = [n for n in found if n.ip.startswith("60.")]
        assert len(liars) == 2
        assert {n.id for n in found} >= {n.node_id for n in nodes[:9]}

    sim.run(story())


def test_one_socket_has_one_place_however_many_ids_it_answers_for(sim: Any) -> None:
    async def story() -> None:
        sim.latency_s = (0.01, 0.01)
        nodes = await sim.swarm(5)
        target = Node(b"t" * 20)
        mask = sim.stranger("60.0.0.1")
        keys = {
            node_id_of(PublicKey(bytes(key.verify_key))): key
            for key in (sim.key(5000 + i) for i in range(20))
        }
        order = sorted(keys, key=lambda node_id: target.distance_to(Node(node_id)))
        turns = iter([keys[node_id] for node_id in order])

        def answer(raw: bytes, _: Any) -> bytes | None:
            asked = wire.decode(raw)
            if asked.body != wire.FindNode(target.id):
                return None
            key = next(turns)
            mine = bytes(key.verify_key)
            now = int(sim.clock.wall())
            body = wire.Contacts(b"")
            return wire.encode(key, wire.Datagram(1, "main", mine, now, asked.call, b"", body))

        mask.answer = answer
        lie(nodes[3], [(node_id, Address("60.0.0.1", 8080)) for node_id in order])
        sim.settings = DhtSettings(packets_in_s=None, packets_out_s=None, subnet_limit=None)
        asker = await sim.node()
        found = await asker._server.nearest(target)
        assert sum(n.ip == "60.0.0.1" for n in found) == 1
        assert {n.id for n in found} >= {n.node_id for n in nodes}

    sim.run(story())


def test_liars_without_end_do_not_keep_a_crawl_going(sim: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(3)
        questions = 0

        async def call_find_node(peer: Any, target: Any) -> tuple[bool, list[Any]]:
            nonlocal questions
            questions += 1
            told = [
                Node(sim.dice.randbytes(20), f"{sim.dice.randrange(60, 90)}.{i}.0.1", questions)
                for i in range(20)
            ]
            return True, told

        nodes[0]._server.protocol.call_find_node = call_find_node
        await nodes[0]._server.nearest(Node(b"t" * 20))
        assert questions <= MAX_QUESTIONS

    sim.run(story())


def test_twenty_dead_contacts_do_not_hold_up_the_start(sim: Any) -> None:
    async def story() -> None:
        alive = await sim.node()
        dead = [(f"70.{i}.0.1", 8080) for i in range(20)]
        begun = sim.loop.time()
        late = sim.make(50, "51.0.0.1")
        sim.nodes.append(late)
        await late.start("51.0.0.1", 8080, [*dead, alive._server.transport.address])
        assert await late.joined() == 1
        assert sim.loop.time() - begun < 10

    sim.run(story())
