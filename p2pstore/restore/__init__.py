"""Restore: a manifest becomes bytes again, or an error that says what is missing.

It reads no user's folder and writes none (placement does); where blocks come from is the
business of the `BlockSource` that it is handed.
"""

from p2pstore.restore.reading import SMALL, BlockSource, Judge, Piece, Restore, Wanted

__all__ = ["SMALL", "BlockSource", "Judge", "Piece", "Restore", "Wanted"]
