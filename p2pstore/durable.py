"""Small files of our own that are replaced whole and survive a power cut.

Order: bytes, fsync of the file, rename over the old one, fsync of the directory; for many files
together: all bytes, one sync of the file system, all renames, one sync more. A reader sees the old
content or the new one, and where that is not enough, a checksum (`with_check`). Never used on a
user's file: there nothing is renamed over, and a finished file gets its name by `name_once`.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from p2pstore.errors import FormatError, Unavailable
from p2pstore.syscalls import rename_noreplace, syncfs

_CHECK_SIZE = 16
CANNOT = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ENOTSUP})
"""What file systems answer to a call that they do not have."""


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Make `path` hold `content`; when this returns it does so after a power cut too."""
    temporary = _temporary(path)
    try:
        with open(_create(temporary, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def replace_files(contents: Mapping[Path, bytes]) -> None:
    """The same for many files of one file system, at the price of two syncs of all of it.

    An error or a power cut leaves each of them with its old content or its new one.
    """
    if not contents:
        return
    # Opened before the first write: errors are reported to who was there when they happened.
    descriptor = os.open(next(iter(contents)).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for path, content in contents.items():
            with open(_create(_temporary(path), 0o600), "wb") as file:
                file.write(content)
        syncfs(descriptor)
        for path in contents:
            _temporary(path).rename(path)
        syncfs(descriptor)
    except BaseException:
        for path in contents:
            with contextlib.suppress(FileNotFoundError):
                _temporary(path).unlink()
        raise
    finally:
        os.close(descriptor)


def with_check(magic: bytes, body: bytes) -> bytes:
    """The content of a file that shows when it was damaged: magic, the first 16 bytes of BLAKE3
    over the body, body."""
    return magic + blake3(body).digest(length=_CHECK_SIZE) + body


def read_checked(path: Path, magic: bytes, most: int) -> bytes:
    """The body of what `with_check` made, of at most `most` bytes in all.

    FormatError when it is damaged, FileNotFoundError.
    """
    with open(path, "rb") as file:
        raw = file.read(most + 1)
    start = len(magic) + _CHECK_SIZE
    if len(raw) > most or raw[: len(magic)] != magic:
        raise FormatError(f"{path.name} is not what its name says")
    if blake3(raw[start:]).digest(length=_CHECK_SIZE) != raw[len(magic) : start]:
        raise FormatError(f"{path.name} is damaged")
    return raw[start:]


def name_once(olddir: int, old: bytes, newdir: int, new: bytes) -> None:
    """Give a file its final name, never in the place of another: FileExistsError.

    Where there is no such rename (NFS) a hard link does the same; where there are no links either,
    an errno of CANNOT. Whoever wants the name to be durable syncs its directory.
    """
    try:
        return rename_noreplace(olddir, old, newdir, new)
    except Unavailable:
        pass  # another system than Linux
    except OSError as exc:
        if exc.errno not in CANNOT:
            raise
    os.link(old, new, src_dir_fd=olddir, dst_dir_fd=newdir, follow_symlinks=False)
    os.unlink(old, dir_fd=olddir)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.new")


def _create(path: Path, mode: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
