"""Restore: a manifest becomes bytes again, or an error that says what is missing.

It touches no watched folder (placement does); where blocks come from is the business of the
`BlockSource` that it is handed.
"""

from p2pstore.restore.reading import SMALL, BlockSource, Judge, Piece, Restore, Wanted
from p2pstore.restore.writing import write_copy

__all__ = ["SMALL", "BlockSource", "Judge", "Piece", "Restore", "Wanted", "write_copy"]
