"""`add-folder --wait`: how far a folder has come, and what stays when it has come to its end."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any

from p2pstore.errors import Unavailable
from p2pstore.folders.folder import Folder
from p2pstore.store import State

Progress = Callable[[dict[str, Any]], None]
POLL_S = 0.2
COUNT_SHARE = 30  # of all time one part goes into counting rows, however many there are
MOST_LEFT = 1000  # files whose reason is told one by one


async def wait(folder: Folder, progress: Progress) -> dict[str, Any]:
    """Until every present file is replaced or has a reason to stay; then the report."""
    due = 0.0
    while True:
        if folder.missing_since is not None:
            raise Unavailable(f"{folder.path} is not there.")
        if folder.is_paused:
            raise Unavailable(f"{folder.path} is paused: {folder.entry.paused}")
        if folder.is_settled():
            return await folder.in_thread(_report, folder)
        began = time.monotonic()
        if began >= due:
            progress(await folder.in_thread(_progress, folder))
            due = began + COUNT_SHARE * (time.monotonic() - began)
        await asyncio.sleep(POLL_S)


def _progress(folder: Folder) -> dict[str, Any]:
    # A protected file without a reason to stay is on its way in a batch.
    done = [c for c in folder.counts() if c.state != State.PROTECTED or c.reason]
    files, size = sum(c.files for c in done), sum(c.file_bytes for c in done)
    if folder.rests():
        return {"stage": "rest", "files": folder.pending(), "bytes": folder.pending_bytes()}
    return {
        "stage": "protect" if folder.is_scanned else "scan",
        "files": files,
        "files_total": files + folder.pending(),
        "bytes": size + folder.bytes_on_their_way(),
        "bytes_total": size + folder.pending_bytes(),
    }


def _report(folder: Folder) -> dict[str, Any]:
    counts = folder.counts()
    left = [
        (row.path, row.reason)
        for row in folder.rows((State.PROTECTED, State.SKIPPED, State.CONFLICT), MOST_LEFT)
    ]
    left += [entry for entry in folder.waiting.reasons() if entry not in left]
    reasons: dict[str, int] = {}
    for count in counts:
        if count.state != State.PLACEHOLDER and count.reason:
            reasons[count.reason] = reasons.get(count.reason, 0) + count.files
    for reason, tally in folder.waiting.held_up().items():
        # Those that wait with a reason of the catalog's are counted there already.
        reasons[reason] = max(reasons.get(reason, 0), tally.files)
    return {
        "files": sum(c.files for c in counts),
        "bytes": sum(c.file_bytes for c in counts),
        "replaced": sum(c.files for c in counts if c.state == State.PLACEHOLDER),
        "reasons": reasons,
        "left": [
            {"path": os.path.join(folder.path, os.fsdecode(path)), "reason": reason}
            for path, reason in left[:MOST_LEFT]
        ],
        "left_total": sum(reasons.values()),
    }
