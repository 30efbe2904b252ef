"""What commands about many paths do, and what they tell of it."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import partialmethod
from typing import Any

import pytest

from p2pstore.folders import Folder, batching, taking, undeleting
from p2pstore.store import State
from tests.node.conftest import CONTENTS, Place
from tests.node.test_carriers import ask


async def test_what_was_replaced_before_is_not_counted_again(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        paths = [os.fspath(place.folder)]
        again = await ask(node, "dehydrate", paths=paths)
        await node.folders.hydrate([os.fspath(place.folder / "a.txt")], lambda _: None)
        once = await ask(node, "dehydrate", paths=paths)
    assert (again["replaced_files"], again["replaced_bytes"]) == (0, 0)
    assert (once["replaced_files"], once["replaced_bytes"]) == (1, len(CONTENTS["a.txt"]))


@pytest.mark.parametrize("method", ["free_up", "evict"])
async def test_of_paths_in_no_folder_nothing_is_done_before_that_is_said(
    place: Place, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    asked: list[list[str]] = []

    async def evict(paths: list[str], _: object) -> dict[str, object]:
        asked.append(paths)
        return {"freed_bytes": 7}

    inside, outside = os.fspath(place.folder), os.fspath(place.base)
    async with place.running() as node:
        await place.filled(node)
        monkeypatch.setattr(node.maintenance, "evict", evict)
        none = await ask(node, method, paths=[outside])
        assert asked == []
        some = await ask(node, method, paths=[outside, inside])
    assert asked == [[inside]]
    assert some["freed_bytes"] == 7
    for done in (none, some):
        (failed,) = [one for one in done["results"] if "error" in one]
        assert failed["path"] == outside
        assert failed["error"]["code"] == 2


async def test_evict_without_paths_means_everything(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    async def evict(paths: list[str], _: object) -> dict[str, object]:
        asked.append(paths)
        return {}

    async with place.running() as node:
        monkeypatch.setattr(node.maintenance, "evict", evict)
        await ask(node, "evict")
    assert asked == [[]]


async def test_a_folder_is_gone_through_page_by_page(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command about a whole folder meets each file once, however many pages there are."""
    monkeypatch.setattr(Folder, "rows_below", partialmethod(Folder.rows_below, limit=1))
    said: list[dict[str, Any]] = []
    paths = [os.fspath(place.folder)]
    async with place.running() as node:
        await place.filled(node)
        brought = await node.folders.hydrate(paths, said.append)
        assert place.contents() == CONTENTS
        again = await node.folders.hydrate(paths, lambda _: None)
        replaced = await node.folders.dehydrate(paths, lambda _: None)
        pinned = await node.folders.pin(paths, True, lambda _: None)
    whole = {os.fsencode(place.folder / name) for name in CONTENTS}
    assert sorted(one.path for one in brought) == sorted(whole)
    assert {one.error for one in brought} == {None}
    assert (said[-1]["files"], said[-1]["files_total"]) == (len(CONTENTS), len(CONTENTS))
    assert said[-1]["bytes"] == said[-1]["bytes_total"] == sum(map(len, CONTENTS.values()))
    assert again == []
    assert replaced == dict.fromkeys(map(os.fsdecode, whole), "")
    assert sorted(one.path for one in pinned) == sorted(whole)


async def test_a_folder_that_comes_while_folders_are_told_is_told_the_next_time(
    place: Place,
) -> None:
    async with place.running() as node:
        asking = asyncio.ensure_future(ask(node, "folders"))
        await asyncio.sleep(0)  # it has asked which there are
        await node.folders.add(os.fspath(place.folder), {}, force=False)
        assert (await asking)["folders"] == []
        (line,) = (await ask(node, "folders"))["folders"]
        assert line["path"] == os.fspath(place.folder)


async def test_who_asks_right_after_the_start_is_not_told_that_a_folder_is_away(
    place: Place,
) -> None:
    async with place.running() as node:
        await place.filled(node)
    async with place.running() as node:
        brought = await node.folders.hydrate([os.fspath(place.folder)], lambda _: None)
        assert [one.error for one in brought if one.error] == []
        assert place.contents() == CONTENTS


async def test_the_total_of_one_file_is_known_by_either_name(place: Place) -> None:
    said: list[dict[str, Any]] = []
    async with place.running() as node:
        await place.filled(node)
        for typed in ("a.txt", "sub/b.bin.f"):
            await node.folders.hydrate([os.fspath(place.folder / typed)], said.append)
            size = len(CONTENTS[typed.removesuffix(".f")])
            assert (said[-1]["files_total"], said[-1]["bytes_total"]) == (1, size)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.f", ""])
