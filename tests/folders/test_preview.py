"""What adding a folder would do, said before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pstore.config import FolderSettings
from p2pstore.content.manifest import MAGIC
from p2pstore.folders.preview import preview
from p2pstore.policy import Treatment


def filled(base: Path) -> Path:
    (base / "project" / ".git").mkdir(parents=True)
    (base / "project" / "main.c").write_bytes(b"int")
    (base / "film.mkv").write_bytes(b"content")
    (base / "half.part").write_bytes(b"1")
    (base / ".text.swp").write_bytes(b"vim")
    (base / "text").write_bytes(b"edited")
    return base


def test_every_file_is_counted_with_its_class_and_reason(tmp_path: Path) -> None:
    found = preview(filled(tmp_path), FolderSettings())
    assert (found.files, found.bytes) == (5, 20)
    assert found.classes == {
        Treatment.REPLACE: {"": [1, 7]},
        Treatment.PROTECT_ONLY: {"in a repository": [1, 3], "open in an editor": [1, 6]},
        Treatment.SKIP: {"temporary or system file": [2, 4]},
    }


def test_where_others_write_unseen_nothing_becomes_a_placeholder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "it lies on a network mount (NFS)"
    monkeypatch.setattr("p2pstore.folders.preview.is_remote", lambda _: why)
    found = preview(filled(tmp_path), FolderSettings())
    assert Treatment.REPLACE not in found.classes
    assert found.classes[Treatment.PROTECT_ONLY][why] == [1, 7]


def test_placeholders_that_are_there_already_become_none(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "photo.jpg.f").write_bytes(MAGIC + b"...")
    (tmp_path / "solver.f").write_bytes(b"      PROGRAM SOLVER")
    (tmp_path / "link.f").symlink_to("sub/photo.jpg.f")
    found = preview(tmp_path, FolderSettings())
    assert (found.placeholders, found.files) == (1, 2)
    assert found.classes[Treatment.REPLACE] == {"": [1, 20]}


def test_of_a_watched_folder_no_placeholder_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pstore.folders.preview.read_placeholder", None)
    for name in ("known.f", "other.f"):
        (tmp_path / name).write_bytes(MAGIC + b"...")
    found = preview(tmp_path, FolderSettings(), frozenset({b"known.f"}))
    assert (found.placeholders, found.files) == (1, 1)
