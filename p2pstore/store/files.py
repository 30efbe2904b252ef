"""Rows of files, links and deletions, and their history.

A path is the bytes below the folder's root, `/` between the names. A row of state `deleted` is
the mark of a deletion that other devices must hear of; it holds no bundles, its last version is
in the history. Whoever changes the content of a row passes its new bundles to
`blocks.set_file_bundles` in the same change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from p2pstore.ids import FileId
from p2pstore.store.rows import below, rows_in

PAGE: Final = 2000  # rows fetched at a time by walks over a whole folder
OLD_DOT: Final = "its .f is of an earlier version"
"""The reason of a placeholder whose row became newer than the `.f` on the disk, until the new one
is laid there: whoever opens it meanwhile gets the row's version."""


class State(StrEnum):
    PENDING = "pending"  # seen, not yet protected
    PROTECTED = "protected"  # its blocks are durable, the original is there
    PLACEHOLDER = "placeholder"  # the `.f` is there instead
    HYDRATING = "hydrating"
    CONFLICT = "conflict"
    SKIPPED = "skipped"  # not ours to take; `reason` says why
    DELETED = "deleted"


class Kind(StrEnum):
    FILE = "file"
    LINK = "link"
    DELETED = "deleted"


class FileRow(NamedTuple):
    folder: int
    path: bytes
    state: str
    reason: str = ""  # why it is skipped, or protected only
    kind: str = Kind.FILE
    file_id: FileId | bytes = b""
    version: bytes = b""  # encoded version vector
    hash: bytes = b""
    file_size: int = 0  # of the content
    size: int = 0  # of what lies at the path now: the original or the `.f`
    ino: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    stored_bytes: int = 0  # sealed bytes that came into being for it
    replaced_before: int = 0
    last_use: int = 0  # ms since the epoch
    pinned: int = 0
    target: bytes = b""  # of a link
    manifest_ref: bytes = b""  # where the manifest's own block lies, encoded
    id: int = 0  # 0: not yet in the catalog


class Identity(NamedTuple):
    """What a re-scan compares with the disk."""

    path: bytes
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    state: str
    id: int


# The same as a plain tuple: a NamedTuple for each of 100,000 rows costs more than reading them.
IdentityRow = tuple[bytes, int, int, int, int, str, int]


class Count(NamedTuple):
    state: str
    reason: str
    files: int
    file_bytes: int  # of the contents
    stored_bytes: int


class HistoryRow(NamedTuple):
    id: int
    folder: int
    path: bytes
    file_id: bytes
    version: bytes
    manifest: bytes
    hash: bytes
    file_size: int
    mtime_ns: int
    ended_at: int  # ms since the epoch
    why: str  # "changed", "deleted", ...


_FIELDS = FileRow._fields[:-1]
_COLUMNS = ", ".join(FileRow._fields)
_INSERT = f"INSERT INTO files ({_COLUMNS}) VALUES ({','.join('?' * len(FileRow._fields))})"
_UPDATE = f"UPDATE files SET {', '.join(f'{name}=?' for name in _FIELDS)} WHERE id=?"
_IDENTITY = "path, ino, size, mtime_ns, ctime_ns, state, id"
_HISTORY = ", ".join(HistoryRow._fields)


def upsert_many(
    db: sqlite3.Connection, rows: Sequence[FileRow], manifests: Sequence[bytes] | None = None
) -> list[int]:
    """Write the rows whole, by folder and path; their ids, in order.

    Each path comes at most once. `manifests`, when given, holds one for each row; b"" leaves
    what is stored.
    """
    # Ids are chosen here, because a RETURNING for each row costs as much as the row itself.
    known = _known_ids(db, rows)
    free = db.execute("SELECT coalesce(max(id), 0) FROM files").fetchone()[0] + 1
    ids: list[int] = []
    new: list[tuple[object, ...]] = []
    changed: list[tuple[object, ...]] = []
    for row in rows:
        number = known.get(row[:2])
        if number is None:
            number, free = free, free + 1
            new.append((*row[:-1], number))
        else:
            changed.append((*row[:-1], number))
        ids.append(number)
    db.executemany(_INSERT, new)
    db.executemany(_UPDATE, changed)
    if manifests is not None:
        db.executemany(
            "INSERT OR REPLACE INTO manifests (file, raw) VALUES (?,?)",
            [(number, raw) for number, raw in zip(ids, manifests, strict=True) if raw],
        )
    return ids


