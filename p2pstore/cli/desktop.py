"""The desktop knows `.f`: its MIME type, and `p2pstore open` as what a double click does.

A `.f` may as well be Fortran. Name and first bytes decide together: both types claim `*.f` with the
same weight, so the desktop looks inside, and only a file that begins as a placeholder does is ours.
The magic alone would not do: of `photo.jpg.f` the name would say Fortran, and the name wins.

Everything goes below XDG_DATA_HOME and is removed again; tools that refresh the desktop's caches
are run where they exist.
"""

from __future__ import annotations

import os
import re
import subprocess
from importlib import resources
from pathlib import Path

from p2pstore.errors import UsageError
from p2pstore.sandbox import program

MIME_FILE = "p2pstore.xml"
ENTRY_FILE = "p2pstore-open.desktop"
REFRESH_TIMEOUT_S = 60
_PLAIN = re.compile(r"[A-Za-z0-9_./-]+")


def install() -> str:
    """Write the MIME type and the handler; returns what to tell the user, a sentence a line."""
    target = _data_home()
    mime, entry = _files(target)
    for path, text in ((mime, _packaged(MIME_FILE)), (entry, entry_text())):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    said = [f"Wrote {mime}", f"Wrote {entry}", *_refresh(target, "A double click opens a .f now.")]
    return "\n".join(said)


def remove() -> str:
    """Take back what `install` wrote; returns what to tell the user."""
    target = _data_home()
    present = [path for path in _files(target) if path.exists()]
    if not present:
        return "The desktop entries are not installed."
    for path in present:
        path.unlink()
    refreshed = _refresh(target, "The desktop no longer knows .f files.")
    return "\n".join([*(f"Removed {path}" for path in present), *refreshed])


def entry_text() -> str:
    """The .desktop file with the program's real path in Exec."""
    command = " ".join(_quoted(word) for word in [*program(), "open"])
    lines = [
        f"Exec={command} %f" if line.startswith("Exec=") else line
        for line in _packaged(ENTRY_FILE).splitlines()
    ]
    return "\n".join(lines) + "\n"


def _packaged(name: str) -> str:
    return resources.files("p2pstore").joinpath("data", name).read_text("utf-8")


def _data_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")


def _files(target: Path) -> tuple[Path, Path]:
    return target / "mime" / "packages" / MIME_FILE, target / "applications" / ENTRY_FILE


def _quoted(word: str) -> str:
    """One word of Exec: quoted, then escaped once more as any string of a desktop entry is.

    A plain word stays as it is: xdg-open, where there is no desktop, looks for a program whose name
    has the quotes in it.
    """
    if _PLAIN.fullmatch(word):
        return word
    if any(not sign.isprintable() for sign in word):
        raise UsageError(f"A desktop entry cannot name the program {word!r}; install it elsewhere.")
    for sign in ("\\", '"', "`", "$"):
        word = word.replace(sign, f"\\{sign}")
    return '"' + word.replace("\\", "\\\\").replace("%", "%%") + '"'


def _refresh(target: Path, done: str) -> list[str]:
    said = [done]
    for tool, place in (
        ("update-mime-database", target / "mime"),
        ("update-desktop-database", target / "applications"),
    ):
        try:
            ran = subprocess.run(
                [tool, os.fspath(place)],
                capture_output=True,
                timeout=REFRESH_TIMEOUT_S,
                check=False,
            )
        except FileNotFoundError:
            said.append(f"{tool} is not installed; the desktop may notice only after a new login.")
        except subprocess.TimeoutExpired:
            said.append(f"{tool} did not come back; run it again: {tool} {place}")
        else:
            if ran.returncode:
                said.append(f"{tool} failed; run it by hand to see why: {tool} {place}")
    return said
