"""Folders: what the owner asks of the watched folders, and the tasks that watch them.

The list of folders lies in HOME (it must survive the catalog); a row in the catalog mirrors each.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import stat as stat_module
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from p2pstore.config import Config, FolderSettings
from p2pstore.errors import NoRoom, NotRunning, P2PStoreError, Unavailable, UsageError
from p2pstore.folders.bringing import Bringing, Brought, Placeholder
from p2pstore.folders.emptying import clean_up
from p2pstore.folders.folder import Folder, Parts
from p2pstore.folders.judging import treat
from p2pstore.folders.reconcile import disk_name
from p2pstore.home import Home, WatchedFolder
from p2pstore.ids import FolderId
from p2pstore.placement import OWN, SUFFIX, Root, write_placeholder
from p2pstore.policy import Treatment, marks_repository, refuse_folder, room_for_batch
from p2pstore.store import Catalog, FileRow, State, files, folders
from p2pstore.watch import Seen, Unread, scan

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]
POLL_S = 0.2


@dataclass(slots=True)
class Preview:
    """What adding a folder would do; sizes in bytes."""

    files: int = 0
    bytes: int = 0
    classes: dict[Treatment, dict[str, list[int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, treatment: Treatment, reason: str, size: int) -> None:
        counts = self.classes.setdefault(treatment, {}).setdefault(reason, [0, 0])
        counts[0] += 1
        counts[1] += size


class DiskRoom:
    """Room on the disks of HOME and of a folder, `keep-free` left out."""

    def __init__(self, home: Path, config: Config) -> None:
        self._home = home
        self._config = config

    def free(self, path: Path | int) -> int:
        """Bytes that may still be written on the file system of `path`; negative when beyond."""
        usage = os.statvfs(path)
        total, free = usage.f_blocks * usage.f_frsize, usage.f_bavail * usage.f_frsize
        return free - self._config.keep_free_of(total)

    def keep_free(self) -> int:
        usage = os.statvfs(self._home)
        return self._config.keep_free_of(usage.f_blocks * usage.f_frsize)

    def measures(self) -> tuple[int, int, int]:
        """(total, free, keep-free) bytes of the store's disk."""
        usage = os.statvfs(self._home)
        total, free = usage.f_blocks * usage.f_frsize, usage.f_bavail * usage.f_frsize
        return total, free, self._config.keep_free_of(total)

    def lacks(self, root: Root, incoming: int) -> str | None:
        """A batch begins only when twice its size fits (SAFETY, section 6)."""
        _, free, keep_free = self.measures()
        if not room_for_batch(incoming, free, keep_free):
            return f"the store's disk has less room than {2 * incoming} bytes above keep-free"
        if self.free(root.fd) < 0:
            return "the folder's disk is within keep-free"
        return None

    def check(self, root: Root, incoming: int) -> None:
        """NoRoom when bringing so much back would go into keep-free."""
        free = self.free(root.fd)
        if free < incoming:
            raise NoRoom(
                f"{incoming} bytes are needed on the disk of {root.path}, "
                f"{max(0, free)} are free above keep-free."
            )


