"""What nothing refers to any more: seen, waiting, revived, gone."""

from __future__ import annotations

import sqlite3

import pytest

from p2pstore.ids import BundleId, Tag
from p2pstore.store import blocks, dying, files, folders, journal
from p2pstore.store.blocks import BundleRow, BundleState, DedupRow
from p2pstore.store.dying import WHOLE, Dying, bits_of
from p2pstore.store.files import FileRow

BLOCKS = 20
NOW = 1_000_000


def bundle(db: sqlite3.Connection, number: int = 1, **fields: object) -> BundleRow:
    row = BundleRow(
        BundleId(number.to_bytes(32, "big")),
        Tag(number.to_bytes(20, "big")),
        1,
        None,
        BundleState.SEALED,
        100,
        BLOCKS,
    )._replace(**fields)  # type: ignore[arg-type]
    made = row._replace(id=blocks.put_bundle(db, row))
    keys = [(f"{number}/{i}".encode().ljust(16), made.id, i) for i in range(BLOCKS)]
    blocks.insert_dedup(db, [DedupRow(*key, b"b" * 32, b"k" * 32, 0, 1) for key in keys])  # type: ignore[arg-type]
    return made


def file(
    db: sqlite3.Connection, folder: int, path: bytes, needs: list[int], version: int = 1
) -> int:
    row = FileRow(folder, path, "placeholder", version=bytes([version]), manifest_ref=b"place")
    (number,) = files.upsert_many(db, [row], [b"manifest"])
    blocks.set_file_bundles(db, [(number, needs)])
    return number


def known(db: sqlite3.Connection, row: BundleRow) -> set[int]:
    return {i for (i,) in db.execute("SELECT idx FROM dedup WHERE bundle=?", (row.id,))}


def note(db: sqlite3.Connection, row: BundleRow, dead: bytes | None, now: int = NOW) -> bool:
    return dying.note(db, row, dying.stamp(db, row.id), dead, now)


def bits(*dead: int) -> bytes:
    return bits_of(dead, BLOCKS)


# -- stamps ----------------------------------------------------------------------------------------


def test_a_stamp_says_who_refers_to_a_bundle(db: sqlite3.Connection, folder: int) -> None:
    one, other = bundle(db, 1), bundle(db, 2)
    assert dying.stamps(db) == {}
    seen = {b""}

    def is_new() -> bool:
        found = dying.stamp(db, one.id)
        is_fresh = found not in seen
        seen.add(found)
        assert dying.stamps(db).get(one.id, b"") == found
        return is_fresh

    number = file(db, folder, b"a", [one.id])
    assert is_new()
    file(db, folder, b"other", [other.id])
    assert not is_new()
    file(db, folder, b"a", [one.id], version=2)
    assert is_new()
    file(db, folder, b"b", [one.id])
    assert is_new()
    files.keep_version(db, number, "changed", NOW)
    assert is_new()
    blocks.add_root(db, "upload:1", [one.id])
    assert is_new()
    blocks.drop_root(db, "upload:1")
    assert not is_new()


# -- dying -----------------------------------------------------------------------------------------


def test_the_time_of_each_block_counts_from_when_it_was_first_seen(db: sqlite3.Connection) -> None:
    row = bundle(db)
    assert note(db, row, bits(1, 2), 10)
    assert note(db, row, bits(1, 2, 9), 20)
    assert dying.of_bundle(db, row.id) == [
        Dying(row.id, 10, bits(1, 2)),
        Dying(row.id, 20, bits(9)),
    ]
    assert dying.indices(dying.union(dying.of_bundle(db, row.id))) == [1, 2, 9]


def test_a_block_that_is_named_again_is_alive(db: sqlite3.Connection) -> None:
    row = bundle(db)
    note(db, row, bits(1, 2), 10)
    note(db, row, bits(2), 20)
    assert dying.of_bundle(db, row.id) == [Dying(row.id, 10, bits(2))]
    note(db, row, None, 30)
    assert dying.of_bundle(db, row.id) == []
    note(db, row, bits(1), 40)
    assert dying.of_bundle(db, row.id) == [Dying(row.id, 40, bits(1))], "its days begin anew"


def test_chunks_of_what_is_dying_are_known_no_more(db: sqlite3.Connection) -> None:
    row, other = bundle(db), bundle(db, 2)
    note(db, row, bits(1, 2))
    assert known(db, row) == set(range(BLOCKS)) - {1, 2}
    note(db, row, WHOLE)
    assert known(db, row) == set()
    assert known(db, other) == set(range(BLOCKS))


