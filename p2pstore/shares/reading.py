"""The content of what is to be shared: a file, or what a placeholder stands for."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import BinaryIO

from p2pstore.content import MAX_READ, looks_like_manifest
from p2pstore.errors import NoRoom, UsageError
from p2pstore.threads import in_thread


class Reader:
    def __init__(
        self,
        home: Path,
        *,
        content: Callable[[str], AsyncIterator[bytes]],
        size: Callable[[str], Awaitable[int]],
        free: Callable[[], int],
        pool: Executor,
    ) -> None:
        """`content` reads what a placeholder stands for, `size` tells its bytes; `free` are those
        that the store may still take. What is brought back meanwhile lies in HOME."""
        self._home = home
        self._content = content
        self._size = size
        self._free = free
        self._pool = pool

    @asynccontextmanager
    async def opened(self, path: str) -> AsyncIterator[tuple[BinaryIO, bytes]]:
        """The content to share, and its name. UsageError when it is no file, NoRoom when the store
        cannot take it."""
        name = os.fsencode(os.path.basename(path))
        file = await in_thread(self._pool, _open, path)
        if file is not None:
            with file:
                self._check_room(os.fstat(file.fileno()).st_size)
                yield file, name
            return
        placeholder = path if await in_thread(self._pool, os.path.lexists, path) else path + ".f"
        # Once as a file, then once more in bundles.
        self._check_room(2 * await self._size(placeholder))
        with tempfile.TemporaryFile(dir=self._home) as whole:
            try:
                async for piece in self._content(placeholder):
                    await in_thread(self._pool, whole.write, piece)
                await in_thread(self._pool, whole.flush)
            except OSError as exc:
                raise NoRoom(f"{path} cannot be brought back here ({exc.strerror}).") from exc
            yield whole, name.removesuffix(b".f")

    def _check_room(self, needed: int) -> None:
        if (free := max(0, self._free())) < needed:
            raise NoRoom(
                f"{needed} bytes are needed in the store, {free} are free above keep-free."
            )


def _open(path: str) -> BinaryIO | None:
    """The file; None for a placeholder, or for one that is only known by its placeholder."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        if os.path.lexists(path + ".f"):
            return None
        raise UsageError(f"{path} does not exist.") from exc
    except OSError as exc:
        raise UsageError(f"{path} cannot be read ({exc.strerror}).") from exc
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageError(f"{path} is no file: only files can be shared, one at a time.")
    try:
        is_placeholder = looks_like_manifest(os.pread(fd, MAX_READ, 0))
    except OSError as exc:
        os.close(fd)
        raise UsageError(f"{path} cannot be read ({exc.strerror}).") from exc
    if is_placeholder:
        os.close(fd)
        return None
    return os.fdopen(fd, "rb", buffering=0)
