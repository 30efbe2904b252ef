"""A claim: a user's file, open and leased, from before it is read until after it is replaced.

While the lease is held nobody has the file open for writing, a shared writable map included
(SAFETY, section 2). Somebody who wants to write blocks until the lease is let go, so a claim
gives way within milliseconds: before the rename by letting go, after it by renaming back first,
because the blocked opener already holds the inode and his write belongs to `name`, not to our
trash.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as stat_module
import threading
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

from p2pstore.errors import Busy
from p2pstore.filesystems import mtime_ns_of
from p2pstore.leases import LeaseKeeper, Refused
from p2pstore.placement.root import Directories, Root

log = logging.getLogger(__name__)

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class Identity(NamedTuple):
    """What says that a file is still the one that was looked at, content included."""

    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Identity:
        return cls(stat.st_ino, stat.st_size, mtime_ns_of(stat), stat.st_ctime_ns)


def is_as_it_was(now: os.stat_result, then: os.stat_result) -> bool:
    """The same file with the same content; a rename changes no more than its ctime."""
    return (
        now.st_mtime_ns == then.st_mtime_ns
        and now.st_size == then.st_size
        and now.st_ino == then.st_ino
    )


class Turned(NamedTuple):
    """A path that could not be claimed. `later` says whether to try again by itself."""

    path: bytes
    reason: str
    later: bool


class Phase(Enum):
    HELD = "held"
    RENAMED = "renamed"
    BROKEN = "broken"
    RELEASED = "released"


class Claim:
    """One leased file. `close` lets go of it, in whatever phase it is."""

    def __init__(self, root: Root, path: bytes, fd: int, keeper: LeaseKeeper) -> None:
        self.root = root
        self.path = path
        self.fd = fd
        self.stat = os.fstat(fd)
        self.leased = False
        self.phase = Phase.HELD
        self._keeper = keeper
        self._lock = threading.Lock()
        self._undo: Callable[[], None] | None = None

    def lease(self) -> None:
        """Take the lease; raises leases.Refused. Stat is taken anew under it."""
        self._keeper.take(self.fd, self._give_way)
        self.leased = True
        self.stat = os.fstat(self.fd)

    def is_good(self) -> bool:
        """The lease was never broken and the file is unchanged since `stat`."""
        phase = self.phase
        return (
            (phase is Phase.HELD or phase is Phase.RENAMED)
            and self.leased
            and self._keeper.held(self.fd)
            and is_as_it_was(os.fstat(self.fd), self.stat)
        )

    def move(self, rename: Callable[[], None], undo: Callable[[], None]) -> bool:
        """Rename the file away under the lease; False (and renamed back) when somebody came.

        The check after the rename is the point: an opener that came before it holds the inode.
        """
        with self._lock:
            if self.phase is not Phase.HELD:
                return False  # whoever came before the rename is seen by the check behind it, too
            rename()
            self._undo = undo
            self.phase = Phase.RENAMED
            if self.is_good():
                return True
            try:
                undo()
            except OSError:
                # It stays in trash beside its `.f`; what the writer does to it there is noticed
                # before anything goes, and brings it back.
                log.exception("%s cannot be moved back now.", os.fsdecode(self.path))
                self._let_go(Phase.BROKEN)
                return True
            self._let_go(Phase.BROKEN)
            return False

    def close(self) -> None:
        """Let go of lease and descriptor."""
        with self._lock:
            if self.phase in (Phase.HELD, Phase.RENAMED):
                self._let_go(Phase.RELEASED)
            if self.fd >= 0:
                os.close(self.fd)
                self.fd = -1

    def _give_way(self) -> None:
        """Somebody wants to write: called by the keeper, must return within milliseconds."""
        with self._lock:
            if self.phase is Phase.RENAMED and self._undo is not None:
                self._undo()
            if self.phase in (Phase.HELD, Phase.RENAMED):
                self._let_go(Phase.BROKEN)

    def _let_go(self, phase: Phase) -> None:
        self.phase = phase
        if self.leased:
            self._keeper.release(self.fd)
            self.leased = False


def claim(
    root: Root, paths: Sequence[bytes], keeper: LeaseKeeper, *, replaceable: Callable[[bytes], bool]
) -> list[Claim | Turned]:
    """Open each path beneath the root and lease those that are to be replaced.

    A file that can be read but not leased (another owner's, or no leases on this file system) is
    still claimed, without lease: it can be protected, and stays.
    """
    taken: list[Claim | Turned] = []
    with Directories(root) as directories:
        for path in paths:
            try:
                directory, name = directories.parent(path)
                fd = os.open(name, _READ, dir_fd=directory)
            except OSError as exc:
                taken.append(_turned(path, exc))
                continue
            taken.append(_claim(root, path, fd, keeper, replaceable(path)))
    return taken


def _claim(
    root: Root, path: bytes, fd: int, keeper: LeaseKeeper, replaceable: bool
) -> Claim | Turned:
    try:
        held = Claim(root, path, fd, keeper)
        if not stat_module.S_ISREG(held.stat.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if replaceable:
            held.lease()
    except Refused as exc:
        if exc.reason == "writer":
            os.close(fd)
            return Turned(path, "open in another program", later=True)
    except Busy:
        os.close(fd)
        return Turned(path, "too many files at once", later=True)
    except OSError as exc:
        os.close(fd)
        return _turned(path, exc)
    return held


def _turned(path: bytes, exc: OSError) -> Turned:
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return Turned(path, "gone", later=False)
    if exc.errno in (errno.ELOOP, errno.EXDEV):
        return Turned(path, "a link", later=False)
    if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EWOULDBLOCK):
        return Turned(path, f"cannot be opened now ({exc.strerror})", later=True)
    return Turned(path, f"cannot be opened ({exc.strerror})", later=False)