def test_what_an_ingest_left_is_there_for_its_next_try(db: sqlite3.Connection, folder: int) -> None:
    intent = journal.open_intent(db, journal.IntentKind.INGEST, b"", NOW)
    left = bundle(db, created=NOW)
    blocks.add_root(db, journal.root_of(intent), [left.id])
    journal.close(db, intent)
    assert dying.is_unnamed(db, left.id)
    assert note(db, left, WHOLE)
    assert known(db, left) == set(range(BLOCKS))
    again = journal.open_intent(db, journal.IntentKind.INGEST, b"", NOW + 1)
    assert blocks.claim(db, journal.root_of(again), [left.id]) == {left.id}
    file(db, folder, b"a", [left.id])
    journal.close(db, again)
    assert not dying.bury(db, left.id, NOW + 2, only_from=BundleState.SEALED)
    assert blocks.by_rowid(db, left.id) == left
    assert note(db, left, None)
    assert dying.bundles(db) == []


def test_a_whole_bundle_counts_from_when_nothing_needed_it(db: sqlite3.Connection) -> None:
    row = bundle(db)
    note(db, row, bits(1), 10)
    note(db, row, WHOLE, 20)
    note(db, row, WHOLE, 30)
    assert dying.of_bundle(db, row.id) == [Dying(row.id, 20, WHOLE)]
    note(db, row, bits(1), 40)
    assert dying.of_bundle(db, row.id) == [Dying(row.id, 40, bits(1))]


def test_nothing_is_noted_of_a_bundle_that_changed_meanwhile(
    db: sqlite3.Connection, folder: int
) -> None:
    row = bundle(db)
    before = dying.stamp(db, row.id)
    number = file(db, folder, b"a", [row.id])
    assert not dying.note(db, row, before, WHOLE, NOW)
    found = dying.stamp(db, row.id)
    blocks.set_live(db, row.id, 1, 50)
    assert not dying.note(db, row, found, bits(1), NOW)
    row = row._replace(seq=1)
    blocks.claim(db, "journal:7", [row.id])
    assert not note(db, row, bits(1)), "an open ingest may name it"
    blocks.drop_root(db, "journal:7")
    assert note(db, row, bits(1))
    assert dying.examined(db) == {row.id: found}
    files.forget(db, [number])
    blocks.move(db, row.id, BundleState.EVICTED, only_from=[BundleState.SEALED])
    assert not note(db, row, WHOLE)


def test_postponed_blocks_begin_anew(db: sqlite3.Connection) -> None:
    row, whole = bundle(db), bundle(db, 2)
    note(db, row, bits(1), 10)
    note(db, row, bits(1, 2), 20)
    note(db, whole, WHOLE, 10)
    for one in (row, whole):
        dying.postpone(db, one.id, 99)
    assert dying.of_bundle(db, row.id) == [Dying(row.id, 99, bits(1, 2))]
    assert dying.of_bundle(db, whole.id) == [Dying(whole.id, 99, WHOLE)]


def test_files_of_a_removed_folder_go_unless_a_placeholder_is_left(
    db: sqlite3.Connection, folder: int
) -> None:
    row = bundle(db)
    for i in range(7):
        number = file(db, folder, b"%d" % i, [row.id])
        files.set_state(db, [number], "protected" if i else "placeholder")
    assert dying.retire_removed(db, NOW) == 0, "it is watched"
    folders.set_state(db, folder, folders.REMOVED)
    assert dying.retire_removed(db, NOW) == 0, "a placeholder is left"
    files.set_state(db, [1], "protected")
    assert [dying.retire_removed(db, NOW, limit=5) for _ in range(3)] == [5, 2, 0]
    assert files.page(db, folder) == []
    assert len(files.history_before(db, NOW + 1)) == 7
    assert dying.is_needed(db, row.id), "for as long as the history lasts"


# -- never named -----------------------------------------------------------------------------------


def ingest(db: sqlite3.Connection, row: BundleRow) -> int:
    intent = journal.open_intent(db, "ingest", b"", row.created)
    blocks.add_root(db, journal.root_of(intent), [row.id])
    return intent


