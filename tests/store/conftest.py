from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest

from p2pstore.ids import FolderId
from p2pstore.store import folders, schema


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    """A catalog's tables in memory: what the domain functions are tested on."""
    made = sqlite3.connect(":memory:", isolation_level=None)
    for step in schema.STEPS:
        made.executescript(step)
    yield made
    made.close()


@pytest.fixture
def folder(db: sqlite3.Connection) -> int:
    return folders.add(db, FolderId(b"f" * 16), b"/home/me/docs", "docs", b"", b"")