class Folders:
    def __init__(
        self, *, home: Home, config: Config, parts: Parts, bringing: Bringing, room: DiskRoom
    ) -> None:
        self._home = home
        self._config = config
        self._parts = parts
        self._bringing = bringing
        self._room = room
        self._folders: dict[FolderId, Folder] = {}
        self._tasks: dict[FolderId, asyncio.Task[None]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._landing: set[bytes] = set()  # absolute names of placeholders on their way back

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

    def _watch(self, entry: WatchedFolder) -> Folder:
        path = os.fsencode(entry.path)
        settings = msgspec.msgpack.encode(entry.settings)
        row = self._catalog.write(
            lambda db: folders.add(
                db, FolderId(entry.folder_id), path, entry.name, settings, entry.folder_id
            )
        ).result()
        if entry.paused:
            self._catalog.write(lambda db: folders.set_paused(db, row, entry.paused)).result()
        folder = Folder(entry, row, self._parts)
        self._folders[folder.folder_id] = folder
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

    def is_landing(self, name: bytes) -> bool:
        """Whether the placeholder of this absolute name is being brought back."""
        return name in self._landing

    # -- which folder -----------------------------------------------------------------------------

    def all(self) -> list[Folder]:
        return sorted(self._folders.values(), key=lambda folder: folder.path)

    def rooted(self, root: Path) -> Folder | None:
        """The folder of exactly this root, without asking the disk."""
        return next((folder for folder in self._folders.values() if folder.path == root), None)

    def at(self, directory: str) -> Folder:
        """The watched folder whose root is `directory`; UsageError when there is none."""
        path = Path(os.path.realpath(directory))
        for folder in self._folders.values():
            if folder.path == path:
                return folder
        raise UsageError(f"{directory} is not a watched folder. See: p2pstore folders")

    def of(self, path: str) -> tuple[Folder, bytes] | None:
        """(folder, path in it) of an absolute path; None when it lies in no watched folder."""
        parent, name = os.path.split(os.path.abspath(path))
        whole = Path(os.path.realpath(parent)) / name
        for folder in self._folders.values():
            if whole == folder.path:
                return folder, b""
            if whole.is_relative_to(folder.path):
                return folder, os.fsencode(whole.relative_to(folder.path))
        return None

    def need(self, path: str) -> tuple[Folder, bytes]:
        found = self.of(path)
        if found is None:
            raise UsageError(f"{path} lies in no watched folder. Add it: p2pstore add-folder DIR")
        return found

    # -- adding and removing ----------------------------------------------------------------------

    def refuse(self, directory: str, *, force: bool) -> Path:
        """The real path of a directory that may be watched; UsageError with the reason."""
        path = Path(os.path.realpath(directory))
        if not path.is_dir():
            raise UsageError(f"{directory} is not a directory.")
        others = [folder.path for folder in self._folders.values() if folder.path != path]
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
        settings = self._settings_for(path, given)
        return await asyncio.to_thread(_preview, path, settings)

    def _settings_for(self, path: Path, given: Mapping[str, object]) -> FolderSettings:
        for folder in self._folders.values():
            if folder.path == path:
                return folder.settings.changed(given)
        return self._config.folder_defaults().changed(given)

    async def add(self, directory: str, given: Mapping[str, object], *, force: bool) -> bool:
        """Watch a directory; True when it was watched already and only its settings changed."""
        if self._group is None:
            raise NotRunning("Folders are watched by the running node. Start it: p2pstore run")
        path = self.refuse(directory, force=force)
        settings = self._settings_for(path, given)
        for folder in self._folders.values():
            if folder.path == path:
                await self._change(folder, settings=settings)
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

    async def _change(self, folder: Folder, **changes: Any) -> None:
        folder.entry = msgspec.structs.replace(folder.entry, **changes)
        self._home.change_folder(folder.folder_id, lambda _: folder.entry)

    async def wait(self, directory: str, progress: Progress) -> dict[str, Any]:
        """Until every present file is replaced or has a reason to stay."""
        folder = self.at(directory)
        while True:
            counts = await folder.in_thread(self._counts, folder)
            # A protected file without a reason to stay is on its way in a batch.
            done = [c for c in counts if c.state != State.PROTECTED or c.reason]
            replaced = [c for c in counts if c.state == State.PLACEHOLDER]
            if folder.missing_since is not None:
                raise Unavailable(f"{directory} is not there.")
            if folder.is_paused:
                raise Unavailable(f"{directory} is paused: {folder.entry.paused}")
            if folder.is_settled():
                break
            files_done, bytes_done = sum(c.files for c in done), sum(c.file_bytes for c in done)
            progress(
                {
                    "stage": "protect" if folder.scanned else "scan",
                    "files": files_done,
                    "files_total": files_done + folder.pending(),
                    "bytes": bytes_done,
                    "bytes_total": bytes_done + folder.pending_bytes(),
                }
            )
            await asyncio.sleep(POLL_S)
        left = [
            (row.path, row.reason)
            for row in self._catalog.view(
                lambda db: files.page(
                    db,
                    folder.row,
                    states=(State.PROTECTED, State.SKIPPED, State.CONFLICT),
                    limit=1000,
                )
            )
        ]
        left += [entry for entry in folder.waiting.reasons() if entry not in left]
        reasons: dict[str, int] = {}
        for count in counts:
            if count.state != State.PLACEHOLDER:
                reasons[count.reason] = reasons.get(count.reason, 0) + count.files
        for reason, tally in folder.waiting.held_up().items():
            reasons.setdefault(reason, tally.files)
        return {
            "files": sum(c.files for c in counts),
            "bytes": sum(c.file_bytes for c in counts),
            "replaced": sum(c.files for c in replaced),
            "reasons": reasons,
            "left": [
                {"path": os.path.join(folder.path, os.fsdecode(path)), "reason": reason}
                for path, reason in left[:1000]
            ],
            "left_total": sum(reasons.values()),
        }

    async def remove(self, directory: str, how: str | None, progress: Progress) -> dict[str, Any]:
        folder = self.at(directory)
        placeholders = await folder.in_thread(self._placeholders, folder)
        hydrated = 0
        if placeholders and how is None:
            raise UsageError(
                f"{directory} has {placeholders} placeholders. Choose: --hydrate brings the files "
                "back first, --leave-placeholders leaves them as they are."
            )
        if how == "hydrate":
            brought = await self.hydrate([os.fspath(folder.path)], progress)
            hydrated = sum(1 for b in brought if b.error is None)
            failed = [b.error for b in brought if b.error is not None]
            if failed:
                raise failed[0]
            placeholders = await folder.in_thread(self._placeholders, folder)
        task = self._tasks.pop(folder.folder_id)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        del self._folders[folder.folder_id]
        await self._change(folder, removed=True)
        await self._catalog.awrite(lambda db: folders.set_state(db, folder.row, folders.REMOVED))
        return {
            "path": os.fspath(folder.path),
            "placeholders": placeholders,
            "hydrated": hydrated,
        }

    def _counts(self, folder: Folder) -> list[files.Count]:
        return self._catalog.view(lambda db: files.counts(db, folder.row))

    def _placeholders(self, folder: Folder) -> int:
        return sum(c.files for c in self._counts(folder) if c.state == State.PLACEHOLDER)

    # -- pause and resume -------------------------------------------------------------------------

    async def pause(self, directory: str) -> Folder:
        folder = self.at(directory)
        await self._change(folder, paused="paused by its owner")
        await self._catalog.awrite(
            lambda db: folders.set_paused(db, folder.row, "paused by its owner")
        )
        return folder

    async def resume(self, directory: str, how: str | None) -> int:
        """`accept`: a mass change is meant; `undo`: placeholders come back. Returns how many."""
        folder = self.at(directory)
        if folder.losses.change is not None and how is None:
            lost, total = folder.losses.change
            raise UsageError(
                f"{lost} of {total} files of {directory} are gone or changed. Choose: "
                "--accept takes the change, --undo brings the placeholders back."
            )
        restored = await folder.undo_change() if how == "undo" else 0
        if how == "accept":
            folder.accept_change()
        await self._change(folder, paused="")
        await self._catalog.awrite(lambda db: folders.set_paused(db, folder.row, ""))
        folder.set_paused("")
        folder.ask_rescan("resumed")
        return restored

    # -- hydrate and dehydrate --------------------------------------------------------------------

    def rows_below(self, folder: Folder, path: bytes, states: Sequence[str]) -> list[FileRow]:
        """Rows at a path (named with or without `.f`) or beneath it."""

        def look(db: sqlite3.Connection) -> list[FileRow]:
            for name in dict.fromkeys((path, path.removesuffix(SUFFIX))):
                row = files.get(db, folder.row, name)
                if row is not None and row.state in states:
                    return [row]
            return list(files.walk(db, folder.row, path, states=states))

        return self._catalog.view(look)

    async def hydrate(self, paths: Sequence[str], progress: Progress) -> list[Brought]:
        """Bring originals back; every path is tried. Names in the result are absolute."""
        results: list[Brought] = []
        for path in paths:
            async for brought in self._hydrate_one(path, progress):
                results.append(brought)
        return results

    async def _hydrate_one(self, path: str, progress: Progress) -> AsyncIterator[Brought]:
        found = self.of(path)
        if found is None:
            async for brought in self._hydrate_outside(path, progress):
                yield brought
            return
        folder, relative = found
        root = folder.root
        if root is None:
            raise Unavailable(f"{folder.path} is not there.")
        states = (State.PLACEHOLDER, State.CONFLICT)
        rows = await folder.in_thread(self.rows_below, folder, relative, states)
        whole = os.fsencode(folder.path) + b"/"
        placeholders = [Placeholder(disk_name(row.path, row.state), row) for row in rows]
        if not placeholders and relative and not os.path.isdir(path):
            if self.rows_below(folder, relative, (State.PROTECTED,)):
                return  # it is here already
            placeholders = [Placeholder(relative, None)]
        placeholders = [p for p in placeholders if whole + p.name not in self._landing]
        total = sum(p.row.file_size for p in placeholders if p.row is not None)
        done = [0, 0]

        def advance(count: int, size: int) -> None:
            done[0] += count
            done[1] += size
            progress(
                {
                    "stage": "hydrate",
                    "files": done[0],
                    "files_total": len(placeholders),
                    "bytes": done[1],
                    "bytes_total": total,
                }
            )

        names = {whole + p.name for p in placeholders}
        self._landing |= names
        for name in names:
            self._parts.opens.mark_own(name)
        folder.begin_ours(p.target for p in placeholders)
        try:
            async for brought in self._bringing.bring(root, placeholders, advance):
                if brought.trash is not None:
                    folder.trash_waits(brought.trash)
                folder.end_ours((brought.placeholder.target,))
                if brought.path:
                    folder.note(brought.path)
                    brought = brought._replace(path=whole + brought.path)
                yield brought
        finally:
            self._landing -= names
            folder.end_ours(p.target for p in placeholders)

    async def _hydrate_outside(self, path: str, progress: Progress) -> AsyncIterator[Brought]:
        """A `.f` outside every watched folder: the original is written beside it."""
        directory, name = os.path.split(os.path.abspath(path))
        root = await asyncio.to_thread(Root, Path(os.path.realpath(directory)), FolderId(bytes(16)))
        try:
            placeholder = Placeholder(os.fsencode(name), None)
            async for brought in self._bringing.bring(
                root, [placeholder], lambda _files, _size: None
            ):
                if brought.trash is not None:
                    parts = self._parts
                    await asyncio.to_thread(
                        clean_up, root, brought.trash, parts.catalog, parts.store, parts.keeper
                    )
                if brought.path:
                    brought = brought._replace(path=os.fsencode(root.path) + b"/" + brought.path)
                yield brought
        finally:
            root.close()

    async def dehydrate(self, paths: Sequence[str], progress: Progress) -> dict[str, str]:
        """Replace now; path -> why it stays, empty when it was replaced."""
        states = (State.PROTECTED, State.PLACEHOLDER)
        asked = [(*self.need(path), path) for path in paths]
        for folder, relative, _ in asked:
            present = (State.PROTECTED,)
            folder.force(await folder.in_thread(self.rows_below, folder, relative, present))
            folder.force_new(relative)
        folders_asked = {folder.folder_id: folder for folder, _, _ in asked}.values()
        most = sum(folder.pending() for folder in folders_asked)
        while any(not folder.is_settled() or folder.forcing() for folder in folders_asked):
            for folder in folders_asked:
                if folder.is_paused:
                    raise Unavailable(f"{folder.path} is paused: {folder.entry.paused}")
            left = sum(folder.pending() for folder in folders_asked)
            most = max(most, left)
            progress({"stage": "replace", "files": most - left, "files_total": most})
            await asyncio.sleep(POLL_S)
        results: dict[str, str] = {}
        for folder, relative, path in asked:
            rows = await folder.in_thread(self.rows_below, folder, relative, states)
            for row in rows:
                stays = row.reason or folder.waiting.reason(row.path) or "it is being protected"
                whole = os.path.join(folder.path, os.fsdecode(row.path))
                results[whole] = "" if row.state == State.PLACEHOLDER else stays
            if not rows and not os.path.isdir(path):
                results[path] = folder.waiting.reason(relative) or "there is no such file"
        return results

    async def pin(self, paths: Sequence[str], pinned: bool, progress: Progress) -> list[Brought]:
        brought = await self.hydrate(paths, progress) if pinned else []
        for path in paths:
            folder, relative = self.need(path)
            states = (State.PROTECTED, State.PLACEHOLDER)
            rows = await folder.in_thread(self.rows_below, folder, relative, states)
            ids = [row.id for row in rows]
            await self._catalog.awrite(partial(_set_pinned, ids, pinned))
            folder.ask_rescan("pins changed", judge_anew=True)
        return brought

    async def undelete(self, path: str) -> str:
        """The placeholder of a deleted path, or of everything deleted below it, comes back."""
        folder, relative = self.need(path)
        root = folder.root
        if root is None:
            raise Unavailable(f"{folder.path} is not there.")
        logical = relative.removesuffix(SUFFIX)

        def deleted(db: sqlite3.Connection) -> list[files.HistoryRow]:
            for name in (relative, logical):
                row = files.get(db, folder.row, name)
                if row is not None and row.state == State.DELETED:
                    return [h for h in files.history(db, folder.row, name) if h.why == "deleted"][
                        :1
                    ]
            return files.deleted_beneath(db, folder.row, relative)

        entries = await folder.in_thread(self._catalog.view, deleted)
        if not entries:
            raise UsageError(
                f"{path} is not among the deleted files of {folder.path}. "
                "What was deleted just now is known after some seconds; try again."
            )
        for entry in entries:
            name = entry.path + SUFFIX
            await folder.in_thread(write_placeholder, root, name, entry.manifest)
            stat = os.stat(os.fsencode(folder.path) + b"/" + name, follow_symlinks=False)
            on_disk = files.Identity(
                entry.path,
                stat.st_ino,
                stat.st_size,
                stat.st_mtime_ns,
                stat.st_ctime_ns,
                State.PLACEHOLDER,
                0,
            )
            version = folder.next_version_at(entry.path)
            await self._catalog.awrite(partial(_undelete, entry.id, version, on_disk))
        self._parts.protected()
        return os.path.join(folder.path, os.fsdecode(entries[0].path + SUFFIX))


def _set_pinned(ids: Sequence[int], pinned: bool, db: sqlite3.Connection) -> None:
    files.set_pinned(db, ids, pinned)


def _undelete(
    entry: int, version: bytes, on_disk: files.Identity, db: sqlite3.Connection
) -> int | None:
    return files.undelete(db, entry, version, on_disk)


def _preview(path: Path, settings: FolderSettings) -> Preview:
    """Scan and classify; nothing is read or touched."""
    preview = Preview()
    seen_all: list[Seen] = []
    repositories: set[bytes] = set()
    siblings: dict[bytes, set[bytes]] = {}
    for seen in scan(path):
        if isinstance(seen, Unread):
            preview.notes.append(f"{os.fsdecode(seen.path)} cannot be read ({seen.error.strerror})")
            continue
        parent, _, name = seen.path.rpartition(b"/")
        if marks_repository(name):
            repositories.add(parent)
        if name[:1] in (b".", b"~"):
            siblings.setdefault(parent, set()).add(name)
        seen_all.append(seen)
    for seen in seen_all:
        if stat_module.S_ISDIR(seen.mode):
            continue
        treatment, reason = treat(seen, settings, repositories, siblings)
        preview.files += 1
        preview.bytes += seen.size
        preview.add(treatment, reason, seen.size)
    return preview


def _try_to_write(path: Path) -> None:
    """A sandboxed service cannot write everywhere: find out now, and name the remedy."""
    probe = path / os.fsdecode(OWN)
    try:
        probe.mkdir(mode=0o700, exist_ok=True)
        trial = probe / ".trial"
        trial.write_bytes(b"")
        trial.unlink()
    except OSError as exc:
        raise UsageError(
            f"{path} cannot be written ({exc.strerror}). If the node runs as a service: "
            f"p2pstore service allow {path}"
        ) from exc
