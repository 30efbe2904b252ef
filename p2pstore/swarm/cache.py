"""Blocks that were fetched one by one, kept on the disk for a while.

It saves a second fetch when somebody seeks in a video or reads a range again. It is never a copy:
nothing counts on it, it is not synced, and a block that is damaged here is simply fetched again.
The blocks used last stay; which those are is forgotten at a restart, when the files' times tell.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from p2pstore.content import block_id_of
from p2pstore.ids import BlockId

log = logging.getLogger(__name__)

CACHE_BYTES: Final = 256 << 20


class BlockCache:
    """Blocks on the disk; any thread may call. A disk that fails only empties it."""

    def __init__(self, root: Path, limit: int = CACHE_BYTES) -> None:
        self._root = root
        self._limit = limit
        self._lock = threading.Lock()
        self._sizes: OrderedDict[BlockId, int] = OrderedDict()
        self._used = 0
        self._is_loaded = False

    def read(self, block_ids: Iterable[BlockId]) -> dict[BlockId, bytes]:
        found: dict[BlockId, bytes] = {}
        with self._lock:
            self._load()
            known = [block for block in block_ids if block in self._sizes]
            for block_id in known:
                self._sizes.move_to_end(block_id)
        for block_id in known:
            with suppress(OSError):
                block = self._path(block_id).read_bytes()
                if block_id_of(block) == block_id:
                    found[block_id] = block
                    continue
            self._drop(block_id)
        return found

    def write(self, blocks: Mapping[BlockId, bytes]) -> None:
        for block_id, block in blocks.items():
            try:
                self._write(block_id, block)
            except OSError as exc:
                log.debug("A fetched block is not kept: %s", exc)
                return

    def _write(self, block_id: BlockId, block: bytes) -> None:
        with self._lock:
            self._load()
            if block_id in self._sizes or len(block) > self._limit:
                return
            self._sizes[block_id] = len(block)
            self._used += len(block)
            doomed: list[BlockId] = []
            while self._used > self._limit:
                old, size = self._sizes.popitem(last=False)
                self._used -= size
                doomed.append(old)
        for old in doomed:
            self._path(old).unlink(missing_ok=True)
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._path(block_id)
            temporary = path.with_suffix(".new")
            temporary.write_bytes(block)
            temporary.rename(path)
        except OSError:
            self._drop(block_id)
            raise

    def _drop(self, block_id: BlockId) -> None:
        with self._lock:
            self._used -= self._sizes.pop(block_id, 0)
        with suppress(OSError):
            self._path(block_id).unlink(missing_ok=True)

    def _load(self) -> None:
        if self._is_loaded:
            return
        self._is_loaded = True
        found: list[tuple[float, BlockId, int]] = []
        with suppress(OSError):
            for entry in os.scandir(self._root):
                raw = b""
                with suppress(ValueError):
                    raw = bytes.fromhex(entry.name)
                if len(raw) != 32:
                    os.unlink(entry.path)
                    continue
                stat = entry.stat()
                found.append((stat.st_mtime, BlockId(raw), stat.st_size))
        for _, block_id, size in sorted(found):
            self._sizes[block_id] = size
            self._used += size

    def _path(self, block_id: BlockId) -> Path:
        return self._root / block_id.hex()
