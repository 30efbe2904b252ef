"""TAKE: one batch of files at rest becomes protected, and those that may, placeholders.

The whole of SAFETY section 3 for a batch, in one thread: claim and lease, journal, ingest, placing,
journal, trash. What this module adds to the pipelines is the catalog's side: which version a file
follows, what the `.f` beside it is, and what each row says afterwards.
"""

from __future__ import annotations

import grp
import logging
import os
import pwd
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import (
    MAX_READ,
    ChunkList,
    Keyring,
    Opened,
    looks_like_manifest,
    manifest_hash,
    merge_versions,
    open_manifest,
    sorted_xattrs,
)
from p2pstore.errors import P2PStoreError
from p2pstore.filesystems import mtime_ns_of
from p2pstore.folders.intents import COMMIT, INGEST, PLACING, TRASHED, Body, Item
from p2pstore.ids import BundleId, FileId, NodeId
from p2pstore.ingest import Ingest, Intake, NotProtected, Protected, Version
from p2pstore.leases import LeaseKeeper
from p2pstore.placement import (
    SUFFIX,
    Claim,
    Identity,
    Phase,
    Placing,
    Replaced,
    Root,
    Turned,
    claim,
    replace,
)
from p2pstore.store import Catalog, FileRow, IntentKind, State, blocks, files, journal

log = logging.getLogger(__name__)

_encode = msgspec.msgpack.Encoder().encode
KEPT = (b"user.", b"system.posix_acl_")


class Candidate(NamedTuple):
    """A path at rest, as it was observed twice."""

    path: bytes
    identity: Identity
    replace: bool  # else it is only protected, for `reason`
    reason: str
    advance: Callable[[int], None] | None = None  # hears how far a large file has come


class Outcome(NamedTuple):
    """What became of a candidate."""

    path: bytes
    state: str  # "placeholder", "protected", "later", "found placeholder", "gone", "skipped"
    reason: str
    size: int = 0


@dataclass(slots=True)
class Taken:
    """The outcomes, and the claims that must be held a second longer, then closed."""

    outcomes: list[Outcome]
    claims: list[Claim]
    intent: int | None  # the journal row of what lies in trash now
    body: Body | None


