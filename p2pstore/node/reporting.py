"""The durability report of a running node: what it says of its folders, and signs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from p2pstore.folders import Folder
from p2pstore.ids import node_id_of
from p2pstore.maintenance import Ledger, Reporter, verify_report
from p2pstore.node.build import Node
from p2pstore.store import FileRow, State, copies, files

Json = dict[str, Any]


def report(node: Node, paths: Sequence[str]) -> Json:
    """Signed; with paths also each file there. In a thread."""
    state = node.group.state
    names = {node_id_of(c.subject): c.name for c in (*state.devices(), *state.friends())}
    reporter = Reporter(node.catalog, Ledger(node.catalog), names)
    counted = node.maintenance.counted()
    raw = reporter.make(
        node.maintenance.world(),
        node.group.author(),
        node.group.name,
        [_folder(node, folder, counted) for folder in node.folders.all()],
        [found for path in paths for found in _rows(node, path)],
    )
    done: Json = json.loads(raw)
    return done


def _folder(node: Node, folder: Folder, counted: Mapping[int, int]) -> Json:
    by_copies = node.catalog.view(lambda db: copies.counts_of_files(db, folder.row, counted))
    return {
        "path": os.fspath(folder.path),
        "files": sum(number for number, _ in by_copies.values()),
        "bytes": sum(size for _, size in by_copies.values()),
        "min_copies": folder.settings.min_copies,
        "wanted_copies": folder.settings.copies,
        "copies": {str(number): part[0] for number, part in sorted(by_copies.items())},
    }


def checked(node: Node, raw: bytes) -> Json:
    """What a report says, when it is as its signer signed it."""
    said, certificate = verify_report(raw)
    state = node.group.state
    is_ours = certificate.group == state.group_public
    return {
        "report": said,
        "signer": certificate.name,
        "ours": is_ours,
        "revoked": is_ours and certificate.subject in state.revoked,
    }


def _rows(node: Node, path: str) -> list[tuple[str, FileRow]]:
    """Files with a manifest at or below a path."""
    found = node.vfs.find(path)
    if found is None:
        return []
    folder, relative = found
    row = node.vfs.row(path)
    rows = (
        [row]
        if row is not None
        else node.catalog.view(lambda db: list(files.walk(db, folder.id, relative)))
    )
    return [
        (os.fsdecode(folder.path + b"/" + one.path), one)
        for one in rows
        if one.file_id and one.state != State.DELETED
    ]
