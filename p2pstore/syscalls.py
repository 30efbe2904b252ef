"""The system calls that Python does not offer, as thin functions that raise OSError.

Hides ctypes, structure layouts and call numbers. Decides nothing: where a call is missing on a
kernel or a file system the errno reaches the caller, who knows what to do instead. The one
exception is `open_beneath`, whose fallback gives the same promise with more calls.

Linux only. The module can be imported anywhere; elsewhere its functions raise Unavailable.
All functions may be called from any thread; ctypes lets go of the GIL during a call.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import functools
import os
import platform
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from p2pstore.errors import Unavailable

if sys.platform != "win32":
    import resource

IS_LINUX = sys.platform == "linux"

AT_FDCWD = -100
O_CLOEXEC = getattr(os, "O_CLOEXEC", 0)

_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_FALLOC_FL_KEEP_SIZE = 0x01
_FALLOC_FL_PUNCH_HOLE = 0x02
_SFD_FLAGS = 0o2000000 | 0o4000  # SFD_CLOEXEC | SFD_NONBLOCK
_SIGNAL_RECORD = 128  # sizeof(struct signalfd_siginfo)
_SIGNAL_FD_AT = 20  # its ssi_fd: fields are signo, errno, code, pid, uid, fd
_AT_EMPTY_PATH = 0x1000
_STATX_MNT_ID = 0x1000
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_MNT_ID_AT = 144
_FS_IOC_GETFLAGS = 0x80086601 if ctypes.sizeof(ctypes.c_long) == 8 else 0x80046601
_FS_IMMUTABLE_FL = 0x10
_FS_APPEND_FL = 0x20

_F_SETSIG = 10
_F_SETOWN_EX = 15
_F_OWNER_TID = 0
_F_SETLEASE = 1024
_F_GETLEASE = 1025
_F_RDLCK = 0
_F_UNLCK = 2

_IOPRIO_WHO_PROCESS = 1
_SYNC_FILE_RANGE_WRITE = 2
_M_TRIM_THRESHOLD = -1  # malloc.h
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_IOPRIO_IDLE = 3 << 13
_NR_IOPRIO_SET = {"x86_64": 251, "i686": 289, "armv7l": 314, "aarch64": 30, "riscv64": 30}

_NR_OPENAT2 = 437  # the same on every architecture: it is newer than their common table
_NR_RENAMEAT2 = {
    "x86_64": 316,
    "aarch64": 276,
    "riscv64": 276,
    "loongarch64": 276,
    "i686": 353,
    "armv7l": 382,
    "ppc64le": 357,
    "s390x": 347,
}

# More pieces than this are read as if the rest were data: a hole is an economy, not content,
# and the list of a hostile sparse file must not fill the memory.
MAX_EXTENTS = 32_768

if IS_LINUX:
    import fcntl

    _libc: Any = ctypes.CDLL(None, use_errno=True)
else:
    _libc = None


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _linux_only() -> None:
    if not IS_LINUX:
        raise Unavailable("This needs Linux: other systems have no leases and no safe renames.")


def _call(function: Callable[..., int], *args: object, name: bytes | None = None) -> int:
    """Call, again after EINTR (PEP 475 does it only for Python's own calls)."""
    while True:
        result = function(*args)
        if result != -1:
            return int(result)
        code = ctypes.get_errno()
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code), name)


@functools.cache
def _bound(name: str, *argtypes: Any) -> Callable[..., int]:
    _linux_only()
    try:
        function = getattr(_libc, name)
    except AttributeError as exc:
        raise OSError(errno.ENOSYS, f"the C library has no {name}") from exc
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


@functools.cache
def _syscall(*argtypes: Any) -> Callable[..., int]:
    # An own handle for each prototype: `argtypes` belongs to the function object.
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = (ctypes.c_long, *argtypes)
    function.restype = ctypes.c_long
    return function


# --- names ---------------------------------------------------------------------------------


