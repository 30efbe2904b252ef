"""What was judged becomes rows of the catalog: files, what they need, the dedup index."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import msgspec

from p2pstore.content import (
    BundleRef,
    Entry,
    Keyring,
    Kind,
    Manifest,
    Relation,
    compare_versions,
    open_manifest,
)
from p2pstore.errors import IntegrityError, Unavailable
from p2pstore.ids import BundleId, NodeId, PublicKey
from p2pstore.maintenance.filing.comparing import Chunk
from p2pstore.maintenance.filing.local import Place
from p2pstore.maintenance.filing.references import References
from p2pstore.store import (
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    DedupRow,
    FileRow,
    State,
    blocks,
    files,
    merged,
)

Report = Callable[[int], None]
"""Called with the number of files filed so far."""

VERSION = msgspec.msgpack.Decoder(dict[NodeId, int])
_PLACE = msgspec.msgpack.Decoder(tuple[BundleRef, Entry])


class Filed(NamedTuple):
    """What one path becomes."""

    row: FileRow
    raw: bytes
    version: Mapping[NodeId, int]
    references: References
    own: bool  # this device sealed what it needs
    chunks: Sequence[Chunk] = ()
    retired: bool = False  # a deletion: its last version goes to the history

    def at(self, place: Place) -> Filed:
        """With the place of its manifest."""
        references = {**self.references, place[0].bundle_id: (place[0], Kind.META)}
        row = self.row._replace(manifest_ref=msgspec.msgpack.encode(place))
        return self._replace(row=row, references=references)


class Earlier(NamedTuple):
    """A row of the history as an old catalog gives it."""

    path: bytes
    manifest: bytes
    version: bytes
    ended_at: int
    why: str
    meta: tuple[BundleId, ...]  # bundles, one of which has the manifest: several share a block


class Rows:
    """Writes what was filed. A version is never lowered, whatever is filed first."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: BundleStore,
        ring: Keyring,
        me: PublicKey,
        now_ms: int,
        report: Report,
        guessed: set[BundleId],
    ) -> None:
        """`guessed`: bundles whose tag and folder the rows do not know for certain yet."""
        self._catalog = catalog
        self._store = store
        self._ring = ring
        self._me = me
        self._now_ms = now_ms
        self._report = report
        self._guessed = guessed
        self._bundles = catalog.view(_bundle_rows)
        self._count = 0

    def write(self, filed: Sequence[Filed]) -> None:
        if filed:
            self._catalog.write(partial(self._put, filed)).result()
        self._count += len(filed)
        self._report(self._count)

    def write_as_judged(self, judged: Sequence[tuple[Filed, FileRow | None]]) -> list[Filed]:
        """Write those whose rows are still what they were judged by; which were written.

        The version that a row had goes to the history.
        """

        def change(db: sqlite3.Connection) -> list[Filed]:
            folder = judged[0][0].row.folder
            known = files.get_many(db, folder, [one.row.path for one, _ in judged])
            good = [one for one, was in judged if known.get(one.row.path) == was]
            for one in good:
                was = known.get(one.row.path)
                if was is not None and was.state != State.DELETED:
                    files.keep_version(db, was.id, "changed", self._now_ms)
            if good:
                self._put(good, db)
            return good

        written: list[Filed] = self._catalog.write(change).result() if judged else []
        self._count += len(written)
        self._report(self._count)
        return written

    def adopt(self, row: BundleRow) -> None:
        """A bundle that was made here."""
        self._bundles[row.bundle_id] = self._catalog.write(
            lambda db: blocks.put_bundle(db, row)
        ).result()

    def bundles(
        self, db: sqlite3.Connection, folder: int, references: References, *, own: bool
    ) -> set[int]:
        """The rows of the bundles; those that are not here are LOST until a holder tells."""
        return {self._bundle(db, folder, ref, kind, own=own) for ref, kind in references.values()}

    def _put(self, filed: Sequence[Filed], db: sqlite3.Connection) -> None:
        folder = filed[0].row.folder
        known = files.get_many(db, folder, [one.row.path for one in filed])
        fresh = [one for one in filed if _is_newer(one, known.get(one.row.path))]
        same = [one for one in filed if _is_same(one, known.get(one.row.path))]
        ids = files.upsert_many(db, [one.row for one in fresh], [one.raw for one in fresh])
        references = [
            (number, self.bundles(db, folder, one.references, own=one.own))
            for number, one in zip(ids, fresh, strict=True)
        ]
        for one in same:
            number = known[one.row.path].id
            before = {row.id for row in blocks.bundles_of_file(db, number)}
            needed = self.bundles(db, folder, one.references, own=one.own)
            references.append((number, before | needed))
        blocks.set_file_bundles(db, references)
        for number, one in zip(ids, fresh, strict=True):
            if one.retired and one.raw:
                # As if it were deleted now: its days in the history begin again.
                self._restore_history(db, number, one)
        dedup = [row for one in fresh for row in self._dedup(db, one)]
        if dedup:
            blocks.insert_dedup(db, dedup)

    def earlier(
        self,
        db: sqlite3.Connection,
        folder: int,
        old: Earlier,
        manifest: Manifest,
        references: References,
        own: bool,
    ) -> None:
        """One more row of the history; the time of one that an index told of as well."""
        told = "UPDATE history SET ended_at=?, why=? WHERE folder=? AND path=? AND manifest=?"
        same = (int(old.ended_at), str(old.why), folder, old.path, old.manifest)
        if db.execute(told, same).rowcount:
            return
        number = db.execute(
            "INSERT INTO history (folder, path, file_id, version, manifest, hash, file_size,"
            " mtime_ns, ended_at, why) VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                folder,
                old.path,
                manifest.file_id,
                old.version,
                old.manifest,
                manifest.hash,
                manifest.meta.size,
                manifest.meta.mtime_ns,
                int(old.ended_at),
                str(old.why),
            ),
        ).lastrowid
        db.executemany(
            "INSERT INTO history_bundles (history, bundle) VALUES (?,?)",
            [(number, row) for row in self.bundles(db, folder, references, own=own)],
        )

    def _restore_history(self, db: sqlite3.Connection, number: int, one: Filed) -> None:
        manifest = open_manifest(one.raw, self._ring).manifest
        db.execute(
            "UPDATE files SET hash=?, file_size=?, mtime_ns=? WHERE id=?",
            (manifest.hash, manifest.meta.size, manifest.meta.mtime_ns, number),
        )
        files.retire(db, number, one.row.version, self._now_ms)

    def _bundle(
        self, db: sqlite3.Connection, folder: int, ref: BundleRef, kind: Kind, *, own: bool
    ) -> int:
        into = merged.into(db, ref.bundle_id)
        if into is not None:
            change = "UPDATE bundles SET folder=? WHERE id=? AND folder IS NULL"
            db.execute(change, (folder, into))
            return into
        number = self._bundles.get(ref.bundle_id)
        if number is None:
            row = BundleRow(
                ref.bundle_id, ref.tag, int(kind), folder, BundleState.LOST, 0, 0, own=int(own)
            )
            number = self._bundles[ref.bundle_id] = blocks.put_bundle(db, row)
        elif ref.bundle_id in self._guessed:
            self._guessed.discard(ref.bundle_id)
            db.execute("UPDATE bundles SET tag=?, folder=? WHERE id=?", (ref.tag, folder, number))
        return number

    def _dedup(self, db: sqlite3.Connection, one: Filed) -> Iterator[DedupRow]:
        """Rows for chunks whose block lies in a bundle here that this device opened."""
        rows = merged.where(db, list({chunk.bundle_id for chunk in one.chunks}))
        for named, entry, fingerprint in one.chunks:
            if named not in rows:
                continue
            bundle_id, number = rows[named].bundle_id, rows[named].id
            try:
                index, live = self._store.index(bundle_id), self._store.live_map(bundle_id)
            except (Unavailable, IntegrityError):
                continue
            at = index.blocks.find(entry.block)
            if at is not None and live.is_live(at) and index.header.opener == self._me:
                yield DedupRow(
                    fingerprint, number, at, entry.block, entry.key, entry.offset, entry.length
                )


