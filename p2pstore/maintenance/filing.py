"""FILING: what indexes and placeholders say of a folder becomes catalog rows.

The part of a rebuild that looks at files, and holds them against the disk. Of each path the newest
trusted manifest wins, whether an index or the `.f` on disk has it; a version is never lowered. What
lies on the disk says the state:

    original, content as the manifest says     protected, and in work: used now
    original, another content, beside its `.f`  the `.f`; the scan meets a newer file beside it
    original, another content                  protected, with an identity that the scan corrects
    `.f`                                       placeholder
    nothing                                    placeholder of no identity: the scan finds it gone

Bundles that are named and are not here get a row in state LOST, until a holder says that it has
them. Everything blocks; it is meant for a thread.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat as stat_module
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

from p2pstore.content import (
    MAX_READ,
    MAX_SIZE,
    BundleHeader,
    BundleRef,
    ChunkList,
    Entry,
    IndexLine,
    Keyring,
    Kind,
    Manifest,
    Opened,
    Relation,
    SealedBlock,
    Sealer,
    Unsealer,
    bundle_tag,
    child_list,
    children,
    compare_versions,
    decode_lines,
    dedup_key,
    epoch_of,
    looks_like_manifest,
    merge_versions,
    open_manifest,
    safe_path,
    walk,
)
from p2pstore.errors import IntegrityError, NoRoom, P2PStoreError, Unavailable
from p2pstore.home import WatchedFolder
from p2pstore.ids import BlockId, BundleId, Epoch, FolderId, NodeId, PublicKey, Tag
from p2pstore.ingest import Author
from p2pstore.placement import SUFFIX, Root
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
)
from p2pstore.watch import Seen, Unread, scan

log = logging.getLogger(__name__)

Judge = Callable[[PublicKey, bytes], bool]
Place = tuple[BundleRef, Entry]
Report = Callable[[int], None]
"""Called with the number of files filed so far."""

BATCH = 500  # files of one catalog change
IN_WORK = "in work"  # the reason under which `folders` looks again when `keep` has passed
_PIECE = 1 << 20
_NO_IDENTITY = Seen(b"", 0, 0, 0, 0, 0, 0, 0, 0)
_VERSION = msgspec.msgpack.Decoder(dict[NodeId, int])


class Local:
    """Payloads of meta blocks from the bundles of this disk, wherever a block lies."""

    def __init__(self, store: BundleStore, meta: Sequence[BundleId]) -> None:
        self.store = store
        self._meta = list(meta)
        self._places: dict[BlockId, BundleId] | None = None
        self._unseal = Unsealer().unseal

    def load(self, ref: BundleRef, entry: Entry) -> bytes:
        """Unavailable when it is nowhere, or not what it should be wherever it is."""
        (payload,) = self.load_many([(ref, entry)])
        if payload is None:
            raise Unavailable(f"A block of bundle {ref.bundle_id.hex()[:12]} is not here.")
        return payload

    def load_many(self, places: Sequence[Place]) -> list[bytes | None]:
        """None for each that is not here or is damaged."""
        wanted: dict[BundleId, list[BlockId]] = {}
        for ref, entry in places:
            wanted.setdefault(ref.bundle_id, []).append(entry.block)
        found: dict[BlockId, bytes] = {}
        for bundle_id, ids in wanted.items():
            found.update(self._read(bundle_id, ids))
        self.find_missing(places, found)
        return [self._payload(entry, found.get(entry.block)) for _, entry in places]

    def find_missing(self, places: Sequence[Place], found: dict[BlockId, bytes]) -> None:
        """Add to `found` what the bundles that were named do not have: bundle ids are hints."""
        for _, entry in places:
            if entry.block not in found:
                there = self.where(entry.block)
                if there is not None:
                    found.update(self._read(there, [entry.block]))

    def where(self, block_id: BlockId) -> BundleId | None:
        """The meta bundle here that lists the block."""
        if self._places is None:
            self._places = {}
            for bundle_id in self._meta:
                for entry in self.store.index(bundle_id).blocks.entries:
                    self._places[entry.block_id] = bundle_id
        return self._places.get(block_id)

    def added(self, bundle_id: BundleId) -> None:
        """One more meta bundle lies here now."""
        self._meta.append(bundle_id)
        self._places = None

    def _read(self, bundle_id: BundleId, ids: Sequence[BlockId]) -> Mapping[BlockId, bytes]:
        try:
            return self.store.read_blocks(bundle_id, ids)
        except (Unavailable, IntegrityError):
            if len(ids) == 1:
                return {}
        found: dict[BlockId, bytes] = {}
        for block_id in ids:  # one damaged block takes no other with it
            found.update(self._read(bundle_id, [block_id]))
        return found

    def _payload(self, entry: Entry, block: bytes | None) -> bytes | None:
        if block is None:
            return None
        try:
            payload = self._unseal(block, entry.key)[entry.offset : entry.offset + entry.length]
        except P2PStoreError:
            return None
        return payload if len(payload) == entry.length else None


class Disk:
    """What lies in one watched folder now. `root` is None when the folder is not there."""

    def __init__(self, entry: WatchedFolder) -> None:
        self.root: Root | None = None
        self.seen: dict[bytes, Seen] = {}  # regular files
        self.links: dict[bytes, Seen] = {}
        path, folder_id = Path(entry.path), FolderId(entry.folder_id)
        if Root.marker(path) != folder_id.hex():
            return
        try:
            self.root = Root(path, folder_id)
            for seen in scan(self.root.fd):
                if isinstance(seen, Unread):
                    log.warning(
                        "%s/%s cannot be read: %s", path, os.fsdecode(seen.path), seen.error
                    )
                elif stat_module.S_ISREG(seen.mode):
                    self.seen[seen.path] = seen
                elif stat_module.S_ISLNK(seen.mode):
                    self.links[seen.path] = seen
        except (Unavailable, OSError) as exc:
            log.warning("%s cannot be looked at: %s", path, exc)

    def close(self) -> None:
        if self.root is not None:
            self.root.close()
            self.root = None

    def open(self, path: bytes) -> int:
        if self.root is None:
            raise FileNotFoundError(path)
        return self.root.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def link(self, path: bytes) -> tuple[Seen, bytes] | None:
        """A symbolic link at the path, and what it says."""
        seen = self.links.get(path)
        if seen is None or self.root is None:
            return None
        try:
            fd = self.root.open(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return seen, os.readlink(b"", dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)

    def start_of(self, path: bytes, size: int) -> bytes:
        """The first bytes; empty when it cannot be read."""
        try:
            fd = self.open(path)
        except OSError:
            return b""
        try:
            return os.pread(fd, size, 0)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def placeholder(self, path: bytes) -> bytes | None:
        """What lies at `path` + `.f`, when it begins as a placeholder does."""
        seen = self.seen.get(path + SUFFIX)
        if seen is None or seen.size > MAX_READ:
            return None
        raw = self.start_of(path + SUFFIX, MAX_READ + 1)
        return raw if looks_like_manifest(raw) else None

    def original(self, path: bytes) -> Seen | None:
        """A regular file under the very name, unless it is a placeholder itself."""
        seen = self.seen.get(path)
        if seen is None or (seen.size <= MAX_READ and looks_like_manifest(self.start_of(path, 64))):
            return None
        return seen


class Found(NamedTuple):
    """A file that something trusted speaks of."""

    path: bytes
    raw: bytes
    opened: Opened
    version: Mapping[NodeId, int]
    place: Place | None  # of the manifest's own block


class Earlier(NamedTuple):
    """A row of the history as an old catalog gives it."""

    path: bytes
    manifest: bytes
    version: bytes
    ended_at: int
    why: str


class _Filed(NamedTuple):
    """What one path becomes."""

    row: FileRow
    raw: bytes
    version: Mapping[NodeId, int]
    references: Mapping[BundleId, tuple[BundleRef, Kind]]
    own: bool
    chunks: Sequence[_Chunk]
    retired: bool = False


class _Chunk(NamedTuple):
    """A chunk that was read from an original: what the dedup index wants to know."""

    bundle_id: BundleId
    entry: Entry
    fingerprint: bytes


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
        self.unread = 0  # lines, lists and indexes that could not be read
        self.untrusted = 0
        self._catalog = catalog
        self._local = local
        self._author = author
        self._me = PublicKey(bytes(author.key.verify_key))
        self.node_id = author.node_id
        self._ring = ring
        self._judge = judge
        self._now_ms = now_ms
        self._report = report
        self._guessed = guessed if guessed is not None else set()
        self._bundles = catalog.view(_bundle_rows)
        self._sealers: dict[Epoch, Sealer] = {}
        self._count = 0

    def trusts(self, signer: PublicKey, chain: bytes) -> bool:
        """A device of the group, or this one: an expelled device still reads what it has."""
        return signer == self._me or self._judge(signer, chain)

    # -- indexes ----------------------------------------------------------------------------------

    def index(self, folder: int, disk: Disk, manifest: Manifest, *, of_this_device: bool) -> bool:
        """File all lines of an index; False when not all of it could be read here."""
        before = self.unread
        lines = self._lines(manifest)
        while batch := list(islice(lines, BATCH)):
            self._file_lines(folder, disk, batch, of_this_device=of_this_device)
        return self.unread == before

    def _lines(self, manifest: Manifest) -> Iterator[IndexLine]:
        def contents() -> Iterator[bytes]:
            for _, ref, entry in walk(manifest.chunks, self._local.load):
                yield self._local.load(ref, entry)

        try:
            yield from decode_lines(contents())
        except P2PStoreError as exc:
            log.warning("An index cannot be read to its end here: %s", exc)
            self.unread += 1

    def _file_lines(
        self, folder: int, disk: Disk, lines: Sequence[IndexLine], *, of_this_device: bool
    ) -> None:
        named = [(line, (line.ref, line.entry)) for line in lines if line.ref and line.entry]
        payloads = self._local.load_many([(r, e) for _, (r, e) in named if r and e])
        raws = {line.path: raw for (line, _), raw in zip(named, payloads, strict=True)}
        filed: list[_Filed] = []
        for line in lines:
            if line.kind == "file":
                found = self._found(line, raws.get(line.path))
                if found is None:
                    self.unread += 1
                elif of_this_device or self._is_present(disk, line.path):
                    filed.append(self._file(folder, disk, found))
            elif of_this_device:
                # What another device says of links and deletions is not yet done here.
                filed.append(self._mark(folder, disk, line, raws.get(line.path)))
        self._write(filed)

    def _is_present(self, disk: Disk, path: bytes) -> bool:
        return path in disk.seen or path + SUFFIX in disk.seen

    def _found(self, line: IndexLine, raw: bytes | None) -> Found | None:
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

    def _mark(self, folder: int, disk: Disk, line: IndexLine, raw: bytes | None) -> _Filed:
        """A link as it is now, or as it was, or the mark of a deletion."""
        if line.kind == "link":
            there, target = disk.link(line.path) or (_NO_IDENTITY, line.target)
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
            return _Filed(row, b"", {}, {}, True, ())
        dot = self._trusted_placeholder(disk, line.path)
        if dot is not None and dot.opened.manifest.file_id == line.file_id:
            # It came back after the deletion was written down.
            version = merge_versions(dot.version, line.version)
            return self._file(folder, disk, dot._replace(version=version))
        found = self._found(line, raw)
        references = self._references(found.opened.manifest, found.place) if found else {}
        row = FileRow(
            folder,
            line.path,
            State.DELETED,
            kind=files.Kind.DELETED,
            file_id=line.file_id,
            version=_encoded(line.version),
            last_use=self._now_ms,
        )
        raw = found.raw if found is not None else b""
        return _Filed(row, raw, line.version, references, self._is_own(found), (), True)

    def lists_again(self, folder: int) -> None:
        """Refer to what the lists of large files name that could not be read before."""
        for row in self._catalog.view(lambda db: list(files.walk(db, folder))):
            raw = self._catalog.view(partial(_manifest, row.id))
            if raw is None:
                continue
            opened = open_manifest(raw, self._ring)
            if not opened.manifest.chunks.depth:
                continue
            references = self._references(opened.manifest, _place(row))
            own = opened.signer == self._me
            version = _VERSION.decode(row.version)
            one = _Filed(row, b"", version, references, own, ())
            self._catalog.write(partial(self._put_one, one)).result()

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
        filed: list[_Filed] = []
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
                    version=merge_versions(found.version, _VERSION.decode(old.version)),
                    place=_place(old) if self._has_manifest(old, found.raw) else None,
                )
            if row is not None and row.version:
                found = found._replace(
                    version=merge_versions(found.version, _VERSION.decode(row.version))
                )
            filed.append(self._file(folder, disk, found, anew=True))
        if moved:
            self._catalog.write(partial(_move, moved)).result()
        self._write(self._housed(filed))
        return len(filed)

    def _has_manifest(self, row: FileRow, raw: bytes) -> bool:
        return self._catalog.view(lambda db: files.manifest(db, row.id)) == raw

    def _trusted_placeholder(self, disk: Disk, path: bytes) -> Found | None:
        raw = disk.placeholder(path)
        if raw is None:
            return None
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

    def _housed(self, filed: Sequence[_Filed]) -> list[_Filed]:
        """With a place for every manifest: an index can only name what lies in a bundle."""
        housed: list[_Filed] = []
        homeless: list[_Filed] = []
        for one in filed:
            place = self._place_of(one.raw) if not one.row.manifest_ref else None
            if place is not None:
                housed.append(_at(one, place))
            else:
                (housed if one.row.manifest_ref else homeless).append(one)
        return housed + self._house(homeless)

    def _place_of(self, raw: bytes) -> Place | None:
        """Sealing the manifest again gives the id of its block, if it was ever stored."""
        return self._catalog.view(lambda db: self._place_in(db, raw))

    def _place_in(self, db: sqlite3.Connection, raw: bytes) -> Place | None:
        sealed = self._seal(raw)
        bundle_id = self._local.where(sealed.block_id)
        row = blocks.get_bundle(db, bundle_id) if bundle_id is not None else None
        if bundle_id is None or row is None:
            return None
        return BundleRef(bundle_id, row.tag), Entry(sealed.block_id, 0, sealed.key, 0, len(raw))

    def _seal(self, raw: bytes) -> SealedBlock:
        epoch = epoch_of(raw)
        if epoch not in self._sealers:
            self._sealers[epoch] = Sealer(self._ring[epoch].block)
        return self._sealers[epoch].seal(raw)

    def _house(self, filed: Sequence[_Filed]) -> list[_Filed]:
        """Store manifests that lie in no bundle here, as ingest would have done."""
        if not filed:
            return []
        sealed = [self._seal(one.raw) for one in filed]
        bundle_id = BundleId(os.urandom(32))
        header = BundleHeader(
            bundle_id=bundle_id,
            group=self._author.group,
            opener=self._me,
            kind=int(Kind.META),
            created_ms=self._now_ms,
        )
        store = self._local.store
        try:
            bundle = store.create(header, self._author.key)
            try:
                bundle.append(list({one.block_id: one for one in sealed}.values()))
                bundle.seal()
            except BaseException:
                bundle.abandon()
                raise
        except NoRoom as exc:
            log.warning("Manifests found in placeholders cannot be stored: %s", exc)
            return list(filed)
        ref = BundleRef(bundle_id, bundle_tag(self._ring.current.tag, bundle_id))
        places = [
            Entry(block.block_id, 0, block.key, 0, len(one.raw))
            for block, one in zip(sealed, filed, strict=True)
        ]
        store.drop_cache(bundle_id)
        self._local.added(bundle_id)
        read = self._local.load_many([(ref, entry) for entry in places])
        if read != [one.raw for one in filed]:
            raise IntegrityError("Manifests do not read back as they were written.")
        row = bundle_row(store, bundle_id, ref.tag, self._me)
        self._bundles[bundle_id] = self._catalog.write(
            lambda db: blocks.put_bundle(db, row)
        ).result()
        return [_at(one, (ref, entry)) for one, entry in zip(filed, places, strict=True)]

    # -- one file ---------------------------------------------------------------------------------

    def _file(self, folder: int, disk: Disk, found: Found, *, anew: bool = False) -> _Filed:
        """What the path becomes, from the newest that speaks of it and from what lies there."""
        path = found.path
        beside = found if anew else self._beside(disk, found)
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
            version=_encoded(found.version),
            hash=manifest.hash,
            file_size=manifest.meta.size,
            replaced_before=1,
            manifest_ref=b"" if found.place is None else msgspec.msgpack.encode(found.place),
        )
        original = disk.original(path)
        dot = disk.seen.get(path + SUFFIX) if beside is not None else None
        chunks: Sequence[_Chunk] | None = None
        there = dot or _NO_IDENTITY
        if original is not None:
            chunks = self._compare(disk, original, manifest)
            if chunks is not None or dot is None or beside is None or not _same_file(beside, found):
                there = original if chunks is not None else _NO_IDENTITY
                row = row._replace(state=State.PROTECTED, reason=IN_WORK, last_use=self._now_ms)
        row = row._replace(
            size=there.size, ino=there.ino, mtime_ns=there.mtime_ns, ctime_ns=there.ctime_ns
        )
        references = self._references(manifest, found.place)
        return _Filed(row, found.raw, found.version, references, self._is_own(found), chunks or ())

    def _beside(self, disk: Disk, found: Found) -> Found | None:
        """The placeholder at the path; cheap when it is the one that the index names."""
        raw = disk.placeholder(found.path)
        if raw is None:
            return None
        return found if raw == found.raw else self._trusted_placeholder(disk, found.path)

    def _is_own(self, found: Found | None) -> bool:
        """Every device seals what it protects into its own bundles."""
        return found is not None and found.opened.signer == self._me

    def _compare(self, disk: Disk, seen: Seen, manifest: Manifest) -> list[_Chunk] | None:
        """None unless the original holds just what the manifest says.

        Its chunks are fingerprinted on the way: the dedup index knows again what most likely
        changes next. The others stay unknown, which costs room and nothing else; to learn them
        every block here would have to be unsealed.
        """
        if seen.size != manifest.meta.size:
            return None
        try:
            fd = disk.open(seen.path)
        except OSError:
            return None
        try:
            if _identity(os.fstat(fd)) != _identity_seen(seen):
                return None
            digest, chunks = self._hash(fd, manifest)
            if digest != manifest.hash or _identity(os.fstat(fd)) != _identity_seen(seen):
                return None
            return chunks
        except OSError as exc:
            log.warning("%s cannot be read: %s", os.fsdecode(seen.path), exc)
            return None
        finally:
            os.close(fd)

    def _hash(self, fd: int, manifest: Manifest) -> tuple[bytes, list[_Chunk]]:
        if not manifest.meta.holes and manifest.meta.extra is None:
            try:
                return self._hash_chunks(fd, manifest)
            except P2PStoreError:
                pass  # its list is not here: the content can be compared all the same
        hasher, at = blake3(), 0
        while piece := os.pread(fd, _PIECE, at):
            hasher.update(piece)
            at += len(piece)
        return hasher.digest(), []

    def _hash_chunks(self, fd: int, manifest: Manifest) -> tuple[bytes, list[_Chunk]]:
        hasher = blake3()
        chunks: list[_Chunk] = []
        for position, ref, entry in walk(manifest.chunks, self._local.load):
            piece = os.pread(fd, entry.length, position)
            if len(piece) != entry.length:
                return b"", []
            hasher.update(piece)
            chunks.append(_Chunk(ref.bundle_id, entry, dedup_key(self._ring.dedup, piece)))
        return hasher.digest(), chunks

    def _references(
        self, manifest: Manifest, place: Place | None
    ) -> dict[BundleId, tuple[BundleRef, Kind]]:
        """Every bundle that the file needs; a list that cannot be read is counted as unread."""
        found: dict[BundleId, tuple[BundleRef, Kind]] = {}
        contents = Kind.META if manifest.kind == "index" else Kind.DATA

        def below(chunks: ChunkList) -> None:
            kind = Kind.META if chunks.depth else contents
            for ref in chunks.bundles:
                found.setdefault(ref.bundle_id, (ref, kind))
            if not chunks.depth:
                return
            for _, span, ref, entry in children(chunks):
                try:
                    below(child_list(chunks, span, self._local.load(ref, entry)))
                except P2PStoreError as exc:
                    log.warning("A chunk list cannot be read here: %s", exc)
                    self.unread += 1

        below(manifest.chunks)
        for extra in (place, manifest.meta.extra):
            if extra is not None:
                found.setdefault(extra[0].bundle_id, (extra[0], Kind.META))
        return found

    def root(self, folder: int, name: str, manifest: Manifest, raw: bytes) -> None:
        """Keep the bundles of an index alive under `name`."""
        references = self._references(manifest, self._place_of(raw))
        self._catalog.write(
            lambda db: blocks.set_root(
                db, name, [self._bundle(db, folder, *r, own=True) for r in references.values()]
            )
        ).result()

    def earlier(self, db: sqlite3.Connection, folder: int, old: Earlier) -> None:
        """Take an earlier version over into the history, if its manifest is the group's."""
        try:
            path = safe_path(old.path)
            opened = open_manifest(old.manifest, self._ring)
            _VERSION.decode(old.version)
        except (P2PStoreError, msgspec.MsgspecError):
            return
        if not self.trusts(opened.signer, opened.chain):
            return
        manifest = opened.manifest
        number = db.execute(
            "INSERT INTO history (folder, path, file_id, version, manifest, hash, file_size,"
            " mtime_ns, ended_at, why) VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                folder,
                path,
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
        own = opened.signer == self._me
        db.executemany(
            "INSERT INTO history_bundles (history, bundle) VALUES (?,?)",
            [
                (number, self._bundle(db, folder, *reference, own=own))
                for reference in self._references(
                    manifest, self._place_in(db, old.manifest)
                ).values()
            ],
        )

    # -- writing ----------------------------------------------------------------------------------

    def _write(self, filed: Sequence[_Filed]) -> None:
        if filed:
            self._catalog.write(lambda db: self._put(db, filed)).result()
        self._count += len(filed)
        self._report(self._count)

    def _put(self, db: sqlite3.Connection, filed: Sequence[_Filed]) -> None:
        folder = filed[0].row.folder
        known = files.get_many(db, folder, [one.row.path for one in filed])
        fresh = [one for one in filed if _is_newer(one, known.get(one.row.path))]
        same = [one for one in filed if _is_same(one, known.get(one.row.path))]
        ids = files.upsert_many(db, [one.row for one in fresh], [one.raw for one in fresh])
        references = [
            (number, self._bundles_of(db, folder, one))
            for number, one in zip(ids, fresh, strict=True)
        ]
        for one in same:
            number = known[one.row.path].id
            before = {row.id for row in blocks.bundles_of_file(db, number)}
            references.append((number, before | self._bundles_of(db, folder, one)))
        blocks.set_file_bundles(db, references)
        for number, one in zip(ids, fresh, strict=True):
            if one.retired and one.raw:
                # As if it were deleted now: its days in the history begin again.
                self._restore_history(db, number, one)
        dedup = [row for one in fresh for row in self._dedup(one)]
        if dedup:
            blocks.insert_dedup(db, dedup)

    def _put_one(self, one: _Filed, db: sqlite3.Connection) -> None:
        self._put(db, [one])

    def _bundles_of(self, db: sqlite3.Connection, folder: int, one: _Filed) -> set[int]:
        return {self._bundle(db, folder, *r, own=one.own) for r in one.references.values()}

    def _restore_history(self, db: sqlite3.Connection, number: int, one: _Filed) -> None:
        manifest = open_manifest(one.raw, self._ring).manifest
        db.execute(
            "UPDATE files SET hash=?, file_size=?, mtime_ns=? WHERE id=?",
            (manifest.hash, manifest.meta.size, manifest.meta.mtime_ns, number),
        )
        files.retire(db, number, one.row.version, self._now_ms)

    def _bundle(
        self, db: sqlite3.Connection, folder: int, ref: BundleRef, kind: Kind, *, own: bool
    ) -> int:
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

    def _dedup(self, one: _Filed) -> Iterator[DedupRow]:
        """Rows for chunks whose block lies in a bundle here that this device opened."""
        for bundle_id, entry, fingerprint in one.chunks:
            try:
                index = self._local.store.index(bundle_id)
            except (Unavailable, IntegrityError):
                continue
            at = index.blocks.find(entry.block)
            if at is not None and index.header.opener == self._me:
                number = self._bundles[bundle_id]
                yield DedupRow(
                    fingerprint, number, at, entry.block, entry.key, entry.offset, entry.length
                )


def bundle_row(store: BundleStore, bundle_id: BundleId, tag: Tag, me: PublicKey) -> BundleRow:
    """The row of a sealed bundle that lies here; BundleDamaged, BundleMissing."""
    index, live = store.index(bundle_id), store.live_map(bundle_id)
    size = store.size(bundle_id)
    if live.seq:
        dead = (e.length for i, e in enumerate(index.blocks.entries) if not live.is_live(i))
        size -= sum(dead)
    return BundleRow(
        bundle_id=bundle_id,
        tag=tag,
        kind=index.header.kind,
        folder=None,
        state=BundleState.SEALED,
        bytes=size,
        blocks=len(index.blocks),
        seq=live.seq,
        created=index.header.created_ms,
        own=int(index.header.opener == me),
    )


def _is_newer(one: _Filed, row: FileRow | None) -> bool:
    """Nothing is there yet, or an earlier version of the same: a version is never lowered."""
    if row is None:
        return True
    if row.kind == files.Kind.LINK or one.row.kind == files.Kind.LINK:
        return False
    relation = compare_versions(one.version, _VERSION.decode(row.version) if row.version else {})
    if row.state == State.DELETED:
        return relation in (Relation.NEWER, Relation.EQUAL)
    return row.file_id == one.row.file_id and relation is Relation.NEWER


def _is_same(one: _Filed, row: FileRow | None) -> bool:
    """The row has this version already: only what it refers to may have become clearer."""
    if row is None or row.file_id != one.row.file_id or row.state == State.DELETED:
        return False
    return row.version == one.row.version and bool(one.references)


def _same_file(a: Found, b: Found) -> bool:
    return a.opened.manifest.file_id == b.opened.manifest.file_id


def _at(one: _Filed, place: Place) -> _Filed:
    references = {**one.references, place[0].bundle_id: (place[0], Kind.META)}
    row = one.row._replace(manifest_ref=msgspec.msgpack.encode(place))
    return one._replace(row=row, references=references)


def _place(row: FileRow) -> Place | None:
    if not row.manifest_ref:
        return None
    return msgspec.msgpack.decode(row.manifest_ref, type=tuple[BundleRef, Entry])


def _encoded(version: Mapping[NodeId, int]) -> bytes:
    """As the catalog keeps it; equal vectors have equal bytes."""
    return msgspec.msgpack.encode(dict(sorted(version.items())))


def _bundle_rows(db: sqlite3.Connection) -> dict[BundleId, int]:
    return dict(db.execute("SELECT bundle_id, id FROM bundles").fetchall())


def _manifest(file: int, db: sqlite3.Connection) -> bytes | None:
    return files.manifest(db, file)


def _move(moved: Sequence[tuple[FileRow, bytes]], db: sqlite3.Connection) -> None:
    for row, path in moved:
        files.rename(db, row.id, path)


def _not_on_disk(db: sqlite3.Connection, folder: int) -> dict[bytes, FileRow]:
    """File id -> row of what an index has and nothing on the disk stands for."""
    rows = files.walk(db, folder, states=(State.PLACEHOLDER,))
    return {bytes(row.file_id): row for row in rows if not row.ino}


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _identity_seen(seen: Seen) -> tuple[int, int, int, int]:
    return seen.ino, seen.size, seen.mtime_ns, seen.ctime_ns
