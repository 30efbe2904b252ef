"""HEAL: a bundle of ours that is damaged on this disk, or gone from it, is made whole again.

    list     the bundle's own, if it can still be read; else what a holder has of it
    part     a copy of the damaged file, in which every block is compared with its id: the good
             ones stay, the bad ones are wanted
    blocks   from the other places of this disk, and from whoever holds them
    file     completed, synced, renamed over the damaged one; read back from the disk
    row      as it was; a bundle that was given up (LOST) is here again

Nothing is taken away before all of it is there: when a block is to be had nowhere, the damaged file
stays as it is, with the blocks that are good.

Whoever finds damage notes it (kv "heal:damaged"); the loop tries these until they are whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import msgspec

from p2pstore.content import block_id_of
from p2pstore.errors import Busy, IntegrityError, NoRoom, P2PStoreError, Unavailable
from p2pstore.ids import BundleId, short
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.refetch import (
    Listed,
    Refetcher,
    drop_part,
    wanted_of,
    windows,
    write_window,
)
from p2pstore.restore import BlockSource
from p2pstore.store import (
    BundleDamaged,
    BundleRow,
    BundleState,
    Catalog,
    DiskBundles,
    Part,
    blocks,
    folders,
)
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

MAX_NOTED = 10_000  # a disk that fails everywhere is found by a check
_KEY = "heal:damaged"
PIECE = 64 * 1024  # read at a time of a damaged file: a bad sector takes no more with it


class Healer:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: DiskBundles,
        refetcher: Refetcher,
        source: BlockSource,
        free: Callable[[], int],
        pool: Executor,
    ) -> None:
        """`free` bytes are there above keep-free."""
        self._catalog = catalog
        self._store = store
        self._refetcher = refetcher
        self._source = source
        self._free = free
        self._pool = pool
        self._running: set[BundleId] = set()
        self._wake: Callable[[], None] = lambda: None

    # -- the loop ---------------------------------------------------------------------------------

    def woken_by(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def damaged(self) -> list[BundleId]:
        """What was noted and is not whole yet. Blocks on the catalog."""
        return self._catalog.view(_noted)

    async def note(self, bundle_id: BundleId) -> None:
        """It is damaged: the loop sees to it."""
        await self._catalog.awrite(lambda db: _note(db, bundle_id))
        self._wake()

    async def turn(self, loop: Loop) -> None:
        noted = await in_thread(self._pool, self.damaged)
        for done, bundle_id in enumerate(noted):
            loop.say("heals damaged bundles", done, len(noted))
            try:
                await self.heal(bundle_id)
            except P2PStoreError as exc:
                log.info("Bundle %s is healed later: %s", short(bundle_id), exc)

    # -- one bundle -------------------------------------------------------------------------------

    async def heal(self, bundle_id: BundleId) -> bool:
        """Whether something was wrong; it no longer is. Unavailable when a block is nowhere."""
        row = await in_thread(self._pool, self._row, bundle_id)
        if row is None:  # it went, and with it what was wrong
            await self._catalog.awrite(lambda db: _strike(db, bundle_id))
            return False
        if row.state in (BundleState.EVICTED, BundleState.LOST):
            await self._refetcher.refetch(row)
            await self._catalog.awrite(lambda db: _strike(db, bundle_id))
            return True
        if row.state != BundleState.SEALED:
            raise Busy(f"Bundle {short(bundle_id)} is being moved.")
        if bundle_id in self._running:
            raise Busy(f"Bundle {short(bundle_id)} is being healed already.")
        self._running.add(bundle_id)
        try:
            was_wrong = await self._heal(row)
            await self._catalog.awrite(lambda db: _strike(db, bundle_id))
            return was_wrong
        finally:
            self._running.discard(bundle_id)

    async def _heal(self, row: BundleRow) -> bool:
        if self._free() < row.bytes:
            raise NoRoom(f"There is no room to heal bundle {short(row.bundle_id)}: free some.")
        own = await in_thread(self._pool, self._own_list, row)
        listed = own or await self._refetcher.listed(row)
        part = await in_thread(self._pool, self._begin, listed)
        try:
            wanted = sorted(part.wanted)
            if own is not None and not wanted:
                return False
            for window in windows(listed.index, wanted):
                found = await self._source.blocks(wanted_of(row, listed.index, window))
                await in_thread(self._pool, write_window, part, window, found)
            await in_thread(self._pool, self._finish, row, part, listed, own is None)
            return True
        finally:
            await in_thread(self._pool, drop_part, part)

    # -- in threads --------------------------------------------------------------------------------

    def _row(self, bundle_id: BundleId) -> BundleRow | None:
        return self._catalog.view(lambda db: blocks.exactly(db, bundle_id))

    def _own_list(self, row: BundleRow) -> Listed | None:
        """What the file itself says, if list and live map can be read."""
        self._store.forget(row.bundle_id)
        try:
            signed = self._store.signed_live_map(row.bundle_id)
            return Listed(
                self._store.index(row.bundle_id), self._store.live_map(row.bundle_id), signed
            )
        except (Unavailable, IntegrityError):
            return None

    def _begin(self, listed: Listed) -> Part:
        bundle_id = listed.index.header.bundle_id
        path = self._store.part_path(bundle_id)
        if self._store.has(bundle_id):
            _copy_readable(self._store.path(bundle_id), path)
        return Part(path, listed.index, listed.live, self._store)

    def _finish(self, row: BundleRow, part: Part, listed: Listed, new_map: bool) -> None:
        part.finish()
        part.close()
        signed = listed.signed if new_map else None
        self._store.adopt(part.path, listed.index, signed, instead=True)
        self._read_back(row.bundle_id)
        if self._catalog.write(partial(_is_here, row)).result():
            return
        # It was evicted meanwhile, with its holders' proofs.
        self._store.to_trash(row.bundle_id)
        self._store.purge(row.bundle_id)

    def _read_back(self, bundle_id: BundleId) -> None:
        self._store.drop_cache(bundle_id)
        index, live = self._store.index(bundle_id), self._store.live_map(bundle_id)
        for window in windows(index, live.indices()):
            for i, block in zip(window, self._store.read(bundle_id, window), strict=True):
                if block_id_of(block) != index.blocks.entries[i].block_id:
                    raise BundleDamaged(
                        bundle_id, f"block {i} does not read back: look at the disk"
                    )


def _copy_readable(source: Path, target: Path) -> None:
    """What the disk does not give stays a hole: its blocks are wanted, like any other bad ones."""
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        size = os.fstat(read.fileno()).st_size
        write.truncate(size)
        for at in range(0, size, PIECE):
            with contextlib.suppress(OSError):
                os.pwrite(write.fileno(), os.pread(read.fileno(), PIECE, at), at)


def _noted(db: sqlite3.Connection) -> list[BundleId]:
    raw = folders.kv_get(db, _KEY)
    return [] if raw is None else msgspec.msgpack.decode(raw, type=list[BundleId])


def _note(db: sqlite3.Connection, bundle_id: BundleId) -> None:
    noted = dict.fromkeys([*_noted(db), bundle_id])
    folders.kv_set(db, _KEY, msgspec.msgpack.encode(list(noted)[-MAX_NOTED:]))


def _strike(db: sqlite3.Connection, bundle_id: BundleId) -> None:
    noted = _noted(db)
    if bundle_id in noted:
        left = [one for one in noted if one != bundle_id]
        folders.kv_set(db, _KEY, msgspec.msgpack.encode(left))


def _is_here(row: BundleRow, db: sqlite3.Connection) -> bool:
    now = blocks.by_rowid(db, row.id)
    return now is not None and now.state in (BundleState.SEALED, BundleState.EVICTING)
