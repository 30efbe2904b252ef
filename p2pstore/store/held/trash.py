"""The trash of held bundles: what was released stays for 7 days, and may come back.

The orders that a crash must not upset: releasing moves the bundle, then says so in the side file;
taking back says so, then moves it. What lies between is read at the next start as "kept".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2pstore.clock import Clock
from p2pstore.ids import BundleId
from p2pstore.store.held.promises import Promises
from p2pstore.store.held.table import Entry, Table

TRASH_MS: Final = 7 * 86_400_000


class Trash:
    def __init__(self, table: Table, promises: Promises, clock: Clock) -> None:
        self._table = table
        self._promises = promises
        self._clock = clock

    def release(self, bundle_id: BundleId) -> None:
        with self._table.lock:
            entry = self._table.here(bundle_id)
            self._promises.refuse_when_locked(entry)
            self._table.files.to_trash(bundle_id)
            self._table.change(entry, released_ms=max(1, self._now_ms()))
            entry.is_removing = False

    def take_back(self, bundle_id: BundleId) -> None:
        with self._table.lock:
            entry = self._table.entry(bundle_id)
            if entry.side.released_ms:
                self._table.change(entry, released_ms=0)
                self._table.files.from_trash(bundle_id)

    def purge_old(self) -> list[BundleId]:
        """Remove what was released more than 7 days ago; its ids."""
        now_ms = self._now_ms()
        with self._table.lock:
            entries = self._table.trashed()
            old = [one for one in entries if one.side.released_ms + TRASH_MS <= now_ms]
            return self._purge(old)

    def purge(self, bundles: Sequence[BundleId]) -> list[BundleId]:
        """Remove those of them that were released, however short ago."""
        wanted = frozenset(bundles)
        with self._table.lock:
            entries = self._table.trashed()
            return self._purge([one for one in entries if one.side.bundle_id in wanted])

    def _purge(self, entries: Sequence[Entry]) -> list[BundleId]:
        for entry in entries:
            bundle_id = entry.side.bundle_id
            self._table.files.purge(bundle_id)
            self._table.sides.remove(bundle_id)
            self._table.remove(bundle_id)
        return [entry.side.bundle_id for entry in entries]

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)
