"""MAINTENANCE: what must go on by itself so that every file stays safe, each loop resumable.

index      a changed folder gets a new index and head within a minute
tell       heads and group state go to every device that is connected; what it acknowledged
           is recorded
replicate  bundles that want more copies are pushed, one lane for each connected device
evict      on demand: the local copies of bundles that enough holders have just proved
tidy       what holders were asked to let go leaves their trash; the history ends
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from p2pstore.clock import Clock
from p2pstore.content import Head, Kind, head_order
from p2pstore.errors import P2PStoreError, UsageError
from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance.audit import Auditor
from p2pstore.maintenance.evict import Evictor, Freed
from p2pstore.maintenance.facts import Ledger, World
from p2pstore.maintenance.index import DELAY_S, HeadOrder, IndexWriter
from p2pstore.maintenance.replicate import Replicator
from p2pstore.net import Link
from p2pstore.policy import Candidate, Holder, eligible
from p2pstore.store import (
    BundleRow,
    BundleState,
    Catalog,
    HeldStore,
    State,
    blocks,
    copies,
    files,
    folders,
)
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

QUIET_S = 2.0  # an index is written when nothing changed for so long, or after DELAY_S
PASS_S = 60.0  # replicate looks again without being told
TIDY_S = 3600.0
UPLOAD_KEPT_S = 7 * 86400.0  # a half-received bundle that nobody goes on with


@dataclass(frozen=True, slots=True)
class Swarm:
    """What maintenance asks of the network, and of the group's members."""

    links: Callable[[], Sequence[Link]]  # to devices of the group, connected now
    candidates: Callable[[], Sequence[Candidate]]  # everybody that may hold for us
    state: Callable[[], tuple[int, int]]  # (generation, seq) of the group state
    tell: Callable[[], Awaitable[Sequence[copies.HeadAck]]]  # everybody connected
    heads: Callable[[], Sequence[Head]]  # the newest of ours
    publish: Callable[[bytes], Awaitable[object]]  # makes a head durable
    second_device: Callable[[], bool]
    words_confirmed: Callable[[], bool]


