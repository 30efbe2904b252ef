from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from p2pstore import syscalls
from p2pstore.errors import Busy, Unavailable
from p2pstore.leases import LeaseKeeper, Refused, lease_budget, lease_signal

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="leases are of Linux")

LET_GO_S = 0.5  # the promise is 50 ms; a busy machine is given more


@pytest.fixture
def keeper() -> Iterator[LeaseKeeper]:
    with LeaseKeeper(budget=100) as running:
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"before")
    return path


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


class Other:
    """Another program, in a process of its own; it says `ready` before and `done` after."""

    def __init__(self, program: str, *arguments: object) -> None:
        script = (
            "import ctypes, mmap, os, sys, time\n"
            "def say(word): print(word, time.monotonic(), flush=True)\n"
            "def wait(): sys.stdin.readline()\n" + program
        )
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self, word: str) -> float:
        """When it was said, on the monotonic clock that all processes share."""
        assert self.process.stdout is not None
        said, at = self.process.stdout.readline().split()
        assert said == word
        return float(at)

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.process.stdout.close()


@pytest.fixture
def other() -> Iterator[Callable[..., Other]]:
    started: list[Other] = []

    def start(program: str, *arguments: object) -> Other:
        started.append(Other(program, *arguments))
        return started[-1]

    yield start
    for one in started:
        one.end()


WRITES = """
wait(); say("ready")
fd = os.open(sys.argv[1], os.O_WRONLY)
os.write(fd, b"after!"); os.close(fd)
say("done"); wait()
"""

TRUNCATES = """
wait(); say("ready")
os.truncate(sys.argv[1], 0)
say("done"); wait()
"""

HOLDS_OPEN = """
fd = os.open(sys.argv[1], os.O_RDWR)
say("ready"); wait()
os.close(fd)
say("done"); wait()
"""

MAPS_AND_CLOSES = """
fd = os.open(sys.argv[1], os.O_RDWR)
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
at = libc.mmap(None, 4096, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, fd, 0)
os.close(fd)
say("ready"); wait()
ctypes.memmove(at, b"mapped", 6)
libc.munmap(ctypes.c_void_p(at), ctypes.c_size_t(4096))
say("done"); wait()
"""

READS_AND_RENAMES = """
wait(); say("ready")
os.stat(sys.argv[1])
os.close(os.open(sys.argv[1], os.O_RDONLY))
os.rename(sys.argv[1], sys.argv[1] + ".moved")
os.rename(sys.argv[1] + ".moved", sys.argv[1])
say("done"); wait()
"""


# --- taking --------------------------------------------------------------------------------


def test_file_at_rest_is_leased(keeper: LeaseKeeper, fd: int) -> None:
    keeper.take(fd, lambda: None)
    assert keeper.held(fd)
    assert keeper.taken == 1
    keeper.release(fd)
    assert not keeper.held(fd)
    assert keeper.taken == 0


def test_release_of_nothing_is_nothing(keeper: LeaseKeeper, fd: int) -> None:
    keeper.release(fd)
    keeper.take(fd, lambda: None)
    keeper.release(fd)
    keeper.release(fd)


def test_open_writer_refuses(
    keeper: LeaseKeeper, path: Path, fd: int, other: Callable[..., Other]
) -> None:
    writer = other(HOLDS_OPEN, path)
    writer.hear("ready")
    with pytest.raises(Refused) as caught:
        keeper.take(fd, lambda: None)
    assert caught.value.reason == "writer"
    assert keeper.taken == 0
    writer.go_on()
    writer.hear("done")
    keeper.take(fd, lambda: None)


def test_writable_map_refuses_after_its_descriptor_is_closed(
    keeper: LeaseKeeper, path: Path, fd: int, other: Callable[..., Other]
) -> None:
    writer = other(MAPS_AND_CLOSES, path)
    writer.hear("ready")
    with pytest.raises(Refused) as caught:
        keeper.take(fd, lambda: None)
    assert caught.value.reason == "writer"
    writer.go_on()
    writer.hear("done")
    keeper.take(fd, lambda: None)
    assert path.read_bytes() == b"mapped"


