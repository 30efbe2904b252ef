"""Rows of watched folders, and single values (`kv`)."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from p2pstore.ids import FolderId

WATCHED = "watched"
REMOVED = "removed"  # its blocks stay roots; `add` of the same folder id takes it up again


class FolderRow(NamedTuple):
    id: int
    folder_id: FolderId
    path: bytes
    name: str
    settings: bytes  # MessagePack; its meaning is config's
    marker: bytes  # identity of the root directory as found when it was added
    paused: str  # why, in words; "" = not paused
    state: str


_COLUMNS = "id, folder_id, path, name, settings, marker, paused, state"


def add(
    db: sqlite3.Connection,
    folder_id: FolderId,
    path: bytes,
    name: str,
    settings: bytes,
    marker: bytes,
) -> int:
    """The row of the folder, new or taken up again."""
    row = db.execute(
        "INSERT INTO folders (folder_id, path, name, settings, marker) VALUES (?,?,?,?,?)"
        " ON CONFLICT (folder_id) DO UPDATE SET path=excluded.path, name=excluded.name,"
        " settings=excluded.settings, marker=excluded.marker, paused='', state='watched'"
        " RETURNING id",
        (folder_id, path, name, settings, marker),
    ).fetchone()
    return int(row[0])


def get(db: sqlite3.Connection, folder: int) -> FolderRow | None:
    return _one(db.execute(f"SELECT {_COLUMNS} FROM folders WHERE id=?", (folder,)))


def by_folder_id(db: sqlite3.Connection, folder_id: FolderId) -> FolderRow | None:
    return _one(db.execute(f"SELECT {_COLUMNS} FROM folders WHERE folder_id=?", (folder_id,)))


def watched(db: sqlite3.Connection) -> list[FolderRow]:
    query = f"SELECT {_COLUMNS} FROM folders WHERE state<>'removed' ORDER BY path"
    return [FolderRow(*row) for row in db.execute(query)]


def every(db: sqlite3.Connection) -> list[FolderRow]:
    """Removed ones too."""
    return [FolderRow(*row) for row in db.execute(f"SELECT {_COLUMNS} FROM folders ORDER BY id")]


def set_settings(db: sqlite3.Connection, folder: int, settings: bytes) -> None:
    db.execute("UPDATE folders SET settings=? WHERE id=?", (settings, folder))


def set_marker(db: sqlite3.Connection, folder: int, marker: bytes) -> None:
    db.execute("UPDATE folders SET marker=? WHERE id=?", (marker, folder))


def set_paused(db: sqlite3.Connection, folder: int, why: str) -> None:
    db.execute("UPDATE folders SET paused=? WHERE id=?", (why, folder))


def set_state(db: sqlite3.Connection, folder: int, state: str) -> None:
    db.execute("UPDATE folders SET state=? WHERE id=?", (state, folder))


def kv_get(db: sqlite3.Connection, key: str) -> bytes | None:
    row = db.execute("SELECT value FROM kv WHERE key=?", (key,)).fetchone()
    return None if row is None else bytes(row[0])


def kv_set(db: sqlite3.Connection, key: str, value: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO kv (key, value) VALUES (?,?)", (key, value))


def kv_delete(db: sqlite3.Connection, key: str) -> None:
    db.execute("DELETE FROM kv WHERE key=?", (key,))


def _one(cursor: sqlite3.Cursor) -> FolderRow | None:
    row = cursor.fetchone()
    return None if row is None else FolderRow(*row)
