"""The demo, with a smaller folder: what it shows is true, and it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from p2pstore.cli import demo, stage

BIG = 9_000_000


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A small library: some of the files that the whole one consists of."""
    library = tmp_path / "library"
    for place in ("this.py", "json/decoder.py", "json/empty.py", "__pycache__/left.pyc"):
        path = library / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {place}\n" * (0 if "empty" in place else 5_000))
    return library


def processes_below(place: Path) -> list[str]:
    """Command lines of processes that work on a home below `place`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(place) in line and "-m p2pstore" in line:
            found.append(line)
    return found


@pytest.mark.slow
def test_demo_brings_every_file_back(
    tmp_path: Path, library: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place"
    place.mkdir()

    assert demo.main(False, place=place, library=library, big=BIG) == 0

    told = capfd.readouterr().out
    assert "4 files: every hash, size, time and mode matches" in told
    assert "bundles of data: 0 B" in told
    assert list(place.iterdir()) == []
    assert processes_below(place) == []


@pytest.mark.slow
def test_an_interrupted_demo_leaves_neither_nodes_nor_homes(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    code = (
        "import sys, pathlib; from p2pstore.cli import app; from p2pstore.cli import demo, stage;"
        "stage.find_place = demo.find_place = lambda: pathlib.Path(sys.argv[1]);"
        "sys.exit(app.main(['demo']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(place)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while not any(" run " in line for line in processes_below(place)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130, err.decode()
    assert list(place.iterdir()) == []
    assert processes_below(place) == []


def test_differences_are_told(tmp_path: Path) -> None:
    before = stage.make_folder(tmp_path / "Vault", big=10, library=tmp_path / "none")
    (tmp_path / "Vault" / "new").write_bytes(b"")
    os.utime(tmp_path / "Vault" / "usr-lib.tar", ns=(0, 1))

    after = stage.prints_of(tmp_path / "Vault")

    assert demo.differences(before, after) == [
        "new was not there before",
        "usr-lib.tar has another mtime_ns",
    ]
    assert demo.differences(before, {}) == ["usr-lib.tar is missing"]


def test_the_folder_is_the_same_every_time(tmp_path: Path, library: Path) -> None:
    first = stage.make_folder(tmp_path / "first", big=2_000_001, library=library)
    again = stage.make_folder(tmp_path / "again", big=2_000_001, library=library)

    assert {path: one.sha256 for path, one in first.items()} == {
        path: one.sha256 for path, one in again.items()
    }
    assert first["usr-lib.tar"].size == 2_000_001
    assert len(first) == 4  # __pycache__ is left out


def test_a_place_in_memory_or_too_small_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.tempfile, "gettempdir", lambda: "/small")
    monkeypatch.setattr(stage.Path, "cwd", lambda: tmp_path)
    monkeypatch.setattr(stage, "_in_memory", lambda place: place != tmp_path)
    monkeypatch.setattr(stage, "_free", lambda place: 0 if place == Path("/small") else stage.ROOM)

    assert stage.find_place() == tmp_path


def test_no_place_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_free", lambda place: 0)

    with pytest.raises(stage.NoRoom, match="TMPDIR=/some/where p2pstore demo"):
        stage.find_place()


def test_the_users_settings_do_not_reach_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PSTORE_DATA", "/the/users/own/store")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")

    environment = stage._environment()

    assert not {"P2PSTORE_DATA", "NOTIFY_SOCKET"} & environment.keys()
