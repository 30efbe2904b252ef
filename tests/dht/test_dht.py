"""The network as a whole: announce, find, survive."""

from __future__ import annotations

from typing import Any

DAY_MS = 24 * 3600 * 1000


def until(sim: Any, hours: float = 24) -> int:
    return int((sim.clock.wall() + hours * 3600) * 1000)


def names(found: dict[Any, list[Any]], tag: Any) -> set[Any]:
    return {record.node_id for record in found[tag]}


def test_every_announced_tag_is_found_with_all_providers(sim: Any, tags: Any) -> None:
    async def story() -> None:
        nodes = await sim.swarm(10)
        wanted = tags(100)
        for dht in nodes[:3]:
            assert await dht.announce(wanted, until(sim)) > 0
        found = await nodes[9].providers(wanted)
        assert all(names(found, t) == {d.node_id for d in nodes[:3]} for t in wanted)

    sim.run(story())
