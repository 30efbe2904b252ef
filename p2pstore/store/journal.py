"""Intents: what is being done to the user's files, written before it is done.

A row is opened in the change that records what recovery needs, advanced by each step that cannot
be taken back, and closed in the change that records the outcome. The body is MessagePack of
whoever opened it; only they read it. An open row keeps the bundles alive that it claimed
(`blocks.claim` with `root_of`).
"""

from __future__ import annotations

import sqlite3
from enum import StrEnum
from typing import NamedTuple

from p2pstore.store import blocks, dying


class IntentKind(StrEnum):
    INGEST = "ingest"
    REPLACE = "replace"
    HYDRATE = "hydrate"
    EVICT = "evict"
    RESTORE = "restore"
    PULL = "pull"  # a change of another device


class Intent(NamedTuple):
    id: int
    kind: str
    state: str
    body: bytes
    created: int  # ms since the epoch


_COLUMNS = ", ".join(Intent._fields)


ROOT = "journal:"


def root_of(intent: int) -> str:
    """The name under which an open intent claims bundles."""
    return f"{ROOT}{intent}"


def open_intent(
    db: sqlite3.Connection, kind: str, body: bytes, now_ms: int, state: str = "open"
) -> int:
    cursor = db.execute(
        "INSERT INTO journal (kind, state, body, created) VALUES (?,?,?,?)",
        (kind, state, body, now_ms),
    )
    return int(cursor.lastrowid or 0)


def advance(db: sqlite3.Connection, intent: int, state: str, body: bytes | None = None) -> bool:
    """Whether the row was still open."""
    cursor = db.execute(
        "UPDATE journal SET state=?, body=coalesce(?, body) WHERE id=?", (state, body, intent)
    )
    return cursor.rowcount == 1


def close(db: sqlite3.Connection, intent: int) -> bool:
    """It is done or rolled back: the row and its claims go; whether it was still open.

    Bundles that it made and that nothing names are noted: they need not be kept for long.
    """
    dying.note_unnamed(db, intent, root_of(intent))
    blocks.drop_root(db, root_of(intent))
    return db.execute("DELETE FROM journal WHERE id=?", (intent,)).rowcount == 1


def get(db: sqlite3.Connection, intent: int) -> Intent | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM journal WHERE id=?", (intent,)).fetchone()
    return None if row is None else Intent(*row)


def all_open(db: sqlite3.Connection, kind: str | None = None) -> list[Intent]:
    """In the order in which they were opened."""
    if kind is None:
        found = db.execute(f"SELECT {_COLUMNS} FROM journal ORDER BY id")
    else:
        found = db.execute(f"SELECT {_COLUMNS} FROM journal WHERE kind=? ORDER BY id", (kind,))
    return [Intent(*row) for row in found]
