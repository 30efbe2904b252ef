"""What `status` says of the node."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

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


async def test_a_rebuild_is_a_flag_until_holders_were_asked(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        await node.maintenance.write_heads()
        assert status(node, ())["node"]["rebuilding"] is False
    for path in place.home.path.glob("catalog.sqlite*"):
        path.unlink()
    async with place.running() as node:
        assert status(node, ())["node"]["rebuilding"] is True
        async with asyncio.timeout(20):  # a lonely device asks nobody: its loop sees that at once
            await node.completed.wait()
        assert status(node, ())["node"]["rebuilding"] is False


async def test_opens_that_were_ignored_are_told_with_their_time_and_reason(place: Place) -> None:
    async with place.running() as node:
        for number in range(4):
            node.opening.gate.seen(b"%d" % number, node.clock.monotonic())
        (text,) = [w["text"] for w in status(node, ())["warnings"] if "opens ignored" in w["text"]]
    pattern = r"4 opens ignored at \d\d:\d\d \(backup or indexer\); to bring files back:"
    assert re.fullmatch(pattern, text)


async def test_what_keeps_a_folder_from_being_replaced_is_said(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        folder = node.folders.at(os.fspath(place.folder))
        folder._books.obstacle = "the folder cannot be written"
        said = status(node, ())
    assert said["folders"][0]["obstacle"] == "the folder cannot be written"
    text = f"{place.folder}: files are stored and stay: the folder cannot be written."
    assert text in [warning["text"] for warning in said["warnings"]]


async def test_what_was_just_pinned_is_said_to_be(place: Place) -> None:
    in_work, replaced = (os.fspath(place.folder / name) for name in ("a.txt", "sub/b.bin"))
    async with place.running() as node:
        await place.filled(node)
        await node.folders.hydrate([in_work], lambda _: None)
        (line,) = status(node, (in_work,))["files"]
        assert line["reason"] == "in work"
        await node.folders.pin([in_work, replaced], True, lambda _: None)
        lines = status(node, (in_work, replaced))["files"]
    assert [line["reason"] for line in lines] == ["pinned", "pinned"]


async def test_what_is_damaged_and_not_healed_is_a_warning(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        await node.upkeep.healer.note(node.store.list()[0])
        warnings = [w for w in status(node, ())["warnings"] if "damaged" in w["text"]]
        assert len(warnings) == 1
        assert warnings[0]["command"] == "p2pstore check --read-data --repair"
        assert warnings[0]["owner"]


async def test_a_peer_is_told_with_the_time_since_when_it_is_connected(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    async with place.running() as node, Place(tmp_path / "there").running() as other:
        began = node.clock.wall()
        await node.network.connections.connect(other.network.listening)
        (peer,) = status(node, ())["peers"]
    assert began <= peer["since"] <= node.clock.wall()
