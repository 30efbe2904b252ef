"""Originals whose stored blocks are not to be had are stored anew by the next scan."""

from __future__ import annotations

import sqlite3

from p2pstore.store import files

_LOST = "b.state='lost'"
_ONE = "b.id=:bundle"


def of_lost(db: sqlite3.Connection, now_ms: int) -> int:
    """Those of which a bundle is nowhere; how many."""
    return _mark(db, _LOST, 0, now_ms)


def of_bundle(db: sqlite3.Connection, bundle: int, now_ms: int) -> int:
    """Those that need this bundle, which is damaged and cannot be healed; how many."""
    return _mark(db, _ONE, bundle, now_ms)


def _mark(db: sqlite3.Connection, which: str, bundle: int, now_ms: int) -> int:
    """Their rows become marks of the same version: the next scan finds files that it does not know
    and stores them as the next version. A changed identity would do as well, but many of those
    look like a mass change, and the folder would stop and ask.

    What was known of them goes to the history: the original may have been edited since, and who
    holds the version before it may only be away.
    """
    query = (
        "SELECT id FROM files WHERE state='protected' AND kind='file' AND id IN (SELECT r.file"
        f" FROM file_bundles r JOIN bundles b ON b.id=r.bundle WHERE {which})"
    )
    ids = db.execute(query, {"bundle": bundle}).fetchall()
    for (file,) in ids:
        files.keep_version(db, file, "changed", now_ms)
    db.executemany("DELETE FROM file_bundles WHERE file=?", ids)
    db.executemany("DELETE FROM manifests WHERE file=?", ids)
    db.executemany(
        "UPDATE files SET state='deleted', kind='deleted', reason='', hash=x'', file_size=0,"
        " size=0, ino=0, mtime_ns=0, ctime_ns=0, stored_bytes=0, manifest_ref=x'' WHERE id=?",
        ids,
    )
    return len(ids)
