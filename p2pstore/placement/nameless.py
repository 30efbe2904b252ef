"""A file that is written before it has a name: what is not whole is never seen in the user's tree.

Where the file system has no unnamed files (O_TMPFILE) it lies in our own directory meanwhile, as
`part-...`, which recovery removes. Its name never takes the place of another's (SAFETY section 4,
step 4).
"""

from __future__ import annotations

import contextlib
import errno
import os

from p2pstore.durable import name_once
from p2pstore.placement.root import TEMPORARY, Directories, Root
from p2pstore.syscalls import link_fd

PART = b"part-"


def unnamed(directory: int, mode: int) -> int:
    """A file without a name on the directory's file system, open for writing; OSError without."""
    fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory)
    os.fchmod(fd, mode)
    return fd


class Nameless:
    def __init__(self, root: Root, directories: Directories, directory: int) -> None:
        """A file, readable by its owner alone, that may get a name in `directory`."""
        self._root = root
        self._part: bytes | None = None
        try:
            self.fd = unnamed(directory, 0o600)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            name = PART + os.urandom(12).hex().encode()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self.fd = os.open(name, flags, 0o600, dir_fd=directories.make(TEMPORARY))
            self._part = TEMPORARY + b"/" + name

    def link(self, directories: Directories, directory: int, name: bytes) -> None:
        """Give it its name; FileExistsError when that is taken."""
        if self._part is None:
            link_fd(self.fd, directory, name)
            return
        own, part = directories.parent(self._part)
        name_once(own, part, directory, name)
        self._part = None

    def close(self) -> None:
        """Let go of it; without a name it is gone."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        if self._part is not None:
            with contextlib.suppress(FileNotFoundError), Directories(self._root) as directories:
                own, part = directories.parent(self._part)
                os.unlink(part, dir_fd=own)
            self._part = None
