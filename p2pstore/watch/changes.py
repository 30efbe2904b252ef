"""That something changed in a folder: hints, never the truth.

Hides the `watchfiles` package and its gaps. A hint names a path that is worth a look; when a
directory is named, anything below it may be new (a tree that was moved in reports its top only).
Where hints may have been lost the watcher says `RescanWanted` and the caller scans: after the
watches were placed (at the start and after each restart), after a burst (the kernel's queue
overflows in silence), after a suspend, after a name that `watchfiles` cannot say (not UTF-8), and
while watches cannot be placed at all. What is lost unnoticed is the reason why the caller also
rescans from time to time.

The folder's root may go (unplugged disk) and come back: `RootGone`, `RootBack`. Nothing may be
concluded from what is missing between the two, and at `RootBack` the caller checks that it is the
same folder. Symbolic links to directories are not looked through.

The blocking work runs in one thread for each watcher; events are read in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import watchfiles

from p2pstore import syscalls
from p2pstore.errors import UsageError
from p2pstore.watch.scan import OWN_DIRECTORY, Seen, scan

log = logging.getLogger(__name__)

DEBOUNCE_MS = 400
STEP_MS = 50
TICK_MS = 200
PRESENCE_S = 1.0
# A queue of the kernel holds 16,384 events and a new file makes three of them: a third of what it
# can hold, in one batch, may be the rest of more.
BURST = 1_500
MOST_PENDING = 20_000  # paths that wait for a slow caller; beyond, a rescan is cheaper
ASLEEP_S = 2.0
RESTART_S = 2.0  # no more often because of new directories
BACK_OFF_S = (0.1, 10.0)
CALM_S = 60.0  # a watcher that lived that long starts anew without waiting


class Changed(NamedTuple):
    paths: frozenset[bytes]  # relative to the root; empty bytes: the root itself


class RescanWanted(NamedTuple):
    reason: str


class RootGone(NamedTuple):
    pass


class RootBack(NamedTuple):
    """The root is there again, a RescanWanted follows; that it is the same one is not said."""


Event = Changed | RescanWanted | RootGone | RootBack


class _Mailbox:
    """What the caller was not told yet, of bounded size whatever happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._paths: set[bytes] = set()
        self._rescan: str | None = None
        self._gone = False
        self._went = False  # to be told, even when it is back already: it may be another one
        self._told_gone = False

    def changed(self, paths: Iterable[bytes]) -> None:
        with self._lock:
            self._paths.update(paths)
            if len(self._paths) > MOST_PENDING:
                self._paths.clear()
                self._rescan = "more changes than can be listed"

    def rescan(self, reason: str) -> None:
        with self._lock:
            self._rescan = self._rescan or reason

    def root(self, *, gone: bool) -> None:
        with self._lock:
            if gone and not self._gone:
                self._went = True
                self._paths.clear()
                self._rescan = None
            self._gone = gone

    def has_news(self) -> bool:
        with self._lock:
            back = self._told_gone and not self._gone
            return bool(self._went or back or self._rescan is not None or self._paths)

    def take(self) -> Event | None:
        with self._lock:
            if self._went:
                self._went, self._told_gone = False, True
                return RootGone()
            if self._told_gone and not self._gone:
                self._told_gone = False
                return RootBack()
            if self._rescan is not None:
                reason, self._rescan = self._rescan, None
                return RescanWanted(reason)
            if self._paths:
                paths, self._paths = frozenset(self._paths), set()
                return Changed(paths)
            return None


class _Placed(NamedTuple):
    """Which directories are watched."""

    directories: list[str]
    recursive: bool


class _Identity(NamedTuple):
    dev: int
    ino: int
    mount: int


