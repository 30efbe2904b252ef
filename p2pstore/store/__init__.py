"""What lies on the disk: bundles, the catalog, and bundles kept for others.

The rows of the catalog are reached through the modules `blocks`, `copies`, `dying`, `files`,
`folders`, `holders`, `journal` and `merged`, whose functions take the connection first and are put
together in `Catalog.write`.
"""

from p2pstore.store import blocks, copies, dying, files, folders, holders, journal, merged
from p2pstore.store.blocks import ONCE, SHARED, BundleRow, BundleState, DedupRow, Known
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
from p2pstore.store.files import FileRow, State
from p2pstore.store.held import Held, HeldStore, StaleMap, Upload
from p2pstore.store.journal import IntentKind
from p2pstore.store.memory import MemoryBundles
from p2pstore.store.part import Part
from p2pstore.store.sidefile import SideFile

__all__ = [
    "ONCE",
    "SHARED",
    "BundleDamaged",
    "BundleMissing",
    "BundleRow",
    "BundleState",
    "BundleStore",
    "Catalog",
    "CatalogDamaged",
    "CatalogFailed",
    "DedupRow",
    "DiskBundles",
    "FileRow",
    "Held",
    "HeldStore",
    "IntentKind",
    "Known",
    "MemoryBundles",
    "OpenBundle",
    "Part",
    "Salvaged",
    "SideFile",
    "StaleMap",
    "State",
    "StoreFailed",
    "Upload",
    "blocks",
    "copies",
    "dying",
    "files",
    "folders",
    "holders",
    "journal",
    "merged",
]
