"""Every original comes back into its folder, and is looked for there."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from p2pstore.folders import Folder
from p2pstore.node.build import Node
from p2pstore.node.leaving.allowed import CONTENT, in_state
from p2pstore.store import FileRow, State, files
from p2pstore.threads import in_thread

Progress = Callable[[dict[str, Any]], None]

SHOWN = 5  # files named in a reason; the others are counted


async def hydrate(node: Node, progress: Progress) -> list[str]:
    """Bring everything back and look whether it is; what stands in the way, if anything does."""
    failed: list[str] = []
    for folder in node.folders.all():
        path = os.fspath(folder.path)
        if not in_state(node, folder, State.PLACEHOLDER):
            continue
        # Pinned: what comes back is not replaced again while the rest is on its way.
        for brought in await node.folders.pin([path], True, progress):
            if brought.error is not None:
                name = os.path.join(path, os.fsdecode(brought.placeholder.name))
                failed.append(f"{name}: {brought.error}")
    return shortened(failed) or await in_thread(node.pool, not_back, node, node.folders.all())


def not_back(node: Node, watched: Sequence[Folder]) -> list[str]:
    """Files of which the folder has no whole original."""
    left: list[str] = []
    for folder in watched:
        for row in node.catalog.view(partial(_rows, folder.row)):
            name = os.path.join(folder.path, os.fsdecode(row.path))
            if row.state != State.PROTECTED:
                left.append(f"{name} is still a placeholder.")
            elif folder.path.exists() and not os.path.lexists(name):
                left.append(f"{name} is not there. If you deleted it, wait a moment.")
    return shortened(left)


def _rows(folder: int, db: sqlite3.Connection) -> list[FileRow]:
    return [row for row in files.walk(db, folder, states=CONTENT) if row.kind == files.Kind.FILE]


def shortened(reasons: Sequence[str]) -> list[str]:
    more = len(reasons) - SHOWN
    return [*reasons[:SHOWN], *([f"and {more} more files."] if more > 0 else [])]


def totals(db: sqlite3.Connection) -> tuple[int, int]:
    query = (
        "SELECT count(*), sum(f.file_size) FROM files f JOIN folders d ON d.id=f.folder"
        " WHERE f.kind='file' AND f.state IN ('protected', 'placeholder') AND d.state='watched'"
    )
    total, size = db.execute(query).fetchone()
    return int(total), int(size or 0)
