"""What the owner asks for single files and trees: bring back, replace now, pin, undelete.

Paths are as he types them, with or without `.f`; a directory means everything below it. Answers
name files absolutely.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from p2pstore.errors import Unavailable, UsageError
from p2pstore.folders.bringing import Bringing, Brought, Placeholder
from p2pstore.folders.emptying import clean_up
from p2pstore.folders.folder import Folder
from p2pstore.folders.judging import IN_WORK
from p2pstore.folders.parts import Parts
from p2pstore.folders.reconcile import disk_name
from p2pstore.folders.registry import Registry
from p2pstore.folders.undeleting import deleted_at
from p2pstore.ids import FolderId
from p2pstore.placement import Root
from p2pstore.store import State, files

Progress = Callable[[dict[str, Any]], None]
POLL_S = 0.2
AWAY = (State.PLACEHOLDER, State.CONFLICT)  # only a placeholder is there
KNOWN = (State.PROTECTED, State.PLACEHOLDER)


class Contents:
    def __init__(self, *, registry: Registry, parts: Parts, bringing: Bringing) -> None:
        self._registry = registry
        self._parts = parts
        self._bringing = bringing
        self._landing: set[bytes] = set()  # absolute names of placeholders on their way back

    def is_landing(self, name: bytes) -> bool:
        """Whether the placeholder of this absolute name is being brought back."""
        return name in self._landing

    def hold(self, names: Collection[bytes]) -> set[bytes]:
        """Those of the placeholders that nobody brings back; nobody will before `let_go`."""
        free = set(names) - self._landing
        self._landing |= free
        return free

    def let_go(self, names: Collection[bytes]) -> None:
        self._landing.difference_update(names)

    # -- bring back -------------------------------------------------------------------------------

    async def hydrate(self, paths: Sequence[str], progress: Progress) -> list[Brought]:
        """Bring originals back; every path is tried."""
        results: list[Brought] = []
        for path in paths:
            found = self._registry.of(path)
            if found is None:
                results += [brought async for brought in self._outside(path)]
            else:
                results += [brought async for brought in self._inside(*found, progress)]
        return results

    async def _inside(
        self, folder: Folder, path: bytes, progress: Progress
    ) -> AsyncIterator[Brought]:
        await folder.batches_end(path)
        tell = _Tally(*await folder.in_thread(folder.total_below, path, AWAY), progress)
        async with folder.open_root() as root:
            async for placeholders in _placeholders(folder, path):
                async for brought in self._page(folder, root, placeholders, tell):
                    yield brought

    async def _page(
        self, folder: Folder, root: Root, placeholders: Sequence[Placeholder], tell: _Tally
    ) -> AsyncIterator[Brought]:
        whole = os.fsencode(folder.path) + b"/"
        # What is read of them is read after this: it is as whoever held them has left it.
        names = self.hold([whole + p.name for p in placeholders])
        placeholders = [p for p in placeholders if whole + p.name in names]
        for name in names:
            self._parts.opens.mark_own(name)
        folder.begin_ours(p.target for p in placeholders)
        try:
            async for brought in self._bringing.bring(root, placeholders, tell.advance):
                if brought.trash is not None:
                    folder.trash_waits(brought.trash)
                folder.end_ours((brought.placeholder.target,))
                path = brought.path
                if path:
                    folder.note(path)
                    path = whole + path
                # Without its row: whoever asks for a million files gets as many of these.
                done = Placeholder(brought.placeholder.name, None)
                yield Brought(done, path, brought.size, brought.error)
        finally:
            self.let_go(names)
            folder.end_ours(p.target for p in placeholders)

    async def _outside(self, path: str) -> AsyncIterator[Brought]:
        """A `.f` outside every watched folder: the original is written beside it."""
        parts = self._parts
        directory, name = os.path.split(os.path.abspath(path))
        root = await asyncio.to_thread(Root, Path(os.path.realpath(directory)), FolderId(bytes(16)))
        placeholder = Placeholder(os.fsencode(name), None)
        try:
            async for brought in self._bringing.bring(root, [placeholder], lambda _n, _size: None):
                if brought.trash is not None:
                    await asyncio.to_thread(
                        clean_up, root, brought.trash, parts.catalog, parts.store, parts.keeper
                    )
                if brought.path:
                    brought = brought._replace(path=os.fsencode(root.path) + b"/" + brought.path)
                yield brought
        finally:
            root.close()

    # -- replace now ------------------------------------------------------------------------------

    async def dehydrate(self, paths: Sequence[str], progress: Progress) -> dict[str, str]:
        """Replace now; path -> why it stays, empty when it was replaced.

        Of a directory nothing is said of its links, which have no content.
        """
        asked = [(*self._registry.need(path), path) for path in paths]
        for folder, relative, _ in asked:
            await folder.batches_end(relative)  # one that began before may leave it as it is
            async for rows in folder.pages_below(relative, (State.PROTECTED,)):
                folder.force(rows)
            folder.force_new(relative)
        await _settled({folder.folder_id: folder for folder, _, _ in asked}.values(), progress)
        results: dict[str, str] = {}
        for folder, relative, path in asked:
            is_known = os.path.isdir(path)
            async for rows in folder.pages_below(relative, KNOWN):
                is_known = True
                for row in rows:
                    if row.kind == files.Kind.LINK and row.path != relative:
                        continue
                    stays = row.reason or folder.waiting.reason(row.path) or "it is being protected"
                    whole = os.path.join(folder.path, os.fsdecode(row.path))
                    results[whole] = "" if row.state == State.PLACEHOLDER else stays
            if not is_known:
                results[path] = folder.waiting.reason(relative) or "there is no such file"
        return results

    # -- pin and undelete -------------------------------------------------------------------------

    async def pin(self, paths: Sequence[str], pinned: bool, progress: Progress) -> list[Brought]:
        """Pinned before they are brought back, so that nothing else is ever said of them."""
        for folder, relative in [self._registry.need(path) for path in paths]:
            await folder.batches_end(relative)
            async for rows in folder.pages_below(relative, KNOWN):
                change = partial(_set_pinned, [row.id for row in rows], pinned)
                await self._parts.catalog.awrite(change)
            folder.ask_rescan("pins changed", judge_anew=True)
        return await self.hydrate(paths, progress) if pinned else []

    async def undelete(self, path: str) -> dict[str, str]:
        """The placeholder of a deleted file, or of each deleted one below a directory, comes back.

        File -> why its placeholder is not back, empty when it is.
        """
        folder, relative = self._registry.need(path)
        await folder.batches_end(relative)  # they may be about to take a new file of that name
        pages = deleted_at(self._parts.catalog, folder.row, relative)
        results: dict[str, str] = {}
        while entries := await folder.in_thread(next, pages, None):
            done = await folder.undelete(entries)
            whys = [*((name, "") for name in done.back), *done.failed]
            results |= {os.path.join(folder.path, os.fsdecode(name)): why for name, why in whys}
        if not results:
            raise UsageError(
                f"{path} is not among the deleted files of {folder.path}. "
                "What was deleted just now is known after some seconds; try again."
            )
        self._parts.protected()
        return results


class _Tally:
    """Adds up what came back, for the one who waits."""

    def __init__(self, files_total: int, bytes_total: int, progress: Progress) -> None:
        self._progress = progress
        self._files, self._bytes = 0, 0
        self._files_total = files_total
        self._bytes_total = bytes_total

    def advance(self, count: int, size: int) -> None:
        self._files += count
        self._bytes += size
        self._progress(
            {
                "stage": "hydrate",
                "files": self._files,
                "files_total": self._files_total,
                "bytes": self._bytes,
                "bytes_total": self._bytes_total,
            }
        )


async def _placeholders(folder: Folder, path: bytes) -> AsyncIterator[list[Placeholder]]:
    """What there is to bring back at a path; nothing when the original is there already."""
    is_known = not path or os.path.isdir(os.fsencode(folder.path) + b"/" + path)
    async for rows in folder.pages_below(path, AWAY):
        is_known = True
        yield [Placeholder(disk_name(row.path, row.state), row) for row in rows]
    if not is_known and not folder.rows_below(path, (State.PROTECTED,), limit=1):
        yield [Placeholder(path, None)]  # not looked at yet, or copied in just now


async def _settled(asked: Collection[Folder], progress: Progress) -> None:
    """Wait until nothing that was forced in these folders is on its way any more."""
    most = sum(folder.pending() for folder in asked)
    while any(not folder.is_settled() or folder.waiting.has_forced() for folder in asked):
        for folder in asked:
            if folder.is_paused:
                raise Unavailable(f"{folder.path} is paused: {folder.entry.paused}")
            if folder.missing_since is not None:
                raise Unavailable(f"{folder.path} is not there.")
        left = sum(folder.pending() for folder in asked)
        most = max(most, left)
        if most:
            progress({"stage": "replace", "files": most - left, "files_total": most})
        await asyncio.sleep(POLL_S)


def _set_pinned(ids: Sequence[int], pinned: bool, db: sqlite3.Connection) -> None:
    files.set_pinned(db, ids, pinned)
    if pinned:
        files.change_reason(db, ids, IN_WORK, "pinned")
