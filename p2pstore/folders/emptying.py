"""EMPTY: what waited in trash long enough goes, once it is certain that it can be had again.

Step 12 of SAFETY section 3, the catalog's side. An original may go when every bundle that its
version needs is sealed here and readable, or was evicted after its proofs. A version is looked for
under the path that it had, under the paths where its placeholder may lie by now, and in their
history. One that the catalog does not know, or whose bundle is damaged, goes back to its owner;
one whose store cannot be reached waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterator
from enum import Enum
from functools import partial

from p2pstore.errors import IntegrityError, Unavailable
from p2pstore.folders.intents import TRASHED, Body, Item, Trashed, items_of
from p2pstore.ids import FileId
from p2pstore.leases import LeaseKeeper
from p2pstore.placement import (
    OWN,
    TEMPORARY,
    TRASH,
    Directories,
    Doomed,
    Root,
    discard,
    put_back,
    trash_path,
)
from p2pstore.store import BundleStore, Catalog, FileRow, State, blocks, files, journal

log = logging.getLogger(__name__)


class _Verdict(Enum):
    GO = "go"
    WAIT = "wait"
    BACK = "back"


def empty(
    root: Root,
    folder: int,
    batch: Trashed,
    catalog: Catalog,
    store: BundleStore,
    keeper: LeaseKeeper,
) -> tuple[Trashed | None, list[bytes]]:
    """What must stay in trash, and the names under which files went back. Blocks on the disk."""
    items = {item.path: item for item in catalog.view(partial(items_of, batch.intent))}
    originals = [item for item in items.values() if item.hash]
    needs = catalog.view(lambda db: {i.path: _bundles_of(db, folder, i) for i in originals})
    verdicts = _Judge(store)
    doomed: list[Doomed] = []
    back: list[bytes] = []
    finished: set[bytes] = set()
    for path, item in items.items():
        verdict = verdicts.of(needs[path]) if item.hash else _Verdict.GO
        if verdict is _Verdict.GO:
            doomed.append(Doomed(path, item.identity, item.hash, batch.rehash))
        elif verdict is _Verdict.BACK:
            finished.add(path)
            if (name := _back(root, batch.batch, path)) is not None:
                back.append(name)
    for fate in discard(root, batch.batch, doomed, keeper):
        if fate.moved_back:
            log.info("%s was changed while it lay in trash; it is back.", fate.moved_back)
            back.append(fate.moved_back)
        if fate.gone or fate.moved_back:
            finished.add(fate.path)
    rest = tuple(item for path, item in items.items() if path not in finished)
    if rest:
        left = Body(root.folder_id, batch.batch, rest)
        if finished:
            catalog.write(
                lambda db: journal.advance(db, batch.intent, TRASHED, left.encode())
            ).result()
        return Trashed.of(batch.intent, left, batch.since_ms, rehash=batch.rehash), back
    catalog.write(lambda db: journal.close(db, batch.intent)).result()
    return None, back


def clean_up(
    root: Root, batch: Trashed, catalog: Catalog, store: BundleStore, keeper: LeaseKeeper
) -> None:
    """After a placeholder outside every watched folder: nothing of ours stays in that directory."""
    empty(root, 0, batch, catalog, store, keeper)
    with Directories(root) as directories:
        for path in (TRASH, TEMPORARY, OWN):
            with contextlib.suppress(OSError):  # not there, or something of somebody's is in it
                directory, name = directories.parent(path)
                os.rmdir(name, dir_fd=directory)


def _back(root: Root, batch: str, path: bytes) -> bytes | None:
    try:
        name = put_back(root, trash_path(batch, path), path)
    except FileNotFoundError:
        return None  # its owner took it out himself
    log.warning("%s is back: what it was stored in is not whole.", os.fsdecode(name))
    return name


class _Judge:
    """What the bundles of a version say of its original; each bundle is looked at once."""

    def __init__(self, store: BundleStore) -> None:
        self._store = store
        self._known: dict[bytes, _Verdict] = {}

    def of(self, bundles: list[blocks.BundleRow]) -> _Verdict:
        """Nothing is known of a version without bundles: each has at least its manifest's."""
        if not bundles:
            return _Verdict.BACK
        verdicts = {self._bundle(bundle) for bundle in bundles}
        if _Verdict.BACK in verdicts:
            return _Verdict.BACK
        return _Verdict.WAIT if _Verdict.WAIT in verdicts else _Verdict.GO

    def _bundle(self, bundle: blocks.BundleRow) -> _Verdict:
        verdict = self._known.get(bundle.bundle_id)
        if verdict is None:
            verdict = self._known[bundle.bundle_id] = self._look(bundle)
        return verdict

    def _look(self, bundle: blocks.BundleRow) -> _Verdict:
        if bundle.state == blocks.BundleState.EVICTED:
            return _Verdict.GO
        if bundle.state == blocks.BundleState.LOST:
            return _Verdict.BACK
        try:
            if not self._store.has(bundle.bundle_id):
                return _Verdict.WAIT
            self._store.index(bundle.bundle_id)
            if self._store.size(bundle.bundle_id) < bundle.bytes:
                return _Verdict.BACK  # cut off since its list was read
        except IntegrityError:
            return _Verdict.BACK
        except Unavailable:
            return _Verdict.WAIT
        return _Verdict.GO


def _bundles_of(db: sqlite3.Connection, folder: int, item: Item) -> list[blocks.BundleRow]:
    """What the version in trash needs, wherever the catalog speaks of it now."""
    for row in _rows_of(db, folder, item):
        if row.state != State.DELETED and row.hash == item.hash:
            return blocks.bundles_of_file(db, row.id)
        for past in files.history(db, folder, row.path):
            if past.hash == item.hash:
                return _bundles_of_version(db, past.id)
    return []


def _bundles_of_version(db: sqlite3.Connection, entry: int) -> list[blocks.BundleRow]:
    numbers = db.execute("SELECT bundle FROM history_bundles WHERE history=?", (entry,)).fetchall()
    found = [blocks.by_rowid(db, number) for (number,) in numbers]
    return [row for row in found if row is not None]


def _rows_of(db: sqlite3.Connection, folder: int, item: Item) -> Iterator[FileRow]:
    row = files.get(db, folder, item.path)
    if row is not None:
        yield row
    if item.file_id:
        # Its placeholder may have been moved meanwhile, and the row with it.
        yield from files.by_file_id(db, folder, FileId(item.file_id))
