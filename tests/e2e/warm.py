"""A Python that has the program loaded, and forks for each command.

What it forks are real processes, with arguments, environment, directory, descriptors and an exit
code of their own; they only need not load, each anew, what the one before has loaded: a fifth of a
second for a command, most of a second for a node, a thousand times.

    python -m tests.e2e.warm FD      the server; it ends when the other end of its socket is closed

    request     {"argv", "env", "cwd"} as JSON, with the descriptors of stdin, stdout, stderr and of
                a pipe
    the pipe    the number of the process, then how it ended (as `waitstatus_to_exitcode` says it);
                4 bytes each

The first of each command that a test process types is no fork of it: see `Node`.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import pkgutil
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, Any

CHECKOUT = Path(__file__).parents[2]
MAX_REQUEST = 128 * 1024
NUMBER = struct.Struct("=i")


class Process:
    """What of `subprocess.Popen` the tests use."""

    def __init__(self, report: int) -> None:
        self._report = report
        self.returncode: int | None = None
        self.pid = NUMBER.unpack(os.read(report, NUMBER.size))[0]

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return code

    def _look(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], timeout)[0]:
            self.returncode = NUMBER.unpack(os.read(self._report, NUMBER.size))[0]
            os.close(self._report)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """The server of this test process, started when it is first needed."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def run(
        self,
        argv: Sequence[str | bytes | Path],
        *,
        env: Mapping[str, str],
        cwd: Path,
        stdin: IO[Any],
        stdout: IO[Any],
        stderr: IO[Any],
    ) -> Process:
        """Begin `p2pstore` with these arguments."""
        if self._socket is None:
            self._socket = self._begin()
        arguments = [os.fsdecode(one) for one in argv]
        request = {"argv": arguments, "env": dict(env), "cwd": os.fspath(cwd)}
        report, its_end = os.pipe()
        try:
            fds = [stdin.fileno(), stdout.fileno(), stderr.fileno(), its_end]
            socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
        finally:
            os.close(its_end)
        return Process(report)

    def _begin(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.warm", str(its.fileno())],
                cwd=CHECKOUT,
                env={**os.environ, "LANG": "C.UTF-8", "PYTHONPATH": os.fspath(CHECKOUT)},
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
            )

        def end() -> None:
            ours.close()
            server.wait(10)

        atexit.register(end)
        return ours


# -- the server ------------------------------------------------------------------------------------


def _load() -> None:
    for name in ("p2pstore.__main__", "p2pstore.node", "p2pstore.http", "p2pstore.api.client"):
        import_module(name)
    commands = import_module("p2pstore.cli")
    for module in pkgutil.iter_modules(commands.__path__, "p2pstore.cli."):
        import_module(module.name)
    gc.freeze()


def _serve(connection: socket.socket) -> None:
    """Returns in each child, which is the command from there on."""
    reports: dict[int, int] = {}
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    while True:
        ready, _, _ = select.select([connection, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            _reap(reports)
        if connection not in ready:
            continue
        message, fds, _, _ = socket.recv_fds(connection, MAX_REQUEST, 4)
        if not message:
            sys.exit()
        pid = os.fork()
        if pid == 0:
            for fd in (ended, wake, *reports.values()):
                os.close(fd)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            connection.close()
            _become(json.loads(message), fds)
            return
        *streams, reports[pid] = fds
        os.write(reports[pid], NUMBER.pack(pid))
        for fd in streams:
            os.close(fd)


def _reap(reports: dict[int, int]) -> None:
    while reports:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        report = reports.pop(pid)
        try:
            os.write(report, NUMBER.pack(os.waitstatus_to_exitcode(status)))
        except BrokenPipeError:
            pass  # nobody waits for it any more
        finally:
            os.close(report)


def _become(request: dict[str, Any], fds: Sequence[int]) -> None:
    for number, fd in enumerate(fds[:3]):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv = ["p2pstore", *request["argv"]]


if __name__ == "__main__":
    _load()
    with socket.socket(fileno=int(sys.argv[1])) as theirs:
        _serve(theirs)
    import_module("p2pstore.__main__").main()