async def test_what_is_replaced_just_now_is_brought_back(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It lies in its place as `.f`, and the catalog does not say so yet."""
    is_placed, may_go_on = threading.Event(), threading.Event()
    replace = taking.replace

    def slow(*args: Any) -> Any:
        done = replace(*args)
        is_placed.set()
        may_go_on.wait(20)
        return done

    monkeypatch.setattr(taking, "replace", slow)
    path = os.fspath(place.folder / name)
    place.write({"a.txt": b"content"})
    async with place.running() as node:
        await node.folders.add(os.fspath(place.folder), {}, force=False)
        await asyncio.to_thread(is_placed.wait, 20)
        asked = asyncio.create_task(node.folders.hydrate([path], lambda _: None))
        await asyncio.wait([asked], timeout=0.5)
        may_go_on.set()
        (brought,) = await asked
    assert brought.error is None
    assert place.contents() == {"a.txt": b"content"}


async def test_an_edit_that_is_protected_just_now_can_be_replaced(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batch began before anybody asked, and leaves it in work."""
    is_protected, may_go_on = threading.Event(), threading.Event()
    path = os.fspath(place.folder / "a.txt")
    async with place.running() as node:
        await place.filled(node)
        await node.folders.hydrate([path], lambda _: None)
        take = taking.Taking.take

        def slow(self: taking.Taking, *args: Any) -> taking.Taken:
            taken = take(self, *args)
            is_protected.set()
            may_go_on.wait(20)
            return taken

        monkeypatch.setattr(taking.Taking, "take", slow)
        place.write({"a.txt": b"an edit"})
        await asyncio.to_thread(is_protected.wait, 20)
        asked = asyncio.create_task(node.folders.dehydrate([path], lambda _: None))
        await asyncio.wait([asked], timeout=0.5)
        may_go_on.set()
        assert await asked == {path: ""}


async def test_undelete_of_a_directory_brings_all_of_it_back(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch by batch; what bears one of the names by now is left, and named."""
    monkeypatch.setattr(undeleting, "BATCH", 2)
    names = [f"sub/{n}" for n in range(5)]
    async with place.running(settle="20ms") as node:
        place.write({name: name.encode() for name in names})
        await node.folders.add(os.fspath(place.folder), {}, force=False)
        await node.folders.wait(os.fspath(place.folder), lambda _: None)
        for name in names:
            (place.folder / f"{name}.f").unlink()
        folder = node.folders.at(os.fspath(place.folder))
        async with asyncio.timeout(20):
            while len(folder.rows([State.DELETED], 9)) < 5:
                await asyncio.sleep(0.01)
        (place.folder / "sub/3.f").mkdir()
        done = await ask(node, "undelete", path=os.fspath(place.folder / "sub"))
        await node.folders.hydrate([os.fspath(place.folder / "sub")], lambda _: None)
    back = {os.fspath(place.folder / name): name for name in names if name != "sub/3"}
    (failed,) = [one for one in done["results"] if "error" in one]
    assert {one["path"]: one["to"] for one in done["results"] if "to" in one} == {
        path: f"{path}.f" for path in back
    }
    assert failed["path"] == os.fspath(place.folder / "sub/3")
    assert failed["error"] == {"code": 5, "message": "name.f is taken"}
    contents = place.contents()
    assert {name: contents.get(name) for name in names} == {
        name: None if name == "sub/3" else name.encode() for name in names
    }


async def test_batches_of_many_folders_leave_threads_for_who_asks(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may take minutes: a film, a slow disk."""
    may_end = threading.Event()
    monkeypatch.setattr(batching, "BATCH_FILES", 1)
    async with place.running() as node:
        await place.filled(node)
        take = taking.Taking.take

        def slow(self: taking.Taking, *args: Any) -> taking.Taken:
            may_end.wait(20)
            return take(self, *args)

        monkeypatch.setattr(taking.Taking, "take", slow)
        others = [place.base / f"other {n}" for n in range(3)]
        try:
            for folder in others:
                folder.mkdir()
                for n in range(batching.BATCHES_IN_FLIGHT):
                    (folder / f"{n}").write_bytes(b"%d" % n)
                await node.folders.add(os.fspath(folder), {}, force=False)
            async with asyncio.timeout(10):
                while sum(node.folders.at(os.fspath(f)).pending() for f in others) < 9:
                    await asyncio.sleep(0.01)
                await asyncio.gather(*(_in_hand(node.folders.at(os.fspath(f))) for f in others))
                await node.folders.hydrate([os.fspath(place.folder)], lambda _: None)
        finally:
            may_end.set()
    assert place.contents() == CONTENTS


async def _in_hand(folder: Folder) -> None:
    while not folder.is_in_flight(b"2"):
        await asyncio.sleep(0.01)
