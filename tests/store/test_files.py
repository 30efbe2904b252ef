from __future__ import annotations

import sqlite3
from functools import partial

import pytest

from p2pstore.ids import BundleId, FileId, FolderId, Tag
from p2pstore.store import blocks, files, folders
from p2pstore.store.blocks import BundleRow, BundleState
from p2pstore.store.files import FileRow, Identity, State


def row(folder: int, path: bytes, state: str = State.PROTECTED, **fields: object) -> FileRow:
    return FileRow(folder, path, state, **fields)  # type: ignore[arg-type]


def bundle(db: sqlite3.Connection, number: int) -> int:
    made = BundleRow(
        BundleId(bytes([number]) * 32), Tag(bytes([number]) * 20), 1, None, BundleState.SEALED, 9, 1
    )
    return blocks.put_bundle(db, made)


def test_rows_come_back_whole(db: sqlite3.Connection, folder: int) -> None:
    whole = FileRow(
        folder, b"\xff\n/x", "protected", "why", "file", b"i" * 16, b"v", b"h" * 32,
        1, 2, 1 << 62, 4, 5, 6, 1, 8, 1, b"t", b"ref",
    )  # fmt: skip
    (number,) = files.upsert_many(db, [whole], [b"manifest"])
    assert files.get(db, folder, whole.path) == whole._replace(id=number)
    assert files.by_id(db, number) == whole._replace(id=number)
    assert files.manifest(db, number) == b"manifest"
    assert files.get(db, folder, b"x") is None


def test_a_known_path_keeps_its_id(db: sqlite3.Connection, folder: int) -> None:
    first = files.upsert_many(db, [row(folder, b"a"), row(folder, b"b")], [b"1", b"2"])
    second = files.upsert_many(db, [row(folder, b"b", file_size=7), row(folder, b"c")], [b"", b"3"])
    assert second[0] == first[1]
    assert len({*first, *second}) == 3
    assert files.manifests(db, [*first, *second]) == {
        first[0]: b"1", first[1]: b"2", second[1]: b"3",
    }  # fmt: skip
    found = files.get(db, folder, b"b")
    assert found is not None
    assert found.file_size == 7


def test_the_same_path_in_two_folders(db: sqlite3.Connection, folder: int) -> None:
    other = folders.add(db, FolderId(b"o" * 16), b"/other", "other", b"", b"")
    ids = files.upsert_many(db, [row(folder, b"a"), row(other, b"a")])
    assert len(set(ids)) == 2
    assert files.upsert_many(db, [row(other, b"a"), row(folder, b"a")]) == ids[::-1]


@pytest.mark.parametrize("number", [1, 8, 9, 64, 65, 512, 513, 1100])
def test_many_rows_at_once(db: sqlite3.Connection, folder: int, number: int) -> None:
    rows = [row(folder, b"%d" % n) for n in range(number)]
    ids = files.upsert_many(db, rows)
    assert files.upsert_many(db, rows) == ids
    assert len(files.get_many(db, folder, [one.path for one in rows])) == number


def test_rows_beneath_a_directory(db: sqlite3.Connection, folder: int) -> None:
    inside = [b"a/b", b"a/b/c", b"a/\xff", b"a/z"]
    outside = [b"a", b"a.f", b"a0", b"ab/x", b"b", b"\xff" * 255]
    files.upsert_many(db, [row(folder, path) for path in inside + outside])
    assert [one.path for one in files.page(db, folder, b"a")] == sorted(inside)
    assert [one.path for one in files.walk(db, folder)] == sorted(inside + outside)
    assert [one.path for one in files.page(db, folder, b"a", limit=2)] == sorted(inside)[:2]


def test_rows_with_one_of_some_reasons(db: sqlite3.Connection, folder: int) -> None:
    said = {b"a": "", b"b": "in work", b"c": "database", b"d": ""}
    files.upsert_many(db, [row(folder, path, reason=why) for path, why in said.items()])
    found = files.walk(db, folder, states=("protected",), reasons=("", "in work"))
    assert [one.path for one in found] == [b"a", b"b", b"d"]


