"""REPLACE, steps 8 to 11 of SAFETY section 3: a protected original gives way to its `.f`.

Batched: each sync and each commit below is one for all files of the batch.

    8.  lease still ours, stat unchanged
    9.  every `.f` as an unnamed file: bytes, times, mode; syncfs; a name for each, never over an
        existing one; (the `.f` of an earlier version changes places with the new one, which was
        linked in trash;) syncfs; read back
    10. journal COMMIT (the caller's), then each original by rename into trash, checked afterwards
    11. syncfs; the caller journals TRASHED with the identities that this returns

A crash before 10 leaves originals in place and at most some `.f` beside them, which recovery
takes to trash; a crash in 10 leaves each file as original or in trash beside its `.f`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from p2pstore.placement.claim import Claim, Identity
from p2pstore.placement.nameless import Nameless, unnamed
from p2pstore.placement.root import (
    TRASH,
    UNWRITABLE,
    Directories,
    Root,
    beside,
    free_name,
    read_placeholder,
)
from p2pstore.syscalls import link_fd, rename_exchange, rename_noreplace

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
    aside: tuple[tuple[bytes, Identity], ...] = ()  # placeholders of ours in trash: path there


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
        linked = _give_names(root, directories, batch, placings, results)
        try:
            root.sync()
            verified = [
                entry
                for entry in linked
                if _reads_back(root, directories, batch, entry.placing, results)
            ]
            commit([entry.placing.claim.path for entry in verified])
        except BaseException:
            # No original was touched: nothing of the batch stays beside them either.
            for entry in linked:
                with contextlib.suppress(OSError):
                    _withdraw(root, directories, batch, entry.placing)
            raise
        for entry in verified:
            path = entry.placing.claim.path
            results[path] = _take_away(root, directories, batch, entry)
        root.sync()
        return [_with_identity(results[p.claim.path], p.claim) for p in placings]


class _Linked(NamedTuple):
    placing: Placing
    placeholder: Identity
    aside: tuple[tuple[bytes, Identity], ...]


def _give_names(
    root: Root,
    directories: Directories,
    batch: str,
    placings: Sequence[Placing],
    results: dict[bytes, Replaced],
) -> list[_Linked]:
    """Contents first, synced, then the names: the other order leaves empty `.f` at a power cut."""
    written: list[tuple[Placing, int]] = []
    linked: list[_Linked] = []
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
        for placing, fd in written:
            entry = _give_name(root, directories, batch, placing, fd, results)
            if entry is not None:
                linked.append(entry)
    finally:
        for _, fd in written:
            if fd >= 0:
                os.close(fd)
    return linked


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
) -> _Linked | None:
    path = placing.claim.path
    aside: tuple[tuple[bytes, Identity], ...] = ()
    try:
        if placing.old is not None and not placing.keep_old:
            link = partial(link_fd, fd)
            displaced = change_places(directories, batch, path + SUFFIX, link, placing.old)
            if displaced is None:
                found = in_trash(directories, batch, path + SUFFIX)
                results[path] = Replaced(path, "its .f changed meanwhile", aside=found)
                return None
            aside = ((path + SUFFIX, displaced),)
        elif not placing.keep_old:
            directory, name = directories.parent(path)
            link_fd(fd, directory, name + SUFFIX)
        if fd < 0:
            directory, name = directories.parent(path)
            there = os.stat(name + SUFFIX, dir_fd=directory, follow_symlinks=False)
        else:
            there = os.fstat(fd)  # what has just got the name
        return _Linked(placing, Identity.of(there), aside)
    except OSError as exc:
        reason = "name.f is taken" if exc.errno == errno.EEXIST else _why(exc)
        results[path] = Replaced(
            path, reason, aside=aside or in_trash(directories, batch, path + SUFFIX)
        )
        return None


def change_places(
    directories: Directories,
    batch: str,
    path: bytes,
    link: Callable[[int, bytes], None],
    old: Identity,
) -> Identity | None:
    """The new `.f`, which `link` names, and the earlier version's at `path`, which is `old`, change
    places; the old one is in the batch's trash then, and this is what it is there.

    There is no moment without a `.f`. What comes out is looked at: were it not the expected one,
    it would go straight back, and None is the answer.
    """
    trash, last = directories.made_parent(trash_path(batch, path))
    link(trash, last)
    directory, name = directories.parent(path)
    try:
        rename_exchange(trash, last, directory, name)
    except FileNotFoundError:
        return None  # its owner has just removed it
    came_out = Identity.of(os.stat(last, dir_fd=trash, follow_symlinks=False))
    if came_out[:3] != old[:3]:
        rename_exchange(trash, last, directory, name)
        return None
    return came_out


def in_trash(
    directories: Directories, batch: str, path: bytes
) -> tuple[tuple[bytes, Identity], ...]:
    """What the batch's trash has at `path`, as `Replaced.aside` wants it."""
    try:
        trash, last = directories.parent(trash_path(batch, path))
        return ((path, Identity.of(os.stat(last, dir_fd=trash, follow_symlinks=False))),)
    except OSError:
        return ()


