"""REACHING: meta blocks from this disk, and from the swarm what is not here."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Mapping, Sequence

from p2pstore.content import Kind
from p2pstore.errors import P2PStoreError
from p2pstore.ids import BlockId, BundleId
from p2pstore.maintenance.filing import Local, Place
from p2pstore.restore import BlockSource, Wanted
from p2pstore.store import BundleStore

log = logging.getLogger(__name__)


class Reaching(Local):
    """Payloads from this disk, and what is not here from the swarm. Not for the loop's thread."""

    def __init__(
        self,
        store: BundleStore,
        meta: Sequence[BundleId],
        source: BlockSource,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__(store, meta)
        self._source = source
        self._loop = loop

    def find_missing(self, places: Sequence[Place], found: dict[BlockId, bytes]) -> None:
        super().find_missing(places, found)
        wanted = {e.block: Wanted(ref, e.block) for ref, e in places if e.block not in found}
        if not wanted:
            return
        for _ in range(2):  # the second time without those that are nowhere
            try:
                found.update(self._fetch(list(wanted.values())))
                return
            except P2PStoreError as exc:
                nowhere = getattr(exc, "missing", None)
                log.info("Some blocks of lists and manifests are not to be had: %s", exc)
                if not nowhere:
                    return
                for block_id in nowhere:
                    wanted.pop(block_id, None)
                if not wanted:
                    return

    def _fetch(self, wanted: Sequence[Wanted]) -> Mapping[BlockId, bytes]:
        work = asyncio.run_coroutine_threadsafe(_blocks(self._source, wanted), self._loop)
        return work.result()


async def _blocks(source: BlockSource, wanted: Sequence[Wanted]) -> Mapping[BlockId, bytes]:
    return await source.blocks(wanted)


def meta_bundles(store: BundleStore, db: sqlite3.Connection) -> list[BundleId]:
    """Those that lie here."""
    query = "SELECT bundle_id FROM bundles WHERE kind=? AND state='sealed'"
    rows = db.execute(query, (int(Kind.META),)).fetchall()
    return [BundleId(bundle) for (bundle,) in rows if store.has(bundle)]
