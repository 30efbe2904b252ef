"""Rows of bundles, the dedup index, and what refers to which bundle.

A dedup hit may be relied on only after `claim` wrote a reference to its bundle, in the writer:
evict and GC look for references in the same transaction in which they take a bundle away, so
either they see the claim or the claim sees that the bundle is going (SAFETY.md 3, step 4).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from p2pstore.ids import BlockId, BundleId, Tag
from p2pstore.store.rows import rows_in


class BundleState(StrEnum):
    OPEN = "open"
    SEALED = "sealed"  # whole, in the local store
    EVICTING = "evicting"  # about to leave it: no new reference relies on it
    EVICTED = "evicted"  # only holders have it
    LOST = "lost"  # neither here nor at a holder that proved it
    DEAD = "dead"  # nothing needs it: in the trash for a while, then let go of at its holders


class BundleRow(NamedTuple):
    bundle_id: BundleId
    tag: Tag
    kind: int
    folder: int | None
    state: str
    bytes: int
    blocks: int  # 0: a holder told of it, and its signed list was not read yet
    seq: int = 0  # of the live map
    created: int = 0  # ms since the epoch
    own: int = 1  # opened by this device
    id: int = 0  # 0: not yet in the catalog

    @property
    def is_hearsay(self) -> bool:
        """Whether nothing signed says how many blocks it has, and its `seq`."""
        return not self.blocks


class Known(NamedTuple):
    """Where the block of a known chunk lies: in a sealed local bundle that we opened."""

    bundle: int
    bundle_id: BundleId
    tag: Tag
    idx: int
    block_id: BlockId
    block_key: bytes
    offset: int
    length: int


class DedupRow(NamedTuple):
    key: bytes
    bundle: int
    idx: int
    block_id: BlockId
    block_key: bytes
    offset: int
    length: int


SHARED = "share:"  # roots of what was shared with somebody who has the key
ONCE = "once:"  # ... until it was fetched once: nobody else is given a copy
SIBLING_FILES = 4  # of a bundle that are asked where their other bundles lie

_FIELDS = BundleRow._fields[:-1]
_COLUMNS = ", ".join(BundleRow._fields)
_INSERT = (
    f"INSERT INTO bundles ({', '.join(_FIELDS)}) VALUES ({','.join('?' * len(_FIELDS))})"
    " ON CONFLICT (bundle_id) DO UPDATE SET "
    + ", ".join(f"{name}=excluded.{name}" for name in _FIELDS[1:])
    + " RETURNING id"
)
UNREFERENCED = (
    "NOT EXISTS (SELECT 1 FROM file_bundles WHERE bundle=bundles.id)"
    " AND NOT EXISTS (SELECT 1 FROM history_bundles WHERE bundle=bundles.id)"
    " AND NOT EXISTS (SELECT 1 FROM roots WHERE bundle=bundles.id)"
)


# Bundles


def put_bundle(db: sqlite3.Connection, row: BundleRow) -> int:
    """Write the row whole, by its bundle id; its row id."""
    ((number,),) = db.execute(_INSERT, row[:-1]).fetchall()
    return int(number)


def get_bundle(db: sqlite3.Connection, bundle_id: BundleId) -> BundleRow | None:
    """The bundle, also by the id of one that was merged into it; see merged.py."""
    query = f"SELECT {_COLUMNS} FROM bundles WHERE id=(SELECT bundle FROM aliases WHERE alias=?)"
    row = db.execute(query, (bundle_id,)).fetchone()
    return exactly(db, bundle_id) if row is None else BundleRow(*row)


def exactly(db: sqlite3.Connection, bundle_id: BundleId) -> BundleRow | None:
    """The bundle of that very id: what lies on a disk, or at a holder, under that name."""
    query = f"SELECT {_COLUMNS} FROM bundles WHERE bundle_id=?"
    row = db.execute(query, (bundle_id,)).fetchone()
    return None if row is None else BundleRow(*row)


def by_rowid(db: sqlite3.Connection, bundle: int) -> BundleRow | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM bundles WHERE id=?", (bundle,)).fetchone()
    return None if row is None else BundleRow(*row)


def by_tag(db: sqlite3.Connection, tag: Tag) -> BundleRow | None:
    """The bundle, also by the tag of one that was merged into it."""
    for condition in ("id=(SELECT bundle FROM aliases WHERE tag=? LIMIT 1)", "tag=?"):
        query = f"SELECT {_COLUMNS} FROM bundles WHERE {condition} LIMIT 1"
        row = db.execute(query, (tag,)).fetchone()
        if row is not None:
            return BundleRow(*row)
    return None


def get_bundles(db: sqlite3.Connection, ids: Sequence[BundleId]) -> dict[BundleId, BundleRow]:
    """Each under its very id; see `merged.where`."""
    query = f"SELECT {_COLUMNS} FROM bundles WHERE bundle_id IN ({{keys}})"
    return {row[0]: BundleRow(*row) for row in rows_in(db, query, ids)}


def list_bundles(
    db: sqlite3.Connection,
    *,
    states: Sequence[str] = tuple(BundleState),
    after: int = 0,
    limit: int = 1000,
) -> list[BundleRow]:
    """A page in order of row id, those behind `after`."""
    query = (
        f"SELECT {_COLUMNS} FROM bundles WHERE id>? AND state IN ({','.join('?' * len(states))})"
        " ORDER BY id LIMIT ?"
    )
    return [BundleRow(*row) for row in db.execute(query, (after, *states, limit))]


def move(db: sqlite3.Connection, bundle: int, state: str, *, only_from: Sequence[str]) -> bool:
    """Change the state if it is one of `only_from` now; whether it was."""
    marks = ",".join("?" * len(only_from))
    cursor = db.execute(
        f"UPDATE bundles SET state=? WHERE id=? AND state IN ({marks})",
        (state, bundle, *only_from),
    )
    return cursor.rowcount == 1


def begin_evict(db: sqlite3.Connection, bundle: int) -> bool:
    """sealed -> evicting, unless an open ingest relies on its being here."""
    cursor = db.execute(
        "UPDATE bundles SET state='evicting' WHERE id=? AND state='sealed' AND NOT EXISTS"
        " (SELECT 1 FROM roots WHERE bundle=bundles.id AND root LIKE 'journal:%')",
        (bundle,),
    )
    return cursor.rowcount == 1


def set_tag(db: sqlite3.Connection, bundle: int, tag: Tag) -> None:
    """A rebuild only guesses it."""
    db.execute("UPDATE bundles SET tag=? WHERE id=? AND tag<>?", (tag, bundle, tag))


def set_live(db: sqlite3.Connection, bundle: int, seq: int, live_bytes: int) -> None:
    """A newer live map holds; never back to an older one."""
    db.execute(
        "UPDATE bundles SET seq=?2, bytes=?3 WHERE id=?1 AND seq<?2", (bundle, seq, live_bytes)
    )


def found(db: sqlite3.Connection, bundle: int, count: int, seq: int, live_bytes: int) -> None:
    """What its own list says of a bundle that was known by hearsay."""
    query = "UPDATE bundles SET blocks=?, seq=?, bytes=? WHERE id=?"
    db.execute(query, (count, seq, live_bytes, bundle))


def stored_bytes(db: sqlite3.Connection) -> dict[str, int]:
    """Bytes of all bundles by state."""
    query = "SELECT state, sum(bytes) FROM bundles GROUP BY state"
    return {state: int(total) for state, total in db.execute(query)}


def add_alias(db: sqlite3.Connection, alias: BundleId, tag: Tag, bundle: int) -> None:
    db.execute(
        "INSERT OR REPLACE INTO aliases (alias, tag, bundle) VALUES (?,?,?)", (alias, tag, bundle)
    )


def aliases_of(db: sqlite3.Connection, bundle: int) -> list[tuple[BundleId, Tag]]:
    return db.execute("SELECT alias, tag FROM aliases WHERE bundle=?", (bundle,)).fetchall()


# Dedup


def insert_dedup(db: sqlite3.Connection, rows: Iterable[DedupRow]) -> None:
    """Remember where chunks lie; a newer place replaces an older one."""
    db.executemany(
        "INSERT OR REPLACE INTO dedup (key, bundle, idx, block_id, block_key, offset, length)"
        " VALUES (?,?,?,?,?,?,?)",
        sorted(rows),  # neighbours in the index are written together
    )


def lookup_many(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Known]:
    """The known ones among the chunks: a bundle that is going, gone or not ours is no hit."""
    query = (
        "SELECT d.key, b.id, b.bundle_id, b.tag, d.idx, d.block_id, d.block_key, d.offset,"
        " d.length FROM dedup d CROSS JOIN bundles b ON b.id=d.bundle"
        " WHERE d.key IN ({keys}) AND b.state='sealed' AND b.own=1"
    )
    return {row[0]: Known._make(row[1:]) for row in rows_in(db, query, keys)}


def forget_chunks(
    db: sqlite3.Connection, bundle: int, indices: Sequence[int] | None = None
) -> None:
    """No chunk is known in this bundle any more, or none in these blocks of it."""
    if indices is None:
        db.execute("DELETE FROM dedup WHERE bundle=?", (bundle,))
        return
    doomed = set(indices)
    found = db.execute("SELECT key, idx FROM dedup WHERE bundle=?", (bundle,)).fetchall()
    db.executemany("DELETE FROM dedup WHERE key=?", [(key,) for key, idx in found if idx in doomed])


# References


def claim(db: sqlite3.Connection, root: str, bundles: Iterable[int]) -> set[int]:
    """Keep these bundles for `root` ("journal:<id>"); those that may be relied on.

    A bundle left out of the answer is no longer sealed in the local store: seal its blocks anew.
    """
    kept: set[int] = set()
    for bundle in set(bundles):
        cursor = db.execute(
            "INSERT OR REPLACE INTO roots (root, bundle)"
            " SELECT ?, id FROM bundles WHERE id=? AND state='sealed' AND own=1",
            (root, bundle),
        )
        if cursor.rowcount == 1:
            kept.add(bundle)
    db.executemany("DELETE FROM unnamed WHERE bundle=?", [(bundle,) for bundle in kept])
    return kept


def set_root(db: sqlite3.Connection, root: str, bundles: Iterable[int]) -> None:
    """From now on `root` keeps these bundles alive, wherever they are, and no others."""
    drop_root(db, root)
    add_root(db, root, bundles)


def add_root(db: sqlite3.Connection, root: str, bundles: Iterable[int]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO roots (root, bundle) VALUES (?,?)",
        [(root, bundle) for bundle in set(bundles)],
    )


def drop_root(db: sqlite3.Connection, root: str) -> None:
    db.execute("DELETE FROM roots WHERE root=?", (root,))


def drop_roots_of(db: sqlite3.Connection, bundle: int, prefix: str) -> None:
    """All that keep this bundle and have names that begin so."""
    db.execute(
        "DELETE FROM roots WHERE bundle=? AND root>=? AND root<?",
        (bundle, prefix, prefix + "\U0010ffff"),
    )


def roots_of(db: sqlite3.Connection, bundle: int) -> list[str]:
    query = "SELECT root FROM roots WHERE bundle=? ORDER BY root"
    return [root for (root,) in db.execute(query, (bundle,))]


def roots_with(db: sqlite3.Connection, prefix: str) -> list[str]:
    query = "SELECT DISTINCT root FROM roots WHERE root>=? AND root<? ORDER BY root"
    return [root for (root,) in db.execute(query, (prefix, prefix + "\U0010ffff"))]


def set_file_bundles(
    db: sqlite3.Connection, references: Sequence[tuple[int, Iterable[int]]]
) -> None:
    """The current version of each file needs these bundles, and no others."""
    wanted = {(file, bundle) for file, bundles in references for bundle in bundles}
    files = [file for file, _ in references]
    there = set(rows_in(db, "SELECT file, bundle FROM file_bundles WHERE file IN ({keys})", files))
    db.executemany("DELETE FROM file_bundles WHERE file=? AND bundle=?", there - wanted)
    db.executemany("INSERT INTO file_bundles (file, bundle) VALUES (?,?)", sorted(wanted - there))


def bundles_of_file(db: sqlite3.Connection, file: int) -> list[BundleRow]:
    query = (
        f"SELECT {_COLUMNS} FROM bundles"
        " WHERE id IN (SELECT bundle FROM file_bundles WHERE file=?) ORDER BY id"
    )
    return [BundleRow(*row) for row in db.execute(query, (file,))]


def bundles_of_files(db: sqlite3.Connection, files: Sequence[int]) -> dict[int, set[int]]:
    """bundle -> those of `files` that need it: together they hold all blocks of the files."""
    found: dict[int, set[int]] = {}
    query = "SELECT bundle, file FROM file_bundles WHERE file IN ({keys})"
    for bundle, file in rows_in(db, query, files):
        found.setdefault(bundle, set()).add(file)
    return found


def evicted_bytes_of_folder(db: sqlite3.Connection, folder: int) -> int:
    """Bytes of the folder's bundles that lie with holders only."""
    query = "SELECT coalesce(sum(bytes), 0) FROM bundles WHERE folder=? AND state='evicted'"
    return int(db.execute(query, (folder,)).fetchone()[0])


