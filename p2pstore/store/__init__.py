"""What lies on the disk: bundles, the catalog, and bundles kept for others.

The rows of the catalog are reached through the modules `blocks`, `copies`, `files`, `folders` and
`journal`, whose functions take the connection first and are put together in `Catalog.write`.
"""

from p2pstore.store import blocks, copies, files, folders, journal
from p2pstore.store.bundles import (
    BundleDamaged,
    BundleMissing,
    BundleStore,
    OpenBundle,
    Salvaged,
    StoreFailed,
)
from p2pstore.store.catalog import Catalog, CatalogDamaged, CatalogFailed
from p2pstore.store.disk import DiskBundles
from p2pstore.store.memory import MemoryBundles

__all__ = [
    "BundleDamaged",
    "BundleMissing",
    "BundleStore",
    "Catalog",
    "CatalogDamaged",
    "CatalogFailed",
    "DiskBundles",
    "MemoryBundles",
    "OpenBundle",
    "Salvaged",
    "StoreFailed",
    "blocks",
    "copies",
    "files",
    "folders",
    "journal",
]
