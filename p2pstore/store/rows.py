"""What the catalog's functions share: SQL for many values at a time."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

# Values in one IN (...): far below SQLite's limit of 32,766, and padded to a few fixed lengths so
# that the statements stay prepared.
_WIDTHS: Final = (8, 64, 512)


def rows_in(
    db: sqlite3.Connection, query: str, keys: Sequence[Any], before: Sequence[Any] = ()
) -> Iterator[tuple[Any, ...]]:
    """All rows of `query`, where `{keys}` stands for the list of an IN; in no order."""
    start = 0
    while start < len(keys):
        part = keys[start : start + _WIDTHS[-1]]
        start += len(part)
        width = next(width for width in _WIDTHS if width >= len(part))
        padded = [*before, *part, *([None] * (width - len(part)))]
        yield from db.execute(query.format(keys=_marks(width)), padded)


def _marks(width: int) -> str:
    return ",".join("?" * width)


def below(prefix: bytes) -> tuple[bytes, bytes]:
    """Bounds [low, high) of all paths beneath the directory `prefix`; b"" is the folder itself."""
    if not prefix:
        return b"", b"\xff" * 256  # above every path, because a name has at most 255 bytes
    return prefix + b"/", prefix + b"0"  # "0" follows "/"
