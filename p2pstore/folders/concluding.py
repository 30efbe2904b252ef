"""CONCLUDE: what stayed missing long enough is a deletion, unless it is a mass change.

A deletion goes to the history. Too many at once are not believed: the owner is asked, and `undo`
brings back what can be brought back (SAFETY, section 6).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from p2pstore.content import MAX_READ, looks_like_manifest, next_version
from p2pstore.folders.books import Books
from p2pstore.folders.parts import Parts
from p2pstore.folders.reconcile import disk_name, identity_of, still
from p2pstore.folders.taking import decode_version, encode_version
from p2pstore.ids import NodeId
from p2pstore.placement import (
    SUFFIX,
    Directories,
    Identity,
    Root,
    lay_link,
    read_placeholder,
    write_placeholder,
)
from p2pstore.store import Catalog, FileRow, State, files

log = logging.getLogger(__name__)

# Of one path, whose name is too long for `.f`, or beneath what is no directory any more.
_NO_PLACE = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)


async def conclude(root: Root, row: int, parts: Parts, books: Books) -> str | None:
    """Retire what is gone; or the words for the owner, when it is too much to be believed."""
    now, losses = parts.now(), books.losses
    is_busy = bool(books.hints or books.in_flight or books.waiting.active().files)
    losses.comes_to_rest(now, is_busy=is_busy)
    if losses.is_quiet(now):
        return None
    gone = losses.gone
    total = await parts.in_thread(parts.catalog.view, partial(_known_files, row))
    rows: dict[bytes, FileRow] = await parts.in_thread(
        parts.catalog.view, lambda db: files.get_many(db, row, gone)
    )
    names = [disk_name(one.path, one.state) for one in rows.values()]
    back = await parts.in_thread(still, root, names)
    # What was moved has another path in the catalog by now; what came back is there.
    losses.found(
        path for path in gone if path not in rows or disk_name(path, rows[path].state) in back
    )
    if losses.is_mass(total):
        lost, total = losses.change or (0, total)
        return f"{lost} of {total} files are gone or changed at once"
    doomed = [rows[path] for path in losses.ripe(now)]
    if doomed and await _is_present(root, parts):
        await parts.catalog.awrite(partial(_retire, doomed, parts.me, parts.now_ms()))
        losses.conclude((one.path for one in doomed), now)
        parts.protected()
    losses.settle()
    return None


async def _is_present(root: Root, parts: Parts) -> bool:
    return await parts.in_thread(root.is_present)


def _known_files(folder: int, db: sqlite3.Connection) -> int:
    return sum(count.files for count in files.counts(db, folder))


def _retire(rows: Sequence[FileRow], me: NodeId, now_ms: int, db: sqlite3.Connection) -> None:
    for row in rows:
        if row.state == State.SKIPPED or not row.file_id:
            files.forget(db, [row.id])
        else:
            files.retire(db, row.id, version_after(row, me), now_ms)


def version_after(row: FileRow | None, me: NodeId) -> bytes:
    """The encoded version that a new state of a path has, made by us, whatever was there."""
    if row is None:
        return encode_version({me: 1})
    return encode_version(next_version(decode_version(row.version), me))


# -- undo -----------------------------------------------------------------------------------------


def undo(
    root: Root,
    catalog: Catalog,
    folder: int,
    gone: Sequence[bytes],
    mark: bytes,
    reads: Callable[[bytes], None],
) -> int:
    """Bring back the placeholders that are gone or overwritten, and the links; how many. Blocks on
    the disk.

    What lies under the name of one by now is kept beside, with `mark`; `reads` hears which `.f` is
    read.
    """
    rows = catalog.view(lambda db: files.get_many(db, folder, gone))
    raws = catalog.view(lambda db: files.manifests(db, [row.id for row in rows.values()]))
    back: list[FileRow] = []
    restored = 0
    for row in rows.values():
        if row.id not in raws:
            continue
        try:
            write_placeholder(root, row.path + SUFFIX, raws[row.id])
        except FileExistsError:
            reads(row.path + SUFFIX)
            if _read(root, row.path + SUFFIX) == raws[row.id]:  # its owner was quicker
                back.append(row)
            continue
        except OSError as exc:
            if exc.errno not in _NO_PLACE:
                raise
            log.warning("%s has no placeholder: %s", os.fsdecode(row.path), exc.strerror)
            continue
        back.append(row)
        restored += 1
    restored += _undo_links(root, catalog, rows.values())
    restored += _undo_overwritten(root, catalog, folder, mark, reads)
    _put_on_record(root, catalog, back)
    return restored


def _undo_links(root: Root, catalog: Catalog, rows: Iterable[FileRow]) -> int:
    made: list[tuple[int, str, int, int, int, int]] = []
    for row in rows:
        if row.kind == files.Kind.LINK and (stat := lay_link(root, row.path, row.target)):
            made.append((row.id, row.state, *Identity.of(stat)))
    root.sync()
    catalog.write(lambda db: files.set_on_disk(db, made)).result()
    return len(made)


def _undo_overwritten(
    root: Root, catalog: Catalog, folder: int, mark: bytes, reads: Callable[[bytes], None]
) -> int:
    rows = catalog.view(lambda db: list(files.walk(db, folder, states=(State.PLACEHOLDER,))))
    there = still(root, [row.path + SUFFIX for row in rows])
    restored = 0
    for row in rows:
        name = row.path + SUFFIX
        seen = there.get(name)
        on_record = (row.ino, row.size, row.mtime_ns, row.ctime_ns)
        if seen is None or identity_of(seen) == on_record:
            continue
        reads(name)
        found = _read(root, name)
        raw = catalog.view(partial(_manifest_of, row.id))
        if raw is not None and found is not None and not looks_like_manifest(found):
            write_placeholder(root, name, raw, aside=mark)
            restored += 1
    return restored


def _read(root: Root, name: bytes) -> bytes | None:
    """None where no file can be read, a directory say: it must not keep the others away."""
    with Directories(root) as directories, contextlib.suppress(OSError):
        directory, last = directories.parent(name)
        return read_placeholder(directory, last, MAX_READ + 1)
    return None


def _manifest_of(file: int, db: sqlite3.Connection) -> bytes | None:
    return files.manifest(db, file)


def _put_on_record(root: Root, catalog: Catalog, rows: Sequence[FileRow]) -> None:
    """The placeholders of these lie there again, as they are on the disk now."""
    there = still(root, [row.path + SUFFIX for row in rows])
    found = [(row.id, there[row.path + SUFFIX]) for row in rows if row.path + SUFFIX in there]
    on_disk = [(number, State.PLACEHOLDER, *identity_of(seen)) for number, seen in found]
    catalog.write(lambda db: files.set_on_disk(db, on_disk)).result()
