"""A watched folder on disk: every path of a user's is opened beneath its root, following no link.

    ROOT/.p2pstore/folder            the folder's id in hex: the marker by which the root is known
    ROOT/.p2pstore/trash/BATCH/PATH  what replace and hydrate took away, where it was
    ROOT/.p2pstore/tmp/              incomplete files, where the file system has no O_TMPFILE

Paths are bytes, relative to the root. Nothing outside the root can be named (openat2 with
RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS), whatever stands in a manifest or changes meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from p2pstore.durable import replace_file, sync_directory
from p2pstore.errors import Unavailable
from p2pstore.filesystems import is_remote
from p2pstore.ids import FolderId
from p2pstore.syscalls import mount_id, open_beneath, syncfs

OWN = b".p2pstore"
TRASH = OWN + b"/trash"
TEMPORARY = OWN + b"/tmp"
UNWRITABLE = "the folder cannot be written"
OPEN_DIRECTORIES = 128  # descriptors of parents kept while a batch runs
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class _Place(NamedTuple):
    """What tells one directory from another that takes its name."""

    device: int
    ino: int
    mount: int

    @classmethod
    def of(cls, fd: int) -> _Place:
        stat = os.fstat(fd)
        return cls(stat.st_dev, stat.st_ino, mount_id(fd))


class Root:
    """The root of one watched folder: one that is moved away, unmounted or replaced is noticed.

    It is open while it is used. Nothing is kept open at `rest`, so that a disk can be taken out;
    whoever goes on afterwards says so by `acquire`, and by `release` that he is done.
    """

    def __init__(self, path: Path, folder_id: FolderId) -> None:
        self.path = path
        self.folder_id = folder_id
        self._lock = threading.Lock()
        self._users = 0
        self._is_closed = False
        try:
            self.fd = os.open(path, _DIRECTORY | os.O_NOFOLLOW)
            self._place = _Place.of(self.fd)
        except OSError as exc:
            raise Unavailable(f"{path} cannot be opened ({exc.strerror}).") from exc

    @property
    def device(self) -> int:
        """The device that it lies on, as in st_dev."""
        return self._place.device

    def acquire(self) -> bool:
        """Keep it open until `release`; False when the very same root is not there any more."""
        with self._lock:
            if self._is_closed or (self.fd < 0 and not self._open_again()):
                return False
            self._users += 1
            return True

    def release(self) -> None:
        with self._lock:
            self._users -= 1

    def rest(self) -> None:
        """Close it until the next `acquire`, unless somebody uses it."""
        with self._lock:
            if not self._users and self.fd >= 0:
                self._let_go()

    def _open_again(self) -> bool:
        if self.marker(self.path) != self.folder_id.hex():
            return False
        try:
            self.fd = os.open(self.path, _DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return False
        if _Place.of(self.fd) == self._place:
            return True
        self._let_go()
        return False

    @staticmethod
    def mark(path: Path, folder_id: FolderId) -> None:
        """Make `path` a watched root: write its marker and the directories of ours."""
        own = path / os.fsdecode(OWN)
        own.mkdir(mode=0o700, exist_ok=True)
        replace_file(own / "folder", folder_id.hex().encode() + b"\n", mode=0o644)
        for name in ("trash", "tmp"):
            (own / name).mkdir(mode=0o700, exist_ok=True)
        sync_directory(own)
        sync_directory(path)

    @staticmethod
    def unmark(path: Path) -> bool:
        """Take our directory away when nothing lies in its trash any more; whether it went."""
        own = path / os.fsdecode(OWN)
        try:
            for name in ("trash", "tmp"):
                (own / name).rmdir()
            (own / "folder").unlink()
            own.rmdir()
        except OSError:
            return False
        return True

    @staticmethod
    def marker(path: Path) -> str | None:
        """The folder id in hex that stands in `path`'s marker; None without one."""
        try:
            with open(path / os.fsdecode(OWN) / "folder", "rb") as file:
                return file.read(64).decode("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None

    def is_present(self) -> bool:
        """Whether the path still leads to the very root that was opened, with our marker."""
        try:
            fd = os.open(self.path, _DIRECTORY | os.O_NOFOLLOW | os.O_PATH)
        except OSError:
            return False
        try:
            is_same = _Place.of(fd) == self._place
        finally:
            os.close(fd)
        return is_same and self.marker(self.path) == self.folder_id.hex()

    def obstacle(self) -> str | None:
        """Why nothing may be replaced here, whatever the file; None when it may."""
        if not os.access(b".", os.W_OK, dir_fd=self.fd, effective_ids=True):
            return UNWRITABLE
        return is_remote(self.fd)

    def open(self, path: bytes, flags: int, mode: int = 0) -> int:
        return open_beneath(self.fd, path, flags | os.O_CLOEXEC, mode)

    def sync(self) -> None:
        """Write back everything on the folder's file system."""
        syncfs(self.fd)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self.fd >= 0:
                self._let_go()

    def _let_go(self) -> None:
        # Whoever still has this root must fail: the number is soon another directory's.
        fd, self.fd = self.fd, -1
        os.close(fd)


class Directories:
    """Descriptors of directories beneath a root, a bounded number of them, while a batch runs."""

    def __init__(self, root: Root) -> None:
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()
        self._last: tuple[bytes | None, int] = (None, -1)  # neighbours ask for the same one

    def __enter__(self) -> Directories:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        self._last = (None, -1)

    def get(self, path: bytes) -> int:
        """The directory `path` (empty: the root); valid until the next call for another one."""
        last, fd = self._last
        if path == last:
            return fd
        if not path:
            return self._root.fd
        found = self._open.get(path)
        if found is None:
            found = self._remember(path, self._root.open(path, _DIRECTORY))
        else:
            self._open.move_to_end(path)
        self._last = path, found
        return found

    def make(self, path: bytes) -> int:
        """The directory `path`, made with its parents when missing."""
        try:
            return self.get(path)
        except FileNotFoundError:
            pass
        parent, _, name = path.rpartition(b"/")
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self.make(parent))
        return self.get(path)

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """(directory, last name) of a path."""
        parent, _, name = path.rpartition(b"/")
        return self.get(parent), name

    def made_parent(self, path: bytes) -> tuple[int, bytes]:
        parent, _, name = path.rpartition(b"/")
        return self.make(parent), name

    def _remember(self, path: bytes, fd: int) -> int:
        self._open[path] = fd
        if len(self._open) > OPEN_DIRECTORIES:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        return fd


