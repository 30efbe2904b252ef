"""Every fault that is seeded is named with its remedy, and mended where it can be."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pstore.config import load
from p2pstore.errors import P2PStoreError
from p2pstore.ids import BundleId
from p2pstore.node.build import Node
from p2pstore.node.checking import check
from p2pstore.node.checks import doctor
from p2pstore.store import BundleState, DiskBundles, State
from tests.node.conftest import CONTENTS, SETTINGS, Place
from tests.store.making import sealed

Json = dict[str, Any]
Undo = Callable[[], object]


async def test_check_answers_as_the_contract_says(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        said: list[dict[str, Any]] = []
        done = await check(node, read_data=True, repair=False, progress=said.append)
        await asyncio.sleep(0)  # what a thread said comes through the loop
        assert done["problems"] == []
        assert done["bundles"] == len(node.store.list())
        assert done["blocks"] > 0
        assert said[-1]["stage"] == "check"


async def test_check_sees_damage_behind_what_the_store_remembers(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        bundle_id = node.store.list()[0]
        node.store.index(bundle_id)
        path = node.store.path(bundle_id)
        os.truncate(path, path.stat().st_size - 3)
        done = await check(node, read_data=False, repair=False, progress=lambda _: None)
        (problem,) = done["problems"]
        assert problem["code"] == 4


async def test_cancelled_check_ends(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        task = asyncio.ensure_future(
            check(node, read_data=True, repair=False, progress=lambda _: None)
        )
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# -- seeded faults ---------------------------------------------------------------------------------

HEAL = "p2pstore check --read-data --repair"
MEND = "p2pstore check --repair"
REBUILD = "p2pstore rebuild-catalog"


def bundle(node: Node, kind: int = 1) -> BundleId:
    """The one in which the contents lie (1), or the names (2)."""
    return next(b for b in node.store.list() if node.store.index(b).header.kind == kind)


def changed(path: Path, raw: bytes | None) -> Undo:
    """The file is as somebody left it; None: gone."""
    was = path.read_bytes()
    if raw is None:
        path.unlink()
    else:
        path.write_bytes(raw)
    return lambda: path.write_bytes(was) and None


def flip(path: Path, at: int) -> Undo:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    return changed(path, bytes(raw))


def row_changed(node: Node, table: str, where: str, change: str) -> Undo:
    was = node.catalog.read(f"SELECT * FROM {table} WHERE {where}")
    node.catalog.write(lambda db: db.execute(change) and None).result()
    marks = ",".join("?" * len(was[0]))
    insert = f"INSERT OR REPLACE INTO {table} VALUES ({marks})"
    return lambda: node.catalog.write(lambda db: db.executemany(insert, was) and None).result()


def bit_of_a_block(node: Node, place: Place) -> Undo:
    one = bundle(node)
    return flip(node.store.path(one), node.store.index(one).blocks.offsets()[0] + 5)


def bit_of_a_list(node: Node, place: Place) -> Undo:
    return flip(node.store.path(bundle(node)), -100)


def bit_of_a_header(node: Node, place: Place) -> Undo:
    return flip(node.store.path(bundle(node)), 30)


def bundle_cut_short(node: Node, place: Place) -> Undo:
    path = node.store.path(bundle(node))
    return changed(path, path.read_bytes()[:-1000])


def bundle_removed(node: Node, place: Place) -> Undo:
    return changed(node.store.path(bundle(node)), None)


def names_removed(node: Node, place: Place) -> Undo:
    return changed(node.store.path(bundle(node, 2)), None)


def bundle_given_up(node: Node, place: Place) -> Undo:
    change = "UPDATE bundles SET state='lost' WHERE kind=1"
    row_back, file_back = (
        row_changed(node, "bundles", "kind=1", change),
        bundle_removed(node, place),
    )

    def undo() -> None:
        file_back()
        row_back()

    return undo


def bundle_that_nobody_knows(node: Node, place: Place) -> Undo:
    store = DiskBundles(node.data)
    index, _ = sealed(store)
    store.close()
    return node.store.path(index.header.bundle_id).unlink


def row_of_a_bundle_gone(node: Node, place: Place) -> Undo:
    return row_changed(node, "bundles", "kind=1", "DELETE FROM bundles WHERE kind=1")


def row_of_the_catalog(node: Node, place: Place) -> Undo:
    change = "UPDATE manifests SET raw=zeroblob(length(raw)) WHERE file=1"
    return row_changed(node, "manifests", "file=1", change)


def placeholder(node: Node, place: Place) -> Undo:
    return flip(place.folder / "a.txt.f", -5)


def kept_for_others_gone(node: Node, place: Place) -> Undo:
    node.held.lost.append(BundleId(b"l" * 32))
    return node.held.lost.clear


FAULTS: list[tuple[Callable[[Node, Place], Undo], str, str]] = [
    (bit_of_a_block, "is damaged", HEAL),
    (bit_of_a_list, "is damaged", HEAL),
    (bit_of_a_header, "is damaged", HEAL),
    (bundle_cut_short, "is damaged", HEAL),
    (bundle_removed, "is missing", MEND),
    (names_removed, "is missing", MEND),
    (bundle_given_up, "are nowhere", MEND),
    (bundle_that_nobody_knows, "does not know it", MEND),
    (row_of_a_bundle_gone, "does not know it", MEND),
    (row_of_the_catalog, "What the catalog knows of", REBUILD),
    (placeholder, "a.txt.f is damaged", "p2pstore hydrate"),
    (kept_for_others_gone, "kept for another device, is gone", "nothing: its owner"),
]


@pytest.mark.slow
async def test_every_seeded_fault_is_named_with_its_remedy(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        for seed, named, remedy in FAULTS:
            undo = seed(node, place)
            done = await check(node, read_data=True, repair=False, progress=lambda _: None)
            problems = [p for p in done["problems"] if named in p["text"]]
            assert problems, (seed.__name__, done["problems"])
            for problem in problems:
                assert problem["remedy"].startswith(remedy), seed.__name__
                assert problem["code"] in (4, 5)
                assert not problem["healed"]
            undo()
        done = await check(node, read_data=True, repair=False, progress=lambda _: None)
        assert done["problems"] == []


async def mended(node: Node) -> list[Json]:
    done = await check(node, read_data=True, repair=True, progress=lambda _: None)
    problems: list[Json] = done["problems"]
    return problems


async def test_a_bundle_that_nobody_knew_gets_a_row(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        bundle_that_nobody_knows(node, place)
        assert [p["healed"] for p in await mended(node)] == [True]
        assert await mended(node) == []


@pytest.mark.parametrize("seed", [bit_of_a_block, bundle_cut_short, bundle_removed])
async def test_what_nobody_else_has_stays_a_problem_and_is_remembered(
    place: Place, seed: Callable[[Node, Place], Undo]
) -> None:
    async with place.running() as node:
        await place.filled(node)
        one = bundle(node)
        seed(node, place)
        (problem,) = await mended(node)
        assert not problem["healed"]
        assert "holds a copy" in problem["remedy"]
        assert node.upkeep.healer.damaged() == [one]
        known = node.catalog.read("SELECT count(*) FROM dedup d JOIN bundles b ON b.id=d.bundle"
                                  " WHERE b.bundle_id=?", (one,))  # fmt: skip
        assert known == [(0,)], "nothing new relies on it"


async def test_originals_that_are_still_here_are_stored_anew(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        await node.folders.hydrate([os.fspath(place.folder)], lambda _: None)
        bundle_removed(node, place)
        assert not (await mended(node))[0]["healed"]
        await node.folders.wait(os.fspath(place.folder), lambda _: None)
        assert {State.PROTECTED, State.PLACEHOLDER} >= {
            state for (state,) in node.catalog.read("SELECT state FROM files WHERE kind='file'")
        }
        lost = node.catalog.read(
            "SELECT count(*) FROM file_bundles r JOIN bundles b ON b.id=r.bundle WHERE b.state=?",
            (BundleState.LOST,),
        )
        assert lost == [(0,)]
        await node.folders.hydrate([os.fspath(place.folder)], lambda _: None)
        assert place.contents() == CONTENTS


async def test_doctor_names_what_is_damaged(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        bundle_removed(node, place)
        await mended(node)
        texts = [f"{one['text']} {one.get('command')}" for one in await doctor(node)]
        assert any("damaged" in text and HEAL in text for text in texts), texts


# -- faults with which a node does not start -------------------------------------------------------


def config_file(home: Path) -> None:
    (home / "config.toml").write_text("settle = [\n")


def unknown_setting(home: Path) -> None:
    (home / "config.toml").write_text('setle = "5s"\n')


def device_key(home: Path) -> None:
    (home / "device.key").write_bytes(b"short")


def group_state(home: Path) -> None:
    flip(home / "group.state", 60)


@pytest.mark.parametrize(
    ("seed", "named", "remedy"),
    [
        (config_file, "config.toml", "config.toml"),
        (unknown_setting, "setle", "config.toml"),
        (device_key, "device.key", "copy"),
        (group_state, "group.state", "copy"),
    ],
)
def test_a_node_that_cannot_start_says_what_to_mend(
    place: Place, seed: Callable[[Path], None], named: str, remedy: str
) -> None:
    seed(place.home.path)
    with pytest.raises(P2PStoreError) as failed:
        Node(place.home, load(place.home.path, {}, SETTINGS))
    assert named in str(failed.value)
    assert remedy in str(failed.value)