def _withdraw(
    root: Root, directories: Directories, batch: str, placing: Placing
) -> tuple[tuple[bytes, Identity], ...]:
    """Undo `_give_name`: the new `.f` into trash, that of the earlier version back."""
    path = placing.claim.path + SUFFIX
    if placing.keep_old:
        return ()
    if placing.old is None:
        there = to_trash(root, directories, batch, path)
        return in_trash(directories, batch, there)
    trash, last = directories.parent(trash_path(batch, path))
    directory, name = directories.parent(path)
    rename_exchange(trash, last, directory, name)
    return in_trash(directories, batch, path)


def _reads_back(
    root: Root,
    directories: Directories,
    batch: str,
    placing: Placing,
    results: dict[bytes, Replaced],
) -> bool:
    path = placing.claim.path
    directory, name = directories.parent(path)
    try:
        raw = read_placeholder(directory, name + SUFFIX, len(placing.manifest) + 1)
        reason = "" if raw == placing.manifest else "its .f did not read back as written"
    except OSError as exc:
        reason = _why(exc)
    if reason:
        results[path] = _withdrawn(root, directories, batch, placing, reason)
    return not reason


def _withdrawn(
    root: Root, directories: Directories, batch: str, placing: Placing, reason: str
) -> Replaced:
    path = placing.claim.path
    try:
        aside = _withdraw(root, directories, batch, placing)
    except OSError as exc:
        # Original and `.f` stay both: nothing is lost, the next try takes it from there.
        log.warning("The new .f of %s stays beside it: %s", os.fsdecode(path), exc)
        aside = in_trash(directories, batch, path + SUFFIX)
    return Replaced(path, reason, aside=aside)


def _take_away(root: Root, directories: Directories, batch: str, entry: _Linked) -> Replaced:
    """Original into trash under its lease; or, when somebody came, the new `.f` into trash."""
    claim = entry.placing.claim
    path = claim.path
    there = trash_path(batch, path)

    def rename() -> None:
        trash, last = directories.made_parent(there)
        # made_parent may have closed other descriptors, so the source is looked up last.
        directory, name = directories.parent(path)
        rename_noreplace(directory, name, trash, last)
        moved = os.stat(last, dir_fd=trash, follow_symlinks=False)
        if (moved.st_ino, moved.st_dev) != (claim.stat.st_ino, claim.stat.st_dev):
            put_back(root, there, path)
            raise OSError(errno.ESTALE, "another file has taken its name")

    def undo() -> None:
        put_back(root, there, path)

    try:
        if claim.move(rename, undo):
            return Replaced(path, "", entry.placeholder, aside=entry.aside)
        reason = "opened for writing meanwhile"
    except OSError as exc:
        reason = _why(exc)
    return _withdrawn(root, directories, batch, entry.placing, reason)


def _with_identity(result: Replaced, claim: Claim) -> Replaced:
    """The identity in trash; rename changes ctime, so it is taken after the sync."""
    if result.reason:
        return result
    return result._replace(trashed=Identity.of(os.fstat(claim.fd)))


def put_back(root: Root, there: bytes, path: bytes) -> bytes:
    """Move a file out of trash to `path`, or beside it when that name is taken. Returns the name.

    Where its directory became something else (a file, a link) it comes to the folder's root.
    """
    with Directories(root) as directories:
        trash, last = directories.parent(there)
        try:
            directory, name = directories.made_parent(path)
        except OSError as exc:
            if exc.errno not in (errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.EEXIST):
                raise
            directory, name, path = root.fd, path.rpartition(b"/")[2], b""
        wanted = name
        while True:
            try:
                rename_noreplace(trash, last, directory, wanted)
                break
            except FileExistsError:
                wanted = free_name(directory, name, b"conflict")
        if wanted == name:
            return path or name
        log.warning("%s is taken; both files are kept.", os.fsdecode(path or name))
        return beside(path, wanted)


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
        file = Nameless(root, directories, directory)
        try:
            write_all(file.fd, raw)
            os.fsync(file.fd)
            directory, name = directories.parent(path)
            if aside:
                # There is no moment in which nothing bears the name.
                kept = free_name(directory, name + b"." + aside, b"again", first=True)
                file.link(directories, directory, kept)
                try:
                    rename_exchange(directory, kept, directory, name)
                except FileNotFoundError:  # the owner was quicker: what lay there has gone
                    os.unlink(kept, dir_fd=directory)
                    raise
            else:
                file.link(directories, directory, name)
        finally:
            file.close()
        os.fsync(directory)


def write_all(fd: int, content: bytes | memoryview) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def _why(exc: OSError) -> str:
    if exc.errno == errno.EROFS:
        return UNWRITABLE
    if exc.errno in (errno.EACCES, errno.EPERM):
        return "its directory cannot be written"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no room on the folder's disk"
    if exc.errno in (errno.EOPNOTSUPP, errno.EISDIR):
        return "its file system cannot hold unnamed files"
    return f"{exc.strerror}"
