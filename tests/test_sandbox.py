"""What the owner is told when the sandboxed service may not write somewhere."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

import pytest

from p2pstore.sandbox import as_root, cannot_write, remedy, unseen

READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))
DENIED = OSError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.fixture
def sandboxed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/p2pstore/alice")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)


@pytest.mark.usefixtures("sandboxed")
def test_the_remedy_names_the_nearest_directory(tmp_path: Path) -> None:
    place = tmp_path / "my folder"
    place.mkdir()
    wanted = f"{as_root()} service allow {shlex.quote(str(place))} --system"
    assert remedy(place, READ_ONLY) == wanted
    assert remedy(place / "not" / "there.txt", READ_ONLY) == wanted


@pytest.mark.usefixtures("sandboxed")
def test_the_sentence_carries_the_remedy(tmp_path: Path) -> None:
    said = cannot_write("a.txt", READ_ONLY, place=tmp_path)
    assert said.startswith("a.txt cannot be written (Read-only file system). ")
    assert said.endswith(f"service allow {tmp_path} --system")


@pytest.mark.usefixtures("sandboxed")
def test_what_allowing_would_not_mend_has_no_remedy(tmp_path: Path) -> None:
    assert remedy(tmp_path, DENIED) is None
    assert cannot_write("a.txt", DENIED) == "a.txt cannot be written (Permission denied)."


@pytest.mark.usefixtures("free")
def test_a_disk_that_is_read_only_is_no_matter_of_the_service(tmp_path: Path) -> None:
    assert remedy(tmp_path, READ_ONLY) is None


def test_a_private_tmp_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/p2pstore/alice")
    assert "a /tmp of its own" in unseen(Path("/tmp/folder"))
    assert unseen(Path("/srv/folder")) == ""
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert unseen(Path("/tmp/folder")) == ""
