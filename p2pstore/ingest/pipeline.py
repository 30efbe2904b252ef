"""The pipeline: chunk, look up, compress, seal, hash, append; then sync, read back, record.

One call of `Ingest.protect` runs in one thread and takes one batch from open descriptors to a
catalog transaction (SAFETY, section 3, steps 4 to 7). Several calls may run at once, each in a
thread of its own. Files above `WINDOW` are cut here and sealed window by window in the pool
that `Ingest` was given; small files are sealed in the calling thread, so that no file costs a
future.

Order of writes: data blocks, fsync, rename, directory fsync; then chunk lists and manifests the
same way into the meta bundle; then both are read back *from disk*, unsealed and compared; then
one catalog transaction makes the files protected. Whatever fails before leaves unreferenced
blocks, never a file.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from blake3 import blake3
from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.content import (
    CHUNK_MIN,
    BundleHeader,
    BundleRef,
    Chunker,
    ChunkList,
    Entry,
    EpochKeys,
    FileMeta,
    Keyring,
    Kind,
    ListBuilder,
    Manifest,
    SealedBlock,
    Sealer,
    Unsealer,
    bundle_tag,
    dedup_key,
    fit,
    largest_holes,
    next_version,
    seal_manifest,
)
from p2pstore.errors import IntegrityError
from p2pstore.ids import BundleId, FileId, GroupId, NodeId, PublicKey, group_id_of, node_id_of
from p2pstore.ingest.reading import WINDOW, ChangedWhileRead, Windows, holes_of, read_whole
from p2pstore.ingest.rolling import Rolling, Written
from p2pstore.store import (
    BundleMissing,
    BundleRow,
    BundleStore,
    Catalog,
    DedupRow,
    Known,
    OpenBundle,
    blocks,
    journal,
)

ManifestKind = Literal["file", "index", "share"]
WINDOWS_IN_FLIGHT = 6  # bounds memory: this many windows raw and sealed
VERIFY_BLOCKS = 64  # blocks read back at a time


class Version(NamedTuple):
    """The version that a file's new content follows."""

    file_id: FileId
    vector: Mapping[NodeId, int]
    parent: bytes  # hash of the previous manifest's plain body


@dataclass(frozen=True, slots=True)
class Intake:
    """One open regular file. The descriptor stays the caller's."""

    path: bytes  # relative to the folder
    fd: int
    stat: os.stat_result
    owner: tuple[str, str] = ("", "")
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    follows: Version | None = None


@dataclass(frozen=True, slots=True)
class Protected:
    """A file whose every block is in sealed local bundles, read back from disk."""

    path: bytes
    size: int
    stored: int  # sealed bytes written for this file alone
    file_id: FileId
    vector: Mapping[NodeId, int]
    hash: bytes
    manifest: bytes  # the `.f`
    place: tuple[BundleRef, Entry]  # of the manifest's own block
    chunks: ChunkList
    bundles: frozenset[BundleId]  # data and meta


class NotProtected(NamedTuple):
    """A file that changed or could not be read; nothing of it is recorded."""

    path: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Author:
    """Who signs: this device, with the certificates that say so."""

    key: SigningKey
    chain: bytes
    group: PublicKey

    @property
    def node_id(self) -> NodeId:
        return node_id_of(PublicKey(bytes(self.key.verify_key)))

    @property
    def group_id(self) -> GroupId:
        return group_id_of(self.group)


class _Piece(NamedTuple):
    """One chunk on its way: either known, or sealed and not yet written."""

    fingerprint: bytes
    length: int
    known: Known | None
    sealed: SealedBlock | None


@dataclass(slots=True)
class _Batch:
    """What one call of protect writes, shared by its files."""

    keys: EpochKeys
    me: NodeId
    group: GroupId
    intent: int  # the open journal row that keeps what this batch relies on
    data: Rolling
    meta: Rolling
    written: dict[bytes, tuple[BundleRef, Entry]] = field(default_factory=dict)
    finished: list[Future[None]] = field(default_factory=list)
    rows: dict[BundleId, int] = field(default_factory=dict)
    used: dict[BundleId, dict[int, Written]] = field(default_factory=dict)  # of earlier batches
    relied: dict[int, bool] = field(default_factory=dict)  # row of an earlier bundle -> may we


