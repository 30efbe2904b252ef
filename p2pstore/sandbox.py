"""The border that systemd draws around the system's service, and how the owner widens it.

The system unit makes everything read-only but HOME and the directories that were allowed. A write
elsewhere fails with EROFS, as on a disk that is read-only; only there is the remedy another one.
"""

from __future__ import annotations

import errno
import os
import shlex
import sys
from pathlib import Path

RUNTIME = "/run/p2pstore"  # what RuntimeDirectory= of the system unit makes; nobody else has it


def program() -> list[str]:
    """How the installed program is started: its script, or this interpreter with the module."""
    script = Path(sys.executable).parent / "p2pstore"
    if script.is_file() and os.access(script, os.X_OK):
        return [os.fspath(script)]
    return [sys.executable, "-m", "p2pstore"]


def as_root() -> str:
    """The program as root types it: in full, since its place is not in root's PATH."""
    return f"sudo {shlex.join(program())}"


def is_sandboxed() -> bool:
    """Whether this process is the system's service."""
    return os.environ.get("RUNTIME_DIRECTORY", "").startswith(RUNTIME)


def remedy(place: Path, exc: OSError) -> str | None:
    """The command that lets the service write below `place`; None when that would not help.

    Of a path that does not exist the nearest directory above it is meant.
    """
    if exc.errno != errno.EROFS or not is_sandboxed():
        return None
    place = place.absolute()
    while not place.is_dir():
        place = place.parent
    return f"{as_root()} service allow {shlex.quote(os.fspath(place))} --system"


def cannot_write(path: Path | str, exc: OSError, *, place: Path | None = None) -> str:
    """Why `path` cannot be written, and the remedy; `place`: what to allow, if not `path`."""
    said = f"{os.fspath(path)} cannot be written ({exc.strerror})."
    allow = remedy(place or Path(path), exc)
    return said if allow is None else f"{said} The service is not allowed to: {allow}"


def unseen(path: Path) -> str:
    """What to add to "is not there" where the service sees another directory of that name."""
    own = ("/tmp", "/var/tmp")  # PrivateTmp=
    if not is_sandboxed() or not any(path.is_relative_to(place) for place in own):
        return ""
    return " for the service, which has a /tmp of its own; choose another place"
