"""Folders: the watched folders of a node, the tasks that watch them, and what their owner asks.

The list of folders lies in HOME (it must survive the catalog); a row in the catalog mirrors each.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from p2pstore.config import Config, FolderSettings
from p2pstore.content import Keyring
from p2pstore.errors import NotRunning, P2PStoreError, Unavailable, UsageError
from p2pstore.folders import settling
from p2pstore.folders.bringing import Bringing, Brought
from p2pstore.folders.contents import Contents
from p2pstore.folders.folder import Folder
from p2pstore.folders.laying import LaidOut, is_there, lay_out, take_in
from p2pstore.folders.parts import Parts
from p2pstore.folders.preview import Preview, preview
from p2pstore.folders.registry import Registry
from p2pstore.home import RECOVERING, Followed, Home, WatchedFolder
from p2pstore.ids import FolderId
from p2pstore.placement import OWN, SUFFIX, Root
from p2pstore.policy import refuse_folder
from p2pstore.sandbox import cannot_write, unseen
from p2pstore.store import Catalog, State, files, folders
from p2pstore.text import plural

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]
PAUSED_BY_OWNER = "paused by its owner"


class Folders:
    def __init__(self, *, home: Home, config: Config, parts: Parts, bringing: Bringing) -> None:
        self._home = home
        self._config = config
        self._parts = parts
        self._registry = Registry()
        self._contents = Contents(registry=self._registry, parts=parts, bringing=bringing)
        self._tasks: dict[FolderId, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None

    # -- life -------------------------------------------------------------------------------------

    def start(self, group: asyncio.TaskGroup | None) -> None:
        """Know every folder that HOME lists, and watch it; the tasks are the group's.

        Without a group files can be brought back, and nothing happens by itself.
        """
        self._group = group
        for entry in self._home.folders():
            if not entry.removed:
                self._watch(entry)

    async def close(self) -> None:
        """Stop watching; batches in flight end first."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def looked_at(self) -> None:
        """Return when each folder was looked at once, or was found not to be there."""
        await asyncio.gather(*(folder.looked_at() for folder in self.all()))

    def _watch(self, entry: WatchedFolder) -> Folder:
        path = os.fsencode(entry.path)
        settings = msgspec.msgpack.encode(entry.settings)
        row = self._catalog.write(
            lambda db: folders.add(
                db, FolderId(entry.folder_id), path, entry.name, settings, entry.folder_id
            )
        ).result()
        # HOME says it; between the two a crash may have come.
        self._catalog.write(lambda db: folders.set_paused(db, row, entry.paused)).result()
        folder = Folder(entry, row, self._parts)
        self._registry.put(folder)
        if self._group is not None:
            self._tasks[folder.folder_id] = self._group.create_task(self._run(folder))
        elif Root.marker(folder.path) == folder.folder_id.hex():
            folder.root = Root(folder.path, folder.folder_id)
        return folder

    async def _run(self, folder: Folder) -> None:
        """A folder that fails is tried again; the others do not notice."""
        pause = 1.0
        while True:
            try:
                await folder.run()
            except (P2PStoreError, OSError, ExceptionGroup):
                log.exception("Watching %s failed; trying again in %.0f s.", folder.path, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 300.0)

    @property
    def _catalog(self) -> Catalog:
        return self._parts.catalog

    # -- which folder -----------------------------------------------------------------------------

    def all(self) -> list[Folder]:
        return self._registry.all()

    def rooted(self, root: Path) -> Folder | None:
        """The folder of exactly this root, without asking the disk."""
        return self._registry.rooted(root)

    def at(self, directory: str) -> Folder:
        """The folder whose root is `directory`; UsageError when there is none."""
        return self._registry.at(directory)

    def of(self, path: str) -> tuple[Folder, bytes] | None:
        """(folder, path in it) of an absolute path; None when it lies in no watched folder."""
        return self._registry.of(path)

    def need(self, path: str) -> tuple[Folder, bytes]:
        """The same; UsageError when it lies in none."""
        return self._registry.need(path)

    # -- adding and removing ----------------------------------------------------------------------

    def refuse(self, directory: str, *, force: bool) -> Path:
        """The real path of a directory that may be watched; UsageError with the reason."""
        path = Path(os.path.realpath(directory))
        if not path.is_dir():
            raise UsageError(f"{directory} is not a directory{unseen(path)}.")
        others = [folder.path for folder in self.all() if folder.path != path]
        try:
            marks = set() if force else set(os.listdir(path))
        except OSError as exc:
            raise UsageError(f"{directory} cannot be read ({exc.strerror}).") from exc
        reason = refuse_folder(path, Path.home(), self._home.path, others, marks)
        if reason is not None:
            raise UsageError(f"{directory}: {reason}")
        return path

    async def preview(self, directory: str, given: Mapping[str, object], *, force: bool) -> Preview:
        path = self.refuse(directory, force=force)
        settings = self.settings_for(path, given)
        folder = self.rooted(path)
        known: frozenset[bytes] | None = None
        if folder is not None:
            look = partial(_names, folder.row)
            known = await asyncio.to_thread(self._catalog.view, look)
        return await asyncio.to_thread(preview, path, settings, known)

    def settings_for(self, path: Path, given: Mapping[str, object]) -> FolderSettings:
        folder = self.rooted(path)
        before = self._config.folder_defaults() if folder is None else folder.settings
        return before.changed(given)

    async def add(self, directory: str, given: Mapping[str, object], *, force: bool) -> bool:
        """Watch a directory; True when it was watched already and only its settings changed."""
        if self._group is None:
            raise NotRunning("Folders are watched by the running node. Start it: p2pstore run")
        path = self.refuse(directory, force=force)
        settings = self.settings_for(path, given)
        folder = self.rooted(path)
        if folder is not None:
            self._change(folder, settings=settings)
            # The catalog's copy is what eviction and copying go by.
            raw = msgspec.msgpack.encode(settings)
            await self._catalog.awrite(lambda db: folders.set_settings(db, folder.row, raw))
            folder.change_settings(settings)
            return True
        _try_to_write(path)
        entries = self._home.folders()
        marker = Root.marker(path)
        known = next((e for e in entries if e.folder_id.hex() == marker), None)
        folder_id = FolderId(known.folder_id if known is not None else os.urandom(16))
        entry = WatchedFolder(
            folder_id=folder_id, path=os.fspath(path), name=path.name, settings=settings
        )
        # The list first: a marker that no list knows would be given up for lost.
        self._home.write_folders([e for e in entries if e.folder_id != folder_id] + [entry])
        Root.mark(path, folder_id)
        self._watch(entry)
        return False

    def _change(self, folder: Folder, **changes: Any) -> None:
        folder.entry = msgspec.structs.replace(folder.entry, **changes)
        self._home.change_folder(folder.folder_id, lambda _: folder.entry)

    async def wait(self, directory: str, progress: Progress) -> dict[str, Any]:
        """Until every present file is replaced or has a reason to stay."""
        return await settling.wait(self.at(directory), progress)

    async def remove(self, directory: str, how: str | None, progress: Progress) -> dict[str, Any]:
        folder = self.at(directory)
        placeholders = await folder.in_thread(_placeholders, folder)
        hydrated = 0
        if placeholders and how is None:
            raise UsageError(
                f"{directory} has {plural(placeholders, 'placeholder')}. Choose how: "
                "hydrate brings the files back first, leave lets them lie."
            )
        if how == "hydrate":
            brought = await self.hydrate([os.fspath(folder.path)], progress)
            hydrated = sum(1 for b in brought if b.error is None)
            failed = [b.error for b in brought if b.error is not None]
            if failed:
                raise failed[0]
            placeholders = await folder.in_thread(_placeholders, folder)
        task = self._tasks.pop(folder.folder_id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._registry.remove(folder)
        self._change(folder, removed=True)
        await self._catalog.awrite(lambda db: folders.set_state(db, folder.row, folders.REMOVED))
        return {
            "path": os.fspath(folder.path),
            "placeholders": placeholders,
            "hydrated": hydrated,
        }

    # -- pause and resume -------------------------------------------------------------------------

    async def pause(self, directory: str) -> Folder:
        folder = self.at(directory)
        await self._set_paused(folder, PAUSED_BY_OWNER)
        return folder

    async def resume(self, directory: str, how: str | None) -> int:
        """`accept`: a mass change is meant, or what a recovery has not found yet is given up;
        `undo`: placeholders come back. Returns how many."""
        folder = self.at(directory)
        if folder.entry.paused == RECOVERING and how != "accept":
            raise Unavailable(
                f"{directory} is being recovered; it goes on by itself. --accept goes on without "
                "what is not back yet."
            )
        if folder.losses.change is not None and how is None:
            lost, total = folder.losses.change
            raise UsageError(
                f"{lost} of {total} files of {directory} are gone or changed. Choose: "
                "--accept takes the change, --undo brings the placeholders back."
            )
        restored = await folder.undo_change() if how == "undo" else 0
        if how == "accept":
            folder.accept_change()
        await self._set_paused(folder, "")
        folder.ask_rescan("resumed")
        return restored

    async def lay_out(self, folder: Folder, progress: Progress) -> LaidOut:
        """Give a folder that is being recovered its placeholders and links; it still waits.

        Unavailable while its directory is not there.
        """
        loop = asyncio.get_running_loop()

        def tell(done: int, total: int) -> None:
            news = {"stage": "lay", "files": done, "files_total": total}
            loop.call_soon_threadsafe(progress, news)

        def work(ring: Keyring, now_ms: int) -> LaidOut:
            with closing(_root_of(folder)) as root:
                return lay_out(
                    root, self._catalog, folder.row, ring, tell, now_ms=now_ms,
                    reads=folder.mark_own,
                )  # fmt: skip

        # What a crash left in its trash is looked at first: it must not meet what is done here.
        await folder.looked_at()
        laid = await folder.in_thread(work, self._parts.ring(), self._parts.now_ms())
        for batch in laid.trashed:
            folder.trash_waits(batch)
        return laid

    async def is_there(self, folder: Folder, path: bytes) -> bool:
        """Whether a file that can have no placeholder is back already."""

        def work() -> bool:
            with closing(_root_of(folder)) as root:
                return is_there(root, self._catalog, folder.row, path)

        return await folder.in_thread(work)

    async def take_in(self, folder: Folder, path: bytes, temporary: bytes) -> None:
        """A file that can have no placeholder lies whole at `temporary`, relative to the root."""

        def work() -> None:
            with closing(_root_of(folder)) as root:
                take_in(root, self._catalog, folder.row, path, temporary)

        await folder.in_thread(work)

    async def recovered(self, folder: Folder, follows: tuple[Followed, ...] | None = None) -> None:
        """Everything lies in its place: watch it from now on. With `follows`, what has been read
        lies there too; the two are recorded as one."""
        folder.losses.forget()  # looks met it half laid out: that was no change of somebody's
        if follows is not None:
            folder.entry = msgspec.structs.replace(folder.entry, follows=follows)
        await self._set_paused(folder, "")
        folder.ask_rescan("recovered")

    def follow(self, folder: Folder, follows: tuple[Followed, ...]) -> None:
        """What has been read of lost devices, and lies in its place."""
        self._change(folder, follows=follows)

    async def open_again(self, folder: Folder) -> bool:
        """The folder rests, durably: more of it is to be laid out. False when it is paused already,
        and not for that."""
        if not await folder.rest():
            return False
        await self._set_paused(folder, RECOVERING)
        return True

    def hold(self, folder: Folder, paths: Sequence[bytes]) -> set[bytes]:
        """Those that no batch has and whose placeholders nobody brings back; nobody will before
        `let_go`. The folder rests, so that no batch begins."""
        whole = os.fsencode(folder.path) + b"/"
        free = {whole + path + SUFFIX: path for path in paths if not folder.is_in_flight(path)}
        return {free[name] for name in self._contents.hold(free)}

    def let_go(self, folder: Folder, paths: Collection[bytes]) -> None:
        whole = os.fsencode(folder.path) + b"/"
        self._contents.let_go({whole + path + SUFFIX for path in paths})

    async def _set_paused(self, folder: Folder, why: str) -> None:
        self._change(folder, paused=why)
        await self._catalog.awrite(lambda db: folders.set_paused(db, folder.row, why))
        folder.set_paused(why)

    # -- what is asked of contents ----------------------------------------------------------------

    def is_landing(self, name: bytes) -> bool:
        """Whether the placeholder of this absolute name is being brought back."""
        return self._contents.is_landing(name)

    async def hydrate(self, paths: Sequence[str], progress: Progress) -> list[Brought]:
        return await self._contents.hydrate(paths, progress)

    async def dehydrate(self, paths: Sequence[str], progress: Progress) -> dict[str, str]:
        return await self._contents.dehydrate(paths, progress)

    async def pin(self, paths: Sequence[str], pinned: bool, progress: Progress) -> list[Brought]:
        return await self._contents.pin(paths, pinned, progress)

    async def undelete(self, path: str) -> dict[str, str]:
        return await self._contents.undelete(path)


def _root_of(folder: Folder) -> Root:
    """A root of its own, for work that the folder's task has no part in."""
    if Root.marker(folder.path) != folder.folder_id.hex():
        raise Unavailable(f"{folder.path} is not there.")
    return Root(folder.path, folder.folder_id)


def _names(folder: int, db: sqlite3.Connection) -> frozenset[bytes]:
    """Of the placeholders that the catalog has in this folder, as they stand on disk."""
    rows = files.walk(db, folder, states=(State.PLACEHOLDER,))
    return frozenset(row.path + SUFFIX for row in rows)


def _placeholders(folder: Folder) -> int:
    return sum(count.files for count in folder.counts() if count.state == State.PLACEHOLDER)


def _try_to_write(path: Path) -> None:
    """A sandboxed service cannot write everywhere: find out now, and name the remedy."""
    probe = path / os.fsdecode(OWN)
    try:
        probe.mkdir(mode=0o700, exist_ok=True)
        trial = probe / ".trial"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as exc:
        raise UsageError(cannot_write(path, exc)) from exc
