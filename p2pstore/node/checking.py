"""`check`: what is damaged here; with `repair` it is mended as far as others, or this disk, can.

    damaged, missing bundle   good blocks kept, the others fetched from holders (`heal`). When
                              nobody has them: nothing new relies on it, and the originals that
                              need it and are still here are stored anew
    bundle given up before    asked for again
    bundle that is not known  gets a row; `collect` sees what it is good for
    placeholder               named; hydrating the file brings it back, the damaged `.f` is kept
    catalog                   named; it is rebuilt by a command of its own

What could not be mended stays a problem, with what helps.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from p2pstore.content import MAX_READ, bundle_tag, open_manifest
from p2pstore.errors import P2PStoreError
from p2pstore.folders import Folder
from p2pstore.ids import BundleId, PublicKey
from p2pstore.maintenance import Checked, Problem, anew, bundle_row
from p2pstore.maintenance import check as check_store
from p2pstore.node.build import Node
from p2pstore.placement import SUFFIX, Directories, read_placeholder
from p2pstore.store import BundleState, DiskBundles, State, blocks, files
from p2pstore.threads import in_thread

Json = dict[str, Any]
Progress = Callable[[Json], None]

DAMAGED = 4  # exit code: wrong bytes
PAGE = 1000  # bundles that were given up, asked for in one check


async def check(node: Node, *, read_data: bool, repair: bool, progress: Progress) -> Json:
    """The result as the contract has it. Cancelled, it soon ends."""
    stop = threading.Event()
    task = asyncio.ensure_future(
        in_thread(node.pool, _look, node, read_data, progress, asyncio.get_running_loop(), stop)
    )
    try:
        done: Checked = await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.gather(task, return_exceptions=True)
        raise
    problems = [_line(problem) for problem in done.problems]
    if repair:
        await _Mending(node).run(done.problems, problems, progress)
    return {
        "bundles": done.bundles,
        "blocks": done.blocks,
        "bytes": done.bytes,
        "problems": problems,
    }


def _line(problem: Problem) -> Json:
    return {
        "text": problem.text,
        "code": problem.code,
        "remedy": problem.remedy,
        "healed": False,
    }


# -- looking ---------------------------------------------------------------------------------------


def _look(
    node: Node,
    read_data: bool,
    progress: Progress,
    loop: asyncio.AbstractEventLoop,
    stop: threading.Event,
) -> Checked:
    # Opened anew: the store in use remembers lists that it has read before.
    fresh = DiskBundles(node.data)
    try:
        done = check_store(
            fresh,
            node.held,
            node.catalog,
            read_data=read_data,
            ring=node.group.ring(),
            progress=lambda said: _tell(loop, progress, said),
            stop=stop,
        )
    finally:
        fresh.close()
    if not read_data:
        return done
    dots = [found for folder in node.folders.all() for found in _placeholders(node, folder, stop)]
    return done._replace(problems=(*done.problems, *dots))


def _tell(loop: asyncio.AbstractEventLoop, progress: Progress, said: Json) -> None:
    loop.call_soon_threadsafe(progress, said)


def _placeholders(node: Node, folder: Folder, stop: threading.Event) -> Iterator[Problem]:
    """Those on the disk that cannot be read any more."""
    root = folder.root
    if root is None:
        return
    with Directories(root) as directories:
        after = b""
        while page := node.catalog.view(partial(_page, folder.row, after)):
            after = page[-1].path
            for row in page:
                if stop.is_set():
                    return
                path = folder.path / os.fsdecode(row.path + SUFFIX)
                node.opens.mark_own(path)
                try:
                    directory, name = directories.parent(row.path + SUFFIX)
                    raw = read_placeholder(directory, name, MAX_READ + 1)
                except OSError:
                    continue  # gone or unreadable: that is the scan's to tell
                if raw != node.catalog.view(partial(_manifest, row.id)) and not _opens(node, raw):
                    text = f"{path} is damaged; what it stands for is known."
                    yield Problem(text, DAMAGED, f"p2pstore hydrate {path}")


def _opens(node: Node, raw: bytes) -> bool:
    try:
        open_manifest(raw, node.group.ring())
    except P2PStoreError:
        return False
    return True


def _page(folder: int, after: bytes, db: sqlite3.Connection) -> list[files.FileRow]:
    return files.page(db, folder, after=after, states=(State.PLACEHOLDER,))


def _manifest(file: int, db: sqlite3.Connection) -> bytes | None:
    return files.manifest(db, file)


# -- mending ---------------------------------------------------------------------------------------


class _Mending:
    """What is done about the problems of one check."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._anew = 0  # originals that are stored anew

    async def run(
        self, problems: tuple[Problem, ...], lines: list[Json], progress: Progress
    ) -> None:
        """Each line says then whether it was mended, or why not."""
        sick = [(p, line) for p, line in zip(problems, lines, strict=True) if p.bundle is not None]
        for done, (problem, line) in enumerate(sick, 1):
            progress({"stage": "repair", "bundles": done, "bundles_total": len(sick)})
            if problem.bundle is not None:
                line.update(await self._bundle(problem.bundle))
        for row in await in_thread(self._node.pool, self._given_up):
            await self._bundle(row.bundle_id)
        lost = await in_thread(self._node.pool, self._node.catalog.view, _files_lost)
        for problem, line in zip(problems, lines, strict=True):
            if problem.is_lost and not lost:
                line["healed"] = True
        if self._anew:
            for folder in self._node.folders.all():
                folder.ask_rescan("some originals are stored anew", judge_anew=True)

    async def _bundle(self, bundle_id: BundleId) -> Json:
        node = self._node
        row = await in_thread(node.pool, self._row, bundle_id)
        try:
            if row is None:
                await in_thread(node.pool, self._adopt, bundle_id)
            else:
                await node.upkeep.healer.heal(bundle_id)
        except P2PStoreError as exc:
            if row is not None:
                now_ms = int(node.clock.wall() * 1000)
                give_up = partial(_give_up, row, self._has(row), now_ms)
                self._anew += await node.catalog.awrite(give_up)
                await node.upkeep.healer.note(bundle_id)
            return {"healed": False, "remedy": f"connect a node that holds a copy ({exc})"}
        return {"healed": True, "remedy": ""}

    def _has(self, row: blocks.BundleRow) -> bool:
        return self._node.store.has(row.bundle_id)

    def _row(self, bundle_id: BundleId) -> blocks.BundleRow | None:
        return self._node.catalog.view(lambda db: blocks.exactly(db, bundle_id))

    def _given_up(self) -> list[blocks.BundleRow]:
        lost = (BundleState.LOST,)
        return self._node.catalog.view(lambda db: blocks.list_bundles(db, states=lost, limit=PAGE))

    def _adopt(self, bundle_id: BundleId) -> None:
        """A row for what lies here and is not known."""
        node = self._node
        tag = bundle_tag(node.group.ring().current.tag, bundle_id)
        me = PublicKey(bytes(node.group.author().key.verify_key))
        row = bundle_row(node.store, bundle_id, tag, me)
        node.catalog.write(lambda db: blocks.put_bundle(db, row)).result()


def _give_up(row: blocks.BundleRow, is_here: bool, now_ms: int, db: sqlite3.Connection) -> int:
    """Nothing new relies on it; how many originals are stored anew instead."""
    blocks.forget_chunks(db, row.id)
    if not is_here:
        blocks.move(db, row.id, BundleState.LOST, only_from=[BundleState.SEALED])
    return anew.of_bundle(db, row.id, now_ms)


def _files_lost(db: sqlite3.Connection) -> int:
    query = (
        "SELECT count(DISTINCT r.file) FROM file_bundles r JOIN bundles b ON b.id=r.bundle"
        " WHERE b.state='lost'"
    )
    return int(db.execute(query).fetchone()[0])
