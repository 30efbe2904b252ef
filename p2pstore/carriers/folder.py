"""A directory as a carrier: a disk, a USB stick, a mounted share; and one of pictures.

    ROOT/p2pstore-carrier    "p2pstore-carrier 1 MARK", a line feed, a sentence; MARK is 16 random
                             bytes in hex
    ROOT/XX/NAME[.png]       a piece; XX are the first two hex digits of BLAKE3(NAME), so that no
                             directory of millions arises, and names that differ in case alone do
                             not meet on file systems that take them for one (they might: then the
                             second `put` is refused)
    ROOT/XX/.NAME.RANDOM     a piece that is being written, or was when the power went

The mark tells an unplugged disk, whose mount point is an empty directory, from an empty carrier,
and one disk from another: without it nothing is read, written or said to be missing. Every call
opens the root once, looks for the mark, and goes on from that descriptor: whatever is mounted or
unmounted meanwhile, the call stays on the disk that it looked at.

Order of a `put`: bytes under a temporary name, fsync, rename that never overwrites, fsync of the
directory. Where there is no such rename (NFS) a hard link does the same. Where there are no links
either (some programs that play file systems), and only there, we look first and rename then: two
programs that put different pieces under one name in the same instant would both succeed, and the
later one would win.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from blake3 import blake3

from p2pstore.carriers.carrier import NotThere, Promises
from p2pstore.carriers.config import is_harmless
from p2pstore.content import MAX_PICTURE, capacity, decode_picture, encode_picture
from p2pstore.durable import CANNOT, name_once, replace_file, sync_directory
from p2pstore.errors import FormatError, IntegrityError, NoRoom, Unavailable, UsageError
from p2pstore.threads import in_thread

MARKER: Final = "p2pstore-carrier"
PIECE: Final = 32 << 20  # a whole bundle, and little enough to hold several in memory
THREADS: Final = 4  # a disk is not quicker with more; a share has its latency hidden
STALE_S: Final = 86_400  # nobody writes a piece for longer than a day

_MARK = re.compile(rb"p2pstore-carrier 1 ([0-9a-f]{32})\n")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")
_MARK_SIZE: Final = 256  # bytes of the marker that are read
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FOREIGN: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR})


class Shape(NamedTuple):
    """How a piece lies in its file."""

    suffix: str
    piece: int  # bytes at most, of the piece ...
    file: int  # ... and of its file
    encode: Callable[[bytes], bytes]
    decode: Callable[[bytes], bytes]


PLAIN: Final = Shape("", PIECE, PIECE, lambda content: content, lambda raw: raw)


def as_pictures(width: int, height: int) -> Shape:
    def encode(content: bytes) -> bytes:
        return encode_picture(content, width, height)

    return Shape(".png", capacity(width, height), MAX_PICTURE, encode, decode_picture)


def prepare_folder(path: Path) -> str:
    """Make `path` a carrier, durably, and its parent must exist; its mark. What is there stays.

    UsageError when nothing can be written there.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            sync_directory(path.parent)
        root = os.open(path, _DIRECTORY)
        try:
            mark = _mark_of(root)
        finally:
            os.close(root)
        if mark is None:
            mark = os.urandom(16).hex()
            note = "Pieces of files of p2pstore lie here, sealed. Do not rename or change them.\n"
            replace_file(path / MARKER, f"{MARKER} 1 {mark}\n{note}".encode(), mode=0o644)
    except OSError as exc:
        raise UsageError(f"{path} cannot become a carrier: {exc.strerror}.") from exc
    return mark


