"""COLLECT: bundles of superseded indexes go, here and at their holders.

Each index leaves behind what only the one before it lay in: about a megabyte for each minute in
which something changed. Nothing else is ever collected here: whether a file's block is dead can
only be said when every device's index has been read (SAFETY section 5).

    superseded   `IndexWriter` moves a bundle that the published index needs no more from the root
                 of the index to a root of its own, dated
    7 days       it stays whole, here and at its holders
    dropped      the row EVICTING, trash, unlink, row EVICTED, as an evict, but without proofs: in
                 the transaction that begins it nothing else may refer to the bundle
    released     each holder is asked to let it go (7 more days in its trash); who does not answer
                 is asked again
    forgotten    when no holder is left the rows go

Only while the folder's newest head covers everything and every holder of ours has acknowledged it:
who recovers from one of them alone finds the new index, not the old one. Not within 30 days of a
rebuild, nor while lists could not be read. Whatever is interrupted is begun again: `recover` brings
back what lies in the trash.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from functools import partial

import msgspec

from p2pstore.clock import Clock
from p2pstore.errors import Busy, P2PStoreError
from p2pstore.ids import NodeId, short
from p2pstore.maintenance.facts import Ledger, World
from p2pstore.maintenance.index import SUPERSEDED, superseded_since
from p2pstore.maintenance.rebuild import state as rebuild_state
from p2pstore.store import (
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    IntentKind,
    blocks,
    copies,
    journal,
)
from p2pstore.swarm import OwnPromises, Pusher
from p2pstore.threads import in_thread
from p2pstore.wire import Unknown

log = logging.getLogger(__name__)

KEPT_MS = 7 * 86_400_000
AFTER_REBUILD_MS = 30 * 86_400_000
PAGE = 200  # bundles of one turn


class Collector:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: BundleStore,
        ledger: Ledger,
        pusher: Pusher,
        promises: OwnPromises,
        world: Callable[[], World],
        clock: Clock,
        pool: Executor,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._ledger = ledger
        self._pusher = pusher
        self._promises = promises
        self._world = world
        self._clock = clock
        self._pool = pool

    async def run(self) -> int:
        """One turn; how many bundles were forgotten."""
        forgotten = 0
        for row in await in_thread(self._pool, self._ripe):
            try:
                if row.state == BundleState.SEALED:
                    await in_thread(self._pool, self._drop, row)
                elif row.state == BundleState.EVICTED:
                    await self._release(row)
                    forgotten += await self._catalog.awrite(partial(_forget, row))
            except P2PStoreError as exc:
                log.info("Bundle %s is collected later: %s", short(row.bundle_id), exc)
        return forgotten

    # -- which ------------------------------------------------------------------------------------

    def _ripe(self) -> list[BundleRow]:
        """Superseded long enough, in folders whose newest head everybody has."""
        now_ms = int(self._clock.wall() * 1000)
        world = self._world()
        if world.rebuilding or self._was_rebuilt_lately(now_ms):
            return []

        def look(db: sqlite3.Connection) -> list[BundleRow]:
            rows: dict[int, BundleRow] = {}
            for root in blocks.roots_with(db, SUPERSEDED):
                folder_id, since = superseded_since(root)
                if since > now_ms - KEPT_MS or folder_id not in world.clean:
                    continue
                for row in _bundles_of(db, root):
                    rows[row.id] = row
                if len(rows) >= PAGE:
                    break
            return list(rows.values())

        ripe = self._catalog.view(look)
        holders = set(self._catalog.view(copies.holders)) & world.holders.keys()
        if ripe and self._ledger.untold(world, holders):
            return []
        return ripe

    def _was_rebuilt_lately(self, now_ms: int) -> bool:
        state = rebuild_state(self._catalog)
        return state is not None and (
            state.pending or state.unread > 0 or now_ms < state.at_ms + AFTER_REBUILD_MS
        )

    # -- here -------------------------------------------------------------------------------------

    def _drop(self, row: BundleRow) -> None:
        """The local copy goes. In a thread."""
        try:
            self._promises.begin_removal(row.bundle_id)
        except Busy:
            return  # another device relies on it just now
        try:
            now_ms = int(self._clock.wall() * 1000)
            intent = self._catalog.write(partial(_begin, row, now_ms)).result()
            if intent is None:
                return
            try:
                self._store.to_trash(row.bundle_id)
                is_gone = self._catalog.write(partial(_finish, row, intent)).result()
            except BaseException:
                is_gone = False
                raise
            finally:
                if not is_gone:
                    self._give_back(row, intent)
            self._store.purge(row.bundle_id)
        finally:
            self._promises.end_removal(row.bundle_id)

    def _give_back(self, row: BundleRow, intent: int) -> None:
        if row.bundle_id in self._store.trash():
            self._store.from_trash(row.bundle_id)
        self._catalog.write(partial(_take_back, row, intent)).result()

    # -- at holders -------------------------------------------------------------------------------

    async def _release(self, row: BundleRow) -> None:
        for copy in await in_thread(self._pool, self._left, row):
            try:
                await self._pusher.release(row.bundle_id, copy.holder)
            except Unknown:
                pass  # it has let it go already
            except P2PStoreError as exc:
                log.debug("%s keeps %s yet: %s", copy.holder.hex(), short(row.bundle_id), exc)
                continue
            await self._catalog.awrite(partial(_released, row, copy.holder))

    def _left(self, row: BundleRow) -> list[copies.Copy]:
        known = self._catalog.view(lambda db: copies.of_bundle(db, row.id))
        return [copy for copy in known if copy.state != copies.CopyState.RELEASED]


def _bundles_of(db: sqlite3.Connection, root: str) -> Iterable[BundleRow]:
    numbers = db.execute(
        "SELECT bundle FROM roots WHERE root=? ORDER BY bundle", (root,)
    ).fetchall()
    rows = (blocks.by_rowid(db, number) for (number,) in numbers)
    return [row for row in rows if row is not None]


def _is_needed(db: sqlite3.Connection, row: BundleRow) -> bool:
    """Whether anything but its being superseded refers to it."""
    if any(not root.startswith(SUPERSEDED) for root in blocks.roots_of(db, row.id)):
        return True
    query = (
        "SELECT EXISTS (SELECT 1 FROM file_bundles WHERE bundle=?1)"
        " OR EXISTS (SELECT 1 FROM history_bundles WHERE bundle=?1)"
    )
    return bool(db.execute(query, (row.id,)).fetchone()[0])


def _drop_marks(db: sqlite3.Connection, row: BundleRow) -> None:
    for root in blocks.roots_of(db, row.id):
        if root.startswith(SUPERSEDED):
            db.execute("DELETE FROM roots WHERE root=? AND bundle=?", (root, row.id))


def _begin(row: BundleRow, now_ms: int, db: sqlite3.Connection) -> int | None:
    if _is_needed(db, row):
        _drop_marks(db, row)  # a later index shares its blocks again
        return None
    if not blocks.begin_evict(db, row.id):
        return None
    return journal.open_intent(db, IntentKind.EVICT, msgspec.msgpack.encode(row.bundle_id), now_ms)


def _finish(row: BundleRow, intent: int, db: sqlite3.Connection) -> bool:
    if not blocks.move(db, row.id, BundleState.EVICTED, only_from=[BundleState.EVICTING]):
        return False
    blocks.forget_chunks(db, row.id)
    journal.close(db, intent)
    return True


def _take_back(row: BundleRow, intent: int, db: sqlite3.Connection) -> None:
    blocks.move(db, row.id, BundleState.SEALED, only_from=[BundleState.EVICTING])
    journal.close(db, intent)


def _released(row: BundleRow, holder: NodeId, db: sqlite3.Connection) -> None:
    copies.set_state(db, row.id, holder, copies.CopyState.RELEASED)


def _forget(row: BundleRow, db: sqlite3.Connection) -> bool:
    """Its rows go when nobody has it any more and nothing refers to it."""
    known = copies.of_bundle(db, row.id)
    if any(copy.state != copies.CopyState.RELEASED for copy in known) or _is_needed(db, row):
        return False
    _drop_marks(db, row)
    return blocks.forget_unreferenced(db, row.id) is not None
