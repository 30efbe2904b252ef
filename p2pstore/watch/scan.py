"""What lies in a folder now, as fast as the kernel tells.

Promises: no symbolic link is ever followed, not even one that replaces a directory while the scan
runs; nothing on another device is entered; paths are bytes; and what could not be read is said
(`Unread`): a caller must never take an error for an empty directory. Judging what is seen, and
comparing it with what was known, is left to others.

Blocking; meant for a thread of the pool. What changes during a scan may be seen or missed.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from collections.abc import Iterator, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NamedTuple

from p2pstore import syscalls
from p2pstore.filesystems import mtime_ns_of

OWN_DIRECTORY = b".p2pstore"  # ours in every watched folder, never looked into

AT_A_TIME = 512  # entries held at once: a directory may have millions
_GONE = frozenset((errno.ENOENT, errno.ESTALE))

# By path, what lay there: begins with its stamp. In one piece each, as there may be millions.
Known = MutableMapping[bytes, bytes]
_STAMP = struct.Struct("=Qqqq")
STAMP_SIZE = _STAMP.size
stamp = _STAMP.pack  # of (ino, size, mtime_ns, ctime_ns): tells whether an entry is as it was


class Seen(NamedTuple):
    path: bytes  # relative to the root
    ino: int
    dev: int  # comparable within one run only: it changes at reboot
    mode: int
    nlink: int
    uid: int
    size: int
    mtime_ns: int
    ctime_ns: int


class Unread(NamedTuple):
    """A directory whose listing failed or broke off, or an entry that could not be looked at.

    Nothing may be concluded about what lies at or below `path`.
    """

    path: bytes  # empty: the root
    error: OSError


def scan(
    root: Path | int,
    *,
    below: bytes = b"",
    prune: AbstractSet[bytes] = frozenset((OWN_DIRECTORY,)),
    known: Known | None = None,
) -> Iterator[Seen | Unread]:
    """Every entry beneath `root` (a path or a directory's descriptor): files, links, directories.

    `below`: only this directory of it. `prune`: names that are neither told nor entered. `known`:
    an entry that is as it stands there is taken out of it and not told.
    A directory comes before what is in it. One on another device is told and not entered.
    OSError when `root` itself cannot be opened; ENOENT of `below` is an Unread.
    """
    if isinstance(root, int):
        root_fd = os.dup(root)
    else:
        # O_NOFOLLOW: a root that became a link is not the folder that was added.
        root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for found in _scan(root_fd, below.strip(b"/"), prune, {} if known is None else known):
            yield from found
    finally:
        os.close(root_fd)


def _scan(
    root_fd: int, below: bytes, prune: AbstractSet[bytes], known: Known
) -> Iterator[Sequence[Seen | Unread]]:
    device = os.fstat(root_fd).st_dev
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK
    waiting = [below]
    while waiting:
        directory = waiting.pop()
        try:
            fd = syscalls.open_beneath(root_fd, directory or b".", flags)
        except OSError as exc:
            yield (Unread(directory, exc),)
            continue
        try:
            if os.fstat(fd).st_dev == device:
                for found in _entries(fd, directory, prune, known):
                    for seen in found:
                        if type(seen) is Seen and stat.S_ISDIR(seen.mode) and seen.dev == device:
                            waiting.append(seen.path)
                    yield found
        finally:
            os.close(fd)


def _entries(
    fd: int, directory: bytes, prune: AbstractSet[bytes], known: Known
) -> Iterator[Sequence[Seen | Unread]]:
    """What is in one directory, some hundred entries at a time: a step for each costs as much."""
    prefix = directory + b"/" if directory else b""
    coding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    new = tuple.__new__  # a third faster than Seen(...), and this is the whole cost of a scan
    found: list[Seen | Unread] = []
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                name = entry.name.encode(coding, errors)
                if name in prune:
                    continue
                try:
                    st = entry.stat(follow_symlinks=False)
                except OSError as exc:
                    if exc.errno not in _GONE:  # gone since it was listed: then it is gone
                        found.append(Unread(prefix + name, exc))
                    continue
                path, ino, size = prefix + name, st.st_ino, st.st_size
                mtime_ns, ctime_ns = mtime_ns_of(st), st.st_ctime_ns
                was = known.get(path)
                if was is not None and was.startswith(stamp(ino, size, mtime_ns, ctime_ns)):
                    del known[path]
                    continue
                about = (st.st_dev, st.st_mode, st.st_nlink, st.st_uid)
                found.append(new(Seen, (path, ino, *about, size, mtime_ns, ctime_ns)))
                if len(found) == AT_A_TIME:
                    yield found
                    found = []
    except OSError as exc:
        found.append(Unread(directory, exc))
    yield found
