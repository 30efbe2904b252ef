"""Rows of copies on other nodes, with their receipts, and what holders acknowledged.

This says what was proved and when. How many of them count is policy's: one friend counts once,
strangers by network, and so on.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from p2pstore.ids import BundleId, FolderId, NodeId
from p2pstore.store.rows import rows_in


class CopyState(StrEnum):
    PROVED = "proved"  # a whole proof, and no failed audit since
    SUSPECT = "suspect"  # an audit could not be answered; counts no more until it is
    MOVING = "moving"  # its holder asked for it to be placed elsewhere: good to fetch from only
    LOST = "lost"  # the holder says that it has it not, or lied
    RELEASED = "released"


HAVING = (CopyState.PROVED, CopyState.SUSPECT, CopyState.MOVING)  # may be asked for the bytes


class Copy(NamedTuple):
    bundle: int
    holder: NodeId
    seq: int  # of the live map that was proved
    proved_at: int  # ms since the epoch
    lease_until: int  # ms since the epoch
    receipt: bytes
    state: str = CopyState.PROVED
    since: int = 0  # the first receipt, ms; 0 takes `proved_at`
    audited_at: int = 0  # the last audit passed, whichever kind
    tried_at: int = 0  # the last audit, answered or not
    owed_since: int = 0  # the first audit since the last good one that was not answered


class HeadAck(NamedTuple):
    holder: NodeId
    folder: FolderId
    incarnation: int
    seq: int
    generation: int  # of the group state
    state_seq: int


_COLUMNS = ", ".join(Copy._fields)


_PUT = (
    f"INSERT INTO copies ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?)"
    " ON CONFLICT (bundle, holder) DO UPDATE SET seq=excluded.seq, proved_at=excluded.proved_at,"
    " lease_until=excluded.lease_until, receipt=excluded.receipt, state=excluded.state,"
    " owed_since=0"
)


def put(db: sqlite3.Connection, copy: Copy) -> None:
    """A receipt came in; it replaces what was known of this holder and bundle, but for its past."""
    db.execute(_PUT, copy._replace(since=copy.since or copy.proved_at))


def proved(db: sqlite3.Connection, bundle: int, holder: NodeId, seq: int, now_ms: int) -> bool:
    """A fresh proof came in for a copy that has a receipt; False when there is none."""
    cursor = db.execute(
        "UPDATE copies SET state='proved', seq=?, proved_at=?, owed_since=0"
        " WHERE bundle=? AND holder=?",
        (seq, now_ms, bundle, holder),
    )
    return cursor.rowcount == 1


def is_unproved(db: sqlite3.Connection, bundle: int, holder: NodeId) -> bool:
    """Only the holder's word is known of this copy."""
    query = "SELECT 1 FROM copies WHERE bundle=? AND holder=? AND state='suspect'"
    return db.execute(query, (bundle, holder)).fetchone() is not None


def tried(
    db: sqlite3.Connection, bundle: int, holder: NodeId, now_ms: int, *, passed: bool
) -> None:
    """An audit was made."""
    good = ", audited_at=?1, owed_since=0" if passed else ""
    db.execute(
        f"UPDATE copies SET tried_at=?1{good} WHERE bundle=?2 AND holder=?3",
        (now_ms, bundle, holder),
    )


def owed(db: sqlite3.Connection, bundle: int, holder: NodeId, now_ms: int) -> None:
    """An audit was not answered; the first one since the last good one counts. One in the future
    was noted by a clock that was wrong, and would excuse the holder until then."""
    db.execute(
        "UPDATE copies SET owed_since=?1 WHERE bundle=?2 AND holder=?3"
        " AND (owed_since=0 OR owed_since>?1)",
        (now_ms, bundle, holder),
    )


def to_audit(db: sqlite3.Connection, holder: NodeId, lied_ms: int, limit: int) -> list[Copy]:
    """Copies of a holder to choose audits from: up to `limit` each of those that owe an answer or
    a proof since its last lie, of those audited the longest ago, and of any."""
    whole = f"SELECT {_COLUMNS} FROM copies WHERE holder=?1 AND state IN ('proved', 'suspect')"
    last = "max(audited_at, proved_at)"
    found: dict[int, Copy] = {}
    for query in (
        f"{whole} AND (owed_since>0 OR proved_at<=?2) ORDER BY {last} LIMIT ?3",
        f"{whole} AND ?2=?2 ORDER BY {last} LIMIT ?3",
        f"{whole} AND ?2=?2 ORDER BY random() LIMIT ?3",
    ):
        for row in db.execute(query, (holder, lied_ms, limit)):
            copy = Copy(*row)
            found[copy.bundle] = copy
    return list(found.values())


