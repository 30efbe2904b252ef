"""`HeldStore`: what may be asked of, and done with, the bundles that are kept for others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from p2pstore.clock import Clock
from p2pstore.content import (
    BundleIndex,
    LiveMap,
    SignedLiveMap,
    accept_live_map,
    block_id_of,
    encode_live_map,
)
from p2pstore.ids import BlockId, BundleId, GroupId, NodeId, Tag
from p2pstore.store.bundles import BundleDamaged, BundleIds
from p2pstore.store.disk import translated
from p2pstore.store.held.maps import StaleMap, judged_map, live_bytes
from p2pstore.store.held.promises import LOCK_S, Promises
from p2pstore.store.held.scan import Scan
from p2pstore.store.held.table import Held, Table, check_grants
from p2pstore.store.held.trash import Trash
from p2pstore.store.held.uploads import Upload, Uploads
from p2pstore.store.sidefile import SideFile

READ_AT_ONCE = 64  # blocks of a proof in memory

# Named here, because inside a class with a method `list` the type cannot be written.
HeldPage = list[Held]
HeldIds = list[BundleId]
HeldGroups = dict[GroupId, int]
Seqs = list[int | None]


class HeldStore:
    def __init__(self, root: Path, clock: Clock, *, boot_id: str) -> None:
        self.root = Path(root)
        self._table = Table(self.root, boot_id=boot_id)
        self._files = self._table.files
        self._promises = Promises(self._table, clock)
        self._trash = Trash(self._table, self._promises, clock)
        self._uploads = Uploads(
            self.root / "incoming", self._table, self._promises, self._trash, clock
        )
        with translated("open the store of held bundles"):
            scan = Scan(self._table, self._promises, self._uploads, clock)
            self.lost = scan.run()  # promised, and not found on the disk

    def close(self) -> None:
        self._uploads.close()
        self._files.close()

    # -- taking ----------------------------------------------------------------------------------

    def begin_put(
        self,
        raw_list: bytes,
        tag: Tag,
        live_map: bytes,
        lease_until_ms: int,
        grants: Sequence[bytes] = (),
    ) -> Upload:
        """Begin or go on with taking a bundle; its blocks are verified one by one.

        `raw_list` is the signed list, `live_map` an encoded SignedLiveMap or b"" for all live.
        NotAllowed when the id is known with another list, StaleMap when a newer map is known,
        Busy when it is locked and the map would change.
        """
        return self._uploads.begin(raw_list, tag, live_map, lease_until_ms, grants)

    def purge_uploads(self, untouched_s: float) -> int:
        """Remove the parts of uploads that nobody went on with for so long; how many."""
        return self._uploads.purge(untouched_s)

    # -- finding ---------------------------------------------------------------------------------

    def has(self, bundle_id: BundleId) -> bool:
        """It is held, whole and not in the trash."""
        return self._table.has(bundle_id)

    def resolve(self, bundle_id: BundleId) -> BundleId | None:
        """The held bundle of that id, or the one that it was merged into."""
        return self._table.resolve(bundle_id)

    def find_tag(self, tag: Tag, group: GroupId | None = None) -> BundleId | None:
        """The held bundle that is announced under this tag."""
        return self._table.find_tag(tag, group)

    def tags(self) -> list[Tag]:
        """All tags to announce, those of merged bundles included."""
        return self._table.tags()

    def list(
        self, group: GroupId, after: BundleId | None = None, limit: int = 256
    ) -> tuple[HeldPage, bool]:
        """A page of what is held for the group, in order of the ids, and whether there is more."""
        return self._table.page(group, after, limit)

    def groups(self) -> HeldGroups:
        """Bytes held for each group."""
        return self._table.used()

    def used_bytes(self, group: GroupId) -> int:
        """Live bytes held for the group, open uploads included, the trash not."""
        with self._table.lock:
            return self._table.used().get(group, 0) + self._uploads.bytes_of(group)

    def bytes_by_opener(self) -> dict[NodeId, int]:
        """Live bytes held for each device, the trash not."""
        return self._table.by_opener()

    def trashed(self) -> dict[BundleId, int]:
        """Released bundles, and when they were (ms since the epoch)."""
        return {one.side.bundle_id: one.side.released_ms for one in self._table.trashed()}

    def ended(self, now_ms: int, grace_ms: int) -> HeldPage:
        """Bundles whose lease ended more than `grace_ms` ago, the oldest first."""
        return [held for held in self.oldest() if held.lease_until_ms + grace_ms < now_ms]

    def doubtful(self) -> BundleIds:
        """Damaged, or with a side file that was: their owners' next PUT compares every block."""
        return sorted(entry.side.bundle_id for entry in self._table.every() if entry.is_damaged)

    def oldest(self) -> HeldPage:
        """All that is held; whose lease ends first comes first."""
        lines = (entry.line for entry in self._table.every())
        return sorted(lines, key=lambda held: held.lease_until_ms)

    # -- reading ---------------------------------------------------------------------------------

    def side(self, bundle_id: BundleId) -> SideFile:
        """The whole side file, grants included."""
        self._table.entry(bundle_id)
        return self._table.sides.read(bundle_id)

    def group_of(self, bundle_id: BundleId) -> GroupId:
        return self._table.entry(bundle_id).group

    def index(self, bundle_id: BundleId) -> BundleIndex:
        self._table.here(bundle_id)
        with self._table.noting_damage(bundle_id):
            return self._files.index(bundle_id)

    def live_map(self, bundle_id: BundleId) -> LiveMap:
        return self._table.entry(bundle_id).live

    def read_blocks(
        self, bundle_id: BundleId, block_ids: Sequence[BlockId]
    ) -> dict[BlockId, bytes]:
        """Those that are listed and live, each compared with its id."""
        self._table.here(bundle_id)
        with self._table.noting_damage(bundle_id):
            return self._files.read_blocks(bundle_id, block_ids)

    def iter_live(self, bundle_id: BundleId, *, from_disk: bool = True) -> Iterator[bytes]:
        """All live blocks in the order of the list, each compared with its id: for a proof."""
        entries = self.index(bundle_id).blocks.entries
        if from_disk:
            self._files.drop_cache(bundle_id)
        wanted = self.live_map(bundle_id).indices()
        for start in range(0, len(wanted), READ_AT_ONCE):
            part = wanted[start : start + READ_AT_ONCE]
            with self._table.noting_damage(bundle_id):
                found = self._files.read(bundle_id, part)
                for i, block in zip(part, found, strict=True):
                    if block_id_of(block) != entries[i].block_id:
                        raise BundleDamaged(bundle_id, f"block {i} is not what its id says")
            yield from found

    def wrong_heads(self, bundle_id: BundleId) -> int:
        """As `BundleStore.wrong_heads`, of all live blocks."""
        return self._files.wrong_heads(bundle_id, self.live_map(bundle_id).indices())

    # -- promises --------------------------------------------------------------------------------

    def lock(
        self, bundle_id: BundleId, locker: NodeId, seconds: float = LOCK_S, *, seq: int
    ) -> float:
        """Promise to keep the bundle so long; the seconds that are granted.

        Durable when this returns. A lease shorter than 60 days is made that long. Several nodes
        may hold locks. Busy when we are removing the bundle ourselves; StaleMap; BundleMissing.
        """
        return self._promises.lock(bundle_id, locker, seconds, seq)

    def unlock(self, bundle_id: BundleId, locker: NodeId) -> None:
        self._promises.unlock(bundle_id, locker)

    def locked_for(self, bundle_id: BundleId) -> float:
        """Seconds until the last lock ends; 0 when there is none."""
        return self._promises.locked_for(bundle_id)

    def lock_all(self, seconds: float = LOCK_S) -> None:
        """Every bundle counts as locked, in memory only: after the catalog was rebuilt."""
        self._promises.lock_all(seconds)

    def begin_removal(self, bundle_id: BundleId) -> None:
        """From now on nobody gets a lock: we want to drop it ourselves. Busy when it is locked."""
        self._promises.begin_removal(bundle_id)

    def end_removal(self, bundle_id: BundleId) -> None:
        self._promises.end_removal(bundle_id)

    def renew(self, bundles: Sequence[BundleId], lease_until_ms: int, group: GroupId) -> Seqs:
        """Make leases of the group's longer, never shorter; durable, for all with two syncs.

        In the order of the question the seq of each live map. None for what is promised nothing:
        not held, another group's, released, being removed, or waiting for its owner to mend it.
        """
        return self._promises.renew(bundles, lease_until_ms, group)

    def add_grants(self, bundle_id: BundleId, grants: Sequence[bytes]) -> None:
        """Keep more grants; the oldest go when there are too many."""
        check_grants(grants)
        with self._table.lock:
            self._table.change(self._table.here(bundle_id), grants=grants)

    # -- letting go ------------------------------------------------------------------------------

    def accept_live_map(self, bundle_id: BundleId, signed: SignedLiveMap) -> int:
        """Keep a newer live map and punch what died; the bytes that are no longer held.

        The caller has judged the signer. Busy when locked, StaleMap when ours is as new. The side
        file first, then the holes.
        """
        with self._table.lock:
            entry = self._table.here(bundle_id)
            index = self.index(bundle_id)
            raw = encode_live_map(signed)
            live = judged_map(index, raw)
            if not accept_live_map(entry.live, live):
                raise StaleMap(bundle_id, entry.live.seq)
            self._promises.refuse_when_locked(entry)
            before, after = entry.side.live_bytes, live_bytes(index, live)
            self._table.change(entry, live=live, live_map=raw, live_bytes=after)
            with translated("punch dead blocks out of a held bundle"):
                self._files.punch(bundle_id)
            return before - after

    def release(self, bundle_id: BundleId) -> None:
        """Into the trash, for 7 days. Busy when it is locked."""
        self._trash.release(bundle_id)

    def take_back(self, bundle_id: BundleId) -> None:
        """Out of the trash again."""
        self._trash.take_back(bundle_id)

    def purge_trash(self) -> HeldIds:
        """Remove what was released more than 7 days ago; its ids."""
        return self._trash.purge_old()

    def purge_released(self, bundles: Sequence[BundleId]) -> HeldIds:
        """Remove those of these bundles that are in the trash, however long; their ids.

        Only for what its owner has placed elsewhere because this node asked for it: it released
        them knowing that others hold them.
        """
        return self._trash.purge(bundles)
