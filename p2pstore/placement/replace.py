"""REPLACE, steps 8 to 11 of SAFETY section 3: a protected original gives way to its `.f`.

Batched: each sync and each commit below is one for all files of the batch.

    8.  lease still ours, stat unchanged
    9.  every `.f` as an unnamed file: bytes, times, mode; syncfs; (an old `.f` to trash;) a name
        for each, never over an existing one; syncfs; read back
    10. journal COMMIT (the caller's), then each original by rename into trash, checked afterwards
    11. syncfs; the caller journals TRASHED with the identities that this returns

A crash before 10 leaves originals in place and at most some `.f` beside them, which recovery
takes to trash; a crash in 10 leaves each file as original or in trash beside its `.f`.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from p2pstore.placement.claim import Claim, Identity
from p2pstore.placement.root import (
    TRASH,
    Directories,
    Root,
    beside,
    free_name,
    read_placeholder,
)
from p2pstore.syscalls import link_fd, rename_noreplace

log = logging.getLogger(__name__)

SUFFIX = b".f"
NAME_LIMIT = 255  # bytes of one name on every Linux file system


@dataclass(frozen=True, slots=True)
class Placing:
    """One file to replace."""

    claim: Claim
    manifest: bytes  # the bytes of its `.f`
    old: Identity | None = None  # of the `.f` of its earlier version, when it has one there
    keep_old: bool = False  # that `.f` already says what the new one would


class Replaced(NamedTuple):
    """How it ended. `reason` is empty when the original lies in trash and its `.f` in place."""

    path: bytes
    reason: str
    placeholder: Identity | None = None
    trashed: Identity | None = None


def trash_path(batch: str, path: bytes) -> bytes:
    return TRASH + b"/" + batch.encode() + b"/" + path


def replace(
    root: Root,
    batch: str,
    placings: Sequence[Placing],
    commit: Callable[[Sequence[bytes]], None],
) -> list[Replaced]:
    """Carry the batch out; `commit` journals the paths that are about to be renamed away.

    Claims stay held: the caller closes them a second or more after this returns.
    """
    results: dict[bytes, Replaced] = {}
    with Directories(root) as directories:
        written: list[tuple[Placing, int]] = []
        try:
            for placing in placings:
                path = placing.claim.path
                if not placing.claim.is_good():
                    results[path] = Replaced(path, "changed meanwhile")
                elif placing.keep_old:
                    written.append((placing, -1))
                else:
                    _write(root, directories, placing, written, results)
            root.sync()
            linked = [
                (placing, identity)
                for placing, fd in written
                if (identity := _give_name(root, directories, batch, placing, fd, results))
            ]
        finally:
            for _, fd in written:
                if fd >= 0:
                    os.close(fd)
        root.sync()
        verified = [
            (placing, identity)
            for placing, identity in linked
            if _reads_back(directories, placing, batch, results)
        ]
        commit([placing.claim.path for placing, _ in verified])
        for placing, identity in verified:
            results[placing.claim.path] = _take_away(root, directories, batch, placing, identity)
        root.sync()
        return [_with_identity(results[p.claim.path], p.claim) for p in placings]


def _write(
    root: Root,
    directories: Directories,
    placing: Placing,
    written: list[tuple[Placing, int]],
    results: dict[bytes, Replaced],
) -> None:
    """The `.f` without a name yet."""
    claim = placing.claim
    try:
        directory, name = directories.parent(claim.path)
        if len(name) + len(SUFFIX) > NAME_LIMIT:
            results[claim.path] = Replaced(claim.path, "name too long for .f")
            return
        fd = unnamed(directory, claim.stat.st_mode & 0o666 | 0o600)
    except OSError as exc:
        results[claim.path] = Replaced(claim.path, _why(exc))
        return
    try:
        write_all(fd, placing.manifest)
        os.utime(fd, ns=(claim.stat.st_atime_ns, claim.stat.st_mtime_ns))
    except OSError as exc:
        os.close(fd)
        results[claim.path] = Replaced(claim.path, _why(exc))
        return
    written.append((placing, fd))


def _give_name(
    root: Root,
    directories: Directories,
    batch: str,
    placing: Placing,
    fd: int,
    results: dict[bytes, Replaced],
) -> Identity | None:
    path = placing.claim.path
    try:
        directory, name = directories.parent(path)
        if placing.old is not None and not placing.keep_old:
            there = os.stat(name + SUFFIX, dir_fd=directory, follow_symlinks=False)
            if Identity.of(there)[:3] != placing.old[:3]:
                results[path] = Replaced(path, "its .f changed meanwhile")
                return None
            to_trash(root, directories, batch, path + SUFFIX)
            directory, name = directories.parent(path)
        if not placing.keep_old:
            link_fd(fd, directory, name + SUFFIX)
        return Identity.of(os.stat(name + SUFFIX, dir_fd=directory, follow_symlinks=False))
    except OSError as exc:
        results[path] = Replaced(
            path, "name.f is taken" if exc.errno == errno.EEXIST else _why(exc)
        )
        return None


def _reads_back(
    directories: Directories, placing: Placing, batch: str, results: dict[bytes, Replaced]
) -> bool:
    path = placing.claim.path
    directory, name = directories.parent(path)
    try:
        raw = read_placeholder(directory, name + SUFFIX, len(placing.manifest) + 1)
    except OSError as exc:
        results[path] = Replaced(path, _why(exc))
        return False
    if raw != placing.manifest:
        results[path] = Replaced(path, "its .f did not read back as written")
        return False
    return True


def _take_away(
    root: Root, directories: Directories, batch: str, placing: Placing, identity: Identity
) -> Replaced:
    """Original into trash under its lease; or, when somebody came, the new `.f` into trash."""
    claim = placing.claim
    path = claim.path
    there = trash_path(batch, path)

    def rename() -> None:
        trash, last = directories.made_parent(there)
        # made_parent may have closed other descriptors, so the source is looked up last.
        directory, name = directories.parent(path)
        rename_noreplace(directory, name, trash, last)
        moved = os.stat(last, dir_fd=trash, follow_symlinks=False)
        if (moved.st_ino, moved.st_dev) != (claim.stat.st_ino, claim.stat.st_dev):
            rename_noreplace(trash, last, directory, name)
            raise OSError(errno.ESTALE, "another file has taken its name")

    def undo() -> None:
        put_back(root, there, path)

    try:
        if claim.move(rename, undo):
            return Replaced(path, "", identity)
        reason = "opened for writing meanwhile"
    except OSError as exc:
        reason = _why(exc)
    if not placing.keep_old:
        to_trash(root, directories, batch, path + SUFFIX)
    return Replaced(path, reason)


def _with_identity(result: Replaced, claim: Claim) -> Replaced:
    """The identity in trash; rename changes ctime, so it is taken after the sync."""
    if result.reason:
        return result
    return result._replace(trashed=Identity.of(os.fstat(claim.fd)))


def put_back(root: Root, there: bytes, path: bytes) -> bytes:
    """Move a file from trash to `path`, or beside it when that name is taken. Returns the name."""
    with Directories(root) as directories:
        trash, last = directories.parent(there)
        try:
            directory, name = directories.made_parent(path)
            rename_noreplace(trash, last, directory, name)
            return path
        except FileExistsError:
            name = free_name(directory, name, b"conflict")
            rename_noreplace(trash, last, directory, name)
            log.warning("%s was changed while it was replaced; both are kept.", os.fsdecode(path))
            return beside(path, name)


def to_trash(root: Root, directories: Directories, batch: str, path: bytes) -> bytes:
    """Move one of our files (a placeholder) into the batch's trash; its path there."""
    trash, last = directories.made_parent(trash_path(batch, path))
    directory, name = directories.parent(path)
    try:
        rename_noreplace(directory, name, trash, last)
        return path
    except FileExistsError:
        last = free_name(trash, last, b"again")
        rename_noreplace(directory, name, trash, last)
        return beside(path, last)


def write_placeholder(root: Root, path: bytes, raw: bytes, *, aside: bytes = b"") -> None:
    """Make `path` hold the placeholder `raw`, durably, unless something else has that name.

    With `aside` what lies there is kept beside, under its name with that mark.
    """
    with Directories(root) as directories:
        directory, name = directories.made_parent(path)
        if aside:
            kept = free_name(directory, name + b"." + aside, b"again", first=True)
            rename_noreplace(directory, name, directory, kept)
        fd = unnamed(directory, 0o600)
        try:
            write_all(fd, raw)
            os.fsync(fd)
            link_fd(fd, directory, name)
        finally:
            os.close(fd)
        os.fsync(directory)


def unnamed(directory: int, mode: int) -> int:
    """A file without a name on the directory's file system, open for writing."""
    fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=directory)
    os.fchmod(fd, mode)
    return fd


def write_all(fd: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _why(exc: OSError) -> str:
    if exc.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return "the folder cannot be written"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no room on the folder's disk"
    if exc.errno in (errno.EOPNOTSUPP, errno.EISDIR):
        return "its file system cannot hold unnamed files"
    return f"{exc.strerror}"