def to_renew(
    db: sqlite3.Connection, holder: NodeId, before_ms: int, beyond_ms: int, limit: int
) -> list[tuple[int, BundleId]]:
    """(bundle row, its id) of copies whose leases end before the one time, or beyond the other."""
    query = (
        "SELECT b.id, b.bundle_id FROM copies c JOIN bundles b ON b.id=c.bundle WHERE c.holder=?"
        " AND c.state IN ('proved', 'suspect') AND (c.lease_until<? OR c.lease_until>?)"
        " ORDER BY c.lease_until LIMIT ?"
    )
    found = db.execute(query, (holder, before_ms, beyond_ms, limit))
    return [(number, BundleId(bundle)) for number, bundle in found]


def suspects(db: sqlite3.Connection, holder: NodeId) -> list[int]:
    """Bundles of which only this holder's word is known; the first to come first."""
    query = "SELECT bundle FROM copies WHERE holder=? AND state='suspect' ORDER BY bundle"
    return [bundle for (bundle,) in db.execute(query, (holder,))]


def set_state(db: sqlite3.Connection, bundle: int, holder: NodeId, state: str) -> None:
    db.execute("UPDATE copies SET state=? WHERE bundle=? AND holder=?", (state, bundle, holder))


def set_lease(db: sqlite3.Connection, bundle: int, holder: NodeId, until_ms: int) -> None:
    """The holder has just promised it; what stood there before may come from a wrong clock."""
    db.execute(
        "UPDATE copies SET lease_until=? WHERE bundle=? AND holder=?", (until_ms, bundle, holder)
    )


def begin_move(
    db: sqlite3.Connection, holder: NodeId, bundles: Sequence[BundleId] | None = None
) -> None:
    """From now on this holder's copies (of these bundles only, if some are named) count no more."""
    change = "UPDATE copies SET state='moving' WHERE holder=? AND state IN ('proved', 'suspect')"
    if bundles is None:
        db.execute(change, (holder,))
        return
    query = "SELECT id FROM bundles WHERE bundle_id IN ({keys})"
    for (number,) in rows_in(db, query, bundles):
        db.execute(f"{change} AND bundle=?", (holder, number))


def end_move(db: sqlite3.Connection, holder: NodeId) -> None:
    """It keeps them after all; each counts again as soon as it was asked for a proof."""
    db.execute("UPDATE copies SET state='suspect' WHERE holder=? AND state='moving'", (holder,))


def moving(
    db: sqlite3.Connection, holder: NodeId, *, after: int = 0, limit: int = 1000
) -> list[Copy]:
    """A page of what this holder asked to be rid of, in order of the bundle's row id."""
    query = (
        f"SELECT {_COLUMNS} FROM copies WHERE holder=? AND bundle>? AND state='moving'"
        " ORDER BY bundle LIMIT ?"
    )
    return [Copy(*row) for row in db.execute(query, (holder, after, limit))]


def movers(db: sqlite3.Connection) -> list[NodeId]:
    """The holders that asked to be rid of something, and still have it."""
    query = "SELECT DISTINCT holder FROM copies WHERE state='moving'"
    return [NodeId(holder) for (holder,) in db.execute(query)]


def drop(db: sqlite3.Connection, bundle: int, holder: NodeId) -> None:
    db.execute("DELETE FROM copies WHERE bundle=? AND holder=?", (bundle, holder))


def of_bundle(db: sqlite3.Connection, bundle: int) -> list[Copy]:
    query = f"SELECT {_COLUMNS} FROM copies WHERE bundle=? ORDER BY holder"
    return [Copy(*row) for row in db.execute(query, (bundle,))]


