"""One watched folder while the node runs: from events to placeholders.

A single task owns the folder's bookkeeping. It hears hints from the watcher, looks (in a thread),
waits until things are at rest, and hands out batches; batches run in threads of their own, and only
their outcomes come back here. Nothing is concluded from a root that is not there.

What a path can wait for: to come to rest (`settle`), to be free of writers, to be no longer in work
(`keep` after its last use), room, a decision of the owner after a mass change.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

import msgspec

from p2pstore.clock import Clock
from p2pstore.config import FolderSettings
from p2pstore.content import MAX_READ, Keyring, looks_like_manifest, next_version
from p2pstore.errors import P2PStoreError, Unavailable, UsageError
from p2pstore.folders.emptying import empty
from p2pstore.folders.intents import Trashed
from p2pstore.folders.judging import IN_WORK, Rules, Stays, judge
from p2pstore.folders.losses import Losses
from p2pstore.folders.meeting import Meeting
from p2pstore.folders.reconcile import (
    Findings,
    disk_name,
    identity_of,
    look_at,
    look_at_all,
    still,
)
from p2pstore.folders.recovery import Recovery
from p2pstore.folders.taking import (
    Candidate,
    Outcome,
    Taken,
    Taking,
    decode_version,
    encode_version,
)
from p2pstore.folders.waiting import Waiting
from p2pstore.home import WatchedFolder
from p2pstore.ids import FolderId, NodeId
from p2pstore.leases import LeaseKeeper
from p2pstore.placement import (
    SUFFIX,
    Claim,
    Directories,
    Identity,
    Root,
    read_placeholder,
    write_placeholder,
)
from p2pstore.store import BundleStore, Catalog, FileRow, State, files, folders
from p2pstore.threads import in_thread
from p2pstore.watch import (
    Changed,
    ChangeWatcher,
    OpenWatcher,
    RescanWanted,
    RootBack,
    RootGone,
)

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

BATCH_FILES = 500
BATCH_BYTES = 64 << 20
BATCHES_IN_FLIGHT = 3
TICK_S = 0.25
LOOKS_APART_S = 2.0  # while batches run: they make most of the hints
LOOK_SHARE = 10  # ... and a large folder is not looked at for most of the time
LOOKS_APART_MOST_S = 30.0
RETRY_S = 5.0  # a file that somebody has open is tried again after this
OWN_OPENS_S = 10.0  # opens of a batch are judged within this after it has ended
LEASE_HOLD_S = 1.0  # a claim is kept this long after its rename (SAFETY, section 2)
OPENS_AT_A_TIME = 500  # directories watched before other work of the loop gets its turn
RESCAN_S = 600.0  # hints can be lost in silence
PRESENCE_S = 2.0


class Room(Protocol):
    def lacks(self, root: Root, incoming: int) -> str | None:
        """Why a batch of so many bytes may not begin now; None when it may."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What every folder is handed."""

    catalog: Catalog
    store: BundleStore
    taking: Taking
    keeper: LeaseKeeper
    opens: OpenWatcher
    ring: Callable[[], Keyring]
    clock: Clock
    pool: Executor  # batches and looks; each call blocks one thread
    room: Room
    me: NodeId
    trash_hold_s: float
    trash_hold_short_s: float  # while there is no room for a batch
    volatile: str | None  # why nothing may be replaced on this store
    protected: Callable[[], None]  # something new became durable