def _known_ids(db: sqlite3.Connection, rows: Sequence[FileRow]) -> dict[tuple[int, bytes], int]:
    known: dict[tuple[int, bytes], int] = {}
    query = "SELECT path, id FROM files WHERE folder=? AND path IN ({keys})"
    for folder in {row.folder for row in rows}:
        paths = [row.path for row in rows if row.folder == folder]
        for path, number in rows_in(db, query, paths, (folder,)):
            known[(folder, path)] = number
    return known


def get(db: sqlite3.Connection, folder: int, path: bytes) -> FileRow | None:
    query = f"SELECT {_COLUMNS} FROM files WHERE folder=? AND path=?"
    row = db.execute(query, (folder, path)).fetchone()
    return None if row is None else FileRow(*row)


def by_id(db: sqlite3.Connection, file: int) -> FileRow | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM files WHERE id=?", (file,)).fetchone()
    return None if row is None else FileRow(*row)


def get_many(db: sqlite3.Connection, folder: int, paths: Sequence[bytes]) -> dict[bytes, FileRow]:
    query = f"SELECT {_COLUMNS} FROM files WHERE folder=? AND path IN ({{keys}})"
    return {row[1]: FileRow(*row) for row in rows_in(db, query, paths, (folder,))}


def by_file_id(db: sqlite3.Connection, folder: int, file_id: FileId) -> list[FileRow]:
    """All paths of the folder that say they are this file (a copied `.f` is one more)."""
    query = f"SELECT {_COLUMNS} FROM files WHERE folder=? AND file_id=? ORDER BY path"
    return [FileRow(*row) for row in db.execute(query, (folder, file_id))]


def versions_of(
    db: sqlite3.Connection, folder: int, ids: Sequence[FileId]
) -> Iterator[tuple[FileId, bytes, bytes]]:
    """(file id, path, version) of every row of the folder that says it is one of these files, the
    marks of deletions too. One look through the whole folder, however many they are."""
    query = "SELECT file_id, path, version FROM files WHERE folder=? AND file_id IN ({keys})"
    return rows_in(db, query, ids, (folder,))


def manifest(db: sqlite3.Connection, file: int) -> bytes | None:
    row = db.execute("SELECT raw FROM manifests WHERE file=?", (file,)).fetchone()
    return None if row is None else bytes(row[0])


def manifests(db: sqlite3.Connection, files: Sequence[int]) -> dict[int, bytes]:
    return dict(rows_in(db, "SELECT file, raw FROM manifests WHERE file IN ({keys})", files))


def set_manifest(db: sqlite3.Connection, file: int, raw: bytes) -> None:
    db.execute("INSERT OR REPLACE INTO manifests (file, raw) VALUES (?,?)", (file, raw))


def without_place(
    db: sqlite3.Connection, folder: int, limit: int = PAGE
) -> list[tuple[int, bytes]]:
    """(id, manifest) of files whose manifest lies in no bundle of ours yet."""
    query = (
        "SELECT f.id, m.raw FROM files f JOIN manifests m ON m.file=f.id"
        " WHERE f.folder=? AND f.manifest_ref=x'' AND f.state<>'deleted' LIMIT ?"
    )
    return [(int(number), bytes(raw)) for number, raw in db.execute(query, (folder, limit))]


def set_place(db: sqlite3.Connection, file: int, manifest_ref: bytes) -> None:
    db.execute("UPDATE files SET manifest_ref=? WHERE id=?", (manifest_ref, file))