def of_bundles(db: sqlite3.Connection, bundles: Sequence[int]) -> dict[int, list[Copy]]:
    found: dict[int, list[Copy]] = {}
    query = f"SELECT {_COLUMNS} FROM copies WHERE bundle IN ({{keys}})"
    for row in rows_in(db, query, bundles):
        found.setdefault(row[0], []).append(Copy(*row))
    return found


def of_holder(
    db: sqlite3.Connection, holder: NodeId, *, after: int = 0, limit: int = 1000
) -> list[Copy]:
    """A page of what this holder keeps for us, in order of the bundle's row id."""
    query = f"SELECT {_COLUMNS} FROM copies WHERE holder=? AND bundle>? ORDER BY bundle LIMIT ?"
    return [Copy(*row) for row in db.execute(query, (holder, after, limit))]


def holders(db: sqlite3.Connection) -> dict[NodeId, int]:
    """How many copies each holder has proved."""
    query = "SELECT holder, count(*) FROM copies WHERE state='proved' GROUP BY holder"
    return {NodeId(holder): number for holder, number in db.execute(query)}


def totals_of_holders(db: sqlite3.Connection) -> dict[NodeId, tuple[int, int]]:
    """holder -> (bytes of our bundles that it has proved, when it last proved one)."""
    query = (
        "SELECT c.holder, sum(b.bytes), max(c.proved_at) FROM copies c"
        " JOIN bundles b ON b.id=c.bundle WHERE c.state='proved' GROUP BY c.holder"
    )
    return {NodeId(row[0]): (int(row[1]), int(row[2])) for row in db.execute(query)}


def count_of_file(db: sqlite3.Connection, file: int, counted: Mapping[int, int]) -> int:
    """A file is as safe as the least copied of its bundles; 0 for a file without any."""
    query = "SELECT bundle FROM file_bundles WHERE file=?"
    return min((counted.get(bundle, 0) for (bundle,) in db.execute(query, (file,))), default=0)


def counts_of_files(
    db: sqlite3.Connection, folder: int, counted: Mapping[int, int]
) -> dict[int, tuple[int, int]]:
    """copies -> (files, their bytes), over all files of a folder that have bundles.

    Files whose originals stay for a reason are left out: `files.counts` tells them.
    """
    least: dict[int, int] = {}
    sizes: dict[int, int] = {}
    query = (
        "SELECT f.id, f.file_size, r.bundle FROM files f JOIN file_bundles r ON r.file=f.id"
        " WHERE f.folder=? AND NOT (f.state='protected' AND f.reason<>'')"
    )
    for file, size, bundle in db.execute(query, (folder,)):
        number = counted.get(bundle, 0)
        if number < least.get(file, 1 << 30):
            least[file] = number
        sizes[file] = size
    found: dict[int, tuple[int, int]] = {}
    for file, number in least.items():
        files, total = found.get(number, (0, 0))
        found[number] = (files + 1, total + sizes[file])
    return found


# What holders acknowledged of heads and group state


def acknowledge(db: sqlite3.Connection, ack: HeadAck) -> None:
    """Remember it unless the holder has acknowledged something newer already."""
    db.execute(
        "INSERT INTO head_acks (holder, folder, incarnation, seq, generation, state_seq)"
        " VALUES (?,?,?,?,?,?) ON CONFLICT (holder, folder) DO UPDATE SET"
        " incarnation=excluded.incarnation, seq=excluded.seq, generation=excluded.generation,"
        " state_seq=excluded.state_seq WHERE (excluded.incarnation, excluded.seq,"
        " excluded.generation, excluded.state_seq) > (head_acks.incarnation, head_acks.seq,"
        " head_acks.generation, head_acks.state_seq)",
        ack,
    )


def acks(db: sqlite3.Connection, folder: FolderId) -> list[HeadAck]:
    query = (
        "SELECT holder, folder, incarnation, seq, generation, state_seq FROM head_acks"
        " WHERE folder=? ORDER BY holder"
    )
    return [HeadAck(*row) for row in db.execute(query, (folder,))]


def forget_holder(db: sqlite3.Connection, holder: NodeId) -> None:
    """The node is gone for good: none of its copies and acknowledgements count."""
    db.execute("DELETE FROM copies WHERE holder=?", (holder,))
    db.execute("DELETE FROM head_acks WHERE holder=?", (holder,))
