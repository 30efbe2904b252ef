"""Where the control socket lies, and how it is bound safely.

A socket path is limited to 107 bytes and HOME may be deeper than that, so the socket lies in a
directory of its own (0700, ours, no link) below XDG_RUNTIME_DIR or else the temporary directory,
and is named by a hash of HOME. Its path stands in HOME/control. A system service gets
/run/p2pstore from systemd (RUNTIME_DIRECTORY), where everybody's command line looks.
"""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from p2pstore.errors import HomeLocked, UsageError

MAX_SOCKET_PATH = 107  # sun_path has 108 bytes, the last one is NUL


def socket_path(home: Path, env: Mapping[str, str]) -> Path:
    """Return the socket's path for HOME, in a directory that exists and is ours alone."""
    service = env.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if service.startswith("/run/p2pstore"):
        return Path(service) / "control.sock"
    name = blake3(os.fsencode(home.resolve())).hexdigest()[:16] + ".sock"
    bases = [
        base
        for base in (env.get("XDG_RUNTIME_DIR"), env.get("TMPDIR"), tempfile.gettempdir())
        if base
    ]
    for base in [*bases, "/tmp"]:
        directory = _directory_below(Path(base), runtime=base == env.get("XDG_RUNTIME_DIR"))
        if len(os.fsencode(directory / name)) <= MAX_SOCKET_PATH and _exists(directory.parent):
            _make_private(directory)
            return directory / name
    raise UsageError("No directory for the control socket: set XDG_RUNTIME_DIR to a short path.")


def _directory_below(base: Path, *, runtime: bool) -> Path:
    # The temporary directory is everybody's: another user must not be able to take our name.
    return base / ("p2pstore" if runtime else f"p2pstore-{os.getuid()}")


def _exists(directory: Path) -> bool:
    return directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)


def _make_private(directory: Path) -> None:
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UsageError(
            f"{directory} is not a directory of yours; remove it, or set XDG_RUNTIME_DIR."
        )
    if found.st_mode & 0o077:
        directory.chmod(0o700)


def bind_socket(path: Path) -> socket.socket:
    """Return a listening socket at `path`; a left-over one of a dead node is replaced."""
    if path.exists() and _answers(path):
        raise HomeLocked("Another node already runs on this HOME; p2pstore status shows it.")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(64)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(os.fspath(path))
        except OSError:
            return False
    return True


def announce(home: Path, path: Path) -> None:
    """Write the socket's path into HOME/control, atomically."""
    fresh = home / "control.new"
    fresh.write_bytes(os.fsencode(path) + b"\n")
    fresh.replace(home / "control")


def withdraw(home: Path, path: Path) -> None:
    """Remove the socket and HOME/control; harmless when they are gone."""
    path.unlink(missing_ok=True)
    (home / "control").unlink(missing_ok=True)
