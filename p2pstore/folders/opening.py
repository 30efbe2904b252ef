"""OPEN: somebody reads a placeholder, and the original comes back (SAFETY section 4, step 1).

The kernel tells which name was opened, not by whom. Which opens count is policy's (`OpenGate`): a
scanner that reads every file must not bring a whole disk back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from p2pstore.clock import Clock
from p2pstore.errors import P2PStoreError
from p2pstore.folders.room import DiskRoom
from p2pstore.folders.service import Folders
from p2pstore.placement import SUFFIX
from p2pstore.policy import OpenGate
from p2pstore.store import Catalog, FileRow, State, files
from p2pstore.watch import OpenWatcher

log = logging.getLogger(__name__)


class Opening:
    def __init__(
        self,
        *,
        watcher: OpenWatcher,
        folders: Folders,
        catalog: Catalog,
        room: DiskRoom,
        clock: Clock,
    ) -> None:
        self._watcher = watcher
        self._folders = folders
        self._catalog = catalog
        self._room = room
        self._clock = clock
        self._heard = asyncio.Event()
        self.gate = OpenGate()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._listen())
            while True:
                await self._wait()
                for path in self._decide():
                    group.create_task(self._bring(path))

    async def _listen(self) -> None:
        async for root, path, heard in self._watcher:
            # Our own opens come by the thousand: they are told apart before anything is looked up.
            if path.endswith(SUFFIX) and self._is_somebodys(root, path, heard):
                self.gate.seen(os.fsencode(root) + b"/" + path, self._clock.monotonic())
                self._heard.set()

    def _is_somebodys(self, root: Path, path: bytes, heard: float) -> bool:
        """A placeholder of ours was opened, and not by us while we make it or bring it back."""
        whole = os.fsencode(root) + b"/" + path
        if self._folders.is_landing(whole):
            return False
        folder = self._folders.rooted(root)
        if folder is None or folder.is_opened_by_us(path.removesuffix(SUFFIX), heard):
            return False
        return self._row(whole) is not None

    async def _wait(self) -> None:
        due = self.gate.next_due()
        self._heard.clear()
        try:
            async with asyncio.timeout(
                None if due is None else max(0.01, due - self._clock.monotonic())
            ):
                await self._heard.wait()
        except TimeoutError:
            pass

    def _decide(self) -> list[bytes]:
        now = self._clock.monotonic()
        if self.gate.next_due() is None:
            return []
        free = min((self._room.free(f.path) for f in self._folders.all() if f.root), default=0)
        return self.gate.decide(now, size_of=self._size, room=free)

    def _size(self, whole: bytes) -> int:
        row = self._row(whole)
        return 0 if row is None else row.file_size

    def _row(self, whole: bytes) -> FileRow | None:
        """The row of a placeholder that lies at this absolute name."""
        found = self._folders.of(os.fsdecode(whole))
        if found is None:
            return None
        folder, relative = found
        path = relative.removesuffix(SUFFIX)
        row = self._catalog.view(lambda db: files.get(db, folder.row, path))
        return row if row is not None and row.state == State.PLACEHOLDER else None

    async def _bring(self, whole: bytes) -> None:
        name = os.fsdecode(whole)
        try:
            for brought in await self._folders.hydrate([name], lambda _progress: None):
                if brought.error is not None:
                    log.warning("%s was opened and cannot be brought back: %s", name, brought.error)
        except P2PStoreError as exc:
            log.warning("%s was opened and cannot be brought back: %s", name, exc)
