"""Where the node's HOME and its control socket are, and what its errors mean.

Only the standard library: the command line must start quickly.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from p2pstore import errors

SYSTEM_SOCKET = Path("/run/p2pstore/control.sock")
MAX_LINE = 256 << 20  # a line of `status` with a million paths; more is no answer of ours
CONNECT_S = 5.0


def is_home_chosen(option: str | Path | None, env: Mapping[str, str]) -> bool:
    return bool(option or env.get("P2PSTORE_HOME"))


def home_path(option: str | Path | None, env: Mapping[str, str]) -> Path:
    """HOME: as told, else P2PSTORE_HOME, else the platform's directory for users' data."""
    chosen = option or env.get("P2PSTORE_HOME")
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    import platformdirs

    return Path(platformdirs.user_data_dir("p2pstore", appauthor=False))


def find_socket(home: Path, *, try_system: bool) -> Path | None:
    """Return the control socket of the node on HOME, or of the system service, if one answers."""
    candidates = []
    with contextlib.suppress(OSError):
        candidates.append(Path(os.fsdecode((home / "control").read_bytes().rstrip(b"\n"))))
    if try_system:
        candidates.append(SYSTEM_SOCKET)
    return next((path for path in candidates if _answers(path, home)), None)


def _answers(path: Path, home: Path) -> bool:
    try:
        # Somebody else's socket would be told our words and links.
        owners = {0, os.getuid()} | ({home.stat().st_uid} if home.exists() else set())
        if path.stat().st_uid not in owners:
            return False
        with connected(path):
            return True
    except OSError:
        return False


def connected(path: Path) -> socket.socket:
    """A connection to the socket, waiting without end; OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(CONNECT_S)
        sock.connect(os.fspath(path))
        sock.settimeout(None)  # a restore may take hours; Ctrl-C ends the waiting
    except BaseException:
        sock.close()
        raise
    return sock


def error_from(error: Mapping[str, Any]) -> errors.P2PStoreError:
    """Return the exception for an error object of the control API."""
    kinds: dict[int, type[errors.P2PStoreError]] = {
        2: errors.UsageError,
        3: errors.FormatError,
        4: errors.IntegrityError,
        5: errors.Unavailable,
        6: errors.NotRunning,
    }
    code = error.get("code")
    kind = kinds.get(code if isinstance(code, int) else 1, errors.P2PStoreError)
    return kind(str(error.get("message", "The node gave no reason.")))


def not_running() -> errors.NotRunning:
    return errors.NotRunning(
        "The node is not running. Start it: p2pstore service install (always) or p2pstore run (now)"
    )
