"""What an upload that was interrupted has put already, so that it can go on.

One file for each (place, path), 0600 since it holds the secret of the upload, locked while it is in
use. Lines of JSON: first {identity, seed}, then one piece each, appended when it was put. A line
that was cut off is dropped with all behind it: those pieces are put again. The file goes, durably,
before a key is given: a journal that came back would let two uploads share their pieces.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from blake3 import blake3

from p2pstore.content import MAX_PIECES, Piece
from p2pstore.durable import sync_directory
from p2pstore.errors import Busy, UsageError
from p2pstore.sandbox import cannot_write

MAX_JOURNAL: Final = 64 << 20  # twice what the longest list of pieces has


class _Head(msgspec.Struct):
    identity: list[int | str]
    seed: bytes


class Journal:
    """Of one upload; made by `open`."""

    def __init__(self, path: Path, descriptor: int, identity: Sequence[int | str]) -> None:
        self.pieces: dict[int, Piece] = {}
        self._path = path
        self._descriptor = descriptor
        self._identity = list(identity)
        self._seed: bytes | None = None
        self._read()

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, directory: Path, place: str, path: str, identity: Sequence[int | str]
    ) -> Iterator[Journal]:
        """That of an upload of `path` to `place`; Busy when another one is at work on it.

        What it says of a file with another `identity` is forgotten.
        """
        name = blake3(place.encode() + b"\0" + os.fsencode(path)).hexdigest(length=20)
        file = directory / f"{name}.upload"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(file, flags, 0o600)
        except OSError as exc:
            raise UsageError(cannot_write(file, exc)) from exc
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise Busy(f"{os.path.basename(path)} is being uploaded there already.") from exc
            yield cls(file, descriptor, identity)
        finally:
            os.close(descriptor)

    def _read(self) -> None:
        lines = os.pread(self._descriptor, MAX_JOURNAL, 0).split(b"\n")[:-1]
        good = 0
        try:
            for number, line in enumerate(lines[: MAX_PIECES + 1]):
                if number == 0:
                    head = msgspec.json.decode(line, type=_Head)
                    if head.identity != self._identity:
                        break
                    self._seed = head.seed
                else:
                    piece = msgspec.json.decode(line, type=Piece)
                    self.pieces[piece.seq] = piece
                good += len(line) + 1
        except ValueError:
            pass  # cut off: what was read so far holds
        os.ftruncate(self._descriptor, good)

    def seed(self, fresh: bytes) -> bytes:
        """The random bytes of the upload that goes on, or else `fresh`, which are kept."""
        if self._seed is None or len(self._seed) != len(fresh):
            self._seed = fresh
            self.pieces.clear()
            with self._translated():
                os.ftruncate(self._descriptor, 0)
            self._append(msgspec.json.encode(_Head(self._identity, fresh)))
        return self._seed

    def add(self, piece: Piece) -> None:
        """Remember a piece that lies in its place. Not synced: at worst it is put again."""
        self._append(msgspec.json.encode(piece))

    def _append(self, line: bytes) -> None:
        with self._translated():
            os.write(self._descriptor, line + b"\n")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            raise UsageError(cannot_write(self._path, exc)) from exc

    def remove(self) -> None:
        """The upload is complete or cannot go on."""
        self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
