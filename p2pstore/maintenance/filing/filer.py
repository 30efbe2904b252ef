"""Of each path the newest trusted manifest wins; what lies on the disk says the state."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import msgspec

from p2pstore.content import (
    MAX_SIZE,
    BundleRef,
    IndexLine,
    Keyring,
    Kind,
    Manifest,
    Opened,
    Relation,
    compare_versions,
    decode_lines,
    merge_versions,
    open_manifest,
    safe_path,
    walk,
)
from p2pstore.errors import P2PStoreError
from p2pstore.ids import BundleId, NodeId, PublicKey
from p2pstore.ingest import Author
from p2pstore.maintenance.filing.comparing import Chunk, Comparing
from p2pstore.maintenance.filing.disk import NO_IDENTITY, Disk
from p2pstore.maintenance.filing.local import Local, Place
from p2pstore.maintenance.filing.references import Housing, Needs
from p2pstore.maintenance.filing.rows import (
    VERSION,
    Earlier,
    Filed,
    Report,
    Rows,
    encoded,
    place_in,
)
from p2pstore.placement import SUFFIX
from p2pstore.store import Catalog, FileRow, State, blocks, files, merged

log = logging.getLogger(__name__)

Judge = Callable[[PublicKey, bytes], bool]

BATCH = 500  # files of one catalog change
IN_WORK = "in work"  # the reason under which `folders` looks again when `keep` has passed


class Found(NamedTuple):
    """A file that something trusted speaks of."""

    path: bytes
    raw: bytes
    opened: Opened
    version: Mapping[NodeId, int]
    place: Place | None  # of the manifest's own block


class Filer:
    """Files the folders of one catalog. One thread at a time."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        local: Local,
        author: Author,
        ring: Keyring,
        judge: Judge,
        now_ms: int,
        report: Report,
        guessed: set[BundleId] | None = None,
    ) -> None:
        """`guessed`: bundles whose tag and folder the rows do not know for certain yet."""
        self.untrusted = 0
        self.node_id = author.node_id
        self._unread_lines = 0
        self._catalog = catalog
        self._local = local
        self._me = PublicKey(bytes(author.key.verify_key))
        self._ring = ring
        self._judge = judge
        self._now_ms = now_ms
        self._needs = Needs(local)
        self.comparing = Comparing(local, ring.dedup)
        self.rows = Rows(
            catalog=catalog,
            store=local.store,
            ring=ring,
            me=self._me,
            now_ms=now_ms,
            report=report,
            guessed=guessed if guessed is not None else set(),
        )
        self._housing = Housing(
            catalog=catalog,
            local=local,
            author=author,
            ring=ring,
            now_ms=now_ms,
            adopt=self.rows.adopt,
        )

    def miss(self, count: int = 1) -> None:
        """So many lines could not be filed: this list must be read again."""
        self._unread_lines += count

    @property
    def unread(self) -> int:
        """Lines, lists and indexes that could not be read."""
        return self._unread_lines + self._needs.unread

    def trusts(self, signer: PublicKey, chain: bytes) -> bool:
        """A device of the group, or this one: an expelled device still reads what it has."""
        return signer == self._me or self._judge(signer, chain)

    # -- indexes ----------------------------------------------------------------------------------

    def index(self, folder: int, disk: Disk, manifest: Manifest, *, of_this_device: bool) -> bool:
        """File all lines of an index; False when not all of it could be read here."""
        before = self.unread
        lines = self.lines(manifest)
        while batch := list(islice(lines, BATCH)):
            self._file_lines(folder, disk, batch, of_this_device=of_this_device)
        return self.unread == before

    def lines(self, manifest: Manifest) -> Iterator[IndexLine]:
        def contents() -> Iterator[bytes]:
            for _, ref, entry in walk(manifest.chunks, self._local.load):
                yield self._local.load(ref, entry)

        try:
            yield from decode_lines(contents())
        except P2PStoreError as exc:
            log.warning("An index cannot be read to its end here: %s", exc)
            self.miss()

    def _file_lines(
        self, folder: int, disk: Disk, lines: Sequence[IndexLine], *, of_this_device: bool
    ) -> None:
        raws = self.manifests(lines)
        filed: list[Filed] = []
        for line in lines:
            if line.kind == "file":
                found = self.found(line, raws.get(line.path))
                if found is None:
                    self.miss()
                elif of_this_device or disk.is_there(line.path):
                    filed.append(self.file(folder, disk, found))
            elif of_this_device:
                # What another device says of links and deletions is not yet done here.
                filed.append(self.mark(folder, disk, line, raws.get(line.path)))
        self.rows.write(filed)

    def manifests(self, lines: Sequence[IndexLine]) -> dict[bytes, bytes | None]:
        """Path -> the manifest that its line names; None when it is not to be had."""
        named = [(line, (line.ref, line.entry)) for line in lines if line.ref and line.entry]
        payloads = self._local.load_many([(r, e) for _, (r, e) in named if r and e])
        return {line.path: raw for (line, _), raw in zip(named, payloads, strict=True)}

    def found(self, line: IndexLine, raw: bytes | None) -> Found | None:
        """The manifest that a trusted index names: its signer may have been revoked since."""
        if raw is None or line.ref is None or line.entry is None:
            return None
        try:
            opened = open_manifest(raw, self._ring)
        except P2PStoreError:
            return None
        if opened.manifest.file_id != line.file_id or opened.manifest.kind != "file":
            return None
        return Found(line.path, raw, opened, line.version, (line.ref, line.entry))

    def mark(self, folder: int, disk: Disk, line: IndexLine, raw: bytes | None) -> Filed:
        """A link as it is now, or as it was, or the mark of a deletion."""
        if line.kind == "link":
            there, target = disk.link(line.path) or (NO_IDENTITY, line.target)
            row = FileRow(
                folder,
                line.path,
                State.PROTECTED,
                "a link",
                kind=files.Kind.LINK,
                target=target,
                file_size=there.size,
                size=there.size,
                ino=there.ino,
                mtime_ns=there.mtime_ns,
                ctime_ns=there.ctime_ns,
            )
            return Filed(row, b"", {}, {}, True, ())
        dot = self._trusted_placeholder(disk, line.path)
        if dot is not None and dot.opened.manifest.file_id == line.file_id:
            # It came back after the deletion was written down.
            version = merge_versions(dot.version, line.version)
            return self.file(folder, disk, dot._replace(version=version))
        found = self.found(line, raw)
        references = self._needs.of(found.opened.manifest, found.place) if found else {}
        row = FileRow(
            folder,
            line.path,
            State.DELETED,
            kind=files.Kind.DELETED,
            file_id=line.file_id,
            version=encoded(line.version),
            last_use=self._now_ms,
            manifest_ref=msgspec.msgpack.encode(found.place) if found is not None else b"",
        )
        raw = found.raw if found is not None else b""
        return Filed(row, raw, line.version, references, self._is_own(found), (), True)

    def lists_again(self, folder: int) -> None:
        """Refer to what the lists of large files name that could not be read before."""
        for row in self._catalog.view(lambda db: list(files.walk(db, folder))):
            raw = self._catalog.view(partial(_manifest, row.id))
            if raw is None:
                continue
            opened = open_manifest(raw, self._ring, is_recorded=True)
            if not opened.manifest.chunks.depth:
                continue
            references = self._needs.of(opened.manifest, place_in(row))
            own = opened.signer == self._me
            version = VERSION.decode(row.version)
            one = Filed(row, b"", version, references, own, ())
            self.rows.write([one])

    # -- placeholders -----------------------------------------------------------------------------

    def placeholders(self, folder: int, disk: Disk) -> int:
        """File the `.f` that no index speaks of: new ones, moved ones, copies; how many."""
        names = [n for n, s in disk.seen.items() if n.endswith(SUFFIX) and s.size <= MAX_SIZE]
        lost = self._catalog.view(lambda db: _not_on_disk(db, folder))
        total = 0
        for start in range(0, len(names), BATCH):
            paths = [name.removesuffix(SUFFIX) for name in names[start : start + BATCH]]
            total += self._file_placeholders(folder, disk, paths, lost)
        return total

    def _file_placeholders(
        self, folder: int, disk: Disk, paths: Sequence[bytes], lost: dict[bytes, FileRow]
    ) -> int:
        known = self._catalog.view(lambda db: files.get_many(db, folder, paths))
        filed: list[Filed] = []
        moved: list[tuple[FileRow, bytes]] = []
        for path in paths:
            row = known.get(path)
            if row is not None and row.state != State.DELETED:
                continue
            found = self._trusted_placeholder(disk, path)
            if found is None:
                continue
            old = lost.pop(found.opened.manifest.file_id, None)
            if old is not None:
                # It was moved; what the index knows of it goes along.
                moved.append((old, path))
                found = found._replace(
                    version=merge_versions(found.version, VERSION.decode(old.version)),
                    place=place_in(old) if self._has_manifest(old, found.raw) else None,
                )
            if row is not None and row.version:
                found = found._replace(
                    version=merge_versions(found.version, VERSION.decode(row.version))
                )
            filed.append(self.file(folder, disk, found, anew=True))
        if moved:
            self._catalog.write(partial(_move, moved)).result()
        self.rows.write(self._housed(filed))
        return len(filed)

    def _has_manifest(self, row: FileRow, raw: bytes) -> bool:
        return self._catalog.view(lambda db: files.manifest(db, row.id)) == raw

    def hydrated(self, folder: int, disk: Disk) -> int:
        """File originals that came back before any index named them; how many.

        Only the `.f` in the folder's trash speaks of such a one: it would be a new file otherwise.
        """
        raws = {path: raw for path, raw in disk.trashed().items() if disk.original(path)}
        known = self._catalog.view(lambda db: files.get_many(db, folder, list(raws)))
        found = [self._trusted(path, raw) for path, raw in raws.items() if path not in known]
        filed = [self.file(folder, disk, one) for one in found if one is not None]
        self.rows.write(self._housed(filed))
        return len(filed)

    def _trusted_placeholder(self, disk: Disk, path: bytes) -> Found | None:
        raw = disk.placeholder(path)
        return None if raw is None else self._trusted(path, raw)

    def _trusted(self, path: bytes, raw: bytes) -> Found | None:
        try:
            opened = open_manifest(raw, self._ring)
        except P2PStoreError as exc:
            log.warning("%s is a damaged placeholder: %s", os.fsdecode(path + SUFFIX), exc)
            return None
        if not self.trusts(opened.signer, opened.chain):
            self.untrusted += 1
            return None
        if opened.manifest.kind != "file":
            return None
        return Found(path, raw, opened, opened.manifest.version, None)

    def _housed(self, filed: Sequence[Filed]) -> list[Filed]:
        """With a place for every manifest: an index can only name what lies in a bundle."""
        housed: list[Filed] = []
        homeless: list[Filed] = []
        for one in filed:
            place = None if one.row.manifest_ref else self._housing.place_of(one.raw)
            if place is not None:
                one = one.at(place)
            (housed if one.row.manifest_ref else homeless).append(one)
        places = self._housing.house([one.raw for one in homeless]) if homeless else []
        if places is None:
            return housed + homeless
        return housed + [one.at(place) for one, place in zip(homeless, places, strict=True)]

    # -- one file ---------------------------------------------------------------------------------

    def file(self, folder: int, disk: Disk, found: Found, *, anew: bool = False) -> Filed:
        """What the path becomes, from the newest that speaks of it and from what lies there."""
        path = found.path
        beside = found if anew else self.beside(disk, found)
        if beside is not None and not anew:
            file_id, other = found.opened.manifest.file_id, beside.opened.manifest.file_id
            relation = compare_versions(beside.version, found.version)
            if other == file_id and relation is Relation.NEWER:
                found = beside
            elif other != file_id and disk.original(path) is None:
                found = beside  # another file's placeholder is what lies here
        manifest = found.opened.manifest
        row = FileRow(
            folder=folder,
            path=path,
            state=State.PLACEHOLDER,
            file_id=manifest.file_id,
            version=encoded(found.version),
            hash=manifest.hash,
            file_size=manifest.meta.size,
            replaced_before=1,
            manifest_ref=b"" if found.place is None else msgspec.msgpack.encode(found.place),
        )
        original = disk.original(path)
        dot = disk.seen.get(path + SUFFIX) if beside is not None else None
        chunks: Sequence[Chunk] | None = None
        there = dot or NO_IDENTITY
        if original is not None:
            chunks = self.comparing.compare(disk, original, manifest)
            if chunks is not None or dot is None or beside is None or not _same_file(beside, found):
                there = original if chunks is not None else NO_IDENTITY
                row = row._replace(state=State.PROTECTED, reason=IN_WORK, last_use=self._now_ms)
        if row.state == State.PLACEHOLDER and beside is not None and beside.raw != found.raw:
            row = row._replace(reason=files.OLD_DOT)
        row = row._replace(
            size=there.size, ino=there.ino, mtime_ns=there.mtime_ns, ctime_ns=there.ctime_ns
        )
        references = self._needs.of(manifest, found.place)
        return Filed(row, found.raw, found.version, references, self._is_own(found), chunks or ())

    def beside(self, disk: Disk, found: Found) -> Found | None:
        """The placeholder at the path; cheap when it is the one that the index names."""
        raw = disk.placeholder(found.path)
        if raw is None:
            return None
        return found if raw == found.raw else self._trusted_placeholder(disk, found.path)

    def _is_own(self, found: Found | None) -> bool:
        """Every device seals what it protects into its own bundles."""
        return found is not None and found.opened.signer == self._me

    def root(self, folder: int, name: str, manifest: Manifest, raw: bytes) -> None:
        """Keep the bundles of an index alive under `name`."""
        references = self._needs.of(manifest, self._housing.place_of(raw))
        self._catalog.write(
            lambda db: blocks.set_root(
                db, name, self.rows.bundles(db, folder, references, own=True)
            )
        ).result()

    def earlier(self, db: sqlite3.Connection, folder: int, old: Earlier) -> None:
        """Take an earlier version over into the history, if its manifest is the group's."""
        try:
            path = safe_path(old.path)
            opened = open_manifest(old.manifest, self._ring)
            VERSION.decode(old.version)
        except (P2PStoreError, msgspec.MsgspecError):
            return
        if not self.trusts(opened.signer, opened.chain):
            return
        place = self._housing.place_in(db, old.manifest)
        references = dict(self._needs.of(opened.manifest, place))
        for row in merged.where(db, old.meta).values():
            if row.kind == Kind.META:
                references[row.bundle_id] = BundleRef(row.bundle_id, row.tag), Kind.META
        own = opened.signer == self._me
        self.rows.earlier(db, folder, old._replace(path=path), opened.manifest, references, own)


def _same_file(a: Found, b: Found) -> bool:
    return a.opened.manifest.file_id == b.opened.manifest.file_id


def _manifest(file: int, db: sqlite3.Connection) -> bytes | None:
    return files.manifest(db, file)


def _move(moved: Sequence[tuple[FileRow, bytes]], db: sqlite3.Connection) -> None:
    for row, path in moved:
        files.rename(db, row.id, path)


def _not_on_disk(db: sqlite3.Connection, folder: int) -> dict[bytes, FileRow]:
    """File id -> row of what an index has and nothing on the disk stands for."""
    rows = files.walk(db, folder, states=(State.PLACEHOLDER,))
    return {bytes(row.file_id): row for row in rows if not row.ino}
