"""A file's content as a new file elsewhere: whole and verified before it has its name."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence

import aiofiles

from p2pstore.content import Manifest
from p2pstore.durable import name_once
from p2pstore.errors import NoRoom, UsageError
from p2pstore.restore.reading import Restore
from p2pstore.sandbox import cannot_write
from p2pstore.syscalls import AT_FDCWD


def _quiet(done: int, total: int) -> None:
    """Nobody watches."""


async def write_copy(
    restore: Restore,
    manifest: Manifest,
    target: str,
    *,
    force: bool = False,
    mode: int | None = None,
    progress: Callable[[int, int], None] = _quiet,
) -> str:
    """Write the content of a complete manifest to `target`, or into it when it is a directory.

    Never over a file that exists, except with `force`, which puts the new one in its place in one
    step. `mode`: instead of the file's own. Returns the path; UsageError, NoRoom, and what reading
    raises: then nothing is there.
    """
    if os.path.isdir(target):
        target = os.path.join(target, os.fsdecode(manifest.meta.name))
    await asyncio.to_thread(_reserve, target, manifest.meta.size, force)
    # A short name: the target's own may have all the bytes that a name can have.
    temporary = os.path.join(os.path.dirname(target), f".{os.urandom(8).hex()}.p2pstore.part")
    done = 0
    try:
        async with aiofiles.open(temporary, "xb", buffering=0) as file:
            try:
                async for pieces in restore.stream(manifest):
                    await asyncio.to_thread(_write, file.fileno(), pieces)
                    done += sum(len(content) for _, content in pieces)
                    progress(done, manifest.meta.size)
                wanted = manifest.meta.mode if mode is None else mode
                await asyncio.to_thread(_settle, file.fileno(), manifest, wanted & 0o777)
                await asyncio.to_thread(_put_in_place, temporary, target, force)
            finally:
                if os.path.lexists(temporary):
                    os.unlink(temporary)
    except FileExistsError as exc:
        raise UsageError(f"{target} exists; choose another name.") from exc
    except OSError as exc:
        failed = NoRoom if exc.errno in (errno.ENOSPC, errno.EDQUOT) else UsageError
        raise failed(cannot_write(target, exc)) from exc
    return target


def _reserve(target: str, size: int, force: bool) -> None:
    if os.path.lexists(target) and not (force and os.path.isfile(target)):
        raise UsageError(f"{target} exists; choose another name.")
    try:
        usage = os.statvfs(os.path.dirname(os.path.abspath(target)))
    except OSError as exc:
        raise UsageError(cannot_write(target, exc)) from exc
    if usage.f_bavail * usage.f_frsize < size:
        raise NoRoom(f"{target} needs {size} bytes; there is less room.")


def _write(fd: int, pieces: Sequence[tuple[int, bytes | memoryview]]) -> None:
    for offset, content in pieces:
        view = memoryview(content)
        while view:
            done = os.pwrite(fd, view, offset)
            view, offset = view[done:], offset + done


def _settle(fd: int, manifest: Manifest, mode: int) -> None:
    os.ftruncate(fd, manifest.meta.size)
    os.fchmod(fd, mode)
    os.utime(fd, ns=(manifest.meta.mtime_ns, manifest.meta.mtime_ns))
    os.fsync(fd)


def _put_in_place(temporary: str, target: str, force: bool) -> None:
    if force:
        os.rename(temporary, target)
        return
    name_once(AT_FDCWD, os.fsencode(temporary), AT_FDCWD, os.fsencode(target))
