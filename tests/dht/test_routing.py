from __future__ import annotations

import random
from typing import Any

import pytest
from kademlia.node import Node

from p2pstore.dht.routing import ID_BITS, Table

DICE = random.Random(5)


def table(own: int = 0, limit: int | None = None, k: int = 20) -> tuple[Table, list[Any]]:
    probed: list[Any] = []
    made = Table(node(own), k, subnet_limit=limit, clock=lambda: 0.0, probe=probed.append)
    return made, probed


def node(number: int, host: str = "10.0.0.1", port: int = 1) -> Any:
    return Node(number.to_bytes(20, "big"), host, port)


def test_find_neighbors_is_exact() -> None:
    own = DICE.getrandbits(ID_BITS)
    known, _ = table(own)
    for _ in range(3000):
        known.add_contact(node(DICE.getrandbits(ID_BITS)))
    for _ in range(50):
        known.add_contact(node(own ^ DICE.getrandbits(100)))
    everybody = list(known)
    assert len(everybody) == len(known) > 200
    for _ in range(50):
        target = node(DICE.getrandbits(ID_BITS))
        best = sorted(everybody, key=target.distance_to)[:20]
        assert known.find_neighbors(target) == best
    assert known.find_neighbors(everybody[0], 1) == [everybody[0]]
    assert everybody[0] not in known.find_neighbors(everybody[0], exclude=everybody[0])


def test_every_id_has_its_bucket() -> None:
    known, _ = table(0)
    for _ in range(500):
        known.add_contact(node(DICE.getrandbits(ID_BITS)))
    for bucket in known.buckets:
        for edge in bucket.range:
            assert known.bucket_of(node(edge)) is bucket
        assert all(bucket.has_in_range(n) for n in bucket.nodes.values())
    assert known.buckets[0].range[0] == 0
    assert known.buckets[-1].range[1] == 2**ID_BITS - 1


def test_full_bucket_keeps_old_contacts_and_doubts_the_oldest() -> None:
    known, probed = table(0, k=4)
    far = [node((1 << 159) | (0b10000 << 154) | i) for i in range(5)]
    for n in far:
        known.add_contact(n)
    for n in far[:4]:
        assert known.get(n.id) is n
    assert known.get(far[4].id) is None
    assert probed == [far[0]]
    known.failed(far[0])
    known.failed(far[0])
    assert known.get(far[4].id) is far[4]  # the newcomer waited in the wings


def test_one_failure_does_not_drop_a_contact_two_in_a_row_do() -> None:
    known, _ = table()
    known.add_contact(node(5))
    known.failed(node(5))
    assert known.get(node(5).id)
    known.alive(node(5))
    known.failed(node(5))
    assert known.get(node(5).id)
    known.failed(node(5))
    assert known.get(node(5).id) is None


def test_failing_at_another_address_says_nothing_of_the_contact() -> None:
    known, _ = table()
    known.add_contact(node(5))
    for _ in range(3):
        known.failed(node(5, port=2))
    assert known.get(node(5).id)


def test_a_known_id_takes_its_new_address() -> None:
    known, _ = table()
    known.add_contact(node(5))
    known.add_contact(node(5, "10.0.0.2"))
    assert known.get(node(5).id).ip == "10.0.0.2"
    assert len(known) == 1


@pytest.mark.parametrize(
    ("host", "limit", "expected"),
    [("20.0.0.{}", 2, 2), ("20.0.0.{}", None, 8), ("192.168.1.{}", 2, 8), ("127.0.0.{}", 2, 8)],
)
def test_one_subnet_has_few_places_in_a_bucket(host: str, limit: Any, expected: int) -> None:
    known, _ = table(0, limit)
    for i in range(1, 9):
        known.add_contact(node((1 << 159) + i, host.format(i)))
    assert len(known) == expected


def test_we_are_not_our_own_contact() -> None:
    known, _ = table(7)
    known.add_contact(node(7))
    assert len(known) == 0


def test_crafted_ids_cannot_make_the_table_grow_without_bound() -> None:
    known, _ = table(0)
    prefix = 1 << 159
    for i in range(2000):
        known.add_contact(node(prefix | i))
    assert len(known.buckets) <= 2 * 5
    assert len(known) <= 21


def test_size_of_network_is_guessed_within_a_factor_of_two() -> None:
    for size in (1, 5, 19, 2000, 20_000):
        own = DICE.getrandbits(ID_BITS)
        known, _ = table(own)
        nodes = [node(DICE.getrandbits(ID_BITS)) for _ in range(size)]
        for n in sorted(nodes, key=node(own).distance_to):
            known.add_contact(n)
        assert size / 2 <= known.size_of_network() <= 2 * size + 1
