from __future__ import annotations

from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.dht.claim import LIFETIME_MS, SKEW_MS, Claim
from p2pstore.dht.shelf import (
    KEYS_A_CLAIM,
    MAX_PROVIDERS,
    MAX_SUBNET,
    ProviderShelf,
    RecordShelf,
)
from p2pstore.errors import IntegrityError
from p2pstore.ids import NodeId, PublicKey, node_id_of
from p2pstore.wire import PeerRecord, sign_record

NOW = 1_800_000_000_000


def claim(who: int, keys: Any, issued: int = NOW, expires: int = NOW + LIFETIME_MS) -> Claim:
    tags = tuple(i.to_bytes(20, "big") for i in keys)
    return Claim(PublicKey(who.to_bytes(32, "big")), issued, expires, tags, b"")


def tag(i: int) -> bytes:
    return i.to_bytes(20, "big")


def put(shelf: ProviderShelf, word: Claim, *, related: bool = False, subnet: Any = None) -> int:
    return shelf.add(word, subnet=subnet, related=related)


def test_several_providers_of_one_tag() -> None:
    shelf = ProviderShelf()
    for who in range(3):
        assert put(shelf, claim(who, [1])) == 1
    assert len(shelf.under([tag(1)], NOW)) == 3


def test_an_older_claim_never_replaces_a_newer_one() -> None:
    shelf = ProviderShelf()
    newer = claim(1, [1], NOW + 2)
    put(shelf, newer)
    put(shelf, claim(1, [1], NOW + 1, NOW + LIFETIME_MS // 2))
    put(shelf, claim(1, [1], NOW + 2, NOW + 1))
    assert shelf.under([tag(1)], NOW) == [newer]


def test_a_newer_claim_replaces_the_older_one() -> None:
    shelf = ProviderShelf()
    put(shelf, claim(1, [1, 2, 3]))
    newer = claim(1, [2, 3, 4], NOW + 1)
    assert put(shelf, newer) == 3
    assert shelf.under([tag(2), tag(3), tag(4)], NOW) == [newer]
    assert len(shelf) == 4


def test_expired_claims_vanish() -> None:
    shelf = ProviderShelf()
    put(shelf, claim(1, [1, 2], expires=NOW + 10))
    put(shelf, claim(2, [2], expires=NOW + 20))
    assert shelf.under([tag(1)], NOW + 10) == []
    shelf.expire(NOW + 10)
    assert len(shelf) == 1
    shelf.expire(NOW + 20)
    assert len(shelf) == 0
    assert not shelf._by_key
    assert not shelf._keys_of
    assert not shelf._claims_of


@pytest.mark.parametrize(("related", "limit"), [(False, 100), (True, 500)])
def test_keys_of_one_publisher(related: bool, limit: int) -> None:
    shelf = ProviderShelf(stranger_keys=100, related_keys=500)
    for start in range(0, 600, 40):
        put(shelf, claim(1, range(start, start + 40)), related=related)
    assert len(shelf) == limit
    assert put(shelf, claim(1, range(40), NOW + 1), related=related) == 40  # renewing goes on


def test_a_publisher_cannot_fill_memory_with_nearly_empty_claims() -> None:
    shelf = ProviderShelf(stranger_keys=80)
    accepted = sum(put(shelf, claim(1, [i])) for i in range(80))
    assert accepted == 80 // KEYS_A_CLAIM + 4


def test_providers_of_one_tag_are_limited_and_related_ones_come_in_first() -> None:
    shelf = ProviderShelf()
    for who in range(MAX_PROVIDERS):
        assert put(shelf, claim(who, [1])) == 1
    assert put(shelf, claim(1000, [1])) == 0
    assert put(shelf, claim(1001, [1]), related=True) == 1
    found = shelf.under([tag(1)], NOW)
    assert len(found) == MAX_PROVIDERS
    assert found[0].public_key == (1001).to_bytes(32, "big")


def test_one_subnet_cannot_fill_a_tag() -> None:
    shelf = ProviderShelf()
    accepted = sum(put(shelf, claim(who, [1]), subnet=b"net") for who in range(MAX_PROVIDERS))
    assert accepted == MAX_SUBNET
    assert put(shelf, claim(1000, [1]), subnet=b"other") == 1


def test_the_oldest_strangers_go_first() -> None:
    shelf = ProviderShelf(total_keys=100)
    put(shelf, claim(1, range(40)), related=True)
    put(shelf, claim(2, range(100, 140)))
    put(shelf, claim(3, range(200, 220)))
    assert put(shelf, claim(4, range(300, 320))) == 20
    assert len(shelf) <= 100
    assert shelf.under([tag(100)], NOW) == []
    assert shelf.under([tag(200)], NOW)
    assert shelf.under([tag(0)], NOW)


def test_when_all_are_related_a_newcomer_finds_no_room() -> None:
    shelf = ProviderShelf(total_keys=40)
    put(shelf, claim(1, range(40)), related=True)
    assert put(shelf, claim(2, range(50, 60)), related=True) == 0
    assert put(shelf, claim(3, range(50, 60))) == 0
    assert len(shelf) == 40


KEY = SigningKey(bytes(32))
NODE = node_id_of(PublicKey(bytes(KEY.verify_key)))


def record(issued: int, host: str = "20.0.0.1", network: str = "main") -> bytes:
    public = PublicKey(bytes(KEY.verify_key))
    return sign_record(PeerRecord(public, network, ((host, 8080),), issued, "n"), KEY)


def records() -> RecordShelf:
    return RecordShelf("main", lambda _: False)


def test_the_newest_record_of_a_node_wins_in_any_order() -> None:
    shelf = records()
    shelf.add(record(NOW, "20.0.0.2"), NOW)
    assert shelf.add(record(NOW - 1, "20.0.0.1"), NOW).addresses[0][0] == "20.0.0.2"
    shelf.add(record(NOW + 1, "20.0.0.3"), NOW)
    kept = shelf.get(NODE, NOW)
    assert kept is not None
    assert kept.addresses[0][0] == "20.0.0.3"


@pytest.mark.parametrize(
    "raw", [record(NOW, network="other"), record(NOW + SKEW_MS + 1), record(NOW - LIFETIME_MS)]
)
def test_records_that_are_refused(raw: bytes) -> None:
    with pytest.raises(IntegrityError):
        records().add(raw, NOW)
    assert records().try_add(raw, NOW) is None


def test_records_end_after_a_day() -> None:
    shelf = records()
    shelf.add(record(NOW), NOW)
    assert shelf.get(NODE, NOW + LIFETIME_MS) is None
    assert shelf.raw(NODE, NOW + LIFETIME_MS) is None
    shelf.expire(NOW + LIFETIME_MS)
    assert len(shelf) == 0


def test_a_record_nobody_asked_for_is_not_kept() -> None:
    shelf = records()
    assert shelf.try_add(record(NOW), NOW, among=[NodeId(bytes(20))]) is None
    with pytest.raises(IntegrityError):
        shelf.add(record(NOW), NOW, signer=PublicKey(bytes(32)))
    assert len(shelf) == 0
