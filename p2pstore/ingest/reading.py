"""Reading a user's file that may change, shrink or vanish at any time.

Never through a memory map (truncation by its owner would be SIGBUS), never trusting the size that
stat said: what is read is compared with it, and a difference means that somebody writes.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Iterator
from queue import Empty, SimpleQueue

from blake3 import blake3

from p2pstore.content import CHUNK_MAX, Chunker, data_segments
from p2pstore.syscalls import data_extents

WINDOW = 4 << 20  # bytes read, cut and sealed at a time: sixteen chunks, bounds memory
_ZEROS = bytes(1 << 20)


class ChangedWhileRead(Exception):
    """The file is not what stat said; it will come to rest again later."""


def read_whole(fd: int, size: int) -> bytes:
    """A file of at most `WINDOW` bytes; raises ChangedWhileRead when it is longer or shorter."""
    content = os.pread(fd, size + 1, 0)
    if len(content) != size:
        raise ChangedWhileRead
    return content


def holes_of(fd: int, stat: os.stat_result) -> tuple[tuple[int, int], ...]:
    """(offset, length) of each hole, in order; empty for a file that is not sparse."""
    size = stat.st_size
    if stat.st_blocks * 512 >= size or not stat_module.S_ISREG(stat.st_mode):
        return ()
    holes: list[tuple[int, int]] = []
    at = 0
    for start, length in data_extents(fd, size):
        if start > at:
            holes.append((at, start - at))
        at = start + length
    if at < size:
        holes.append((at, size - at))
    return tuple(holes)


class Windows:
    """A large file as reused buffers that each begin with whole chunks.

    Iterating gives (buffer, lengths of the chunks from its start); `hash` is the BLAKE3 of the
    whole file, holes as zeros, once the iteration has ended. Give a buffer back with `spare.put`.
    """

    def __init__(self, fd: int, size: int, holes: tuple[tuple[int, int], ...]) -> None:
        self._fd = fd
        self._size = size
        self._segments = data_segments(size, holes)
        self._hasher = blake3()
        self._hashed = 0
        self.spare: SimpleQueue[bytearray] = SimpleQueue()

    @property
    def hash(self) -> bytes:
        self._hash_hole(self._size)
        return self._hasher.digest()

    def __iter__(self) -> Iterator[tuple[bytearray, list[int]]]:
        chunker = Chunker()
        carry = b""
        data_left = sum(length for _, length in self._segments)
        position = 0  # within the data, holes left out
        while data_left or carry:
            buffer = self._buffer()
            view = memoryview(buffer)
            view[: len(carry)] = carry
            filled = len(carry) + self._fill(
                view[len(carry) : len(carry) + min(WINDOW, data_left)], position
            )
            position += filled - len(carry)
            data_left -= filled - len(carry)
            lengths = chunker.cut(view[:filled], final=not data_left)
            carry = bytes(view[sum(lengths) : filled])
            yield buffer, lengths

    def _buffer(self) -> bytearray:
        try:
            return self.spare.get_nowait()
        except Empty:
            return bytearray(WINDOW + CHUNK_MAX)

    def _fill(self, view: memoryview, position: int) -> int:
        """Fill `view` with the data from `position` on; exactly, or ChangedWhileRead."""
        done = 0
        for offset, length in self._segments:
            if position >= length:
                position -= length
                continue
            while done < len(view) and position < length:
                want = min(len(view) - done, length - position)
                got = os.preadv(self._fd, [view[done : done + want]], offset + position)
                if got == 0:
                    raise ChangedWhileRead
                self._hash_hole(offset + position)
                self._hasher.update(view[done : done + got])
                self._hashed = offset + position + got
                done += got
                position += got
            if done == len(view):
                break
            position = 0
        return done

    def _hash_hole(self, until: int) -> None:
        while self._hashed < until:
            step = min(until - self._hashed, len(_ZEROS))
            self._hasher.update(memoryview(_ZEROS)[:step])
            self._hashed += step