def outdated(db: sqlite3.Connection, ids: Sequence[int]) -> set[int]:
    """Those of the rows whose `.f` on the disk says an earlier version (`OLD_DOT`)."""
    query = "SELECT id FROM files WHERE reason=? AND id IN ({keys})"
    return {number for (number,) in rows_in(db, query, ids, (OLD_DOT,))}


def page(
    db: sqlite3.Connection,
    folder: int,
    prefix: bytes = b"",
    *,
    after: bytes = b"",
    limit: int = PAGE,
    states: Sequence[str] = (),
    reasons: Sequence[str] = (),
) -> list[FileRow]:
    """Rows beneath a directory in order of path, those behind `after`; deletions only if asked.

    `reasons`: only those with one of these.
    """
    low, high = below(prefix)
    wanted = tuple(states) or tuple(state for state in State if state is not State.DELETED)
    query = (
        f"SELECT {_COLUMNS} FROM files WHERE folder=? AND path>=? AND path<? AND path>?"
        f" AND state IN ({','.join('?' * len(wanted))})"
        + (f" AND reason IN ({','.join('?' * len(reasons))})" if reasons else "")
        + " ORDER BY path LIMIT ?"
    )
    found = db.execute(query, (folder, low, high, after, *wanted, *reasons, limit))
    return [FileRow(*row) for row in found]


def walk(
    db: sqlite3.Connection,
    folder: int,
    prefix: bytes = b"",
    *,
    states: Sequence[str] = (),
    reasons: Sequence[str] = (),
) -> Iterator[FileRow]:
    """All rows beneath a directory, fetched in pages; the caller may change rows meanwhile."""
    after = b""
    while rows := page(db, folder, prefix, after=after, limit=PAGE, states=states, reasons=reasons):
        yield from rows
        after = rows[-1].path


def with_some_below(
    db: sqlite3.Connection, folder: int, directories: Iterable[bytes]
) -> list[bytes]:
    """Those of the directories beneath which the catalog has something that is not deleted."""
    query = "SELECT 1 FROM files WHERE folder=? AND path>=? AND path<? AND state<>'deleted' LIMIT 1"
    return [
        directory
        for directory in directories
        if db.execute(query, (folder, *below(directory))).fetchone()
    ]


def identities(
    db: sqlite3.Connection, folder: int, directory: bytes = b""
) -> Iterator[IdentityRow]:
    """What a re-scan compares, as plain tuples in no order; deletions are left out.

    With `directory` only what is beneath it, and itself. It reads while it is consumed: inside
    `Catalog.view`, to the end.
    """
    query = f"SELECT {_IDENTITY} FROM files WHERE folder=?1 AND state<>'deleted'"
    if not directory:
        return db.execute(query, (folder,))
    low, high = below(directory)
    query += " AND (path=?2 OR (path>=?3 AND path<?4))"
    return db.execute(query, (folder, directory, low, high))


def identities_at(db: sqlite3.Connection, folder: int, paths: Sequence[bytes]) -> list[IdentityRow]:
    """The same of those paths only."""
    query = (
        f"SELECT {_IDENTITY} FROM files WHERE folder=? AND state<>'deleted' AND path IN ({{keys}})"
    )
    return list(rows_in(db, query, paths, (folder,)))


def identity(db: sqlite3.Connection, folder: int, path: bytes) -> Identity | None:
    query = f"SELECT {_IDENTITY} FROM files WHERE folder=? AND path=?"
    row = db.execute(query, (folder, path)).fetchone()
    return None if row is None else Identity(*row)


def set_state(db: sqlite3.Connection, ids: Iterable[int], state: str, reason: str = "") -> None:
    db.executemany(
        "UPDATE files SET state=?, reason=? WHERE id=?", [(state, reason, file) for file in ids]
    )


def change_reason(db: sqlite3.Connection, ids: Iterable[int], was: str, reason: str) -> None:
    """Of those that stay for that reason, and of no others."""
    db.executemany(
        "UPDATE files SET reason=? WHERE id=? AND reason=?", [(reason, file, was) for file in ids]
    )


