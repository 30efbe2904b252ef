"""HYDRATE on disk, steps 3 to 6 of SAFETY section 4: complete, verified content gets a name.

`arrive` places many small files with shared syncs; `Arrival` takes one large file window by window.
Content exists without a name until it is whole, and is linked, never renamed over anything. The
placeholder goes to trash last. A crash before the link leaves the `.f` alone; after it, both, and
the open journal row says that the original came from it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from blake3 import blake3

from p2pstore.content import FileMeta
from p2pstore.errors import NoRoom, Unavailable
from p2pstore.placement.claim import Identity
from p2pstore.placement.nameless import Nameless
from p2pstore.placement.replace import put_back, to_trash, trash_path
from p2pstore.placement.root import (
    TEMPORARY,
    Directories,
    Root,
    beside,
    free_name,
    read_placeholder,
)
from p2pstore.syscalls import rename_exchange, rename_noreplace, reserve, start_writing

log = logging.getLogger(__name__)

AT_ONCE = 64 << 10  # bytes that one write puts into place or none
IOV_MAX = 1024  # buffers that one call takes on Linux
SAFE_MODE = 0o1777  # setuid and setgid never come back by themselves


@dataclass(frozen=True, slots=True)
class Landing:
    """Where one file comes back."""

    path: bytes  # the name it gets, unless that is taken
    placeholder: bytes  # the `.f` (or a placeholder of another name) that it comes from
    meta: FileMeta  # with xattrs and holes filled in
    batch: str  # the trash batch that takes the placeholder
    raw: bytes  # the placeholder as it was read: another one that took its name is not ours to take


class Displaced(NamedTuple):
    """A placeholder in the trash of its batch."""

    path: bytes
    identity: Identity


class Landed(NamedTuple):
    path: bytes  # the name that it got
    identity: Identity
    trashed: Displaced | None  # the placeholder; None when it could not or must not go


def swap_path(batch: str, path: bytes) -> bytes:
    """Where an original and the placeholder that bears its name change places."""
    return b"%s/swap-%s-%s" % (TEMPORARY, batch.encode(), blake3(path).hexdigest()[:16].encode())


def remove_copy(root: Root, temporary: bytes) -> None:
    """Unlink one of our own temporary files, whose content is elsewhere."""
    with Directories(root) as directories:
        own, name = directories.parent(temporary)
        os.unlink(name, dir_fd=own)


class Arrival:
    """One file that comes back; not thread-safe, each call may block on the disk."""

    def __init__(self, root: Root, landing: Landing) -> None:
        self._root = root
        self.landing = landing
        self._file: Nameless | None = None

    def begin(self, among: Directories | None = None) -> None:
        """Reserve the room; NoRoom before the first byte is written.

        `among`: directories that are kept open for several files, whose contents are at hand: of
        these a small one is written at once, which reserves as well as fallocate and costs half.
        """
        landing = self.landing
        with contextlib.ExitStack() as own:
            directories = among or own.enter_context(Directories(self._root))
            directory, _ = directories.made_parent(landing.path)
            self._file = Nameless(self._root, directories, directory)
        try:
            if among is None or landing.meta.holes or landing.meta.size > AT_ONCE:
                self._reserve()
        except OSError as exc:
            self.abort()
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoRoom(
                    f"{os.fsdecode(landing.path)} needs {landing.meta.size} bytes on its disk; "
                    "there is less room."
                ) from exc
            raise

    @property
    def _begun(self) -> Nameless:
        if self._file is None:
            raise ValueError("begin() comes first")
        return self._file

    @property
    def _fd(self) -> int:
        return self._begun.fd

    def _reserve(self) -> None:
        size = self.landing.meta.size
        os.ftruncate(self._fd, size)
        if size and not self.landing.meta.holes:
            try:
                reserve(self._fd, 0, size)
            except OSError as exc:
                # A file system without fallocate: writes will say when there is no room.
                if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                    raise

    def write(self, pieces: Iterable[tuple[int, bytes | memoryview]]) -> None:
        """(offset in the file, bytes) in any order; neighbours are written in one call."""
        for offset, run in _runs(pieces):
            at = offset
            while run:
                done = os.pwritev(self._fd, run, at)
                at += done
                while run and done >= len(run[0]):
                    done -= len(run.pop(0))
                if done:
                    run[0] = run[0][done:]
            if at - offset > AT_ONCE:
                start_writing(self._fd, offset, at - offset)

    def settle(self, *, sync: bool = True) -> None:
        """Content is whole: metadata, times last, fsync."""
        meta, fd = self.landing.meta, self._fd
        if os.geteuid() == 0:
            os.fchown(fd, meta.uid, meta.gid)
        # Attributes before the mode: a file that its owner may not write takes none from him.
        for name, value in meta.xattrs:
            with contextlib.suppress(OSError):  # another file system may not know the attribute
                os.setxattr(fd, name, value)
        os.fchmod(fd, meta.mode & SAFE_MODE)
        os.utime(fd, ns=(meta.mtime_ns, meta.mtime_ns))
        if sync:
            os.fsync(fd)

    def name(self, directories: Directories) -> tuple[bytes, Identity]:
        """Give it its name; a taken one is never touched, a free one beside it is used."""
        landing = self.landing
        directory, name = directories.made_parent(landing.path)
        if landing.path == landing.placeholder:
            return self._exchange(directories, directory, name)
        wanted = name
        while True:
            try:
                self._begun.link(directories, directory, wanted)
                break
            except FileExistsError:
                wanted = free_name(directory, name, b"hydrated")
        return beside(landing.path, wanted), Identity.of(os.fstat(self._fd))

    def _exchange(
        self, directories: Directories, directory: int, name: bytes
    ) -> tuple[bytes, Identity]:
        """A placeholder that bears the original's own name: the two change places at once.

        What comes out is looked at: were it not the placeholder, it would go straight back.
        """
        landing = self.landing
        own = directories.make(TEMPORARY)
        temporary = swap_path(landing.batch, landing.path).rpartition(b"/")[2]
        self._begun.link(directories, own, temporary)
        try:
            rename_exchange(own, temporary, directory, name)
        except OSError:
            os.unlink(temporary, dir_fd=own)  # it has no other name; the placeholder stands
            raise
        if not holds(own, temporary, landing.raw):
            rename_exchange(own, temporary, directory, name)
            if os.stat(temporary, dir_fd=own).st_ino == os.fstat(self._fd).st_ino:
                os.unlink(temporary, dir_fd=own)
            raise Unavailable(f"{os.fsdecode(name)} was changed while it was brought back.")
        trash, last = directories.made_parent(trash_path(landing.batch, landing.placeholder))
        rename_noreplace(directories.get(TEMPORARY), temporary, trash, last)
        return landing.path, Identity.of(os.fstat(self._fd))

    def abort(self) -> None:
        """Forget it; without a name nothing of it is left."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        self.abort()


