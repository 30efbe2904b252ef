"""Rows of holders: what audits of each came to, over all its copies. Times are ms since the epoch.

What follows from them (who is vetted, whose copies count) is policy's.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from p2pstore.ids import NodeId


class HolderRow(NamedTuple):
    node: NodeId
    since: int = 0  # its first receipt
    passed: int = 0  # audits since the later of the first receipt and the last failure
    failed_at: int = 0  # the last audit that it failed: a lie, or a bundle that it has not
    lied_at: int = 0
    asked: int = 0  # audits of late: both are halved from time to time
    answered: int = 0


LATELY = 200  # audits, after which both numbers are halved

_COLUMNS = ", ".join(HolderRow._fields)


def every(db: sqlite3.Connection) -> dict[NodeId, HolderRow]:
    rows = (HolderRow(*row) for row in db.execute(f"SELECT {_COLUMNS} FROM holders"))
    return {row.node: row for row in rows}


def received(db: sqlite3.Connection, node: NodeId, now_ms: int) -> None:
    """A receipt came from it."""
    db.execute(
        "INSERT INTO holders (node, since) VALUES (?1, ?2) ON CONFLICT (node) DO UPDATE"
        " SET since=?2 WHERE since=0",
        (node, now_ms),
    )


def passed(db: sqlite3.Connection, node: NodeId, now_ms: int) -> None:
    """What was noted while the clock was ahead counts as of now: it would bar the holder until
    then, however well it answers."""
    now = int(now_ms)
    past = f"since=min(since, {now}), failed_at=min(failed_at, {now})"
    # Before this answer: a proof that is no later than a lie is worth nothing.
    past += f", lied_at=min(lied_at, {now - 1})"
    _count(db, node, f"passed=passed+1, answered=answered+1, {past}")


def failed(db: sqlite3.Connection, node: NodeId, now_ms: int, *, is_lie: bool) -> None:
    """It has not what it signed for; or worse, it said that it has, and proved it wrongly."""
    changes = f"passed=0, failed_at={int(now_ms)}"
    _count(db, node, changes + (f", lied_at={int(now_ms)}" if is_lie else ""))


def unanswered(db: sqlite3.Connection, node: NodeId) -> None:
    _count(db, node, "")


def _count(db: sqlite3.Connection, node: NodeId, changes: str) -> None:
    db.execute("INSERT OR IGNORE INTO holders (node) VALUES (?)", (node,))
    more = f", {changes}" if changes else ""
    db.execute(f"UPDATE holders SET asked=asked+1{more} WHERE node=?", (node,))
    db.execute(
        "UPDATE holders SET asked=asked/2, answered=answered/2 WHERE node=? AND asked>?",
        (node, LATELY),
    )