class Taking:
    """Takes batches of one device's folders; `take` may run in several threads at once."""

    def __init__(
        self,
        *,
        ingest: Ingest,
        catalog: Catalog,
        keeper: LeaseKeeper,
        ring: Callable[[], Keyring],
        clock: Clock,
    ) -> None:
        self._ingest = ingest
        self._catalog = catalog
        self._keeper = keeper
        self._ring = ring
        self._clock = clock

    def take(self, root: Root, folder: int, candidates: Sequence[Candidate]) -> Taken:
        """Protect and replace; blocks until the originals lie in trash."""
        batch = f"{int(self._clock.wall() * 1000):013d}-{os.urandom(3).hex()}"
        wanted = {candidate.path: candidate for candidate in candidates}
        claimed = claim(
            root, list(wanted), self._keeper, replaceable=lambda path: wanted[path].replace
        )
        held = [entry for entry in claimed if isinstance(entry, Claim)]
        try:
            return self._take(root, folder, batch, wanted, claimed)
        except BaseException:
            for entry in held:
                entry.close()
            raise

    def _take(
        self,
        root: Root,
        folder: int,
        batch: str,
        wanted: Mapping[bytes, Candidate],
        claimed: Sequence[Claim | Turned],
    ) -> Taken:
        taken = Taken([], [], None, None)
        good: dict[bytes, Claim] = {}
        items: list[Item] = []
        for entry in claimed:
            if isinstance(entry, Turned):
                state = "gone" if entry.reason == "gone" else "later" if entry.later else "skipped"
                taken.outcomes.append(Outcome(entry.path, state, entry.reason))
            elif (identity := Identity.of(entry.stat)) != wanted[entry.path].identity:
                self._drop(taken, entry, Outcome(entry.path, "later", "changed just now"))
            elif _is_placeholder(entry):
                self._drop(taken, entry, Outcome(entry.path, "found placeholder", ""))
            else:
                good[entry.path] = entry
                items.append(Item.of(entry.path, identity))
        if not good:
            return taken
        rows, manifests = self._known(folder, list(good))
        body = Body(root.folder_id, batch, tuple(items))
        intent = self._catalog.write(
            lambda db: journal.open_intent(
                db, IntentKind.REPLACE, body.encode(), self._now_ms(), INGEST
            )
        ).result()
        try:
            self._protect_and_replace(
                root, folder, intent, body, wanted, good, rows, manifests, taken
            )
        except BaseException:
            if taken.intent is None:
                # Nothing was renamed: what recovery would do is to forget the row.
                self._catalog.write(lambda db: journal.close(db, intent)).result()
            raise
        return taken

    def _protect_and_replace(
        self,
        root: Root,
        folder: int,
        intent: int,
        body: Body,
        wanted: Mapping[bytes, Candidate],
        good: Mapping[bytes, Claim],
        rows: Mapping[bytes, FileRow],
        manifests: Mapping[int, bytes],
        taken: Taken,
    ) -> None:
        earlier = {path: self._earlier(rows.get(path), manifests) for path in good}
        intakes = [
            _intake(entry, _follows(rows.get(path), earlier[path]), wanted[path].advance)
            for path, entry in good.items()
        ]
        recorded: dict[bytes, _Recorded] = {}

        def record(
            db: sqlite3.Connection, safe: Sequence[Protected], bundles: Mapping[BundleId, int]
        ) -> None:
            recorded.clear()
            safe = [p for p in safe if _is_unchanged(good[p.path])]
            references: list[tuple[int, list[int]]] = []
            fresh: list[FileRow] = []
            raws: list[bytes] = []
            unchanged: list[tuple[int, str, int, int, int, int]] = []
            reasons: list[tuple[int, str]] = []
            for protected in safe:
                path = protected.path
                row, old = rows.get(path), earlier[path]
                if row is not None and old is not None and self._is_same(old, protected):
                    recorded[path] = _Recorded(row.id, old.raw, True, protected.file_id)
                    unchanged.append((row.id, State.PROTECTED, *Identity.of(good[path].stat)))
                    reasons.append((row.id, wanted[path].reason))
                    continue
                if row is not None and old is not None and row.hash != protected.hash:
                    files.keep_version(db, row.id, "changed", self._now_ms())
                fresh.append(self._row(folder, good[path], protected, row, wanted[path].reason))
                raws.append(protected.manifest)
            by_path = {protected.path: protected for protected in safe}
            for row, number in zip(fresh, files.upsert_many(db, fresh, raws), strict=True):
                protected = by_path[row.path]
                references.append((number, [bundles[b] for b in protected.bundles]))
                recorded[row.path] = _Recorded(number, protected.manifest, False, protected.file_id)
            blocks.set_file_bundles(db, references)
            # The version is as it was; what lies at the path is this file now.
            files.set_on_disk(db, unchanged)
            for number, reason in reasons:
                files.set_state(db, [number], State.PROTECTED, reason)
            journal.advance(db, intent, PLACING)

        results = self._ingest.protect(folder, intakes, intent=intent, commit=record)
        placings: list[Placing] = []
        hashes: dict[bytes, bytes] = {}
        for result in results:
            entry = good[result.path]
            if isinstance(result, NotProtected):
                self._drop(taken, entry, Outcome(result.path, "later", result.reason))
                continue
            if result.path not in recorded:
                self._drop(taken, entry, Outcome(result.path, "later", "changed meanwhile"))
                continue
            hashes[result.path] = result.hash
            was_leased = entry.leased or entry.phase is Phase.BROKEN
            if not wanted[result.path].replace or not was_leased:
                reason = wanted[result.path].reason or "cannot be locked on this file system"
                self._drop(taken, entry, Outcome(result.path, "protected", reason, result.size))
                continue
            said = recorded[result.path]
            there = self._placeholder_of(root, rows.get(result.path))
            if there is None:
                placings.append(Placing(entry, said.manifest))
            else:
                keep = said.is_same and there.raw == said.manifest
                placings.append(Placing(entry, said.manifest, there.identity, keep))
        self._place(root, intent, body, placings, recorded, hashes, taken)

    def _place(
        self,
        root: Root,
        intent: int,
        body: Body,
        placings: Sequence[Placing],
        recorded: Mapping[bytes, _Recorded],
        hashes: Mapping[bytes, bytes],
        taken: Taken,
    ) -> None:
        if not placings:
            self._catalog.write(lambda db: journal.close(db, intent)).result()
            return
        items = {item.path: item for item in body.items}

        def commit(paths: Sequence[bytes]) -> None:
            going = Body(body.folder_id, body.batch, tuple(items[path] for path in paths))
            self._catalog.write(
                lambda db: journal.advance(db, intent, COMMIT, going.encode())
            ).result()
            taken.intent = intent

        done = replace(root, body.batch, placings, commit)
        trashed = tuple(
            Item.of(result.path, result.trashed, hashes[result.path], recorded[result.path].file_id)
            for result in done
            if result.trashed is not None
        ) + tuple(Item.of(path, identity) for result in done for path, identity in result.aside)
        final = Body(body.folder_id, body.batch, trashed)
        on_disk = [
            (recorded[r.path].row, State.PLACEHOLDER, *r.placeholder)
            for r in done
            if r.placeholder is not None
        ]
        left = [(recorded[r.path].row, r.reason) for r in done if r.reason]

        def record(db: sqlite3.Connection) -> None:
            files.set_on_disk(db, on_disk)
            for number, reason in left:
                files.set_state(db, [number], State.PROTECTED, reason)
            if trashed:
                journal.advance(db, intent, TRASHED, final.encode())
                # From here on the files' own references keep what they need: an eviction, which
                # looks at them and asks for proofs, need not wait until the trash is empty.
                blocks.drop_root(db, journal.root_of(intent))
            else:
                journal.close(db, intent)

        self._catalog.write(record).result()
        taken.intent, taken.body = (intent, final) if trashed else (None, None)
        for placing, result in zip(placings, done, strict=True):
            self._outcome(taken, placing.claim, result)

    def _outcome(self, taken: Taken, entry: Claim, result: Replaced) -> None:
        size = entry.stat.st_size
        if result.reason:
            self._drop(taken, entry, Outcome(result.path, "protected", result.reason, size))
        else:
            taken.claims.append(entry)
            taken.outcomes.append(Outcome(result.path, "placeholder", "", size))

    def _drop(self, taken: Taken, entry: Claim, outcome: Outcome) -> None:
        entry.close()
        taken.outcomes.append(outcome)

    def _known(
        self, folder: int, paths: Sequence[bytes]
    ) -> tuple[dict[bytes, FileRow], dict[int, bytes]]:
        def look(db: sqlite3.Connection) -> tuple[dict[bytes, FileRow], dict[int, bytes]]:
            rows = files.get_many(db, folder, paths)
            return rows, files.manifests(db, [row.id for row in rows.values()])

        return self._catalog.view(look)

    def _earlier(self, row: FileRow | None, manifests: Mapping[int, bytes]) -> _Earlier | None:
        """The version that the catalog has at this path; a deleted one starts anew."""
        if row is None or row.state == State.DELETED or row.id not in manifests:
            return None
        raw = manifests[row.id]
        try:
            return _Earlier(raw, open_manifest(raw, self._ring()))
        except P2PStoreError as exc:
            log.warning("The recorded manifest of %s is unreadable: %s", os.fsdecode(row.path), exc)
            return None

    def _is_same(self, old: _Earlier, new: Protected) -> bool:
        """Same content in the very same blocks, same mode, times and attributes.

        The new version would say what the old one says.
        """
        before = old.opened.manifest
        if before.hash != new.hash or _places(before.chunks) != _places(new.chunks):
            return False
        meta = open_manifest(new.manifest, self._ring()).manifest.meta
        return msgspec.structs.replace(meta, name=before.meta.name) == before.meta

    def _row(
        self, folder: int, entry: Claim, protected: Protected, row: FileRow | None, reason: str
    ) -> FileRow:
        """The catalog row of the new version; what it keeps of the old one is its past."""
        stat = entry.stat
        edited = row is not None and row.hash != protected.hash and row.hash != b""
        return FileRow(
            folder=folder,
            path=protected.path,
            state=State.PROTECTED,
            reason=reason,
            file_id=protected.file_id,
            version=encode_version(protected.vector),
            hash=protected.hash,
            file_size=protected.size,
            size=stat.st_size,
            ino=stat.st_ino,
            mtime_ns=mtime_ns_of(stat),
            ctime_ns=stat.st_ctime_ns,
            stored_bytes=protected.stored,
            replaced_before=0 if row is None else row.replaced_before,
            last_use=self._now_ms() if edited else 0 if row is None else row.last_use,
            pinned=0 if row is None else row.pinned,
            manifest_ref=_encode(protected.place),
        )

    def _placeholder_of(self, root: Root, row: FileRow | None) -> _There | None:
        """The `.f` beside the path, when it is a version of this very file; any other is not ours.

        What it says decides, not what was recorded: a placement that failed half way may have
        left the earlier version's `.f` beside a row that no longer speaks of it.
        """
        if row is None or not row.file_id:
            return None
        try:
            fd = root.open(row.path + SUFFIX, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            identity, raw = Identity.of(os.fstat(fd)), os.read(fd, MAX_READ + 1)
            manifest = open_manifest(raw, self._ring()).manifest
        except (OSError, P2PStoreError):
            return None
        finally:
            os.close(fd)
        return _There(identity, raw) if manifest.file_id == row.file_id else None

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)


