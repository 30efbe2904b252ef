"""What audits of a holder come to."""

from __future__ import annotations

import sqlite3

from p2pstore.ids import NodeId
from p2pstore.store import holders
from p2pstore.store.holders import LATELY, HolderRow

A, B = NodeId(b"a" * 20), NodeId(b"b" * 20)


def test_the_first_receipt_is_remembered(db: sqlite3.Connection) -> None:
    holders.unanswered(db, A)
    holders.received(db, A, 5)
    holders.received(db, A, 9)
    assert holders.every(db) == {A: HolderRow(A, since=5, asked=1)}


def test_a_failure_begins_the_counting_anew(db: sqlite3.Connection) -> None:
    holders.passed(db, A, 100)
    holders.passed(db, A, 100)
    assert holders.every(db)[A] == HolderRow(A, passed=2, asked=2, answered=2)
    holders.failed(db, A, 7, is_lie=False)
    holders.failed(db, B, 8, is_lie=True)
    assert holders.every(db) == {
        A: HolderRow(A, passed=0, failed_at=7, asked=3, answered=2),
        B: HolderRow(B, failed_at=8, lied_at=8, asked=1),
    }


def test_what_was_long_ago_weighs_less(db: sqlite3.Connection) -> None:
    for _ in range(LATELY + 1):
        holders.passed(db, A, 100)
    row = holders.every(db)[A]
    assert row.asked == row.answered == (LATELY + 1) // 2
    assert row.passed == LATELY + 1


def test_what_was_noted_in_the_future_ends_with_a_good_answer(db: sqlite3.Connection) -> None:
    holders.received(db, A, 10**15)
    holders.failed(db, A, 10**15, is_lie=True)
    holders.passed(db, A, 50)
    row = holders.every(db)[A]
    assert (row.since, row.failed_at, row.lied_at) == (50, 50, 49)
