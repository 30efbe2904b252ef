"""What is held, in memory: one entry for each bundle, and the ways to find it.

Hides how the side files and memory are kept alike: a change is written to the side file first, and
only then seen here. Grants stay on the disk alone; they are many, and asked for rarely. Whoever
looks and then changes holds `lock` for both.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from p2pstore.content import LiveMap
from p2pstore.errors import NotAllowed
from p2pstore.ids import BundleId, GroupId, NodeId, PublicKey, Tag, node_id_of, short
from p2pstore.store.bundles import BundleDamaged, BundleMissing
from p2pstore.store.disk import DiskBundles
from p2pstore.store.held.sides import Sides
from p2pstore.store.sidefile import MAX_GRANT_BYTES, MAX_GRANTS, SideFile, SideLock

logger = logging.getLogger(__name__)

UNKNOWN_TAG: Final = Tag(bytes(20))
NOBODY: Final = NodeId(bytes(20))  # holds the locks that no node asked for


class Held(NamedTuple):
    """One held bundle, as lists tell it."""

    bundle_id: BundleId
    tag: Tag
    kind: int
    opener: bytes
    seq: int
    live_bytes: int
    lease_until_ms: int


@dataclass(slots=True)
class Entry:
    """What is known of one bundle without reading its side file."""

    side: SideFile  # without grants and locks
    group: GroupId
    live: LiveMap
    locks: dict[NodeId, float] = field(default_factory=dict)  # until, on the monotonic clock
    is_removing: bool = False
    is_damaged: bool = False  # to be compared block by block at the next PUT

    @property
    def line(self) -> Held:
        side = self.side
        return Held(
            side.bundle_id,
            side.tag,
            side.kind,
            side.opener,
            self.live.seq,
            side.live_bytes,
            side.lease_until_ms,
        )


class HeldFiles(DiskBundles):
    """Bundle files whose live maps come from the side files."""

    def __init__(self, root: Path, live_of: Callable[[BundleId], LiveMap]) -> None:
        super().__init__(root)
        self._live_of = live_of

    def live_map(self, bundle_id: BundleId) -> LiveMap:
        return self._live_of(bundle_id)


class Table:
    def __init__(self, root: Path, *, boot_id: str) -> None:
        """Empty: `scan` fills it."""
        self.boot_id = boot_id
        self.lock = threading.RLock()
        self.files = HeldFiles(root / "bundles", lambda bundle_id: self.entry(bundle_id).live)
        self.sides = Sides(root / "sides", self.files)
        self._entries: dict[BundleId, Entry] = {}
        self._order: dict[GroupId, list[BundleId]] = {}
        self._used: dict[GroupId, int] = {}
        self._tags: dict[Tag, list[BundleId]] = {}
        self._aliases: dict[BundleId, list[BundleId]] = {}  # one may be merged more than once

    # -- finding ---------------------------------------------------------------------------------

    def get(self, bundle_id: BundleId) -> Entry | None:
        """Also of what is in the trash."""
        with self.lock:
            return self._entries.get(bundle_id)

    def entry(self, bundle_id: BundleId) -> Entry:
        """Also of what is in the trash; BundleMissing."""
        entry = self.get(bundle_id)
        if entry is None:
            raise BundleMissing(bundle_id)
        return entry

    def here(self, bundle_id: BundleId) -> Entry:
        """BundleMissing when it is not held, or in the trash."""
        entry = self.entry(bundle_id)
        if entry.side.released_ms:
            raise BundleMissing(bundle_id, "was released")
        return entry

    def has(self, bundle_id: BundleId) -> bool:
        entry = self.get(bundle_id)
        return entry is not None and not entry.side.released_ms

    def resolve(self, bundle_id: BundleId) -> BundleId | None:
        """Itself, or the one that it was merged into."""
        with self.lock:
            if self.has(bundle_id):
                return bundle_id
            return next((one for one in self._aliases.get(bundle_id, ()) if self.has(one)), None)

    def find_tag(self, tag: Tag, group: GroupId | None) -> BundleId | None:
        with self.lock:
            for bundle_id in self._tags.get(tag, ()):
                if self.has(bundle_id) and group in (None, self._entries[bundle_id].group):
                    return bundle_id
        return None

    def tags(self) -> list[Tag]:
        with self.lock:
            return [tag for tag, ids in self._tags.items() if any(self.has(one) for one in ids)]

    def page(self, group: GroupId, after: BundleId | None, limit: int) -> tuple[list[Held], bool]:
        """What is held for the group in order of the ids, and whether there is more."""
        with self.lock:
            ids = self._order.get(group, [])
            start = 0 if after is None else bisect_right(ids, after)
            found: list[Held] = []
            for bundle_id in ids[start:]:
                if not self.has(bundle_id):
                    continue
                if len(found) == limit:
                    return found, True
                found.append(self._entries[bundle_id].line)
            return found, False

    def every(self) -> list[Entry]:
        """All that is held, the trash not."""
        with self.lock:
            return [entry for entry in self._entries.values() if not entry.side.released_ms]

    def trashed(self) -> list[Entry]:
        with self.lock:
            return [entry for entry in self._entries.values() if entry.side.released_ms]

    def used(self) -> dict[GroupId, int]:
        """Live bytes held for each group, the trash not."""
        with self.lock:
            return dict(self._used)

    def by_opener(self) -> dict[NodeId, int]:
        """Live bytes held for each device, the trash not."""
        found: dict[NodeId, int] = {}
        for entry in self.every():
            opener = node_id_of(PublicKey(entry.side.opener))
            found[opener] = found.get(opener, 0) + entry.side.live_bytes
        return found

    # -- changing --------------------------------------------------------------------------------

    def insert(self, entry: Entry) -> None:
        """Its side file is written already. What was known of the bundle goes."""
        bundle_id = entry.side.bundle_id
        with self.lock:
            self.remove(bundle_id)
            self._entries[bundle_id] = entry
            insort(self._order.setdefault(entry.group, []), bundle_id)
            self._count(entry, +1)
            for tag in _tags_of(entry.side):
                self._tags.setdefault(tag, []).append(bundle_id)
            for old in entry.side.replaces:
                self._aliases.setdefault(old.bundle_id, []).append(bundle_id)

    def remove(self, bundle_id: BundleId) -> None:
        with self.lock:
            entry = self._entries.pop(bundle_id, None)
            if entry is None:
                return
            self._count(entry, -1)
            ids = self._order[entry.group]
            del ids[bisect_right(ids, bundle_id) - 1]
            for tag in _tags_of(entry.side):
                self._tags[tag].remove(bundle_id)
                if not self._tags[tag]:
                    del self._tags[tag]
            for old in entry.side.replaces:
                self._aliases[old.bundle_id].remove(bundle_id)
                if not self._aliases[old.bundle_id]:
                    del self._aliases[old.bundle_id]

    def change(
        self,
        entry: Entry,
        *,
        live: LiveMap | None = None,
        locks: dict[NodeId, float] | None = None,
        grants: Sequence[bytes] = (),
        **fields: Any,
    ) -> None:
        """Write the side file with these fields of it changed, and `grants` added."""
        with self.lock:
            side = self._changed(entry, locks, grants, fields)
            self.sides.write(side)
            self._see(entry, side)
            entry.live = live or entry.live
            entry.locks = entry.locks if locks is None else locks

    def change_all(self, entries: Sequence[Entry], **fields: Any) -> None:
        """The same fields of many, made durable together."""
        with self.lock:
            sides = [self._changed(entry, None, (), fields) for entry in entries]
            self.sides.write_all(sides)
            for entry, side in zip(entries, sides, strict=True):
                self._see(entry, side)

    def note_damage(self, bundle_id: BundleId) -> None:
        """The next PUT compares every block, and brings what is wrong again."""
        with self.lock:
            entry = self._entries.get(bundle_id)
            if entry is not None and not entry.is_damaged:
                entry.is_damaged = True
                logger.warning("The held bundle %s is damaged.", short(bundle_id))

    @contextmanager
    def noting_damage(self, bundle_id: BundleId) -> Iterator[None]:
        """Damage that is met in here is noted, and told to the caller."""
        try:
            yield
        except BundleDamaged:
            self.note_damage(bundle_id)
            raise

    def _changed(
        self,
        entry: Entry,
        locks: dict[NodeId, float] | None,
        grants: Sequence[bytes],
        fields: dict[str, Any],
    ) -> SideFile:
        return msgspec.structs.replace(
            entry.side,
            **fields,
            locks=side_locks(entry.locks if locks is None else locks),
            lock_boot_id=self.boot_id,
            grants=merged(self.sides.grants(entry.side.bundle_id), grants),
        )

    def _see(self, entry: Entry, side: SideFile) -> None:
        if side.tag != entry.side.tag:
            self.remove(side.bundle_id)
            entry.side = slim(side)
            self.insert(entry)
            return
        self._count(entry, -1)
        entry.side = slim(side)
        self._count(entry, +1)

    def _count(self, entry: Entry, sign: int) -> None:
        if not entry.side.released_ms:
            used = self._used.get(entry.group, 0) + sign * entry.side.live_bytes
            self._used[entry.group] = used


def slim(side: SideFile) -> SideFile:
    """A side file as memory keeps it."""
    return msgspec.structs.replace(side, grants=(), locks=())


def side_locks(locks: dict[NodeId, float]) -> tuple[SideLock, ...]:
    return tuple(SideLock(node, until) for node, until in locks.items() if node != NOBODY)


def check_grants(grants: Sequence[bytes]) -> None:
    if len(grants) > MAX_GRANTS or sum(map(len, grants)) > MAX_GRANT_BYTES:
        raise NotAllowed("Too many grants for one bundle.")


def merged(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[bytes, ...]:
    """Both, each once, the newest last; the oldest go when there are too many."""
    kept = [grant for grant in old if grant not in new] + list(dict.fromkeys(new))
    while len(kept) > MAX_GRANTS or sum(map(len, kept)) > MAX_GRANT_BYTES:
        del kept[0]
    return tuple(kept)


def _tags_of(side: SideFile) -> list[Tag]:
    own = [] if side.tag == UNKNOWN_TAG else [side.tag]
    return [*own, *(old.tag for old in side.replaces)]
