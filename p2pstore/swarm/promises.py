"""What we promised, and what we are about to do, with bundles that this node opened itself.

The other devices of the group may count our own copy of a bundle as one of its copies, and lock it
while they evict theirs. HeldStore keeps such promises for what is held for others; this is the same
for our own store, in one file:

    [boot id, [[bundle id (32), node id (20), until (s, monotonic clock of that boot)], ...]]

as MessagePack, written whole and synced before LOCKED is answered. After a reboot each lock lasts
its full ten minutes again; when the file cannot be read, everything counts as locked for as long.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Annotated, Final

import msgspec

from p2pstore.clock import Clock
from p2pstore.durable import replace_file
from p2pstore.errors import Busy, Unavailable
from p2pstore.ids import BundleId, NodeId, short

log = logging.getLogger(__name__)

LOCK_S: Final = 600.0
MAX_LOCKS: Final = 10_000  # a device that evicts locks a few bundles at a time
MAX_FILE: Final = 2 << 20


class _Lock(msgspec.Struct, frozen=True, array_like=True):
    bundle: BundleId
    node: NodeId
    until_s: float


class _File(msgspec.Struct, frozen=True, array_like=True):
    boot_id: str
    locks: Annotated[tuple[_Lock, ...], msgspec.Meta(max_length=MAX_LOCKS)]


class OwnPromises:
    """Locks on own bundles, and own removals. Methods block on the disk; any thread may call."""

    def __init__(self, path: Path, clock: Clock, *, boot_id: str) -> None:
        self._path = path
        self._clock = clock
        self._boot_id = boot_id
        self._lock = threading.Lock()
        self._locks: dict[BundleId, dict[NodeId, float]] = {}
        self._all_until = 0.0
        self.removals: set[BundleId] = set()  # nobody gets a lock or a proof of these
        self._load()

    def lock(self, bundle_id: BundleId, locker: NodeId, seconds: float) -> float:
        """Promise to keep it; the seconds granted, durable. Busy while we remove it ourselves."""
        with self._lock:
            if bundle_id in self.removals:
                raise Busy(f"Bundle {short(bundle_id)} is being removed here.")
            self._drop_old()
            if sum(map(len, self._locks.values())) >= MAX_LOCKS:
                raise Busy("This node has given too many locks.")
            seconds = min(max(seconds, 0.0), LOCK_S)
            until = self._clock.monotonic() + seconds
            lockers = self._locks.setdefault(bundle_id, {})
            lockers[locker] = max(until, lockers.get(locker, 0.0))
            self._save()
            return seconds

    def unlock(self, bundle_id: BundleId, locker: NodeId) -> None:
        with self._lock:
            if self._locks.get(bundle_id, {}).pop(locker, None) is not None:
                self._drop_old()
                self._save()

    def locked_for(self, bundle_id: BundleId) -> float:
        """Seconds until the last lock on it ends; 0 when there is none."""
        with self._lock:
            return self._locked_for(bundle_id)

    def begin_removal(self, bundle_id: BundleId) -> None:
        """From now on nobody gets a lock. Busy when somebody has one."""
        with self._lock:
            if self._locked_for(bundle_id) > 0:
                raise Busy(f"Bundle {short(bundle_id)} is locked by another device.")
            self.removals.add(bundle_id)

    def end_removal(self, bundle_id: BundleId) -> None:
        with self._lock:
            self.removals.discard(bundle_id)

    def lock_all(self, seconds: float = LOCK_S) -> None:
        """Everything counts as locked, in memory only: after the catalog was rebuilt."""
        with self._lock:
            self._all_until = max(self._all_until, self._clock.monotonic() + seconds)

    def _locked_for(self, bundle_id: BundleId) -> float:
        until = max(self._locks.get(bundle_id, {}).values(), default=0.0)
        return max(0.0, max(until, self._all_until) - self._clock.monotonic())

    def _drop_old(self) -> None:
        now = self._clock.monotonic()
        kept = {
            bundle: {node: until for node, until in lockers.items() if until > now}
            for bundle, lockers in self._locks.items()
        }
        self._locks = {bundle: lockers for bundle, lockers in kept.items() if lockers}

    def _save(self) -> None:
        locks = tuple(
            _Lock(bundle, node, until)
            for bundle, lockers in self._locks.items()
            for node, until in lockers.items()
        )
        try:
            replace_file(self._path, msgspec.msgpack.encode(_File(self._boot_id, locks)))
        except OSError as exc:
            raise Unavailable(f"A lock cannot be kept on the disk: {exc}.") from exc

    def _load(self) -> None:
        now = self._clock.monotonic()
        try:
            with self._path.open("rb") as file:
                content = msgspec.msgpack.decode(file.read(MAX_FILE), type=_File)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as exc:
            log.warning("The locks that other devices hold cannot be read: %s", exc)
            self._all_until = now + LOCK_S
            return
        same_boot = content.boot_id == self._boot_id
        for lock in content.locks:
            until = min(lock.until_s, now + LOCK_S) if same_boot else now + LOCK_S
            self._locks.setdefault(lock.bundle, {})[lock.node] = until
        self._drop_old()
