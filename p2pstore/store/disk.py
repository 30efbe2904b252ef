"""Bundles as files below one directory.

The bytes of a bundle file are `content`'s; this module owns where the files lie and in which
order they become durable:

    root/open/<hex>.bundle        being written
    root/<2 hex>/<hex>.bundle     sealed; the first byte of the id names the directory
    root/<2 hex>/<hex>.live       its signed live map, when blocks have died; stays there while
                                  the bundle is in the trash
    root/trash/<hex>.bundle       removed, may come back

Sealing: trailer, fsync, rename out of `open`, fsync of the directory. Only then may a catalog row
or a `.f` name the bundle. A bundle found in `open` at start was cut off: `salvage_all`.

After a failed fsync or write the kernel may hold pages for clean that never reached the disk. The
store is then failed: it takes no more bytes until a restart has looked at what is really there
(SAFETY.md 2). Reading goes on, because every block is compared with its id.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey

from p2pstore import syscalls
from p2pstore.content import (
    BUNDLE_BLOCKS,
    BUNDLE_BYTES,
    MAX_SIGNED_LIVE_MAP,
    RECORD_HEAD,
    BlockEntry,
    BlockList,
    BundleHeader,
    BundleIndex,
    LiveMap,
    Replaced,
    SealedBlock,
    SignedLiveMap,
    decode_live_map,
    encode_header,
    encode_live_map,
    read_index,
    record_head,
    salvage,
    trailer,
)
from p2pstore.durable import replace_file, sync_directory
from p2pstore.errors import FormatError, LocalProtocolError, NoRoom, Unavailable
from p2pstore.ids import BundleId, short
from p2pstore.store.bundles import (
    BundleDamaged,
    BundleIds,
    BundleMissing,
    Salvaged,
    SalvagedBundles,
    SealedReader,
    StoreFailed,
    dead_ranges,
)

IOV_MAX: Final = 1024  # buffers that one writev takes on Linux
OPEN_FILES: Final = 64  # descriptors kept for reading
_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class DiskBundles(SealedReader):
    """Bundles as files below `root`, which is made when it is not there."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = Path(root)
        self._open = self.root / "open"
        self._trash = self.root / "trash"
        self._lock = threading.Lock()
        self._writing: set[BundleId] = set()
        self._directories: set[Path] = set()
        self._files = _OpenFiles(OPEN_FILES)
        self._failure: OSError | None = None
        with translated("make the store"):
            for directory in (self.root, self._open, self._trash):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            sync_directory(self.root)

    # Writing

    def create(self, header: BundleHeader, key: SigningKey) -> DiskBundle:
        self.refuse_when_failed()
        if self.has(header.bundle_id):
            raise LocalProtocolError(f"Bundle {short(header.bundle_id)} is there already.")
        return DiskBundle(self, header, key)

    def salvage_all(self) -> SalvagedBundles:
        found = []
        for path in sorted(self._open.glob("*.bundle")):
            bundle_id = _id_of(path)
            if bundle_id is None or bundle_id in self._writing:
                continue
            with suppress(FormatError), open(path, "rb", buffering=0) as file:
                source = _Descriptor(file.fileno())
                header, entries = salvage(source.read_at, os.fstat(file.fileno()).st_size)
                found.append(Salvaged(header, entries, path))
                continue
            found.append(Salvaged(_nameless(bundle_id), [], path))
        return found

    def seal_salvaged(self, bundle_id: BundleId, key: SigningKey) -> BundleIndex:
        self.refuse_when_failed()
        path = self._open / f"{bundle_id.hex()}.bundle"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as exc:
            raise BundleMissing(bundle_id) from exc
        source = _Descriptor(descriptor)
        try:
            header, entries = salvage(source.read_at, os.fstat(descriptor).st_size)
            if header.bundle_id != bundle_id or not entries:
                raise BundleDamaged(bundle_id, "no block of it is whole")
            blocks = BlockList(tuple(entries))
            with self.failing():
                os.ftruncate(descriptor, blocks.records_end)
            bundle = DiskBundle(self, header, key, resumed=(descriptor, blocks))
        except BaseException:
            os.close(descriptor)
            raise
        try:
            return bundle.seal()
        except BaseException:
            bundle.let_go()
            raise

    def discard(self, bundle_id: BundleId) -> None:
        if bundle_id in self._writing:
            raise LocalProtocolError(f"Bundle {short(bundle_id)} is being written.")
        self._open_path(bundle_id).unlink(missing_ok=True)

    def part_path(self, bundle_id: BundleId) -> Path:
        """Where a sealed bundle that was here before is put together again, to be adopted."""
        return self._open / f"{bundle_id.hex()}.part"

    def drop_parts(self) -> None:
        """At start: what was being put together and never adopted."""
        for path in self._open.glob("*.part"):
            path.unlink()

    def adopt(
        self,
        path: Path,
        index: BundleIndex,
        live: SignedLiveMap | None = None,
        *,
        instead: bool = False,
    ) -> None:
        """Take in a complete, synced bundle file by renaming it; durable when this returns.

        Its live map comes first: no bundle is ever seen with holes that nothing tells of.
        `instead`: of a damaged file of the same bundle, which is gone then.
        """
        self.refuse_when_failed()
        bundle_id = index.header.bundle_id
        target = self._sealed_directory(bundle_id) / f"{bundle_id.hex()}.bundle"
        if target.exists() and not instead:
            raise LocalProtocolError(f"Bundle {short(bundle_id)} is there already.")
        with self.failing():
            if live is not None:
                replace_file(self._live_path(bundle_id), encode_live_map(live))
            path.rename(target)
            sync_directory(target.parent)
        self.forget(bundle_id)
        self._remember(index)

    # Reading

    def has(self, bundle_id: BundleId) -> bool:
        return self.path(bundle_id).exists()

    def size(self, bundle_id: BundleId) -> int:
        return self._stat(bundle_id).st_size

    def stored(self, bundle_id: BundleId) -> int:
        return self._stat(bundle_id).st_blocks * 512

    def list(self) -> BundleIds:
        found: BundleIds = []
        with translated("list the store"):
            for directory in sorted(self.root.iterdir()):
                if len(directory.name) == 2:
                    found.extend(_ids_in(directory))
        return sorted(found)

    def path(self, bundle_id: BundleId) -> Path:
        """Where a sealed bundle lies, or would."""
        name = bundle_id.hex()
        return self.root / name[:2] / f"{name}.bundle"

    def drop_cache(self, bundle_id: BundleId) -> None:
        with self._source(bundle_id) as source:
            source.drop_cache()

    # Trash

    def to_trash(self, bundle_id: BundleId) -> None:
        self._move(bundle_id, self.path(bundle_id), self._trash_path(bundle_id))

    def from_trash(self, bundle_id: BundleId) -> None:
        self._sealed_directory(bundle_id)
        self._move(bundle_id, self._trash_path(bundle_id), self.path(bundle_id))

    def purge(self, bundle_id: BundleId) -> None:
        with translated("empty the trash of the store"):
            try:
                self._trash_path(bundle_id).unlink()
            except FileNotFoundError:
                return
            if not self.has(bundle_id):
                self._live_path(bundle_id).unlink(missing_ok=True)
        self._forget(bundle_id)

    def trash(self) -> BundleIds:
        with translated("list the trash of the store"):
            return sorted(_ids_in(self._trash))

    # Live maps

    def signed_live_map(self, bundle_id: BundleId) -> SignedLiveMap | None:
        try:
            with open(self._live_path(bundle_id), "rb") as file:
                raw = file.read(MAX_SIGNED_LIVE_MAP + 1)
            return decode_live_map(raw)
        except FileNotFoundError:
            return None
        except FormatError as exc:
            raise BundleDamaged(bundle_id, "its live map cannot be read") from exc

    def set_live_map(self, bundle_id: BundleId, signed: SignedLiveMap) -> bool:
        with self._lock:
            self.refuse_when_failed()
            live = self._accepts(bundle_id, signed)
            if live is None:
                return False
            with self.failing():
                replace_file(self._live_path(bundle_id), encode_live_map(signed))
            self._live[bundle_id] = live
            return True

    def punch(self, bundle_id: BundleId) -> int:
        return self.punch_under(bundle_id, self.live_map(bundle_id))

    def punch_under(self, bundle_id: BundleId, live: LiveMap) -> int:
        """Punch what `live` calls dead; the caller has made that map durable."""
        ranges = list(dead_ranges(self.index(bundle_id).blocks, live))
        if not ranges:
            return 0
        with (
            translated("punch dead blocks out of the store"),
            open(self.path(bundle_id), "r+b", buffering=0) as file,
        ):
            for offset, length in ranges:
                try:
                    syscalls.punch_hole(file.fileno(), offset, length)
                except OSError as exc:
                    if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                        raise
                    return 0  # this file system keeps the room; nothing else depends on it
        return sum(length for _, length in ranges)

    # The disk

    def close(self) -> None:
        """Let go of all descriptors; bundles being written stay in `open`."""
        self._files.close()

    def forget(self, bundle_id: BundleId) -> None:
        """Another file is about to lie under this id: keep nothing of the old one in memory."""
        self._files.drop(bundle_id)
        self._forget(bundle_id)

    def refuse_when_failed(self) -> None:
        if self._failure is not None:
            raise StoreFailed(
                f"The disk failed under {self.root} ({self._failure}): restart p2pstore."
            ) from self._failure

    @contextmanager
    def failing(self) -> Iterator[None]:
        """A disk error in here ends all writing; a full disk does not."""
        try:
            yield
        except OSError as exc:
            if exc.errno in _NO_ROOM:
                raise NoRoom(f"The disk with {self.root} is full.") from exc
            self._failure = exc
            raise StoreFailed(
                f"The disk failed under {self.root} ({exc}): restart p2pstore."
            ) from exc

    @contextmanager
    def _source(self, bundle_id: BundleId) -> Iterator[_Descriptor]:
        with self._files.lend(bundle_id, self.path(bundle_id)) as source:
            yield source

    def _stat(self, bundle_id: BundleId) -> os.stat_result:
        try:
            return self.path(bundle_id).stat()
        except FileNotFoundError as exc:
            raise BundleMissing(bundle_id) from exc

    def _move(self, bundle_id: BundleId, source: Path, target: Path) -> None:
        self.refuse_when_failed()
        with self._lock:
            if target.exists():
                raise LocalProtocolError(f"Bundle {short(bundle_id)} is there already.")
            with self.failing():
                try:
                    source.rename(target)
                except FileNotFoundError as exc:
                    raise BundleMissing(bundle_id) from exc
                sync_directory(target.parent)
                sync_directory(source.parent)
        self.forget(bundle_id)

    def _sealed_directory(self, bundle_id: BundleId) -> Path:
        directory = self.path(bundle_id).parent
        if directory not in self._directories:
            with self.failing():
                directory.mkdir(mode=0o700, exist_ok=True)
                sync_directory(self.root)
            self._directories.add(directory)
        return directory

    def _open_path(self, bundle_id: BundleId) -> Path:
        return self._open / f"{bundle_id.hex()}.bundle"

    def _trash_path(self, bundle_id: BundleId) -> Path:
        return self._trash / f"{bundle_id.hex()}.bundle"

    def _live_path(self, bundle_id: BundleId) -> Path:
        return self.path(bundle_id).with_suffix(".live")


