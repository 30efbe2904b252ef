"""One node against whoever sends to it: proofs, limits, lies, lost datagrams."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from types import SimpleNamespace
from typing import Any

import pytest
from kademlia.node import Node

from p2pstore.dht import DhtSettings
from p2pstore.dht import datagram as wire
from p2pstore.dht.address import Address, pack_contacts
from p2pstore.dht.claim import LIFETIME_MS, make_claim
from p2pstore.dht.protocol import TRIES_S, SignedTransport
from p2pstore.ids import PublicKey, node_id_of


def sealed(
    sim: Any, number: int, body: Any, *, cookie: bytes = b"", call: bytes = b"c" * 8, **more: Any
) -> bytes:
    """A datagram of key `number`; `more` overrides its fields, `least` its size."""
    key = sim.key(number)
    least = more.pop("least", wire.MIN_REQUEST)
    fields: dict[str, Any] = {
        "version": wire.VERSION,
        "network": "main",
        "public_key": bytes(key.verify_key),
        "sent_s": int(sim.clock.wall()),
        "call": call,
        "cookie": cookie,
        "body": body,
    }
    return wire.encode(key, wire.Datagram(**(fields | more)), least=least)


def id_of(sim: Any, number: int) -> Any:
    return node_id_of(PublicKey(bytes(sim.key(number).verify_key)))


def claims(sim: Any, number: int, tags: list[Any], issued_ms: int = 0) -> wire.AddProviders:
    issued_ms = issued_ms or int(sim.clock.wall() * 1000)
    claim = make_claim(sim.key(number), "main", sorted(tags), issued_ms, issued_ms + LIFETIME_MS)
    return wire.AddProviders(
        issued_ms, issued_ms + LIFETIME_MS, b"".join(claim.keys), claim.signature, 1
    )


async def calm(seconds: float = 5) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(seconds)


def test_unproven_addresses_never_get_more_than_they_send(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        wanted = sorted(tags(40))
        for dht in nodes:
            await dht.announce(wanted, int((sim.clock.wall() + 3600) * 1000))
        victim = sim.stranger("30.0.0.1")
        bodies = [
            wire.Ping(),
            wire.FindNode(b"t" * 20),
            wire.GetProviders(b"".join(wanted)),
            wire.GetRecords(b"".join(sorted(n.node_id for n in nodes))),
            claims(sim, 99, wanted),
            wire.PutRecord(sim.record(sim.key(99), "30.0.0.1")),
        ]
        for body in bodies:
            for least in (0, wire.MIN_REQUEST, wire.MAX_OUT - 10):
                forged = sealed(sim, 99, body, least=least, cookie=b"x" * 8)
                victim.got.clear()
                victim.send(forged, nodes[0])
                await calm(60)
                assert sum(len(raw) for raw, _ in victim.got) <= len(forged)
                assert len(victim.got) <= 1
        assert nodes[0]._records.get(id_of(sim, 99), 0) is None
        assert id_of(sim, 99) not in nodes[0]._claims._keys_of

    sim.run(story())


def test_a_proven_address_gets_the_whole_answer(sim: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        asker = sim.stranger("30.0.0.1")
        asker.send(sealed(sim, 99, wire.FindNode(b"t" * 20)), nodes[0])
        await calm()
        challenge = wire.decode(asker.got.pop()[0])
        assert challenge.body == wire.Challenge()
        asker.send(sealed(sim, 99, wire.FindNode(b"t" * 20), cookie=challenge.cookie), nodes[0])
        await calm(0.1)
        bodies = [wire.decode(raw).body for raw, _ in asker.got]  # it is pinged back, too
        (answer,) = [body for body in bodies if isinstance(body, wire.Contacts)]
        assert len(answer.packed) == 9 * 27

    sim.run(story())


def test_hostile_datagrams_are_ignored_without_noise(
    sim: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def story() -> None:
        dht = await sim.node()
        attacker = sim.stranger("30.0.0.1")
        good = sealed(sim, 99, wire.Ping())
        old = int(sim.clock.wall()) - 3 * 3600
        wrong = [
            b"",
            b"x",
            b"\0" * 22,
            b"\x00" + b"m" * 20 + b"\x92\xa4ping\x91\xc4\x14" + b"i" * 20,  # a stock request
            bytes(1500),
            sim.dice.randbytes(1200),
            good[:-1],
            good + b"x",
            good[:70] + b"\xff" + good[71:],
            bytes(64) + good[64:],
            sealed(sim, 99, wire.Ping(), network="other"),
            sealed(sim, 99, wire.Ping(), sent_s=old),
            sealed(sim, 99, wire.Ping(), public_key=b"k" * 32),
            sealed(sim, 99, wire.Pong()),
            sealed(sim, 99, wire.Contacts(b"x")),
            sealed(sim, 1, wire.Ping()),  # in our own name
        ]
        for raw in wrong * 20:
            attacker.send(raw, dht)
        await calm()
        assert attacker.got == []
        assert sum(dht._server.protocol.dropped.values()) == len(wrong) * 20
        attacker.send(good, dht)
        await calm()
        assert len(attacker.got) == 1

    sim.run(story())
    assert caplog.records == []


def test_random_and_mutated_datagrams_raise_nothing(sim: Any) -> None:
    async def story() -> None:
        dht = await sim.node()
        bodies = [wire.FindNode(b"t" * 20), wire.GetProviders(b"t" * 40), wire.Providers((), 0)]
        for i in range(1500):
            raw = bytearray(sealed(sim, 99, bodies[i % 3], least=0))
            for _ in range(sim.dice.randrange(1, 4)):
                raw[sim.dice.randrange(64, len(raw))] = sim.dice.randrange(256)
            dht._server.protocol.datagram_received(bytes(raw), ("30.0.0.1", 5))

    sim.run(story())


def test_only_listed_methods_can_be_called(sim: Any) -> None:
    async def story() -> None:
        protocol = (await sim.node())._server.protocol
        assert {kind.__name__ for kind in protocol._handlers} == {
            "Ping",
            "FindNode",
            "AddProviders",
            "GetProviders",
            "PutRecord",
            "GetRecords",
        }
        for name in ("ping", "find_node", "store", "no_such_thing", "_private"):
            with pytest.raises(AttributeError):
                getattr(protocol, name)

    sim.run(story())


def test_packets_of_one_address_are_limited_whatever_its_port(sim: Any) -> None:
    sim.settings = DhtSettings(packets_out_s=None)

    async def story() -> None:
        dht = await sim.node()
        sim.latency_s = (0.01, 0.01)
        got = 0
        for port in range(1, 201):
            stranger = sim.stranger("30.0.0.1", port)
            stranger.send(sealed(sim, 99, wire.Ping()), dht)
        await calm(0.1)
        got = sum(bool(s.protocol.got) for s in sim.sockets.values() if hasattr(s.protocol, "got"))
        assert got == 120
        assert dht._server.protocol.dropped["rate"] == 80

    sim.run(story())


def test_who_forges_an_address_does_not_silence_its_owner(sim: Any) -> None:
    sim.settings = DhtSettings(packets_out_s=None)

    async def story() -> None:
        dht = await sim.node()
        owner = sim.stranger("30.0.0.1")
        owner.send(sealed(sim, 99, wire.Ping()), dht)
        await calm()
        cookie = wire.decode(owner.got.pop()[0]).cookie
        for _ in range(300):
            owner.send(sealed(sim, 98, wire.Ping()), dht)
        await calm(0.05)
        owner.got.clear()
        owner.send(sealed(sim, 99, wire.Ping(), cookie=cookie, call=b"owner123"), dht)
        await calm(0.1)
        assert b"owner123" in [wire.decode(raw).call for raw, _ in owner.got]

    sim.run(story())


def test_all_unproven_together_are_limited(sim: Any) -> None:
    sim.settings = DhtSettings(unproven_in_s=50.0)

    async def story() -> None:
        dht = await sim.node()
        for i in range(1, 101):
            sim.stranger(f"30.0.{i}.1").send(sealed(sim, 99, wire.Ping()), dht)
        await calm(0.05)
        assert dht._server.protocol.dropped["rate of all"] >= 45

    sim.run(story())


def test_a_newcomer_is_pinged_back_before_it_is_trusted(sim: Any) -> None:
    async def story() -> None:
        dht = await sim.node()
        mute = sim.stranger("30.0.0.1")
        mute.send(sealed(sim, 99, wire.Ping()), dht)
        await calm()
        cookie = wire.decode(mute.got.pop()[0]).cookie
        mute.send(sealed(sim, 99, wire.Ping(), cookie=cookie), dht)
        await calm()
        bodies = [wire.decode(raw).body for raw, _ in mute.got]
        assert bodies.count(wire.Ping()) == 3  # it never answers
        assert dht.nodes() == 0
        mute.answer = lambda raw, _: (
            sealed(sim, 99, wire.Pong(), call=wire.decode(raw).call)
            if wire.decode(raw).body == wire.Ping()
            else None
        )
        mute.send(sealed(sim, 99, wire.Ping(), cookie=cookie), dht)
        await calm()
        assert dht.nodes() == 1

    sim.run(story())


def test_an_answer_in_another_name_is_no_answer(sim: Any) -> None:
    async def story() -> None:
        dht = await sim.node()
        other = sim.stranger("30.0.0.1")
        other.answer = lambda raw, _: sealed(sim, 98, wire.Pong(), call=wire.decode(raw).call)
        protocol = dht._server.protocol
        node = Node(id_of(sim, 99), "30.0.0.1", 8080)
        begun = sim.loop.time()
        assert (await protocol.call_ping(node))[0] is False
        assert sim.loop.time() - begun < TRIES_S[0]  # and there is nothing to wait for
        assert dht.nodes() == 0

    sim.run(story())


@pytest.mark.parametrize("what", ["address", "call", "kind"])
def test_answers_that_were_not_asked_for_are_ignored(sim: Any, what: str) -> None:
    async def story() -> None:
        dht = await sim.node()
        asked, other = sim.stranger("30.0.0.1"), sim.stranger("30.0.0.2")

        def answer(raw: bytes, source: Any) -> None:
            call = wire.decode(raw).call
            if what == "address":
                other.send(sealed(sim, 99, wire.Pong(), call=call), source)
            elif what == "call":
                asked.send(sealed(sim, 99, wire.Pong(), call=b"guessed!"), source)
            else:
                asked.send(sealed(sim, 99, wire.Kept(True), call=call), source)

        asked.answer = answer
        reply = await dht._server.protocol.request(Address("30.0.0.1", 8080), wire.Ping())
        assert reply is None
        assert len(asked.got) == 3

    sim.run(story())


@pytest.mark.parametrize("lost", [0, 1, 2, 3])
def test_three_sendings_and_nothing_left_behind(sim: Any, lost: int) -> None:
    async def story() -> None:
        a, b = await sim.swarm(2)
        protocol = a._server.protocol
        target = Address(*b._server.transport.address)
        sent: list[float] = []

        def lose(raw: bytes, source: Any, to: Any) -> bool:
            if to != target:
                return False
            sent.append(sim.loop.time())
            return len(sent) <= lost

        sim.lose = lose
        reply = await protocol.request(target, wire.Ping(), b.node_id)
        assert (reply is not None) == (lost < 3)
        gaps = [round(y - x, 3) for x, y in itertools.pairwise(sent)]
        assert gaps == list(TRIES_S[: min(lost, 2)])
        assert protocol._calls == {}

    sim.run(story())


def test_a_cancelled_request_leaves_nothing_behind(sim: Any) -> None:
    async def story() -> None:
        a, b = await sim.swarm(2)
        protocol = a._server.protocol
        asking = asyncio.ensure_future(
            protocol.request(Address(*b._server.transport.address), wire.Ping())
        )
        await calm(0.001)
        assert len(protocol._calls) == 1
        asking.cancel()
        await asyncio.wait([asking])
        assert protocol._calls == {}
        await calm()  # the answer comes, and hurts nobody

    sim.run(story())


def test_one_lost_datagram_drops_nobody(sim: Any) -> None:
    async def story() -> None:
        a, b = await sim.swarm(2)
        contact = a._server.protocol.router.get(b.node_id)
        b_home = b._server.transport.address
        once = iter([True])
        sim.lose = lambda raw, source, to: to == b_home and next(once, False)
        assert (await a._server.protocol.call_ping(contact))[0]
        assert a.nodes() == 1
        sim.lose = lambda raw, source, to: to == b_home
        await a._server.protocol.call_ping(contact)
        assert a.nodes() == 1
        await a._server.protocol.call_ping(contact)
        assert a.nodes() == 0

    sim.run(story())


def test_addresses_follow_their_node(sim: Any) -> None:
    async def story() -> None:
        a, b = await sim.swarm(2)
        old = sim.sockets.pop(b._server.transport.address)
        old.address = ("40.0.0.1", 9000)
        sim.sockets[old.address] = old
        await b.refresh_record()  # it only has to speak, twice: the first time it gets a cookie
        await b.refresh_record()
        await calm(10)
        moved = a._server.protocol.router.get(b.node_id)
        assert (moved.ip, moved.port) == old.address
        assert a.nodes() == 1

    sim.run(story())


def test_a_relay_cannot_take_the_place_of_a_node_that_lives(sim: Any) -> None:
    async def story() -> None:
        a, b = await sim.swarm(2)
        a_home, b_home = a._server.transport.address, b._server.transport.address
        relay = sim.stranger("66.0.0.1")

        def forward(raw: bytes, source: Any) -> None:
            relay.send(raw, b_home if source == a_home else a_home)

        relay.answer = forward
        told = Node(b.node_id, *relay.socket.address)  # as a liar would tell it
        assert (await a._server.protocol.call_ping(told))[0]  # b itself answers, through the relay
        await calm(10)
        kept = a._server.protocol.router.get(b.node_id)
        assert (kept.ip, kept.port) == b_home

    sim.run(story())


def test_names_and_traps_are_no_contacts(sim: Any) -> None:
    async def story() -> None:
        dht = await sim.node()
        liar = sim.stranger("30.0.0.1")
        told = [
            (id_of(sim, 50), Address("127.0.0.1", 22)),
            (id_of(sim, 51), Address("192.168.1.1", 80)),
            (id_of(sim, 52), Address("31.0.0.1", 80)),
            (dht.node_id, Address("31.0.0.2", 80)),
        ]

        def answer(raw: bytes, _: Any) -> bytes:
            body = wire.Contacts(pack_contacts(told))
            return sealed(sim, 99, body, call=wire.decode(raw).call)

        liar.answer = answer
        node = Node(id_of(sim, 99), "30.0.0.1", 8080)
        happened, found = await dht._server.protocol.call_find_node(node, Node(b"t" * 20))
        assert happened
        assert [(n.ip, n.port) for n in found] == [("31.0.0.1", 80)]

    sim.run(story())


def test_home_addresses_are_not_told_outside(sim: Any) -> None:
    async def story() -> None:
        dht = await sim.node()
        router = dht._server.protocol.router
        for i, host in enumerate(("192.168.1.5", "127.0.0.1", "50.0.0.1")):
            router.add_contact(Node(bytes([i]) * 20, host, 80))
        reach_of: dict[str, int] = {}
        for host in ("30.0.0.1", "192.168.1.9"):
            asker = sim.stranger(host)
            asker.send(sealed(sim, 99, wire.FindNode(b"t" * 20), least=1100), dht)
            await calm(0.2)
            reach_of[host] = len(wire.decode(asker.got[0][0]).body.packed) // 27
        assert reach_of == {"30.0.0.1": 1, "192.168.1.9": 2}

    sim.run(story())


def test_replayed_older_words_replace_nothing(sim: Any, tags: Any) -> None:
    async def story() -> None:
        a, b = await sim.swarm(2)
        taped: list[Any] = []
        sim.tap = lambda raw, source, to: taped.append((raw, source, to))
        tag = tags(1)
        await a.announce(tag, int((sim.clock.wall() + 1000) * 1000))
        await a.refresh_record()
        older = [t for t in taped if t[2] == b._server.transport.address]
        sim.tap = lambda raw, source, to: None
        await calm(30)
        await a.announce(tag, int((sim.clock.wall() + 2000) * 1000))
        await a.refresh_record()
        newest = b._claims.under(tag, 0)
        record = b._records.get(a.node_id, 0)
        for raw, source, _ in older:
            b._server.protocol.datagram_received(raw, source)
        assert b._claims.under(tag, 0) == newest
        assert len(newest) == 1
        assert b._records.get(a.node_id, 0) == record
        await calm()

    sim.run(story())


def test_a_claim_counts_only_from_its_provider(sim: Any, tags: Any) -> None:
    async def story() -> None:
        dht = await sim.node()
        thief = sim.stranger("30.0.0.1")
        thief.send(sealed(sim, 99, wire.Ping()), dht)
        await calm()
        cookie = wire.decode(thief.got.pop()[0]).cookie
        for body in (
            claims(sim, 50, tags(3)),  # somebody else's claim
            wire.PutRecord(sim.record(sim.key(50), "30.0.0.1")),
            claims(sim, 99, tags(3), int(sim.clock.wall() * 1000) - LIFETIME_MS),  # expired
        ):
            thief.send(sealed(sim, 99, body, cookie=cookie), dht)
        await calm()
        assert len(dht._claims) == 0
        assert len(dht._records) == 1  # its own
        thief.send(sealed(sim, 99, claims(sim, 99, tags(3)), cookie=cookie), dht)
        await calm()
        assert len(dht._claims) == 3

    sim.run(story())


@pytest.mark.parametrize(
    ("family", "host", "sent"),
    [
        (socket.AF_INET, "20.0.0.1", ["20.0.0.1"]),
        (socket.AF_INET, "2a00::1", []),
        (socket.AF_INET6, "2a00::1", ["2a00::1"]),
        (socket.AF_INET6, "20.0.0.1", ["::ffff:20.0.0.1"]),
    ],
)
def test_each_socket_sends_only_where_it_can(family: Any, host: str, sent: list[str]) -> None:
    class Out:
        hosts: list[str]

        def __init__(self) -> None:
            self.hosts = []

        def sendto(self, raw: bytes, address: Any) -> None:
            self.hosts.append(address[0])

        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return SimpleNamespace(family=family)

        def close(self) -> None:
            pass

    out = Out()
    transport = SignedTransport(out)
    transport.send(b"x", Address(host, 80))
    assert out.hosts == sent
    transport.close()
    transport.send(b"x", Address(host, 80))
    assert out.hosts == sent