def finish(
    root: Root, arrivals: Sequence[Arrival], *, synced: bool
) -> list[Landed | OSError | Unavailable]:
    """Name each, sync once, then take the placeholders away, sync again.

    One that cannot have a name does not stop the others; a sync that fails does.
    """
    results: list[Landed | OSError | Unavailable] = []
    with Directories(root) as directories:
        if not synced:
            root.sync()
        for arrival in arrivals:
            try:
                path, identity = arrival.name(directories)
                results.append(Landed(path, identity, None))
            except (OSError, Unavailable) as exc:
                results.append(exc)
        root.sync()
        for position, arrival in enumerate(arrivals):
            result, landing = results[position], arrival.landing
            if isinstance(result, Landed):
                if landing.path == landing.placeholder:
                    trashed = _displaced(directories, landing)
                else:
                    trashed = _displace(root, directories, landing)
                results[position] = result._replace(trashed=trashed)
        root.sync()
    return results


def displace(root: Root, landings: Sequence[Landing]) -> list[Landed]:
    """The originals are there already: only their placeholders go."""
    landed: list[Landed] = []
    with Directories(root) as directories:
        for landing in landings:
            directory, name = directories.parent(landing.path)
            identity = Identity.of(os.stat(name, dir_fd=directory, follow_symlinks=False))
            landed.append(Landed(landing.path, identity, _displace(root, directories, landing)))
        root.sync()
    return landed


