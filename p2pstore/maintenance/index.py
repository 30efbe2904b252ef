"""INDEX: a folder's list of manifests is written as a file of its own, and named by a signed head.

At most `DELAY_S` after something changed the whole list, sorted by path, goes through the ingest
pipeline; its chunks are cut by content, so that a new version shares all but a few blocks with
the last. The head that names it is numbered by (incarnation, seq) and lies in HOME before anybody
is told of it. What holders acknowledged is what eviction relies on.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec
from blake3 import blake3

from p2pstore.clock import Clock
from p2pstore.content import (
    BundleRef,
    Entry,
    Head,
    IndexLine,
    encode_head,
    encode_lines,
    note_xattrs,
    sign_head,
)
from p2pstore.errors import Unavailable
from p2pstore.home import Home
from p2pstore.ids import BundleId, FileId, FolderId, NodeId
from p2pstore.ingest import Author, Ingest, Intake, Protected
from p2pstore.store import (
    BundleRow,
    Catalog,
    FileRow,
    IntentKind,
    State,
    blocks,
    dying,
    files,
    folders,
    journal,
)

DELAY_S = 60.0
STRAYS = 500  # manifests of copied placeholders that are stored together
_NO_FILE = FileId(bytes(16))
_PLACE = msgspec.msgpack.Decoder(tuple[BundleRef, Entry])
_VERSION = msgspec.msgpack.Decoder(dict[NodeId, int])


def index_root(folder_id: FolderId) -> str:
    """Under this name the catalog keeps what the folder's index lies in."""
    return f"index:{folder_id.hex()}"


def superseded_root(folder_id: FolderId, since_ms: int) -> str:
    """Under this name lies what only earlier indexes lay in: see `collect`."""
    return f"{dying.SUPERSEDED}{folder_id.hex()}:{since_ms}"


def superseded_since(root: str) -> tuple[FolderId, int]:
    """What the name of such a root says."""
    folder, _, since = root.removeprefix(dying.SUPERSEDED).partition(":")
    return FolderId(bytes.fromhex(folder)), int(since)


class HeadOrder(NamedTuple):
    incarnation: int
    seq: int


class _Noted(msgspec.Struct, frozen=True, array_like=True):
    """The last index that was written, in the catalog: the number of its head, what it lies in."""

    incarnation: int
    seq: int
    hash: bytes  # of its lines and of what it says of the folder
    bundles: tuple[int, ...]  # rows

    @property
    def order(self) -> HeadOrder:
        return HeadOrder(self.incarnation, self.seq)


def written_order(db: sqlite3.Connection, folder_id: FolderId) -> HeadOrder | None:
    """The number of the last index that this catalog wrote for the folder."""
    noted = _noted(db, folder_id)
    return None if noted is None else noted.order


def index_bundles(db: sqlite3.Connection, folder_id: FolderId) -> list[BundleRow]:
    """What the last index lies in. Its root may keep more: what the one before lay in, until this
    one was published."""
    noted = _noted(db, folder_id)
    if noted is None:  # after a rebuild: what the rebuild began with
        rows = blocks.bundles_of_root(db, index_root(folder_id))
    else:
        rows = [row for n in noted.bundles if (row := blocks.by_rowid(db, n)) is not None]
    return rows


def follow_merged(db: sqlite3.Connection, folder_id: FolderId, into: Mapping[int, int]) -> None:
    """What the last index lies in was merged: row of the old bundle -> row of the new one."""
    noted = _noted(db, folder_id)
    if noted is not None and not into.keys().isdisjoint(noted.bundles):
        rows = tuple(dict.fromkeys(into.get(row, row) for row in noted.bundles))
        written = msgspec.structs.replace(noted, bundles=rows)
        folders.kv_set(db, index_root(folder_id), msgspec.msgpack.encode(written))


def _noted(db: sqlite3.Connection, folder_id: FolderId) -> _Noted | None:
    raw = folders.kv_get(db, index_root(folder_id))
    return None if raw is None else msgspec.msgpack.decode(raw, type=_Noted)


