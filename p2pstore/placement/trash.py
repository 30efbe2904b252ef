"""The trash of a watched folder, and the one place in the program that unlinks a user's file.

Step 12 of SAFETY section 3: after `trash_hold` an original goes for good only when nobody has
it open for writing, it is unchanged since it was moved here, and its blocks are still in their
place. Changed, it goes back as a conflict copy. Everything in the trash lies under the path
that it had, so that it explains itself without a catalog.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from blake3 import blake3

from p2pstore.content import MAX_READ, looks_like_manifest
from p2pstore.errors import Busy
from p2pstore.leases import LeaseKeeper, Refused
from p2pstore.placement.claim import Identity
from p2pstore.placement.replace import SUFFIX, put_back, trash_path
from p2pstore.placement.root import TRASH, Directories, Root, read_placeholder

_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW
_PIECE = 1 << 20


class Doomed(NamedTuple):
    """A file in trash that may go when it is still what was put there."""

    path: bytes  # relative to the folder, as before
    identity: Identity  # in trash
    hash: bytes  # BLAKE3 of its content; empty for a placeholder of ours
    rehash: bool  # the lease was lost or the node restarted in between


class Fate(NamedTuple):
    path: bytes
    gone: bool
    moved_back: bytes  # the name under which it went back; empty when it did not
    later: bool  # somebody has it open: ask again


def discard(root: Root, batch: str, doomed: Sequence[Doomed], keeper: LeaseKeeper) -> list[Fate]:
    """Unlink what may go. The caller has checked that every block of each is in its place."""
    fates: list[Fate] = []
    with Directories(root) as directories:
        for item in doomed:
            fates.append(_discard(root, directories, batch, item, keeper))
    if all(fate.gone or fate.moved_back for fate in fates):
        _remove_empty(root, TRASH + b"/" + batch.encode())
    return fates


def _discard(
    root: Root, directories: Directories, batch: str, item: Doomed, keeper: LeaseKeeper
) -> Fate:
    there = trash_path(batch, item.path)
    try:
        directory, name = directories.parent(there)
        fd = os.open(name, _READ | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return Fate(item.path, True, b"", False)
    try:
        try:
            keeper.take(fd, lambda: keeper.release(fd))
        except Busy:
            return Fate(item.path, False, b"", True)
        except Refused as exc:
            if exc.reason == "writer":
                return Fate(item.path, False, b"", True)
        found = Identity.of(os.fstat(fd))
        if not item.hash:
            # A placeholder of ours: renames change only its ctime. Whatever else came here under
            # its name is somebody's file.
            unchanged = found[:3] == item.identity[:3] and looks_like_manifest(os.pread(fd, 64, 0))
        elif item.rehash or found != item.identity:
            unchanged = content_hash(fd) == item.hash
        else:
            unchanged = True
        if unchanged and (not item.hash or keeper.held(fd)):
            os.unlink(name, dir_fd=directory)
            return Fate(item.path, True, b"", False)
        keeper.release(fd)
    finally:
        keeper.release(fd)
        os.close(fd)
    return Fate(item.path, False, put_back(root, there, item.path), False)


def listing(root: Root) -> Iterator[tuple[str, bytes, os.stat_result]]:
    """(batch, path, stat) of every file in the folder's trash, batch after batch by their names."""
    for batch in sorted(_names(root, TRASH)):
        yield from _below(root, batch.decode(errors="replace"), TRASH + b"/" + batch, b"")


def trashed_placeholders(root: Root) -> dict[bytes, bytes]:
    """What files were hydrated from: their path -> the `.f` that went into trash last."""
    found: dict[bytes, bytes] = {}
    with Directories(root) as directories:
        for batch, path, stat in listing(root):
            if not path.endswith(SUFFIX) or stat.st_size > MAX_READ:
                continue
            with contextlib.suppress(OSError):  # gone again, or unreadable: as if it were not there
                directory, name = directories.parent(trash_path(batch, path))
                raw = read_placeholder(directory, name, MAX_READ + 1)
                if looks_like_manifest(raw):
                    found[path.removesuffix(SUFFIX)] = raw
    return found


def _below(
    root: Root, batch: str, directory: bytes, prefix: bytes
) -> Iterator[tuple[str, bytes, os.stat_result]]:
    fd = root.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(fd) as entries:
            found = [
                (
                    os.fsencode(e.name),
                    e.stat(follow_symlinks=False),
                    e.is_dir(follow_symlinks=False),
                )
                for e in entries
            ]
    finally:
        os.close(fd)
    for name, stat, is_directory in found:
        path = prefix + b"/" + name if prefix else name
        if is_directory:
            yield from _below(root, batch, directory + b"/" + name, path)
        else:
            yield batch, path, stat


def _names(root: Root, directory: bytes) -> list[bytes]:
    try:
        fd = root.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return []
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


def _remove_empty(root: Root, directory: bytes) -> None:
    """Remove a batch's directories from the leaves up; what is not empty stays."""
    try:
        fd = root.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        with os.scandir(fd) as entries:
            below = [os.fsencode(e.name) for e in entries if e.is_dir(follow_symlinks=False)]
    finally:
        os.close(fd)
    for name in below:
        _remove_empty(root, directory + b"/" + name)
    parent, _, name = directory.rpartition(b"/")
    with Directories(root) as directories, contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=directories.get(parent))


def content_hash(fd: int) -> bytes:
    """BLAKE3 of all that the descriptor reads."""
    hasher = blake3()
    offset = 0
    while piece := os.pread(fd, _PIECE, offset):
        hasher.update(piece)
        offset += len(piece)
    return hasher.digest()
