"""Small files that are replaced whole: what lies under the name at each moment."""

from __future__ import annotations

import errno
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