class Maintenance:
    def __init__(
        self,
        *,
        catalog: Catalog,
        held: HeldStore,
        ledger: Ledger,
        index: IndexWriter,
        replicator: Replicator,
        auditor: Auditor,
        swarm: Swarm,
        clock: Clock,
        pool: Executor,
        history_s: float,
    ) -> None:
        self.replicator = replicator
        self.evictor: Evictor | None = None
        self.rebuilding = False
        self._catalog = catalog
        self._held = held
        self._ledger = ledger
        self._index = index
        self._auditor = auditor
        self._swarm = swarm
        self._clock = clock
        self._pool = pool
        self._history_s = history_s
        self._changes = 1  # counted up whenever something became durable or was deleted
        self._indexed: dict[FolderId, int] = {}  # the count that a folder's head covers
        self._first_change = self._last_change = clock.monotonic()
        self._writing = asyncio.Lock()
        self._wake_index = asyncio.Event()
        self._wake_copies = asyncio.Event()
        self._serving: dict[NodeId, asyncio.Task[bool]] = {}
        self._group: asyncio.TaskGroup | None = None

    # -- what others tell -------------------------------------------------------------------------

    def changed(self) -> None:
        """Something became durable, or was deleted. Called in the loop."""
        now = self._clock.monotonic()
        if self._is_clean():
            self._first_change = now
        self._changes += 1
        self._last_change = now
        self._wake_index.set()
        self._wake_copies.set()

    def linked(self, node_id: NodeId) -> None:
        """A device of the group is connected."""
        self.replicator.retry(node_id)
        self._wake_copies.set()

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._guarded("index", self._index_loop))
            group.create_task(self._guarded("replicate", self._replicate_loop))
            group.create_task(self._guarded("tidy", self._tidy_loop))

    async def _guarded(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """A loop that fails is logged once with its traceback and goes on after a pause."""
        pause = 1.0
        while True:
            try:
                await loop()
            except (P2PStoreError, OSError, ExceptionGroup):
                log.exception("The %s loop failed; it goes on in %.0f s.", name, pause)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 300.0)

    async def _index_loop(self) -> None:
        while True:
            await self._wake_index.wait()
            now = self._clock.monotonic()
            due = min(self._last_change + QUIET_S, self._first_change + DELAY_S)
            if now < due:
                await asyncio.sleep(due - now)
                continue
            self._wake_index.clear()
            await self.write_heads()
            await self.tell()

    async def _replicate_loop(self) -> None:
        while True:
            for link in self._swarm.links():
                self._serve(link.node_id)
            self._wake_copies.clear()
            try:
                async with asyncio.timeout(PASS_S):
                    await self._wake_copies.wait()
                await asyncio.sleep(0.2)  # a batch makes several bundles
            except TimeoutError:
                pass
            if not self._all_told():
                await self.tell()

    def _serve(self, holder: NodeId) -> asyncio.Task[bool] | None:
        """Push to this holder what it lacks, in a task of its own; one at a time."""
        running = self._serving.get(holder)
        if running is not None and not running.done():
            return running
        if self._group is None:
            return None
        task = self._group.create_task(self._serve_one(holder))
        self._serving[holder] = task
        return task

    async def _serve_one(self, holder: NodeId) -> bool:
        try:
            if not self.rebuilding:
                await self._auditor.confirm(holder)
            return await self.replicator.serve(holder)
        except (P2PStoreError, OSError, ExceptionGroup):
            log.exception("Copying to %s failed.", holder.hex())
            return False

    async def _tidy_loop(self) -> None:
        while True:
            await in_thread(self._pool, self._tidy)
            await asyncio.sleep(TIDY_S)

    def _tidy(self) -> None:
        self._held.purge_trash()
        self._held.purge_uploads(UPLOAD_KEPT_S)
        before = int((self._clock.wall() - self._history_s) * 1000)
        while old := self._catalog.view(lambda db: files.history_before(db, before)):
            self._catalog.write(partial(_drop_history, old)).result()

    # -- index and heads --------------------------------------------------------------------------

    def _is_clean(self) -> bool:
        return bool(self._indexed) and all(n == self._changes for n in self._indexed.values())

    async def write_heads(self) -> None:
        """Bring every folder's head up to date."""
        async with self._writing:
            for folder in await in_thread(self._pool, self._catalog.view, folders.every):
                count = self._changes
                if self._indexed.get(folder.folder_id) == count:
                    continue
                last = self._orders().get(folder.folder_id)
                head = await in_thread(self._pool, self._index.write, folder, last)
                if head is not None:
                    await self._swarm.publish(head)
                    self._wake_copies.set()
                self._indexed[folder.folder_id] = count

    def _orders(self) -> dict[FolderId, HeadOrder]:
        return {head.folder: HeadOrder(*head_order(head)) for head in self._swarm.heads()}

    async def tell(self) -> None:
        """Heads and group state to everybody connected; record who has what."""
        acks = await self._swarm.tell()
        if acks:
            await self._catalog.awrite(partial(_acknowledge, acks))

    def _all_told(self) -> bool:
        world = self.world()
        return not self._ledger.untold(world, [link.node_id for link in self._swarm.links()])

    # -- the world --------------------------------------------------------------------------------

    def world(self) -> World:
        """What policy must know beside a bundle's own rows."""
        now = self._clock.wall()
        candidates = self._swarm.candidates()
        holders = {NodeId(c.holder.node): c.holder for c in candidates if not c.revoked}
        orders = self._orders()
        return World(
            now=now,
            holders=holders,
            eligible=eligible(candidates, now),
            heads=orders,
            clean=frozenset(f for f, count in self._indexed.items() if count == self._changes),
            state=self._swarm.state(),
            words_confirmed=self._swarm.words_confirmed(),
            second_device=self._swarm.second_device(),
            rebuilding=self.rebuilding,
        )

    def holders_now(self) -> list[Holder]:
        """Who could take a copy at this moment."""
        connected = {link.node_id for link in self._swarm.links()}
        return [h for node, h in self.world().holders.items() if node in connected]

    # -- eviction ---------------------------------------------------------------------------------

    async def settle(self, progress: Progress) -> None:
        """Give holders that are connected everything that they can have now."""
        await self.write_heads()
        await self.tell()
        lanes = [self._serve(link.node_id) for link in self._swarm.links()]
        waiting = [lane for lane in lanes if lane is not None]
        while waiting:
            done, pending = await asyncio.wait(waiting, timeout=0.3)
            del done
            waiting = list(pending)
            left = await in_thread(self._pool, self._to_push)
            progress({"stage": "push", "files": None, "bytes": None, "bytes_total": left})
        await self.tell()

    def _to_push(self) -> int:
        world = self.world()
        return sum(
            row.bytes
            for link in self._swarm.links()
            for row in self._ledger.lacking(world, link.node_id, 10_000)
        )

    async def evict(self, paths: Sequence[str], progress: Progress) -> dict[str, Any]:
        """Drop what may go of these paths (none: of everything); what stays, and why."""
        if self.evictor is None:
            raise UsageError("Nothing can be evicted while the node does not run.")
        await self.settle(progress)
        rows = await in_thread(self._pool, self._bundles_below, paths)
        total = sum(row.bytes for row in rows)

        def tell(freed: Freed) -> None:
            progress({"stage": "evict", "bytes": freed.bytes, "bytes_total": total})

        freed = await self.evictor.evict(rows, tell)
        return {
            "freed_bytes": freed.bytes,
            "waiting": [
                {"reason": reason, "bytes": size, "files": count}
                for reason, (count, size) in sorted(freed.waiting.items())
            ],
        }

    def why(self, paths: Sequence[str]) -> dict[str, Any]:
        """For each local data bundle of these paths, what is missing before it may go."""
        if self.evictor is None:
            raise UsageError("Nothing can be evicted while the node does not run.")
        rows = self._bundles_below(paths)
        evictable = 0
        lines: list[dict[str, Any]] = []
        for row, missing in zip(rows, self.evictor.why(rows), strict=True):
            if not missing:
                evictable += row.bytes
                continue
            lines.append(
                {
                    "bundle": row.bundle_id.hex(),
                    "bytes": row.bytes,
                    "missing": missing,
                    "files": self._catalog.view(partial(_names, row.id)),
                }
            )
        return {"evictable_bytes": evictable, "bundles": lines}

    def _bundles_below(self, paths: Sequence[str]) -> list[BundleRow]:
        """The sealed local data bundles that files at or below these paths need."""

        def look(db: sqlite3.Connection) -> list[BundleRow]:
            if not paths:
                rows: list[BundleRow] = []
                after = 0
                while page := blocks.list_bundles(db, states=(BundleState.SEALED,), after=after):
                    rows.extend(page)
                    after = page[-1].id
            else:
                ids = [row.id for path in paths for row in _files_below(db, path)]
                numbers = sorted(blocks.bundles_of_files(db, ids))
                rows = [row for n in numbers if (row := blocks.by_rowid(db, n)) is not None]
            return [
                row
                for row in rows
                if row.own and row.kind == Kind.DATA and row.state == BundleState.SEALED
            ]

        return self._catalog.view(look)

    # -- counting ---------------------------------------------------------------------------------

    def counted(self) -> dict[int, int]:
        """bundle row -> proven copies on other nodes."""
        return self._catalog.view(copies.counts)

    def copies_of_files(self, ids: Sequence[int]) -> dict[int, int]:
        """A file has as many copies as the least copied of its bundles."""

        def look(db: sqlite3.Connection) -> dict[int, int]:
            counted = copies.counts(db)
            return {number: copies.count_of_file(db, number, counted) for number in ids}

        return self._catalog.view(look)

    def copies_of_bundles(self, ids: Iterable[int]) -> Mapping[int, int]:
        counted = self.counted()
        return {number: counted.get(number, 0) for number in ids}

    def bytes_below(self, paths: Sequence[str]) -> int:
        """Content bytes of the placeholders at or below these paths."""

        def look(db: sqlite3.Connection) -> int:
            return sum(
                row.file_size
                for path in paths
                for row in _files_below(db, path)
                if row.state == State.PLACEHOLDER
            )

        return self._catalog.view(look)


