"""Ingest: open files become durable, verified blocks and a manifest each.

The door of the pipeline: `Ingest.protect` takes a batch and returns, per file, what is now safe in
the local store. It neither opens, leases nor replaces a user's file (placement does), and it
decides nothing about which files to take (folders does).
"""

from p2pstore.ingest.intake import Author, Intake, NotProtected, Protected, Version
from p2pstore.ingest.pipeline import Ingest

__all__ = ["Author", "Ingest", "Intake", "NotProtected", "Protected", "Version"]