def _components(path: bytes) -> list[bytes]:
    if not path or b"\0" in path:
        raise OSError(errno.EINVAL, "not a relative path", path)
    if path.startswith(b"/"):
        raise OSError(errno.EXDEV, "an absolute path leaves the directory", path)
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise OSError(errno.EXDEV, "the path may leave the directory", path)
    return parts


@functools.cache
def _openat2_prototype() -> Callable[..., int]:
    return _syscall(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)


def _openat2(dirfd: int, path: bytes, flags: int, mode: int) -> int:
    how = _OpenHow(flags, mode, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    function = _openat2_prototype()
    for attempt in range(16):
        try:
            return _call(function, _NR_OPENAT2, dirfd, path, ctypes.byref(how), 24, name=path)
        except OSError as exc:
            # The kernel says EAGAIN when a rename ran while it walked: it could not be sure.
            if exc.errno != errno.EAGAIN or attempt == 15:
                raise
    raise AssertionError("unreachable")


@functools.cache
def has_openat2() -> bool:
    """Older kernels lack it, and some container filters refuse it with EPERM."""
    if not IS_LINUX:
        return False
    try:
        os.close(_openat2(AT_FDCWD, b".", os.O_RDONLY | os.O_DIRECTORY | O_CLOEXEC, 0))
    except OSError as exc:
        return exc.errno not in (errno.ENOSYS, errno.EPERM)
    return True


def _open_by_component(dirfd: int, path: bytes, flags: int, mode: int) -> int:
    parts = _components(path)
    if path.endswith((b"/", b"/.")):
        flags |= os.O_DIRECTORY
    through = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | O_CLOEXEC
    with contextlib.ExitStack() as opened:
        here = dirfd
        for part in parts[:-1]:
            try:
                here = os.open(part, through, dir_fd=here)
            except NotADirectoryError as exc:
                if stat.S_ISLNK(os.lstat(part, dir_fd=here).st_mode):
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path) from exc
                raise
            opened.callback(os.close, here)
        last = parts[-1] if parts else b"."
        return os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=here)


def open_beneath(dirfd: int, path: bytes, flags: int, mode: int = 0) -> int:
    """Open `path` below `dirfd` following no symbolic link anywhere; O_CLOEXEC is added.

    ELOOP: a component is a link. EXDEV: the path is absolute or has `..`, even a harmless one.
    A FIFO blocks unless O_NONBLOCK is given.
    """
    if sys.platform == "win32":
        _linux_only()
    _components(path)
    flags |= O_CLOEXEC
    if not flags & (os.O_CREAT | getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY):
        mode = 0  # openat2 refuses a mode that would have no effect
    if has_openat2():
        return _openat2(dirfd, path, flags, mode & 0o7777)
    return _open_by_component(dirfd, path, flags, mode)