class DiskBundle:
    """A bundle being written; made by `DiskBundles.create`."""

    def __init__(
        self,
        store: DiskBundles,
        header: BundleHeader,
        key: SigningKey,
        *,
        resumed: tuple[int, BlockList] | None = None,
    ) -> None:
        self.header = header
        self._store = store
        self._key = key
        self._path = store._open_path(header.bundle_id)
        self._head = encode_header(header)
        self._entries: list[BlockEntry] = []
        self._size = len(self._head)
        if resumed is not None:
            self._fd, blocks = resumed
            self._entries.extend(blocks.entries)
            self._size = blocks.records_end
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with store.failing():
                self._fd = os.open(self._path, flags, 0o600)
            try:
                self._write([self._head], 0)
            except BaseException:
                os.close(self._fd)
                self._path.unlink(missing_ok=True)
                raise
        store._writing.add(header.bundle_id)

    @property
    def size(self) -> int:
        return self._size

    @property
    def count(self) -> int:
        return len(self._entries)

    @property
    def is_full(self) -> bool:
        return self._size >= BUNDLE_BYTES or len(self._entries) >= BUNDLE_BLOCKS

    def room(self) -> int:
        return BUNDLE_BLOCKS - len(self._entries)

    def append(self, blocks: Sequence[SealedBlock]) -> list[int]:
        self._check_open()
        if len(blocks) > self.room():
            raise LocalProtocolError("more blocks than a bundle takes")
        buffers: list[bytes] = []
        entries: list[BlockEntry] = []
        size = 0
        for block_id, _, block in blocks:
            length = len(block)
            buffers.append(record_head(block_id, length))
            buffers.append(block)
            entries.append(BlockEntry(block_id, length))
            size += RECORD_HEAD + length
        self._write(buffers, self._size)
        first = len(self._entries)
        self._entries.extend(entries)
        self._size += size
        return list(range(first, first + len(entries)))

    def seal(self, replaces: Sequence[Replaced] = ()) -> BundleIndex:
        self._check_open()
        blocks = BlockList(tuple(self._entries), tuple(replaces))
        tail = trailer(self._head, blocks, self._key)
        self._write([tail], self._size)
        with self._store.failing():
            os.fsync(self._fd)
        self._size += len(tail)
        # Parsing what was signed costs little, and proves that the next start can read it.
        index = read_index(_Image(self._head, tail, self._size).read_at, self._size)
        self._store.adopt(self._path, index)
        self.let_go()
        return index

    def abandon(self) -> None:
        if self._fd >= 0:
            self._path.unlink(missing_ok=True)
            self.let_go()

    def _write(self, buffers: list[bytes], offset: int) -> None:
        """All of it at `offset`, or NoRoom with the file as it was, or StoreFailed."""
        self._store.refuse_when_failed()
        try:
            with self._store.failing():
                _write_all(self._fd, buffers, offset)
        except NoRoom:
            with self._store.failing():
                os.ftruncate(self._fd, offset)
            raise

    def _check_open(self) -> None:
        if self._fd < 0:
            raise LocalProtocolError(f"Bundle {short(self.header.bundle_id)} is closed.")
        self._store.refuse_when_failed()

    def let_go(self) -> None:
        """Close the file and leave it where it is."""
        os.close(self._fd)
        self._fd = -1
        self._store._writing.discard(self.header.bundle_id)


