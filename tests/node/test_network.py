"""What of the network's wiring nobody else sees."""

from __future__ import annotations

import pytest

from p2pstore.ids import PublicKey
from p2pstore.node.network import Network
from p2pstore.wire import PeerRecord
from tests.node.conftest import Place

EVERYWHERE = (("20.1.2.3", 8080), ("192.168.1.7", 80), ("127.0.0.1", 22), ("host.example", 80))


def record(number: int) -> PeerRecord:
    return PeerRecord(PublicKey(number.to_bytes(32, "big")), "main", EVERYWHERE, 1, "x")


async def test_a_stranger_cannot_make_us_knock_at_machines_of_our_home(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.running() as node:
        network: Network = node.network
        monkeypatch.setattr(network, "listening", ("0.0.0.0", 8080))

        async def providers(tags: list[bytes]) -> dict[bytes, list[PeerRecord]]:
            return {tag: [record(1)] for tag in tags}

        async def find(node_id: bytes) -> PeerRecord:
            return record(1)

        monkeypatch.setattr(network.dht, "providers", providers)
        monkeypatch.setattr(network.dht, "find", find)
        tag = bytes(20)
        [found] = (await network._providers([tag]))[tag]  # type: ignore[list-item, index]
        assert found.addresses == EVERYWHERE[:1]
        assert tuple(await network._find_addresses(found.node_id)) == EVERYWHERE[:1]

        monkeypatch.setattr(network, "_is_related", lambda _: True)
        [found] = (await network._providers([tag]))[tag]  # type: ignore[list-item, index]
        assert found.addresses == EVERYWHERE


async def test_new_bundles_of_ours_are_announced_once(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with place.running() as node:
        network: Network = node.network
        # The first announcement lists what is here too, and may come to it at any time.
        monkeypatch.setattr(network.announcer, "_tags", list)
        assert network.known.new_tags() == []
        await place.filled(node)
        fresh = network.known.new_tags()
        assert len(fresh) >= 2
        assert network.known.new_tags() == []
        assert set(fresh) <= set(network._tags())
