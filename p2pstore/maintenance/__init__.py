"""Maintenance: copies, indexes, eviction, and what else keeps the store healthy by itself."""

from p2pstore.maintenance.evict import Evictor, Freed, recover
from p2pstore.maintenance.facts import Ledger, World
from p2pstore.maintenance.index import IndexWriter
from p2pstore.maintenance.replicate import Replicator
from p2pstore.maintenance.service import Maintenance, Swarm

__all__ = [
    "Evictor",
    "Freed",
    "IndexWriter",
    "Ledger",
    "Maintenance",
    "Replicator",
    "Swarm",
    "World",
    "recover",
]
