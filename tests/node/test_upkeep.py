"""Every loop of a whole node does its turns without trouble."""

from __future__ import annotations

import asyncio

import pytest

from tests.node.conftest import Place


@pytest.mark.slow
async def test_no_loop_fails_on_a_node_with_files(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        loops = node.maintenance.loops._loops
        before = {loop.name: loop.report().last_run for loop in loops}
        for loop in loops:
            loop.wake()
        async with asyncio.timeout(30):
            while any(loop.report().last_run == before[loop.name] for loop in loops):
                assert not [loop.report() for loop in loops if loop.report().failures]
                await asyncio.sleep(0.02)
        assert not [loop.report() for loop in loops if loop.report().failures]


async def test_a_node_sees_to_its_copies_by_itself(place: Place) -> None:
    async with place.running() as node:
        names = {loop.name for loop in node.maintenance.loops._loops}
        assert {"audit", "collect", "heal", "merge", "renew", "repair", "room", "scrub"} <= names


async def test_a_disk_that_rots_is_found_and_said(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        bundle_id = node.store.list()[0]
        path = node.store.path(bundle_id)
        raw = bytearray(path.read_bytes())
        raw[node.store.index(bundle_id).blocks.offsets()[0] + 3] ^= 1
        path.write_bytes(raw)
        scrub = next(loop for loop in node.maintenance.loops._loops if loop.name == "scrub")
        scrub.wake()
        async with asyncio.timeout(30):
            while node.upkeep.healer.damaged() != [bundle_id]:
                await asyncio.sleep(0.02)
