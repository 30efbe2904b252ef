"""What a placeholder outside every watched folder leaves behind: nothing (I5)."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

from p2pstore.folders import Brought, Placeholder
from p2pstore.folders.emptying import clean_up
from p2pstore.ids import FolderId
from p2pstore.placement import Root
from tests.faults.world import World, assert_journal_closed


def bring_outside(made: World, outside: Path) -> Brought:
    """As the service does it for a `.f` that lies in no folder of ours."""
    root = Root(outside, FolderId(bytes(16)))

    async def bring() -> Brought:
        wanted = [Placeholder(b"file.f", None)]
        found = made.bringing.bring(root, wanted, lambda _files, _size: None)
        (brought,) = [one async for one in found]
        return brought

    try:
        brought = asyncio.run(bring())
        if brought.trash is not None:
            clean_up(root, brought.trash, made.catalog, made.store, made.keeper)
        return brought
    finally:
        root.close()


def test_placeholder_outside_leaves_only_its_original(made: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    made.write("file", b"content")
    made.replace("file")
    made.empty_trash()
    shutil.copy(made.at("file.f"), outside / "file.f")
    assert bring_outside(made, outside).error is None
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_bytes() == b"content"
    assert made.names() == {b"file.f"}
    assert_journal_closed(made)
    assert not made.waiting()


def test_what_somebody_keeps_there_stays(made: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / ".p2pstore/trash/older").mkdir(parents=True)
    (outside / ".p2pstore/trash/older/file").write_bytes(b"not ours to remove")
    made.write("file", b"content")
    made.replace("file")
    made.empty_trash()
    shutil.copy(made.at("file.f"), outside / "file.f")
    assert bring_outside(made, outside).error is None
    assert (outside / ".p2pstore/trash/older/file").exists()
