"""Everything is written below a directory of the user's; nothing that is there is overwritten."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from p2pstore.durable import name_once
from p2pstore.errors import P2PStoreError, Unavailable, UsageError
from p2pstore.folders import Folder
from p2pstore.node.build import Node
from p2pstore.node.leaving.allowed import existing
from p2pstore.node.leaving.back import shortened, totals
from p2pstore.sandbox import cannot_write
from p2pstore.store import FileRow, State, files
from p2pstore.syscalls import AT_FDCWD, syncfs
from p2pstore.threads import in_thread

Progress = Callable[[dict[str, Any]], None]

_PIECE = 1 << 20


class Export:
    """Writes every file below a directory; nothing that is there is overwritten."""

    def __init__(self, node: Node, target: Path, progress: Progress) -> None:
        self._node = node
        self._target = target
        self._progress = progress
        self._bases: dict[Path, Path] = {}  # folder -> where it is written
        self._written: set[tuple[int, bytes, bytes]] = set()
        self._bytes = 0

    async def export(self, watched: Sequence[Folder], states: Sequence[str]) -> list[str]:
        """What of these states was not written yet; what could not be, if anything."""
        node = self._node
        total = await in_thread(node.pool, node.catalog.view, totals)
        failed: list[str] = []
        for folder in watched:
            base = self._base(folder)
            rows = partial(_exported, folder.row, states)
            for row in await in_thread(node.pool, node.catalog.view, rows):
                what = (row.folder, row.path, row.hash)
                if what in self._written:
                    continue
                try:
                    await _export_one(node, folder, row, base)
                except (P2PStoreError, OSError) as exc:
                    failed.append(f"{os.path.join(folder.path, os.fsdecode(row.path))}: {exc}")
                    continue
                self._written.add(what)
                self._bytes += row.file_size
                self._tell(*total)
        if not failed:
            await in_thread(node.pool, _sync, self._target)
        return shortened(failed)

    def _base(self, folder: Folder) -> Path:
        """Two folders may have the same name in different places."""
        if folder.path not in self._bases:
            name = free = folder.path.name or "folder"
            number = 1
            while self._target / free in self._bases.values():
                number += 1
                free = f"{name}-{number}"
            self._bases[folder.path] = self._target / free
        return self._bases[folder.path]

    def _tell(self, files_total: int, bytes_total: int) -> None:
        self._progress(
            {
                "stage": "export",
                "files": len(self._written),
                "files_total": files_total,
                "bytes": self._bytes,
                "bytes_total": bytes_total,
            }
        )


def _exported(folder: int, states: Sequence[str], db: sqlite3.Connection) -> list[FileRow]:
    return list(files.walk(db, folder, states=states))


async def _export_one(node: Node, folder: Folder, row: FileRow, base: Path) -> None:
    """Verified by its hash while it is written; what a first attempt wrote whole is taken."""
    source = os.path.join(folder.path, os.fsdecode(row.path))
    target = base / os.fsdecode(row.path)
    await in_thread(node.pool, _make_parents, target)
    if row.kind == files.Kind.LINK:
        with contextlib.suppress(FileExistsError):
            await in_thread(node.pool, os.symlink, row.target, os.fsencode(target))
        return
    if row.state == State.PROTECTED and os.path.lexists(source):
        await in_thread(node.pool, _copy, Path(source), target)
        return
    if os.path.lexists(target):
        if await in_thread(node.pool, _hash_is, target, row.hash):
            return
        raise UsageError(f"{target} exists and is another file.")
    placeholder = source + ".f"
    there = os.path.lexists(placeholder)
    await node.vfs.copy(placeholder if there else source, os.fspath(target))


def make_target(target: Path) -> None:
    """Said once, before every file would fail for the same reason."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as exc:
        raise UsageError(cannot_write(target, exc)) from exc


def _make_parents(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)


def _copy(source: Path, target: Path) -> None:
    """An original that is here: as it is now, which may be newer than what was protected."""
    # A short name: the target's own may have all the bytes that a name can have.
    temporary = target.with_name(f".{os.urandom(8).hex()}.p2pstore.part")
    try:
        shutil.copy2(source, temporary, follow_symlinks=False)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        digest = _digest(source)
        if not _hash_is(temporary, digest):
            raise Unavailable(f"{source} changed while it was copied.")
        if target.exists() and _hash_is(target, digest):
            return
        name_once(AT_FDCWD, os.fsencode(temporary), AT_FDCWD, os.fsencode(target))
    except FileExistsError as exc:
        raise UsageError(f"{target} exists and is another file.") from exc
    finally:
        temporary.unlink(missing_ok=True)


def _digest(path: Path) -> bytes:
    hasher = blake3()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
    return hasher.digest()


def _hash_is(path: Path, wanted: bytes) -> bool:
    return _digest(path) == wanted


def _sync(target: Path) -> None:
    """What was written, names included, is on the disk before HOME may go."""
    fd = os.open(existing(target), os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs(fd)
    finally:
        os.close(fd)
