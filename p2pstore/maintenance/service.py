"""MAINTENANCE: what must go on by itself so that every file stays safe.

index      a changed folder gets a new index and head within a minute
replicate  heads and group state go to every device that is connected, and what it acknowledged is
           recorded; bundles that want more copies are pushed, one lane for each connected device
tidy       what we were asked to let go leaves our trash; the history ends
collect    what nothing refers to any more goes, here and at holders
evict      on demand: the local copies of bundles that enough holders have just proved

Those that go on by themselves are `Loops`; others add theirs to `loops` before `run`.
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
from typing import Any, NamedTuple

from p2pstore.clock import Clock
from p2pstore.content import Head, Kind, decode_head, head_order, verify_head
from p2pstore.errors import P2PStoreError, Unavailable, UsageError
from p2pstore.home import RECOVERING
from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance.age import Steady
from p2pstore.maintenance.audit import Auditor
from p2pstore.maintenance.collect import Collector
from p2pstore.maintenance.evict import Evictor, Freed
from p2pstore.maintenance.facts import Ledger
from p2pstore.maintenance.index import DELAY_S, HeadOrder, IndexWriter
from p2pstore.maintenance.loops import Loop, Loops
from p2pstore.maintenance.rebuild import state
from p2pstore.maintenance.replicate import Replicator
from p2pstore.maintenance.world import World
from p2pstore.net import Link
from p2pstore.policy import (
    Candidate,
    Holder,
    Vetting,
    eligible,
    is_vetted,
    reliability,
    seen_by_us,
)
from p2pstore.store import (
    BundleRow,
    BundleState,
    Catalog,
    HeldStore,
    State,
    blocks,
    copies,
    dying,
    files,
    folders,
    holders,
)
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

QUIET_S = 2.0  # an index is written when nothing changed for so long, or after DELAY_S
UNREAD_S = 24 * 3600.0  # a head waits so long for who has the rest of the one before
PASS_S = 60.0  # replicate looks again without being told
TIDY_S = 3600.0
GATHER_S = 0.2  # a batch makes several bundles: they are looked for together
SETTLE_LOOK_S = 0.5
SETTLE_ROUNDS = 5
ASLEEP_S = 600.0  # without a look around: longer than any turn of `replicate`
UPLOAD_KEPT_S = 7 * 86400.0  # a half-received bundle that nobody goes on with
LEFTOVER = "no file needs it any more: it goes by itself"


@dataclass(frozen=True, slots=True)
class Swarm:
    """What maintenance asks of the network, and of the group's members."""

    links: Callable[[], Sequence[Link]]  # to devices of the group, connected now
    candidates: Callable[[], Sequence[Candidate]]  # everybody that may hold for us
    state: Callable[[], tuple[int, int]]  # (generation, seq) of the group state
    tell: Callable[[], Awaitable[Sequence[copies.HeadAck]]]  # everybody connected
    heads: Callable[[], Sequence[Head]]  # the newest of ours
    publish: Callable[[bytes], Awaitable[object]]  # makes a head durable; False: one is newer
    second_device: Callable[[], bool]
    words_confirmed: Callable[[], bool]
    carriers: Callable[[], Sequence[NodeId]] = tuple  # what stands for each ...
    lettered: Callable[[], Sequence[NodeId]] = tuple  # ... and of those that keep letters


