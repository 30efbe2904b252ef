"""A folder of which only the catalog knows: as after a recovery."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable

import pytest

from p2pstore.folders.laying import BATCH, LaidOut, lay_out
from p2pstore.placement import IN_THE_WAY, TAKEN, listing
from p2pstore.store import FileRow, State, files, journal
from tests.faults.world import RING, World, assert_trash_known


def lose_directory(made: World) -> None:
    """Nothing of it is on the disk any more; the catalog knows so."""
    for row in rows(made):
        made.at(row.path + b".f").unlink(missing_ok=True)
    absent = [(row.id, row.state, 0, 0, 0, 0) for row in rows(made)]
    made.catalog.write(lambda db: files.set_on_disk(db, absent)).result()


def rows(made: World) -> list[FileRow]:
    return made.catalog.view(lambda db: list(files.walk(db, made.row)))


def lay(made: World, reads: Callable[[bytes], None] = lambda name: None) -> LaidOut:
    return lay_out(
        made.root, made.catalog, made.row, RING, lambda *news: None, now_ms=1, reads=reads
    )


def replaced(made: World, *names: bytes) -> None:
    for name in names:
        made.write(name, b"content of " + name)
        os.utime(made.at(name), ns=(10**18 + 7, 10**18 + 7))
    assert made.replace(*names) == dict.fromkeys(names, "")
    assert made.empty_trash() == []


def test_every_placeholder_is_back_as_it_was(made: World) -> None:
    names = (b"a", b"sub/deep/b", b"\xff\n", b"n" * 253)
    replaced(made, *names)
    before = {name: made.at(name + b".f").read_bytes() for name in names}
    lose_directory(made)
    assert lay(made) == LaidOut(4, 0, ())
    assert {name: made.at(name + b".f").read_bytes() for name in names} == before
    assert made.at(b"a.f").stat().st_mtime_ns == 10**18 + 7
    brought = made.hydrate(*(name + b".f" for name in names))
    assert [one.error for one in brought] == [None] * 4
    assert made.at(b"sub/deep/b").read_bytes() == b"content of sub/deep/b"


def test_the_catalog_knows_what_lies_there_now(made: World) -> None:
    replaced(made, b"a")
    lose_directory(made)
    lay(made)
    (row,) = rows(made)
    there = made.at(b"a.f").stat()
    on_record = (row.ino, row.size, row.mtime_ns, row.ctime_ns)
    assert on_record == (there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns)
    assert row.state == State.PLACEHOLDER


def test_a_repetition_goes_on_and_makes_nothing_twice(made: World) -> None:
    replaced(made, b"a", b"b")
    lose_directory(made)
    first, _ = rows(made)
    lay(made)
    made.at(b"a.f").unlink()
    absent = [(first.id, first.state, 0, 0, 0, 0)]
    made.catalog.write(lambda db: files.set_on_disk(db, absent)).result()
    assert lay(made).placeholders == 1


def test_what_has_the_name_is_left(made: World) -> None:
    replaced(made, b"a")
    lose_directory(made)
    made.at(b"a.f").write_bytes(b"a Fortran program")
    assert lay(made) == LaidOut(0, 0, ((b"a", "name.f is taken"),))
    assert made.at(b"a.f").read_bytes() == b"a Fortran program"


def test_a_placeholder_that_was_laid_before_a_crash_is_known_again(made: World) -> None:
    replaced(made, b"a")
    absent = [(row.id, row.state, 0, 0, 0, 0) for row in rows(made)]
    made.catalog.write(lambda db: files.set_on_disk(db, absent)).result()
    assert lay(made) == LaidOut(1, 0, ())
    (row,) = rows(made)
    assert row.ino == made.at(b"a.f").stat().st_ino


def test_links_come_back_as_links(made: World) -> None:
    link = FileRow(made.row, b"sub/link", State.PROTECTED, "a link", kind="link", target=b"../a")
    made.catalog.write(lambda db: files.upsert_many(db, [link])).result()
    assert lay(made).links == 1
    assert os.readlink(made.at(b"sub/link")) == "../a"
    assert lay(made).links == 0, "its identity is known"


def outdated(made: World, name: bytes) -> bytes:
    """`name` has a second version, and the `.f` of the first lies there; its bytes."""
    replaced(made, name)
    first = made.at(name + b".f").read_bytes()
    made.write(name, b"second content of " + name)
    assert made.replace(name) == {name: ""}
    made.empty_trash()
    os.unlink(made.at(name + b".f"))
    made.at(name + b".f").write_bytes(first)
    (row,) = rows(made)
    there = made.at(name + b".f").stat()
    on_disk = (row.id, row.state, there.st_ino, there.st_size, there.st_mtime_ns, there.st_ctime_ns)

    def change(db: sqlite3.Connection) -> None:
        files.set_on_disk(db, [on_disk])
        files.set_state(db, [row.id], State.PLACEHOLDER, files.OLD_DOT)

    made.catalog.write(change).result()
    return first


def manifest_of(made: World, row: FileRow) -> bytes | None:
    return made.catalog.view(lambda db: files.manifest(db, row.id))


def test_the_placeholder_of_an_earlier_version_gives_way(made: World) -> None:
    first = outdated(made, b"sub/a")
    read: list[bytes] = []
    laid = lay(made, read.append)
    assert read == [b"sub/a.f"], "nobody asked for it: that is said before it is opened"
    (row,) = rows(made)
    assert (laid.placeholders, laid.failed, row.reason) == (1, (), "")
    assert made.at(b"sub/a.f").read_bytes() == manifest_of(made, row) != first
    assert row.ino == made.at(b"sub/a.f").stat().st_ino
    (batch,) = laid.trashed
    kept = made.path / ".p2pstore/trash" / batch.batch / "sub/a.f"
    assert kept.read_bytes() == first
    assert_trash_known(made)
    assert made.empty_trash([batch]) == []
    assert not kept.exists()
    assert lay(made) == LaidOut(0, 0, ()), "once"
    made.hydrate(b"sub/a.f")
    assert made.at(b"sub/a").read_bytes() == b"second content of sub/a"


def test_what_is_no_earlier_version_of_the_file_never_gives_way(made: World) -> None:
    outdated(made, b"a")
    replaced(made, b"z")
    foreign = made.at(b"z.f").read_bytes()
    for there in (b"a Fortran program", foreign):
        made.at(b"a.f").write_bytes(there)
        assert lay(made).failed == ((b"a", TAKEN),)
        assert made.at(b"a.f").read_bytes() == there
        assert list(listing(made.root)) == []


def test_an_exchange_that_a_crash_cut_short_is_ended(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = outdated(made, b"a")

    def crash(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal, "open_intent", crash)  # nothing of it is recorded
        with pytest.raises(KeyboardInterrupt):
            lay(made)
    (row,) = rows(made)
    assert row.reason == files.OLD_DOT
    assert made.at(b"a.f").read_bytes() != first
    made.recover()
    assert_trash_known(made)
    assert lay(made) == LaidOut(1, 0, ())
    (row,) = rows(made)
    assert (row.reason, row.ino) == ("", made.at(b"a.f").stat().st_ino)
    assert made.at(b"a.f").read_bytes() == manifest_of(made, row)


def test_whoever_opens_an_outdated_placeholder_gets_the_later_version(made: World) -> None:
    outdated(made, b"a")
    (brought,) = made.hydrate(b"a.f")
    assert brought.error is None
    assert made.at(b"a").read_bytes() == b"second content of a"
    assert not made.at(b"a.f").exists()
    (row,) = rows(made)
    assert (row.state, row.reason) == (State.PROTECTED, "in work")


def test_more_than_one_batch(made: World) -> None:
    names = [b"%04d" % number for number in range(BATCH + 3)]
    replaced(made, *names)
    lose_directory(made)
    heard: list[tuple[int, int]] = []
    lay_out(made.root, made.catalog, made.row, RING, lambda *news: heard.append(news), now_ms=1)
    assert heard == [(BATCH, BATCH + 3), (BATCH + 3, BATCH + 3)]
    assert all(made.at(name + b".f").exists() for name in names)


def test_a_placeholder_never_takes_the_name_of_another_file(made: World) -> None:
    """`solver` and the Fortran `solver.f`; `d` and a directory `d.f`: they come back whole."""
    replaced(made, b"other")
    lose_directory(made)
    (row,) = rows(made)
    raw = made.catalog.view(lambda db: files.manifest(db, row.id))
    assert raw is not None
    paths = (b"d", b"d.f/x", b"solver", b"solver.f")

    def add(db: sqlite3.Connection) -> None:
        more = [row._replace(id=0, path=path, file_id=path.ljust(16)) for path in paths]
        for number in files.upsert_many(db, more):
            files.set_manifest(db, number, raw)

    made.catalog.write(add).result()
    assert set(lay(made).failed) == {(b"d", TAKEN), (b"solver", TAKEN)}
    assert made.at(b"d.f/x.f").exists()
    assert made.at(b"solver.f.f").exists()
    assert not made.at(b"solver.f").exists()


def test_a_path_through_a_link_leads_nowhere_and_stops_no_other(made: World) -> None:
    replaced(made, b"d/x", b"z")
    outside = made.root.path.parent / "outside"
    outside.mkdir()
    lose_directory(made)
    made.at(b"d").rmdir()
    link = FileRow(made.row, b"d", State.PROTECTED, "a link", kind="link", target=bytes(outside))
    made.catalog.write(lambda db: files.upsert_many(db, [link])).result()
    assert lay(made) == LaidOut(1, 1, ((b"d/x", IN_THE_WAY),))
    assert list(outside.iterdir()) == []
    assert made.at(b"z.f").exists()


def test_a_link_that_was_laid_before_a_crash_is_known_again(made: World) -> None:
    link = FileRow(made.row, b"link", State.PROTECTED, "a link", kind="link", target=b"../a")
    made.catalog.write(lambda db: files.upsert_many(db, [link])).result()
    os.symlink("../a", made.at(b"link"))
    assert lay(made) == LaidOut(0, 1, ())
    os.unlink(made.at(b"link"))
    made.at(b"link").write_bytes(b"a file of somebody's")
    absent = [(row.id, row.state, 0, 0, 0, 0) for row in rows(made)]
    made.catalog.write(lambda db: files.set_on_disk(db, absent)).result()
    assert lay(made) == LaidOut(0, 0, ((b"link", IN_THE_WAY),))
