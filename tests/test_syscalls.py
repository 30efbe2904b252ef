from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pstore import syscalls
from p2pstore.errors import Unavailable
from p2pstore.syscalls import FileSystem

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux system calls")

EXT4_IOC_SHUTDOWN = 0x8004587D
EXT4_GOING_FLAGS_NOLOGFLUSH = 2


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(params=["openat2", "by component"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "openat2" and not syscalls.has_openat2():
        pytest.skip("this kernel has no openat2")
    monkeypatch.setattr(syscalls, "has_openat2", lambda: request.param == "openat2")


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


# --- open_beneath --------------------------------------------------------------------------


@pytest.mark.usefixtures("both_ways")
class TestOpenBeneath:
    def test_opens_what_lies_below(self, tmp_path: Path, directory: int) -> None:
        put(tmp_path / "a" / "b" / "c", b"inside")
        fd = syscalls.open_beneath(directory, b"a/b/c", os.O_RDONLY)
        assert os.read(fd, 100) == b"inside"
        assert not os.get_inheritable(fd)
        os.close(fd)

    @pytest.mark.parametrize("path", [b".", b"./", b"a/."])
    def test_opens_directories(self, tmp_path: Path, directory: int, path: bytes) -> None:
        (tmp_path / "a").mkdir()
        fd = syscalls.open_beneath(directory, path, os.O_RDONLY | os.O_DIRECTORY)
        assert stat.S_ISDIR(os.fstat(fd).st_mode)
        os.close(fd)

    def test_creates_with_the_mode(self, tmp_path: Path, directory: int) -> None:
        os.close(syscalls.open_beneath(directory, b"new", os.O_WRONLY | os.O_CREAT, 0o600))
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600

    def test_mode_without_creation_is_no_error(self, tmp_path: Path, directory: int) -> None:
        put(tmp_path / "a")
        os.close(syscalls.open_beneath(directory, b"a", os.O_RDONLY, 0o644))

    def test_unnamed_file_gets_its_mode(self, directory: int) -> None:
        fd = syscalls.open_beneath(directory, b".", os.O_TMPFILE | os.O_RDWR, 0o640)
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
        os.close(fd)

    @pytest.mark.parametrize("path", [b"link", b"linked/file", b"a/up/a/file", b"dangling"])
    def test_follows_no_link_anywhere(self, tmp_path: Path, directory: int, path: bytes) -> None:
        put(tmp_path / "a" / "file")
        (tmp_path / "link").symlink_to("a/file")
        (tmp_path / "linked").symlink_to("a")
        (tmp_path / "a" / "up").symlink_to("..")
        (tmp_path / "dangling").symlink_to("nowhere")
        with pytest.raises(OSError) as caught:
            syscalls.open_beneath(directory, path, os.O_RDONLY)
        assert caught.value.errno == errno.ELOOP

    def test_creates_nothing_through_a_link(self, tmp_path: Path, directory: int) -> None:
        (tmp_path / "dangling").symlink_to("made")
        with pytest.raises(OSError) as caught:
            syscalls.open_beneath(directory, b"dangling", os.O_WRONLY | os.O_CREAT, 0o600)
        assert caught.value.errno == errno.ELOOP
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize(
        "path", [b"/etc/passwd", b"..", b"../x", b"a/../../x", b"a/..", b"a/../a/file"]
    )
    def test_refuses_to_leave(self, tmp_path: Path, directory: int, path: bytes) -> None:
        put(tmp_path / "a" / "file")
        with pytest.raises(OSError) as caught:
            syscalls.open_beneath(directory, path, os.O_RDONLY)
        assert caught.value.errno == errno.EXDEV

    @pytest.mark.parametrize("path", [b"", b"a\0b"])
    def test_refuses_what_is_no_path(self, directory: int, path: bytes) -> None:
        with pytest.raises(OSError) as caught:
            syscalls.open_beneath(directory, path, os.O_RDONLY)
        assert caught.value.errno == errno.EINVAL

    def test_missing_and_not_a_directory(self, tmp_path: Path, directory: int) -> None:
        put(tmp_path / "file")
        with pytest.raises(FileNotFoundError):
            syscalls.open_beneath(directory, b"a/b", os.O_RDONLY)
        with pytest.raises(NotADirectoryError):
            syscalls.open_beneath(directory, b"file/b", os.O_RDONLY)
        with pytest.raises(NotADirectoryError):
            syscalls.open_beneath(directory, b"file/", os.O_RDONLY)

    def test_any_bytes_are_a_name(self, tmp_path: Path, directory: int) -> None:
        name = b"\xff\xfe\n" + b"n" * 252
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as out:
            out.write(b"odd")
        fd = syscalls.open_beneath(directory, name, os.O_RDONLY)
        assert os.read(fd, 10) == b"odd"
        os.close(fd)

    def test_leaves_no_descriptor_open(self, tmp_path: Path, directory: int) -> None:
        put(tmp_path / "a" / "b" / "c")
        before = len(os.listdir("/proc/self/fd"))
        for path in (b"a/b/c", b"a/b/none", b"a/none/c"):
            with contextlib.suppress(OSError):
                os.close(syscalls.open_beneath(directory, path, os.O_RDONLY))
        assert len(os.listdir("/proc/self/fd")) == before


# --- names ---------------------------------------------------------------------------------


def test_noreplace_moves_to_a_free_name(tmp_path: Path, directory: int) -> None:
    put(tmp_path / "a", b"1")
    syscalls.rename_noreplace(directory, b"a", directory, b"b")
    assert (tmp_path / "b").read_bytes() == b"1"


def test_noreplace_never_overwrites(tmp_path: Path, directory: int) -> None:
    put(tmp_path / "a", b"1")
    put(tmp_path / "b", b"2")
    with pytest.raises(FileExistsError):
        syscalls.rename_noreplace(directory, b"a", directory, b"b")
    assert (tmp_path / "a").read_bytes() == b"1"
    assert (tmp_path / "b").read_bytes() == b"2"


def test_noreplace_reports_a_missing_file(directory: int) -> None:
    with pytest.raises(FileNotFoundError):
        syscalls.rename_noreplace(directory, b"a", directory, b"b")


def test_renames_without_the_library_function(
    tmp_path: Path, directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "_libc", object())
    put(tmp_path / "a", b"1")
    put(tmp_path / "b", b"2")
    with pytest.raises(FileExistsError):
        syscalls.rename_noreplace(directory, b"a", directory, b"b")
    syscalls.rename_exchange(directory, b"a", directory, b"b")
    assert (tmp_path / "a").read_bytes() == b"2"


def test_unknown_machine_says_that_it_cannot(
    directory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syscalls, "_libc", object())
    monkeypatch.setattr(syscalls.platform, "machine", lambda: "abacus")
    with pytest.raises(OSError) as caught:
        syscalls.rename_noreplace(directory, b"a", directory, b"b")
    assert caught.value.errno == errno.ENOSYS


def test_exchange_swaps(tmp_path: Path, directory: int) -> None:
    put(tmp_path / "a", b"1")
    put(tmp_path / "b", b"2")
    syscalls.rename_exchange(directory, b"a", directory, b"b")
    assert (tmp_path / "a").read_bytes() == b"2"
    assert (tmp_path / "b").read_bytes() == b"1"


def test_unnamed_file_is_linked_once_and_never_over_another(tmp_path: Path, directory: int) -> None:
    put(tmp_path / "taken", b"theirs")
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"ours")
    with pytest.raises(FileExistsError):
        syscalls.link_fd(fd, directory, b"taken")
    syscalls.link_fd(fd, directory, b"free")
    os.close(fd)
    assert (tmp_path / "free").read_bytes() == b"ours"
    assert (tmp_path / "taken").read_bytes() == b"theirs"
    assert not (tmp_path / "free").is_symlink()


# --- bytes on disk -------------------------------------------------------------------------


def test_syncfs_accepts_a_directory_and_refuses_junk(directory: int) -> None:
    syscalls.syncfs(directory)
    with pytest.raises(OSError) as caught:
        syscalls.syncfs(-1)
    assert caught.value.errno == errno.EBADF


def test_punched_bytes_read_as_zeros_and_give_room(tmp_path: Path) -> None:
    path = put(tmp_path / "a", b"\x01" * (1 << 20))
    with path.open("r+b") as file:
        os.fsync(file.fileno())
        before = os.fstat(file.fileno()).st_blocks
        syscalls.punch_hole(file.fileno(), 65536, 131072)
        after = os.fstat(file.fileno())
    raw = path.read_bytes()
    assert raw == b"\x01" * 65536 + bytes(131072) + b"\x01" * ((1 << 20) - 196608)
    assert after.st_blocks < before


def test_reserve_takes_room_before_the_first_byte(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        syscalls.reserve(file.fileno(), 0, 1 << 20, keep_size=True)
        st = os.fstat(file.fileno())
        assert (st.st_size, st.st_blocks * 512 >= 1 << 20) == (0, True)
        syscalls.reserve(file.fileno(), 0, 1 << 20)
        assert os.fstat(file.fileno()).st_size == 1 << 20
        syscalls.reserve(file.fileno(), 0, 0)


def sparse(path: Path, pieces: list[tuple[int, int]], size: int) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.truncate(fd, size)
    for offset, length in pieces:
        os.pwrite(fd, b"d" * length, offset)
    os.fsync(fd)
    return fd


@pytest.mark.parametrize(
    ("pieces", "size"),
    [
        ([], 0),
        ([], 1 << 20),
        ([(0, 65536)], 65536),
        ([(0, 65536)], 1 << 20),
        ([(65536, 65536)], 1 << 20),
        ([(0, 65536), (262144, 65536)], 1 << 20),
        ([(1 << 19, 1 << 19)], 1 << 20),
    ],
)
def test_extents_are_what_is_not_a_hole(
    tmp_path: Path, pieces: list[tuple[int, int]], size: int
) -> None:
    fd = sparse(tmp_path / "a", pieces, size)
    os.lseek(fd, 3, os.SEEK_SET)
    assert syscalls.data_extents(fd, size) == pieces
    assert os.lseek(fd, 0, os.SEEK_CUR) == 3
    os.close(fd)


def test_too_many_extents_end_in_one_of_data(tmp_path: Path) -> None:
    fd = sparse(tmp_path / "a", [(i * 131072, 65536) for i in range(8)], 1 << 20)
    extents = syscalls.data_extents(fd, 1 << 20, limit=3)
    assert extents == [(0, 65536), (131072, 65536), (262144, (1 << 20) - 262144)]
    os.close(fd)


def test_extents_never_go_beyond_the_size_asked_for(tmp_path: Path) -> None:
    fd = sparse(tmp_path / "a", [(0, 1 << 20)], 1 << 20)
    assert syscalls.data_extents(fd, 1000) == [(0, 1000)]
    os.close(fd)


def test_ordinary_file_is_not_immutable(tmp_path: Path) -> None:
    with put(tmp_path / "a").open("rb") as file:
        assert not syscalls.is_immutable(file.fileno())


@pytest.mark.parametrize("letter", ["i", "a"])
def test_immutable_and_append_only_are_seen(tmp_path: Path, letter: str) -> None:
    path = put(tmp_path / "a")
    if shutil.which("chattr") is None:
        pytest.skip("no chattr here")
    if subprocess.run(["chattr", f"+{letter}", path], capture_output=True).returncode:
        pytest.skip("needs root and a file system with attributes")
    try:
        with path.open("rb") as file:
            assert syscalls.is_immutable(file.fileno())
    finally:
        subprocess.run(["chattr", f"-{letter}", path], check=True)


def test_what_has_no_flags_is_not_immutable() -> None:
    with open("/proc/self/status", "rb") as file:
        assert not syscalls.is_immutable(file.fileno())


# --- leases and signals --------------------------------------------------------------------


def test_lease_comes_and_goes(tmp_path: Path) -> None:
    with put(tmp_path / "a").open("rb") as file:
        fd = file.fileno()
        assert not syscalls.has_lease(fd)
        syscalls.set_lease_signal(fd, signal.SIGURG)
        syscalls.set_lease(fd)
        assert syscalls.has_lease(fd)
        syscalls.unset_lease(fd)
        assert not syscalls.has_lease(fd)
        syscalls.unset_lease(fd)


def test_no_lease_beside_a_writer(tmp_path: Path) -> None:
    path = put(tmp_path / "a")
    with path.open("r+b"), path.open("rb") as file, pytest.raises(BlockingIOError):
        syscalls.set_lease(file.fileno())


def test_signals_are_read_from_the_descriptor() -> None:
    wanted = {signal.SIGRTMIN + 5, signal.SIGURG}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    fd = syscalls.signalfd(wanted)
    try:
        assert syscalls.read_signals(fd) == []
        signal.raise_signal(signal.SIGRTMIN + 5)
        signal.raise_signal(signal.SIGRTMIN + 5)
        signal.raise_signal(signal.SIGURG)
        signums = [record.signum for record in syscalls.read_signals(fd)]
        assert sorted(signums) == sorted([signal.SIGURG] + [signal.SIGRTMIN + 5] * 2)
    finally:
        os.close(fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- file systems --------------------------------------------------------------------------


def test_kinds_of_file_systems(tmp_path: Path, directory: int) -> None:
    assert syscalls.file_system(directory) == syscalls.file_system(tmp_path)
    assert syscalls.file_system("/proc") is FileSystem.OTHER
    with pytest.raises(FileNotFoundError):
        syscalls.file_system(tmp_path / "none")


def test_kind_agrees_with_stat(tmp_path: Path) -> None:
    said = subprocess.run(
        ["stat", "-f", "-c", "%t", tmp_path], check=True, capture_output=True, text=True
    ).stdout.strip()
    expected = syscalls._MAGIC.get(int(said, 16), FileSystem.OTHER)
    assert syscalls.file_system(tmp_path) is expected


def test_mounts_differ(directory: int) -> None:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    here = syscalls.mount_id(directory)
    assert here == syscalls.mount_id(directory) > 0
    assert syscalls.mount_id(proc) != here
    os.close(proc)


# --- the process ---------------------------------------------------------------------------


def test_writing_is_started_and_nothing_is_said_where_it_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with open(path, "r+b") as file:
        syscalls.start_writing(file.fileno(), 0, 1 << 20)
    read, write = os.pipe()
    syscalls.start_writing(write, 0, 100)
    os.close(read)
    os.close(write)
    assert path.read_bytes() == bytes(1 << 20)


FAULTS = """
import resource, sys
from p2pstore.syscalls import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory(32 << 20, 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    pieces = [b"x" * 900_000 for _ in range(8)]
    del pieces
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libcs have no mallopt")
@pytest.mark.slow
def test_freed_memory_is_used_again() -> None:
    def faults(how: str) -> int:
        return int(subprocess.check_output([sys.executable, "-c", FAULTS, how]))

    assert faults("keep") * 5 < faults("give back")


def test_descriptor_limit_is_raised_to_the_hard_one() -> None:
    script = (
        "import resource; from p2pstore import syscalls\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "assert syscalls.raise_descriptor_limit() == hard\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=child_environment())


def test_owner_of_a_port_is_named() -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as bound:
            bound.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                bound.listen()
            owner = syscalls.socket_owner(bound.getsockname()[1])
            assert owner is not None
            assert owner[1] == os.getpid()


def test_free_port_has_no_owner() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    assert syscalls.socket_owner(port) is None


def test_elsewhere_everything_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, directory: int
) -> None:
    monkeypatch.setattr(syscalls, "IS_LINUX", False)
    syscalls._bound.cache_clear()
    for call in (
        lambda: syscalls.rename_noreplace(directory, b"a", directory, b"b"),
        lambda: syscalls.syncfs(directory),
        lambda: syscalls.link_fd(directory, directory, b"a"),
        lambda: syscalls.punch_hole(directory, 0, 1),
        lambda: syscalls.set_lease(directory),
        lambda: syscalls.signalfd([1]),
        lambda: syscalls.file_system(directory),
        lambda: syscalls.raise_descriptor_limit(),
    ):
        with pytest.raises(Unavailable):
            call()
    assert syscalls.socket_owner(1) is None


def test_can_be_imported_elsewhere() -> None:
    script = (
        "import sys; sys.platform = 'darwin'\n"
        "import p2pstore.syscalls, p2pstore.leases\n"
        "assert not p2pstore.syscalls.IS_LINUX\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=child_environment())


def child_environment() -> dict[str, str]:
    root = str(Path(syscalls.__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root}


# --- power cuts ----------------------------------------------------------------------------


@pytest.fixture
def loop_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A small ext4 on a loop device: (image, where it is mounted)."""
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("needs root and mkfs.ext4")
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
    if subprocess.run(["mount", "-o", "loop", image, mounted], capture_output=True).returncode:
        pytest.skip("loop devices cannot be mounted here")
    yield image, mounted
    subprocess.run(["umount", mounted], check=False, capture_output=True)


def cut_power(image: Path, mounted: Path) -> None:
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("@I", EXT4_GOING_FLAGS_NOLOGFLUSH))
    os.close(fd)
    subprocess.run(["umount", mounted], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)


@pytest.mark.root
@pytest.mark.slow
def test_syncfs_before_and_after_linking_survives_a_power_cut(
    loop_disk: tuple[Path, Path],
) -> None:
    image, mounted = loop_disk
    directory = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    kept = []
    for _ in range(20):
        fd = os.open(mounted, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"placeholder")
        kept.append(fd)
    syscalls.syncfs(directory)
    for index, fd in enumerate(kept):
        syscalls.link_fd(fd, directory, b"%d.f" % index)
        os.close(fd)
    syscalls.syncfs(directory)
    lost = os.open(mounted / "lost", os.O_CREAT | os.O_WRONLY, 0o600)
    os.write(lost, b"never synced")
    os.close(lost)
    os.close(directory)

    cut_power(image, mounted)

    assert not (mounted / "lost").exists()
    assert {(mounted / f"{index}.f").read_bytes() for index in range(20)} == {b"placeholder"}


@pytest.mark.root
@pytest.mark.slow
def test_reserve_reports_a_full_disk(loop_disk: tuple[Path, Path]) -> None:
    # Only ever on a disk of its own: ext4 takes all the room that there is before it says so.
    path = loop_disk[1] / "a"
    with path.open("wb") as file:
        with pytest.raises(OSError) as caught:
            syscalls.reserve(file.fileno(), 0, 64 << 20)
        assert caught.value.errno == errno.ENOSPC


@pytest.mark.root
@pytest.mark.slow
def test_mount_id_tells_a_remount(loop_disk: tuple[Path, Path]) -> None:
    image, mounted = loop_disk

    def identity() -> tuple[int, int]:
        fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
        try:
            return os.fstat(fd).st_ino, syscalls.mount_id(fd)
        finally:
            os.close(fd)

    before = identity()
    subprocess.run(["umount", mounted], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    after = identity()
    assert before[0] == after[0]
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    if (major, minor) >= (6, 8):
        assert before[1] != after[1]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of ioprio_get is x86_64's")
def test_a_thread_that_may_wait_gives_way_to_others_on_the_disk() -> None:
    get, idle = 252, 3 << 13

    def priority() -> int:
        return ctypes.CDLL(None).syscall(get, 1, 0)  # type: ignore[no-any-return]

    with ThreadPoolExecutor(1, initializer=syscalls.idle_io) as pool:
        assert pool.submit(priority).result() == idle
    assert priority() != idle, "of that thread only"


def test_a_crash_leaves_no_core() -> None:
    """In a process of its own: a hard limit never rises again."""
    script = (
        "import resource, sys; from p2pstore import __main__ as entry; "
        "entry.cli.main = lambda **_: 0\n"
        "try: entry.main()\n"
        "except SystemExit: print(*resource.getrlimit(resource.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.split() in ([b"1", b"1"], [b"0", b"0"])
