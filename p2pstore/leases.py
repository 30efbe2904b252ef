"""Read leases on people's files: proof that nobody writes, and word in time when somebody will.

Hides how the kernel tells of a break: a real-time signal that carries the descriptor, read from a
signalfd in the keeper's own thread; a plain SIGIO when the signal queue was full, after which every
lease is asked. The signals are addressed to the keeper's thread, so no other thread can be hit by
them; `block_signals` is the second net.

What a break means for the file (abort, rename back, let go) is the business of `on_break`.
Facts and reasons: SAFETY.md, section 2 and step 2 of section 3.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType

from p2pstore import syscalls
from p2pstore.errors import Busy, P2PStoreError, Unavailable

log = logging.getLogger(__name__)

MOST_LEASES = 8_192
SPARE_DESCRIPTORS = 512  # sockets, bundles, the catalog: never taken for leases
DESCRIPTORS_PER_FILE = 2  # the leased file itself and its new `.f`

_REASONS = {errno.EAGAIN: "writer", errno.EACCES: "owner", errno.EPERM: "owner"}
_UNSUPPORTED = frozenset(
    (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.ENOTTY)
)


class Refused(P2PStoreError):
    """No lease on this file.

    "writer": somebody has it open for writing, try later. "owner": it belongs to another user.
    "unsupported": this file system or kind of file has no leases.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"no read lease: {reason}")
        self.reason = reason


def lease_signal() -> int:
    """Not the first real-time signal: debuggers and C libraries are fond of that one."""
    return int(signal.SIGRTMIN) + 7


def lease_budget() -> int:
    """How many files may be leased at once under the descriptor limit that holds now."""
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(0, min(MOST_LEASES, (soft - SPARE_DESCRIPTORS) // DESCRIPTORS_PER_FILE))


class _Held:
    __slots__ = ("on_break", "told")

    def __init__(self, on_break: Callable[[], None]) -> None:
        self.on_break = on_break
        self.told = False


class LeaseKeeper:
    """Takes and gives back leases from any thread; calls back in its own.

    A descriptor is to be released before it is closed: a closed number is soon somebody else's.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = lease_budget() if budget is None else budget
        self._held: dict[int, _Held] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._tid = 0  # the kernel's number of the thread
        self._ident = 0  # and Python's
        self._signum = 0
        self._wake = -1
        self._current: tuple[int, _Held] | None = None

    @staticmethod
    def block_signals() -> None:
        """To be called in the main thread before any other thread starts; they inherit it."""
        if sys.platform == "linux":
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO, lease_signal()})

    def start(self) -> None:
        """Start the thread; Unavailable on systems without leases."""
        if sys.platform != "linux":
            raise Unavailable("Files can be replaced on Linux only: other systems have no leases.")
        if self._thread is not None:
            return
        self._signum = lease_signal()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        ready = threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(ready,), name="p2pstore-leases", daemon=True
        )
        self._thread.start()
        ready.wait()

    def close(self) -> None:
        """Let go of every lease, without calling back, and end the thread."""
        if self._thread is None:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        self._thread = None
        os.close(self._wake)
        with self._lock:
            for fd in self._held:
                _unset_quietly(fd)
            self._held.clear()

    def __enter__(self) -> LeaseKeeper:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def taken(self) -> int:
        return len(self._held)

    def take(self, fd: int, on_break: Callable[[], None]) -> None:
        """A read lease on `fd`, which is open read-only. Refused, or Busy beyond the budget.

        `on_break` is called once, in the keeper's thread, when somebody opens the file for writing
        or truncates it; that program waits until `release`, so `on_break` is quick, never waits for
        a thread that may itself wait, and has released when it returns. It may still come when a
        break crosses a `release`.
        """
        if self._thread is None:
            raise Unavailable("The keeper of leases is not running.")
        with self._lock:
            if len(self._held) >= self.budget:
                raise Busy(f"{self.budget} files are leased already; try again later.")
            # Under the lock up to the end: the keeper must not judge a lease that is half taken.
            try:
                syscalls.set_lease_signal(fd, self._signum, self._tid)
                syscalls.set_lease(fd)
            except OSError as exc:
                if exc.errno in _REASONS:
                    raise Refused(_REASONS[exc.errno]) from exc
                if exc.errno in _UNSUPPORTED:
                    raise Refused("unsupported") from exc
                raise
            self._held[fd] = _Held(on_break)

    def held(self, fd: int) -> bool:
        """Whether the lease is whole: false from the moment on when a writer waits."""
        return fd in self._held and _is_whole(fd)

    def release(self, fd: int) -> None:
        """Let go; whoever waits for the file goes on. Nothing happens when it is not held."""
        with self._lock:
            held = self._held.get(fd)
            if held is None:
                return
            current = self._current
            if (
                current is not None
                and current[0] == fd
                and current[1] is not held
                and threading.get_ident() == self._ident
            ):
                return  # a late callback: the number belongs to another file by now
            del self._held[fd]
            _unset_quietly(fd)

    # --- the keeper's thread -------------------------------------------------------------------

    def _run(self, ready: threading.Event) -> None:
        signals = {signal.SIGIO, self._signum}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        self._tid = threading.get_native_id()
        self._ident = threading.get_ident()
        signal_fd = syscalls.signalfd(signals)
        try:
            ready.set()
            poll = select.poll()
            poll.register(signal_fd, select.POLLIN)
            poll.register(self._wake, select.POLLIN)
            while True:
                events = dict(poll.poll())
                if signal_fd in events:
                    self._signalled(syscalls.read_signals(signal_fd))
                if self._wake in events:
                    return
        finally:
            ready.set()
            os.close(signal_fd)

    def _signalled(self, records: list[syscalls.SignalRecord]) -> None:
        if any(record.signum == signal.SIGIO for record in records):
            # The queue of real-time signals was full: which leases are broken is to be asked.
            suspects = list(self._held)
        else:
            suspects = [record.fd for record in records]
        for fd in suspects:
            self._tell_if_broken(fd)

    def _tell_if_broken(self, fd: int) -> None:
        with self._lock:
            held = self._held.get(fd)
            # A signal may be older than the lease that this number stands for now.
            if held is None or held.told or _is_whole(fd):
                return
            held.told = True
            self._current = (fd, held)
        try:
            held.on_break()
        except Exception:
            # The lease stays: letting go while the file lies elsewhere would lose what is
            # written next. The kernel breaks it after /proc/sys/fs/lease-break-time.
            log.exception("A break of a lease could not be handled; its opener waits.")
        finally:
            with self._lock:
                self._current = None


def _is_whole(fd: int) -> bool:
    try:
        return syscalls.has_lease(fd)
    except OSError:
        return False


def _unset_quietly(fd: int) -> None:
    try:
        syscalls.unset_lease(fd)
    except OSError as exc:
        if exc.errno != errno.EBADF:  # closed already, and the lease went with it
            raise
