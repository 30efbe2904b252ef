"""ALIASES: which bundles were merged into which, told anew by the lists that their opener signed.

Manifests go on naming what was merged, so a catalog that does not know the aliases takes it for
lost. A list says which bundles its own one replaces:

    of a bundle here     what it replaces, and lies not here, is in it; what lies here as well is
                         not replaced yet: the merge is still under way (`merge`), or begins again
    of one at a holder   whoever is asked for a lost bundle answers with the list of the bundle
                         that stands for it. So it is with what another device opened, and all
                         holders have let go of: it may have merged it

Of two bundles that replace the same one the smaller list is nearer to it: the other one replaces
that one too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from p2pstore.content import BundleIndex, Replaced
from p2pstore.ids import BundleId, Tag
from p2pstore.maintenance.index import follow_merged
from p2pstore.store import (
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    blocks,
    copies,
    folders,
    merged,
)


def of_bundles_here(catalog: Catalog, store: BundleStore, known: Sequence[BundleRow]) -> None:
    """Aliases, and merges under way, of a catalog that has nothing but the rows of these bundles.
    Blocks on the disk."""
    lists = {row.bundle_id: store.index(row.bundle_id).blocks.replaces for row in known}
    own = {row.bundle_id for row in known if row.own}

    def change(db: sqlite3.Connection) -> None:
        rows = blocks.get_bundles(db, list(lists))
        for new, replaced in sorted(lists.items(), key=lambda one: -len(one[1])):
            for old in replaced:
                if old.bundle_id not in lists:
                    blocks.add_alias(db, old.bundle_id, old.tag, rows[new].id)
        for new in sorted(own):
            both = [rows[old.bundle_id].id for old in lists[new] if old.bundle_id in rows]
            if both and not merged.names(db, rows[new].id):
                blocks.add_root(db, merged.root_of(new), [rows[new].id, *both])

    if any(lists.values()):
        catalog.write(change).result()


# Opened by another device, and everybody who had it has let go of it.
_ADRIFT = (
    "b.own=0 AND b.state='evicted' AND NOT EXISTS (SELECT 1 FROM copies c WHERE c.bundle=b.id"
    f" AND c.state IN ({', '.join(repr(str(state)) for state in copies.HAVING)}))"
)


def lost(db: sqlite3.Connection) -> list[BundleId]:
    """What may have been merged into something that is not known here."""
    query = f"SELECT b.bundle_id FROM bundles b WHERE b.state='lost' OR ({_ADRIFT}) ORDER BY 1"
    return [BundleId(bundle_id) for (bundle_id,) in db.execute(query)]


def is_any_adrift(db: sqlite3.Connection) -> bool:
    """Whether another device may have merged what it had told of."""
    return db.execute(f"SELECT 1 FROM bundles b WHERE {_ADRIFT} LIMIT 1").fetchone() is not None


def learn(index: BundleIndex, tag: Tag, *, own: bool, db: sqlite3.Connection) -> bool:
    """A holder has a bundle that replaces lost ones: whatever needs these needs that one. False
    when it replaces none of them. Whether its opener is believed is the caller's to judge; what
    this device opened nobody else can merge."""
    header = index.header
    found = (_lost(db, old, header.kind) for old in index.blocks.replaces)
    gone = [row for row in found if row is not None and (own or not row.own)]
    there = blocks.exactly(db, header.bundle_id)
    if not gone or (there is not None and there.state == BundleState.DEAD):
        return False
    if there is None:
        # Lost as well, until a holder says that it keeps it.
        row = BundleRow(
            bundle_id=header.bundle_id,
            tag=tag,
            kind=header.kind,
            folder=None,
            state=BundleState.LOST,
            bytes=0,
            blocks=len(index.blocks),
            created=header.created_ms,
            own=int(own),
        )
        number = blocks.put_bundle(db, row)
    else:
        number = there.id
        # The number of its live map was a holder's word. Its list is signed; a map comes with it.
        change = "UPDATE bundles SET blocks=?, seq=0 WHERE id=? AND blocks=0"
        db.execute(change, (len(index.blocks), number))
    for row in gone:
        follow(db, row, number)
        blocks.forget_unreferenced(db, row.id)
    return True


def _lost(db: sqlite3.Connection, old: Replaced, kind: int) -> BundleRow | None:
    query = (
        f"SELECT b.id FROM bundles b WHERE b.bundle_id=? AND b.kind=?"
        f" AND (b.state='lost' OR ({_ADRIFT}))"
    )
    found = db.execute(query, (old.bundle_id, kind)).fetchone()
    return None if found is None else blocks.by_rowid(db, found[0])


def follow(db: sqlite3.Connection, old: BundleRow, new: int) -> None:
    """Whatever needs the old bundle needs the new one, indexes too."""
    merged.follow(db, old, new)
    for folder in folders.every(db):
        follow_merged(db, folder.folder_id, {old.id: new})
