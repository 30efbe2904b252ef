"""UNDELETE: placeholders of deleted files come back, and the catalog knows their files again.

What bears such a name by now is left as it is, and that deletion stays what it is.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from p2pstore.folders.concluding import version_after
from p2pstore.ids import NodeId
from p2pstore.placement import SUFFIX, Laid, Root, lay_placeholders
from p2pstore.store import Catalog, State, files

BATCH = 500  # a file is open for each
NAMED_ANEW = "a file has its name again"


class Undeleted(NamedTuple):
    back: list[bytes]
    failed: list[tuple[bytes, str]]  # (path, why its placeholder is not back)


def deleted_at(catalog: Catalog, folder: int, path: bytes) -> Iterator[list[files.HistoryRow]]:
    """The last version of what was deleted at a path (named with or without `.f`), or else of each
    file deleted beneath it, a batch at a time."""
    for name in dict.fromkeys((path, path.removesuffix(SUFFIX))):
        if found := deleted(catalog, folder, [name]):
            yield found
            return
    after = b""
    while page := catalog.view(partial(_page, folder, path, after)):
        yield page
        after = page[-1].path


def deleted(catalog: Catalog, folder: int, paths: Sequence[bytes]) -> list[files.HistoryRow]:
    """The last version of those of the paths that are deleted."""

    def look(db: sqlite3.Connection) -> Iterator[files.HistoryRow]:
        for path, row in files.get_many(db, folder, paths).items():
            if row.state == State.DELETED:
                yield from [e for e in files.history(db, folder, path) if e.why == "deleted"][:1]

    return catalog.view(lambda db: list(look(db)))


def undelete(
    root: Root,
    catalog: Catalog,
    folder: int,
    entries: Sequence[files.HistoryRow],
    me: NodeId,
    *,
    now_ms: int,
    reads: Callable[[bytes], None],
) -> Undeleted:
    """Bring these versions back. Blocks on the disk; `reads` hears which `.f` is read.

    No batch may have one of the paths meanwhile: it would record its file over what comes back.
    """
    still = {entry.id for entry in deleted(catalog, folder, [entry.path for entry in entries])}
    taken = [(entry.path, NAMED_ANEW) for entry in entries if entry.id not in still]
    entries = [entry for entry in entries if entry.id in still]
    laid, failed, _ = lay_placeholders(
        root,
        [(entry.path, entry.manifest, entry.mtime_ns) for entry in entries],
        batch=f"{now_ms:013d}-{os.urandom(3).hex()}",
        is_earlier=lambda _path, _raw: False,
        reads=reads,
    )
    numbers = {entry.path: entry.id for entry in entries}
    catalog.write(partial(_record, folder, numbers, laid, me)).result()
    return Undeleted([one.path for one in laid], taken + failed)


def _page(folder: int, path: bytes, after: bytes, db: sqlite3.Connection) -> list[files.HistoryRow]:
    return files.deleted_beneath(db, folder, path, after=after, limit=BATCH)


def _record(
    folder: int,
    numbers: Mapping[bytes, int],
    laid: Sequence[Laid],
    me: NodeId,
    db: sqlite3.Connection,
) -> None:
    for path, identity in laid:
        on_disk = files.Identity(path, *identity, State.PLACEHOLDER, 0)
        version = version_after(files.get(db, folder, path), me)
        files.undelete(db, numbers[path], version, on_disk)