def _write_all(fd: int, buffers: list[bytes], offset: int) -> None:
    for start in range(0, len(buffers), IOV_MAX):
        part: list[bytes | memoryview] = list(buffers[start : start + IOV_MAX])
        while part:
            written = os.pwritev(fd, part, offset)
            offset += written
            # A short write is rare (a signal, a limit): go on within the buffer that it hit.
            done = 0
            while done < len(part) and written >= len(part[done]):
                written -= len(part[done])
                done += 1
            del part[:done]
            if part and written:
                part[0] = memoryview(part[0])[written:]


class _Image:
    """A sealed file of which only both ends are at hand."""

    def __init__(self, head: bytes, tail: bytes, size: int) -> None:
        self._head = head
        self._tail = tail
        self._tail_at = size - len(tail)

    def read_at(self, offset: int, size: int) -> bytes:
        if offset < self._tail_at:
            return self._head[offset : offset + size]
        at = offset - self._tail_at
        return self._tail[at : at + size]


class _Descriptor:
    """An open file for reading, lent to any number of threads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lent = 0
        self.doomed = False

    def read_at(self, offset: int, size: int) -> bytes:
        raw = os.pread(self.fd, size, offset)
        if len(raw) == size or not raw:
            return raw
        parts = [raw]
        got = len(raw)
        while got < size and (more := os.pread(self.fd, size - got, offset + got)):
            parts.append(more)
            got += len(more)
        return b"".join(parts)

    def drop_cache(self) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)


class _OpenFiles:
    """The last few bundles that were read, kept open; a lent one is closed when it comes back."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[BundleId, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()

    @contextmanager
    def lend(self, bundle_id: BundleId, path: Path) -> Iterator[_Descriptor]:
        with self._lock:
            file = self._kept.get(bundle_id)
            if file is None:
                file = self._kept[bundle_id] = _Descriptor(_open(bundle_id, path))
                while len(self._kept) > self._limit:
                    self._retire(self._kept.popitem(last=False)[1])
            else:
                self._kept.move_to_end(bundle_id)
            file.lent += 1
        try:
            yield file
        finally:
            with self._lock:
                file.lent -= 1
                if file.doomed and not file.lent:
                    os.close(file.fd)

    def drop(self, bundle_id: BundleId) -> None:
        with self._lock:
            file = self._kept.pop(bundle_id, None)
            if file is not None:
                self._retire(file)

    def close(self) -> None:
        with self._lock:
            while self._kept:
                self._retire(self._kept.popitem()[1])

    def _retire(self, file: _Descriptor) -> None:
        file.doomed = True
        if not file.lent:
            os.close(file.fd)


def _open(bundle_id: BundleId, path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as exc:
        raise BundleMissing(bundle_id) from exc
    except OSError as exc:
        raise Unavailable(f"Bundle {short(bundle_id)} cannot be opened: {exc}.") from exc


def _ids_in(directory: Path) -> list[BundleId]:
    return [
        bundle_id
        for name in os.listdir(directory)
        if name.endswith(".bundle") and (bundle_id := _id_of(Path(name))) is not None
    ]


def _id_of(path: Path) -> BundleId | None:
    try:
        raw = bytes.fromhex(path.stem)
    except ValueError:
        return None
    return BundleId(raw) if len(raw) == 32 and raw.hex() == path.stem else None


def _nameless(bundle_id: BundleId) -> BundleHeader:
    """The header of a file that was cut off within its header."""
    nobody = bytes(32)
    return BundleHeader(bundle_id, nobody, nobody, 1, 0)  # type: ignore[arg-type]


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Errors of the disk as ours."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise NoRoom(f"Cannot {what}: the disk is full.") from exc
        raise Unavailable(f"Cannot {what}: {exc}.") from exc
