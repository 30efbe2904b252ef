"""AUDIT: copies that holders say they keep, and of which the catalog has no proof any more.

After a rebuild the catalog knows copies by their holders' word only. With our own bytes at hand a
holder proves the whole bundle again. Without them random blocks are asked for, whose ids verify
themselves; one wrong or missing block, and the copy does not count.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from p2pstore.clock import Clock
from p2pstore.errors import P2PStoreError
from p2pstore.ids import BlockId, NodeId
from p2pstore.restore import Wanted
from p2pstore.store import BundleRow, BundleState, BundleStore, Catalog, blocks, copies, files
from p2pstore.swarm import Pusher

log = logging.getLogger(__name__)

SAMPLE = 64  # blocks of a bundle that are asked for; the most that one request carries for audits
FILES = 16  # manifests that are read to know blocks of a bundle

BlocksOf = Callable[[bytes], Awaitable[Sequence[Wanted]]]
"""All blocks that a sealed manifest's content needs."""


class Auditor:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: BundleStore,
        pusher: Pusher,
        blocks_of: BlocksOf,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._pusher = pusher
        self._blocks_of = blocks_of
        self._clock = clock

    async def confirm(self, holder: NodeId) -> int:
        """Ask the holder for proofs of its suspect copies; how many count again."""
        confirmed = 0
        suspects = await asyncio.to_thread(self._catalog.view, partial(_suspects, holder))
        for row in suspects:
            try:
                good = await self._is_good(row, holder)
            except P2PStoreError as exc:
                log.info("A copy of bundle %s is not proved: %s", row.bundle_id.hex()[:12], exc)
                continue
            if good:
                now = int(self._clock.wall() * 1000)
                await self._catalog.awrite(partial(_prove, row, holder, now))
                confirmed += 1
        return confirmed

    async def _is_good(self, row: BundleRow, holder: NodeId) -> bool:
        if row.state == BundleState.SEALED and self._store.has(row.bundle_id):
            return await self._pusher.challenge(row.bundle_id, holder, row.seq)
        known = await self._known_blocks(row)
        if not known:
            return False
        sample = random.sample(known, min(SAMPLE, len(known)))
        return await self._pusher.sample(row.bundle_id, row.tag, holder, sample)

    async def _known_blocks(self, row: BundleRow) -> list[BlockId]:
        """Blocks of the bundle, as the manifests of files that need it name them."""
        found: set[BlockId] = set()
        manifests = await asyncio.to_thread(self._catalog.view, partial(_manifests, row.id))
        for raw in manifests:
            wanted = await self._blocks_of(raw)
            found.update(w.block_id for w in wanted if w.ref.bundle_id == row.bundle_id)
            if len(found) >= SAMPLE:
                break
        return sorted(found)


def _suspects(holder: NodeId, db: sqlite3.Connection) -> list[BundleRow]:
    rows: list[BundleRow] = []
    after = 0
    while page := copies.of_holder(db, holder, after=after):
        for copy in page:
            row = blocks.by_rowid(db, copy.bundle)
            if copy.state == copies.CopyState.SUSPECT and row is not None:
                rows.append(row)
        after = page[-1].bundle
    return rows


def _manifests(bundle: int, db: sqlite3.Connection) -> list[bytes]:
    numbers = blocks.files_of_bundle(db, bundle)
    chosen = random.sample(numbers, min(FILES, len(numbers)))
    return [raw for n in chosen if (raw := files.manifest(db, n)) is not None]


def _prove(row: BundleRow, holder: NodeId, now: int, db: sqlite3.Connection) -> None:
    copies.proved(db, row.id, holder, row.seq, now)
