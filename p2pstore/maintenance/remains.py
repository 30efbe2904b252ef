"""REMAINS: what only a catalog knew, taken from the old file as far as it can still be read.

Pins and earlier versions. Nothing in it is believed: a manifest must open and be signed by the
group.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from p2pstore.content import Kind
from p2pstore.errors import P2PStoreError
from p2pstore.ids import BundleId
from p2pstore.maintenance.filing import Earlier, Filer
from p2pstore.store import Catalog, folders

log = logging.getLogger(__name__)

_PINS = "SELECT f.folder_id, x.path FROM files x JOIN folders f ON f.id=x.folder WHERE x.pinned=1"
_HISTORY = (
    "SELECT f.folder_id, h.path, h.manifest, h.version, h.ended_at, h.why,"
    " (SELECT group_concat(hex(b.bundle_id)) FROM history_bundles x JOIN bundles b"
    f" ON b.id=x.bundle WHERE x.history=h.id AND b.kind={int(Kind.META)})"
    " FROM history h JOIN folders f ON f.id=h.folder"
)


def keep_from_old(old: Path | None, catalog: Catalog, filer: Filer) -> None:
    """Take pins and earlier versions over; what cannot be read is left out."""
    if old is None or not old.exists():
        return
    pins = list(_rows(old, _PINS))
    history = list(_rows(old, _HISTORY))

    def change(db: sqlite3.Connection) -> None:
        numbers = {row.folder_id: row.id for row in folders.every(db)}
        for folder_id, path in pins:
            db.execute(
                "UPDATE files SET pinned=1 WHERE folder=? AND path=?",
                (numbers.get(folder_id, 0), path),
            )
        for row in history:
            if row[0] in numbers:
                filer.earlier(db, numbers[row[0]], _earlier(*row[1:]))

    try:
        catalog.write(change).result()
    except (P2PStoreError, sqlite3.Error, TypeError, ValueError) as exc:
        log.warning("Pins and earlier versions could not be taken over: %s", exc)


def _earlier(
    path: bytes, manifest: bytes, version: bytes, ended_at: int, why: str, meta: str | None
) -> Earlier:
    ids = [BundleId(bytes.fromhex(one)) for one in (meta or "").split(",") if one]
    return Earlier(path, manifest, version, ended_at, why, tuple(ids))


def _rows(path: Path, query: str) -> Iterator[tuple[Any, ...]]:
    """What a damaged database still gives."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as db:
            yield from db.execute(query)
    except sqlite3.Error as exc:
        log.info("%s is no longer readable: %s", path, exc)