class FolderCarrier:
    """Blocking work is done in threads of its own."""

    def __init__(self, name: str, path: Path, mark: str = "", shape: Shape = PLAIN) -> None:
        self.promises = Promises(shape.piece, is_exact=True, keeps_names=True, deletes=True)
        self._path = path
        self._mark = mark
        self._shape = shape
        self._who = f"The carrier {name} ({path})"
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="carrier")
        self._durable: set[str] = set()  # subdirectories that survive a power cut
        self._naming = threading.Lock()

    def key_of(self, name: str) -> str | None:
        return name

    async def put(self, name: str, content: bytes) -> str:
        self._check(name)
        if len(content) > self._shape.piece:
            raise UsageError(f"{self._who} takes at most {self._shape.piece:,} bytes at once.")
        await in_thread(self._pool, self._put, name, content)
        return name

    async def get(self, key: str) -> bytes:
        self._check(key)
        return await in_thread(self._pool, self._get, key)

    async def delete(self, key: str) -> None:
        self._check(key)
        await in_thread(self._pool, self._delete, key)

    async def close(self) -> None:
        self._pool.shutdown(wait=False)

    def _check(self, name: str) -> None:
        if not is_harmless(name):
            raise UsageError(f"{self._who} stores nothing under such a name: {name[:80]!r}.")

    # -- in a thread ------------------------------------------------------------------------------

    def _put(self, name: str, content: bytes) -> None:
        encoded = self._shape.encode(content)
        with self._root() as root, self._shelf(root, name, make=True) as shelf:
            if not self._holds(shelf, name, content):
                self._write(shelf, name, encoded, content)
            _sync(shelf)

    def _get(self, name: str) -> bytes:
        with self._root() as root:
            try:
                with self._shelf(root, name) as shelf:
                    raw = self._read(shelf, name)
            except FileNotFoundError as exc:
                raise NotThere(f"{self._who} does not have {name}.") from exc
        return self._decode(name, raw)

    def _delete(self, name: str) -> None:
        gone = contextlib.suppress(FileNotFoundError)
        with self._root() as root, gone, self._shelf(root, name) as shelf:
            os.unlink(name + self._shape.suffix, dir_fd=shelf)
            _sync(shelf)

    @contextlib.contextmanager
    def _root(self) -> Iterator[int]:
        """The root, when it is the right one. What goes wrong inside is told as ours."""
        try:
            root = os.open(self._path, _DIRECTORY)
        except OSError as exc:
            self._durable.clear()
            raise Unavailable(f"{self._who} cannot be reached: {exc.strerror}.") from exc
        try:
            mark = _mark_of(root)
            if mark is None or (self._mark and mark != self._mark):
                self._durable.clear()
                what = "is not connected" if mark is None else "is another one than before"
                raise Unavailable(f"{self._who} {what}: no right file {MARKER} is there.")
            yield root
        except OSError as exc:
            raise self._told(exc) from exc
        finally:
            os.close(root)

    @contextlib.contextmanager
    def _shelf(self, root: int, name: str, *, make: bool = False) -> Iterator[int]:
        """The subdirectory for a name; with `make` it is there, and after a power cut too."""
        shelf_name = blake3(name.encode()).hexdigest(length=1)
        is_new = make and shelf_name not in self._durable
        if is_new:
            with contextlib.suppress(FileExistsError):
                os.mkdir(shelf_name, dir_fd=root)
            _sync(root)
        shelf = os.open(shelf_name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        try:
            if is_new:
                _sweep(shelf)
                self._durable.add(shelf_name)
            yield shelf
        finally:
            os.close(shelf)

    def _holds(self, shelf: int, name: str, content: bytes) -> bool:
        """Whether it is stored already; UsageError when the name holds something else."""
        try:
            held = self._decode(name, self._read(shelf, name))
        except FileNotFoundError:
            return False
        except IntegrityError:
            held = None
        if held != content:
            raise UsageError(f"{self._who} holds other bytes under the name {name}.")
        return True

    def _write(self, shelf: int, name: str, encoded: bytes, content: bytes) -> None:
        temporary = f".{name}.{os.urandom(8).hex()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        # The usual mode: the disk may be read on another machine, where its owner has another uid.
        descriptor = os.open(temporary, flags, 0o666, dir_fd=shelf)
        try:
            with open(descriptor, "wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            self._name(shelf, temporary, name + self._shape.suffix)
        except FileExistsError:
            os.unlink(temporary, dir_fd=shelf)
            self._holds(shelf, name, content)  # another `put` was quicker
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=shelf)
            raise

    def _name(self, shelf: int, temporary: str, final: str) -> None:
        """FileExistsError when the name is taken."""
        try:
            return name_once(shelf, temporary.encode(), shelf, final.encode())
        except OSError as exc:
            if exc.errno not in CANNOT:
                raise
        with self._naming:
            try:
                os.stat(final, dir_fd=shelf, follow_symlinks=False)
            except FileNotFoundError:
                return os.rename(temporary, final, src_dir_fd=shelf, dst_dir_fd=shelf)
        raise FileExistsError(errno.EEXIST, "the name is taken")

    def _read(self, shelf: int, name: str) -> bytes:
        with open(os.open(name + self._shape.suffix, _READ, dir_fd=shelf), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > self._shape.file:
                raise IntegrityError(f"{self._who} holds something under {name} that is not ours.")
            return file.read(status.st_size)

    def _decode(self, name: str, raw: bytes) -> bytes:
        try:
            return self._shape.decode(raw)
        except (FormatError, IntegrityError) as exc:
            raise IntegrityError(f"{self._who}, {name}: {exc}") from exc

    def _told(self, exc: OSError) -> Exception:
        if exc.errno in _FULL:
            return NoRoom(f"{self._who} is full.")
        if exc.errno in _FORBIDDEN:
            return UsageError(f"{self._who} does not let us: {exc.strerror}.")
        if exc.errno in _FOREIGN:
            return UsageError(f"{self._who} has something else where pieces should lie.")
        self._durable.clear()
        return Unavailable(f"{self._who} cannot be used now: {exc.strerror}.")


def _mark_of(root: int) -> str | None:
    """The mark of the carrier there; None when there is none."""
    try:
        with open(os.open(MARKER, _READ, dir_fd=root), "rb") as file:
            found = _MARK.match(file.read(_MARK_SIZE))
    except FileNotFoundError:
        return None
    return found[1].decode() if found else None


def _sync(directory: int) -> None:
    """Make its names durable; some file systems of others have no call for it."""
    try:
        os.fsync(directory)
    except OSError as exc:
        if exc.errno not in CANNOT:
            raise


def _sweep(shelf: int) -> None:
    """Remove what was being written when the power went: a day before the last change there."""
    before = os.fstat(shelf).st_mtime - STALE_S
    with os.scandir(shelf) as entries:
        ours = [entry for entry in entries if _TEMPORARY.fullmatch(entry.name)]
    for entry in ours:
        with contextlib.suppress(FileNotFoundError):  # another one finished, or sweeps too
            if os.stat(entry.name, dir_fd=shelf, follow_symlinks=False).st_mtime < before:
                os.unlink(entry.name, dir_fd=shelf)