class IndexWriter:
    """Writes indexes and heads of this device's folders; one call at a time."""

    def __init__(
        self,
        *,
        home: Home,
        catalog: Catalog,
        ingest: Ingest,
        author: Callable[[], Author],
        clock: Clock,
    ) -> None:
        self._home = home
        self._catalog = catalog
        self._ingest = ingest
        self._author = author
        self._clock = clock

    def write(self, folder: folders.FolderRow, last: HeadOrder | None) -> bytes | None:
        """Write the folder's index as it is now; the signed head that names it, encoded.

        None when the head numbered `last` says the same already. Blocks on the disk: call it in a
        thread. Whoever gets the head makes it durable before telling anybody.
        """
        author = self._author()
        order = _next_order(last, self._home.incarnation())
        self._house_strays(folder.id)
        with tempfile.TemporaryFile(dir=self._home.path) as file:
            self._catalog.view(lambda db: file.writelines(encode_lines(_lines(db, folder.id))))
            file.flush()
            result = self._protect(folder, file.fileno(), last, order)
        if result is None:
            return None
        head = Head(
            folder=folder.folder_id,
            device=author.node_id,
            incarnation=order.incarnation,
            seq=order.seq,
            manifest=result.manifest,
        )
        return encode_head(sign_head(head, author.key, author.chain))

    def _house_strays(self, folder: int) -> None:
        """Placeholders that were copied in: their manifests get a block of ours, to be named."""

        def record(
            db: sqlite3.Connection,
            places: Sequence[tuple[BundleRef, Entry]],
            rows: Mapping[BundleId, int],
        ) -> None:
            for (file, _), place in zip(strays, places, strict=True):
                files.set_place(db, file, msgspec.msgpack.encode(place))
                known = [row.id for row in blocks.bundles_of_file(db, file)]
                references = [*known, rows[place[0].bundle_id]]
                blocks.set_file_bundles(db, [(file, references)])

        while strays := self._catalog.view(lambda db: files.without_place(db, folder, STRAYS)):
            now = int(self._clock.wall() * 1000)
            intent = self._catalog.write(partial(_open, now)).result()
            try:
                self._ingest.keep(folder, [raw for _, raw in strays], intent=intent, commit=record)
            finally:
                self._catalog.write(partial(_close, intent)).result()

    def _protect(
        self, folder: folders.FolderRow, fd: int, last: HeadOrder | None, order: HeadOrder
    ) -> Protected | None:
        """The index as a protected file; None when it is the one that the last head names."""
        now = int(self._clock.wall() * 1000)
        note = note_xattrs(folder.path, folder.settings)
        name = os.fsencode(folder.name or "folder")
        intake = Intake(name, fd, os.fstat(fd), xattrs=note)
        root, key = index_root(folder.folder_id), f"index:{folder.folder_id.hex()}"
        noted = self._catalog.view(lambda db: _noted(db, folder.folder_id))
        # Noted is what was written; it was published only when the last head has its number.
        is_published = noted is not None and last is not None and noted.order == last
        is_counted_anew = last is not None and order.incarnation != last.incarnation
        said = _hash(fd, note)
        if noted is not None and is_published and not is_counted_anew and noted.hash == said:
            return None

        def record(
            db: sqlite3.Connection, safe: Sequence[Protected], rows: Mapping[BundleId, int]
        ) -> None:
            last_noted = _noted(db, folder.folder_id)  # anew: its bundles may have been merged
            for protected in safe:
                numbers = tuple(rows[bundle] for bundle in protected.bundles)
                # What the last published head names is kept until the next one is published.
                if last_noted is not None and is_published:
                    before = _members(db, root)
                    blocks.set_root(db, root, last_noted.bundles)
                    left = before.difference(last_noted.bundles, numbers)
                    blocks.add_root(db, superseded_root(folder.folder_id, now), left)
                blocks.add_root(db, root, numbers)
                written = _Noted(*order, said, numbers)
                folders.kv_set(db, key, msgspec.msgpack.encode(written))

        intent = self._catalog.write(
            lambda db: journal.open_intent(db, IntentKind.INGEST, b"", now)
        ).result()
        try:
            (result,) = self._ingest.protect(
                folder.id, [intake], intent=intent, commit=record, kind="index"
            )
        finally:
            self._catalog.write(lambda db: journal.close(db, intent)).result()
        if not isinstance(result, Protected):
            raise Unavailable(f"The index of {folder.name} could not be written: {result.reason}")
        return result


def _close(intent: int, db: sqlite3.Connection) -> None:
    journal.close(db, intent)


def _open(now_ms: int, db: sqlite3.Connection) -> int:
    return journal.open_intent(db, IntentKind.INGEST, b"", now_ms)


def _members(db: sqlite3.Connection, root: str) -> set[int]:
    return {row for (row,) in db.execute("SELECT bundle FROM roots WHERE root=?", (root,))}


def _next_order(last: HeadOrder | None, incarnation: int) -> HeadOrder:
    """One more than the last; a new incarnation counts anew."""
    if last is None or last.incarnation < incarnation:
        return HeadOrder(incarnation, 1)
    return HeadOrder(last.incarnation, last.seq + 1)


def _lines(db: sqlite3.Connection, folder: int) -> Iterator[IndexLine]:
    """Every path that other devices and a recovery must know of, in order."""
    states = (State.PROTECTED, State.PLACEHOLDER, State.HYDRATING, State.CONFLICT, State.DELETED)
    for row in files.walk(db, folder, states=states):
        line = _line(row)
        if line is not None:
            yield line


def _line(row: FileRow) -> IndexLine | None:
    if row.kind == files.Kind.LINK:
        return IndexLine(row.path, "link", _NO_FILE, {}, 0, row.mtime_ns, row.target)
    if not row.file_id or not (row.manifest_ref or row.state == State.DELETED):
        return None  # of the second kind nothing is evicted: see facts.py
    version = _VERSION.decode(row.version) if row.version else {}
    deleted = row.state == State.DELETED
    ref, entry = _PLACE.decode(row.manifest_ref) if row.manifest_ref else (None, None)
    return IndexLine(
        path=row.path,
        kind="deleted" if deleted else "file",
        file_id=FileId(row.file_id),
        version=version,
        size=row.file_size,
        mtime_ns=row.mtime_ns,
        ref=ref,
        entry=entry,
    )


def _hash(fd: int, note: Sequence[tuple[bytes, bytes]]) -> bytes:
    hasher, offset = blake3(msgspec.msgpack.encode(note)), 0
    while piece := os.pread(fd, 1 << 20, offset):
        hasher.update(piece)
        offset += len(piece)
    return hasher.digest()
