"""May it leave? What must be put right first, and is there room for everything?"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from p2pstore.config import format_size
from p2pstore.errors import UsageError
from p2pstore.folders import Folder
from p2pstore.ids import short
from p2pstore.node.build import Node
from p2pstore.store import State, files, folders
from p2pstore.text import plural

CONTENT = (State.PROTECTED, State.PLACEHOLDER, State.HYDRATING, State.CONFLICT)

NAMED = 3  # of what is shared


def obstacles(node: Node) -> list[str]:
    """What must be put right first, whatever the room. In a thread."""
    reasons: list[str] = []
    others = node.group.others()
    if others and not node.home.words_confirmed:
        if node.home.words() is not None:
            reasons.append(
                "The recovery words are only on this disk. Write them on paper, then: "
                "p2pstore words confirm"
            )
        elif len(others) == 1:
            name = node.group.name_of(others[0]) or short(others[0])
            reasons.append(
                f"Beside {name} only this device has the group's keys. If the 24 words are "
                "written down, say so: p2pstore words confirm"
            )
    if shared := [os.fsdecode(record.name) for record in node.shares.all()]:
        more = f" and {len(shared) - NAMED} more" if len(shared) > NAMED else ""
        reasons.append(
            f"Keys that were given for {', '.join(shared[:NAMED])}{more} would lead to nothing. "
            "Fetch what is to be kept (p2pstore shares, p2pstore download KEY), then take "
            "them back: p2pstore unshare KEY..."
        )
    for path, left in node.catalog.view(_left_behind).items():
        reasons.append(
            f"{plural(left, 'placeholder')} left in {path} when it was removed. Take it up again: "
            f"p2pstore add-folder {path}"
        )
    for folder in node.folders.all():
        placeholders = in_state(node, folder, State.PLACEHOLDER)
        if folder.root is None and placeholders:
            reasons.append(
                f"{folder.path} is not there, and {placeholders} of its files are placeholders."
            )
    return reasons


def _left_behind(db: sqlite3.Connection) -> dict[str, int]:
    """Placeholders that stand in folders which are watched no more."""
    found: dict[str, int] = {}
    for folder in folders.every(db):
        if folder.state != folders.REMOVED:
            continue
        base = os.fsdecode(folder.path)
        for row in files.walk(db, folder.id, states=(State.PLACEHOLDER,)):
            if os.path.lexists(os.path.join(base, os.fsdecode(row.path) + ".f")):
                found[base] = found.get(base, 0) + 1
    return found


def in_state(node: Node, folder: Folder, state: str) -> int:
    counts = node.catalog.view(lambda db: files.counts(db, folder.row))
    return sum(count.files for count in counts if count.state == state)


# -- room ------------------------------------------------------------------------------------------


def lacks_room(node: Node, to: str | None) -> list[str]:
    """Where there is too little for everything. In a thread."""
    if to is not None:
        target = Path(os.path.realpath(to))
        if any(target.is_relative_to(folder.path) for folder in node.folders.all()):
            raise UsageError(f"{to} lies in a watched folder; choose a directory outside.")
        if target.is_relative_to(node.home.path.resolve()):
            raise UsageError(f"{to} lies in {node.home.path}, which may be deleted afterwards.")
        needed = sum(_bytes(node, folder, CONTENT) for folder in node.folders.all())
        return _too_little(node, {_device(target): (target, needed)})
    wanted: dict[int, tuple[Path, int]] = {}
    for folder in node.folders.all():
        device = _device(folder.path)
        path, before = wanted.get(device, (folder.path, 0))
        wanted[device] = (path, before + _bytes(node, folder, (State.PLACEHOLDER,)))
    return _too_little(node, wanted)


def _too_little(node: Node, wanted: dict[int, tuple[Path, int]]) -> list[str]:
    reasons: list[str] = []
    for path, needed in wanted.values():
        free = node.room.free(existing(path))
        if needed > max(0, free):
            reasons.append(
                f"{format_size(needed)} are needed on the disk with {path}, "
                f"{format_size(max(0, free))} are free there. Another disk: "
                "p2pstore leave --to DIR"
            )
    return reasons


def _bytes(node: Node, folder: Folder, states: Iterable[str]) -> int:
    counts = node.catalog.view(lambda db: files.counts(db, folder.row))
    return sum(count.file_bytes for count in counts if count.state in states)


def _device(path: Path) -> int:
    return existing(path).stat().st_dev


def existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path