def set_on_disk(
    db: sqlite3.Connection, rows: Iterable[tuple[int, str, int, int, int, int]]
) -> None:
    """(id, state, ino, size, mtime_ns, ctime_ns): what lies at the path from now on."""
    db.executemany(
        "UPDATE files SET state=?2, ino=?3, size=?4, mtime_ns=?5, ctime_ns=?6,"
        " replaced_before=max(replaced_before, ?2='placeholder') WHERE id=?1",
        list(rows),
    )


def set_pinned(db: sqlite3.Connection, ids: Iterable[int], pinned: bool) -> None:
    db.executemany("UPDATE files SET pinned=? WHERE id=?", [(int(pinned), file) for file in ids])


def set_last_use(db: sqlite3.Connection, ids: Iterable[int], now_ms: int) -> None:
    db.executemany("UPDATE files SET last_use=? WHERE id=?", [(now_ms, file) for file in ids])


def rename(db: sqlite3.Connection, file: int, path: bytes) -> None:
    """The file lies at another path of its folder; what the catalog had there is forgotten."""
    query = (
        "SELECT id FROM files"
        " WHERE path=? AND id<>? AND folder=(SELECT folder FROM files WHERE id=?)"
    )
    for (other,) in db.execute(query, (path, file, file)).fetchall():
        forget(db, [other])
    db.execute("UPDATE files SET path=? WHERE id=?", (path, file))


def counts(db: sqlite3.Connection, folder: int, prefix: bytes = b"") -> list[Count]:
    """For `status`: how many files and bytes in each state, for each reason."""
    low, high = below(prefix)
    query = (
        "SELECT state, reason, count(*), sum(file_size), sum(stored_bytes) FROM files"
        " WHERE folder=? AND state<>'deleted'"
        + (" AND path>=? AND path<?" if prefix else "")
        + " GROUP BY state, reason ORDER BY state, reason"
    )
    bounds = (low, high) if prefix else ()
    return [Count(*row) for row in db.execute(query, (folder, *bounds))]


def total(
    db: sqlite3.Connection, folder: int, path: bytes, states: Sequence[str]
) -> tuple[int, int]:
    """(files, bytes of their contents) at a path and beneath it, of those in these states."""
    low, high = below(path)
    query = (
        "SELECT count(*), coalesce(sum(file_size), 0) FROM files"
        " WHERE folder=? AND (path=? OR path>=? AND path<?)"
        f" AND state IN ({','.join('?' * len(states))})"
    )
    count, size = db.execute(query, (folder, path, low, high, *states)).fetchone()
    return int(count), int(size)


