"""Placeholders, links and directories made anew where nothing is: after a recovery.

Batched like `replace`: contents first, synced, then the names, synced; the other order leaves empty
`.f` files at a power cut. What bears a name already is left as it is; but the `.f` of an earlier
version of the same file changes places with the new one, and is in trash then.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from stat import S_ISREG
from typing import NamedTuple

from p2pstore.content import MAX_READ
from p2pstore.placement.claim import Identity
from p2pstore.placement.nameless import Nameless
from p2pstore.placement.replace import SUFFIX, change_places, in_trash, write_all
from p2pstore.placement.root import Directories, Root

TOO_LONG = "name too long for .f"
TAKEN = "name.f is taken"
IN_THE_WAY = "something else is where its directory or it belongs"
_NO_DIRECTORY = (errno.ENOTDIR, errno.ELOOP)
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of the file system

IsEarlier = Callable[[bytes, bytes], bool]
"""Whether these bytes, found at a path's `.f`, are those of an earlier version of its file."""


class Laid(NamedTuple):
    """A placeholder of ours that bears its name now, and what it is on the disk."""

    path: bytes  # of the file that it stands for
    identity: Identity


class LaidAll(NamedTuple):
    laid: list[Laid]
    failed: list[tuple[bytes, str]]  # (path, why it is not there)
    aside: list[tuple[bytes, Identity]]  # placeholders of ours in the batch's trash: path there


def lay_placeholders(
    root: Root,
    placeholders: Sequence[tuple[bytes, bytes, int]],
    *,
    batch: str,
    is_earlier: IsEarlier,
    reads: Callable[[bytes], None],
) -> LaidAll:
    """Make `path.f` of each (path, bytes of its `.f`, mtime in ns), durably.

    Those that are not there then: something has the name, the name is too long. What `is_earlier`
    gives way, into the trash of `batch`; `reads` hears which `.f` is about to be read. ENOSPC and
    the like end it; what was made before stays, and a repetition goes on.
    """
    made: list[tuple[bytes, Nameless]] = []
    failed: list[tuple[bytes, str]] = []
    laid: list[Laid] = []
    aside: list[tuple[bytes, Identity]] = []
    with Directories(root) as directories:
        try:
            for path, raw, mtime_ns in placeholders:
                try:
                    directory, name = directories.made_parent(path)
                except OSError as exc:
                    failed.append((path, _in_the_way(exc)))
                    continue
                if len(name) + len(SUFFIX) > 255:
                    failed.append((path, TOO_LONG))
                    continue
                file = Nameless(root, directories, directory)
                made.append((path, file))
                write_all(file.fd, raw)
                os.utime(file.fd, ns=(mtime_ns, mtime_ns))
            root.sync()
            raws = {path: raw for path, raw, _ in placeholders}
            for path, file in made:
                directory, name = directories.parent(path)
                try:
                    file.link(directories, directory, name + SUFFIX)
                    laid.append(Laid(path, Identity.of(os.fstat(file.fd))))
                except FileExistsError:
                    reads(path + SUFFIX)
                    there = _laid_before(directory, name + SUFFIX, raws[path])
                    if there is None and _change(directories, batch, path, file, is_earlier):
                        there = Identity.of(os.fstat(file.fd))
                    if there is None:
                        failed.append((path, TAKEN))
                    else:
                        laid.append(Laid(path, there))
                    aside.extend(in_trash(directories, batch, path + SUFFIX))
        finally:
            for _, file in made:
                file.close()
        root.sync()
    return LaidAll(laid, failed, aside)


def _laid_before(directory: int, name: bytes, raw: bytes) -> Identity | None:
    """What lies there when it is this very placeholder: an attempt that was cut short made it."""
    return _found(directory, name, len(raw) + 1, lambda found: found == raw)


def _change(
    directories: Directories, batch: str, path: bytes, file: Nameless, is_earlier: IsEarlier
) -> bool:
    """Put the new `.f` in the place of the earlier version's; False when that is not what lies
    there, or the file system cannot exchange two names."""
    directory, name = directories.parent(path)
    old = _found(directory, name + SUFFIX, MAX_READ + 1, partial(is_earlier, path))
    if old is None:
        return False
    try:
        link = partial(file.link, directories)
        return change_places(directories, batch, path + SUFFIX, link, old) is not None
    except OSError as exc:
        if exc.errno not in _NO_EXCHANGE:
            raise
        return False


def _found(
    directory: int, name: bytes, limit: int, is_it: Callable[[bytes], bool]
) -> Identity | None:
    """What a regular file is whose first bytes are it."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return None
    try:
        stat = os.fstat(fd)
        return (
            Identity.of(stat) if S_ISREG(stat.st_mode) and is_it(os.pread(fd, limit, 0)) else None
        )
    finally:
        os.close(fd)


def lay_link(root: Root, path: bytes, target: bytes) -> os.stat_result | None:
    """Make the symbolic link `path`, or find it; None when something else is in the way. Not synced
    by itself."""
    with Directories(root) as directories:
        try:
            directory, name = directories.made_parent(path)
        except OSError as exc:
            _in_the_way(exc)
            return None
        try:
            os.symlink(target, name, dir_fd=directory)
        except FileExistsError:
            if not _is_link(directory, name, target):
                return None
        return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _is_link(directory: int, name: bytes, target: bytes) -> bool:
    try:
        return os.readlink(name, dir_fd=directory) == target
    except OSError:
        return False


def _in_the_way(exc: OSError) -> str:
    """Why one path cannot be made; what stops all of them is raised."""
    if exc.errno not in _NO_DIRECTORY:
        raise exc
    return IN_THE_WAY
