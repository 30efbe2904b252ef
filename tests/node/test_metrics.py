"""The text format of Prometheus, with numbers that agree with what is there."""

from __future__ import annotations

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from p2pstore.node.build import Node
from p2pstore.node.metrics import metrics
from p2pstore.node.status import status
from tests.node.conftest import CONTENTS, Place


def values(node: Node) -> dict[tuple[str, str], float]:
    """(name, value of its label) -> number."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in text_string_to_metric_families(metrics(node).decode())
        for sample in family.samples
    }


async def test_new_node_counts_nothing(place: Place) -> None:
    async with place.running() as node:
        found = values(node)
        assert found["p2pstore_files", "placeholder"] == 0
        assert found["p2pstore_bundles", "sealed"] == 0
        assert found["p2pstore_peers_connected", ""] == 0
        assert found["p2pstore_peer_bytes", "received"] == found["p2pstore_peer_bytes", "sent"] == 0
        assert found["p2pstore_healthy", ""] == 1
        assert found["p2pstore_words_confirmed", ""] == 0


async def test_files_and_bundles_are_counted_by_state(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        found = values(node)
        size = sum(map(len, CONTENTS.values()))
        assert found["p2pstore_files", "placeholder"] == len(CONTENTS)
        assert found["p2pstore_file_bytes", "placeholder"] == size
        assert found["p2pstore_bundles", "sealed"] >= 2
        assert found["p2pstore_trash_bytes", ""] == size
        assert found["p2pstore_copies", "proved"] == 0
        assert found["p2pstore_room_bytes", ""] > 0


async def test_each_question_is_counted_anew(place: Place) -> None:
    async with place.running() as node:
        first = values(node)
        await place.filled(node)
        assert values(node) != first


async def test_every_loop_is_told(place: Place) -> None:
    async with place.running() as node:
        found = values(node)
        names = {report.name for report in node.maintenance.loops.reports()}
        assert {"index", "replicate", "tidy", "collect"} <= names
        assert {name for key, name in found if key == "p2pstore_loop_failures"} == names
        assert {name for key, name in found if key == "p2pstore_loop_running"} == names


async def test_what_is_announced_is_counted(place: Place) -> None:
    async with place.running() as node:
        node.network.announcer._pause = lambda _: asyncio.sleep(0)
        await place.filled(node)
        node.network.announcer.announce_soon(*node.network.known.new_tags())
        while node.network.announcer.state().keys < 2:
            await asyncio.sleep(0.01)
        found = values(node)
        assert found["p2pstore_announced_keys", ""] >= 2
        assert found["p2pstore_announce_late_parts", ""] == 0
        [line] = [one for one in status(node, [])["maintenance"] if one["name"] == "announce"]
        assert line["failures"] == 0