def by_use(db: sqlite3.Connection, kind: int) -> list[tuple[BundleRow, int, bool]]:
    """Sealed own bundles of a kind: when a file of it was last used (ms), whether one is pinned."""
    columns = ", ".join(f"b.{name}" for name in BundleRow._fields)
    query = (
        f"SELECT {columns}, max(b.created, coalesce(max(f.last_use), 0)),"
        " coalesce(max(f.pinned), 0) FROM bundles b LEFT JOIN file_bundles r ON r.bundle=b.id"
        " LEFT JOIN files f ON f.id=r.file"
        " WHERE b.state='sealed' AND b.own=1 AND b.kind=? GROUP BY b.id"
    )
    return [(BundleRow(*row[:-2]), row[-2], bool(row[-1])) for row in db.execute(query, (kind,))]


def bundles_of_root(db: sqlite3.Connection, root: str) -> list[BundleRow]:
    """What something else than a file keeps alive under that name."""
    columns = ", ".join(f"b.{name}" for name in BundleRow._fields)
    query = f"SELECT {columns} FROM roots r JOIN bundles b ON b.id=r.bundle WHERE r.root=?"
    return [BundleRow(*row) for row in db.execute(query, (root,))]


def siblings(db: sqlite3.Connection, bundle: int) -> Mapping[bytes, int]:
    """holder -> how many other bundles of files of this one it has proved; a few files tell."""
    query = (
        "SELECT c.holder, count(DISTINCT c.bundle) FROM"
        " (SELECT file FROM file_bundles WHERE bundle=?1 LIMIT ?2) f"
        " JOIN file_bundles r ON r.file=f.file AND r.bundle<>?1"
        " JOIN copies c ON c.bundle=r.bundle AND c.state='proved' GROUP BY c.holder"
    )
    return dict(db.execute(query, (bundle, SIBLING_FILES)).fetchall())


