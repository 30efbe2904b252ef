"""Rows of what nothing refers to any more, from when it was first seen so until it is gone.

    examined   what referred to a bundle when its blocks were last held against the manifests, as a
               stamp: while that is the same, what was found then still holds
    dying      blocks of a bundle that no manifest names, by the time since when; empty bits: the
               bundle is referred to by nothing at all
    unnamed    bundles of an ingest that ended without naming them: they need not wait long
    dead       bundles that are on their way out: since when; the local file waits in the trash

Bits are those of a live map: bit i (of byte i // 8, least significant first) is block i.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from blake3 import blake3

from p2pstore.store import blocks, files
from p2pstore.store.blocks import BundleRow, BundleState
from p2pstore.store.rows import rows_in

WHOLE = b""
SUPERSEDED = "superseded:"  # roots of what only earlier indexes lay in: they keep nothing alive
_CLAIMS = "journal:"


class Dying(NamedTuple):
    bundle: int
    since: int  # ms since the epoch
    bits: bytes


class Reference(NamedTuple):
    """A file or earlier version that needs a bundle."""

    id: int
    manifest: bytes
    place: bytes  # of the manifest's own block, encoded; empty for earlier versions


# -- who refers to a bundle ------------------------------------------------------------------------

_FILES = (
    "SELECT r.bundle, f.id, f.file_id, f.version, f.manifest_ref FROM file_bundles r"
    " JOIN files f ON f.id=r.file {where} ORDER BY r.bundle, f.id"
)
_HISTORY = "SELECT bundle, history FROM history_bundles {where} ORDER BY bundle, history"
_ROOTS = "SELECT bundle, root FROM roots {where} ORDER BY bundle, root"
_REFERENCES = ((_FILES, "r.bundle"), (_HISTORY, "bundle"), (_ROOTS, "bundle"))


def stamps(db: sqlite3.Connection) -> dict[int, bytes]:
    """Of every bundle that anything refers to; the others have the empty stamp."""
    return _stamps(db, "", ())


def stamp(db: sqlite3.Connection, bundle: int) -> bytes:
    return _stamps(db, "WHERE {column}=?", (bundle,)).get(bundle, b"")


def _stamps(db: sqlite3.Connection, where: str, keys: tuple[int, ...]) -> dict[int, bytes]:
    """A part for each kind of reference: a hash for every bundle at once would take much memory."""
    made: dict[int, bytes] = {}
    for kind, (query, column) in enumerate(_REFERENCES):
        rows = db.execute(query.format(where=where.format(column=column)), keys)
        for bundle, said in groupby(rows, key=itemgetter(0)):
            hasher = blake3()
            for row in said:
                hasher.update(repr(row).encode())
            made[bundle] = made.get(bundle, b"") + bytes([kind]) + hasher.digest(16)
    return made


def examined(db: sqlite3.Connection) -> dict[int, bytes]:
    return dict(db.execute("SELECT bundle, stamp FROM examined").fetchall())


def is_claimed(db: sqlite3.Connection, bundle: int) -> bool:
    """An open ingest relies on it: what it will name is not known yet."""
    return any(root.startswith(_CLAIMS) for root in blocks.roots_of(db, bundle))


def is_pinned(db: sqlite3.Connection, bundle: int) -> bool:
    """Something that is no file keeps the whole of it."""
    return any(not root.startswith(SUPERSEDED) for root in blocks.roots_of(db, bundle))


def is_needed(db: sqlite3.Connection, bundle: int) -> bool:
    """Whether a file, an earlier version or anything else refers to it."""
    query = (
        "SELECT EXISTS (SELECT 1 FROM file_bundles WHERE bundle=?1)"
        " OR EXISTS (SELECT 1 FROM history_bundles WHERE bundle=?1)"
    )
    return is_pinned(db, bundle) or bool(db.execute(query, (bundle,)).fetchone()[0])


def leftovers(db: sqlite3.Connection, bundles: Sequence[int]) -> set[int]:
    """Those that no present file needs and nothing else keeps: they go by themselves, in time."""
    query = (
        "SELECT b.id FROM bundles b WHERE b.id IN ({keys})"
        " AND NOT EXISTS (SELECT 1 FROM file_bundles WHERE bundle=b.id)"
        f" AND NOT EXISTS (SELECT 1 FROM roots WHERE bundle=b.id AND root NOT GLOB '{SUPERSEDED}*')"
    )
    return {bundle for (bundle,) in rows_in(db, query, bundles)}


def references(db: sqlite3.Connection, bundles: Sequence[int]) -> dict[int, set[int]]:
    """file -> those of the bundles that it needs."""
    found: dict[int, set[int]] = {}
    query = "SELECT file, bundle FROM file_bundles WHERE bundle IN ({keys})"
    for file, bundle in rows_in(db, query, bundles):
        found.setdefault(file, set()).add(bundle)
    return found


def earlier_references(db: sqlite3.Connection, bundles: Sequence[int]) -> dict[int, set[int]]:
    """Entry of the history -> those of the bundles that it needs."""
    found: dict[int, set[int]] = {}
    query = "SELECT history, bundle FROM history_bundles WHERE bundle IN ({keys})"
    for entry, bundle in rows_in(db, query, bundles):
        found.setdefault(entry, set()).add(bundle)
    return found


def of_files(db: sqlite3.Connection, files: Sequence[int]) -> list[Reference]:
    query = (
        "SELECT f.id, m.raw, f.manifest_ref FROM files f JOIN manifests m ON m.file=f.id"
        " WHERE f.id IN ({keys})"
    )
    return [Reference(*row) for row in rows_in(db, query, files)]


def of_history(db: sqlite3.Connection, entries: Sequence[int]) -> list[Reference]:
    query = "SELECT id, manifest, x'' FROM history WHERE id IN ({keys})"
    return [Reference(*row) for row in rows_in(db, query, entries)]


def may_stand_for_lost(db: sqlite3.Connection, row: BundleRow) -> bool:
    """Nothing but a holder's word is known of it, and something is lost: that may have been merged
    into it."""
    if row.blocks:
        return False
    return db.execute("SELECT 1 FROM bundles WHERE state='lost' LIMIT 1").fetchone() is not None


# -- what is dying ---------------------------------------------------------------------------------


def of_bundle(db: sqlite3.Connection, bundle: int) -> list[Dying]:
    query = "SELECT bundle, since, bits FROM dying WHERE bundle=? ORDER BY since"
    return [Dying(*row) for row in db.execute(query, (bundle,))]


def bundles(db: sqlite3.Connection) -> list[int]:
    query = "SELECT DISTINCT bundle FROM dying ORDER BY bundle"
    return [bundle for (bundle,) in db.execute(query)]


def note(
    db: sqlite3.Connection, row: BundleRow, found: bytes, dead: bytes | None, now_ms: int
) -> bool:
    """Record what nothing names of a bundle (`WHOLE`, bits, or None: every block is named), as it
    was when its stamp was `found`. False when something has changed since.

    From here on no new file relies on these blocks: their chunks are forgotten in the same change.
    Not so what an ingest made that was cut off: its next try is to find it here, instead of storing
    and sending all of it a second time. `bury` asks once more whether somebody does.
    """
    if is_claimed(db, row.id) or stamp(db, row.id) != found:
        return False
    there = blocks.by_rowid(db, row.id)
    if there is None or there.state != row.state or there.seq != row.seq:
        return False
    before = of_bundle(db, row.id)
    db.execute("DELETE FROM dying WHERE bundle=?", (row.id,))
    if dead == WHOLE:
        since = min((one.since for one in before if one.bits == WHOLE), default=now_ms)
        _put(db, [Dying(row.id, since, WHOLE)])
        if not is_unnamed(db, row.id):
            blocks.forget_chunks(db, row.id)
    elif dead:
        kept = [one._replace(bits=_both(one.bits, dead)) for one in before if one.bits]
        new = dead
        for one in kept:
            new = _without(new, one.bits)
        _put(db, [*kept, Dying(row.id, now_ms, new)])
        blocks.forget_chunks(db, row.id, indices(dead))
    db.execute("INSERT OR REPLACE INTO examined (bundle, stamp) VALUES (?,?)", (row.id, found))
    return True


def postpone(db: sqlite3.Connection, bundle: int, now_ms: int) -> None:
    """Somebody else names blocks of it after all: the time of all that is dying begins anew."""
    rows = of_bundle(db, bundle)
    db.execute("DELETE FROM dying WHERE bundle=?", (bundle,))
    if any(one.bits == WHOLE for one in rows):
        _put(db, [Dying(bundle, now_ms, WHOLE)])
        return
    bits = b""
    for one in rows:
        bits = _either(bits, one.bits)
    _put(db, [Dying(bundle, now_ms, bits)])


def buried(db: sqlite3.Connection, bundle: int, before_ms: int) -> None:
    """What has been dying since before then is gone."""
    db.execute("DELETE FROM dying WHERE bundle=? AND since<=?", (bundle, before_ms))


def _put(db: sqlite3.Connection, rows: Iterable[Dying]) -> None:
    db.executemany(
        "INSERT OR REPLACE INTO dying (bundle, since, bits) VALUES (?,?,?)",
        [row for row in rows if row.bits == WHOLE or any(row.bits)],
    )


def retire_removed(db: sqlite3.Connection, now_ms: int, limit: int = 500) -> int:
    """Files of folders that were removed with all originals back go to the history, as if they
    were deleted now; how many. Where a placeholder is left everything stays, for ever."""
    query = (
        "SELECT f.id FROM files f JOIN folders d ON d.id=f.folder WHERE d.state='removed'"
        " AND f.state<>'deleted' AND NOT EXISTS (SELECT 1 FROM files o WHERE o.folder=d.id"
        " AND o.state IN ('placeholder', 'hydrating', 'conflict')) LIMIT ?"
    )
    ids = [file for (file,) in db.execute(query, (limit,)).fetchall()]
    for file in ids:
        files.keep_version(db, file, "removed", now_ms)
    files.forget(db, ids)
    return len(ids)


# -- what no manifest ever named -------------------------------------------------------------------

# Made for something that came to nothing, and nothing needs them by now.
UNNEEDED = (
    "SELECT u.bundle FROM unnamed u JOIN bundles ON bundles.id=u.bundle"
    f" WHERE {blocks.UNREFERENCED}"
)


def note_unnamed(db: sqlite3.Connection, intent: int, root: str) -> None:
    """An ingest ends: of the bundles that it made, those that nothing names."""
    db.execute(
        "INSERT OR IGNORE INTO unnamed (bundle) SELECT r.bundle FROM roots r"
        " JOIN bundles b ON b.id=r.bundle JOIN journal j ON j.id=?1"
        " WHERE r.root=?2 AND b.created>=j.created"
        " AND NOT EXISTS (SELECT 1 FROM roots o WHERE o.bundle=b.id AND o.root<>?2)"
        " AND NOT EXISTS (SELECT 1 FROM file_bundles WHERE bundle=b.id)"
        " AND NOT EXISTS (SELECT 1 FROM history_bundles WHERE bundle=b.id)",
        (intent, root),
    )


def leave_unnamed(db: sqlite3.Connection, bundle: int) -> None:
    """It was made for something that came to nothing; not so if anything needs it after all."""
    if not is_needed(db, bundle):
        db.execute("INSERT OR IGNORE INTO unnamed (bundle) VALUES (?)", (bundle,))


def is_unnamed(db: sqlite3.Connection, bundle: int) -> bool:
    return db.execute("SELECT 1 FROM unnamed WHERE bundle=?", (bundle,)).fetchone() is not None


# -- what is dead ----------------------------------------------------------------------------------


def bury(db: sqlite3.Connection, bundle: int, now_ms: int, *, only_from: str) -> bool:
    """The bundle is dead from now on, if nothing needs it; whether that is so."""
    if is_needed(db, bundle):
        return False
    if not blocks.move(db, bundle, BundleState.DEAD, only_from=[only_from]):
        return False
    blocks.forget_chunks(db, bundle)
    db.execute("INSERT OR REPLACE INTO dead (bundle, since) VALUES (?,?)", (bundle, now_ms))
    return True


def revive(db: sqlite3.Connection, bundle: int, state: str) -> bool:
    """Something needs a dead bundle again: it is where `state` says; whether it was dead."""
    db.execute("DELETE FROM dead WHERE bundle=?", (bundle,))
    db.execute("DELETE FROM dying WHERE bundle=?", (bundle,))
    return blocks.move(db, bundle, state, only_from=[BundleState.DEAD])


def all_dead(db: sqlite3.Connection) -> list[tuple[BundleRow, int]]:
    """Each dead bundle and since when."""
    since = dict(db.execute("SELECT bundle, since FROM dead").fetchall())
    found: list[tuple[BundleRow, int]] = []
    after = 0
    while page := blocks.list_bundles(db, states=(BundleState.DEAD,), after=after):
        found += [(row, since.get(row.id, 0)) for row in page]
        after = page[-1].id
    return found


# -- bits ------------------------------------------------------------------------------------------


def bits_of(dead: Iterable[int], number: int) -> bytes:
    """The bits of a bundle with `number` blocks."""
    bits = bytearray(-(-number // 8))
    for i in dead:
        bits[i >> 3] |= 1 << (i & 7)
    return bytes(bits)


def indices(bits: bytes) -> list[int]:
    return list(_indices(bits))


def _indices(bits: bytes) -> Iterator[int]:
    for at, byte in enumerate(bits):
        while byte:
            low = byte & -byte
            yield at * 8 + low.bit_length() - 1
            byte ^= low


def union(rows: Iterable[Dying]) -> bytes:
    bits = b""
    for row in rows:
        bits = _either(bits, row.bits)
    return bits


def _both(a: bytes, b: bytes) -> bytes:
    return bytes(x & y for x, y in zip(a, b, strict=False))


def _either(a: bytes, b: bytes) -> bytes:
    if len(a) < len(b):
        a, b = b, a
    return bytes(x | y for x, y in zip(a, b, strict=False)) + a[len(b) :]


def _without(a: bytes, b: bytes) -> bytes:
    b = b.ljust(len(a), b"\0")
    return bytes(x & ~y & 0xFF for x, y in zip(a, b, strict=False))
