"""Leases and locks: what was promised of a held bundle, and what they forbid.

A lease says until when it is kept for its owner; it is only ever made longer. A lock says that
somebody relies on it just now, for ten minutes at most: while there is one, nothing of the bundle
goes. Each promise is in the side file before anybody hears of it.

Locks last on the monotonic clock. After a reboot, whose clock says nothing of the old one, each
lock that the side file names lasts its full ten minutes again (SAFETY.md 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from p2pstore.clock import Clock
from p2pstore.errors import Busy
from p2pstore.ids import BundleId, GroupId, NodeId, short
from p2pstore.store.bundles import BundleDamaged
from p2pstore.store.held.maps import StaleMap
from p2pstore.store.held.table import NOBODY, Entry, Table
from p2pstore.store.sidefile import MAX_LOCKS, SideFile

LOCK_S: Final = 600.0  # the longest lock, and what any lock becomes after a reboot
LOCK_LEASE_MS: Final = 60 * 86_400_000  # a locked bundle has at least this lease


class Promises:
    def __init__(self, table: Table, clock: Clock) -> None:
        self._table = table
        self._clock = clock

    def lock(self, bundle_id: BundleId, locker: NodeId, seconds: float, seq: int) -> float:
        with self._table.lock:
            entry = self._table.here(bundle_id)
            if entry.live.seq != seq:
                raise StaleMap(bundle_id, entry.live.seq)
            if entry.is_removing:
                raise Busy(f"Bundle {short(bundle_id)} is being removed here.")
            if entry.is_damaged:
                raise BundleDamaged(bundle_id, "it waits for a new upload")
            self._drop_old_locks(entry)
            if len(entry.locks) >= MAX_LOCKS and locker not in entry.locks:
                raise Busy(f"Bundle {short(bundle_id)} has too many locks.")
            seconds = min(max(seconds, 0.0), LOCK_S)
            until = self._clock.monotonic() + seconds
            locks = {**entry.locks, locker: max(until, entry.locks.get(locker, 0.0))}
            now_ms = int(self._clock.wall() * 1000)
            lease = max(entry.side.lease_until_ms, now_ms + LOCK_LEASE_MS)
            self._table.change(entry, locks=locks, lease_until_ms=lease)
            return seconds

    def unlock(self, bundle_id: BundleId, locker: NodeId) -> None:
        with self._table.lock:
            entry = self._table.get(bundle_id)
            if entry is not None and locker in entry.locks:
                left = {node: until for node, until in entry.locks.items() if node != locker}
                self._table.change(entry, locks=left)

    def locked_for(self, bundle_id: BundleId) -> float:
        with self._table.lock:
            entry = self._table.entry(bundle_id)
            self._drop_old_locks(entry)
            now = self._clock.monotonic()
            return max((until - now for until in entry.locks.values()), default=0.0)

    def lock_all(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        with self._table.lock:
            for entry in (*self._table.every(), *self._table.trashed()):
                entry.locks[NOBODY] = max(until, entry.locks.get(NOBODY, 0.0))

    def after_start(self, side: SideFile) -> dict[NodeId, float]:
        """The locks of a side file that this process has just read."""
        now = self._clock.monotonic()
        same_boot = side.lock_boot_id == self._table.boot_id
        locks = {
            lock.locker: min(lock.until_s, now + LOCK_S) if same_boot else now + LOCK_S
            for lock in side.locks
        }
        return {node: until for node, until in locks.items() if until > now}

    def begin_removal(self, bundle_id: BundleId) -> None:
        with self._table.lock:
            entry = self._table.here(bundle_id)
            self.refuse_when_locked(entry)
            entry.is_removing = True

    def end_removal(self, bundle_id: BundleId) -> None:
        with self._table.lock:
            if (entry := self._table.get(bundle_id)) is not None:
                entry.is_removing = False

    def refuse_when_locked(self, entry: Entry) -> None:
        if self.locked_for(entry.side.bundle_id) > 0:
            raise Busy(f"Bundle {short(entry.side.bundle_id)} is locked.")

    def renew(
        self, bundles: Sequence[BundleId], lease_until_ms: int, group: GroupId
    ) -> list[int | None]:
        with self._table.lock:
            found = [self._promisable(bundle_id, group) for bundle_id in bundles]
            shorter = {
                entry.side.bundle_id: entry
                for entry in found
                if entry is not None and entry.side.lease_until_ms < lease_until_ms
            }
            if shorter:
                self._table.change_all(list(shorter.values()), lease_until_ms=lease_until_ms)
            return [None if entry is None else entry.live.seq for entry in found]

    def _promisable(self, bundle_id: BundleId, group: GroupId) -> Entry | None:
        entry = self._table.get(bundle_id)
        if entry is None or entry.group != group or entry.side.released_ms:
            return None
        return None if entry.is_removing or entry.is_damaged else entry

    def _drop_old_locks(self, entry: Entry) -> None:
        now = self._clock.monotonic()
        entry.locks = {node: until for node, until in entry.locks.items() if until > now}