def _is_newer(one: Filed, row: FileRow | None) -> bool:
    """Nothing is there yet, or an earlier version of the same: a version is never lowered."""
    if row is None:
        return True
    if row.kind == files.Kind.LINK or one.row.kind == files.Kind.LINK:
        return False
    relation = compare_versions(one.version, VERSION.decode(row.version) if row.version else {})
    if row.state == State.DELETED:
        return relation in (Relation.NEWER, Relation.EQUAL)
    return row.file_id == one.row.file_id and relation is Relation.NEWER


def _is_same(one: Filed, row: FileRow | None) -> bool:
    """The row has this version already: only what it refers to may have become clearer."""
    if row is None or row.file_id != one.row.file_id or row.state == State.DELETED:
        return False
    return row.version == one.row.version and bool(one.references)


def place_in(row: FileRow) -> Place | None:
    """Where the manifest of the row lies."""
    return _PLACE.decode(row.manifest_ref) if row.manifest_ref else None


def encoded(version: Mapping[NodeId, int]) -> bytes:
    """As the catalog keeps it; equal vectors have equal bytes."""
    return msgspec.msgpack.encode(dict(sorted(version.items())))


def _bundle_rows(db: sqlite3.Connection) -> dict[BundleId, int]:
    return dict(db.execute("SELECT bundle_id, id FROM bundles").fetchall())
