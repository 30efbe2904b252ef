"""BRING: placeholders become originals again (SAFETY section 4), many small ones at a time.

The source of the bytes is `Restore`; the disk is placement's. What this module adds is the
catalog's side: what each placeholder stands for, where it may land, and what the rows say
afterwards.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import sqlite3
import stat as stat_module
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from enum import Enum
from typing import NamedTuple, ParamSpec, TypeVar

from p2pstore.clock import Clock
from p2pstore.content import MAX_READ, Manifest, Opened, looks_like_manifest, safe_name
from p2pstore.errors import (
    FormatError,
    IntegrityError,
    NoRoom,
    P2PStoreError,
    Unavailable,
    UsageError,
)
from p2pstore.folders.intents import LANDING, TRASHED, Body, Item, Trashed
from p2pstore.placement import (
    SUFFIX,
    Arrival,
    Directories,
    Landed,
    Landing,
    Root,
    arrive,
    content_hash,
    displace,
    finish,
    read_placeholder,
    write_placeholder,
)
from p2pstore.restore import SMALL, Restore
from p2pstore.sandbox import cannot_write
from p2pstore.store import Catalog, FileRow, IntentKind, State, files, journal
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

BATCH_FILES = 500
BATCH_BYTES = 12 << 20
BATCHES_IN_FLIGHT = 2  # one is read and unsealed while the other waits for the disk

_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

P = ParamSpec("P")
R = TypeVar("R")
Advance = Callable[[int, int], None]  # files and bytes that arrived since the last call


class Placeholder(NamedTuple):
    """A `.f` to bring back: its name on disk now, and its row when the catalog has one."""

    name: bytes  # relative to the root, as it stands on disk
    row: FileRow | None

    @property
    def target(self) -> bytes:
        """The name that it has on disk now, without `.f`; the name inside is only a hint."""
        return self.name.removesuffix(SUFFIX)


class Brought(NamedTuple):
    placeholder: Placeholder
    path: bytes  # where the original is now; empty on failure
    size: int
    error: P2PStoreError | None
    trash: Trashed | None = None  # on the last of a batch: its placeholders wait in trash


class _Read(NamedTuple):
    """A placeholder that was read and whose manifest is good."""

    placeholder: Placeholder
    raw: bytes
    opened: Opened


class Bringing:
    """Brings placeholders of one root back; calls may overlap for different files."""

    def __init__(
        self,
        *,
        restore: Restore,
        catalog: Catalog,
        clock: Clock,
        pool: Executor,
        room: Callable[[Root, int], None],
    ) -> None:
        self._restore = restore
        self._catalog = catalog
        self._clock = clock
        self._pool = pool
        self._room = room  # raises NoRoom when so many bytes would go into keep-free

    async def bring(
        self, root: Root, placeholders: Sequence[Placeholder], advance: Advance
    ) -> AsyncIterator[Brought]:
        """Yield each as it is done; one that fails does not stop the others."""
        flying: deque[asyncio.Task[list[Brought]]] = deque()
        try:
            async for batch in self._batches(root, placeholders):
                if isinstance(batch, Brought):
                    yield batch
                    continue
                flying.append(asyncio.ensure_future(self._bring(root, batch, advance)))
                if len(flying) >= BATCHES_IN_FLIGHT:
                    for brought in await flying[0]:
                        yield brought
                    flying.popleft()
            while flying:
                for brought in await flying[0]:
                    yield brought
                flying.popleft()
        finally:
            for task in flying:
                task.cancel()
            await asyncio.gather(*flying, return_exceptions=True)

    async def _bring(self, root: Root, batch: Sequence[_Read], advance: Advance) -> list[Brought]:
        if len(batch) == 1 and not _is_small(batch[0]):
            return [await self._large(root, *batch[0], advance)]
        return await self._small(root, batch, advance)

    async def _batches(
        self, root: Root, placeholders: Sequence[Placeholder]
    ) -> AsyncIterator[list[_Read] | Brought]:
        """Small files together, each large one alone; and those that cannot be read."""
        small: list[_Read] = []
        held = 0
        for start in range(0, len(placeholders), BATCH_FILES):
            part = placeholders[start : start + BATCH_FILES]
            outcomes = await self._in_thread(self._read_many, root, part)
            for placeholder, outcome in zip(part, outcomes, strict=True):
                try:
                    read = await self._recorded(root, placeholder, outcome)
                except P2PStoreError as exc:
                    yield Brought(placeholder, b"", 0, exc)
                    continue
                if not _is_small(read):
                    yield [read]
                    continue
                small.append(read)
                held += read.opened.manifest.meta.size
                if len(small) >= BATCH_FILES or held >= BATCH_BYTES:
                    yield small
                    small, held = [], 0
        if small:
            yield small

    def _read_many(
        self, root: Root, placeholders: Sequence[Placeholder]
    ) -> list[_Read | P2PStoreError]:
        """The manifests as they lie on disk. Runs in a thread."""
        outcomes: list[_Read | P2PStoreError] = []
        rows = [placeholder.row.id for placeholder in placeholders if placeholder.row is not None]
        recorded, outdated = self._catalog.view(
            lambda db: (files.manifests(db, rows), files.outdated(db, rows))
        )
        with Directories(root) as directories:
            for placeholder in placeholders:
                row = placeholder.row
                try:
                    raw = _read_raw(directories, placeholder.name)
                    said = recorded.get(row.id) if row is not None else None
                    # The `.f` that lies there is older than what is known: never old bytes.
                    meant = said if row is not None and row.id in outdated and said else raw
                    opened = self._restore.open(meant, is_recorded=meant == said)
                    outcomes.append(_Read(placeholder, raw, opened))
                except P2PStoreError as exc:
                    outcomes.append(exc)
        return outcomes

    async def _recorded(
        self, root: Root, placeholder: Placeholder, outcome: _Read | P2PStoreError
    ) -> _Read:
        """For a damaged placeholder what the catalog has; the damaged one is kept beside."""
        if isinstance(outcome, _Read):
            return outcome
        row = placeholder.row
        if row is None or not isinstance(outcome, FormatError | IntegrityError):
            raise outcome
        known = await self._in_thread(self._catalog.view, lambda db: files.manifest(db, row.id))
        if known is None:
            raise outcome
        log.warning(
            "%s is damaged; it is kept beside, and its recorded version is used.",
            os.fsdecode(placeholder.name),
        )
        opened = self._restore.open(known)
        mark = b"damaged-%d" % int(self._clock.wall())
        try:
            await self._in_thread(write_placeholder, root, placeholder.name, known, aside=mark)
        except OSError as exc:
            raise Unavailable(f"{os.fsdecode(placeholder.name)}: {exc.strerror}") from exc
        return _Read(placeholder, known, opened)

    async def _small(
        self,
        root: Root,
        batch: Sequence[_Read],
        advance: Advance,
    ) -> list[Brought]:
        manifests = [opened.manifest for _, _, opened in batch]
        try:
            self._room(root, sum(m.meta.size for m in manifests))
            contents = await self._restore.small(manifests)
        except P2PStoreError as exc:
            return [Brought(placeholder, b"", 0, exc) for placeholder, _, _ in batch]
        results: list[Brought] = []
        good: list[_Read] = []
        landings: list[tuple[Landing, bytes]] = []
        present: list[Landing] = []
        name = self._batch_name()
        targets = await self._in_thread(_targets, root, batch)
        for entry, content, target in zip(batch, contents, targets, strict=True):
            placeholder, raw, opened = entry
            if isinstance(content, P2PStoreError):
                results.append(Brought(placeholder, b"", 0, content))
                continue
            if target is _Target.NEWER:
                results.append(Brought(placeholder, placeholder.target, 0, None))
                continue
            landing = self._landing(placeholder, raw, opened.manifest, name)
            if target is _Target.SAME:
                present.append(landing)
                good.insert(len(present) - 1, entry)
            else:
                landings.append((landing, content))
                good.append(entry)
        if not good:
            return results
        intent = await self._begin(root, name, good)
        try:
            landed: list[Landed | OSError | P2PStoreError] = []
            if present:
                landed.extend(await self._in_thread(displace, root, present))
            if landings:
                landed.extend(await self._in_thread(arrive, root, landings))
        except OSError as exc:
            # The journal row stays open: what got a name before this is finished by recovery.
            failed = [(entry[0], _as_ours(root, entry[0], exc)) for entry in good]
            return results + [Brought(one, b"", 0, why) for one, why in failed]
        arrived: list[tuple[Placeholder, bytes, Opened, Landed]] = []
        for (placeholder, raw, opened), outcome in zip(good, landed, strict=True):
            if isinstance(outcome, Landed):
                arrived.append((placeholder, raw, opened, outcome))
                size = opened.manifest.meta.size
                results.append(Brought(placeholder, outcome.path, size, None))
            else:
                results.append(Brought(placeholder, b"", 0, _as_ours(root, placeholder, outcome)))
        trash = await self._end(root, intent, name, arrived)
        results[-1] = results[-1]._replace(trash=trash)
        advance(len(arrived), sum(o.manifest.meta.size for _, _, o, _ in arrived))
        return results

    async def _large(
        self,
        root: Root,
        placeholder: Placeholder,
        raw: bytes,
        opened: Opened,
        advance: Advance,
    ) -> Brought:
        name = self._batch_name()
        arrival: Arrival | None = None
        try:
            manifest = await self._restore.complete(opened.manifest)
            (target,) = await self._in_thread(_targets, root, [_Read(placeholder, raw, opened)])
            if target is _Target.NEWER:
                return Brought(placeholder, placeholder.target, 0, None)
            landing = self._landing(placeholder, raw, manifest, name)
            if target is _Target.FREE:
                self._room(root, manifest.meta.size)
                arrival = Arrival(root, landing)
                await self._in_thread(arrival.begin)
                async for pieces in self._restore.stream(manifest):
                    await self._in_thread(arrival.write, pieces)
                    advance(0, sum(len(piece.content) for piece in pieces))
                await self._in_thread(arrival.settle)
            # Nothing has a name before this row is open, which recovery closes after a crash.
            intent = await self._begin(root, name, [_Read(placeholder, raw, opened)])
            if arrival is None:
                (landed,) = await self._in_thread(displace, root, [landing])
            else:
                (outcome,) = await self._in_thread(finish, root, [arrival], synced=True)
                if not isinstance(outcome, Landed):
                    await self._catalog.awrite(lambda db: journal.close(db, intent))
                    raise outcome
                landed = outcome
            trash = await self._end(root, intent, name, [(placeholder, raw, opened, landed)])
            advance(1, 0)
            return Brought(placeholder, landed.path, manifest.meta.size, None, trash)
        except (P2PStoreError, OSError) as exc:
            return Brought(placeholder, b"", 0, _as_ours(root, placeholder, exc))
        finally:
            if arrival is not None:
                await self._in_thread(arrival.close)

    def _landing(
        self, placeholder: Placeholder, raw: bytes, manifest: Manifest, batch: str
    ) -> Landing:
        safe_name(placeholder.target.rpartition(b"/")[2])
        return Landing(placeholder.target, placeholder.name, manifest.meta, batch, raw)

    async def _begin(self, root: Root, name: str, batch: Sequence[_Read]) -> int:
        body = Body(
            root.folder_id,
            name,
            tuple(
                Item(placeholder.name, 0, len(raw), 0, 0, opened.manifest.hash)
                for placeholder, raw, opened in batch
            ),
        )
        return await self._catalog.awrite(
            lambda db: journal.open_intent(
                db, IntentKind.HYDRATE, body.encode(), self._now_ms(), LANDING
            )
        )

    async def _end(
        self,
        root: Root,
        intent: int,
        name: str,
        arrived: Sequence[tuple[Placeholder, bytes, Opened, Landed]],
    ) -> Trashed | None:
        """Rows say where the originals are before the watcher can see them as changes."""
        now = self._now_ms()
        displaced = [landed.trashed for *_, landed in arrived if landed.trashed is not None]
        trashed = tuple(Item.of(path, identity) for path, identity in displaced)
        body = Body(root.folder_id, name, trashed)

        def record(db: sqlite3.Connection) -> None:
            known = [(p.row, landed) for p, _, _, landed in arrived if p.row is not None]
            for row, landed in known:
                if landed.path != row.path:
                    files.rename(db, row.id, landed.path)
            files.set_on_disk(db, [(r.id, State.PROTECTED, *to.identity) for r, to in known])
            for pinned, reason in ((0, "in work"), (1, "pinned")):
                ids = [row.id for row, _ in known if bool(row.pinned) == bool(pinned)]
                files.set_state(db, ids, State.PROTECTED, reason)
            files.set_last_use(db, [row.id for row, _ in known], now)
            if trashed:
                journal.advance(db, intent, TRASHED, body.encode())
            else:
                journal.close(db, intent)

        await self._catalog.awrite(record)
        return Trashed.of(intent, body, now, rehash=False) if trashed else None

    async def _in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await in_thread(self._pool, function, *args, **kwargs)

    def _batch_name(self) -> str:
        return f"{self._now_ms():013d}-{os.urandom(3).hex()}"

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)


class _Target(Enum):
    """What lies under the name that the original is to get."""

    FREE = "free"  # nothing, or somebody's own file: the original gets a name beside it
    SAME = "same"  # the very content
    NEWER = "newer"  # a next version, not yet replaced: it is what is opened


def _targets(root: Root, batch: Sequence[_Read]) -> list[_Target]:
    with Directories(root) as directories:
        return [_target(directories, read.placeholder, read.opened.manifest) for read in batch]


def _target(directories: Directories, placeholder: Placeholder, manifest: Manifest) -> _Target:
    if placeholder.target == placeholder.name:
        return _Target.FREE
    try:
        directory, name = directories.parent(placeholder.target)
        fd = os.open(name, _LOOK, dir_fd=directory)
    except OSError:
        return _Target.FREE
    try:
        stat = os.fstat(fd)
        if not stat_module.S_ISREG(stat.st_mode):
            return _Target.FREE
        if stat.st_size == manifest.meta.size and content_hash(fd) == manifest.hash:
            return _Target.SAME
        if stat.st_size <= MAX_READ and looks_like_manifest(os.pread(fd, 64, 0)):
            return _Target.FREE  # the placeholder of another file, whose name is shorter by a `.f`
    finally:
        os.close(fd)
    row = placeholder.row
    return _Target.NEWER if row is not None and row.path == placeholder.target else _Target.FREE


def _is_small(read: _Read) -> bool:
    manifest = read.opened.manifest
    return manifest.meta.size <= SMALL and manifest.meta.extra is None and not manifest.chunks.depth


def _read_raw(directories: Directories, name: bytes) -> bytes:
    try:
        directory, last = directories.parent(name)
        return read_placeholder(directory, last, MAX_READ + 1)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise UsageError("there is no such file") from exc
    except OSError as exc:
        raise Unavailable(f"it cannot be read ({exc.strerror})") from exc


def _as_ours(root: Root, placeholder: Placeholder, exc: BaseException) -> P2PStoreError:
    if isinstance(exc, P2PStoreError):
        return exc
    name = os.fsdecode(placeholder.target)
    if not isinstance(exc, OSError):
        return Unavailable(f"{name} cannot be written ({exc}).")
    failed = NoRoom if exc.errno == errno.ENOSPC else Unavailable
    return failed(cannot_write(name, exc, place=root.path))
