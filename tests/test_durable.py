"""Small files that are replaced whole: what lies under the name at each moment."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from p2pstore import durable
from p2pstore.durable import replace_files


def test_many_files_are_replaced_between_two_syncs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path in paths:
        path.write_bytes(b"old")
    seen: list[set[bytes]] = []
    monkeypatch.setattr(
        durable, "syncfs", lambda _: seen.append({path.read_bytes() for path in paths})
    )
    replace_files({path: b"new" for path in paths})
    assert seen == [{b"old"}, {b"new"}], "the bytes are synced before a name leads to them"
    assert sorted(tmp_path.iterdir()) == paths


def test_none_is_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "syncfs", None)
    replace_files({})


@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_sync_leaves_each_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    calls: list[int] = []

    def fail(_: int) -> None:
        calls.append(1)
        if len(calls) == nth:
            raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(durable, "syncfs", fail)
    with pytest.raises(OSError, match="input/output"):
        replace_files({path: b"new"})
    assert path.read_bytes() == (b"old" if nth == 1 else b"new")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("code", [0, errno.EINVAL, errno.ENOSYS, errno.EPERM])
def test_a_name_is_given_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def cannot(*_: object) -> None:
        raise OSError(code, "not here")

    if code:
        monkeypatch.setattr(durable, "rename_noreplace", cannot)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name, content in (("one", b"1"), ("two", b"2")):
            (tmp_path / name).write_bytes(content)
        durable.name_once(directory, b"one", directory, b"final")
        with pytest.raises(FileExistsError):
            durable.name_once(directory, b"two", directory, b"final")
    finally:
        os.close(directory)
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert left == {"final": b"1", "two": b"2"}