class Folder:
    def __init__(self, entry: WatchedFolder, row: int, parts: Parts) -> None:
        self.entry = entry
        self.row = row
        self.path = Path(entry.path)
        self.folder_id = FolderId(entry.folder_id)
        self.root: Root | None = None
        self.missing_since: float | None = None
        self.losses = Losses()
        self.scanned = False  # the first scan of this run is done
        self.waiting_for_room: str | None = None
        self.opens_unheard = ""  # why opening a placeholder may not bring it back here
        self.unread: list[tuple[bytes, str]] = []
        self.waiting = Waiting()
        self.in_flight: dict[bytes, int] = {}  # path -> bytes
        self._just_placed: deque[tuple[float, frozenset[bytes]]] = deque()
        self._parts = parts
        self._meeting = Meeting(
            path=self.path,
            row=row,
            catalog=parts.catalog,
            store=parts.store,
            opens=parts.opens,
            ring=parts.ring,
        )
        self._settings = entry.settings
        self._ours: set[bytes] = set()  # paths that batches and hydrations are changing now
        self._ours_lately: set[bytes] = set()  # those that they finished since the look began
        self._half_seen: set[bytes] = set()  # of ours: a look met them half done
        self._looked = float("-inf")
        self._look_took = 0.0
        self._dirty: set[bytes] = set()
        self._rescan: str | None = "start"
        self._repositories: set[bytes] = set()
        self._siblings: dict[bytes, set[bytes]] = {}
        self._judge_anew = False  # at the next scan
        self._forced: set[bytes] = set()  # to be replaced now, in work or not
        self._trash: list[Trashed] = []
        self._held: list[list[Claim]] = []  # leased a second longer, of each batch
        self._news = asyncio.Event()
        self._batches = 0
        self._is_looking = False  # what was taken out of `waiting` is not in a batch yet

    # -- what others ask --------------------------------------------------------------------------

    @property
    def settings(self) -> FolderSettings:
        return self._settings

    @property
    def is_paused(self) -> bool:
        return bool(self.entry.paused)

    def change_settings(self, settings: FolderSettings) -> None:
        """New rules hold from the next look on; everything is judged anew."""
        self._settings = settings
        self.waiting.shorten(now=self._parts.clock.monotonic(), settle=settings.settle_s)
        self.ask_rescan("its settings changed", judge_anew=True)

    def ask_rescan(self, reason: str, *, judge_anew: bool = False) -> None:
        self._rescan = self._rescan or reason
        if judge_anew:
            self._judge_anew = True
        self._news.set()

    def note(self, path: bytes) -> None:
        """A path of this folder was touched by us; look at it soon."""
        self._dirty.add(path)
        self._news.set()

    def begin_ours(self, paths: Iterable[bytes]) -> None:
        """We are about to change these paths ourselves: a look may meet them half done.

        A look takes time, and so does a batch; catalog and disk agree again only at `end_ours`.
        Until then nothing is concluded about them, above all not that they are gone.
        """
        self._ours.update(paths)

    def end_ours(self, paths: Iterable[bytes]) -> None:
        ended = set(paths)
        self._ours -= ended
        self._ours_lately |= ended
        again = self._half_seen & ended
        self._half_seen -= again
        self._look_again(again)
        self._news.set()

    def _is_ours(self, path: bytes) -> bool:
        """Whether we changed the path while the last look ran; then it is looked at again."""
        if path in self._ours:
            self._half_seen.add(path)
            return True
        if path in self._ours_lately:
            self._look_again((path,))
            return True
        return False

    def _look_again(self, paths: Iterable[bytes]) -> None:
        for path in paths:
            self._dirty.update((path, path + SUFFIX))

    def force(self, rows: Iterable[FileRow]) -> None:
        """Replace these now, whatever `settle` and `keep` say; leases are respected."""
        now = self._parts.clock.monotonic()
        for row in rows:
            if row.path not in self.in_flight:
                self._forced.add(row.path)
                identity = Identity(row.ino, row.size, row.mtime_ns, row.ctime_ns)
                self.waiting.defer(row.path, identity, "", until=now)
        self._news.set()

    def force_new(self, path: bytes) -> None:
        """The same for what is at or below a path and not in the catalog yet."""
        now = self._parts.clock.monotonic()
        for waiting in self.waiting.below(path):
            self._forced.add(waiting)
            self.waiting.hurry(waiting, now=now)
        self._dirty.add(path)
        self._news.set()

    def is_settled(self) -> bool:
        """Everything present is replaced, or has a reason to stay."""
        return (
            self.scanned
            and not self._is_looking
            and not self._batches
            and self._rescan is None
            and not self._dirty
            and not self.in_flight
            and not self.waiting.active().files
        )

    def is_opened_by_us(self, path: bytes, heard: float) -> bool:
        """Whether an open of this path's placeholder was our own: in the batch that made it."""
        now = self._parts.clock.monotonic()
        while self._just_placed and self._just_placed[0][0] < now - OWN_OPENS_S:
            self._just_placed.popleft()
        return path in self.in_flight or any(
            heard <= ended and path in paths for ended, paths in self._just_placed
        )

    def forcing(self) -> bool:
        """Something that was to be replaced now has not been judged yet."""
        self._forced = {p for p in self._forced if p in self.waiting or p in self.in_flight}
        return bool(self._forced)

    def next_version_at(self, path: bytes) -> bytes:
        """The encoded version that a new state of the path has, whatever was there."""
        row = self._parts.catalog.view(lambda db: files.get(db, self.row, path))
        return encode_version({self._parts.me: 1}) if row is None else self._next(row)

    def pending(self) -> int:
        return self.waiting.active().files + len(self.in_flight)

    def pending_bytes(self) -> int:
        return self.waiting.active().bytes + sum(self.in_flight.values())

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await in_thread(self._parts.pool, function, *args, **kwargs)

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Watch until cancelled; a root that goes away is waited for in silence."""
        while True:
            if await self._arrive():
                try:
                    await self._watch()
                finally:
                    await self._leave()
            await asyncio.sleep(PRESENCE_S)

    async def _arrive(self) -> bool:
        """Open the root when it is the folder that was added; recover what a crash left."""
        marker = await self.in_thread(Root.marker, self.path)
        if marker != self.folder_id.hex():
            if self.missing_since is None:
                self.missing_since = self._parts.clock.wall()
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
            self._trash = await self.in_thread(recovery.run)
        except OSError as exc:
            root.close()
            log.warning("%s cannot be recovered yet: %s", self.path, exc)
            return False
        self.root, self.missing_since = root, None
        self._rescan = self._rescan or "the folder is back"
        return True

    async def _leave(self) -> None:
        root, self.root = self.root, None
        self._parts.opens.remove_root(self.path)
        self.waiting = Waiting()
        self.scanned = False
        self._dirty.clear()
        self._rescan = "start"
        held, self._held = self._held, []
        for claims in held:  # whoever breaks a lease needs the root to get his file back
            await self.in_thread(_close_all, claims)
        if root is not None:
            root.close()

    async def _watch(self) -> None:
        try:
            async with ChangeWatcher(self.path) as watcher, asyncio.TaskGroup() as group:
                listener = group.create_task(self._listen(watcher))
                try:
                    await self._work(group)
                finally:
                    listener.cancel()
        except* UsageError as errors:
            log.warning("%s cannot be watched: %s", self.path, errors.exceptions[0])

    async def _listen(self, watcher: ChangeWatcher) -> None:
        async for event in watcher:
            match event:
                case Changed(paths):
                    self._dirty.update(paths)
                    # Now: the look that these ask for may have to wait for batches.
                    now = self._parts.clock.monotonic()
                    for path in paths - self._forced:
                        self.waiting.touch(path, now=now, settle=self._settings.settle_s)
                case RescanWanted(reason):
                    self._rescan = self._rescan or reason
                case RootGone() | RootBack():
                    pass  # `_work` asks the root itself
            self._news.set()

    async def _work(self, group: asyncio.TaskGroup) -> None:
        clock = self._parts.clock
        next_scan = clock.monotonic() + RESCAN_S * random.uniform(0.8, 1.2)
        next_presence = 0.0
        while True:
            now = clock.monotonic()
            if now >= next_presence:
                if self.root is None or not await self.in_thread(self.root.is_present):
                    return
                next_presence = now + PRESENCE_S
            if now >= next_scan:
                self._rescan = self._rescan or "time"
                next_scan = now + RESCAN_S * random.uniform(0.8, 1.2)
            self._is_looking = True
            await self._look()
            await self._conclude_gone()
            await self._dispatch(group)
            self._is_looking = False
            await self._empty_trash()
            self._news.clear()
            if (wait := self._look_later()) or not (self._dirty or self._rescan):
                await self._nap(min(next_presence, now + wait) if wait else next_presence)

    async def _nap(self, latest: float) -> None:
        """Sleep until the next thing is due or something is heard."""
        now = self._parts.clock.monotonic()
        until = [latest]
        if (gone := self.losses.next_due()) is not None:
            until.append(gone)
        if (due := self.waiting.next_due()) is not None and self._batches < BATCHES_IN_FLIGHT:
            until.append(due)
        pause = min(max(min(until) - now, TICK_S / 5), PRESENCE_S)
        try:
            async with asyncio.timeout(pause):
                await self._news.wait()
            # Hints come in showers: one look for all of them.
            await asyncio.sleep(TICK_S / 5)
        except TimeoutError:
            pass

    # -- looking ----------------------------------------------------------------------------------

    def _look_later(self) -> float:
        """Seconds until the next look is worth it: most of what is heard meanwhile is our doing."""
        if not self._ours or not self.scanned or self._forced:
            return 0.0
        apart = min(max(LOOKS_APART_S, LOOK_SHARE * self._look_took), LOOKS_APART_MOST_S)
        return max(0.0, self._looked + apart - self._parts.clock.monotonic())

    async def _look(self) -> None:
        root = self.root
        if root is None or self._look_later():
            return
        began = self._parts.clock.monotonic()
        if self._rescan is not None or self._dirty:
            self._ours_lately.clear()
        if self._rescan is not None:
            self._rescan, judge_anew, self._judge_anew = None, self._judge_anew, False
            self._dirty.clear()
            findings = await self.in_thread(look_at_all, root, self._parts.catalog, self.row)
            self._repositories = findings.repositories
            self._siblings = findings.siblings
            self.unread = [(u.path, u.error.strerror or "error") for u in findings.unread]
            await self._watch_opens((b"", *findings.directories))
            await self._apply(root, findings)
            await self._requeue(root, judge_anew=judge_anew)
            self.scanned = True
        elif self._dirty:
            hints, self._dirty = self._dirty, set()
            # A write into a mapped page may change nothing that a look can see.
            now = self._parts.clock.monotonic()
            for path in hints - self._forced:
                self.waiting.touch(path, now=now, settle=self._settings.settle_s)
            findings = await self.in_thread(
                look_at, root, self._parts.catalog, self.row, sorted(hints)
            )
            self._repositories |= findings.repositories
            for directory, names in findings.siblings.items():
                self._siblings.setdefault(directory, set()).update(names)
            await self._watch_opens(findings.directories)
            await self._apply(root, findings)
        self._looked = self._parts.clock.monotonic()
        self._look_took = self._looked - began

    async def _watch_opens(self, directories: Sequence[bytes]) -> None:
        """Hear of opens in these directories; beyond the system's limit only `hydrate` works."""
        for start in range(0, len(directories), OPENS_AT_A_TIME):
            try:
                for directory in directories[start : start + OPENS_AT_A_TIME]:
                    self._parts.opens.add_directory(self.path, directory)
            except Unavailable as exc:
                if not self.opens_unheard:
                    log.warning("%s: opens are not noticed everywhere: %s", self.path, exc)
                self.opens_unheard = str(exc)
                return
            await asyncio.sleep(0)
        self.opens_unheard = ""

    async def _apply(self, root: Root, findings: Findings) -> None:
        now = self._parts.clock.monotonic()
        settle = self._settings.settle_s
        for seen in findings.changed:
            self.losses.found([seen.path])
            if not self._is_ours(seen.path):
                wait = 0.0 if seen.path in self._forced else settle
                self.waiting.observe(seen.path, identity_of(seen), now=now, settle=wait)
        met = [s for s in findings.placeholders if not self._is_ours(s.path.removesuffix(SUFFIX))]
        if met:
            known, own = await self.in_thread(self._meeting.placeholders, root, met)
            self.losses.found(known)
            for seen in own:
                if not self._is_ours(seen.path):
                    self.waiting.observe(seen.path, identity_of(seen), now=now, settle=settle)
        if findings.links or findings.others:
            await self.in_thread(self._meeting.others, root, findings.links, findings.others)
        for gone in findings.gone:
            if not self._is_ours(gone.path) and gone.state != State.HYDRATING:
                self.losses.missing(gone.path, due=now + settle)
                self.waiting.drop(gone.path)
        modified = sum(1 for path in findings.modified if not self._is_ours(path))
        if modified:
            self.losses.changed(modified, now)

    async def _requeue(self, root: Root, *, judge_anew: bool) -> None:
        """Protected files that may be replaced one day wait for that day."""
        states = (State.PROTECTED, State.SKIPPED) if judge_anew else (State.PROTECTED,)

        def waiting(db: sqlite3.Connection) -> list[FileRow]:
            return [
                row
                for row in files.walk(db, self.row, states=states)
                # Without a reason: a crash came between protecting and replacing.
                if judge_anew or not row.reason or row.reason in RETRIED
            ]

        now, wall = self._parts.clock.monotonic(), self._parts.clock.wall()
        for row in await self.in_thread(self._parts.catalog.view, waiting):
            if row.path in self.waiting or row.path in self.in_flight:
                continue
            identity = Identity(row.ino, row.size, row.mtime_ns, row.ctime_ns)
            if row.reason == IN_WORK and not judge_anew:
                due = now + max(0.0, row.last_use / 1000 + self._settings.keep_s - wall)
                self.waiting.defer(row.path, identity, IN_WORK, until=due)
            else:
                self.waiting.observe(row.path, identity, now=now, settle=self._settings.settle_s)

    # -- what is gone -----------------------------------------------------------------------------

    async def _conclude_gone(self) -> None:
        """Deletions, after they rested like everything else and are no mass change."""
        now, root, losses = self._parts.clock.monotonic(), self.root, self.losses
        if self.is_paused or root is None or losses.is_quiet(now):
            return
        catalog, gone = self._parts.catalog, losses.gone
        total = await self.in_thread(catalog.view, partial(_known_files, self.row))
        rows: dict[bytes, FileRow] = await self.in_thread(
            catalog.view, lambda db: files.get_many(db, self.row, gone)
        )
        back = await self.in_thread(
            still, root, [disk_name(row.path, row.state) for row in rows.values()]
        )
        # What was moved has another path in the catalog by now; what came back is there.
        losses.found(
            path for path in gone if path not in rows or disk_name(path, rows[path].state) in back
        )
        if losses.is_mass(total):
            lost, _ = losses.change or (0, 0)
            await self._pause(f"{lost} of {total} files are gone or changed at once")
            return
        doomed = [rows[path] for path in losses.ripe(now)]
        if doomed and await self._is_present(root):
            await catalog.awrite(partial(self._retire, doomed))
            losses.found(row.path for row in doomed)
            losses.changed(len(doomed), now)
            self._parts.protected()
        losses.settle()

    async def _is_present(self, root: Root) -> bool:
        return await self.in_thread(root.is_present)

    def _retire(self, rows: Sequence[FileRow], db: sqlite3.Connection) -> None:
        now = int(self._parts.clock.wall() * 1000)
        for row in rows:
            if row.state == State.SKIPPED or not row.file_id:
                files.forget(db, [row.id])
            else:
                files.retire(db, row.id, self._next(row), now)

    def _next(self, row: FileRow) -> bytes:
        return encode_version(next_version(decode_version(row.version), self._parts.me))

    async def _pause(self, why: str) -> None:
        log.warning("%s is paused: %s. Nothing is concluded from it.", self.path, why)
        self.set_paused(why)
        await self._parts.catalog.awrite(lambda db: folders.set_paused(db, self.row, why))

    def set_paused(self, why: str) -> None:
        self.entry = msgspec.structs.replace(self.entry, paused=why)
        self._news.set()

    def accept_change(self) -> None:
        """The owner says that the mass change is meant."""
        self.losses.accept()
        self.set_paused("")

    async def undo_change(self) -> int:
        """Bring back the placeholders that are gone; how many."""
        root = self.root
        if root is None:
            raise Unavailable(f"{self.path} is not there.")
        paths = self.losses.gone
        rows = await self.in_thread(
            self._parts.catalog.view, lambda db: files.get_many(db, self.row, paths)
        )
        raws = await self.in_thread(
            self._parts.catalog.view,
            lambda db: files.manifests(db, [row.id for row in rows.values()]),
        )
        restored = 0
        # Placeholders that come back are no change of somebody's: that would pause it again.
        self.begin_ours(paths)
        try:
            for row in rows.values():
                if row.id in raws:
                    name = row.path + SUFFIX
                    try:
                        await self.in_thread(write_placeholder, root, name, raws[row.id])
                    except FileExistsError:
                        continue
                    restored += 1
            restored += await self.in_thread(self._undo_overwritten, root)
            back = [row for row in rows.values() if row.id in raws]
            await self.in_thread(self._put_on_record, root, back)
        finally:
            self.end_ours(paths)
        self.losses.forget()
        self.set_paused("")
        self.ask_rescan("undo")
        return restored

    def _put_on_record(self, root: Root, rows: Sequence[FileRow]) -> None:
        """The placeholders of these lie there again, as they are on the disk now."""
        there = still(root, [row.path + SUFFIX for row in rows])
        found = [(row.id, there[row.path + SUFFIX]) for row in rows if row.path + SUFFIX in there]
        on_disk = [(number, State.PLACEHOLDER, *identity_of(seen)) for number, seen in found]
        self._parts.catalog.write(lambda db: files.set_on_disk(db, on_disk)).result()

    def _undo_overwritten(self, root: Root) -> int:
        """Placeholders that hold something else now: that is kept beside, they come back."""
        catalog, mark = self._parts.catalog, b"changed-%d" % int(self._parts.clock.wall())
        rows = catalog.view(lambda db: list(files.walk(db, self.row, states=(State.PLACEHOLDER,))))
        there = still(root, [row.path + SUFFIX for row in rows])
        restored = 0
        for row in rows:
            name = row.path + SUFFIX
            seen = there.get(name)
            on_record = (row.ino, row.size, row.mtime_ns, row.ctime_ns)
            if seen is None or identity_of(seen) == on_record:
                continue
            with Directories(root) as directories:
                directory, last = directories.parent(name)
                found = read_placeholder(directory, last, MAX_READ + 1)
            raw = catalog.view(partial(_manifest_of, row.id))
            if raw is not None and not looks_like_manifest(found):
                write_placeholder(root, name, raw, aside=mark)
                restored += 1
        return restored

    # -- batches ----------------------------------------------------------------------------------

    async def _dispatch(self, group: asyncio.TaskGroup) -> None:
        root = self.root
        while root is not None and not self.is_paused and self._batches < BATCHES_IN_FLIGHT:
            batch = await self._next_batch(root)
            if not batch:
                return
            size = sum(candidate.identity.size for candidate in batch)
            if (lack := self._parts.room.lacks(root, size)) is not None:
                self.waiting_for_room = lack
                until = self._parts.clock.monotonic() + RETRY_S
                for candidate in batch:
                    self.waiting.defer(
                        candidate.path, candidate.identity, "waiting for room", until=until
                    )
                return
            self.waiting_for_room = None
            for candidate in batch:
                self.in_flight[candidate.path] = candidate.identity.size
            self.begin_ours(candidate.path for candidate in batch)
            self._batches += 1
            group.create_task(self._take(root, batch))

    async def _next_batch(self, root: Root) -> list[Candidate]:
        """Up to a batch of paths that rested, looked at once more and judged."""
        now = self._parts.clock.monotonic()
        due = self.waiting.due(now, BATCH_FILES)
        if not due:
            return []
        seen = await self.in_thread(still, root, [path for path, _ in due])
        rows = await self.in_thread(
            self._parts.catalog.view,
            lambda db: files.get_many(db, self.row, [path for path, _ in due]),
        )
        batch: list[Candidate] = []
        skipped: list[FileRow] = []
        size = 0
        rules = Rules(
            folder=self.row,
            settings=self._settings,
            repositories=self._repositories,
            siblings=self._siblings,
            volatile=self._parts.volatile,
            wall=self._parts.clock.wall(),
        )
        for path, rest in due:
            there = seen.get(path)
            if there is None:
                self._dirty.add(path)
                continue
            identity = identity_of(there)
            if identity != rest.identity:
                self.waiting.observe(path, identity, now=now, settle=self._settings.settle_s)
                continue
            if batch and size + identity.size > BATCH_BYTES:
                self.waiting.observe(path, identity, now=now, settle=0.0)
                continue
            verdict = judge(there, rows.get(path), rules, forced=path in self._forced)
            self._forced.discard(path)
            if isinstance(verdict, FileRow):
                skipped.append(verdict)
            elif isinstance(verdict, Stays):
                self._stay(verdict.row, identity, verdict.reason)
            else:
                batch.append(verdict)
                size += identity.size
        if skipped:
            await self._parts.catalog.awrite(lambda db: files.upsert_many(db, skipped))
        return batch

    def _stay(self, row: FileRow, identity: Identity, reason: str) -> None:
        if reason != row.reason:
            self._parts.catalog.write(
                lambda db: files.set_state(db, [row.id], State.PROTECTED, reason)
            )
        if reason == IN_WORK:
            self._wait_for_end_of_work(row.path, identity, row.last_use / 1000)

    def _wait_for_end_of_work(self, path: bytes, identity: Identity, last_use: float) -> None:
        clock = self._parts.clock
        left = max(RETRY_S, last_use + self._settings.keep_s - clock.wall())
        self.waiting.defer(path, identity, IN_WORK, until=clock.monotonic() + left)

    async def _take(self, root: Root, batch: list[Candidate]) -> None:
        try:
            await self._take_batch(root, batch)
        finally:
            self._batches -= 1
            self._news.set()

    async def _take_batch(self, root: Root, batch: list[Candidate]) -> None:
        """One batch in a thread; its outcomes come back here."""
        candidates = {candidate.path: candidate for candidate in batch}
        try:
            taken = await self.in_thread(self._parts.taking.take, root, self.row, batch)
        except (P2PStoreError, OSError) as exc:
            log.warning("A batch of %d files of %s failed: %s", len(batch), self.path, exc)
            reason = str(exc) if isinstance(exc, P2PStoreError) else str(exc.strerror)
            until = self._parts.clock.monotonic() + RETRY_S
            for candidate in batch:
                self.waiting.defer(candidate.path, candidate.identity, reason, until=until)
            return
        finally:
            for path in candidates:
                self.in_flight.pop(path, None)
            self._parts.opens.catch_up()  # what was opened until now, we opened
            self._just_placed.append((self._parts.clock.monotonic(), frozenset(candidates)))
            self.end_ours(candidates)
        self._hold(taken)
        for outcome in taken.outcomes:
            if outcome.state == "found placeholder":
                if await self.in_thread(self._meeting.misnamed, root, outcome.path):
                    self.losses.found([outcome.path])
            else:
                self._settle_outcome(outcome, candidates[outcome.path])
        self._parts.protected()

    def _settle_outcome(self, outcome: Outcome, candidate: Candidate) -> None:
        clock = self._parts.clock
        if outcome.state == "later" and outcome.reason == TOO_MANY:
            # Its turn comes when the leases of others are given back: no reason to stay.
            until = clock.monotonic() + LEASE_HOLD_S
            self.waiting.defer(outcome.path, candidate.identity, "", until=until)
        elif outcome.state == "later":
            until = clock.monotonic() + RETRY_S
            self.waiting.defer(outcome.path, candidate.identity, outcome.reason, until=until)
        elif outcome.state == "gone":
            self._dirty.add(outcome.path)
        elif outcome.state == "protected" and outcome.reason == IN_WORK:
            self._wait_for_end_of_work(outcome.path, candidate.identity, clock.wall())
        elif outcome.state == "protected" and outcome.reason in RETRIED:
            until = clock.monotonic() + RETRY_S
            self.waiting.defer(outcome.path, candidate.identity, outcome.reason, until=until)

    def _hold(self, taken: Taken) -> None:
        """Keep the leases a second more; remember the trash."""
        if taken.intent is not None and taken.body is not None:
            since = int(self._parts.clock.wall() * 1000)
            self._trash.append(Trashed(taken.intent, taken.body, since, False))
        if taken.claims:
            self._held.append(taken.claims)
            asyncio.get_running_loop().call_later(LEASE_HOLD_S, self._let_go, taken.claims)

    def _let_go(self, claims: list[Claim]) -> None:
        """The second is over; when the folder was left before, its claims are closed already."""
        if claims in self._held:
            self._held.remove(claims)
            self._parts.pool.submit(_close_all, claims)

    # -- trash ------------------------------------------------------------------------------------

    def trash_waits(self, batch: Trashed) -> None:
        """A batch that somebody else (hydrate) put into this folder's trash."""
        self._trash.append(batch)
        self._news.set()

    def trash(self) -> list[Trashed]:
        return list(self._trash)

    async def _empty_trash(self) -> None:
        """Let go what has waited long enough and is still what was put there."""
        root = self.root
        if root is None:
            return
        now = self._parts.clock.wall() * 1000
        hold_s = self._parts.trash_hold_s
        if self.waiting_for_room is not None:
            hold_s = min(hold_s, self._parts.trash_hold_short_s)
        await self._empty(root, [b for b in self._trash if b.since_ms + hold_s * 1000 <= now])

    async def empty_trash(self) -> int:
        """Let go now what may go, however short it lay there; how many files stay."""
        if self.root is not None:
            await self._empty(self.root, list(self._trash))
        return sum(len(batch.body.items) for batch in self._trash)

    async def _empty(self, root: Root, due: Sequence[Trashed]) -> None:
        now = self._parts.clock.wall() * 1000
        for batch in due:
            if batch not in self._trash:
                continue
            self._trash.remove(batch)
            parts = self._parts
            left: Trashed | None = batch
            back: list[bytes] = []
            try:
                left, back = await self.in_thread(
                    empty, root, self.row, batch, parts.catalog, parts.store, parts.keeper
                )
            except OSError as exc:
                log.warning("The trash of %s cannot be emptied now: %s", self.path, exc)
            self._dirty.update(back)
            if left is not None:
                since = now + (RETRY_S - parts.trash_hold_s) * 1000
                self._trash.append(left._replace(since_ms=int(since)))


TOO_MANY = "too many files at once"  # what a claim beyond the budget of leases is told
RETRIED = frozenset((IN_WORK, "opened for writing meanwhile", "changed meanwhile"))


def _close_all(claims: Sequence[Claim]) -> None:
    for entry in claims:
        entry.close()


def _manifest_of(file: int, db: sqlite3.Connection) -> bytes | None:
    return files.manifest(db, file)


def _known_files(folder: int, db: sqlite3.Connection) -> int:
    return sum(count.files for count in files.counts(db, folder))