def _renameat2(olddir: int, old: bytes, newdir: int, new: bytes, flags: int) -> None:
    _linux_only()
    if hasattr(_libc, "renameat2"):
        function = _bound(
            "renameat2",
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_uint,
        )
        _call(function, olddir, old, newdir, new, flags, name=new)
        return
    number = _NR_RENAMEAT2.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), new)
    function = _syscall(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    _call(function, number, olddir, old, newdir, new, flags, name=new)


def rename_noreplace(olddir: int, old: bytes, newdir: int, new: bytes) -> None:
    """EEXIST when `new` is taken. EINVAL or ENOSYS: this file system or kernel cannot."""
    _renameat2(olddir, old, newdir, new, _RENAME_NOREPLACE)


def rename_exchange(olddir: int, old: bytes, newdir: int, new: bytes) -> None:
    """Swap two names that both exist, at once. EINVAL or ENOSYS: cannot here."""
    _renameat2(olddir, old, newdir, new, _RENAME_EXCHANGE)


def link_fd(fd: int, dirfd: int, name: bytes) -> None:
    """Give an O_TMPFILE (opened without O_EXCL) its first name; EEXIST when it is taken."""
    _linux_only()
    # Only with dst_dir_fd does Python call linkat with AT_SYMLINK_FOLLOW; else it links the link.
    os.link(b"/proc/self/fd/%d" % fd, name, dst_dir_fd=dirfd, follow_symlinks=True)


# --- bytes on disk -------------------------------------------------------------------------


def syncfs(fd: int) -> None:
    """Sync the whole file system of `fd`. Reports write errors that came after `fd` was opened."""
    _call(_bound("syncfs", ctypes.c_int), fd)


def start_writing(fd: int, offset: int, length: int) -> None:
    """Let the kernel begin to write these bytes to the disk, so that the fsync later waits less.

    A hint and no more: where it cannot be followed, or the disk fails, it is the fsync that tells.
    """
    if hasattr(_libc, "sync_file_range"):
        types = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
        with contextlib.suppress(OSError):
            _call(_bound("sync_file_range", *types), fd, offset, length, _SYNC_FILE_RANGE_WRITE)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    _linux_only()
    name = "fallocate64" if hasattr(_libc, "fallocate64") else "fallocate"
    function = _bound(name, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    _call(function, fd, mode, offset, length)


def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the room of these bytes back; they read as zeros and the size stays."""
    _fallocate(fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)


def reserve(fd: int, offset: int, length: int, *, keep_size: bool = False) -> None:
    """Room for these bytes now or ENOSPC. EOPNOTSUPP: the file system cannot promise.

    ENOSPC comes after the file has taken what there was: compare with the free room first, and
    close (or truncate) the file at once. Not posix_fallocate: it writes zeros where it cannot.
    """
    if length:
        _fallocate(fd, _FALLOC_FL_KEEP_SIZE if keep_size else 0, offset, length)


def data_extents(fd: int, size: int, *, limit: int = MAX_EXTENTS) -> list[tuple[int, int]]:
    """(offset, length) of what is not a hole, in order; the file offset is left as it was.

    After `limit` pieces, and where holes cannot be asked for, the rest counts as data.
    """
    extents: list[tuple[int, int]] = []
    if size <= 0:
        return extents
    before = os.lseek(fd, 0, os.SEEK_CUR)
    end = 0
    try:
        while end < size:
            start = os.lseek(fd, end, os.SEEK_DATA)
            if start >= size:
                break
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
            if len(extents) == limit - 1:
                end = size
            extents.append((start, end - start))
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            return [(0, size)]
        if exc.errno != errno.ENXIO:  # ENXIO: nothing but a hole from here on
            raise
    finally:
        os.lseek(fd, before, os.SEEK_SET)
    return extents


def is_immutable(fd: int) -> bool:
    """Immutable or append-only: such a file can neither be renamed nor removed."""
    _linux_only()
    try:
        raw = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, b"\0" * ctypes.sizeof(ctypes.c_long))
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return False
        raise
    # The kernel writes an int whatever the call number says.
    flags: int = struct.unpack("@i", raw[:4])[0]
    return bool(flags & (_FS_IMMUTABLE_FL | _FS_APPEND_FL))


# --- leases and their signals --------------------------------------------------------------


def set_lease(fd: int) -> None:
    """Take a read lease. EAGAIN: somebody has the file open for writing. EACCES: not ours."""
    _linux_only()
    fcntl.fcntl(fd, _F_SETLEASE, _F_RDLCK)


def has_lease(fd: int) -> bool:
    """False also from the moment on when somebody waits for it to be broken."""
    _linux_only()
    return fcntl.fcntl(fd, _F_GETLEASE) == _F_RDLCK


def unset_lease(fd: int) -> None:
    """Let go; nothing happens without a lease (EAGAIN from the kernel)."""
    _linux_only()
    try:
        fcntl.fcntl(fd, _F_SETLEASE, _F_UNLCK)
    except BlockingIOError:
        return


def set_lease_signal(fd: int, signum: int, tid: int | None = None) -> None:
    """Which signal tells of a break, and which thread gets it (None: the process).

    To be set before the lease: the default SIGIO would end the process.
    """
    _linux_only()
    fcntl.fcntl(fd, _F_SETSIG, signum)
    if tid is not None:
        fcntl.fcntl(fd, _F_SETOWN_EX, struct.pack("@ii", _F_OWNER_TID, tid))


class SignalRecord(NamedTuple):
    signum: int
    fd: int  # the descriptor that it is about, when F_SETSIG named the signal; else 0


def signalfd(signals: Iterable[int]) -> int:
    """A non-blocking descriptor on which blocked signals of the reading thread are read."""
    function = _bound("signalfd", ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    bits = ctypes.sizeof(ctypes.c_ulong) * 8
    words = (ctypes.c_ulong * (1024 // bits))()  # sigset_t of the C library: 1,024 signals
    for signum in signals:
        words[(signum - 1) // bits] |= 1 << ((signum - 1) % bits)
    return _call(function, -1, ctypes.byref(words), _SFD_FLAGS)


def read_signals(fd: int, limit: int = 64) -> list[SignalRecord]:
    """What is pending now, at most `limit`; empty when nothing is."""
    try:
        raw = os.read(fd, _SIGNAL_RECORD * limit)
    except BlockingIOError:
        return []
    records = []
    for at in range(0, len(raw), _SIGNAL_RECORD):
        (signum,) = struct.unpack_from("@I", raw, at)
        (about,) = struct.unpack_from("@i", raw, at + _SIGNAL_FD_AT)
        records.append(SignalRecord(signum, about))
    return records


# --- opens of files --------------------------------------------------------------------------


def inotify() -> int:
    """A non-blocking descriptor on which events of watched directories are read."""
    return _call(_bound("inotify_init1", ctypes.c_int), os.O_NONBLOCK | O_CLOEXEC)


def inotify_watch(fd: int, path: bytes, mask: int) -> int:
    """The number of the watch; that of before when the directory is watched already."""
    function = _bound("inotify_add_watch", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)
    return _call(function, fd, path, mask, name=path)


def inotify_unwatch(fd: int, watch: int) -> None:
    """EINVAL when the kernel took it away already."""
    _call(_bound("inotify_rm_watch", ctypes.c_int, ctypes.c_int), fd, watch)


# --- file systems --------------------------------------------------------------------------


class FileSystem(enum.StrEnum):
    EXT4 = "ext4"  # and ext2, ext3: one magic number
    XFS = "xfs"
    BTRFS = "btrfs"
    TMPFS = "tmpfs"
    RAMFS = "ramfs"
    OVERLAY = "overlay"
    NFS = "nfs"
    CIFS = "cifs"
    FUSE = "fuse"
    NETWORK = "network"  # Ceph, AFS, Lustre, 9p and the like
    OTHER = "other"


_MAGIC = {
    0xEF53: FileSystem.EXT4,
    0x58465342: FileSystem.XFS,
    0x9123683E: FileSystem.BTRFS,
    0x01021994: FileSystem.TMPFS,
    0x858458F6: FileSystem.RAMFS,
    0x794C7630: FileSystem.OVERLAY,
    0x6969: FileSystem.NFS,
    0x517B: FileSystem.CIFS,
    0xFF534D42: FileSystem.CIFS,
    0xFE534D42: FileSystem.CIFS,
    0x65735546: FileSystem.FUSE,
    0x01021997: FileSystem.NETWORK,  # 9p
    0x00C36400: FileSystem.NETWORK,  # Ceph
    0x5346414F: FileSystem.NETWORK,  # AFS
    0x6B414653: FileSystem.NETWORK,  # kAFS
    0x73757245: FileSystem.NETWORK,  # Coda
    0x0BD00BD0: FileSystem.NETWORK,  # Lustre
    0x47504653: FileSystem.NETWORK,  # GPFS
    0x786F4256: FileSystem.NETWORK,  # VirtualBox shared folder
}


def file_system(where: str | bytes | Path | int) -> FileSystem:
    """The kind of file system that a path or an open descriptor lies on."""
    _linux_only()
    buffer = ctypes.create_string_buffer(512)  # struct statfs is 120 bytes; its type comes first
    if isinstance(where, int):
        _call(_bound("fstatfs", ctypes.c_int, ctypes.c_void_p), where, buffer)
    else:
        path = os.fsencode(where)
        _call(_bound("statfs", ctypes.c_char_p, ctypes.c_void_p), path, buffer, name=path)
    (magic,) = struct.unpack_from("@l", buffer)
    return _MAGIC.get(magic & 0xFFFFFFFF, FileSystem.OTHER)


def mount_id(fd: int) -> int:
    """Changes when the file system is mounted anew, even at the same place (0: not known).

    From Linux 6.8 on never used twice; before, a number may come back.
    """
    try:
        function = _bound(
            "statx",
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_void_p,
        )
    except OSError:
        return 0
    buffer = ctypes.create_string_buffer(256)
    _call(function, fd, b"", _AT_EMPTY_PATH, _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE, buffer)
    (mask,) = struct.unpack_from("@I", buffer)
    if not mask & (_STATX_MNT_ID | _STATX_MNT_ID_UNIQUE):
        return 0
    (number,) = struct.unpack_from("@Q", buffer, _STATX_MNT_ID_AT)
    return int(number)


# --- the process and its neighbours --------------------------------------------------------


def idle_io() -> bool:
    """The calling thread reads only when nobody else wants the disk; False where that cannot be."""
    number = _NR_IOPRIO_SET.get(platform.machine())
    if not IS_LINUX or number is None:
        return False
    call = _syscall(ctypes.c_int, ctypes.c_int, ctypes.c_int)
    return call(number, _IOPRIO_WHO_PROCESS, 0, _IOPRIO_IDLE) == 0


def keep_freed_memory(size: int, arenas: int) -> bool:
    """Let the allocator keep `size` bytes of what is freed in each of so many arenas; False: not
    with this libc. By default it gives every larger piece back to the kernel at once, and a
    pipeline of windows pays for fresh pages, zeroed one by one, at each of them."""
    mallopt = getattr(_libc, "mallopt", None) if IS_LINUX else None
    if mallopt is None:
        return False
    chosen = ((_M_ARENA_MAX, arenas), (_M_TRIM_THRESHOLD, size), (_M_MMAP_THRESHOLD, size))
    return all(mallopt(option, value) for option, value in chosen)


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one; the limit that holds now."""
    _linux_only()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft


def _listening(port: int) -> Iterator[bytes]:
    """Inodes of TCP sockets that listen on the port and of UDP sockets bound to it."""
    for name, states in (("tcp", b"0A"), ("tcp6", b"0A"), ("udp", b"07"), ("udp6", b"07")):
        with contextlib.suppress(OSError), open(f"/proc/net/{name}", "rb") as table:
            for line in table:
                fields = line.split()
                if len(fields) < 10 or b":" not in fields[1]:
                    continue
                if int(fields[1].rsplit(b":", 1)[1], 16) == port and fields[3] == states:
                    yield fields[9]


def leave_no_core() -> None:
    """From now on no crash of this process writes its memory, keys and words included, to a disk.

    A limit of one byte: with 0 the kernel still pipes the core to a program such as
    systemd-coredump (do_coredump in fs/coredump.c).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def socket_owner(port: int) -> tuple[str, int] | None:
    """(program, pid) of who listens on a local port; None when it is not ours to see."""
    if not IS_LINUX:
        return None
    wanted = {b"socket:[%s]" % inode for inode in _listening(port)}
    if not wanted:
        return None
    for name in os.listdir(b"/proc"):
        if not name.isdigit():
            continue
        try:
            for number in os.listdir(b"/proc/%s/fd" % name):
                if os.readlink(b"/proc/%s/fd/%s" % (name, number)) in wanted:
                    comm = Path(f"/proc/{int(name)}/comm").read_text(errors="replace")
                    return comm.strip(), int(name)
        except OSError:
            continue  # another user's process, or one that just ended
    return None
