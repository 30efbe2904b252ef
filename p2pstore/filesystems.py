"""Which file systems may hold what: whether bytes survive there, who else may write them, and what
they say that nobody else can hold."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from p2pstore.syscalls import IS_LINUX, FileSystem, file_system

_VOLATILE = {
    FileSystem.TMPFS: "it lies in memory (tmpfs) and is gone after a restart",
    FileSystem.RAMFS: "it lies in memory (ramfs) and is gone after a restart",
    FileSystem.OVERLAY: "it lies in a container's own layer (overlay) and goes with the container",
}
_REMOTE = {
    FileSystem.NFS: "it lies on a network mount (NFS)",
    FileSystem.CIFS: "it lies on a network mount (SMB)",
    FileSystem.NETWORK: "it lies on a network mount",
}

_NS_END = 1 << 63


def mtime_ns_of(stat: os.stat_result) -> int:
    """When it was modified; beyond the years 1677 to 2262, which 64 bits can hold, the nearest
    moment in them: file systems know later years, and a wrong date must not keep a file from us."""
    found = stat.st_mtime_ns
    return found if -_NS_END <= found < _NS_END else max(-_NS_END, min(found, _NS_END - 1))


def is_volatile(path: str | bytes | Path) -> str | None:
    """Why a store there must not hold the only copy of anything, or None.

    A path that does not exist yet is judged by its nearest parent that does.
    """
    if not IS_LINUX:
        return None
    here = Path(os.path.realpath(os.fsdecode(path)))
    while not here.exists() and here != here.parent:
        here = here.parent
    return _VOLATILE.get(file_system(here)) or is_remote(here)


def is_remote(where: str | bytes | Path | int) -> str | None:
    """Why bytes there may change without this kernel: a lease tells nothing of such a writer."""
    if not IS_LINUX:
        return None
    kind = file_system(where)
    if kind is FileSystem.FUSE:
        mounted = _mount_type(os.stat(where).st_dev)
        if mounted == "fuseblk":  # a local disk, such as ntfs-3g
            return None
        return f"it lies on a mount of another program ({mounted or 'fuse'})"
    return _REMOTE.get(kind)


def _mount_type(device: int) -> str:
    """The type in the mount table, such as `fuse.sshfs` or `fuseblk`; empty when not found."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields = line.split()
            if fields[2] == wanted and b"-" in fields:
                return os.fsdecode(fields[fields.index(b"-") + 1])
    return ""
