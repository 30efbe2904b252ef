"""The pipeline: chunk, look up, compress, seal, hash, append; then sync, read back, record.

One call of `Ingest.protect` runs in one thread and takes one batch from open descriptors to a
catalog transaction (SAFETY, section 3, steps 4 to 7). Several calls may run at once, each in a
thread of its own.

Order of writes: data blocks, fsync, rename, directory fsync; then chunk lists and manifests the
same way into the meta bundle; then both are read back *from disk*, unsealed and compared; then
one catalog transaction makes the files protected. Whatever fails before leaves unreferenced
blocks, never a file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, wait
from contextlib import contextmanager

from p2pstore.clock import Clock
from p2pstore.content import (
    BundleHeader,
    BundleRef,
    Entry,
    Keyring,
    Kind,
    bundle_tag,
    dedup_key,
)
from p2pstore.errors import IntegrityError, Unavailable
from p2pstore.ids import BundleId, PublicKey
from p2pstore.ingest.batch import Batch, Tools
from p2pstore.ingest.contents import Contents
from p2pstore.ingest.intake import Author, Intake, ManifestKind, NotProtected, Protected
from p2pstore.ingest.manifests import store_manifests, write_manifests
from p2pstore.ingest.rolling import Rolling, Written
from p2pstore.store import (
    BundleMissing,
    BundleRow,
    BundleStore,
    Catalog,
    DedupRow,
    OpenBundle,
    blocks,
    journal,
)

VERIFY_BLOCKS = 64  # blocks read back at a time


class Ingest:
    """Protects batches of files; safe to call from several threads at once."""

    def __init__(
        self,
        *,
        store: BundleStore,
        catalog: Catalog,
        author: Callable[[], Author],
        ring: Callable[[], Keyring],
        clock: Clock,
        pool: Executor,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._author = author
        self._ring = ring
        self._clock = clock
        self._pool = pool
        self._random = random
        self._tools = Tools()

    def protect(
        self,
        folder: int | None,
        files: Sequence[Intake],
        *,
        intent: int,
        commit: Callable[[sqlite3.Connection, Sequence[Protected], Mapping[BundleId, int]], None],
        kind: ManifestKind = "file",
    ) -> list[Protected | NotProtected]:
        """Make the files' content durable; the result is in the order of `files`.

        `folder` is the catalog row of the folder (None: they belong to none), `intent` an open row
        of the journal. When all is verified `commit` records it: it is given the catalog, what is
        protected, and the catalog rows of the bundles that these name.
        """
        author = self._author()
        batch = self._begin(folder, intent, author, kind)
        with self._finished(batch):
            drafts = Contents(batch, self._catalog, self._pool, self._tools).read(files)
            batch.data.close()
            with self._tools.turn:
                sealer = self._tools.sealer(batch.keys)
                results = write_manifests(batch, author, sealer, drafts, kind, self._random)
        safe = [result for result in results if isinstance(result, Protected)]
        self._record(batch, lambda db: commit(db, safe, batch.rows))
        return results

    def keep(
        self,
        folder: int,
        manifests: Sequence[bytes],
        *,
        intent: int,
        commit: Callable[
            [sqlite3.Connection, Sequence[tuple[BundleRef, Entry]], Mapping[BundleId, int]], None
        ],
    ) -> None:
        """Store manifests that came from elsewhere as blocks of a meta bundle, like our own.

        `commit` is given the place of each, in their order, and the catalog rows of the bundles.
        """
        batch = self._begin(folder, intent, self._author(), "index")
        with self._finished(batch):
            places = store_manifests(batch, self._tools.sealer(batch.keys), manifests)
        self._record(batch, lambda db: commit(db, places, batch.rows))

    def _record(self, batch: Batch, commit: Callable[[sqlite3.Connection], None]) -> None:
        """Commit behind the rows of the batch's bundles, most often in one transaction with them.

        Their changes wait in the writer's queue before this one, which looks whether all of them
        came through: nothing may refer to a row that was taken back.
        """

        def change(db: sqlite3.Connection) -> None:
            needed = [*{*batch.recorded, *batch.rows}]
            there = {row.bundle_id: row.id for row in blocks.get_bundles(db, needed).values()}
            if there != batch.rows:
                raise Unavailable("A bundle of this batch could not be recorded.")
            commit(db)

        last = self._catalog.write(change)
        for written in batch.recorded.values():
            written.result()
        last.result()

    @contextmanager
    def _finished(self, batch: Batch) -> Iterator[None]:
        """When the block ends well all that was written, or leant on, is sealed and read back."""
        try:
            yield
            batch.data.close()
            batch.meta.close()
            for future in batch.finished:
                future.result()
            for bundle_id, used in batch.used.items():
                # Known chunks are read back like new ones: their bundle may have rotted since.
                self._read_back_known(batch, bundle_id, list(used.values()))
        except BaseException:
            batch.data.abandon()
            batch.meta.abandon()
            wait(batch.finished)
            raise

    def _begin(self, folder: int | None, intent: int, author: Author, kind: ManifestKind) -> Batch:
        ring = self._ring()

        def roll(kind: Kind, *, remember: bool) -> Rolling:
            def begin() -> tuple[OpenBundle, BundleRef]:
                bundle_id = BundleId(self._random(32))
                header = BundleHeader(
                    bundle_id=bundle_id,
                    group=author.group,
                    opener=PublicKey(bytes(author.key.verify_key)),
                    kind=int(kind),
                    created_ms=int(self._clock.wall() * 1000),
                )
                return self._store.create(header, author.key), BundleRef(
                    bundle_id, bundle_tag(ring.current.tag, bundle_id)
                )

            def finish(bundle: OpenBundle, ref: BundleRef, written: list[Written]) -> None:
                batch.finished.append(
                    self._pool.submit(self._finish, batch, folder, bundle, ref, written, remember)
                )

            return Rolling(begin, finish)

        # A folder's index is needed to find everything else: it lies where the manifests lie.
        contents = Kind.META if kind == "index" else Kind.DATA
        batch = Batch(
            ring=ring,
            me=author.node_id,
            group=author.group_id,
            intent=intent,
            # What is shared has fingerprints of its own: nothing else ever finds its chunks, and
            # who verifies with the group's would call them wrong.
            data=roll(contents, remember=kind != "share"),
            meta=roll(Kind.META, remember=False),
        )
        return batch

    def _finish(
        self,
        batch: Batch,
        folder: int | None,
        bundle: OpenBundle,
        ref: BundleRef,
        written: list[Written],
        remember: bool,
    ) -> None:
        """Seal, read back from disk, record: all of one bundle, in a thread of the pool."""
        bundle.seal()
        self._read_back(ref.bundle_id, written, batch.ring.dedup)
        row = BundleRow(
            bundle_id=ref.bundle_id,
            tag=ref.tag,
            kind=bundle.header.kind,
            folder=folder,
            state=blocks.BundleState.SEALED,
            bytes=self._store.size(ref.bundle_id),
            blocks=len(written),
            created=int(self._clock.wall() * 1000),
        )

        def record(db: sqlite3.Connection) -> None:
            number = blocks.put_bundle(db, row)
            blocks.add_root(db, journal.root_of(batch.intent), [number])
            if remember:
                blocks.insert_dedup(
                    db,
                    [
                        DedupRow(mark, number, at, block_id, key, offset, length)
                        for at, block_id, key, parts in written
                        for mark, offset, length in parts
                    ],
                )
            batch.rows[ref.bundle_id] = number

        batch.recorded[ref.bundle_id] = self._catalog.write(record)

    def _read_back_known(self, batch: Batch, bundle_id: BundleId, used: Sequence[Written]) -> None:
        try:
            self._read_back(bundle_id, used, batch.ring.dedup)
        except (IntegrityError, BundleMissing):
            # Nothing may lean on it any more; the next try seals these chunks anew.
            row = batch.rows[bundle_id]
            self._catalog.write(lambda db: blocks.forget_chunks(db, row)).result()
            raise

    def _read_back(self, bundle_id: BundleId, written: Sequence[Written], secret: bytes) -> None:
        """IntegrityError unless every part of every block comes back from the disk as it was."""
        self._store.drop_cache(bundle_id)
        unseal = self._tools.unsealer().unseal
        for start in range(0, len(written), VERIFY_BLOCKS):
            part = written[start : start + VERIFY_BLOCKS]
            stored = self._store.read(bundle_id, [block.at for block in part])
            for block, raw in zip(part, stored, strict=True):
                payload = unseal(raw, block.key)
                for fingerprint, offset, length in block.parts:
                    piece = payload[offset : offset + length]
                    if len(piece) != length or dedup_key(secret, piece) != fingerprint:
                        raise IntegrityError(
                            f"A block of bundle {bundle_id.hex()[:12]} does not read back as "
                            "written. Check this computer's memory and disk: "
                            "p2pstore check --read-data"
                        )
