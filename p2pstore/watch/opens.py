"""That somebody opened a file: how a placeholder asks for its original.

Hides inotify's IN_OPEN. Its events are taken apart here: a batch of our own opens thousands of
files, and a package that makes objects of each takes 40 us for it. Watches stand on directories
only and are placed by the caller, from its scan; the kernel does not say who opened, and waits for
nobody. Our own opens are left out: `mark_own` before opening. Whether an open means "hydrate" (a
person) or nothing (a backup, an indexer) is decided elsewhere.

A directory that is removed or moved away takes its watch along; after a move the next scan places
it under its new name, and until then opens in a moved tree may be told under old paths: a path
told here is checked like any other.

All methods but `mark_own` belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import sys
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from p2pstore import syscalls
from p2pstore.clock import Clock, SystemClock
from p2pstore.errors import Unavailable

OWN_S = 1.0  # an open this soon after ours counts as ours
MOST_WAITING = 10_000  # opens not yet read; more than that is no person
_EVENT = struct.Struct("@iIII")  # watch, mask, cookie, length of the name with its zeros
_OPEN = 0x20
_MOVE_SELF = 0x800
_Q_OVERFLOW = 0x4000
_IGNORED = 0x8000
_ISDIR = 0x4000_0000
_ONLYDIR = 0x0100_0000
_DONT_FOLLOW = 0x0200_0000
_EXCL_UNLINK = 0x0400_0000
_WATCHED = _OPEN | _MOVE_SELF | _ONLYDIR | _DONT_FOLLOW | _EXCL_UNLINK
DRAIN_BYTES = 64 << 10  # of events read before other work of the loop gets its turn, some 2,000
# Between two looks at what the kernel has to tell. Woken for each event, the loop would take the
# interpreter away from the thread that opens our files, at every one of them.
PAUSE_S = 0.02


class Opened(NamedTuple):
    root: Path
    path: bytes  # relative to the root
    heard: float  # on the monotonic clock


class OpenWatcher:
    """`async with OpenWatcher() as watcher: async for opened in watcher: ...`

    One reader at a time; it ends when the watcher is closed. A reader that is cancelled loses
    nothing. Told are opens of names that end in `suffix`; `dropped` counts those that were lost
    because nobody read them in time.
    """

    def __init__(self, clock: Clock | None = None, *, suffix: bytes = b"") -> None:
        self.dropped = 0
        self._clock = clock or SystemClock()
        self._suffix = suffix
        self._fd = -1
        self._places: dict[int, tuple[Path, bytes]] = {}  # by watch descriptor
        self._watched: dict[tuple[Path, bytes], int] = {}
        self._waiting: deque[Opened] = deque()
        self._news = asyncio.Event()
        self._pause: asyncio.TimerHandle | None = None
        self._closed = False
        self._own: dict[bytes, float] = {}
        self._own_order: deque[tuple[float, bytes]] = deque()

    async def start(self) -> None:
        if sys.platform != "linux":
            raise Unavailable("Opens can be seen on Linux only.")
        try:
            self._fd = syscalls.inotify()
        except OSError as exc:
            raise Unavailable(
                "No more watches can be made; raise fs.inotify.max_user_instances."
            ) from exc
        self._listen()

    async def close(self) -> None:
        self._closed = True
        self._news.set()
        if self._pause is not None:
            self._pause.cancel()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._places.clear()
        self._watched.clear()

    async def __aenter__(self) -> OpenWatcher:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def __aiter__(self) -> OpenWatcher:
        return self

    async def __anext__(self) -> Opened:
        while not self._closed:
            if self._waiting:
                return self._waiting.popleft()
            self._news.clear()
            await self._news.wait()
        raise StopAsyncIteration

    # --- watches -------------------------------------------------------------------------------

    @property
    def directories(self) -> int:
        return len(self._places)

    def add_directory(self, root: Path, directory: bytes) -> bool:
        """Watch one directory (empty bytes: the root); False when it is not there (any more).

        Again for a known one is cheap and mends its name after a move. Unavailable at the limit
        of watches.
        """
        if self._fd < 0:
            raise Unavailable("The watcher of opens is not running.")
        try:
            watch = syscalls.inotify_watch(self._fd, _whole(root, directory), _WATCHED)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES):
                return False
            if exc.errno in (errno.ENOSPC, errno.ENOMEM):
                raise Unavailable(
                    "The limit of watched directories is reached; raise "
                    "fs.inotify.max_user_watches."
                ) from exc
            raise
        before = self._places.get(watch)
        if before is not None:
            self._watched.pop(before, None)
        place = (root, directory)
        other = self._watched.get(place)
        if other is not None and other != watch:
            self._forget(other)  # the name belongs to a new directory now
        self._places[watch] = place
        self._watched[place] = watch
        return True

    def remove_directory(self, root: Path, directory: bytes) -> None:
        """No more of this directory and of all below it."""
        beneath = directory + b"/" if directory else b""
        for wd, (its_root, path) in list(self._places.items()):
            if its_root == root and (path == directory or path.startswith(beneath)):
                self._forget(wd)

    def remove_root(self, root: Path) -> None:
        self.remove_directory(root, b"")

    def _forget(self, wd: int) -> None:
        self._forget_silently(wd)
        if self._fd >= 0:
            try:
                syscalls.inotify_unwatch(self._fd, wd)
            except OSError as exc:
                if exc.errno != errno.EINVAL:  # the kernel took it away already
                    raise

    # --- our own opens -------------------------------------------------------------------------

    def mark_own(self, path: bytes | str | os.PathLike[str], now: float | None = None) -> None:
        """Before we open this absolute path ourselves: opens within a second are not told.

        `now` is monotonic. From any thread.
        """
        now = self._clock.monotonic() if now is None else now
        raw = os.fsencode(path)
        self._own[raw] = now + OWN_S
        self._own_order.append((now + OWN_S, raw))
        while self._own_order and self._own_order[0][0] < now - OWN_S:
            try:
                until, old = self._own_order.popleft()
            except IndexError:  # another thread was quicker
                return
            if self._own.get(old) == until:
                self._own.pop(old, None)

    def _is_own(self, root: Path, path: bytes) -> bool:
        until = self._own.get(_whole(root, path))
        return until is not None and self._clock.monotonic() <= until

    # --- events --------------------------------------------------------------------------------

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._fd, self._hear)

    def _hear(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._fd)
        self._pause = loop.call_later(PAUSE_S, self._listen)
        self._drain()

    def catch_up(self) -> None:
        """Hear now what the kernel has to tell so far: later opens get a later time."""
        while self._drain():
            pass

    def _drain(self) -> bool:
        """Whether there may be more."""
        if self._fd < 0:
            return False
        try:
            raw = os.read(self._fd, DRAIN_BYTES)
        except BlockingIOError:
            return False
        at, suffix = 0, self._suffix
        while at < len(raw):
            wd, mask, _, length = _EVENT.unpack_from(raw, at)
            at += _EVENT.size + length
            name = raw[at - length : at].rstrip(b"\0")
            if mask != _OPEN or name.endswith(suffix):
                self._handle(wd, mask, name)
        return True

    def _handle(self, wd: int, mask: int, name: bytes) -> None:
        if mask & _Q_OVERFLOW:
            self.dropped += 1
        place = self._places.get(wd)
        if place is None:
            return
        root, directory = place
        if mask & _IGNORED:
            self._forget_silently(wd)
        elif mask & _MOVE_SELF:
            self.remove_directory(root, directory)
        elif mask & _OPEN and not mask & _ISDIR and name:
            self._tell(root, directory + b"/" + name if directory else name)

    def _forget_silently(self, wd: int) -> None:
        place = self._places.pop(wd)
        if self._watched.get(place) == wd:
            del self._watched[place]

    def _tell(self, root: Path, path: bytes) -> None:
        if self._is_own(root, path):
            return
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        self._waiting.append(Opened(root, path, self._clock.monotonic()))
        self._news.set()


def _whole(root: Path, path: bytes) -> bytes:
    return os.fsencode(root) + b"/" + path if path else os.fsencode(root)