def test_what_has_no_leases_refuses(keeper: LeaseKeeper) -> None:
    reading, writing = os.pipe()
    try:
        with pytest.raises(Refused) as caught:
            keeper.take(reading, lambda: None)
        assert caught.value.reason == "unsupported"
    finally:
        os.close(reading)
        os.close(writing)


def test_file_of_another_owner_refuses(path: Path) -> None:
    if os.geteuid() == 0:
        before = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
        path.chmod(0o644)
    else:
        before, path = "", Path("/etc/passwd")
    # The descriptor is handed over: the directory of the test is closed to other users.
    with path.open("rb") as file:
        script = (
            "import os\n"
            "from p2pstore.leases import LeaseKeeper, Refused\n"
            f"{before}\n"
            "with LeaseKeeper(budget=1) as keeper:\n"
            "    try:\n"
            f"        keeper.take({file.fileno()}, lambda: None)\n"
            "    except Refused as refused:\n"
            "        assert refused.reason == 'owner', refused\n"
            "    else:\n"
            "        raise SystemExit('was granted')\n"
        )
        root = str(Path(syscalls.__file__).parent.parent)
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            pass_fds=[file.fileno()],
            env={**os.environ, "PYTHONPATH": root},
        )


def test_bad_descriptor_is_a_bug_not_a_refusal(keeper: LeaseKeeper, path: Path) -> None:
    with path.open("rb") as file:
        closed = file.fileno()
    with pytest.raises(OSError):
        keeper.take(closed, lambda: None)


def test_budget_is_kept(path: Path) -> None:
    fds = [os.open(path, os.O_RDONLY) for _ in range(3)]
    with LeaseKeeper(budget=2) as keeper:
        keeper.take(fds[0], lambda: None)
        keeper.take(fds[1], lambda: None)
        with pytest.raises(Busy):
            keeper.take(fds[2], lambda: None)
        keeper.release(fds[0])
        keeper.take(fds[2], lambda: None)
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("soft", "budget"), [(0, 0), (512, 0), (514, 1), (1024, 256), (16896, 8192), (1 << 20, 8192)]
)
def test_budget_follows_the_descriptor_limit(
    monkeypatch: pytest.MonkeyPatch, soft: int, budget: int
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (soft, 1 << 20))
    assert lease_budget() == budget


def test_keeper_that_does_not_run_takes_nothing(fd: int) -> None:
    with pytest.raises(Unavailable):
        LeaseKeeper(budget=1).take(fd, lambda: None)


def test_close_lets_go_of_everything(fd: int) -> None:
    keeper = LeaseKeeper(budget=1)
    keeper.start()
    keeper.start()
    keeper.take(fd, lambda: None)
    keeper.close()
    keeper.close()
    assert not syscalls.has_lease(fd)


# --- breaking ------------------------------------------------------------------------------


@pytest.mark.parametrize("program", [WRITES, TRUNCATES], ids=["writes", "truncates"])
def test_blocked_opener_is_let_go_at_once(
    keeper: LeaseKeeper, path: Path, fd: int, other: Callable[..., Other], program: str
) -> None:
    seen: list[tuple[bool, bytes]] = []
    told = threading.Event()

    def on_break() -> None:
        seen.append((keeper.held(fd), path.read_bytes()))
        keeper.release(fd)
        told.set()

    writer = other(program, path)
    keeper.take(fd, on_break)
    writer.go_on()
    ready = writer.hear("ready")
    done = writer.hear("done")
    assert told.wait(10)
    assert done - ready < LET_GO_S
    # The writer was still waiting while we were told: nothing of its work was there.
    assert seen == [(False, b"before")]
    assert path.read_bytes() == {WRITES: b"after!", TRUNCATES: b""}[program]


