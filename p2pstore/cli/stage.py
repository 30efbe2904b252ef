"""Where the demo plays: a place on disk, three homes, real processes, and a folder worth storing.

Nothing of it touches the user's own node: settings come from each home's config.toml alone,
variables named P2PSTORE_* are kept from the processes, the network has a name of its own and lies
on the loopback. Whatever ends the demo ends its processes: they are told, waited for and killed,
and the kernel tells them when the demo itself was killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NamedTuple, TypeVar

from p2pstore import config
from p2pstore.api import find_socket
from p2pstore.cli.client import RunningNode
from p2pstore.content import HEADER_SIZE, Kind, decode_header
from p2pstore.errors import NoRoom, P2PStoreError, Unavailable
from p2pstore.filesystems import is_volatile
from p2pstore.syscalls import FileSystem, file_system

T = TypeVar("T")

ROOM = 2_000_000_000  # three stores of the folder, the folder itself, and some air
START_S = 30.0
STOP_S = 12.0  # a node ends within 10
COMMAND_S = 120.0
POLL_S = 0.05
PIECE = 1 << 20
_PR_SET_PDEATHSIG = 1
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "__pycache__"})


class DemoFailed(P2PStoreError):
    """Something did not come out as the demo promises."""


# -- a place --------------------------------------------------------------------------------------


def find_place() -> Path:
    """TMPDIR, unless it lies in memory or is too small; else beside the checkout, or here."""
    checkout = Path(__file__).resolve().parents[2]
    beside = [checkout.parent] if (checkout / "Makefile").exists() else []
    places = [Path(tempfile.gettempdir()), *beside, Path.cwd()]
    for place in places:
        if _free(place) >= ROOM and not _in_memory(place):
            return place
    tried = ", ".join(dict.fromkeys(map(str, places)))
    raise NoRoom(
        f"The demo needs {config.format_size(ROOM)} on a disk and found them in none of {tried}. "
        "Name a directory: TMPDIR=/some/where p2pstore demo"
    )


def _free(place: Path) -> int:
    try:
        usage = os.statvfs(place)
    except OSError:
        return 0
    return usage.f_bavail * usage.f_frsize if os.access(place, os.W_OK | os.X_OK) else 0


def _in_memory(place: Path) -> bool:
    return file_system(place) in (FileSystem.TMPFS, FileSystem.RAMFS)


# -- a folder -------------------------------------------------------------------------------------


class Print(NamedTuple):
    """What must be the same afterwards."""

    sha256: str
    size: int
    mtime_ns: int
    mode: int


Prints = dict[str, Print]


def make_folder(folder: Path, *, big: int, library: Path | None = None) -> Prints:
    """Fill `folder` with a library's files and one of `big` bytes; path -> what it is."""
    prints: Prints = {}
    folder.mkdir(parents=True)
    source = library or Path(sysconfig.get_path("stdlib"))
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in _regular_files(source, _NOT_LIBRARY):
        relative = os.path.join(name, os.path.relpath(path, source))
        with contextlib.suppress(OSError):  # what may not be read is no part of the demo
            prints[relative] = _copy(path, folder / relative)
    with open(folder / "usr-lib.tar", "xb") as file:
        _write_tar(file, big)
    prints["usr-lib.tar"] = _print(folder / "usr-lib.tar")
    return prints


def prints_of(folder: Path) -> Prints:
    """What lies in a folder now; the store's own directory is left out."""
    return {
        os.path.relpath(path, folder): _print(path)
        for path in _regular_files(str(folder), frozenset({".p2pstore"}))
    }


