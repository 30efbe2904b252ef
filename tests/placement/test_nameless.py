"""A file has no name before it is whole, whatever its file system can do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore import durable
from p2pstore.ids import FolderId
from p2pstore.placement import Directories, Root, nameless, write_placeholder
from p2pstore.placement.lay import lay_placeholders
from p2pstore.placement.nameless import Nameless

FOLDER_ID = FolderId(bytes(range(16)))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    Root.mark(tmp_path, FOLDER_ID)
    made = Root(tmp_path, FOLDER_ID)
    yield made
    made.close()


@pytest.fixture(params=["O_TMPFILE", "rename", "link"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With unnamed files; without them; and where a rename cannot be told to overwrite nothing."""

    def none(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    def unknown_flag(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    if request.param != "O_TMPFILE":
        monkeypatch.setattr(nameless, "unnamed", none)
    if request.param == "link":
        monkeypatch.setattr(durable, "rename_noreplace", unknown_flag)
    return str(request.param)


def own(root: Root) -> list[str]:
    return os.listdir(root.path / ".p2pstore" / "tmp")


def visible(root: Root) -> list[str]:
    return sorted(name for name in os.listdir(root.path) if name != ".p2pstore")


def test_nothing_is_seen_before_it_has_its_name(root: Root, way: str) -> None:
    with Directories(root) as directories:
        file = Nameless(root, directories, root.fd)
        os.write(file.fd, b"whole")
        assert visible(root) == []
        file.link(directories, root.fd, b"name")
        file.close()
    assert (root.path / "name").read_bytes() == b"whole"
    assert visible(root) == ["name"]
    assert own(root) == []


def test_a_taken_name_is_never_touched(root: Root, way: str) -> None:
    (root.path / "name").write_bytes(b"somebody's")
    with Directories(root) as directories:
        file = Nameless(root, directories, root.fd)
        with pytest.raises(FileExistsError):
            file.link(directories, root.fd, b"name")
        file.link(directories, root.fd, b"other")
        file.close()
    assert (root.path / "name").read_bytes() == b"somebody's"
    assert visible(root) == ["name", "other"]


def test_what_never_got_a_name_leaves_nothing(root: Root, way: str) -> None:
    with Directories(root) as directories:
        file = Nameless(root, directories, root.fd)
        os.write(file.fd, b"half")
        file.close()
        file.close()
    assert visible(root) == own(root) == []


def test_another_failure_is_no_reason_to_write_elsewhere(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nameless, "unnamed", full)
    with Directories(root) as directories, pytest.raises(OSError, match="No space left"):
        Nameless(root, directories, root.fd)
    assert own(root) == []


def test_placeholders_are_written_in_every_way(root: Root, way: str) -> None:
    write_placeholder(root, b"sub/one.f", b"one")
    laid, failed, aside = lay_placeholders(
        root,
        [(b"sub/two", b"two", 7), (b"sub/one", b"1", 7)],
        batch="b",
        is_earlier=lambda path, raw: False,
        reads=lambda name: None,
    )
    assert aside == []
    assert [one.path for one in laid] == [b"sub/two"]
    assert failed == [(b"sub/one", "name.f is taken")]
    assert (root.path / "sub" / "one.f").read_bytes() == b"one"
    assert (root.path / "sub" / "two.f").read_bytes() == b"two"
    assert own(root) == []