def test_readers_and_renames_do_not_break(
    keeper: LeaseKeeper, path: Path, fd: int, other: Callable[..., Other]
) -> None:
    broken: list[int] = []
    reader = other(READS_AND_RENAMES, path)
    keeper.take(fd, lambda: broken.append(fd))
    reader.go_on()
    reader.hear("ready")
    reader.hear("done")
    assert keeper.held(fd)
    assert broken == []


def test_break_after_the_file_was_renamed_away_can_be_undone_before_the_writer_goes_on(
    keeper: LeaseKeeper, path: Path, fd: int, tmp_path: Path, other: Callable[..., Other]
) -> None:
    trash = tmp_path / "trash"
    opened = threading.Event()

    def on_break() -> None:
        opened.wait(10)  # the rename below comes while the writer already waits
        trash.rename(path)
        keeper.release(fd)

    writer = other(WRITES, path)
    keeper.take(fd, on_break)
    writer.go_on()
    writer.hear("ready")
    while keeper.held(fd):
        pass
    path.rename(trash)
    opened.set()
    writer.hear("done")
    assert path.read_bytes() == b"after!"
    assert not trash.exists()


def test_only_the_broken_file_is_told_of(
    keeper: LeaseKeeper, tmp_path: Path, other: Callable[..., Other]
) -> None:
    told: list[int] = []
    fds = []
    for index in range(20):
        (tmp_path / str(index)).write_bytes(b"x")
        fds.append(os.open(tmp_path / str(index), os.O_RDONLY))

    def on_break(fd: int) -> None:
        told.append(fd)
        keeper.release(fd)

    for fd in fds:
        keeper.take(fd, lambda fd=fd: on_break(fd))  # type: ignore[misc]
    writer = other(WRITES, tmp_path / "7")
    writer.go_on()
    writer.hear("ready")
    writer.hear("done")
    assert told == [fds[7]]
    assert [keeper.held(fd) for fd in fds].count(True) == 19
    for fd in fds:
        keeper.release(fd)
        os.close(fd)


def test_failing_callback_keeps_the_lease_and_the_keeper(
    keeper: LeaseKeeper,
    path: Path,
    fd: int,
    tmp_path: Path,
    other: Callable[..., Other],
    caplog: pytest.LogCaptureFixture,
) -> None:
    failed = threading.Event()

    def fails() -> None:
        failed.set()
        raise RuntimeError("bug")

    writer = other(WRITES, path)
    keeper.take(fd, fails)
    writer.go_on()
    writer.hear("ready")
    assert failed.wait(10)
    assert path.read_bytes() == b"before"

    second = tmp_path / "second"
    second.write_bytes(b"x")
    with second.open("rb") as file:
        keeper.take(file.fileno(), lambda: keeper.release(file.fileno()))
        another = other(WRITES, second)
        another.go_on()
        another.hear("ready")
        another.hear("done")
    assert "could not be handled" in caplog.text
    keeper.release(fd)
    writer.hear("done")


