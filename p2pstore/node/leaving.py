"""LEAVE: every file comes back, what others rely on is not taken from them, and the node ends.

    1  may it? not while bundles are kept here for others, and not as the only other holder of the
       keys of a group whose words nobody has confirmed
    2  is there room? for everything, before the first file moves
    3  bring every placeholder back in its folder, or write everything below DIR
    4  look: nothing stands as a placeholder any more (or DIR has all of it)
    5  the folders are no longer watched, and holders are asked to let our bundles go

Only then the owner is told that HOME may be deleted; service and desktop entries are removed by the
command line, which made them. Whatever stops it leaves everything as usable as before, and it can
be typed again. A holder that is absent keeps what it has until its lease ends: that is said, and no
reason to stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from p2pstore.config import format_size
from p2pstore.errors import Busy, P2PStoreError, Unavailable, UsageError
from p2pstore.folders import Folder
from p2pstore.ids import BundleId, NodeId, short
from p2pstore.node.build import Node
from p2pstore.placement import Root
from p2pstore.sandbox import cannot_write
from p2pstore.store import FileRow, State, copies, files, folders
from p2pstore.syscalls import syncfs
from p2pstore.threads import in_thread
from p2pstore.wire import Unknown

Json = dict[str, Any]
Progress = Callable[[Json], None]

CONTENT = (State.PROTECTED, State.PLACEHOLDER, State.HYDRATING, State.CONFLICT)
SHOWN = 5  # files named in a reason; the others are counted
RELEASE_PAGE = 500
_PIECE = 1 << 20


class _Asked(NamedTuple):
    """A copy that a holder is asked to let go."""

    bundle: int
    bundle_id: BundleId


async def leave(node: Node, to: str | None, progress: Progress) -> Json:
    """The result as the contract has it; after "left" nothing here is needed by anybody."""
    reasons = await in_thread(node.pool, _obstacles, node)
    if not reasons:
        reasons = await in_thread(node.pool, _lacks_room, node, to)
    if reasons:
        return _result(node, reasons, to)
    exporting = _Export(node, Path(to or os.devnull), progress)
    if to is None:
        reasons = await _hydrate(node, progress)
    else:
        await in_thread(node.pool, _make_target, Path(to))
        reasons = await exporting.export(node.folders.all(), CONTENT)
    if reasons:
        return _result(node, reasons, to)
    counted = await in_thread(node.pool, node.catalog.view, _totals)
    watched = node.folders.all()
    for folder in watched:
        # The originals in trash are back, or exported: what may go need not wait.
        await folder.empty_trash()
        how = "hydrate" if to is None else "leave"
        await node.folders.remove(os.fspath(folder.path), how, progress)
    # Now that nothing is replaced any more: what came in while the rest was brought back.
    if to is None:
        reasons = await in_thread(node.pool, _not_back, node, watched)
    else:
        reasons = await exporting.export(watched, (State.PLACEHOLDER,))
    if reasons:
        return _result(node, reasons, to)
    for folder in watched if to is None else ():
        await in_thread(node.pool, Root.unmark, folder.path)
    await _release_all(node, progress)
    return {**_result(node, [], to), "left": True, "files": counted[0], "bytes": counted[1]}


def _result(node: Node, reasons: Sequence[str], to: str | None) -> Json:
    return {
        "left": False,
        "reasons": list(reasons),
        "home": os.fspath(node.home.path),
        "exported": None if to is None or reasons else os.path.realpath(to),
        "files": 0,
        "bytes": 0,
    }


# -- may it? ---------------------------------------------------------------------------------------


def _obstacles(node: Node) -> list[str]:
    reasons: list[str] = []
    for opener, size in sorted(_kept(node).items()):
        name = node.group.name_of(opener) or f"a device unknown here ({short(opener)})"
        reasons.append(
            f"{format_size(size)} of the files of {name} have a copy here and would lose it: "
            f"{name} must have copied them to another device first."
        )
    others = node.group.others()
    if others and not node.home.words_confirmed:
        if node.home.words() is not None:
            reasons.append(
                "The recovery words are only on this disk. Write them on paper, then: "
                "p2pstore words confirm"
            )
        elif len(others) == 1:
            name = node.group.name_of(others[0]) or short(others[0])
            reasons.append(
                f"Beside {name} only this device has the group's keys. If the 24 words are "
                "written down, say so: p2pstore words confirm"
            )
    for path, left in node.catalog.view(_left_behind).items():
        reasons.append(
            f"{left} placeholders were left in {path} when it was removed. Take it up again: "
            f"p2pstore add-folder {path}"
        )
    for folder in node.folders.all():
        placeholders = _in_state(node, folder, State.PLACEHOLDER)
        if folder.root is None and placeholders:
            reasons.append(
                f"{folder.path} is not there, and {placeholders} of its files are placeholders."
            )
    return reasons


def _left_behind(db: sqlite3.Connection) -> dict[str, int]:
    """Placeholders that stand in folders which are watched no more."""
    found: dict[str, int] = {}
    for folder in folders.every(db):
        if folder.state != folders.REMOVED:
            continue
        base = os.fsdecode(folder.path)
        for row in files.walk(db, folder.id, states=(State.PLACEHOLDER,)):
            if os.path.lexists(os.path.join(base, os.fsdecode(row.path) + ".f")):
                found[base] = found.get(base, 0) + 1
    return found


def _kept(node: Node) -> dict[NodeId, int]:
    """Bytes that are kept for others, by the device that gave them.

    What came from a device that is no longer a member is its group's all the same.
    """
    mine = node.group.node_id
    return {opener: size for opener, size in node.held.bytes_by_opener().items() if opener != mine}


def _in_state(node: Node, folder: Folder, state: str) -> int:
    counts = node.catalog.view(lambda db: files.counts(db, folder.row))
    return sum(count.files for count in counts if count.state == state)


# -- room ------------------------------------------------------------------------------------------


def _lacks_room(node: Node, to: str | None) -> list[str]:
    if to is not None:
        target = Path(os.path.realpath(to))
        if any(target.is_relative_to(folder.path) for folder in node.folders.all()):
            raise UsageError(f"{to} lies in a watched folder; choose a directory outside.")
        if target.is_relative_to(node.home.path.resolve()):
            raise UsageError(f"{to} lies in {node.home.path}, which may be deleted afterwards.")
        needed = sum(_bytes(node, folder, CONTENT) for folder in node.folders.all())
        return _too_little(node, {_device(target): (target, needed)})
    wanted: dict[int, tuple[Path, int]] = {}
    for folder in node.folders.all():
        device = _device(folder.path)
        path, before = wanted.get(device, (folder.path, 0))
        wanted[device] = (path, before + _bytes(node, folder, (State.PLACEHOLDER,)))
    return _too_little(node, wanted)


def _too_little(node: Node, wanted: dict[int, tuple[Path, int]]) -> list[str]:
    reasons: list[str] = []
    for path, needed in wanted.values():
        free = node.room.free(_existing(path))
        if needed > max(0, free):
            reasons.append(
                f"{format_size(needed)} are needed on the disk with {path}, "
                f"{format_size(max(0, free))} are free there. Another disk: "
                "p2pstore leave --to DIR"
            )
    return reasons


def _bytes(node: Node, folder: Folder, states: Iterable[str]) -> int:
    counts = node.catalog.view(lambda db: files.counts(db, folder.row))
    return sum(count.file_bytes for count in counts if count.state in states)


def _device(path: Path) -> int:
    return _existing(path).stat().st_dev


def _existing(path: Path) -> Path:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


# -- back into the folders -------------------------------------------------------------------------


async def _hydrate(node: Node, progress: Progress) -> list[str]:
    """Bring everything back and look whether it is; what stands in the way, if anything does."""
    failed: list[str] = []
    for folder in node.folders.all():
        path = os.fspath(folder.path)
        if not _in_state(node, folder, State.PLACEHOLDER):
            continue
        # Pinned: what comes back is not replaced again while the rest is on its way.
        for brought in await node.folders.pin([path], True, progress):
            if brought.error is not None:
                name = os.path.join(path, os.fsdecode(brought.placeholder.name))
                failed.append(f"{name}: {brought.error}")
    return _shortened(failed) or await in_thread(node.pool, _not_back, node, node.folders.all())


def _not_back(node: Node, watched: Sequence[Folder]) -> list[str]:
    """Files of which the folder has no whole original."""
    left: list[str] = []
    for folder in watched:
        for row in node.catalog.view(partial(_rows, folder.row)):
            name = os.path.join(folder.path, os.fsdecode(row.path))
            if row.state != State.PROTECTED:
                left.append(f"{name} is still a placeholder.")
            elif folder.path.exists() and not os.path.lexists(name):
                left.append(f"{name} is not there. If you deleted it, wait a moment.")
    return _shortened(left)


def _rows(folder: int, db: sqlite3.Connection) -> list[FileRow]:
    return [row for row in files.walk(db, folder, states=CONTENT) if row.kind == files.Kind.FILE]


def _shortened(reasons: Sequence[str]) -> list[str]:
    more = len(reasons) - SHOWN
    return [*reasons[:SHOWN], *([f"and {more} more files."] if more > 0 else [])]


def _totals(db: sqlite3.Connection) -> tuple[int, int]:
    query = (
        "SELECT count(*), sum(f.file_size) FROM files f JOIN folders d ON d.id=f.folder"
        " WHERE f.kind='file' AND f.state IN ('protected', 'placeholder') AND d.state='watched'"
    )
    total, size = db.execute(query).fetchone()
    return int(total), int(size or 0)


# -- out into a directory --------------------------------------------------------------------------


class _Export:
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
        total = await in_thread(node.pool, node.catalog.view, _totals)
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
        return _shortened(failed)

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


def _make_target(target: Path) -> None:
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
        os.link(temporary, target)
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
    fd = os.open(_existing(target), os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


# -- goodbye ---------------------------------------------------------------------------------------


async def _release_all(node: Node, progress: Progress) -> None:
    """Ask every holder to let our bundles go; it keeps them for 7 days in its trash.

    The other devices are asked in any case: a catalog that was just rebuilt does not know yet what
    they keep, and they could never leave in their turn.
    """
    holders = set(await in_thread(node.pool, node.catalog.view, _holders))
    others = set(node.group.others())
    if node.is_rebuilding():
        holders |= others
    async with asyncio.TaskGroup() as group:
        for holder in others - holders:  # absent ones have nothing, as far as anybody knows
            group.create_task(_release(node, holder, lambda _: None))
        for holder in holders:
            group.create_task(_release(node, holder, progress))


def _holders(db: sqlite3.Connection) -> list[NodeId]:
    query = "SELECT DISTINCT holder FROM copies WHERE state IN ('proved', 'suspect')"
    return [NodeId(holder) for (holder,) in db.execute(query)]


async def _release(node: Node, holder: NodeId, progress: Progress) -> None:
    name = node.group.name_of(holder) or short(holder)
    try:
        kept = await _release_known(node, holder) | await _release_listed(node, holder)
    except P2PStoreError as exc:
        progress({"text": f"{name} was not asked to let its copies go: {exc}"})
        return
    if kept:
        progress(
            {"text": f"{name} keeps {len(kept)} bundles for now: somebody else relies on them."}
        )


async def _release_known(node: Node, holder: NodeId) -> set[BundleId]:
    """What the catalog says; the bundles that another device has locked there."""
    after, kept = 0, set[BundleId]()
    while page := await in_thread(node.pool, node.catalog.view, partial(_page, holder, after)):
        for one in page:
            if await _let_go(node, holder, one.bundle_id):
                await node.catalog.awrite(partial(_released, one.bundle, holder))
            else:
                kept.add(one.bundle_id)
        after = page[-1].bundle
    return kept


async def _release_listed(node: Node, holder: NodeId) -> set[BundleId]:
    """What the holder itself says that it still has of this device."""
    ours = [h.bundle async for h in node.pusher.holdings(holder) if h.opener == node.group.public]
    return {bundle for bundle in ours if not await _let_go(node, holder, bundle)}


async def _let_go(node: Node, holder: NodeId, bundle: BundleId) -> bool:
    try:
        await node.pusher.release(bundle, holder)
    except Unknown:
        return True  # it has it not any more
    except Busy:
        return False  # another device has locked it there
    return True


def _page(holder: NodeId, after: int, db: sqlite3.Connection) -> list[_Asked]:
    query = (
        "SELECT c.bundle, b.bundle_id FROM copies c JOIN bundles b ON b.id=c.bundle"
        " WHERE c.holder=? AND c.bundle>? AND c.state IN ('proved', 'suspect') AND b.own=1"
        " ORDER BY c.bundle LIMIT ?"
    )
    found = db.execute(query, (holder, after, RELEASE_PAGE))
    return [_Asked(bundle, BundleId(bundle_id)) for bundle, bundle_id in found]


def _released(bundle: int, holder: NodeId, db: sqlite3.Connection) -> None:
    copies.set_state(db, bundle, holder, copies.CopyState.RELEASED)