class ChangeWatcher:
    """`async with ChangeWatcher(root) as watcher: async for event in watcher: ...`

    `marker`: a path below the root without which the root counts as gone; None asks for the root
    alone. One reader at a time. Ends when closed.
    """

    def __init__(
        self,
        root: Path,
        *,
        marker: bytes | None = OWN_DIRECTORY,
        asleep_s: Callable[[], float] | None = None,
    ) -> None:
        self.root = Path(os.path.abspath(root))
        self._prefix = os.fsencode(self.root).rstrip(b"/") + b"/"
        self._marker = marker
        self._asleep_s = asleep_s or _asleep_s
        self._mailbox = _Mailbox()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._plain = False  # links to directories were seen: each directory is watched singly

    async def start(self) -> None:
        """UsageError when the root is a symbolic link or a file; a missing root is RootGone."""
        try:
            mode = os.lstat(self.root).st_mode
        except OSError:
            mode = stat.S_IFDIR
        if not stat.S_ISDIR(mode):
            raise UsageError(f"{self.root} is not a directory; a symbolic link is not followed.")
        self._loop = asyncio.get_running_loop()
        # It counts changes at "info", which is no news for an owner.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        self._thread = threading.Thread(target=self._run, name="p2pstore-changes", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        self._stop.set()
        self._news.set()
        thread, self._thread = self._thread, None
        if thread is not None:
            # A disk that no longer answers may hold the thread; it must not hold the node.
            await asyncio.to_thread(thread.join, 5.0)

    async def __aenter__(self) -> ChangeWatcher:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> ChangeWatcher:
        return self

    async def __anext__(self) -> Event:
        while not self._stop.is_set():
            self._news.clear()
            event = self._mailbox.take()
            if event is not None:
                return event
            await self._news.wait()
        raise StopAsyncIteration

    # --- the thread ----------------------------------------------------------------------------

    def _tell(self) -> None:
        if self._loop is not None and not self._stop.is_set() and self._mailbox.has_news():
            try:
                self._loop.call_soon_threadsafe(self._news.set)
            except RuntimeError:  # the loop ended without closing us
                self._stop.set()

    def _run(self) -> None:
        reason = "the folder was not watched before"
        failures = 0
        while not self._stop.is_set():
            identity = self._identity()
            if identity is None:
                self._mailbox.root(gone=True)
                self._tell()
                self._stop.wait(PRESENCE_S)
                reason = "the folder is back"
                continue
            self._mailbox.root(gone=False)
            began = time.monotonic()
            try:
                reason = self._watch(identity, reason)
                failures = 0
            except (OSError, RuntimeError, UnicodeError) as exc:
                # watchfiles says everything with these: a name that is not UTF-8, the limit of
                # watches, a root that went while the watches were placed.
                log.debug("watching %s broke off: %s", self.root, exc)
                reason = f"watching broke off: {exc}"
                failures = 1 if time.monotonic() - began > CALM_S else failures + 1
                self._mailbox.rescan(reason)
                self._tell()
                shortest, longest = BACK_OFF_S
                self._stop.wait(min(longest, shortest * 2 ** min(failures - 1, 16)))

    def _identity(self) -> _Identity | None:
        """None: not there, or not to be trusted now (any error)."""
        flags = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
        try:
            fd = os.open(self.root, flags)
        except OSError:
            return None
        try:
            st = os.fstat(fd)
            if self._marker:
                os.stat(self._marker, dir_fd=fd, follow_symlinks=False)
            mount = syscalls.mount_id(fd) if sys.platform == "linux" else 0
            return _Identity(st.st_dev, st.st_ino, mount)
        except OSError:
            return None
        finally:
            os.close(fd)

    def _watch(self, identity: _Identity, reason: str) -> str:
        """Watch until something asks for new watches; why the next start wants a rescan."""
        placed = self._place()
        asleep = self._asleep_s()
        began = looked = time.monotonic()
        stale = False
        for changes in self._changes(placed):
            now = time.monotonic()
            if reason:
                # Only now the watches stand: what changed before is found by this scan.
                self._mailbox.rescan(reason)
                reason = ""
            if self._asleep_s() - asleep > ASLEEP_S:
                asleep = self._asleep_s()
                self._mailbox.rescan("the computer was asleep")
            # A root that is named itself is likely gone: no need to wait for the next look.
            named = any(path == placed.directories[0] for _, path in changes)
            if named or now - looked >= PRESENCE_S:
                looked = now
                if self._identity() != identity:
                    self._mailbox.root(gone=True)
                    self._tell()
                    return "the folder is back"
            if changes:
                stale |= self._take(changes, placed)
            self._tell()
            if stale and now - began >= RESTART_S:
                return "directories were added"
        return ""

    def _changes(self, placed: _Placed) -> Iterator[set[tuple[watchfiles.Change, str]]]:
        return watchfiles.watch(
            *placed.directories,
            watch_filter=None,
            debounce=DEBOUNCE_MS,
            step=STEP_MS,
            rust_timeout=TICK_MS,
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
            recursive=placed.recursive,
            force_polling=False,
            ignore_permission_denied=True,
        )

    def _place(self) -> _Placed:
        """The root with all below it, or, when it has links to directories, each one singly.

        A recursive watch of `watchfiles` looks through links: one to `/` (every wine prefix has
        it) would watch the whole machine.
        """
        root = self._prefix[:-1].decode()  # not the system's encoding: watchfiles knows UTF-8 only
        if self._plain or self._has_linked_directories():
            self._plain = True
            return _Placed([root, *self._directories()], recursive=False)
        return _Placed([root], recursive=True)

    def _has_linked_directories(self) -> bool:
        return any(
            stat.S_ISLNK(seen.mode) and os.path.isdir(self._prefix + seen.path)
            for seen in scan(self.root)
            if isinstance(seen, Seen)
        )

    def _directories(self) -> Iterator[str]:
        for seen in scan(self.root):
            if isinstance(seen, Seen) and stat.S_ISDIR(seen.mode):
                with contextlib.suppress(UnicodeError):  # such a name cannot be handed over
                    yield (self._prefix + seen.path).decode()

    def _take(self, changes: set[tuple[watchfiles.Change, str]], placed: _Placed) -> bool:
        """Pass the hints on; whether the watches are to be placed anew."""
        stale = False
        paths: set[bytes] = set()
        linked: dict[bytes, bool] = {}
        for change, text in changes:
            whole = text.encode()
            if not whole.startswith(self._prefix):
                paths.add(b"")
                continue
            path = whole[len(self._prefix) :]
            if path.split(b"/", 1)[0] == OWN_DIRECTORY:
                continue
            if self._is_beneath_link(os.path.dirname(path), linked):
                self._plain = stale = True
                continue
            paths.add(path)
            if change is watchfiles.Change.added and not placed.recursive:
                stale |= _is_directory(whole)
        self._mailbox.changed(paths)
        if len(changes) >= BURST:
            self._mailbox.rescan("many changes at once")
        return stale

    def _is_beneath_link(self, directory: bytes, known: dict[bytes, bool]) -> bool:
        if not directory:
            return False
        if directory not in known:
            known[directory] = self._is_beneath_link(
                os.path.dirname(directory), known
            ) or os.path.islink(self._prefix + directory)
        return known[directory]


def _is_directory(path: bytes) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _asleep_s() -> float:
    """Seconds that the machine slept since it started: of the two clocks only one counts them."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return 0.0
