from __future__ import annotations

import sqlite3

from p2pstore.store import journal
from p2pstore.store.journal import Intent, IntentKind


def test_an_intent_lives_until_it_is_closed(db: sqlite3.Connection) -> None:
    one = journal.open_intent(db, IntentKind.REPLACE, b"body", 5)
    assert journal.get(db, one) == Intent(one, "replace", "open", b"body", 5)
    assert journal.advance(db, one, "commit")
    assert journal.advance(db, one, "trashed", b"more")
    assert journal.all_open(db) == [Intent(one, "replace", "trashed", b"more", 5)]
    assert journal.close(db, one)
    assert journal.all_open(db) == []
    assert not journal.close(db, one)
    assert not journal.advance(db, one, "late")


def test_open_intents_come_in_order(db: sqlite3.Connection) -> None:
    kinds = [IntentKind.INGEST, IntentKind.EVICT, IntentKind.INGEST]
    ids = [journal.open_intent(db, kind, b"", 1) for kind in kinds]
    assert [intent.id for intent in journal.all_open(db)] == ids
    assert [intent.id for intent in journal.all_open(db, IntentKind.INGEST)] == [ids[0], ids[2]]


def test_a_number_is_never_used_again(db: sqlite3.Connection) -> None:
    one = journal.open_intent(db, IntentKind.INGEST, b"", 1)
    journal.close(db, one)
    assert journal.open_intent(db, IntentKind.INGEST, b"", 1) > one