def test_a_walk_survives_changes(
    db: sqlite3.Connection, folder: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PAGE", 3)
    files.upsert_many(db, [row(folder, b"%02d" % n) for n in range(10)])
    seen = []
    for one in files.walk(db, folder):
        seen.append(one.path)
        files.forget(db, [one.id])
    assert len(seen) == 10
    assert files.page(db, folder) == []


def test_identities_leave_deletions_out(db: sqlite3.Connection, folder: int) -> None:
    ids = files.upsert_many(
        db,
        [row(folder, b"a", ino=1, size=2, mtime_ns=3, ctime_ns=4), row(folder, b"b")],
        [b"m", b""],
    )
    files.retire(db, ids[1], b"v", 5)
    assert list(files.identities(db, folder)) == [(b"a", 1, 2, 3, 4, "protected", ids[0])]
    assert files.identities_at(db, folder, [b"b", b"c"]) == []
    assert files.identities_at(db, folder, [b"a", b"b"]) == list(files.identities(db, folder))
    assert files.identity(db, folder, b"a") == Identity(b"a", 1, 2, 3, 4, "protected", ids[0])


def test_directories_with_something_below(db: sqlite3.Connection, folder: int) -> None:
    ids = files.upsert_many(db, [row(folder, b"here/a"), row(folder, b"gone/a"), row(folder, b"b")])
    files.retire(db, ids[1], b"v", 5)
    asked = [b"here", b"gone", b"b", b"never"]
    assert files.with_some_below(db, folder, asked) == [b"here"]


def test_total_at_a_path_and_beneath_it(db: sqlite3.Connection, folder: int) -> None:
    rows = [(b"a", 1), (b"a/b", 2), (b"a/c/d", 4), (b"a.x", 8), (b"ab", 16)]
    files.upsert_many(db, [row(folder, path, file_size=size) for path, size in rows])
    files.upsert_many(db, [row(folder, b"a/e", State.DELETED, file_size=32)])
    known = (State.PROTECTED,)
    assert files.total(db, folder, b"", known) == (5, 31)
    assert files.total(db, folder, b"a", known) == (3, 7)
    assert files.total(db, folder, b"a.x", known) == (1, 8)
    assert files.total(db, folder, b"a/e", known) == (0, 0)
    assert files.total(db, folder, b"a", (State.DELETED,)) == (1, 32)


def test_counts_by_state_and_reason(db: sqlite3.Connection, folder: int) -> None:
    files.upsert_many(
        db,
        [
            row(folder, b"x/a", file_size=10, stored_bytes=3),
            row(folder, b"x/b", file_size=20, stored_bytes=4),
            row(folder, b"y", reason="in a repository", file_size=5),
            row(folder, b"z", State.PLACEHOLDER, file_size=100),
        ],
    )
    assert files.counts(db, folder) == [
        ("placeholder", "", 1, 100, 0),
        ("protected", "", 2, 30, 7),
        ("protected", "in a repository", 1, 5, 0),
    ]
    assert files.counts(db, folder, b"x") == [("protected", "", 2, 30, 7)]


def test_what_lies_on_the_disk(db: sqlite3.Connection, folder: int) -> None:
    (number,) = files.upsert_many(db, [row(folder, b"a", file_size=99)])
    files.set_on_disk(db, [(number, State.PLACEHOLDER, 1, 2, 3, 4)])
    files.set_on_disk(db, [(number, State.PROTECTED, 5, 6, 7, 8)])
    found = files.by_id(db, number)
    assert found is not None
    assert (found.state, found.ino, found.size, found.file_size) == ("protected", 5, 6, 99)
    assert found.replaced_before == 1


def test_a_rename_takes_the_place(db: sqlite3.Connection, folder: int) -> None:
    one, two = files.upsert_many(db, [row(folder, b"a"), row(folder, b"b")], [b"1", b"2"])
    files.rename(db, one, b"b")
    found = files.get(db, folder, b"b")
    assert found is not None
    assert found.id == one
    assert files.by_id(db, two) is None
    assert files.manifest(db, two) is None


def test_a_deleted_file_comes_back(db: sqlite3.Connection, folder: int) -> None:
    (number,) = files.upsert_many(
        db, [row(folder, b"a", file_id=FileId(b"i" * 16), hash=b"h", file_size=9)], [b"manifest"]
    )
    needed = bundle(db, 1)
    blocks.set_file_bundles(db, [(number, [needed])])
    entry = files.retire(db, number, b"v2", 1000)
    assert entry is not None
    assert blocks.unreferenced(db, created_before_ms=9) == [], "the history keeps its bundles"
    (old,) = files.history(db, folder, b"a")
    assert (old.manifest, old.why, old.ended_at) == (b"manifest", "deleted", 1000)
    assert [one.path for one in files.deleted_beneath(db, folder)] == [b"a"]
    back = files.undelete(db, entry, b"v3", Identity(b"a", 1, 2, 3, 4, "", 0))
    assert back == number
    found = files.by_id(db, number)
    assert found is not None
    assert (found.state, found.version, found.file_size) == ("placeholder", b"v3", 9)
    assert files.manifest(db, number) == b"manifest"
    assert [one.id for one in blocks.bundles_of_file(db, number)] == [needed]
    assert files.history(db, folder, b"a") == []
    assert files.undelete(db, entry, b"v4", Identity(b"a", 1, 2, 3, 4, "", 0)) is None


def test_deleted_files_are_told_page_by_page(db: sqlite3.Connection, folder: int) -> None:
    names = [b"d/a", b"d/b", b"d/c", b"e"]
    rows = [row(folder, name, file_id=FileId(name.ljust(16))) for name in names]
    for number, name in zip(files.upsert_many(db, rows, names), names, strict=True):
        if name != b"d/b":
            files.retire(db, number, b"v2", 1000)
    look = partial(files.deleted_beneath, db, folder)
    assert [one.path for one in look()] == [b"d/a", b"d/c", b"e"]
    assert [one.path for one in look(b"d", limit=1)] == [b"d/a"]
    assert [one.path for one in look(b"d", after=b"d/a", limit=5)] == [b"d/c"]


def test_undelete_takes_no_place_from_another_file(db: sqlite3.Connection, folder: int) -> None:
    (number,) = files.upsert_many(db, [row(folder, b"a")], [b"manifest"])
    entry = files.retire(db, number, b"v2", 1000)
    assert entry is not None
    files.upsert_many(db, [row(folder, b"a", file_size=5)])
    assert files.undelete(db, entry, b"v3", Identity(b"a", 1, 2, 3, 4, "", 0)) is None
    assert len(files.history(db, folder, b"a")) == 1


def test_old_history_goes(db: sqlite3.Connection, folder: int) -> None:
    (number,) = files.upsert_many(db, [row(folder, b"a")], [b"manifest"])
    blocks.set_file_bundles(db, [(number, [bundle(db, 1)])])
    for when in (10, 20, 30):
        files.keep_version(db, number, "changed", when)
    assert [one.ended_at for one in files.history(db, folder, b"a")] == [30, 20, 10]
    files.drop_history(db, files.history_before(db, 25))
    assert [one.ended_at for one in files.history(db, folder, b"a")] == [30]
    assert db.execute("SELECT count(*) FROM history_bundles").fetchone() == (1,)


def test_folders(db: sqlite3.Connection, folder: int) -> None:
    folders.set_paused(db, folder, "40 files are gone")
    folders.set_settings(db, folder, b"s")
    folders.set_marker(db, folder, b"m")
    found = folders.get(db, folder)
    assert found is not None
    assert (found.paused, found.settings, found.marker) == ("40 files are gone", b"s", b"m")
    folders.set_state(db, folder, folders.REMOVED)
    assert folders.watched(db) == []
    assert len(folders.every(db)) == 1
    again = folders.add(db, FolderId(b"f" * 16), b"/elsewhere", "docs", b"", b"")
    assert again == folder
    taken_up = folders.by_folder_id(db, FolderId(b"f" * 16))
    assert taken_up is not None
    assert (taken_up.path, taken_up.state, taken_up.paused) == (b"/elsewhere", "watched", "")
    with pytest.raises(sqlite3.IntegrityError):
        folders.add(db, FolderId(b"x" * 16), b"/elsewhere", "twice", b"", b"")


def test_single_values(db: sqlite3.Connection) -> None:
    assert folders.kv_get(db, "a") is None
    folders.kv_set(db, "a", b"1")
    folders.kv_set(db, "a", b"2")
    assert folders.kv_get(db, "a") == b"2"
    folders.kv_delete(db, "a")
    assert folders.kv_get(db, "a") is None