def _displace(root: Root, directories: Directories, landing: Landing) -> Displaced | None:
    """The placeholder into trash."""
    try:
        trashed = to_trash(root, directories, landing.batch, landing.placeholder)
        there = trash_path(landing.batch, trashed)
        trash, last = directories.parent(there)
        if holds(trash, last, landing.raw):
            return _found(trashed, trash, last)
        # Somebody saved over it meanwhile: that is his file.
        put_back(root, there, landing.placeholder)
    except OSError as exc:
        if not isinstance(exc, FileNotFoundError):  # its owner was quicker
            log.warning("%s stays: %s", os.fsdecode(landing.placeholder), exc)
    return None


def _displaced(directories: Directories, landing: Landing) -> Displaced | None:
    """A placeholder that changed places with its original lies in trash already."""
    with contextlib.suppress(FileNotFoundError):
        trash, last = directories.parent(trash_path(landing.batch, landing.placeholder))
        return _found(landing.placeholder, trash, last)
    return None


def _found(trashed: bytes, trash: int, last: bytes) -> Displaced:
    return Displaced(trashed, Identity.of(os.stat(last, dir_fd=trash, follow_symlinks=False)))


def holds(directory: int, name: bytes, raw: bytes) -> bool:
    """Whether a name has exactly these bytes."""
    return read_placeholder(directory, name, len(raw) + 1) == raw


def arrive(
    root: Root, files: Sequence[tuple[Landing, bytes]]
) -> list[Landed | OSError | Unavailable | NoRoom]:
    """Small files whose whole content is at hand and verified: three syncs for all of them."""
    results: list[Landed | OSError | Unavailable | NoRoom | None] = [None] * len(files)
    arrivals: list[tuple[int, Arrival]] = []
    try:
        with Directories(root) as directories:
            for position, (landing, content) in enumerate(files):
                arrival = Arrival(root, landing)
                try:
                    arrival.begin(directories)
                    arrivals.append((position, arrival))
                    arrival.write(_segments(landing.meta, content))
                    arrival.settle(sync=False)
                except (OSError, NoRoom) as exc:
                    results[position] = exc
                    if arrivals and arrivals[-1][1] is arrival:
                        arrivals.pop()
                    arrival.abort()
        landed = finish(root, [arrival for _, arrival in arrivals], synced=False)
        for (position, _), result in zip(arrivals, landed, strict=True):
            results[position] = result
    finally:
        for _, arrival in arrivals:
            arrival.close()
    return [result for result in results if result is not None]


def _runs(
    pieces: Iterable[tuple[int, bytes | memoryview]],
) -> Iterator[tuple[int, list[memoryview]]]:
    """Pieces that lie one behind the other, as many as one call takes: their offset, and them."""
    start = end = 0
    run: list[memoryview] = []
    for offset, piece in pieces:
        if run and (offset != end or len(run) == IOV_MAX):
            yield start, run
            run = []
        if not run:
            start = end = offset
        if piece:
            run.append(memoryview(piece))
            end += len(piece)
    if run:
        yield start, run


def _segments(meta: FileMeta, content: bytes) -> Iterable[tuple[int, memoryview]]:
    """The content without what lies in holes."""
    view, at = memoryview(content), 0
    for offset, length in meta.holes:
        if offset > at:
            yield at, view[at:offset]
        at = offset + length
    if at < len(content):
        yield at, view[at:]
