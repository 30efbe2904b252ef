"""What `status` says of the node."""

from __future__ import annotations

from p2pstore.maintenance import Loop
from p2pstore.node import status as module
from p2pstore.node.status import status
from tests.node.conftest import Place


async def test_every_loop_is_shown(place: Place) -> None:
    async with place.running() as node:
        lines = {line["name"]: line for line in status(node, ())["maintenance"]}
    assert {"index", "replicate", "tidy", "collect"} <= lines.keys()
    assert lines["tidy"]["period_s"] > 0
    assert lines["tidy"]["failures"] == 0


async def test_a_loop_that_keeps_failing_is_a_warning(place: Place) -> None:
    async def fails(loop: Loop) -> None:
        raise OSError(5, "the disk sulks")

    async with place.running() as node:
        loop = node.maintenance.loops.add("sulky", fails)
        for failures in range(1, module.STUBBORN + 1):
            await loop._one_turn()
            texts = [warning["text"] for warning in status(node, ())["warnings"]]
            told = any("sulky" in text and "sulks" in text for text in texts)
            assert told == (failures >= module.STUBBORN)
