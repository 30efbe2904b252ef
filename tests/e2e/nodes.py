"""A node as its user has it: a process of its own, typed at through the command line.

Nothing here sleeps for a fixed time: `until` looks again and again, up to a deadline that a busy
machine needs and a test that passes never waits for.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, TypeVar

from p2pstore.cli.client import RunningNode
from p2pstore.node import confirm_words, init_home
from tests.e2e import warm

T = TypeVar("T")

CHECKOUT = Path(__file__).parents[2]
READY_S = 30.0
COMMAND_S = 60.0
POLL_S = 0.02
SETTLE = "300ms"
WARM = warm.Warm()
BEGUN: set[str] = set()  # commands that this process has typed


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    raw: bytes  # stdout as it came

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def until(
    look: Callable[[], T],
    what: str,
    timeout_s: float = 20.0,
    tell: Callable[[], object] = lambda: "",
) -> T:
    """Return the first true answer of `look`; fail naming `what` when none came in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:.0f} s. {tell()}")
        time.sleep(POLL_S)


class Node:
    """One HOME and, between `start` and `stop`, the process that runs on it."""

    def __init__(self, base: Path, name: str = "laptop", **settings: str) -> None:
        self.name = name
        self.base = base
        self.home = base / name
        self.process: subprocess.Popen[bytes] | warm.Process | None = None
        self.log_path = base / f"{name}.log"
        self.out_path = base / f"{name}.out"
        self.listen = "127.0.0.1:0"
        self.ui = "127.0.0.1:0"
        self.mdns = False  # tests that run at once must not meet
        own = base / f"{name}-user"
        for directory in ("home", "run", "tmp"):
            (own / directory).mkdir(parents=True, mode=0o700)
        self.env = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            "LANG": "C.UTF-8",
            "HOME": os.fspath(own / "home"),
            "XDG_RUNTIME_DIR": os.fspath(own / "run"),
            "TMPDIR": os.fspath(own / "tmp"),
            "PYTHONPATH": os.fspath(CHECKOUT),
            "P2PSTORE_SETTLE": SETTLE,
            "P2PSTORE_TRASH_HOLD": "1s",
            "P2PSTORE_KEEP_FREE": "10MB",
            # Where the tests' directory is a tmpfs the behaviour is to be the same.
            "P2PSTORE_ALLOW_VOLATILE_STORE": "true",
            **{f"P2PSTORE_{key.upper()}": value for key, value in settings.items()},
        }

    # -- typing -----------------------------------------------------------------------------------

    def command(self, *args: str | bytes | Path) -> list[str | bytes | Path]:
        return [sys.executable, "-m", "p2pstore", "--home", self.home, *args]

    def type(
        self, *args: str | bytes | Path, stdin: str = "", timeout_s: float = COMMAND_S
    ) -> Done:
        """Run one command to its end."""
        with TemporaryFile() as typed, TemporaryFile() as out, TemporaryFile() as err:
            typed.write(stdin.encode())
            typed.seek(0)
            process = self._begin(args, stdin=typed, stdout=out, stderr=err)
            try:
                code = process.wait(timeout_s)
            except BaseException:
                process.kill()
                process.wait()
                raise
            out.seek(0)
            err.seek(0)
            raw = out.read()
            return Done(code, os.fsdecode(raw), os.fsdecode(err.read()), raw)

    def _begin(
        self,
        args: Sequence[str | bytes | Path],
        *,
        stdin: IO[Any],
        stdout: IO[Any],
        stderr: IO[Any],
    ) -> subprocess.Popen[bytes] | warm.Process:
        """The first of each command loads all that it needs by itself, as its user's does."""
        if str(args[0]) in BEGUN and type(self).command is Node.command:
            typed = ["--home", self.home, *args]
            return WARM.run(
                typed, env=self.env, cwd=self.base, stdin=stdin, stdout=stdout, stderr=stderr
            )
        BEGUN.add(str(args[0]))
        return subprocess.Popen(
            self.command(*args),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=self.env,
            cwd=self.base,
        )

    def ok(self, *args: str | bytes | Path, stdin: str = "") -> Done:
        """Run one command that has to succeed."""
        done = self.type(*args, stdin=stdin)
        assert done.code == 0, (
            f"{args}: exit {done.code}\n{done.out}\n{done.err}\n{self.log[-3000:]}"
        )
        return done

    def spawn(
        self, *args: str | bytes | Path, stdin: int | IO[bytes] = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Begin a command and leave it at work."""
        return subprocess.Popen(
            self.command(*args),
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env,
            cwd=self.base,
        )

    # -- life -------------------------------------------------------------------------------------

    def init(self) -> str:
        """Make the identity, with confirmed words; returns them.

        What `init` does, without its process: a hundred tests begin with it.
        """
        words = init_home(self.home, self.name, now=time.time())
        confirm_words(self.home, words)
        return words

    def start(self, *options: str) -> Node:
        assert self.process is None, "it runs already"
        quiet = () if self.mdns else ("--no-mdns",)
        args = ("run", "--listen", self.listen, "--ui", self.ui, *quiet, *options)
        with (
            open(os.devnull, "rb") as nothing,
            open(self.out_path, "wb") as out,
            open(self.log_path, "ab") as log,
        ):
            self.process = self._begin(args, stdin=nothing, stdout=out, stderr=log)
        until(self._is_ready, f"{self.name} ready", READY_S, tell=lambda: self.log)
        return self

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended: {self.log}"
        if b"Access at: " not in self.out_path.read_bytes() and self.ui != "off":
            return False
        try:
            self.call("status")
        except Exception:  # whatever is not there yet
            return False
        return True

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 20.0) -> int:
        """Signal the process and return its exit code."""
        process, self.process = self.process, None
        assert process is not None, "it does not run"
        process.send_signal(number)
        try:
            return process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()

    def kill(self) -> None:
        self.stop(signal.SIGKILL)

    def restart(self) -> Node:
        self.stop()
        return self.start()

    def close(self) -> None:
        """End it whatever it does; for fixtures."""
        if self.process is not None:
            process, self.process = self.process, None
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # -- looking ----------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="backslashreplace") if self.log_path.exists() else ""

    @property
    def access(self) -> str:
        """The URL that `run` printed."""
        found = re.search(r"Access at: (\S+)", self.out_path.read_text())
        assert found is not None
        return found[1]

    def call(self, method: str, **args: object) -> Any:
        """Ask the node without starting a process; for waiting, not for claims about the CLI."""
        path = os.fsdecode((self.home / "control").read_bytes().rstrip(b"\n"))
        return RunningNode(Path(path)).call(method, **args)

    def status(self) -> dict[str, Any]:
        said: dict[str, Any] = self.call("status", paths=[])
        return said

    def folder(self, path: Path) -> dict[str, Any]:
        rows = [row for row in self.status()["folders"] if row["path"] == os.fspath(path)]
        assert rows, f"{path} is not watched"
        row: dict[str, Any] = rows[0]
        return row

    def state(self, path: Path | bytes) -> dict[str, Any]:
        """The line of `status PATH` of one file."""
        asked = os.fsdecode(path)
        lines: list[dict[str, Any]] = self.call("status", paths=[asked])["files"]
        return lines[0]

    def port(self) -> int:
        return int(self.status()["node"]["listen"].rpartition(":")[2])

    # -- waiting ----------------------------------------------------------------------------------

    def add(self, folder: Path, *options: str) -> Done:
        """Watch a folder and wait until all of it is replaced or has a reason to stay."""
        return self.ok("add-folder", folder, "--yes", "--wait", *options)

    def wait_replaced(self, *paths: Path | bytes) -> None:
        """Until each of these is a placeholder alone."""

        def all_are() -> bool:
            return all(
                not os.path.lexists(path) and os.path.lexists(os.fsencode(path) + b".f")
                for path in paths
            )

        until(all_are, f"replaced {paths}", tell=lambda: [self.state(path) for path in paths])

    def wait_state(self, path: Path | bytes, *states: str) -> dict[str, Any]:
        """Until `status PATH` tells one of these states."""
        return until(
            lambda: line if (line := self.state(path))["state"] in states else {},
            f"{path!r} in {states}",
            tell=lambda: self.state(path),
        )

    def wait_rows(self, folder: Path, **wanted: object) -> dict[str, Any]:
        """Until the folder's row of `status` has these values."""
        return until(
            lambda: (
                row
                if all((row := self.folder(folder)).get(k) == v for k, v in wanted.items())
                else {}
            ),
            f"{folder} with {wanted}",
            tell=lambda: self.folder(folder),
        )

    def wait_trash_empty(self, timeout_s: float = 30.0) -> None:
        until(
            lambda: self.status()["space"]["trash_bytes"] == 0, "trash empty", timeout_s=timeout_s
        )

    def wait_connected(self, *others: Node, timeout_s: float = 20.0) -> None:
        """Until links to all of these stand."""
        names = {other.name for other in others}

        def linked() -> bool:
            peers = self.call("peers")["peers"]
            return names <= {peer["name"] for peer in peers if peer["connected"]}

        until(
            linked, f"{self.name} connected to {names}", timeout_s, tell=lambda: self.call("peers")
        )


def join(inviter: Node, joiner: Node, *, start: bool = True) -> None:
    """Let `joiner` into the group of `inviter`, as the two owners would."""
    link = inviter.ok("invite", "--yes").out.strip()
    joiner.ok("join", "-", "--name", joiner.name, stdin=link + "\n")
    if start:
        joiner.start()
        inviter.wait_connected(joiner)


def write(folder: Path, files: Iterable[tuple[str, bytes]]) -> dict[str, bytes]:
    """Write files below a folder; returns what was written."""
    written = {}
    for name, content in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        written[name] = content
    return written


def files_below(folder: Path) -> list[Path]:
    """What is p2pstore's own among them; directories may go while this looks."""
    return [Path(place) / name for place, _, files in os.walk(folder) for name in files]


def contents_of(paths: Iterable[Path]) -> list[bytes]:
    """Of those that are still there when their turn comes: a node that runs may move some."""
    found = []
    for path in paths:
        with suppress(FileNotFoundError):
            if path.is_file():
                found.append(path.read_bytes())
    return found


def some_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress and differ from seed to seed."""
    import hashlib

    return hashlib.shake_256(f"p2pstore tests {seed}".encode()).digest(size)


def is_one_sentence(done: Done) -> bool:
    """Whether stderr tells one thing, without a traceback."""
    lines = [line for line in done.err.splitlines() if line.strip()]
    return len(lines) == 1 and "Traceback" not in done.err


def names(folder: Path) -> list[str]:
    """The visible names in a folder, without what is p2pstore's own."""
    return sorted(name for name in os.listdir(folder) if name != ".p2pstore")


__all__: Sequence[str] = [
    "CHECKOUT",
    "Done",
    "Node",
    "contents_of",
    "files_below",
    "is_one_sentence",
    "join",
    "names",
    "some_bytes",
    "until",
    "write",
]
