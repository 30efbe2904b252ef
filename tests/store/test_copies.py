from __future__ import annotations

import sqlite3

import pytest

from p2pstore.ids import BundleId, FolderId, NodeId, Tag
from p2pstore.store import blocks, copies, files
from p2pstore.store.blocks import BundleRow
from p2pstore.store.copies import Copy, CopyState, HeadAck
from p2pstore.store.files import FileRow

A, B, C = (NodeId(bytes([n]) * 20) for n in (1, 2, 3))
FOLDER = FolderId(b"f" * 16)


def bundle(db: sqlite3.Connection, number: int, state: str = "sealed", seq: int = 0) -> int:
    raw = bytes([number])
    row = BundleRow(BundleId(raw * 32), Tag(raw * 20), 1, None, state, 9, 1, seq)
    return blocks.put_bundle(db, row)


def test_a_receipt_replaces_the_last_one(db: sqlite3.Connection) -> None:
    one = bundle(db, 1)
    copies.put(db, Copy(one, A, 0, 10, 100, b"r1"))
    copies.put(db, Copy(one, A, 1, 20, 200, b"r2"))
    assert copies.of_bundle(db, one) == [Copy(one, A, 1, 20, 200, b"r2", since=10)]


def test_proofs_need_a_receipt(db: sqlite3.Connection) -> None:
    one = bundle(db, 1)
    assert not copies.proved(db, one, A, 0, 50)
    copies.put(db, Copy(one, A, 0, 10, 100, b"r"))
    copies.set_state(db, one, A, CopyState.SUSPECT)
    assert copies.suspects(db, A) == [one]
    assert copies.proved(db, one, A, 0, 50)
    assert copies.suspects(db, A) == []
    assert copies.of_bundle(db, one) == [Copy(one, A, 0, 50, 100, b"r", since=10)]
    copies.set_lease(db, one, A, 300)
    copies.set_lease(db, one, A, 200)
    assert copies.of_bundle(db, one)[0].lease_until == 200, "the last promise, whatever clock"


def test_who_has_proved_something(db: sqlite3.Connection) -> None:
    one = bundle(db, 1, seq=3)
    copies.put(db, Copy(one, A, 3, 1, 1, b""))
    copies.put(db, Copy(one, B, 2, 1, 1, b""))
    copies.put(db, Copy(one, C, 3, 1, 1, b"", CopyState.LOST))
    assert copies.holders(db) == {A: 1, B: 1}


def test_a_file_is_as_safe_as_its_least_bundle(db: sqlite3.Connection, folder: int) -> None:
    one, two = bundle(db, 1), bundle(db, 2)
    a, b, c = files.upsert_many(
        db, [FileRow(folder, path, "x", file_size=10) for path in (b"a", b"b", b"c")]
    )
    blocks.set_file_bundles(db, [(a, [one, two]), (b, [one])])
    counted = {one: 2, two: 1}
    assert [copies.count_of_file(db, file, counted) for file in (a, b, c)] == [1, 2, 0]
    assert copies.counts_of_files(db, folder, counted) == {1: (1, 10), 2: (1, 10)}


def test_copies_of_many_bundles_and_of_a_holder(db: sqlite3.Connection) -> None:
    ids = [bundle(db, n) for n in range(1, 5)]
    for number in ids:
        copies.put(db, Copy(number, A, 0, 10 - number, 1, b""))
    copies.put(db, Copy(ids[0], B, 0, 1, 1, b""))
    found = copies.of_bundles(db, ids[:2])
    assert [copy.holder for copy in found[ids[0]]] == [A, B]
    first = copies.of_holder(db, A, limit=3)
    assert [copy.bundle for copy in first] == ids[:3]
    assert [copy.bundle for copy in copies.of_holder(db, A, after=first[-1].bundle)] == ids[3:]
    copies.drop(db, ids[0], B)
    copies.forget_holder(db, A)
    assert copies.of_bundles(db, ids) == {}


def test_acknowledgements_only_move_forward(db: sqlite3.Connection) -> None:
    for incarnation, seq, expected in [
        (1, 5, (1, 5)),
        (1, 4, (1, 5)),
        (2, 1, (2, 1)),
        (1, 9, (2, 1)),
    ]:
        copies.acknowledge(db, HeadAck(A, FOLDER, incarnation, seq, 1, 1))
        (ack,) = copies.acks(db, FOLDER)
        assert (ack.incarnation, ack.seq) == expected
    copies.acknowledge(db, HeadAck(A, FOLDER, 2, 1, 1, 7))
    assert copies.acks(db, FOLDER)[0].state_seq == 7


def test_an_answer_owed_since_the_future_is_owed_since_now(db: sqlite3.Connection) -> None:
    """Noted while the clock was ahead, it would excuse the holder until then."""
    one = bundle(db, 1)
    copies.put(db, Copy(one, A, 0, 10, 100, b"r"))
    for now, owed_since in ((10**15, 10**15), (50, 50), (60, 50)):
        copies.owed(db, one, A, now)
        assert copies.of_bundle(db, one)[0].owed_since == owed_since


@pytest.mark.parametrize("state", ["suspect", "moving"])
def test_what_is_looked_for_every_minute_has_an_index(db: sqlite3.Connection, state: str) -> None:
    """With 100,000 bundles a look through all copies reads 160 MB."""
    query = f"EXPLAIN QUERY PLAN SELECT DISTINCT holder FROM copies WHERE state='{state}'"
    assert f"copies_{state}" in str(db.execute(query).fetchall())
