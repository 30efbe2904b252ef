"""A bundle file that is put together from the list that its opener signed.

Hides where in the file a block lies, and that it is known only from the bytes which blocks a part
that was cut off has already: each is compared with its id, and its record head with the list.
Blocks come in any order; header, list and footer, all of them signed before by the opener, are
written last:

    header, blocks at the offsets that the list gives them (dead ones are holes),
    list, signature, footer, all cut to length, fsync

The whole file is then `adopt`ed by a store of bundles, which renames it. Not for several threads at
once; a disk error is one of the store that the part is for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from p2pstore.content import (
    RECORD_HEAD,
    BundleIndex,
    LiveMap,
    block_id_of,
    encode_header,
    record_head,
)
from p2pstore.errors import IntegrityError, LocalProtocolError, RemoteProtocolError
from p2pstore.ids import BlockId
from p2pstore.store.disk import DiskBundles

END_MAGIC: Final = b"p2pbend\x01"  # content/bundle.py, footer


class Part:
    def __init__(self, path: Path, index: BundleIndex, live: LiveMap, store: DiskBundles) -> None:
        """Open it, made when it is not there, and see which live blocks are still wanted."""
        self.path = path
        self.index = index
        self.wanted: set[int] = set()
        self._store = store
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with store.failing():
            self._fd = os.open(path, flags, 0o600)
        self._compare(live)

    def write(self, i: int, block: bytes) -> None:
        """Take a block that was `judged`; one that is not wanted is nothing new."""
        if i not in self.wanted:
            return
        self._check_open()
        entry = self.index.blocks.entries[i]
        at = self.index.blocks.offsets()[i] - RECORD_HEAD
        with self._store.failing():
            _write_at(self._fd, at, record_head(entry.block_id, entry.length) + block)
        self.wanted.discard(i)

    def finish(self) -> None:
        """Write what is not a block, and make the file durable."""
        if self.wanted:
            raise RemoteProtocolError(f"{len(self.wanted)} blocks have not been sent.")
        self._check_open()
        listed = self.index.blocks.encode()
        footer = len(listed).to_bytes(4, "big") + bytes(4) + END_MAGIC
        end = self.index.blocks.records_end
        tail = listed + self.index.signature + footer
        with self._store.failing():
            _write_at(self._fd, 0, encode_header(self.index.header))
            _write_at(self._fd, end, tail)
            os.ftruncate(self._fd, end + len(tail))
            os.fsync(self._fd)

    def close(self) -> None:
        """The file stays, for `adopt` or for another try."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _compare(self, live: LiveMap) -> None:
        size = os.fstat(self._fd).st_size
        entries = self.index.blocks.entries
        offsets = self.index.blocks.offsets()
        for i in live.indices():
            block_id, length = entries[i]
            is_short = offsets[i] + length > size
            if is_short or not self._has(offsets[i], block_id, length):
                self.wanted.add(i)

    def _has(self, offset: int, block_id: BlockId, length: int) -> bool:
        record = self._read(offset - RECORD_HEAD, RECORD_HEAD + length)
        is_headed = record[:RECORD_HEAD] == record_head(block_id, length)
        return is_headed and block_id_of(record[RECORD_HEAD:]) == block_id

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError:
            return b""  # unreadable is not here: it is written again

    def _check_open(self) -> None:
        if self._fd < 0:
            raise LocalProtocolError("This part of a bundle was closed: begin it again.")
        self._store.refuse_when_failed()


def judge(index: BundleIndex, i: int, block: bytes) -> None:
    """IntegrityError unless it is block `i` of the list; RemoteProtocolError: there is none."""
    if not 0 <= i < len(index.blocks):
        raise RemoteProtocolError(f"The list has no block {i}.")
    entry = index.blocks.entries[i]
    if len(block) != entry.length or block_id_of(block) != entry.block_id:
        raise IntegrityError(f"Block {i} is not what its id says.")


def _write_at(fd: int, offset: int, raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]