def test_what_an_ingest_made_and_did_not_name_is_noted(db: sqlite3.Connection, folder: int) -> None:
    named, left, older = bundle(db, 1, created=5), bundle(db, 2, created=5), bundle(db, 3)
    intent = ingest(db, named)
    blocks.add_root(db, journal.root_of(intent), [left.id, older.id])
    file(db, folder, b"a", [named.id])
    assert not dying.is_unnamed(db, left.id), "the journal row is still open"
    journal.close(db, intent)
    assert [dying.is_unnamed(db, row.id) for row in (named, left, older)] == [False, True, False]


@pytest.mark.parametrize("what", ["root", "history"])
def test_what_something_else_needs_is_not_unnamed(
    db: sqlite3.Connection, folder: int, what: str
) -> None:
    row = bundle(db, created=5)
    intent = ingest(db, row)
    if what == "root":
        blocks.add_root(db, "index:f", [row.id])
    else:
        db.execute("INSERT INTO history_bundles (history, bundle) VALUES (1, ?)", (row.id,))
    journal.close(db, intent)
    assert not dying.is_unnamed(db, row.id)


def test_a_chunk_that_is_used_later_names_its_bundle(db: sqlite3.Connection) -> None:
    row = bundle(db, created=5)
    journal.close(db, ingest(db, row))
    assert dying.is_unnamed(db, row.id)
    blocks.claim(db, "journal:99", [row.id])
    assert not dying.is_unnamed(db, row.id)


# -- dead ------------------------------------------------------------------------------------------


def test_only_what_nothing_needs_is_buried(db: sqlite3.Connection, folder: int) -> None:
    row = bundle(db)
    number = file(db, folder, b"a", [row.id])
    assert not dying.bury(db, row.id, NOW, only_from=BundleState.SEALED)
    files.keep_version(db, number, "changed", NOW)
    files.forget(db, [number])
    assert not dying.bury(db, row.id, NOW, only_from=BundleState.SEALED), "the history needs it"
    db.execute("DELETE FROM history_bundles")
    blocks.add_root(db, "upload:1", [row.id])
    assert not dying.bury(db, row.id, NOW, only_from=BundleState.SEALED)
    blocks.drop_root(db, "upload:1")
    blocks.add_root(db, "superseded:f:1", [row.id])
    assert not dying.bury(db, row.id, NOW, only_from=BundleState.EVICTED), "it is not evicted"
    assert dying.bury(db, row.id, NOW, only_from=BundleState.SEALED)
    assert dying.all_dead(db) == [(row._replace(state=BundleState.DEAD), NOW)]
    assert known(db, row) == set()
    assert blocks.lookup_many(db, [b"1/1".ljust(16)]) == {}


def test_leftover_is_what_no_present_file_needs(db: sqlite3.Connection, folder: int) -> None:
    needed, earlier, kept, superseded, alone = (bundle(db, i) for i in range(1, 6))
    file(db, folder, b"a", [needed.id])
    gone = file(db, folder, b"b", [earlier.id])
    files.retire(db, gone, b"2", NOW)
    blocks.set_root(db, "index:1", [kept.id])
    blocks.set_root(db, dying.SUPERSEDED + "1", [superseded.id])
    every = [row.id for row in (needed, earlier, kept, superseded, alone)]
    assert dying.leftovers(db, every) == {earlier.id, superseded.id, alone.id}
    assert dying.leftovers(db, [needed.id]) == set()


def test_a_dead_bundle_comes_back(db: sqlite3.Connection) -> None:
    row = bundle(db)
    note(db, row, WHOLE)
    dying.bury(db, row.id, NOW, only_from=BundleState.SEALED)
    assert dying.revive(db, row.id, BundleState.SEALED)
    assert dying.all_dead(db) == []
    assert dying.of_bundle(db, row.id) == []
    assert not dying.revive(db, row.id, BundleState.SEALED)


def test_rows_of_a_forgotten_bundle_go(db: sqlite3.Connection) -> None:
    row = bundle(db, created=5)
    journal.close(db, ingest(db, row))
    note(db, row, WHOLE)
    dying.bury(db, row.id, NOW, only_from=BundleState.SEALED)
    assert blocks.forget_unreferenced(db, row.id) == row.bundle_id
    for table in ("examined", "dying", "unnamed", "dead"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table


def test_bits_there_and_back() -> None:
    for dead in ([], [0], [7, 8], [0, 15, 19], list(range(BLOCKS))):
        assert dying.indices(bits_of(dead, BLOCKS)) == dead