class _Asked(NamedTuple):
    """What an eviction is about, and what only waits to be collected."""

    rows: list[BundleRow]
    leftovers: list[BundleRow]


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
        vetting_s: float,
    ) -> None:
        self.replicator = replicator
        self.evictor: Evictor | None = None
        self.collector: Collector | None = None
        self.rebuilding = False
        self._catalog = catalog
        self._held = held
        self._ledger = ledger
        self._index = index
        self.auditor = auditor
        self._swarm = swarm
        self._clock = clock
        self._pool = pool
        self._history_s = history_s
        self._steady = Steady(catalog, clock, key="history")
        self._vetting_s = vetting_s
        # Since when absence of others can be judged; the last time that we looked (wall clock).
        self._watching_since = self._watched_at = clock.wall()
        self._changes = 1  # counted up whenever something became durable or was deleted
        # What a folder's head covers: the count of changes then, and the number of that head. A
        # head of ours with another number came from elsewhere (HOME was restored from a copy).
        self._put_off: frozenset[FolderId] = frozenset()  # folders that get no head yet
        self._indexed: dict[FolderId, tuple[int, HeadOrder | None]] = {}
        self._first_change = self._last_change = clock.monotonic()
        self._writing = asyncio.Lock()
        self.loops = Loops(catalog, clock)
        self._indexing = self.loops.add("index", self._index_turn)
        self._replicating = self.loops.add("replicate", self._replicate_turn, period_s=PASS_S)
        self.loops.add("tidy", self._tidy_turn, period_s=TIDY_S)
        self.loops.add("collect", self._collect_turn, period_s=TIDY_S, longest_rest_s=TIDY_S)
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
        self._indexing.wake()
        self._replicating.wake()

    def linked(self, node_id: NodeId) -> None:
        """A device of the group is connected, or a carrier is there."""
        self.replicator.retry(node_id)
        self._replicating.wake()

    def copy_soon(self) -> None:
        """Something that was there before wants more copies now."""
        self.replicator.look_anew()
        self._replicating.wake()

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        # What became durable before the last end waits for no further change. A catalog that is
        # being completed knows too little to say anything new by itself.
        if not self.rebuilding or self._changes > 1:
            self._indexing.wake()
        async with asyncio.TaskGroup() as group:
            self._group = group
            await self.loops.run()

    async def _index_turn(self, loop: Loop) -> None:
        while (left_s := self._rest_left_s()) > 0:
            loop.say("waits for more changes")
            await asyncio.sleep(left_s)
        loop.heard()
        self._first_change = self._clock.monotonic()  # of those that the next index is for
        loop.say("writes what the folders hold")
        await self.write_heads()
        await self.tell()

    def _rest_left_s(self) -> float:
        """Until nothing has changed for a moment, or something has waited long enough."""
        due = min(self._last_change + QUIET_S, self._first_change + DELAY_S)
        return due - self._clock.monotonic()

    async def _replicate_turn(self, loop: Loop) -> None:
        await asyncio.sleep(GATHER_S)
        loop.heard()
        self._watch()
        links = [link.node_id for link in self._swarm.links()]
        for holder in (*links, *self._swarm.carriers()):
            self._serve(holder)
        if await in_thread(self._pool, self._is_untold, [*links, *self._swarm.lettered()]):
            loop.say("tells others what there is")
            await self.tell()
        world = await in_thread(self._pool, self.world)
        is_read = not self._put_off <= await in_thread(self._pool, self._unread)
        if is_read or not self._indexed.keys() <= world.clean:
            self._indexing.wake()

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
            if not self.rebuilding and await in_thread(self._pool, self._has_suspects, holder):
                await self.auditor.confirm(holder)
            return await self.replicator.serve(holder)
        except Exception:  # the top of a lane: the others, and the next pass, go on
            log.exception("Copying to %s failed.", holder.hex())
            return False

    def _has_suspects(self, holder: NodeId) -> bool:
        query = "SELECT 1 FROM copies WHERE holder=? AND state='suspect' LIMIT 1"
        return bool(self._catalog.read(query, (holder,)))

    async def _tidy_turn(self, loop: Loop) -> None:
        loop.say("empties the trash of what is kept for others")
        await in_thread(self._pool, self._tidy)

    async def _collect_turn(self, loop: Loop) -> None:
        if self.collector is not None:
            await self.collector.run(loop.say, loop.stopped.is_set)

    def _tidy(self) -> None:
        try:
            self._held.purge_trash()
            self._held.purge_uploads(UPLOAD_KEPT_S)
        finally:
            self._end_history()

    def _end_history(self) -> None:
        before = self._steady.now_ms() - int(self._history_s * 1000)
        while old := self._catalog.view(lambda db: files.history_before(db, before)):
            self._catalog.write(partial(_drop_history, old)).result()

    # -- index and heads --------------------------------------------------------------------------

    def _is_clean(self) -> bool:
        return bool(self._indexed) and all(n == self._changes for n, _ in self._indexed.values())

    async def write_heads(self) -> None:
        """Bring every folder's head up to date."""
        failed: list[Exception] = []
        async with self._writing:
            self._put_off = await in_thread(self._pool, self._unread)
            for folder in await in_thread(self._pool, self._catalog.view, folders.every):
                if folder.paused == RECOVERING or folder.folder_id in self._put_off:
                    continue  # the head that is there names more than is known here yet
                try:
                    await self._write_head(folder)
                except (P2PStoreError, OSError) as exc:
                    log.warning("The index of %s could not be written: %s", folder.name, exc)
                    failed.append(exc)  # the other folders need theirs all the same
        if failed:
            raise failed[0]

    def _unread(self) -> frozenset[FolderId]:
        """Folders of whose index a rebuild could not read all yet. Holders keep one head of each:
        a shorter one would take the place of the only one that leads to the rest."""
        left = state(self._catalog)
        if left is None or self._clock.wall() > left.at_ms / 1000 + UNREAD_S:
            return frozenset()
        return frozenset(FolderId(folder) for folder in left.folders)

    async def _write_head(self, folder: folders.FolderRow) -> None:
        count = self._changes
        orders = await in_thread(self._pool, self._orders)
        last = orders.get(folder.folder_id)
        if self._indexed.get(folder.folder_id) == (count, last):
            return
        head = await in_thread(self._pool, self._index.write, folder, last)
        if head is not None:
            last = HeadOrder(*head_order(verify_head(decode_head(head))))
            if await self._swarm.publish(head) is False:
                raise Unavailable("a newer head of this device came meanwhile")
            self._replicating.wake()
        self._indexed[folder.folder_id] = (count, last)

    def _orders(self) -> dict[FolderId, HeadOrder]:
        return {head.folder: HeadOrder(*head_order(head)) for head in self._swarm.heads()}

    async def tell(self) -> None:
        """Heads and group state to everybody connected; record who has what."""
        acks = await self._swarm.tell()
        if acks:
            await self._catalog.awrite(partial(_acknowledge, acks))

    def _is_untold(self, links: Sequence[NodeId]) -> bool:
        return bool(self._ledger.untold(self.world(), links))

    # -- the world --------------------------------------------------------------------------------

    def world(self) -> World:
        """What policy must know beside a bundle's own rows. In any thread."""
        now = self._clock.wall()
        # Before the heads are read: a folder that is clean here is covered by what is read there.
        changes, indexed = self._changes, dict(self._indexed)
        known = self._catalog.view(holders.every)
        candidates = self._judged(now, known)
        connected = {link.node_id for link in self._swarm.links()}
        good = {
            NodeId(c.holder.node): c.holder for c in candidates if not c.revoked and not c.leaving
        }
        orders = self._orders()
        for node in self._swarm.carriers():
            lied_at = _seconds(known[node].lied_at) if node in known else None
            good[node] = Holder(node, "carrier", lied_at=lied_at)
        return World(
            now=now,
            holders=good,
            eligible=eligible(candidates, now),
            heads=orders,
            clean=frozenset(
                folder
                for folder, (count, order) in indexed.items()
                if count == changes and orders.get(folder) == order
            ),
            state=self._swarm.state(),
            words_confirmed=self._swarm.words_confirmed(),
            second_device=self._swarm.second_device(),
            rebuilding=self.rebuilding,
            takers=[c for c in candidates if c.holder.node in connected],
        )

    def _judged(self, now: float, records: Mapping[NodeId, holders.HolderRow]) -> list[Candidate]:
        """Those that may hold for us, with what audits have shown of them."""
        judged: list[Candidate] = []
        for candidate in self._swarm.candidates():
            known = candidate.holder
            row = records.get(NodeId(known.node), holders.HolderRow(NodeId(known.node)))
            record = Vetting(_seconds(row.since), row.passed, _seconds(row.failed_at))
            since = self._watching_since
            judged.append(
                candidate._replace(
                    holder=known._replace(
                        vetted=is_vetted(known.role, record, now, self._vetting_s),
                        last_seen=seen_by_us(candidate.last_seen, watching_since=since, now=now),
                        lied_at=_seconds(row.lied_at),
                    ),
                    reliability=reliability(row.answered, row.asked),
                )
            )
        return judged

    def _watch(self) -> None:
        """Note when we had nobody, or were asleep: others are not away then, we are."""
        now = self._clock.wall()
        if not self._swarm.links() or abs(now - self._watched_at) > ASLEEP_S:
            self._watching_since = now
        self._watched_at = now

    def holders_now(self) -> list[Holder]:
        """Who could take a copy at this moment."""
        connected = {link.node_id for link in self._swarm.links()}
        return [h for node, h in self.world().holders.items() if node in connected]

    # -- eviction ---------------------------------------------------------------------------------

    async def settle(
        self, progress: Progress, is_enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Give holders that are connected everything that they can have now, or until
        `is_enough`, which is asked in a thread: a slow holder need not be waited for."""
        await self.write_heads()
        await self.tell()
        before: int | None = None
        for _ in range(SETTLE_ROUNDS):  # a lane may have looked just before the last bundle came
            lanes = [self._serve(link.node_id) for link in self._swarm.links()]
            waiting = {lane for lane in lanes if lane is not None}
            while waiting:
                _, waiting = await asyncio.wait(waiting, timeout=SETTLE_LOOK_S)
                progress(
                    {
                        "stage": "push",
                        "files": None,
                        "bytes": None,
                        "bytes_total": await in_thread(self._pool, self._to_push),
                    }
                )
                enough: bool = await in_thread(self._pool, is_enough) if waiting else False
                if enough:
                    return
            left = await in_thread(self._pool, self._to_push)
            if not left or left == before:
                break
            before = left
        await self.tell()

    def _to_push(self) -> int:
        world = self.world()
        return sum(self._ledger.lacking_bytes(world, link.node_id) for link in self._swarm.links())

    def _may_all_go(self, evictor: Evictor, paths: Sequence[str]) -> bool:
        rows = self._asked(paths).rows
        pages = (rows[start : start + 64] for start in range(0, len(rows), 64))
        return not any(any(evictor.why(page)) for page in pages)

    async def evict(self, paths: Sequence[str], progress: Progress) -> dict[str, Any]:
        """Drop what may go of these paths (none: of everything); what stays, and why."""
        if self.evictor is None:
            raise UsageError("Nothing can be evicted while the node does not run.")
        await self.settle(progress, partial(self._may_all_go, self.evictor, paths))
        asked = await in_thread(self._pool, self._asked, paths)
        total = sum(row.bytes for row in asked.rows)

        def tell(freed: Freed) -> None:
            progress({"stage": "evict", "bytes": freed.bytes, "bytes_total": total})

        freed = await self.evictor.evict(asked.rows, tell)
        return {
            "freed_bytes": freed.bytes,
            "leftover_bytes": sum(row.bytes for row in asked.leftovers),
            "waiting": [
                {"reason": reason, "bytes": size, "files": count}
                for reason, (count, size) in sorted(freed.waiting.items())
            ],
        }

    def why(self, paths: Sequence[str]) -> dict[str, Any]:
        """For each local data bundle of these paths, what is missing before it may go."""
        if self.evictor is None:
            raise UsageError("Nothing can be evicted while the node does not run.")
        rows, leftovers = self._asked(paths)
        evictable = 0
        lines: list[dict[str, Any]] = []
        reasons = [*self.evictor.why(rows), *([LEFTOVER] for _ in leftovers)]
        for row, missing in zip([*rows, *leftovers], reasons, strict=True):
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

    def _asked(self, paths: Sequence[str]) -> _Asked:
        """The sealed local data bundles that files at or below these paths need; without paths all,
        and apart from them those that wait to be collected, which is no eviction."""

        def look(db: sqlite3.Connection) -> _Asked:
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
            rows = [
                row
                for row in rows
                if row.own and row.kind == Kind.DATA and row.state == BundleState.SEALED
            ]
            left = dying.leftovers(db, [row.id for row in rows])
            return _Asked(
                [row for row in rows if row.id not in left], [row for row in rows if row.id in left]
            )

        return self._catalog.view(look)

    # -- counting ---------------------------------------------------------------------------------

    def counted(self) -> dict[int, int]:
        """bundle row -> copies on other nodes that count."""
        return self._ledger.counts(self.world())

    def relying(self, rows: Sequence[BundleRow], holder: NodeId) -> list[BundleRow]:
        """Those of the bundles that would have too few copies without this holder."""
        return self._ledger.relying(self.world(), rows, holder)

    def copies_of_files(self, ids: Sequence[int]) -> dict[int, int]:
        """A file has as many copies as the least copied of its bundles."""

        counted = self.counted()
        return self._catalog.view(
            lambda db: {number: copies.count_of_file(db, number, counted) for number in ids}
        )

    def copies_of_bundles(self, ids: Iterable[int]) -> Mapping[int, int]:
        counted = self.counted()
        return {number: counted.get(number, 0) for number in ids}

    def placeholders_below(self, paths: Sequence[str]) -> set[tuple[int, bytes, int]]:
        """(row, content's hash, its size) of the placeholders at or below these paths."""

        def look(db: sqlite3.Connection) -> set[tuple[int, bytes, int]]:
            return {
                (row.id, row.hash, row.file_size)
                for path in paths
                for row in _files_below(db, path)
                if row.state == State.PLACEHOLDER
            }

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


def _seconds(at_ms: int) -> float | None:
    return at_ms / 1000 if at_ms else None