def _files_below(db: sqlite3.Connection, path: str) -> Iterable[files.FileRow]:
    """Rows at a path (with or without `.f`) or beneath it."""
    parent, name = os.path.split(os.path.abspath(path))
    whole = os.fsencode(os.path.join(os.path.realpath(parent), name))
    for folder in folders.watched(db):
        if whole != folder.path and not whole.startswith(folder.path + b"/"):
            continue
        relative = whole[len(folder.path) + 1 :]
        for candidate in dict.fromkeys((relative, relative.removesuffix(b".f"))):
            row = files.get(db, folder.id, candidate) if candidate else None
            if row is not None and row.state != State.DELETED:
                return [row]
        return files.walk(db, folder.id, relative)
    raise UsageError(f"{path} lies in no watched folder. See: p2pstore folders")


def _names(bundle: int, db: sqlite3.Connection) -> list[str]:
    found: list[str] = []
    for number in blocks.files_of_bundle(db, bundle)[:10]:
        row = files.by_id(db, number)
        folder = None if row is None else folders.get(db, row.folder)
        if row is not None and folder is not None:
            found.append(os.fsdecode(folder.path + b"/" + row.path))
    return found


def _acknowledge(acks: Sequence[copies.HeadAck], db: sqlite3.Connection) -> None:
    for ack in acks:
        copies.acknowledge(db, ack)


def _drop_history(entries: Sequence[int], db: sqlite3.Connection) -> None:
    files.drop_history(db, entries)