class _Earlier(NamedTuple):
    raw: bytes
    opened: Opened


class _There(NamedTuple):
    """The placeholder of an earlier version, as it lies on the disk."""

    identity: Identity
    raw: bytes


class _Recorded(NamedTuple):
    """What the catalog says of a file of this batch from now on."""

    row: int
    manifest: bytes
    is_same: bool  # the version that it had is still the one
    file_id: FileId


def encode_version(vector: Mapping[NodeId, int]) -> bytes:
    """As the catalog keeps it; equal vectors have equal bytes."""
    return _encode(vector if len(vector) == 1 else dict(sorted(vector.items())))


def decode_version(raw: bytes) -> dict[NodeId, int]:
    return msgspec.msgpack.decode(raw, type=dict[NodeId, int]) if raw else {}


def _places(chunks: ChunkList) -> list[tuple[bytes, bytes, bytes]]:
    # The list of a large file is itself blocks, named by their content: equal ids, equal lists.
    return [
        (e.block, e.key, b"" if chunks.depth else chunks.bundles[e.table].bundle_id)
        for e in chunks.entries
    ]


def _follows(row: FileRow | None, earlier: _Earlier | None) -> Version | None:
    """What the new content is the next version of; after a deletion a new file, not a lower one."""
    if earlier is not None:
        manifest = earlier.opened.manifest
        # A row may be of more than its manifest says: of a deletion that it came back from.
        known = decode_version(row.version) if row is not None else {}
        version = merge_versions(manifest.version, known)
        return Version(manifest.file_id, version, manifest_hash(earlier.raw))
    if row is not None and row.state == State.DELETED:
        return Version(FileId(os.urandom(16)), decode_version(row.version), b"")
    return None