@dataclass(slots=True)
class _Draft:
    """A file while its chunks are placed."""

    intake: Intake
    hash: bytes
    holes: tuple[tuple[int, int], ...]
    entries: list[tuple[BundleRef, Entry]]
    stored: int


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
        self._local = threading.local()

    def protect(
        self,
        folder: int,
        files: Sequence[Intake],
        *,
        intent: int,
        commit: Callable[[sqlite3.Connection, Sequence[Protected], Mapping[BundleId, int]], None],
        kind: ManifestKind = "file",
    ) -> list[Protected | NotProtected]:
        """Make the files' content durable; the result is in the order of `files`.

        `folder` is the catalog row of the folder, `intent` an open row of the journal. When all is
        verified `commit` records it: it is given the catalog, what is protected, and the catalog
        rows of the bundles that these name.
        """
        author, ring = self._author(), self._ring()
        batch = self._begin(folder, intent, author, ring.current, kind)
        try:
            drafts = self._contents(batch, ring, files)
            batch.data.close()
            results = self._manifests(batch, author, ring, drafts, kind)
            batch.meta.close()
            for future in batch.finished:
                future.result()
            for bundle_id, used in batch.used.items():
                # Known chunks are read back like new ones: their bundle may have rotted since.
                self._read_back_known(batch.rows[bundle_id], bundle_id, list(used.values()), ring)
        except BaseException:
            batch.data.abandon()
            batch.meta.abandon()
            wait(batch.finished)
            raise
        safe = [result for result in results if isinstance(result, Protected)]
        self._catalog.write(lambda db: commit(db, safe, batch.rows)).result()
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
        ring = self._ring()
        batch = self._begin(folder, intent, self._author(), ring.current, "index")
        sealed = [self._sealer(ring.current).seal(raw) for raw in manifests]
        plain = [(dedup_key(ring.dedup, raw), len(raw)) for raw in manifests]
        try:
            refs = batch.meta.append(sealed, plain)
            batch.meta.close()
            for future in batch.finished:
                future.result()
        except BaseException:
            batch.meta.abandon()
            wait(batch.finished)
            raise
        places = [
            (ref, Entry(block.block_id, 0, block.key, 0, len(raw)))
            for ref, block, raw in zip(refs, sealed, manifests, strict=True)
        ]
        self._catalog.write(lambda db: commit(db, places, batch.rows)).result()

    # -- stage 1: contents ------------------------------------------------------------------------

    def _contents(
        self, batch: _Batch, ring: Keyring, files: Sequence[Intake]
    ) -> list[_Draft | NotProtected]:
        """The files' contents, in their order; small neighbours share look-ups and writes."""
        drafts: list[_Draft | NotProtected] = []
        small: list[tuple[Intake, bytes]] = []
        held = 0
        for intake in files:
            large: tuple[tuple[int, int], ...] | None = None
            failed: NotProtected | None = None
            try:
                holes = tuple(largest_holes(holes_of(intake.fd, intake.stat)))
                if intake.stat.st_size > WINDOW or holes:
                    large = holes
                else:
                    content = read_whole(intake.fd, intake.stat.st_size)
                    small.append((intake, content))
                    held += len(content)
                    if held < WINDOW:
                        continue
            except ChangedWhileRead:
                failed = NotProtected(intake.path, "is being written")
            except OSError as exc:
                failed = NotProtected(intake.path, f"cannot be read ({exc.strerror})")
            drafts.extend(self._small(batch, ring, small))
            small, held = [], 0
            if failed is not None:
                drafts.append(failed)
            elif large is not None:
                drafts.append(self._large(batch, ring, intake, large))
        drafts.extend(self._small(batch, ring, small))
        return drafts

    def _small(
        self, batch: _Batch, ring: Keyring, files: Sequence[tuple[Intake, bytes]]
    ) -> list[_Draft]:
        """Files that fit into memory together: one look-up and one append for all of them."""
        payloads: list[bytes | memoryview] = []
        spans: list[int] = []
        chunker = self._chunker()
        for _, content in files:
            before = len(payloads)
            if len(content) <= CHUNK_MIN:
                if content:
                    payloads.append(content)
            else:
                view, start = memoryview(content), 0
                for length in chunker.cut(view, final=True):
                    payloads.append(view[start : start + length])
                    start += length
            spans.append(len(payloads) - before)
        placed = self._place(batch, self._seal(batch, ring, payloads))
        drafts: list[_Draft] = []
        at = 0
        for (intake, content), count in zip(files, spans, strict=True):
            part = placed[at : at + count]
            entries = [(ref, entry) for ref, entry, _ in part]
            stored = sum(size for _, _, size in part)
            drafts.append(_Draft(intake, blake3(content).digest(), (), entries, stored))
            at += count
        return drafts

    def _large(
        self, batch: _Batch, ring: Keyring, intake: Intake, holes: tuple[tuple[int, int], ...]
    ) -> _Draft | NotProtected:
        """Read and cut here, seal in the pool, place in order."""
        windows = Windows(intake.fd, intake.stat.st_size, holes)
        entries: list[tuple[BundleRef, Entry]] = []
        stored = 0
        flying: deque[tuple[Future[list[_Piece]], bytearray]] = deque()

        def land() -> int:
            future, buffer = flying.popleft()
            placed = self._place(batch, future.result())
            windows.spare.put(buffer)
            entries.extend((ref, entry) for ref, entry, _ in placed)
            return sum(size for _, _, size in placed)

        try:
            for buffer, lengths in windows:
                flying.append(
                    (self._pool.submit(self._seal_window, batch, ring, buffer, lengths), buffer)
                )
                while len(flying) >= WINDOWS_IN_FLIGHT or (flying and flying[0][0].done()):
                    stored += land()
            while flying:
                stored += land()
            if os.pread(intake.fd, 1, intake.stat.st_size):
                raise ChangedWhileRead
        except ChangedWhileRead:
            return NotProtected(intake.path, "is being written")
        except OSError as exc:
            return NotProtected(intake.path, f"cannot be read ({exc.strerror})")
        finally:
            wait(future for future, _ in flying)
        return _Draft(intake, windows.hash, holes, entries, stored)

    def _seal_window(
        self, batch: _Batch, ring: Keyring, buffer: bytearray, lengths: Sequence[int]
    ) -> list[_Piece]:
        payloads: list[bytes | memoryview] = []
        view, start = memoryview(buffer), 0
        for length in lengths:
            payloads.append(view[start : start + length])
            start += length
        return self._seal(batch, ring, payloads)

    def _seal(
        self, batch: _Batch, ring: Keyring, payloads: Sequence[bytes | memoryview]
    ) -> list[_Piece]:
        """Fingerprint all, look all up at once, seal those that are not known."""
        secret = ring.dedup
        fingerprints = [dedup_key(secret, payload) for payload in payloads]
        known = self._relied_on(
            batch, self._catalog.view(lambda db: blocks.lookup_many(db, fingerprints))
        )
        seal = self._sealer(ring.current).seal
        pieces: list[_Piece] = []
        for fingerprint, payload in zip(fingerprints, payloads, strict=True):
            place = known.get(fingerprint)
            sealed = seal(payload) if place is None else None
            pieces.append(_Piece(fingerprint, len(payload), place, sealed))
        return pieces

    def _relied_on(self, batch: _Batch, known: dict[bytes, Known]) -> dict[bytes, Known]:
        """The known chunks whose bundles this batch may rely on, once the catalog has noted it.

        Whoever removes a bundle looks for such notes in its own transaction (SAFETY 3, step 4).
        """
        fresh = {place.bundle for place in known.values()} - batch.relied.keys()
        if fresh:
            root = journal.root_of(batch.intent)
            kept = self._catalog.write(lambda db: blocks.claim(db, root, fresh)).result()
            batch.relied.update((bundle, bundle in kept) for bundle in fresh)
        return {key: place for key, place in known.items() if batch.relied[place.bundle]}

    def _place(self, batch: _Batch, pieces: Sequence[_Piece]) -> list[tuple[BundleRef, Entry, int]]:
        """Append what is new to the batch; returns the place of every piece and its new bytes."""
        fresh: dict[bytes, _Piece] = {}
        for piece in pieces:
            if piece.sealed is not None and piece.fingerprint not in batch.written:
                fresh.setdefault(piece.fingerprint, piece)
        sealed = [piece.sealed for piece in fresh.values() if piece.sealed is not None]
        refs = batch.data.append(sealed, [(p.fingerprint, p.length) for p in fresh.values()])
        new: dict[bytes, int] = {}
        for piece, block, ref in zip(fresh.values(), sealed, refs, strict=True):
            entry = Entry(block.block_id, 0, block.key, 0, piece.length)
            batch.written[piece.fingerprint] = (ref, entry)
            new[piece.fingerprint] = len(block.block)
        placed: list[tuple[BundleRef, Entry, int]] = []
        for fingerprint, length, known, _ in pieces:
            if known is not None:
                written = Written(known.idx, known.block_id, known.block_key, fingerprint, length)
                batch.used.setdefault(known.bundle_id, {})[known.idx] = written
                batch.rows[known.bundle_id] = known.bundle
                ref = BundleRef(known.bundle_id, known.tag)
                entry = Entry(known.block_id, 0, known.block_key, known.offset, length)
                placed.append((ref, entry, 0))
            else:
                ref, entry = batch.written[fingerprint]
                placed.append((ref, entry, new.pop(fingerprint, 0)))
        return placed

    # -- stage 2: manifests -----------------------------------------------------------------------

    def _manifests(
        self,
        batch: _Batch,
        author: Author,
        ring: Keyring,
        drafts: Sequence[_Draft | NotProtected],
        kind: ManifestKind,
    ) -> list[Protected | NotProtected]:
        sealer = self._sealer(ring.current)

        def keep(payload: bytes) -> tuple[BundleRef, Entry]:
            sealed = sealer.seal(payload)
            (ref,) = batch.meta.append([sealed], [(dedup_key(ring.dedup, payload), len(payload))])
            return ref, Entry(sealed.block_id, 0, sealed.key, 0, len(payload))

        results: list[Protected | NotProtected | None] = [None] * len(drafts)
        done: list[tuple[int, _Draft, Manifest, bytes]] = []
        for position, draft in enumerate(drafts):
            if isinstance(draft, NotProtected):
                results[position] = draft
                continue
            builder = ListBuilder(keep)
            for ref, entry in draft.entries:
                builder.add(ref, entry)
            manifest, raw = self._manifest(batch, author, draft, builder.finish(), kind, keep)
            done.append((position, draft, manifest, raw))
        sealed = [sealer.seal(raw) for _, _, _, raw in done]
        plain = [(dedup_key(ring.dedup, raw), len(raw)) for _, _, _, raw in done]
        refs = batch.meta.append(sealed, plain)
        for (position, draft, manifest, raw), block, ref in zip(done, sealed, refs, strict=True):
            bundles = {below.bundle_id for below, _ in draft.entries} | {ref.bundle_id}
            bundles.update(below.bundle_id for below in manifest.chunks.bundles)
            if manifest.meta.extra is not None:
                bundles.add(manifest.meta.extra[0].bundle_id)
            results[position] = Protected(
                path=draft.intake.path,
                size=draft.intake.stat.st_size,
                stored=draft.stored,
                file_id=manifest.file_id,
                vector=manifest.version,
                hash=draft.hash,
                manifest=raw,
                chunks=manifest.chunks,
                place=(ref, Entry(block.block_id, 0, block.key, 0, len(raw))),
                bundles=frozenset(bundles),
            )
        return [result for result in results if result is not None]

    def _manifest(
        self,
        batch: _Batch,
        author: Author,
        draft: _Draft,
        chunks: ChunkList,
        kind: ManifestKind,
        keep: Callable[[bytes], tuple[BundleRef, Entry]],
    ) -> tuple[Manifest, bytes]:
        follows = draft.intake.follows
        me = batch.me
        if follows is None:
            file_id, vector, parent = FileId(self._random(16)), {me: 1}, b""
        else:
            file_id, parent = follows.file_id, follows.parent
            vector = next_version(follows.vector, me)
        manifest = Manifest(
            file_id=file_id,
            version=vector,
            parent=parent,
            meta=_metadata(draft),
            hash=draft.hash,
            chunks=chunks,
            group=batch.group,
            kind=kind,
        )
        manifest = fit(manifest, author.chain, keep)
        nonce = self._random(24)
        return manifest, seal_manifest(manifest, batch.keys, author.key, author.chain, nonce)

    # -- stage 3: durable, verified, recorded -----------------------------------------------------

    def _begin(
        self, folder: int, intent: int, author: Author, keys: EpochKeys, kind: ManifestKind
    ) -> _Batch:
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
                    bundle_id, bundle_tag(keys.tag, bundle_id)
                )

            def finish(bundle: OpenBundle, ref: BundleRef, written: list[Written]) -> None:
                batch.finished.append(
                    self._pool.submit(self._finish, batch, folder, bundle, ref, written, remember)
                )

            return Rolling(begin, finish)

        # A folder's index is needed to find everything else: it lies where the manifests lie.
        contents = Kind.META if kind == "index" else Kind.DATA
        batch = _Batch(
            keys=keys,
            me=author.node_id,
            group=author.group_id,
            intent=intent,
            data=roll(contents, remember=True),
            meta=roll(Kind.META, remember=False),
        )
        return batch

    def _finish(
        self,
        batch: _Batch,
        folder: int,
        bundle: OpenBundle,
        ref: BundleRef,
        written: list[Written],
        remember: bool,
    ) -> None:
        """Seal, read back from disk, record: all of one bundle, in a thread of the pool."""
        bundle.seal()
        self._read_back(ref.bundle_id, written, self._ring().dedup)
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

        def record(db: sqlite3.Connection) -> int:
            number = blocks.put_bundle(db, row)
            blocks.add_root(db, journal.root_of(batch.intent), [number])
            if remember:
                blocks.insert_dedup(
                    db,
                    [
                        DedupRow(w.fingerprint, number, w.at, w.block_id, w.key, 0, w.length)
                        for w in written
                    ],
                )
            return number

        batch.rows[ref.bundle_id] = self._catalog.write(record).result()

    def _read_back_known(
        self, row: int, bundle_id: BundleId, used: Sequence[Written], ring: Keyring
    ) -> None:
        try:
            self._read_back(bundle_id, used, ring.dedup)
        except (IntegrityError, BundleMissing):
            # Nothing may lean on it any more; the next try seals these chunks anew.
            self._catalog.write(lambda db: blocks.forget_chunks(db, row)).result()
            raise

    def _read_back(self, bundle_id: BundleId, written: Sequence[Written], secret: bytes) -> None:
        self._store.drop_cache(bundle_id)
        unseal = self._unsealer().unseal
        for start in range(0, len(written), VERIFY_BLOCKS):
            part = written[start : start + VERIFY_BLOCKS]
            stored = self._store.read(bundle_id, [w.at for w in part])
            for expected, block in zip(part, stored, strict=True):
                payload = unseal(block, expected.key)
                if (
                    len(payload) != expected.length
                    or dedup_key(secret, payload) != expected.fingerprint
                ):
                    raise IntegrityError(
                        f"A block of bundle {bundle_id.hex()[:12]} does not read back as written. "
                        "Check this computer's memory and disk: p2pstore check --read-data"
                    )

    # -- per thread -------------------------------------------------------------------------------

    def _sealer(self, keys: EpochKeys) -> Sealer:
        held: tuple[bytes, Sealer] | None = getattr(self._local, "sealer", None)
        if held is None or held[0] != keys.epoch:
            held = (keys.epoch, Sealer(keys.block))
            self._local.sealer = held
        return held[1]

    def _unsealer(self) -> Unsealer:
        unsealer: Unsealer | None = getattr(self._local, "unsealer", None)
        if unsealer is None:
            unsealer = self._local.unsealer = Unsealer()
        return unsealer

    def _chunker(self) -> Chunker:
        chunker: Chunker | None = getattr(self._local, "chunker", None)
        if chunker is None:
            chunker = self._local.chunker = Chunker()
        return chunker


def _metadata(draft: _Draft) -> FileMeta:
    intake, stat = draft.intake, draft.intake.stat
    return FileMeta(
        name=intake.path.rpartition(b"/")[2],
        size=stat.st_size,
        mode=stat.st_mode,
        uid=stat.st_uid,
        gid=stat.st_gid,
        user=intake.owner[0],
        group=intake.owner[1],
        mtime_ns=stat.st_mtime_ns,
        xattrs=intake.xattrs,
        holes=draft.holes,
    )
