"""STRAYS: sealed bundles on this disk that the catalog does not know.

A bundle is sealed first, then recorded; a kill between the two leaves one that nothing refers to.
At start it gets a row, as something that no manifest ever named: it goes after 24 hours, by the
rules of everything that is collected, unless another device names it or a file comes to need it.
Nothing is removed here.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from functools import partial

from p2pstore.errors import IntegrityError, Unavailable
from p2pstore.ids import BundleId, PublicKey, Tag, short
from p2pstore.maintenance.filing import bundle_row
from p2pstore.store import BundleRow, BundleStore, Catalog, blocks, dying

log = logging.getLogger(__name__)


def take_in(
    catalog: Catalog, store: BundleStore, *, me: PublicKey, tag_of: Callable[[BundleId], Tag]
) -> int:
    """How many got a row. Blocks on the disk; before anything else of the node writes bundles."""
    here = store.list()
    known = catalog.view(lambda db: blocks.get_bundles(db, here))
    taken = 0
    for bundle_id in here:
        if bundle_id in known:
            continue
        try:
            row = bundle_row(store, bundle_id, tag_of(bundle_id), me)
        except (Unavailable, IntegrityError) as exc:
            log.warning("Bundle %s is not known and not whole: %s", short(bundle_id), exc)
            continue  # `check` names it
        catalog.write(partial(_record, row)).result()
        log.info("Bundle %s was left by the last end; nothing needs it yet.", short(bundle_id))
        taken += 1
    return taken


def _record(row: BundleRow, db: sqlite3.Connection) -> None:
    dying.leave_unnamed(db, blocks.put_bundle(db, row))
