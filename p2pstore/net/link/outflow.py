"""Frames on their way out, and when those who send have to wait.

Frames of one turn of the event loop leave together, small ones joined: one TLS record instead of
many. Senders wait while more than the transport's high mark is unsent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

from p2pstore.net.link.waiting import Bell

JOIN_BELOW = 32 * 1024
FLUSH_AT = 128 * 1024  # not worth waiting for the end of the turn


class Outflow:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._pieces: list[bytes] = []
        self._size = 0
        self._flush_due = False
        self._closed = False
        self._room = Bell()
        self.is_full = False
        self.passed_bytes = 0  # handed to the transport so far

    def attach(self, transport: Any) -> None:
        self._transport = transport

    @property
    def unsent_bytes(self) -> int:
        """What the transport still has."""
        return int(self._transport.get_write_buffer_size())

    def write(self, frames: Iterable[bytes]) -> None:
        if self._closed:
            return
        for piece in frames:
            self._pieces.append(piece)
            self._size += len(piece)
        if self._size >= FLUSH_AT:
            self.flush()
        elif not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush_soon)

    def _flush_soon(self) -> None:
        self._flush_due = False
        self.flush()

    def flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        self.passed_bytes += self._size
        self._size = 0
        if not pieces or self._transport is None or self._transport.is_closing():
            return
        batch = list(_joined(pieces))
        if len(batch) == 1:
            self._transport.write(batch[0])
        else:
            self._transport.writelines(batch)

    def pause(self) -> None:
        self.is_full = True

    def resume(self) -> None:
        self.is_full = False
        self._room.ring()

    async def wait_room(self) -> None:
        """Until what was written has mostly been sent, or nothing will be any more."""
        while self.is_full and not self._closed:
            await self._room.wait()

    def close(self) -> None:
        """From now on whatever is written is dropped."""
        self._closed = True
        self._pieces.clear()
        self._size = 0
        self._room.ring()


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < JOIN_BELOW:
            small.append(piece)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield piece
    if small:
        yield b"".join(small)