def forget(db: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Remove the rows and their references; nothing is kept of them."""
    keys = [(file,) for file in ids]
    db.executemany("DELETE FROM file_bundles WHERE file=?", keys)
    db.executemany("DELETE FROM manifests WHERE file=?", keys)
    db.executemany("DELETE FROM files WHERE id=?", keys)


# History


def keep_version(db: sqlite3.Connection, file: int, why: str, now_ms: int) -> int | None:
    """Copy the current version and its references into the history; None when it has none."""
    row = db.execute(
        "INSERT INTO history (folder, path, file_id, version, manifest, hash, file_size,"
        " mtime_ns, ended_at, why) SELECT f.folder, f.path, f.file_id, f.version, m.raw, f.hash,"
        " f.file_size, f.mtime_ns, ?, ? FROM files f JOIN manifests m ON m.file=f.id WHERE f.id=?"
        " RETURNING id",
        (now_ms, why, file),
    ).fetchall()
    if not row:
        return None
    entry = int(row[0][0])
    db.execute(
        "INSERT INTO history_bundles (history, bundle)"
        " SELECT ?, bundle FROM file_bundles WHERE file=?",
        (entry, file),
    )
    return entry


def retire(db: sqlite3.Connection, file: int, version: bytes, now_ms: int) -> int | None:
    """The file was deleted: its version goes to the history, the row marks the deletion.

    Where its manifest lies stays known as long as the history has it: an index says so, and a
    catalog that is made anew from that can still bring the file back.
    """
    entry = keep_version(db, file, "deleted", now_ms)
    db.execute("DELETE FROM file_bundles WHERE file=?", (file,))
    db.execute("DELETE FROM manifests WHERE file=?", (file,))
    db.execute(
        "UPDATE files SET state='deleted', kind='deleted', reason='', version=?, hash=x'',"
        " file_size=0, size=0, ino=0, mtime_ns=0, ctime_ns=0, stored_bytes=0, last_use=?,"
        " pinned=0, target=x'', manifest_ref=iif(?, manifest_ref, x'') WHERE id=?",
        (version, now_ms, entry is not None, file),
    )
    return entry


def history(db: sqlite3.Connection, folder: int, path: bytes) -> list[HistoryRow]:
    """Earlier versions of a path, the newest first."""
    query = (
        f"SELECT {_HISTORY} FROM history WHERE folder=? AND path=? ORDER BY ended_at DESC, id DESC"
    )
    return [HistoryRow(*row) for row in db.execute(query, (folder, path))]


def deleted_beneath(
    db: sqlite3.Connection,
    folder: int,
    prefix: bytes = b"",
    *,
    after: bytes = b"",
    limit: int = PAGE,
) -> list[HistoryRow]:
    """The last version of each deleted path beneath a directory: the first ones behind `after`."""
    low, high = below(prefix)
    query = (
        f"SELECT {_HISTORY}, max(ended_at) FROM history WHERE folder=? AND path>=? AND path<?"
        " AND path>? AND why='deleted' AND EXISTS (SELECT 1 FROM files"
        " WHERE folder=history.folder AND path=history.path AND state='deleted')"
        " GROUP BY path ORDER BY path LIMIT ?"
    )
    found = db.execute(query, (folder, low, high, after, limit))
    return [HistoryRow(*row[:-1]) for row in found]


def undelete(db: sqlite3.Connection, entry: int, version: bytes, on_disk: Identity) -> int | None:
    """Bring a version of the history back as the placeholder that now lies at `on_disk.path`.

    None when the entry is gone, or when the path has another file by now.
    """
    query = f"SELECT {_HISTORY} FROM history WHERE id=?"
    found = db.execute(query, (entry,)).fetchone()
    if found is None:
        return None
    old = HistoryRow(*found)
    there = get(db, old.folder, on_disk.path)
    if there is not None and there.state != State.DELETED:
        return None
    row = FileRow(
        folder=old.folder,
        path=on_disk.path,
        state=State.PLACEHOLDER,
        file_id=old.file_id,
        version=version,
        hash=old.hash,
        file_size=old.file_size,
        size=on_disk.size,
        ino=on_disk.ino,
        mtime_ns=on_disk.mtime_ns,
        ctime_ns=on_disk.ctime_ns,
        replaced_before=1,
    )
    (file,) = upsert_many(db, [row], [old.manifest])
    db.execute("DELETE FROM file_bundles WHERE file=?", (file,))
    db.execute(
        "INSERT INTO file_bundles (file, bundle)"
        " SELECT ?, bundle FROM history_bundles WHERE history=?",
        (file, entry),
    )
    drop_history(db, [entry])
    return file


def history_before(db: sqlite3.Connection, ended_before_ms: int, limit: int = PAGE) -> list[int]:
    query = "SELECT id FROM history WHERE ended_at<? ORDER BY ended_at LIMIT ?"
    return [entry for (entry,) in db.execute(query, (ended_before_ms, limit))]


def drop_history(db: sqlite3.Connection, entries: Sequence[int]) -> None:
    keys = [(entry,) for entry in entries]
    query = "SELECT DISTINCT folder, path FROM history WHERE id IN ({keys})"
    paths = list(rows_in(db, query, entries))
    db.executemany("DELETE FROM history_bundles WHERE history=?", keys)
    db.executemany("DELETE FROM history WHERE id=?", keys)
    db.executemany(
        "UPDATE files SET manifest_ref=x'' WHERE folder=?1 AND path=?2 AND state='deleted'"
        " AND NOT EXISTS (SELECT 1 FROM history WHERE folder=?1 AND path=?2)",
        paths,
    )
