"""One watched folder while the node runs: from events to placeholders.

A single task owns the folder's books. It hears hints from the watcher, looks, concludes what is
gone, hands out batches and empties the trash, in turns; what blocks runs in threads, and only its
outcomes come back here. Nothing is concluded from a root that is not there.

What a path can wait for: to come to rest (`settle`), to be free of writers, to be no longer in work
(`keep` after its last use), room, a decision of the owner after a mass change.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from p2pstore.config import FolderSettings
from p2pstore.errors import Unavailable, UsageError
from p2pstore.folders.batching import Batching
from p2pstore.folders.books import Books
from p2pstore.folders.concluding import conclude, undo, version_after
from p2pstore.folders.intents import Trashed
from p2pstore.folders.looking import Looking
from p2pstore.folders.losses import Losses
from p2pstore.folders.meeting import Meeting
from p2pstore.folders.parts import Parts
from p2pstore.folders.recovery import Recovery
from p2pstore.folders.trash import Trash
from p2pstore.folders.undeleting import BATCH, NAMED_ANEW, Undeleted, deleted, undelete
from p2pstore.folders.waiting import Waiting
from p2pstore.home import RECOVERING, WatchedFolder
from p2pstore.ids import FolderId
from p2pstore.placement import SUFFIX, Identity, Root
from p2pstore.store import FileRow, files, folders
from p2pstore.watch import Changed, ChangeWatcher, RescanWanted, RootBack, RootGone

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

SHOWER_S = 0.05  # hints come in showers: one look for all of them
RESCAN_S = 600.0  # hints can be lost in silence
PRESENCE_S = 2.0


class Folder:
    def __init__(self, entry: WatchedFolder, row: int, parts: Parts) -> None:
        self.entry = entry
        self.row = row
        self.path = Path(entry.path)
        self.folder_id = FolderId(entry.folder_id)
        self.root: Root | None = None
        self.missing_since: float | None = None
        self.unwatched: str | None = None  # why it is not watched although it is there
        self._parts = parts
        self._books = books = Books(entry.settings)
        self._looked_at = asyncio.Event()
        self._sought = asyncio.Event()  # it is known whether the root is there
        self._sought.set()
        self._is_busy = False  # what was taken out of `waiting` is not in a batch yet
        self._deciding = asyncio.Lock()  # held while it is concluded what is gone, and begun
        self._next_scan = 0.0
        self._next_presence = 0.0
        meeting = Meeting(
            path=self.path,
            row=row,
            catalog=parts.catalog,
            store=parts.store,
            opens=parts.opens,
            ring=parts.ring,
            me=parts.me,
        )
        self._looking = Looking(path=self.path, row=row, parts=parts, books=books, meeting=meeting)
        self._trash = Trash(row=row, parts=parts, hints=books.hints)
        self._batching = Batching(
            path=self.path, row=row, parts=parts, books=books, meeting=meeting, trash=self._trash
        )

    # -- how it stands ----------------------------------------------------------------------------

    @property
    def settings(self) -> FolderSettings:
        return self._books.settings

    @property
    def waiting(self) -> Waiting:
        return self._books.waiting

    @property
    def losses(self) -> Losses:
        return self._books.losses

    @property
    def is_paused(self) -> bool:
        return bool(self.entry.paused)

    @property
    def is_scanned(self) -> bool:
        """Everything was looked at once since the folder was arrived at."""
        return self._looking.scanned

    async def looked_at(self) -> None:
        """Return when it was looked at once, or was found not to be there."""
        await self._looked_at.wait()

    @property
    def waiting_for_room(self) -> str | None:
        return self._batching.waiting_for_room

    @property
    def obstacle(self) -> str | None:
        """Why nothing is replaced here at present; None when it is."""
        return self._books.obstacle

    @property
    def opens_unheard(self) -> str:
        """Why opening a placeholder may not bring it back here; empty when it does."""
        return self._looking.opens_unheard

    @property
    def unread(self) -> list[tuple[bytes, str]]:
        """What the last scan could not read, and why."""
        return self._looking.unread

    def is_settled(self) -> bool:
        """Everything present is replaced, or has a reason to stay."""
        books = self._books
        return (
            self.is_scanned
            and not self._is_busy
            and self._batching.is_idle
            and not books.hints
            and not books.in_flight
            and not books.waiting.active().files
        )

    def is_in_flight(self, path: bytes) -> bool:
        return path in self._books.in_flight

    async def batches_end(self, path: bytes) -> None:
        """Return when the catalog says what batches have made of a path (named with or without
        `.f`) or of what is beneath it; later batches are not waited for."""
        for name in dict.fromkeys((path, path.removesuffix(SUFFIX))):
            await self._books.in_flight.end_of(name)

    def is_opened_by_us(self, path: bytes, heard: float) -> bool:
        """Whether an open of this path's placeholder was our own: in the batch that made it."""
        return self.is_in_flight(path) or self._books.ours.opened(path, heard, self._parts.now())

    def pending(self) -> int:
        return self.waiting.active().files + len(self._books.in_flight)

    def pending_bytes(self) -> int:
        return self.waiting.active().bytes + self._books.in_flight.size

    def bytes_on_their_way(self) -> int:
        """Of the pending bytes those that a batch has put into their place already."""
        return self._books.in_flight.done

    def rests(self) -> bool:
        """Nothing is in hand: what is pending waits until nothing has changed for a while."""
        due = self.waiting.next_due()
        is_early = due is not None and due > self._parts.now()
        return is_early and not self._books.in_flight and bool(self.waiting.active().files)

    def trash(self) -> list[Trashed]:
        return self._trash.batches()

    def next_version_at(self, path: bytes) -> bytes:
        """The encoded version that a new state of the path has, whatever was there."""
        row = self._parts.catalog.view(lambda db: files.get(db, self.row, path))
        return version_after(row, self._parts.me)

    def counts(self) -> list[files.Count]:
        """Files by state and reason, as the catalog has them."""
        return self._parts.catalog.view(lambda db: files.counts(db, self.row))

    def rows(self, states: Sequence[str], limit: int) -> list[FileRow]:
        """The first rows in these states, by path."""
        return self._parts.catalog.view(
            lambda db: files.page(db, self.row, states=states, limit=limit)
        )

    async def pages_below(self, path: bytes, states: Sequence[str]) -> AsyncIterator[list[FileRow]]:
        """Rows at a path (named with or without `.f`) or beneath it, in order, some thousand at a
        time: of a million files nobody has all in memory. Their states may change meanwhile."""
        after = b""
        while rows := await self.in_thread(self.rows_below, path, states, after=after):
            yield rows
            after = rows[-1].path

    def rows_below(
        self, path: bytes, states: Sequence[str], *, after: bytes = b"", limit: int = files.PAGE
    ) -> list[FileRow]:
        """One such page: those behind `after`."""

        def look(db: sqlite3.Connection) -> list[FileRow]:
            for name in dict.fromkeys((path, path.removesuffix(SUFFIX))):
                row = files.get(db, self.row, name)
                if row is not None and row.state in states:
                    return [row] if name > after else []
            return files.page(db, self.row, path, states=states, after=after, limit=limit)

        return self._parts.catalog.view(look)

    def total_below(self, path: bytes, states: Sequence[str]) -> tuple[int, int]:
        """(files, bytes) of all pages."""

        def look(db: sqlite3.Connection) -> tuple[int, int]:
            total = files.total(db, self.row, path, states)
            return (
                total if total[0] else files.total(db, self.row, path.removesuffix(SUFFIX), states)
            )

        return self._parts.catalog.view(look)

    # -- what others ask --------------------------------------------------------------------------

    def change_settings(self, settings: FolderSettings) -> None:
        """New rules hold from the next look on; everything is judged anew."""
        self._books.settings = settings
        self.waiting.shorten(now=self._parts.now(), settle=settings.settle_s)
        self.ask_rescan("its settings changed", judge_anew=True)

    def ask_rescan(self, reason: str, *, judge_anew: bool = False) -> None:
        self._books.hints.ask_rescan(reason, judge_anew=judge_anew)

    def note(self, path: bytes) -> None:
        """A path of this folder was touched by us; look at it soon."""
        self._books.hints.add((path,))

    def mark_own(self, name: bytes) -> None:
        """We are about to open this path ourselves. From any thread."""
        self._parts.opens.mark_own(os.fsencode(self.path) + b"/" + name)

    def begin_ours(self, paths: Iterable[bytes]) -> None:
        """We are about to change these paths: nothing is concluded about them meanwhile."""
        self._books.ours.begin(paths)

    def end_ours(self, paths: Iterable[bytes]) -> None:
        self._books.ours.end(paths)

    def force(self, rows: Iterable[FileRow]) -> None:
        """Replace these now, whatever `settle` and `keep` say; leases are respected."""
        now = self._parts.now()
        for row in rows:
            if not self.is_in_flight(row.path):
                identity = Identity(row.ino, row.size, row.mtime_ns, row.ctime_ns)
                self.waiting.force(row.path, now=now, identity=identity)
        self._books.hints.news.set()

    def force_new(self, path: bytes) -> None:
        """The same for what is at or below a path and not in the catalog yet."""
        now = self._parts.now()
        for waiting in self.waiting.below(path):
            self.waiting.force(waiting, now=now)
        self.note(path)

    def trash_waits(self, batch: Trashed) -> None:
        """A batch that somebody else (hydrate) put into this folder's trash."""
        self._trash.add(batch)

    async def empty_trash(self) -> int:
        """Let go now what may go, however short it lay there; how many files stay."""
        if self.root is not None:
            async with self.open_root() as root:
                await self._trash.empty_all(root)
        return sum(batch.files for batch in self._trash.batches())

    def set_paused(self, why: str) -> None:
        self.entry = msgspec.structs.replace(self.entry, paused=why)
        self._books.hints.news.set()

    async def rest(self) -> bool:
        """It is being recovered again: nothing more is concluded or begun here on return.

        False when it is paused for another reason. What a batch has in hand goes on.
        """
        async with self._deciding:
            if self.entry.paused in ("", RECOVERING):
                self.set_paused(RECOVERING)
            return self.entry.paused == RECOVERING

    def accept_change(self) -> None:
        """The owner says that what has changed is meant; what comes later is another change."""
        self.ask_rescan("accepted")  # what it finds is what he means
        if self.is_paused:
            self.losses.accept()
        self.set_paused("")

    async def undo_change(self) -> int:
        """Bring back the placeholders that are gone; how many."""
        gone, concluded = self.losses.gone, self.losses.concluded
        mark = b"changed-%d" % int(self._parts.clock.wall())
        # Placeholders that come back are no change of somebody's: that would pause it again.
        self.begin_ours(gone)
        try:
            async with self.open_root() as root:
                restored = await self.in_thread(
                    undo, root, self._parts.catalog, self.row, gone, mark, self.mark_own
                )
        finally:
            self.end_ours(gone)
        entries = await self.in_thread(deleted, self._parts.catalog, self.row, concluded)
        for start in range(0, len(entries), BATCH):
            restored += len((await self.undelete(entries[start : start + BATCH])).back)
        self.losses.forget()
        self.set_paused("")
        self.ask_rescan("undo")
        return restored

    async def undelete(self, entries: Sequence[files.HistoryRow]) -> Undeleted:
        """The placeholders of these deleted versions, a batch at most, come back."""
        parts = self._parts
        async with self.open_root() as root, self._deciding:  # until the end no batch begins
            busy = [(e.path, NAMED_ANEW) for e in entries if self.is_in_flight(e.path)]
            free = [e for e in entries if not self.is_in_flight(e.path)]
            paths = [e.path for e in free]
            self.begin_ours(paths)
            try:
                done = await self.in_thread(
                    undelete, root, parts.catalog, self.row, free, parts.me,
                    now_ms=parts.now_ms(), reads=self.mark_own,
                )  # fmt: skip
            finally:
                self.end_ours(paths)
        return done._replace(failed=busy + done.failed)

    @asynccontextmanager
    async def open_root(self) -> AsyncIterator[Root]:
        """The root, open until the end; Unavailable when the folder is not there."""
        await self._sought.wait()
        root = self.root
        if root is None or not await self.in_thread(root.acquire):
            raise Unavailable(f"{self.path} is not there.")
        try:
            yield root
        finally:
            root.release()

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await self._parts.in_thread(function, *args, **kwargs)

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled; a root that goes away is waited for in silence."""
        self._sought.clear()
        while True:
            try:
                is_there = await self._arrive()
            finally:
                self._sought.set()
            if is_there:
                try:
                    await self._watch()
                finally:
                    await self._leave()
            self._looked_at.set()
            await asyncio.sleep(PRESENCE_S)

    async def _arrive(self) -> bool:
        """Open the root when it is the folder that was added; recover what a crash left."""
        marker = await self.in_thread(Root.marker, self.path)
        if marker != self.folder_id.hex():
            if self.missing_since is None:
                self.missing_since, self.unwatched = self._parts.clock.wall(), None
                log.info("%s is not there; it goes on by itself when it is back.", self.path)
            return False
        try:
            root = await self.in_thread(Root, self.path, self.folder_id)
        except Unavailable:
            return False
        recovery = Recovery(
            catalog=self._parts.catalog,
            ring=self._parts.ring,
            clock=self._parts.clock,
            root=root,
            folder=self.row,
        )
        try:
            self._trash.take_over(await self.in_thread(recovery.run))
        except OSError as exc:
            root.close()
            self._cannot_watch(f"{self.path} cannot be recovered yet ({exc.strerror})")
            return False
        self.root, self.missing_since = root, None
        self.ask_rescan("the folder is back")
        return True

    async def _leave(self) -> None:
        root, self.root = self.root, None
        self._parts.opens.remove_root(self.path)
        self.waiting.clear()
        self._looking.scanned = False
        self._books.hints.start_over()
        await self._batching.let_go()
        if root is not None:
            root.close()

    async def _watch(self) -> None:
        try:
            async with ChangeWatcher(self.path) as watcher, asyncio.TaskGroup() as group:
                self.unwatched = None
                listener = group.create_task(self._listen(watcher))
                try:
                    await self._work(group)
                finally:
                    listener.cancel()
        except* UsageError as errors:
            self._cannot_watch(f"{self.path} cannot be watched: {errors.exceptions[0]}")

    def _cannot_watch(self, why: str) -> None:
        """It is tried every two seconds, and said once."""
        if why != self.unwatched:
            log.warning("%s", why)
        self.unwatched = why

    async def _listen(self, watcher: ChangeWatcher) -> None:
        async for event in watcher:
            match event:
                case Changed(paths):
                    # Now: the look that these ask for may have to wait for batches.
                    now = self._parts.now()
                    for path in paths:
                        self.waiting.touch(path, now=now, settle=self.settings.settle_s)
                    self._books.hints.add(paths)
                case RescanWanted(reason):
                    self.ask_rescan(reason)
                case RootGone() | RootBack():
                    self._books.hints.news.set()  # `_work` asks the root itself

    async def _work(self, group: asyncio.TaskGroup) -> None:
        """Turn after turn, until the root is gone; between them nothing is open on its disk."""
        hints, looking = self._books.hints, self._looking
        self._next_scan, self._next_presence = self._parts.now() + _until_scan(), 0.0
        while (root := self.root) is not None and await self.in_thread(root.acquire):
            began = self._parts.now()
            try:
                if not await self._turn(root, group):
                    return
            finally:
                root.release()
            wait = looking.wait_s()
            if wait or not hints:
                if not self._batching.holds_files:
                    root.rest()
                latest = min(self._next_presence, began + wait) if wait else self._next_presence
                await self._nap(latest)

    async def _turn(self, root: Root, group: asyncio.TaskGroup) -> bool:
        """Look, conclude, hand out, empty; False when the root is gone."""
        now = self._parts.now()
        if now >= self._next_presence:
            if not await self.in_thread(root.is_present):
                return False
            await self._look_for_obstacles(root)
            self._next_presence = now + PRESENCE_S
        if now >= self._next_scan:
            self.ask_rescan("time")
            self._next_scan = now + _until_scan()
        self._is_busy = True
        await self._looking.look(root)
        if self.is_scanned:
            self._looked_at.set()
        async with self._deciding:
            if not self.is_paused:
                await self._conclude(root)
            while not self.is_paused and await self._batching.begin(root, group):
                pass
        self._is_busy = False
        await self._trash.empty_due(root, room_is_short=self.waiting_for_room is not None)
        self._books.hints.news.clear()
        return True

    async def _look_for_obstacles(self, root: Root) -> None:
        """A disk may become read-only under us, and writable again: then all is judged anew."""
        before, self._books.obstacle = self._books.obstacle, await self.in_thread(root.obstacle)
        if before is not None and self._books.obstacle is None:
            self.ask_rescan("it can be written again")

    async def _conclude(self, root: Root) -> None:
        why = await conclude(root, self.row, self._parts, self._books)
        if why is None:
            return
        log.warning("%s is paused: %s. Nothing is concluded from it.", self.path, why)
        self.set_paused(why)
        await self._parts.catalog.awrite(lambda db: folders.set_paused(db, self.row, why))

    async def _nap(self, latest: float) -> None:
        """Sleep until the next thing is due or something is heard."""
        due = (self.losses.next_due(), self._batching.next_due())
        until = min([latest, *(moment for moment in due if moment is not None)])
        pause = min(max(until - self._parts.now(), SHOWER_S), PRESENCE_S)
        try:
            async with asyncio.timeout(pause):
                await self._books.hints.news.wait()
            await asyncio.sleep(SHOWER_S)
        except TimeoutError:
            pass


def _until_scan() -> float:
    return RESCAN_S * random.uniform(0.8, 1.2)
