"""The look at what lies on the disk, at start, that fills the table.

Everything is known from the files. What a crash left between two steps is put right here: a bundle
in the trash whose side file does not say so comes out of it, one without side file that was still
an upload is one again. A bundle whose side file is damaged or gone is kept for a whole lease,
counts as locked, and takes its tag and live map from the owner's next PUT; all of its blocks are
compared then. A side file that the disk does not give is no damaged one: the start fails.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import LiveMap
from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import BundleId, group_id_of, short
from p2pstore.store.bundles import BundleDamaged
from p2pstore.store.held.maps import known_map, live_bytes
from p2pstore.store.held.promises import LOCK_S, Promises
from p2pstore.store.held.table import NOBODY, UNKNOWN_TAG, Entry, Table, slim
from p2pstore.store.held.uploads import Uploads
from p2pstore.store.sidefile import SideFile, SideReplaced, read_side

logger = logging.getLogger(__name__)

LEASE_MS: Final = 180 * 86_400_000  # what the lease was is not known any more


class Scan:
    def __init__(self, table: Table, promises: Promises, uploads: Uploads, clock: Clock) -> None:
        self._table = table
        self._promises = promises
        self._uploads = uploads
        self._clock = clock
        self._sealed = set(table.files.list())
        self._trashed = set(table.files.trash())

    def run(self) -> list[BundleId]:
        """Fill the table; what was promised and is not on the disk."""
        lost: list[BundleId] = []
        for bundle_id, path in self._table.sides.every():
            side = _read(bundle_id, path)
            if side is not None and not self._take(side):
                lost.append(bundle_id)
        for bundle_id in sorted(self._sealed | self._trashed):
            if self._table.get(bundle_id) is None and not self._take_orphan(bundle_id):
                lost.append(bundle_id)
        return lost

    def _take(self, side: SideFile) -> bool:
        """False when the bundle is lost."""
        bundle_id = side.bundle_id
        is_sealed, is_trashed = bundle_id in self._sealed, bundle_id in self._trashed
        if not is_sealed and not is_trashed:
            if side.released_ms:
                self._table.sides.remove(bundle_id)  # purged; only its side file was left
            elif not self._uploads.list_path(bundle_id).exists():
                logger.error("The held bundle %s is not on the disk.", short(bundle_id))
                return False
            return True
        if not is_sealed and not side.released_ms:
            self._table.files.from_trash(bundle_id)
        if is_sealed and side.released_ms:
            side = msgspec.structs.replace(side, released_ms=0)
            self._table.sides.write(side)
        locks = self._promises.after_start(side)
        self._table.insert(Entry(slim(side), group_id_of(side.group), known_map(side), locks))
        return True

    def _take_orphan(self, bundle_id: BundleId) -> bool:
        """A bundle without a readable side file; False when it cannot be read itself."""
        files = self._table.files
        if bundle_id in self._trashed:
            files.from_trash(bundle_id)
        has_side = self._table.sides.path(bundle_id).exists()
        if self._uploads.list_path(bundle_id).exists() and not has_side:
            files.path(bundle_id).rename(self._uploads.part_path(bundle_id))
            return True
        try:
            index = files.index(bundle_id)
        except BundleDamaged:
            logger.error("The held bundle %s cannot be read.", short(bundle_id))
            return False
        live = LiveMap.all_live(bundle_id, len(index.blocks))
        side = SideFile(
            bundle_id=bundle_id,
            group=index.header.group,
            opener=index.header.opener,
            kind=index.header.kind,
            tag=UNKNOWN_TAG,
            lease_until_ms=int(self._clock.wall() * 1000) + LEASE_MS,
            live_map=b"",
            blocks=len(index.blocks),
            live_bytes=live_bytes(index, live),
            replaces=tuple(SideReplaced(*old) for old in index.blocks.replaces),
        )
        self._table.sides.write(side)
        locks = {NOBODY: self._clock.monotonic() + LOCK_S}
        entry = Entry(side, group_id_of(side.group), live, locks, is_damaged=True)
        self._table.insert(entry)
        return True


def _read(bundle_id: BundleId, path: Path) -> SideFile | None:
    """None when it is damaged: its bundle is taken up as an orphan."""
    try:
        side = read_side(path, bundle_id)
        known_map(side)
    except (FormatError, IntegrityError) as exc:
        logger.warning("The side file of held bundle %s: %s", short(bundle_id), exc)
        return None
    return side