def companions(db: sqlite3.Connection, bundle: int, kind: int) -> list[BundleRow]:
    """The bundles of that kind which the files and versions that need this one need too."""
    query = (
        f"SELECT {_COLUMNS} FROM bundles WHERE kind=?2 AND id IN ("
        "SELECT o.bundle FROM file_bundles r JOIN file_bundles o ON o.file=r.file"
        " WHERE r.bundle=?1 UNION "
        "SELECT o.bundle FROM history_bundles r JOIN history_bundles o ON o.history=r.history"
        " WHERE r.bundle=?1) ORDER BY id"
    )
    return [BundleRow(*row) for row in db.execute(query, (bundle, kind))]


def files_of_bundle(db: sqlite3.Connection, bundle: int) -> list[int]:
    query = "SELECT file FROM file_bundles WHERE bundle=? ORDER BY file"
    return [file for (file,) in db.execute(query, (bundle,))]


def folders_of_bundle(db: sqlite3.Connection, bundle: int) -> list[int]:
    """The folders whose files or history refer to it: the strictest rules its copies."""
    query = (
        "SELECT folder FROM files WHERE id IN (SELECT file FROM file_bundles WHERE bundle=?1)"
        " UNION SELECT folder FROM history"
        " WHERE id IN (SELECT history FROM history_bundles WHERE bundle=?1)"
        " UNION SELECT folder FROM bundles WHERE id=?1 AND folder IS NOT NULL"
    )
    return [folder for (folder,) in db.execute(query, (bundle,))]


def unreferenced(db: sqlite3.Connection, *, created_before_ms: int, limit: int = 1000) -> list[int]:
    """Bundles that nothing in the catalog refers to: candidates, to be checked anew when taken."""
    query = f"SELECT id FROM bundles WHERE own=1 AND created<? AND {UNREFERENCED} LIMIT ?"
    return [bundle for (bundle,) in db.execute(query, (created_before_ms, limit))]


def forget_unreferenced(db: sqlite3.Connection, bundle: int) -> BundleId | None:
    """Remove the bundle's rows if still nothing refers to it; its id, for the store to drop it."""
    found = db.execute(
        f"SELECT bundle_id FROM bundles WHERE id=? AND {UNREFERENCED}", (bundle,)
    ).fetchone()
    if found is None:
        return None
    for table in ("dedup", "copies", "aliases", "examined", "dying", "unnamed", "dead"):
        db.execute(f"DELETE FROM {table} WHERE bundle=?", (bundle,))
    db.execute("DELETE FROM bundles WHERE id=?", (bundle,))
    return BundleId(found[0])