def _intake(entry: Claim, follows: Version | None, advance: Callable[[int], None] | None) -> Intake:
    stat = entry.stat
    return Intake(
        entry.path,
        entry.fd,
        stat,
        (_user(stat.st_uid), _group(stat.st_gid)),
        _attributes(entry.fd),
        follows,
        advance,
    )


@lru_cache(maxsize=256)
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@lru_cache(maxsize=256)
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def _attributes(fd: int) -> tuple[tuple[bytes, bytes], ...]:
    """User attributes and ACLs; a file system without them has none."""
    try:
        names = [os.fsencode(name) for name in os.listxattr(fd)]
    except OSError:
        return ()
    kept = [name for name in names if name.startswith(KEPT)]
    if not kept:
        return ()
    return sorted_xattrs((name, os.getxattr(fd, name)) for name in kept)


def _is_unchanged(entry: Claim) -> bool:
    """What was read is one state of the file: nobody wrote to it meanwhile."""
    if entry.leased or entry.phase is Phase.BROKEN:
        return entry.is_good()
    return Identity.of(os.fstat(entry.fd)) == Identity.of(entry.stat)


def _is_placeholder(entry: Claim) -> bool:
    if entry.stat.st_size > MAX_READ:
        return False
    return looks_like_manifest(os.pread(entry.fd, 64, 0))