def read_placeholder(directory: int, name: bytes, limit: int) -> bytes:
    """Up to `limit` bytes of a regular file, not following a link; OSError otherwise."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)


def beside(path: bytes, name: bytes) -> bytes:
    """The path of `name` in the directory of `path`."""
    parent, slash, _ = path.rpartition(b"/")
    return parent + slash + name


def free_name(directory: int, name: bytes, mark: bytes, *, first: bool = False) -> bytes:
    """A name that is free now: `stem.MARK.ext`, then with a number; `name` itself if `first`.

    The caller must still create it without overwriting: free now is not free then.
    """
    if first and _is_free(directory, name[-255:]):
        return name[-255:]
    for candidate in marked_names(name, mark):
        if _is_free(directory, candidate):
            return candidate
    raise OSError(errno.EEXIST, "no free name", os.fsdecode(name))


def marked_names(name: bytes, mark: bytes) -> Iterator[bytes]:
    """`stem.MARK.ext`, then with a number, each at most as long as a name may be."""
    stem, dot, extension = name.rpartition(b".")
    if not stem:
        stem, dot, extension = name, b"", b""
    for number in range(1000):
        counted = mark if number == 0 else mark + b"-%d" % number
        tail = b"." + counted + dot + extension
        yield stem[: 255 - len(tail)] + tail


def _is_free(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False
