"""A copy elsewhere: whole under its name, or a sentence that says why not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from p2pstore.errors import UsageError
from tests.node.conftest import CONTENTS, Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.slow
async def test_a_copy_may_have_the_longest_name(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        target = place.base / ("ü" * 127 + "n")
        assert len(os.fsencode(target.name)) == 255
        await node.vfs.copy(f"{place.folder}/a.txt", os.fspath(target))
        assert target.read_bytes() == CONTENTS["a.txt"]


@pytest.mark.slow
async def test_a_copy_that_cannot_be_written_says_so_and_leaves_nothing(place: Place) -> None:
    async with place.running() as node:
        await place.filled(node)
        file = place.base / "file"
        file.write_bytes(b"no directory")
        for target, why in (
            (place.base / "absent" / "a.txt", "No such file or directory"),
            (file / "a.txt", "Not a directory"),
            (place.base / ("n" * 256), "File name too long"),
            (file, "exists; choose another name"),
        ):
            with pytest.raises(UsageError, match=why):
                await node.vfs.copy(f"{place.folder}/a.txt", os.fspath(target))
        assert not list(place.base.rglob("*.part"))
        assert file.read_bytes() == b"no directory"
