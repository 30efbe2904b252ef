"""What the desktop makes of a `.f` that is ours, and of one that is Fortran."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from p2pstore.cli import desktop
from p2pstore.content import MAGIC

OURS = "application/x-p2pstore-placeholder"
PLACEHOLDER = MAGIC + b"1\nphoto.jpg, 3 MB\n" + bytes(range(256))
FORTRAN = b"      PROGRAM SOLVER\nC     a comment\n      PRINT *, 'p2pstore'\n      END\n"

needs_gio = pytest.mark.skipif(
    not (shutil.which("gio") and shutil.which("update-mime-database")),
    reason="gio or update-mime-database is not installed",
)


@pytest.fixture
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "my data"))
    return tmp_path / "my data"


def content_type(path: Path) -> str:
    told = subprocess.run(
        ["gio", "info", "-a", "standard::content-type", os.fspath(path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return told.rpartition("standard::content-type:")[2].split()[0]


@needs_gio
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("photo.jpg.f", PLACEHOLDER, OURS),
        ("notes.f", PLACEHOLDER, OURS),
        ("solver.f", FORTRAN, "text/x-fortran"),
        ("solver.f.f", PLACEHOLDER, OURS),
        ("other.txt", b"words\n", "text/plain"),
    ],
)
@pytest.mark.usefixtures("data_home")
def test_the_desktop_tells_a_placeholder_from_fortran(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    desktop.install()
    path = tmp_path / name
    path.write_bytes(content)
    assert content_type(path) == expected


@needs_gio
def test_after_removal_nothing_is_ours(tmp_path: Path, data_home: Path) -> None:
    desktop.install()
    desktop.remove()
    path = tmp_path / "photo.jpg.f"
    path.write_bytes(PLACEHOLDER)
    assert content_type(path) != OURS
    left = [x.name for x in data_home.rglob("*") if "p2pstore" in x.name]
    assert left == []


def test_install_twice_and_remove_twice(data_home: Path) -> None:
    desktop.install()
    desktop.install()
    assert (data_home / "mime" / "packages" / "p2pstore.xml").exists()
    desktop.remove()
    assert desktop.remove() == "The desktop entries are not installed."


def test_without_xdg_everything_goes_below_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    desktop.install()
    entry = tmp_path / ".local" / "share" / "applications" / "p2pstore-open.desktop"
    assert entry.exists()


def test_missing_tools_are_named(data_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(data_home))
    assert "update-mime-database is not installed" in desktop.install()


def test_a_plain_path_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """xdg-open without a desktop takes quotes for a part of the program's name."""
    monkeypatch.setattr(desktop, "program", lambda: ["/home/a/.local/bin/p2pstore"])
    assert "\nExec=/home/a/.local/bin/p2pstore open %f\n" in desktop.entry_text()


@pytest.mark.skipif(
    shutil.which("desktop-file-validate") is None, reason="desktop-file-validate is not installed"
)
def test_the_entry_is_valid_also_with_an_odd_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desktop, "program", lambda: ['/opt/my "$apps" 100%/p2pstore'])
    entry = tmp_path / "p2pstore-open.desktop"
    entry.write_text(desktop.entry_text())
    done = subprocess.run(
        ["desktop-file-validate", str(entry)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert 'Exec="/opt/my \\\\"\\\\$apps\\\\" 100%%/p2pstore" open %f' in entry.read_text()
