"""MEET: what lies in a folder and is no content of its own: placeholders, links, the rest.

A placeholder may be known, moved, copied in, or bear a name without `.f`; what it says decides,
never its name. Its row keeps the blocks alive that it needs. Runs in threads; each call ends when
the catalog has it all.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path

from p2pstore.content import (
    MAX_READ,
    Keyring,
    Manifest,
    looks_like_manifest,
    merge_versions,
    next_version,
    open_manifest,
)
from p2pstore.errors import P2PStoreError
from p2pstore.folders.reconcile import disk_name, still
from p2pstore.folders.references import bundles_named
from p2pstore.folders.taking import decode_version, encode_version
from p2pstore.ids import BlockId, BundleId, NodeId
from p2pstore.placement import SUFFIX, Directories, Root, read_placeholder
from p2pstore.store import (
    BundleMissing,
    BundleStore,
    Catalog,
    FileRow,
    State,
    blocks,
    files,
    merged,
)
from p2pstore.watch import OpenWatcher, Seen

log = logging.getLogger(__name__)

BATCH = 500  # placeholders that are recorded together
MISNAMED = "a placeholder without .f at the end of its name"


class Meeting:
    """Makes rows of what is met in one folder."""

    def __init__(
        self,
        *,
        path: Path,
        row: int,
        catalog: Catalog,
        store: BundleStore,
        opens: OpenWatcher,
        ring: Callable[[], Keyring],
        me: NodeId,
    ) -> None:
        self._path = os.fsencode(path) + b"/"
        self._folder = row
        self._catalog = catalog
        self._store = store
        self._opens = opens
        self._ring = ring
        self._me = me

    def placeholders(self, root: Root, found: Sequence[Seen]) -> tuple[list[bytes], list[Seen]]:
        """Small `.f` files that the catalog has not so: ours, moved, copied - or somebody's own.

        Returns the logical paths that were met, and those that are ordinary files.
        """
        met: list[bytes] = []
        ordinary: list[Seen] = []
        for start in range(0, len(found), BATCH):
            self._batch(root, found[start : start + BATCH], met, ordinary)
        return met, ordinary

    def _batch(
        self, root: Root, found: Sequence[Seen], met: list[bytes], ordinary: list[Seen]
    ) -> None:
        """The catalog makes what is under way at once durable together: a commit for each of
        thousands of placeholders that came at once would keep the disk busy for minutes."""
        under_way: list[Future[None]] = []
        try:
            with Directories(root) as directories:
                for seen in found:
                    self._opens.mark_own(self._path + seen.path)
                    try:
                        directory, name = directories.parent(seen.path)
                        raw = read_placeholder(directory, name, MAX_READ + 1)
                    except OSError:
                        continue  # gone again, or unreadable: the next look tells
                    if not looks_like_manifest(raw):
                        ordinary.append(seen)
                    elif (change := self._placeholder(root, seen, raw)) is not None:
                        under_way.append(change)
                        met.append(seen.path.removesuffix(SUFFIX))
        finally:
            wait(under_way)  # they look at the disk through `root`, which may be closed afterwards
        for change in under_way:
            change.result()

    def _placeholder(self, root: Root, seen: Seen, raw: bytes) -> Future[None] | None:
        """The change that records it; None when it cannot be read."""
        path = seen.path.removesuffix(SUFFIX)
        manifest = self._manifest(seen.path, raw)
        if manifest is None:
            return None
        on_disk = (seen.ino, seen.size, seen.mtime_ns, seen.ctime_ns)
        named = bundles_named(manifest, self._read)

        def meet(db: sqlite3.Connection) -> None:
            row = files.get(db, self._folder, path)
            if row is not None and row.state != State.DELETED and row.file_id == manifest.file_id:
                if row.state == State.PLACEHOLDER or still(root, [path]).get(path) is None:
                    files.set_on_disk(db, [(row.id, State.PLACEHOLDER, *on_disk)])
                return
            if row is not None and row.state not in (State.DELETED, State.PENDING):
                return  # another file lives here; the `.f` beside it is not its version
            for other in files.by_file_id(db, self._folder, manifest.file_id):
                name = disk_name(other.path, other.state)
                if other.state == State.PLACEHOLDER and not still(root, [name]):
                    files.rename(db, other.id, path)
                    files.set_on_disk(db, [(other.id, State.PLACEHOLDER, *on_disk)])
                    return
            base = plain_row(self._folder, seen, State.PLACEHOLDER, "")._replace(path=path)
            self._put(db, base, manifest, raw, named, before=row)

        return self._catalog.write(meet)

    def misnamed(self, root: Root, path: bytes) -> bool:
        """A placeholder under a name without `.f`: known as what it is, never taken as content.

        Its row brings the file back under that name. False when it is not there, or unreadable.
        """
        seen = still(root, [path]).get(path)
        if seen is None:
            return False
        try:
            fd = root.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        with os.fdopen(fd, "rb") as file:
            raw = file.read(MAX_READ + 1)
        manifest = self._manifest(path, raw)
        if manifest is None:
            row = plain_row(self._folder, seen, State.SKIPPED, "a placeholder that cannot be read")
            self._catalog.write(lambda db: files.upsert_many(db, [row])).result()
            return False
        named = bundles_named(manifest, self._read)

        def meet(db: sqlite3.Connection) -> None:
            for other in files.by_file_id(db, self._folder, manifest.file_id):
                if other.path != path and not still(root, [disk_name(other.path, other.state)]):
                    files.rename(db, other.id, path)
                    break
            there = files.get(db, self._folder, path)
            base = there or plain_row(self._folder, seen, State.CONFLICT, MISNAMED)
            base = base._replace(
                state=State.CONFLICT,
                reason=MISNAMED,
                size=seen.size,
                ino=seen.ino,
                mtime_ns=seen.mtime_ns,
                ctime_ns=seen.ctime_ns,
            )
            self._put(db, base, manifest, raw, named, before=there)

        self._catalog.write(meet).result()
        return True

    def others(self, root: Root, links: Sequence[Seen], others: Sequence[Seen]) -> None:
        """Links are recorded as links; sockets, devices and FIFOs are skipped."""
        rows = [plain_row(self._folder, seen, State.SKIPPED, "no regular file") for seen in others]
        with Directories(root) as directories:
            for seen in links:
                try:
                    directory, name = directories.parent(seen.path)
                    target = os.readlink(name, dir_fd=directory)
                except OSError:
                    continue
                row = plain_row(self._folder, seen, State.PROTECTED, "a link")
                rows.append(row._replace(kind=files.Kind.LINK, target=target))
        self._catalog.write(lambda db: files.upsert_many(db, rows)).result()

    def _manifest(self, path: bytes, raw: bytes) -> Manifest | None:
        try:
            return open_manifest(raw, self._ring()).manifest
        except P2PStoreError as exc:
            log.warning("%s is a damaged placeholder: %s", os.fsdecode(path), exc)
            return None

    def _read(self, bundle_id: BundleId, block_id: BlockId) -> bytes:
        """A block of ours that lies here; the bundle that names it may have been merged since."""
        try:
            return self._store.read_blocks(bundle_id, [block_id])[block_id]
        except (BundleMissing, KeyError):
            rows = self._catalog.view(lambda db: merged.where(db, [bundle_id]))
            found = {}
            if bundle_id in rows:
                found = self._store.read_blocks(rows[bundle_id].bundle_id, [block_id])
            if block_id not in found:
                raise BundleMissing(bundle_id, "does not hold that block here") from None
            return found[block_id]

    def _put(
        self,
        db: sqlite3.Connection,
        base: FileRow,
        manifest: Manifest,
        raw: bytes,
        named: set[BundleId],
        *,
        before: FileRow | None,
    ) -> None:
        """The row says what the manifest says, and refers to every bundle that is known of it.

        In the place of a deletion it is newer than that: others hear that the file is back.
        """
        version = manifest.version
        if before is not None and before.state == State.DELETED:
            version = merge_versions(version, decode_version(before.version))
            version = next_version(version, self._me)
        row = base._replace(
            file_id=manifest.file_id,
            version=encode_version(version),
            hash=manifest.hash,
            file_size=manifest.meta.size,
            replaced_before=1,
        )
        (number,) = files.upsert_many(db, [row], [raw])
        known = merged.where(db, sorted(named)).values()
        kept = blocks.bundles_of_file(db, number)
        blocks.set_file_bundles(db, [(number, {row.id for row in (*known, *kept)})])


def plain_row(folder: int, seen: Seen, state: str, reason: str) -> FileRow:
    """A row that says what lies there, and nothing of its content."""
    return FileRow(
        folder=folder,
        path=seen.path,
        state=state,
        reason=reason,
        file_size=seen.size,
        size=seen.size,
        ino=seen.ino,
        mtime_ns=seen.mtime_ns,
        ctime_ns=seen.ctime_ns,
    )
