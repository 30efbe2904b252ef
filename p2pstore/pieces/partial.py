"""The hidden file beside the target in which a download grows.

    .p2pstore-HASH.part           the content, each piece at its offset
    .p2pstore-HASH.pieces.part    32 bytes: hash of the list of pieces; then, for each piece that is
                                  in the file: seq (8, big-endian), BLAKE3 of its content (32)

HASH is of the key and of the target's name: nobody without the key can make the file beforehand.
What the second file says is believed after a look: the bytes are hashed again when a download goes
on. Order at the end: bytes, fsync, the final name (without overwriting, unless asked), fsync of the
directory, the second file goes. Nothing half-written ever has the final name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3

from p2pstore.content import MAX_PIECES, Piece, UploadMeta, checksum
from p2pstore.durable import name_once
from p2pstore.errors import Busy, NoRoom, P2PStoreError, UsageError
from p2pstore.sandbox import cannot_write
from p2pstore.syscalls import reserve

_HASH: Final = 32
_RECORD: Final = 8 + _HASH
_NO_PROMISE = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Partial:
    """Of one download; made by `open`. `write` may be called by several threads at once."""

    def __init__(self, target: Path, meta: UploadMeta, directory: int, name: str) -> None:
        self._target = target
        self._meta = meta
        self._directory = directory
        self._name = f".p2pstore-{name}.part"
        self._notes_name = f".p2pstore-{name}.pieces.part"
        self._identity = blake3(msgspec.msgpack.encode(meta)).digest()
        self._file = -1
        self._notes = -1
        self.verified: set[int] = set()  # seqs of pieces that `prepare` found in the file
        self.has_pieces = False

    @classmethod
    @contextlib.contextmanager
    def open(cls, target: Path, key: str, meta: UploadMeta) -> Iterator[Partial]:
        """UsageError: nothing can be written there. Busy: the same is being downloaded already.

        NoRoom before a byte is written.
        """
        name = blake3(
            key.encode(errors="surrogatepass") + b"\0" + os.fsencode(target.name),
            derive_key_context="p2pstore 2026 download name",
        ).hexdigest(length=10)
        with contextlib.ExitStack() as opened:
            with translated(target):
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                directory = os.open(target.parent, flags)
            opened.callback(os.close, directory)
            partial = cls(target, meta, directory, name)
            with translated(target):
                partial._file = partial._open_own(partial._name)
                opened.callback(os.close, partial._file)
                partial._lock()
                partial._notes = partial._open_own(partial._notes_name, os.O_APPEND)
                opened.callback(os.close, partial._notes)
            yield partial

    def _open_own(self, name: str, more: int = 0) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | more
        descriptor = os.open(name, flags, 0o666, dir_fd=self._directory)
        status = os.fstat(descriptor)
        is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if is_ours and status.st_nlink == 1:
            return descriptor
        # A second name is that of a finished download, which must not be written to any more.
        os.close(descriptor)
        os.unlink(name, dir_fd=self._directory)
        return os.open(name, flags | os.O_EXCL, 0o666, dir_fd=self._directory)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            here = os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)
        except (BlockingIOError, FileNotFoundError) as exc:
            raise Busy(f"{self._target} is being downloaded already.") from exc
        if not os.path.samestat(here, os.fstat(self._file)):
            raise Busy(f"{self._target} is being downloaded already.")

    # -- going on ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Find what is here already, and take the room for the rest."""
        with translated(self._target):
            raw = os.pread(self._notes, _HASH + _RECORD * MAX_PIECES, 0)
            if raw[:_HASH] == self._identity:
                self._verify(raw[_HASH:])
                # Behind a record that was cut off none could be read.
                os.ftruncate(self._notes, len(raw) - (len(raw) - _HASH) % _RECORD)
            else:
                os.ftruncate(self._file, 0)
                os.ftruncate(self._notes, 0)
                os.write(self._notes, self._identity)
            self._make_room()

    def _verify(self, records: bytes) -> None:
        by_seq = {piece.seq: piece for piece in self._meta.pieces}
        for start in range(0, len(records) - _RECORD + 1, _RECORD):
            piece = by_seq.get(int.from_bytes(records[start : start + 8]))
            if piece is None:
                continue
            content = os.pread(self._file, piece.size, piece.offset)
            noted = records[start + 8 : start + _RECORD]
            # The list's word counts more than ours; some old lists give none.
            is_right = not piece.is_checked or checksum(content) == piece.checksum
            if is_right and len(content) == piece.size and blake3(content).digest() == noted:
                self.verified.add(piece.seq)
                self.has_pieces = True

    def _make_room(self) -> None:
        missing = sum(piece.size for piece in self._meta.pieces if piece.seq not in self.verified)
        usage = os.fstatvfs(self._directory)
        # What an earlier attempt took for pieces that it has not written counts as free.
        taken = os.fstat(self._file).st_blocks * 512 - (self._meta.size - missing)
        free = usage.f_bavail * usage.f_frsize + max(0, taken)
        if free < missing:
            raise NoRoom(
                f"{self._target} needs {missing:,} bytes; there are {max(0, free):,} left."
            )
        try:
            reserve(self._file, 0, self._meta.size)
        except OSError as exc:
            if exc.errno not in _NO_PROMISE:
                raise
        os.ftruncate(self._file, self._meta.size)

    def write(self, piece: Piece, content: bytes) -> None:
        """Its verified content, then the note of it; in a thread."""
        with translated(self._target):
            view, at = memoryview(content), piece.offset
            while view:
                done = os.pwrite(self._file, view, at)
                view, at = view[done:], at + done
            # One call at the end of the file: whole also beside those of other threads.
            os.write(self._notes, piece.seq.to_bytes(8) + blake3(content).digest())
        self.has_pieces = True

    # -- ends -------------------------------------------------------------------------------------

    def publish(self, *, force: bool) -> None:
        """Give it the final name. UsageError when that is taken, and `force` does not say so."""
        with translated(self._target):
            os.fsync(self._file)
            old, new = os.fsencode(self._name), os.fsencode(self._target.name)
            if force:
                os.replace(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            else:
                name_once(self._directory, old, self._directory, new)
            os.fsync(self._directory)
            self._remove(self._notes_name)

    def discard(self) -> None:
        """What is here is of no use to a later attempt."""
        with contextlib.suppress(OSError):
            self._remove(self._notes_name)
            self._remove(self._name)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._directory)


@contextlib.contextmanager
def translated(target: Path) -> Iterator[None]:
    """Errors of the disk as ours."""
    try:
        yield
    except FileExistsError as exc:
        raise exists(target) from exc
    except OSError as exc:
        kind: type[P2PStoreError] = NoRoom if exc.errno in _FULL else UsageError
        raise kind(cannot_write(target, exc)) from exc


def exists(target: Path) -> UsageError:
    return UsageError(
        f"{target} exists; choose another name, or replace it: --force (in Python force=True)."
    )
