"""What commands about many paths do, and what they tell of it."""

from __future__ import annotations

import os

import pytest

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