def _regular_files(root: str | Path, without: frozenset[str]) -> Iterator[str]:
    """In one order everywhere; links are not followed."""
    for directory, below, names in os.walk(root):
        below[:] = sorted(name for name in below if name not in without)
        for name in sorted(names):
            path = os.path.join(directory, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path


def _copy(source: str, target: Path) -> Print:
    with open(source, "rb") as file:
        found, content = os.fstat(file.fileno()), file.read()
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(found.st_mode) & 0o777
    target.write_bytes(content)
    os.chmod(target, mode | stat.S_IWUSR)
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
    return _print(target)


def _print(path: str | Path) -> Print:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        found = os.fstat(file.fileno())
    return Print(digest, found.st_size, found.st_mtime_ns, stat.S_IMODE(found.st_mode))


class _Full(Exception):
    pass


class _Cut:
    """A file that is full after `limit` bytes."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file = file
        self._left = limit

    def tell(self) -> int:
        return self._file.tell()

    def write(self, content: bytes) -> int:
        self._file.write(content[: self._left])
        self._left -= min(self._left, len(content))
        if not self._left:
            raise _Full
        return len(content)


def _write_tar(file: BinaryIO, size: int) -> None:
    """The first `size` bytes of a tar of /usr/lib; where that is too small, bytes from a seed."""
    cut: Any = _Cut(file, size)
    with contextlib.suppress(_Full):
        # Not closed: the cut is what ends it.
        archive = tarfile.open(fileobj=cut, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115
        for path in _regular_files("/usr/lib", frozenset()):
            with contextlib.suppress(OSError), open(path, "rb") as member:
                archive.addfile(archive.gettarinfo(path), member)
        dice = random.Random(2026)
        while True:  # half of it compresses, as with most folders
            cut.write(dice.randbytes(PIECE // 2) + bytes(PIECE // 2))


# -- processes ------------------------------------------------------------------------------------


class Member:
    """A home, its node's process and its command line."""

    def __init__(self, base: Path, name: str, network: str) -> None:
        self.name = name
        self.home = base / name
        self._log = base / f"{name}.log"
        self._base = base
        self._process: subprocess.Popen[bytes] | None = None
        self.home.mkdir(mode=0o700)
        settings: dict[str, object] = {
            "name": name,
            "network": network,
            "listen": "127.0.0.1:0",
            "ui": "off",
            "mdns": False,
            "settle": "1s",
            "trash_hold": "1s",
            "keep_free": "64MB",
            "offer": "1GB",
        }
        if is_volatile(base):  # a container's own layer: good enough for a minute
            settings["allow_volatile_store"] = True
        config.save(self.home, settings)

    @property
    def node(self) -> RunningNode:
        socket = find_socket(self.home, try_system=False)
        if socket is None:
            raise self._failure(f"The node {self.name} ended by itself")
        return RunningNode(socket)

    def command(self, *words: str, given: str = "", quiet: bool = False) -> str:
        """Run one command line; its progress goes to our stderr. Returns its stdout."""
        process: subprocess.Popen[bytes] | None = None
        try:
            with _whole():
                process = _spawn(
                    self._command(*(["--quiet"] if quiet else []), *words),
                    cwd=self._base,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE if quiet else None,
                )
            out, err = process.communicate(given.encode(), timeout=COMMAND_S)
        except subprocess.TimeoutExpired:
            sentence = f"p2pstore {' '.join(words)} did not end within {COMMAND_S:.0f} s"
            raise self._failure(sentence) from None
        finally:
            if process is not None:
                process.kill()
                process.communicate()
        said = out.decode(errors="replace").rstrip()
        if process.returncode:
            said += (err or b"").decode(errors="replace").rstrip()
            raise self._failure(f"p2pstore {' '.join(words)} ended with {process.returncode}", said)
        return said

    def start(self) -> None:
        """Start the node; `wait_started` before it is used."""
        with open(self._log, "ab") as log, _whole():
            self._process = _spawn(
                self._command("run"), cwd=self._base, stdin=subprocess.DEVNULL, stdout=log,
                stderr=log,
            )  # fmt: skip

    def wait_started(self) -> None:
        def answers() -> bool | None:
            if self._process is None or self._process.poll() is not None:
                raise self._failure(f"The node {self.name} did not start")
            return find_socket(self.home, try_system=False) is not None or None

        until(f"{self.name} runs", answers, START_S)

    def tell_end(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def wait_end(self) -> None:
        """Wait for the end, and force it when it does not come."""
        if self._process is None:
            return
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise self._failure(f"The node {self.name} did not end when told to") from None
        self._process = None
        if code not in (0, -signal.SIGTERM):  # it may be told before it listens to signals
            raise self._failure(f"The node {self.name} ended with {code}")

    def kill(self) -> None:
        """End at once; for homes that nobody needs any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "p2pstore", "--home", str(self.home), *words]

    def _failure(self, sentence: str, said: str = "") -> DemoFailed:
        lines = [f"{sentence}.", *said.splitlines()]
        with contextlib.suppress(OSError):
            log = self._log.read_text(errors="replace").splitlines()[-15:]
            lines += ["Its log ends with:", *log] if log else []
        return DemoFailed("\n    ".join(lines))

    # -- what lies in the home

    def store_bytes(self) -> dict[Kind, int]:
        """Bytes of the local store's bundle files by their kind, as the disk has them."""
        found = {Kind.DATA: 0, Kind.META: 0}
        for path in (self.home / "bundles").rglob("*.bundle"):
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                header = decode_header(file.read(HEADER_SIZE))
                found[Kind(header.kind)] += os.fstat(file.fileno()).st_size
        return found

    def held_bytes(self) -> int:
        """Bytes of the bundles kept for the others."""
        return sum(path.stat().st_size for path in (self.home / "held").rglob("*.bundle"))

    def lose_catalog(self) -> list[str]:
        """Remove the catalog as a broken disk would; return the names."""
        gone = sorted(self.home.glob("catalog.sqlite*"))
        for path in gone:
            path.unlink()
        return [path.name for path in gone]


class PictureHost:
    """A host of pictures, in a process of its own."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self._pictures = base / "pictures"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> str:
        """Where pictures are posted to."""
        module = "p2pstore.cli.picturehost"
        command = [sys.executable, "-m", module, "--dir", os.fspath(self._pictures)]
        with _whole():
            process = self._process = _spawn(
                command, cwd=self._base, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
        assert process.stdout is not None
        address = process.stdout.readline().decode().strip()
        if not address.startswith("http"):
            raise DemoFailed("The host of pictures did not start.")
        return f"{address}/upload"

    def count(self) -> int:
        return sum(1 for _ in self._pictures.rglob("*.png"))

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@contextlib.contextmanager
def _whole() -> Iterator[None]:
    """Ctrl-C waits for the end of it: what was started is known to whom it has to end."""
    came: list[int] = []

    def note(signum: int, frame: FrameType | None) -> None:
        came.append(signum)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def _spawn(command: Sequence[str], **how: Any) -> subprocess.Popen[bytes]:
    """A process in a session of its own: Ctrl-C is for the demo, which then ends the others."""
    with warnings.catch_warnings():
        # One system call, prepared beforehand: threads of ours cannot deadlock it.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(
            command, env=_environment(), start_new_session=True, preexec_fn=_end_with_us, **how
        )


_libc = ctypes.CDLL(None, use_errno=True)


def _end_with_us() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment() -> Mapping[str, str]:
    ours = ("P2PSTORE_", "NOTIFY_SOCKET", "WATCHDOG_", "JOURNAL_STREAM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    # The very modules that this process runs, installed or not.
    paths = [path or os.getcwd() for path in sys.path]
    checkout = str(Path(__file__).resolve().parents[2])
    return {**kept, "PYTHONPATH": os.pathsep.join([*paths, checkout])}


def until(what: str, ready: Callable[[], T | None], timeout_s: float) -> T:
    """Ask until there is an answer; Unavailable when there is none in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = ready()
        if answer is not None:
            return answer
        if time.monotonic() > deadline:
            raise Unavailable(f"This did not come true within {timeout_s:.0f} s: {what}.")
        time.sleep(POLL_S)
