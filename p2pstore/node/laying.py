"""Placeholders for folders that are being recovered, and what comes later for those in use again.

`recover` lays out in the foreground; whatever it leaves undone, and whatever late holders have to
tell, is done by the node that runs. The order that makes it safe against an end at any point:

    the mark in HOME    from here on every start lays out what lacks
    the pause           nothing is concluded from what lacks
    rows                of what is known now
    laying out          `.f` files and links, then no pause, and what was read is recorded with that
    the mark goes       when no folder is being recovered

Filing and laying out never go on at once: of a row that is laid nothing becomes newer meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from p2pstore.errors import P2PStoreError, Unavailable
from p2pstore.folders import Folder
from p2pstore.home import RECOVERING, Followed
from p2pstore.ids import FolderId
from p2pstore.maintenance import Later, rebuild_state
from p2pstore.members import is_recovering, recovered, recovering_again
from p2pstore.placement import TAKEN, TEMPORARY, TOO_LONG
from p2pstore.threads import in_thread

if TYPE_CHECKING:
    from p2pstore.node.build import Node

log = logging.getLogger(__name__)

RETRY_S, MAX_RETRY_S = 30.0, 600.0
UNREAD = (
    "Not everything in it is known yet: who keeps the rest of its list is not connected. It goes "
    "on by itself while p2pstore runs; to go on without the rest: p2pstore resume --accept"
)

Json = dict[str, Any]
Progress = Callable[[Json], None]


class Laying:
    """Lays out what is being recovered; opens recoveries again (`maintenance.Reopening`)."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._wanted = asyncio.Event()
        self._at_work = asyncio.Lock()  # laying out, or filing what is to be laid out
        self._files = False  # the second of these
        self._read: dict[FolderId, tuple[Followed, ...]] = {}  # recorded when it lies in its place
        self._in_use: set[FolderId] = set()  # went on without the rest of their lists, once

    async def run(self) -> None:
        """For the node's life: what fails (a disk that is not there, a holder that is away) is
        tried again, more and more seldom."""
        if is_recovering(self._node.home) or self._recovering():
            self._wanted.set()
        pause, is_done = RETRY_S, True
        while True:
            try:
                async with asyncio.timeout(None if is_done else pause):
                    await self._wanted.wait()
                pause = RETRY_S
            except TimeoutError:
                pause = min(pause * 2, MAX_RETRY_S)
            self._wanted.clear()
            is_done = await self._try()

    async def _try(self) -> bool:
        try:
            failed = await self.lay_out()
            if not failed:
                await self.end()
                return True
            why = failed[0]["error"]["message"]
            log.warning("%d files or folders are not back yet, for one: %s", len(failed), why)
        except (P2PStoreError, OSError) as exc:
            log.warning("The recovery goes on later: %s", exc)
        return False

    def _recovering(self) -> list[Folder]:
        return [f for f in self._node.folders.all() if f.entry.paused == RECOVERING]

    # -- laying out -------------------------------------------------------------------------------

    async def lay_out(self, progress: Progress = lambda _: None) -> list[Json]:
        """Placeholders for every folder that is being recovered, once the catalog is complete.

        Returns what is not back yet, and why. A folder in which anything lacks goes on waiting:
        watched, what lacks would be taken for deleted. The first error of another kind ends it:
        called again it goes on.
        """
        node = self._node
        await node.completed.wait()
        failed: list[Json] = []
        for folder in node.folders.all():
            async with self._at_work:
                if folder.entry.paused != RECOVERING:
                    continue
                lacks = await self._lay_out_one(folder, progress)
                if not lacks:
                    await node.folders.recovered(folder, self._read.pop(folder.folder_id, None))
                    node.maintenance.changed()  # the next index names all of it
            failed += lacks
        return failed

    async def end(self) -> None:
        """The mark goes, unless a folder is being recovered again."""
        async with self._at_work:
            if not self._recovering():
                await in_thread(self._node.pool, recovered, self._node.home)

    async def _lay_out_one(self, folder: Folder, progress: Progress) -> list[Json]:
        node = self._node
        # Looked up first: what is filed while this works is laid out by the next attempt.
        state = await in_thread(node.pool, rebuild_state, node.catalog)
        done = await node.folders.lay_out(folder, progress)
        failed: list[Json] = []
        for path, reason in done.failed:
            name = os.fsencode(folder.path) + b"/" + path
            try:
                if reason not in (TOO_LONG, TAKEN):
                    raise Unavailable(f"{os.fsdecode(name)} has no placeholder: {reason}.")
                await self._whole(folder, path)
            except P2PStoreError as exc:
                failed.append(failure(name, exc))
        is_unread = state is not None and folder.folder_id in state.folders
        if is_unread and folder.folder_id not in self._in_use:
            failed.append(failure(os.fsencode(folder.path), Unavailable(UNREAD)))
        return failed

    async def _whole(self, folder: Folder, path: bytes) -> None:
        """What can have no placeholder comes back as it is, whoever wants placeholders only."""
        node = self._node
        if await node.folders.is_there(folder, path):
            return
        temporary = TEMPORARY + b"/" + os.urandom(8).hex().encode()
        logical, there = (os.fsencode(folder.path) + b"/" + name for name in (path, temporary))
        await node.vfs.copy(os.fsdecode(logical), os.fsdecode(there))
        await node.folders.take_in(folder, path, temporary)

    # -- what comes later -------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def filing(self) -> AsyncIterator[Laying]:
        """While holders are asked. At the end what was filed is laid out."""
        try:
            yield self
        finally:
            if self._files:
                self._files = False
                self._at_work.release()
                self._wanted.set()

    async def open_again(self, folder_id: FolderId) -> bool:
        folder = self._folder(folder_id)
        if folder is None:
            return False
        if not self._files:
            await self._at_work.acquire()
            self._files = True
            await in_thread(self._node.pool, recovering_again, self._node.home)
        elif folder.entry.paused == RECOVERING:
            return True
        if not folder.entry.paused:
            self._in_use.add(folder_id)
        return await self._node.folders.open_again(folder)

    async def take(self, folder_id: FolderId, paths: Sequence[bytes]) -> Collection[bytes]:
        folder = self._folder(folder_id)
        return () if folder is None else self._node.folders.hold(folder, paths)

    async def let_go(self, folder_id: FolderId, paths: Collection[bytes]) -> None:
        folder = self._folder(folder_id)
        if folder is not None:
            self._node.folders.let_go(folder, paths)

    def has_read(self, later: Later) -> None:
        """Record it as soon as everything lies in its place."""
        folder = self._folder(later.folder)
        if folder is None:
            return
        self._read.pop(later.folder, None)
        if folder.entry.paused == RECOVERING:
            self._read[later.folder] = later.follows
        elif folder.entry.follows != later.follows:
            self._node.folders.follow(folder, later.follows)

    def _folder(self, folder_id: FolderId) -> Folder | None:
        return next((f for f in self._node.folders.all() if f.folder_id == folder_id), None)


def failure(path: bytes, exc: P2PStoreError) -> Json:
    return {
        "path": os.fsdecode(path),
        "error": {"code": exc.exit_code, "message": str(exc)},
    }
