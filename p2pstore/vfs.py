"""The store as a file system: logical names and sizes, contents on demand. Said only here.

A name is an absolute path: of a logical file in a watched folder (with or without `.f`), or of
a `.f` anywhere. Listing touches no block, reading touches only those of the range. Nothing here
changes a watched folder.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import NamedTuple

from p2pstore.content import MAX_READ, Manifest, Opened, looks_like_manifest
from p2pstore.errors import FormatError, UsageError
from p2pstore.ids import BundleId, FolderId
from p2pstore.restore import Restore, Wanted, write_copy
from p2pstore.store import Catalog, FileRow, State, blocks, files, folders, merged

PAGE = 2000


class Entry(NamedTuple):
    """One line of a listing."""

    path: bytes  # relative to the folder
    is_directory: bool
    size: int
    mtime_ns: int
    state: str
    reason: str
    files: int  # below a directory
    kind: str = "file"  # or "link"
    id: int = 0  # catalog row of a file


class Inspection(NamedTuple):
    opened: Opened
    manifest: Manifest
    wanted: list[Wanted]
    row: FileRow | None


class Vfs:
    def __init__(self, *, catalog: Catalog, restore: Restore) -> None:
        self._catalog = catalog
        self._restore = restore

    # -- names ------------------------------------------------------------------------------------

    def find(self, path: str) -> tuple[folders.FolderRow, bytes] | None:
        """(folder, path in it) of an absolute path; None outside every watched folder."""
        parent, name = os.path.split(os.path.abspath(path))
        whole = os.fsencode(os.path.join(os.path.realpath(parent), name))
        for folder in self._catalog.view(folders.watched):
            if whole == folder.path:
                return folder, b""
            if whole.startswith(folder.path + b"/"):
                return folder, whole[len(folder.path) + 1 :]
        return None

    def row(self, path: str) -> FileRow | None:
        """The catalog's row of a logical name, given with or without `.f`."""
        found = self.find(path)
        if found is None:
            return None
        folder, relative = found

        def look(db: sqlite3.Connection) -> FileRow | None:
            row = files.get(db, folder.id, relative)
            if row is None and relative.endswith(b".f"):
                row = files.get(db, folder.id, relative[:-2])
            return row

        return self._catalog.view(look)

    # -- listing ----------------------------------------------------------------------------------

    def entries(self, path: str) -> list[Entry]:
        """What lies directly in a directory of a watched folder, or the one file named."""
        found = self.find(path)
        if found is None:
            raise UsageError(f"{path} lies in no watched folder. See: p2pstore folders")
        folder, relative = found

        def look(db: sqlite3.Connection) -> list[Entry]:
            entries: list[Entry] = []
            directories: dict[bytes, list[int]] = {}
            skip = len(relative) + 1 if relative else 0
            for row in files.walk(db, folder.id, relative):
                name, slash, _ = row.path[skip:].partition(b"/")
                if slash:
                    total = directories.setdefault(row.path[:skip] + name, [0, 0])
                    total[0] += 1
                    total[1] += row.file_size
                else:
                    entries.append(_entry(row))
            entries.extend(
                Entry(name, True, size, 0, "", "", number)
                for name, (number, size) in directories.items()
            )
            return sorted(entries)

        entries = self._catalog.view(look)
        row = self.row(path) if not entries else None
        if row is not None and row.state != State.DELETED:
            return [_entry(row)]
        return entries

    # -- reading ----------------------------------------------------------------------------------

    async def open(self, path: str) -> Opened:
        """The verified manifest behind a name; FormatError when there is none."""
        row = self.row(path)
        if row is not None and row.state != State.DELETED:
            raw = self._catalog.view(lambda db: files.manifest(db, row.id))
            if raw is not None:
                return self._restore.open(raw)
        raw = await asyncio.to_thread(_read, path)
        if not looks_like_manifest(raw):
            raise FormatError(f"{path} is no placeholder of p2pstore.")
        return self._restore.open(raw)

    async def read(
        self, path: str, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes start..end (exclusive) as they come, holes as zeros; UsageError beyond it."""
        opened = await self.open(path)
        manifest = await self._restore.complete(opened.manifest)
        async with aclosing(self._restore.content(manifest, start, end)) as pieces:
            async for piece in pieces:
                yield piece

    async def size(self, path: str) -> int:
        """Bytes of the content; errors as `open`."""
        return (await self.open(path)).manifest.meta.size

    async def copy(self, path: str, target: str) -> tuple[str, int]:
        """Write the content to a new file; never over one that exists. Returns (path, bytes)."""
        opened = await self.open(path)
        manifest = await self._restore.complete(opened.manifest)
        return await write_copy(self._restore, manifest, target), manifest.meta.size

    async def inspect(self, path: str) -> Inspection:
        """Everything that the manifest says, and the blocks that its content needs."""
        opened = await self.open(path)
        manifest = await self._restore.complete(opened.manifest)
        wanted = await self._restore.wanted(manifest)
        return Inspection(opened, manifest, wanted, self.row(path))

    def bundles(self, wanted: list[Wanted]) -> Mapping[BundleId, blocks.BundleRow]:
        """The catalog's rows of the bundles that hold these blocks, by the ids that are named."""
        ids = list({block.ref.bundle_id for block in wanted})
        return self._catalog.view(lambda db: merged.where(db, ids))

    def folder_id(self, path: str) -> FolderId | None:
        found = self.find(path)
        return None if found is None else found[0].folder_id


def _entry(row: FileRow) -> Entry:
    return Entry(
        row.path, False, row.file_size, row.mtime_ns, row.state, row.reason, 1, row.kind, row.id
    )


def _read(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"{path} cannot be read ({exc.strerror}).") from exc
    try:
        return os.read(fd, MAX_READ + 1)
    except OSError as exc:
        raise UsageError(f"{path} cannot be read ({exc.strerror}).") from exc
    finally:
        os.close(fd)
