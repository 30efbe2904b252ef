"""What the catalog knows, as the swarm asks for it, and how far the announcements have come.

Each question is one read of the catalog; all may be asked in any thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from p2pstore.durable import replace_file
from p2pstore.ids import BundleId, NodeId, Tag
from p2pstore.store import Catalog, blocks, copies, merged


class Known:
    def __init__(self, catalog: Catalog, carriers: Callable[[], Collection[NodeId]]) -> None:
        """`carriers`: what stands for them; they are no nodes, and nobody dials them."""
        self._catalog = catalog
        self._carriers = carriers
        self._newest = 0  # row of the last own bundle that was listed

    def tags(self) -> list[Tag]:
        """Of all own bundles that are sealed here, and of those that were merged into them."""
        tags, last = self._own_tags(0)
        self._newest = max(self._newest, last)
        return [*tags, *self._catalog.view(merged.tags)]

    def new_tags(self) -> list[Tag]:
        """Of own bundles that were sealed since they were last listed."""
        tags, self._newest = self._own_tags(self._newest)
        return tags

    def _own_tags(self, after: int) -> tuple[list[Tag], int]:
        """Of sealed bundles behind that row, and the last row."""

        def look(db: sqlite3.Connection) -> tuple[list[Tag], int]:
            tags: list[Tag] = []
            last = after
            sealed = (blocks.BundleState.SEALED,)
            while page := blocks.list_bundles(db, states=sealed, after=last):
                tags.extend(row.tag for row in page)
                last = page[-1].id
            return tags, last

        return self._catalog.view(look)

    def by_tag(self, tag: Tag) -> BundleId | None:
        row = self._catalog.view(lambda db: blocks.by_tag(db, tag))
        return None if row is None else row.bundle_id

    def alias(self, bundle_id: BundleId) -> BundleId | None:
        row = self._catalog.view(lambda db: blocks.get_bundle(db, bundle_id))
        return None if row is None or row.bundle_id == bundle_id else row.bundle_id

    def holders(self, bundles: Sequence[BundleId]) -> Mapping[BundleId, Sequence[NodeId]]:
        """Which nodes hold these, as far as the catalog knows."""
        carriers = self._carriers()

        def look(db: sqlite3.Connection) -> dict[BundleId, Sequence[NodeId]]:
            rows = merged.where(db, list(bundles))
            known = copies.of_bundles(db, [row.id for row in rows.values()])
            return {
                bundle_id: [
                    copy.holder
                    for copy in known.get(row.id, ())
                    if copy.state in copies.HAVING and copy.holder not in carriers
                ]
                for bundle_id, row in rows.items()
            }

        return self._catalog.view(look)


class SweepNotes:
    """In HOME/announced; losing it costs a sweep."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> bytes | None:
        return self._path.read_bytes() if self._path.exists() else None

    def save(self, raw: bytes) -> None:
        replace_file(self._path, raw)
