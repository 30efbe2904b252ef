"""LAYING OUT: a folder of which only the catalog knows gets its placeholders and links.

After a recovery the folder is empty and paused, so that nothing is concluded from what lacks. Each
row without anything on the disk gets its `.f`, or its link; a repetition goes on where the last one
was cut short. What has a name already is left, and met by the scan afterwards: but for the `.f` of
an earlier version of the very file, beside a row that has become newer since (`files.OLD_DOT`). It
changes places with the new one. What lies there decides about that, not what was recorded, so that
a crash at any point leaves nothing that the next attempt does not mend.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from p2pstore.content import (
    Keyring,
    Manifest,
    Relation,
    compare_versions,
    looks_like_manifest,
    open_manifest,
)
from p2pstore.errors import P2PStoreError
from p2pstore.folders.intents import TRASHED, Body, Item, Trashed
from p2pstore.placement import (
    IN_THE_WAY,
    SUFFIX,
    TAKEN,
    Directories,
    Identity,
    Root,
    content_hash,
    lay_link,
    lay_placeholders,
    put_back,
)
from p2pstore.store import Catalog, FileRow, IntentKind, State, files, journal

BATCH = 500  # a sync each; more unnamed files at once are slower, not faster


class LaidOut(NamedTuple):
    placeholders: int
    links: int
    failed: tuple[tuple[bytes, str], ...]  # paths that have no placeholder or link, and why
    trashed: tuple[Trashed, ...] = ()  # placeholders of earlier versions, which wait in trash


def is_there(root: Root, catalog: Catalog, folder: int, path: bytes) -> bool:
    """Whether something has the name of a file that can have no `.f`; the file itself, from an
    earlier attempt, is recorded."""
    try:
        fd = root.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        stat = os.fstat(fd)
        row = catalog.view(lambda db: files.get(db, folder, path))
        if row is not None and stat.st_size == row.file_size and content_hash(fd) == row.hash:
            _record(catalog, row, stat)
        return True
    finally:
        os.close(fd)


def take_in(root: Root, catalog: Catalog, folder: int, path: bytes, temporary: bytes) -> None:
    """The whole content of a file that can have no `.f` lies at `temporary`: it gets its name."""
    row = catalog.view(lambda db: files.get(db, folder, path))
    if put_back(root, temporary, path) != path or row is None:
        return  # something else has the name: the scan meets both
    with Directories(root) as directories:
        directory, name = directories.parent(path)
        _record(catalog, row, os.stat(name, dir_fd=directory, follow_symlinks=False))


def _record(catalog: Catalog, row: FileRow, stat: os.stat_result) -> None:
    on_disk = (row.id, State.PROTECTED, *Identity.of(stat))

    def record(db: sqlite3.Connection) -> None:
        files.set_on_disk(db, [on_disk])
        files.set_state(db, [row.id], State.PROTECTED)

    catalog.write(record).result()


def lay_out(
    root: Root,
    catalog: Catalog,
    folder: int,
    ring: Keyring,
    tell: Callable[[int, int], None],
    *,
    now_ms: int,
    reads: Callable[[bytes], None] = lambda name: None,
) -> LaidOut:
    """Lay out everything; `tell` hears (done, of how many), `reads` which `.f` is about to be read.

    Blocks, for minutes perhaps.
    """
    total = catalog.view(partial(_absent, folder))
    placeholders = links = done = 0
    failed: list[tuple[bytes, str]] = []
    trashed: list[Trashed] = []
    after = b""
    while rows := catalog.view(partial(_page, folder, after)):
        after = rows[-1].path
        absent = [row for row in rows if not row.ino or row.reason == files.OLD_DOT]
        wanted = [row for row in absent if row.kind == files.Kind.LINK]
        links += _lay_links(root, catalog, wanted, failed)
        batch = [row for row in absent if row.state == State.PLACEHOLDER]
        placeholders += _lay_batch(
            root, catalog, batch, ring, failed, trashed, now_ms=now_ms, reads=reads
        )
        done += len(absent)
        tell(done, total)
    return LaidOut(placeholders, links, tuple(failed), tuple(trashed))


def _page(folder: int, after: bytes, db: sqlite3.Connection) -> list[FileRow]:
    states = (State.PLACEHOLDER, State.PROTECTED)
    return files.page(db, folder, after=after, limit=BATCH, states=states)


def _absent(folder: int, db: sqlite3.Connection) -> int:
    query = "SELECT count(*) FROM files WHERE folder=? AND (ino=0 OR reason=?) AND state<>'deleted'"
    return int(db.execute(query, (folder, files.OLD_DOT)).fetchone()[0])


def _lay_links(
    root: Root, catalog: Catalog, rows: Sequence[FileRow], failed: list[tuple[bytes, str]]
) -> int:
    made: list[tuple[int, str, int, int, int, int]] = []
    for row in rows:
        stat = lay_link(root, row.path, row.target)
        if stat is None:
            failed.append((row.path, IN_THE_WAY))
        else:
            made.append((row.id, row.state, *Identity.of(stat)))
    catalog.write(lambda db: files.set_on_disk(db, made)).result()
    return len(made)


def _lay_batch(
    root: Root,
    catalog: Catalog,
    rows: Sequence[FileRow],
    ring: Keyring,
    failed: list[tuple[bytes, str]],
    trashed: list[Trashed],
    *,
    now_ms: int,
    reads: Callable[[bytes], None],
) -> int:
    raws = catalog.view(lambda db: files.manifests(db, [row.id for row in rows]))
    taken = catalog.view(partial(_taken, rows))
    wanted: list[tuple[bytes, bytes, int]] = []
    manifests: dict[bytes, Manifest] = {}
    for row in rows:
        raw = raws.get(row.id)
        if raw is None:
            failed.append((row.path, "its manifest has not been found yet"))
        elif row.path + SUFFIX in taken:
            failed.append((row.path, TAKEN))
        else:
            manifest = open_manifest(raw, ring, is_recorded=True).manifest
            manifests[row.path] = manifest
            wanted.append((row.path, raw, manifest.meta.mtime_ns))

    def is_earlier(path: bytes, raw: bytes) -> bool:
        return _is_earlier(raw, manifests[path], ring)

    batch = f"{now_ms:013d}-{os.urandom(3).hex()}"
    laid, not_laid, aside = lay_placeholders(
        root, wanted, batch=batch, is_earlier=is_earlier, reads=reads
    )
    numbers = {row.path: row.id for row in rows}
    on_disk = [(numbers[one.path], State.PLACEHOLDER, *one.identity) for one in laid]
    body = Body(root.folder_id, batch, tuple(Item.of(path, there) for path, there in aside))

    def record(db: sqlite3.Connection) -> int | None:
        files.set_on_disk(db, on_disk)
        files.set_state(db, [number for number, *_ in on_disk], State.PLACEHOLDER)
        if not aside:
            return None
        return journal.open_intent(db, IntentKind.REPLACE, body.encode(), now_ms, TRASHED)

    intent = catalog.write(record).result()
    if intent is not None:
        trashed.append(Trashed.of(intent, body, now_ms, rehash=False))
    failed.extend(not_laid)
    return len(laid)


def _is_earlier(raw: bytes, manifest: Manifest, ring: Keyring) -> bool:
    """Whether these are the bytes of a `.f` of an earlier version of this very file."""
    if not looks_like_manifest(raw):
        return False
    try:
        old = open_manifest(raw, ring).manifest
    except P2PStoreError:
        return False
    is_older = compare_versions(old.version, manifest.version) is Relation.OLDER
    return old.file_id == manifest.file_id and is_older


def _taken(rows: Sequence[FileRow], db: sqlite3.Connection) -> set[bytes]:
    """Names of their placeholders that belong to other files, or to directories of such."""
    query = (
        "SELECT 1 FROM files WHERE folder=?1 AND state<>'deleted'"
        " AND (path=?2 OR (path>?3 AND path<?4)) LIMIT 1"
    )
    names = ((row.folder, row.path + SUFFIX) for row in rows)
    return {
        name
        for folder, name in names
        if db.execute(query, (folder, name, name + b"/", name + b"0")).fetchone() is not None
    }