def test_full_signal_queue_loses_no_break(
    tmp_path: Path, other: Callable[..., Other], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the kernel does when the queue is full: a plain SIGIO that names no descriptor.
    real = syscalls.read_signals

    def nameless(fd: int, limit: int = 64) -> list[syscalls.SignalRecord]:
        return [syscalls.SignalRecord(signal.SIGIO, 0) for _ in real(fd, limit)]

    monkeypatch.setattr(syscalls, "read_signals", nameless)
    (tmp_path / "a").write_bytes(b"x")
    (tmp_path / "b").write_bytes(b"x")
    with (
        LeaseKeeper(budget=10) as keeper,
        (tmp_path / "a").open("rb") as a,
        (tmp_path / "b").open("rb") as b,
    ):
        keeper.take(a.fileno(), lambda: keeper.release(a.fileno()))
        keeper.take(b.fileno(), lambda: keeper.release(b.fileno()))
        writer = other(WRITES, tmp_path / "b")
        writer.go_on()
        writer.hear("ready")
        writer.hear("done")
        assert keeper.held(a.fileno())
        assert not keeper.held(b.fileno())


def test_real_overflow_of_the_queue(tmp_path: Path) -> None:
    # A process of its own: the limit of queued signals is lowered for its user.
    script = """
import os, resource, signal, subprocess, sys, threading
from p2pstore import syscalls
from p2pstore.leases import LeaseKeeper
LeaseKeeper.block_signals()
resource.setrlimit(resource.RLIMIT_SIGPENDING, (0, 0))
records = []
real = syscalls.read_signals
syscalls.read_signals = lambda fd, limit=64: records.extend(r := real(fd, limit)) or r
with LeaseKeeper(budget=8) as keeper:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    keeper.take(fd, lambda: keeper.release(fd))
    subprocess.run([sys.executable, "-S", "-c", "open(%r, 'r+b').close()" % sys.argv[1]],
                   check=True, timeout=20)
    assert not keeper.held(fd)
assert [r.signum for r in records] == [signal.SIGIO], records
"""
    (tmp_path / "a").write_bytes(b"x")
    root = str(Path(syscalls.__file__).parent.parent)
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "a"],
        check=True,
        env={**os.environ, "PYTHONPATH": root},
    )


def test_late_callback_does_not_let_go_of_the_next_file_with_its_number(
    keeper: LeaseKeeper, path: Path, tmp_path: Path, other: Callable[..., Other]
) -> None:
    (tmp_path / "next").write_bytes(b"x")
    fd = os.open(path, os.O_RDONLY)
    entered, reused, ended = threading.Event(), threading.Event(), threading.Event()

    def on_break() -> None:
        entered.set()
        reused.wait(10)
        keeper.release(fd)
        ended.set()

    writer = other(WRITES, path)
    keeper.take(fd, on_break)
    writer.go_on()
    assert entered.wait(10)
    keeper.release(fd)
    again = os.open(tmp_path / "next", os.O_RDONLY)
    os.dup2(again, fd, inheritable=False)
    keeper.take(fd, lambda: None)
    reused.set()
    assert ended.wait(10)
    assert keeper.held(fd)
    keeper.release(fd)
    os.close(fd)
    os.close(again)
    writer.hear("ready")
    writer.hear("done")


def test_threads_that_never_blocked_the_signal_are_not_hit(
    keeper: LeaseKeeper, path: Path, fd: int, other: Callable[..., Other]
) -> None:
    # Its default action would end this very process.
    over = threading.Event()
    bystander = threading.Thread(
        target=lambda: (
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {lease_signal(), signal.SIGIO}),
            over.wait(20),
        )
    )
    bystander.start()
    keeper.take(fd, lambda: keeper.release(fd))
    writer = other(WRITES, path)
    writer.go_on()
    writer.hear("ready")
    writer.hear("done")
    over.set()
    bystander.join()


def test_signals_are_blocked_in_the_thread_that_asks() -> None:
    masks: list[set[int]] = []

    def ask() -> None:
        LeaseKeeper.block_signals()
        masks.append({int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, [])})

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert masks[0] >= {int(signal.SIGIO), lease_signal()}


def test_lease_signal_is_not_one_that_the_c_library_keeps() -> None:
    libc = ctypes.CDLL(None)
    assert libc.__libc_current_sigrtmin() <= lease_signal() <= libc.__libc_current_sigrtmax()


def test_taking_and_releasing_is_cheap(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    rounds = 2_000
    with LeaseKeeper(budget=10) as keeper, path.open("rb") as file:
        fd = file.fileno()

        def ignore() -> None: ...

        began = time.thread_time()
        for _ in range(rounds):
            keeper.take(fd, ignore)
            keeper.release(fd)
        spent = time.thread_time() - began
    # 32,000 in 0.3 s are 9 us each; five times that still tells a wrong algorithm.
    assert spent / rounds < 50e-6
