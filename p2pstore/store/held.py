"""Bundles kept for others, and for the other devices of our group.

    root/bundles/      the bundle files, as `DiskBundles` lays them out; released ones in its trash
    root/sides/<2 hex>/<hex>.side     what was promised of each (sidefile.py)
    root/incoming/<hex>.part, .list   an upload that is not complete, and its signed list

Everything is known from these files: a table in memory is filled from them at start. The orders
that a crash must not upset:

- an upload: blocks, trailer, fsync, rename into place, side file, list removed. A bundle without
  side file whose list is still there was not promised, and becomes an upload again.
- release: bundle to trash, then the side file says so. Taking it back: side file first, then the
  bundle. What lies between is read as "kept".
- a newer live map: side file first, then the holes are punched.

A bundle whose side file is damaged or gone is kept for a whole lease, counts as locked, and takes
its tag and live map from the owner's next PUT; all of its blocks are compared then.

Locks last on the monotonic clock. After a reboot, whose clock says nothing of the old one, each
lock that the side file names lasts its full ten minutes again (SAFETY.md 5).

Who may ask for what is judged above. All methods may be called from any thread.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import (
    RECORD_HEAD,
    BundleIndex,
    LiveMap,
    SignedLiveMap,
    accept_live_map,
    block_id_of,
    decode_live_map,
    decode_signed_list,
    encode_header,
    encode_live_map,
    record_head,
    signed_list,
    verify_live_map,
)
from p2pstore.durable import replace_file, sync_directory
from p2pstore.errors import (
    Busy,
    FormatError,
    IntegrityError,
    LocalProtocolError,
    NotAllowed,
    RemoteProtocolError,
    Unavailable,
)
from p2pstore.ids import (
    BlockId,
    BundleId,
    GroupId,
    NodeId,
    PublicKey,
    Tag,
    group_id_of,
    node_id_of,
    short,
)
from p2pstore.store.bundles import BundleDamaged, BundleMissing
from p2pstore.store.disk import DiskBundles, translated
from p2pstore.store.sidefile import (
    MAX_GRANT_BYTES,
    MAX_GRANTS,
    MAX_LOCKS,
    SideFile,
    SideLock,
    SideReplaced,
    read_side,
    write_side,
)

logger = logging.getLogger(__name__)

LOCK_S: Final = 600.0  # the longest lock, and what any lock becomes after a reboot
TRASH_MS: Final = 7 * 86_400_000
LEASE_MS: Final = 180 * 86_400_000
LOCK_LEASE_MS: Final = 60 * 86_400_000  # a locked bundle has at least this lease
MAX_UPLOADS: Final = 256  # open at once: one descriptor and one block list each
# A holder cannot sign, so it puts the end of the file together from what the opener signed.
END_MAGIC: Final = b"p2pbend\x01"  # content/bundle.py, footer
UNKNOWN_TAG: Final = Tag(bytes(20))


class StaleMap(Unavailable):
    """The bundle is held under another live map than the one asked about."""

    def __init__(self, bundle_id: BundleId, seq: int) -> None:
        super().__init__(f"Bundle {short(bundle_id)} is held with live map {seq}.")
        self.bundle_id = bundle_id
        self.seq = seq


class Held(NamedTuple):
    """One line of `HeldStore.list`."""

    bundle_id: BundleId
    tag: Tag
    kind: int
    opener: bytes
    seq: int
    live_bytes: int
    lease_until_ms: int


@dataclass(slots=True)
class _Entry:
    """What the table knows of one bundle without reading its side file."""

    side: SideFile  # without grants: those are read when asked for
    group: GroupId
    live: LiveMap
    locks: dict[NodeId, float] = field(default_factory=dict)
    is_removing: bool = False
    is_damaged: bool = False  # to be compared block by block at the next PUT


class _HeldFiles(DiskBundles):
    """Bundle files whose live maps come from the side files."""

    def __init__(self, root: Path, live_of: Callable[[BundleId], LiveMap]) -> None:
        super().__init__(root)
        self._live_of = live_of

    def live_map(self, bundle_id: BundleId) -> LiveMap:
        return self._live_of(bundle_id)


class HeldStore:
    def __init__(self, root: Path, clock: Clock, *, boot_id: str) -> None:
        self.root = Path(root)
        self._clock = clock
        self._boot_id = boot_id
        self._lock = threading.RLock()
        self._table: dict[BundleId, _Entry] = {}
        self._order: dict[GroupId, list[BundleId]] = {}
        self._used: dict[GroupId, int] = {}
        self._tags: dict[Tag, list[BundleId]] = {}
        self._aliases: dict[BundleId, BundleId] = {}
        self._uploads: dict[BundleId, Upload] = {}
        self.lost: list[BundleId] = []  # promised, and not found on the disk at start
        self._files = _HeldFiles(self.root / "bundles", self.live_map)
        self._incoming = self.root / "incoming"
        self._sides = self.root / "sides"
        with translated("open the store of held bundles"):
            self._incoming.mkdir(mode=0o700, exist_ok=True)
            self._sides.mkdir(mode=0o700, exist_ok=True)
            self._load()

    # Uploads

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
        self._files.refuse_when_failed()
        index = decode_signed_list(raw_list)
        bundle_id = index.header.bundle_id
        live, encoded = _judged_map(index, live_map)
        _check_grants(grants)
        with self._lock:
            upload = self._uploads.get(bundle_id)
            entry = self._table.get(bundle_id)
            self._refuse_other_list(bundle_id, index, upload)
            if entry is not None:
                live, encoded = self._newer_of(entry, live, encoded)
                if entry.side.released_ms:
                    self.take_back(bundle_id)
                if not entry.is_damaged:
                    return Upload(self, index, live, encoded, tag, lease_until_ms, tuple(grants))
            if upload is None:
                if len(self._uploads) >= MAX_UPLOADS:
                    raise Busy("Too many uploads are under way.")
                upload = Upload(self, index, live, encoded, tag, lease_until_ms, tuple(grants))
                upload.open_part(self._part(bundle_id, index))
                self._uploads[bundle_id] = upload
            elif live.seq < upload.live.seq:
                raise StaleMap(bundle_id, upload.live.seq)
            else:
                upload.update(live, encoded, tag, lease_until_ms, tuple(grants))
            return upload

    def uploads_of(self, group: GroupId) -> int:
        """Bytes that the group's open uploads will take."""
        with self._lock:
            return sum(
                _live_bytes(upload.index, upload.live)
                for upload in self._uploads.values()
                if group_id_of(upload.index.header.group) == group
            )

    def purge_uploads(self, untouched_s: float) -> int:
        """Remove the parts of uploads that nobody went on with for so long; how many."""
        oldest = self._clock.wall() - untouched_s
        removed = 0
        with self._lock, translated("clean up uploads"):
            for path in list(self._incoming.glob("*.list")):
                part = path.with_suffix(".part")
                bundle_id = BundleId(bytes.fromhex(path.stem))
                if bundle_id in self._uploads or _touched(part, path) > oldest:
                    continue
                part.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    # Reading

    def has(self, bundle_id: BundleId) -> bool:
        """It is held, whole and not in the trash."""
        with self._lock:
            entry = self._table.get(bundle_id)
            return entry is not None and not entry.side.released_ms

    def resolve(self, bundle_id: BundleId) -> BundleId | None:
        """The held bundle of that id, or the one that it was merged into."""
        with self._lock:
            if self.has(bundle_id):
                return bundle_id
            other = self._aliases.get(bundle_id)
            return other if other is not None and self.has(other) else None

    def find_tag(self, tag: Tag, group: GroupId | None = None) -> BundleId | None:
        """The held bundle that is announced under this tag."""
        with self._lock:
            for bundle_id in self._tags.get(tag, ()):
                if self.has(bundle_id) and group in (None, self._table[bundle_id].group):
                    return bundle_id
        return None

    def tags(self) -> list[Tag]:
        """All tags to announce, those of merged bundles included."""
        with self._lock:
            return [tag for tag, ids in self._tags.items() if any(self.has(one) for one in ids)]

    def side(self, bundle_id: BundleId) -> SideFile:
        """The whole side file, grants included."""
        self._entry(bundle_id)
        try:
            return read_side(self._side_path(bundle_id), bundle_id)
        except (FormatError, OSError) as exc:
            raise BundleDamaged(bundle_id, "its side file cannot be read") from exc

    def group_of(self, bundle_id: BundleId) -> GroupId:
        return self._entry(bundle_id).group

    def index(self, bundle_id: BundleId) -> BundleIndex:
        self._here(bundle_id)
        with self._noting_damage(bundle_id):
            return self._files.index(bundle_id)

    def live_map(self, bundle_id: BundleId) -> LiveMap:
        return self._entry(bundle_id).live

    def read_blocks(
        self, bundle_id: BundleId, block_ids: Sequence[BlockId]
    ) -> dict[BlockId, bytes]:
        """Those that are listed and live, each compared with its id."""
        self._here(bundle_id)
        with self._noting_damage(bundle_id):
            return self._files.read_blocks(bundle_id, block_ids)

    def iter_live(self, bundle_id: BundleId, *, from_disk: bool = True) -> Iterator[bytes]:
        """All live blocks in the order of the list, each compared with its id: for a proof."""
        index = self.index(bundle_id)
        if from_disk:
            self._files.drop_cache(bundle_id)
        wanted = self.live_map(bundle_id).indices()
        for start in range(0, len(wanted), 64):
            part = wanted[start : start + 64]
            with self._noting_damage(bundle_id):
                found = self._files.read(bundle_id, part)
                for i, block in zip(part, found, strict=True):
                    if block_id_of(block) != index.blocks.entries[i].block_id:
                        raise BundleDamaged(bundle_id, f"block {i} is not what its id says")
            yield from found

    def list(
        self, group: GroupId, after: BundleId | None = None, limit: int = 256
    ) -> tuple[HeldPage, bool]:
        """A page of what is held for the group, in order of the ids, and whether there is more."""
        with self._lock:
            ids = self._order.get(group, [])
            start = 0 if after is None else bisect_right(ids, after)
            page: HeldPage = []
            for bundle_id in ids[start:]:
                if not self.has(bundle_id):
                    continue
                if len(page) == limit:
                    return page, True
                page.append(_line(self._table[bundle_id]))
            return page, False

    def groups(self) -> HeldGroups:
        """Bytes held for each group."""
        with self._lock:
            return dict(self._used)

    def used_bytes(self, group: GroupId) -> int:
        """Live bytes held for the group, open uploads included, the trash not."""
        with self._lock:
            return self._used.get(group, 0) + self.uploads_of(group)

    def bytes_by_opener(self) -> dict[NodeId, int]:
        """Live bytes held for each device, the trash not."""
        found: dict[NodeId, int] = {}
        with self._lock:
            for entry in self._table.values():
                if not entry.side.released_ms:
                    opener = node_id_of(PublicKey(entry.side.opener))
                    found[opener] = found.get(opener, 0) + entry.side.live_bytes
        return found

    def trashed(self) -> dict[BundleId, int]:
        """Released bundles, and when they were (ms since the epoch)."""
        with self._lock:
            return {
                bundle_id: entry.side.released_ms
                for bundle_id, entry in self._table.items()
                if entry.side.released_ms
            }

    def ended(self, now_ms: int, grace_ms: int) -> HeldPage:
        """Bundles whose lease ended more than `grace_ms` ago, the oldest first."""
        with self._lock:
            found = [
                _line(entry)
                for bundle_id, entry in self._table.items()
                if self.has(bundle_id) and entry.side.lease_until_ms + grace_ms < now_ms
            ]
        return sorted(found, key=lambda held: held.lease_until_ms)

    # Promises

    def lock(
        self, bundle_id: BundleId, locker: NodeId, seconds: float = LOCK_S, *, seq: int
    ) -> float:
        """Promise to keep the bundle so long; the seconds that are granted.

        Durable when this returns. A lease shorter than 60 days is made that long. Several nodes
        may hold locks. Busy when we are removing the bundle ourselves; StaleMap; BundleMissing.
        """
        with self._lock:
            entry = self._here(bundle_id)
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
            lease = max(entry.side.lease_until_ms, self._now_ms() + LOCK_LEASE_MS)
            self._change(entry, locks=locks, lease_until_ms=lease)
            return seconds

    def unlock(self, bundle_id: BundleId, locker: NodeId) -> None:
        with self._lock:
            entry = self._table.get(bundle_id)
            if entry is not None and locker in entry.locks:
                left = {node: until for node, until in entry.locks.items() if node != locker}
                self._change(entry, locks=left)

    def locked_for(self, bundle_id: BundleId) -> float:
        """Seconds until the last lock ends; 0 when there is none."""
        with self._lock:
            entry = self._entry(bundle_id)
            self._drop_old_locks(entry)
            now = self._clock.monotonic()
            return max((until - now for until in entry.locks.values()), default=0.0)

    def lock_all(self, seconds: float = LOCK_S) -> None:
        """Every bundle counts as locked, in memory only: after the catalog was rebuilt."""
        until = self._clock.monotonic() + seconds
        with self._lock:
            for entry in self._table.values():
                entry.locks[_NOBODY] = max(until, entry.locks.get(_NOBODY, 0.0))

    def begin_removal(self, bundle_id: BundleId) -> None:
        """From now on nobody gets a lock: we want to drop it ourselves. Busy when it is locked."""
        with self._lock:
            entry = self._here(bundle_id)
            self._refuse_when_locked(entry)
            entry.is_removing = True

    def end_removal(self, bundle_id: BundleId) -> None:
        with self._lock:
            if (entry := self._table.get(bundle_id)) is not None:
                entry.is_removing = False

    def renew(self, bundle_id: BundleId, lease_until_ms: int) -> int:
        """Make the lease longer, never shorter; until when it lasts. Durable."""
        with self._lock:
            entry = self._here(bundle_id)
            if lease_until_ms > entry.side.lease_until_ms:
                self._change(entry, lease_until_ms=lease_until_ms)
            return entry.side.lease_until_ms

    def add_grants(self, bundle_id: BundleId, grants: Sequence[bytes]) -> None:
        """Keep more grants; the oldest go when there are too many."""
        _check_grants(grants)
        with self._lock:
            entry = self._here(bundle_id)
            self._change(entry, grants=tuple(grants))

    def accept_live_map(self, bundle_id: BundleId, signed: SignedLiveMap) -> int:
        """Keep a newer live map and punch what died; the bytes that are no longer held.

        The caller has judged the signer. Busy when locked, StaleMap when ours is as new.
        """
        with self._lock:
            entry = self._here(bundle_id)
            index = self.index(bundle_id)
            live, encoded = _judged_map(index, encode_live_map(signed))
            if not accept_live_map(entry.live, live):
                raise StaleMap(bundle_id, entry.live.seq)
            self._refuse_when_locked(entry)
            before = entry.side.live_bytes
            after = _live_bytes(index, live)
            self._change(entry, live=live, live_map=encoded, live_bytes=after)
            with translated("punch dead blocks out of a held bundle"):
                self._files.punch(bundle_id)
            return before - after

    def release(self, bundle_id: BundleId) -> None:
        """Into the trash, for 7 days. Busy when it is locked."""
        with self._lock:
            entry = self._here(bundle_id)
            self._refuse_when_locked(entry)
            self._files.to_trash(bundle_id)
            self._change(entry, released_ms=max(1, self._now_ms()))
            entry.is_removing = False

    def take_back(self, bundle_id: BundleId) -> None:
        """Out of the trash again."""
        with self._lock:
            entry = self._entry(bundle_id)
            if entry.side.released_ms:
                self._change(entry, released_ms=0)
                self._files.from_trash(bundle_id)

    def purge_trash(self) -> HeldIds:
        """Remove what was released more than 7 days ago; its ids."""
        now_ms = self._now_ms()
        with self._lock:
            old = [one for one, at in self.trashed().items() if at + TRASH_MS <= now_ms]
            for bundle_id in old:
                self._files.purge(bundle_id)
                self._side_path(bundle_id).unlink(missing_ok=True)
                self._remove(bundle_id)
        return old

    def close(self) -> None:
        with self._lock:
            for upload in list(self._uploads.values()):
                upload.pause()
            self._files.close()

    # The table

    def _entry(self, bundle_id: BundleId) -> _Entry:
        with self._lock:
            try:
                return self._table[bundle_id]
            except KeyError as exc:
                raise BundleMissing(bundle_id) from exc

    def _here(self, bundle_id: BundleId) -> _Entry:
        entry = self._entry(bundle_id)
        if entry.side.released_ms:
            raise BundleMissing(bundle_id, "was released")
        return entry

    def _insert(self, entry: _Entry) -> None:
        bundle_id = entry.side.bundle_id
        self._remove(bundle_id)
        self._table[bundle_id] = entry
        insort(self._order.setdefault(entry.group, []), bundle_id)
        self._count(entry, +1)
        for tag in _tags_of(entry.side):
            self._tags.setdefault(tag, []).append(bundle_id)
        for old in entry.side.replaces:
            self._aliases[old.bundle_id] = bundle_id

    def _remove(self, bundle_id: BundleId) -> None:
        entry = self._table.pop(bundle_id, None)
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
            if self._aliases.get(old.bundle_id) == bundle_id:
                del self._aliases[old.bundle_id]

    def _count(self, entry: _Entry, sign: int) -> None:
        if not entry.side.released_ms:
            used = self._used.get(entry.group, 0) + sign * entry.side.live_bytes
            self._used[entry.group] = used

    def _change(
        self,
        entry: _Entry,
        *,
        live: LiveMap | None = None,
        locks: dict[NodeId, float] | None = None,
        grants: tuple[bytes, ...] = (),
        **fields: Any,
    ) -> None:
        """Write the side file with these fields changed, then the table."""
        bundle_id = entry.side.bundle_id
        kept = locks if locks is not None else entry.locks
        fields["locks"] = tuple(SideLock(node, at) for node, at in kept.items() if node != _NOBODY)
        fields["lock_boot_id"] = self._boot_id
        fields["grants"] = _merged(self._grants_of(bundle_id), grants)
        side = msgspec.structs.replace(entry.side, **fields)
        self._write_side(side)
        self._count(entry, -1)
        entry.side = _slim(side)
        self._count(entry, +1)
        if live is not None:
            entry.live = live
        if locks is not None:
            entry.locks = locks

    def _grants_of(self, bundle_id: BundleId) -> tuple[bytes, ...]:
        # A grant is the owner's to repeat: a side file that lost them must not stop a promise.
        with suppress(FormatError, FileNotFoundError):
            return read_side(self._side_path(bundle_id), bundle_id).grants
        return ()

    def _write_side(self, side: SideFile) -> None:
        path = self._side_path(side.bundle_id)
        self._files.refuse_when_failed()
        with self._files.failing():
            if not path.parent.exists():
                path.parent.mkdir(mode=0o700)
                sync_directory(self._sides)
            write_side(path, side)

    def _drop_old_locks(self, entry: _Entry) -> None:
        now = self._clock.monotonic()
        entry.locks = {node: until for node, until in entry.locks.items() if until > now}

    def _refuse_when_locked(self, entry: _Entry) -> None:
        if self.locked_for(entry.side.bundle_id) > 0:
            raise Busy(f"Bundle {short(entry.side.bundle_id)} is locked.")

    def _newer_of(self, entry: _Entry, live: LiveMap, encoded: bytes) -> tuple[LiveMap, bytes]:
        """The map under which a PUT of a known bundle goes on."""
        if accept_live_map(entry.live, live):
            self._refuse_when_locked(entry)
            return live, encoded
        if live != entry.live:
            raise StaleMap(entry.side.bundle_id, entry.live.seq)
        return live, encoded

    def _refuse_other_list(
        self, bundle_id: BundleId, index: BundleIndex, upload: Upload | None
    ) -> None:
        known: BundleIndex | None = None
        if upload is not None:
            known = upload.index
        elif self.has(bundle_id):
            # A damaged file may be replaced by what its opener signs; nobody else can sign it.
            with suppress(BundleDamaged):
                known = self._files.index(bundle_id)
            if known is None and index.header.opener != self._table[bundle_id].side.opener:
                raise NotAllowed(f"Bundle {short(bundle_id)} belongs to another device.")
        elif (entry := self._table.get(bundle_id)) is not None:
            # In the trash: not open, so only the opener is compared until it is back.
            if index.header.opener != entry.side.opener:
                raise NotAllowed(f"Bundle {short(bundle_id)} belongs to another device.")
            self.take_back(bundle_id)
            self._refuse_other_list(bundle_id, index, None)
        else:
            with suppress(FileNotFoundError, FormatError, IntegrityError):
                known = decode_signed_list((self._list_path(bundle_id)).read_bytes())
        if known is not None and (known.header, known.blocks) != (index.header, index.blocks):
            raise NotAllowed(f"Bundle {short(bundle_id)} is known with another list.")

    def _noting_damage(self, bundle_id: BundleId) -> _DamageNote:
        return _DamageNote(self, bundle_id)

    def note_damage(self, bundle_id: BundleId) -> None:
        """The next PUT compares every block, and brings what is wrong again."""
        with self._lock:
            if (entry := self._table.get(bundle_id)) is not None and not entry.is_damaged:
                entry.is_damaged = True
                logger.warning("The held bundle %s is damaged.", short(bundle_id))

    # Files

    def _part(self, bundle_id: BundleId, index: BundleIndex) -> Path:
        """The file that an upload writes into; a damaged bundle goes back to being one."""
        part = self._incoming / f"{bundle_id.hex()}.part"
        with self._files.failing():
            replace_file(self._list_path(bundle_id), signed_list(index))
            sealed = self._files.path(bundle_id)
            if sealed.exists():
                self._files.forget(bundle_id)
                sealed.rename(part)
        return part

    def _complete(self, upload: Upload, part: Path | None) -> None:
        """The upload's bytes are synced in `part`; None when they were here before."""
        index = upload.index
        bundle_id = index.header.bundle_id
        with self._lock:
            entry = self._table.get(bundle_id)
            if part is None:
                if entry is None:
                    raise BundleMissing(bundle_id)
                self._update_known(entry, upload)
                return
            self._files.adopt(part, index)
            lease = max(upload.lease_until_ms, entry.side.lease_until_ms if entry else 0)
            locks = entry.locks if entry is not None else {}
            old_grants = self._grants_of(bundle_id)
            side = SideFile(
                bundle_id=bundle_id,
                group=index.header.group,
                opener=index.header.opener,
                kind=index.header.kind,
                tag=upload.tag,
                lease_until_ms=lease,
                live_map=upload.live_map,
                blocks=len(index.blocks),
                live_bytes=_live_bytes(index, upload.live),
                locks=tuple(SideLock(node, at) for node, at in locks.items() if node != _NOBODY),
                lock_boot_id=self._boot_id,
                grants=_merged(old_grants, upload.grants),
                replaces=tuple(SideReplaced(*old) for old in index.blocks.replaces),
            )
            self._write_side(side)
            group = group_id_of(index.header.group)
            self._insert(_Entry(_slim(side), group, upload.live, dict(locks)))
            self._list_path(bundle_id).unlink(missing_ok=True)
            self._uploads.pop(bundle_id, None)

    def _update_known(self, entry: _Entry, upload: Upload) -> None:
        """A PUT of what is here already: a longer lease, a newer map, more grants, the tag."""
        self._here(entry.side.bundle_id)
        newer = upload.live.seq > entry.live.seq
        if newer:
            self._refuse_when_locked(entry)
        tag = upload.tag if entry.side.tag == UNKNOWN_TAG else entry.side.tag
        live_bytes = _live_bytes(upload.index, upload.live) if newer else entry.side.live_bytes
        self._change(
            entry,
            live=upload.live if newer else None,
            live_map=upload.live_map if newer else entry.side.live_map,
            live_bytes=live_bytes,
            lease_until_ms=max(upload.lease_until_ms, entry.side.lease_until_ms),
            grants=upload.grants,
        )
        if tag != entry.side.tag:
            side = msgspec.structs.replace(entry.side, tag=tag)
            self._write_side(msgspec.structs.replace(side, grants=self._grants_of(side.bundle_id)))
            self._insert(_Entry(side, entry.group, entry.live, entry.locks))
        if newer:
            with translated("punch dead blocks out of a held bundle"):
                self._files.punch(entry.side.bundle_id)

    def _load(self) -> None:
        now = self._clock.monotonic()
        sealed = set(self._files.list())
        trashed = set(self._files.trash())
        for path in sorted(self._sides.glob("??/*.side")):
            with suppress(ValueError):
                bundle_id = BundleId(bytes.fromhex(path.stem))
                self._load_one(bundle_id, path, sealed, trashed, now)
        for bundle_id in sorted((sealed | trashed) - set(self._table)):
            self._load_orphan(bundle_id, bundle_id in trashed, now)

    def _load_one(
        self,
        bundle_id: BundleId,
        path: Path,
        sealed: set[BundleId],
        trashed: set[BundleId],
        now: float,
    ) -> None:
        try:
            side = read_side(path, bundle_id)
            live = _known_map(side)
        except (FormatError, IntegrityError) as exc:
            logger.warning("The side file of held bundle %s: %s", short(bundle_id), exc)
            return  # its bundle is taken up as an orphan
        if bundle_id not in sealed | trashed:
            if side.released_ms:
                path.unlink()  # purged; only its side file was left
            elif not self._list_path(bundle_id).exists():
                self.lost.append(bundle_id)
                logger.error("The held bundle %s is not on the disk.", short(bundle_id))
            return
        if bundle_id in trashed and not side.released_ms and bundle_id not in sealed:
            self._files.from_trash(bundle_id)
        if side.released_ms and bundle_id in sealed:
            side = msgspec.structs.replace(side, released_ms=0)
            self._write_side(side)
        same_boot = side.lock_boot_id == self._boot_id
        locks = {
            lock.locker: min(lock.until_s, now + LOCK_S) if same_boot else now + LOCK_S
            for lock in side.locks
        }
        locks = {node: until for node, until in locks.items() if until > now}
        self._insert(_Entry(_slim(side), group_id_of(side.group), live, locks))

    def _load_orphan(self, bundle_id: BundleId, is_trashed: bool, now: float) -> None:
        """A bundle without a readable side file: an upload again, or kept with all care."""
        if is_trashed:
            self._files.from_trash(bundle_id)
        if self._list_path(bundle_id).exists() and not self._side_path(bundle_id).exists():
            sealed = self._files.path(bundle_id)
            sealed.rename(self._incoming / f"{bundle_id.hex()}.part")
            return
        try:
            index = self._files.index(bundle_id)
        except IntegrityError:
            logger.error("The held bundle %s cannot be read.", short(bundle_id))
            self.lost.append(bundle_id)
            return
        live = LiveMap.all_live(bundle_id, len(index.blocks))
        side = SideFile(
            bundle_id=bundle_id,
            group=index.header.group,
            opener=index.header.opener,
            kind=index.header.kind,
            tag=UNKNOWN_TAG,
            lease_until_ms=self._now_ms() + LEASE_MS,
            live_map=b"",
            blocks=len(index.blocks),
            live_bytes=_live_bytes(index, live),
            replaces=tuple(SideReplaced(*old) for old in index.blocks.replaces),
        )
        self._write_side(side)
        entry = _Entry(side, group_id_of(side.group), live, {_NOBODY: now + LOCK_S})
        entry.is_damaged = True
        self._insert(entry)

    def _side_path(self, bundle_id: BundleId) -> Path:
        name = bundle_id.hex()
        return self._sides / name[:2] / f"{name}.side"

    def _list_path(self, bundle_id: BundleId) -> Path:
        return self._incoming / f"{bundle_id.hex()}.list"

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)


class Upload:
    """A bundle that is being taken; made by `HeldStore.begin_put`, resumable at any time."""

    def __init__(
        self,
        store: HeldStore,
        index: BundleIndex,
        live: LiveMap,
        live_map: bytes,
        tag: Tag,
        lease_until_ms: int,
        grants: tuple[bytes, ...],
    ) -> None:
        self._store = store
        self.index = index
        self._lock = threading.Lock()
        self._fd = -1
        self._is_done = False
        self._part: Path | None = None
        self._wanted: set[int] = set()  # live blocks that are not here yet
        self.live = live
        self.live_map = live_map
        self.tag = tag
        self.lease_until_ms = lease_until_ms
        self.grants = grants

    def missing(self) -> bytes:
        """Bit i (least significant first) = block i is wanted."""
        bits = bytearray(-(-len(self.index.blocks) // 8))
        with self._lock:
            for i in self._wanted:
                bits[i >> 3] |= 1 << (i & 7)
        return bytes(bits)

    def write(self, i: int, block: bytes) -> None:
        """Take one block; IntegrityError when it is not what the list says."""
        if not 0 <= i < len(self.index.blocks):
            raise RemoteProtocolError(f"The list has no block {i}.")
        entry = self.index.blocks.entries[i]
        if len(block) != entry.length or block_id_of(block) != entry.block_id:
            raise IntegrityError(f"Block {i} is not what its id says.")
        at = self.index.blocks.offsets()[i] - RECORD_HEAD
        with self._lock:
            if i not in self._wanted:
                return  # sent twice, or dead
            self._check_open()
            with self._store._files.failing():
                _write_at(self._fd, at, record_head(entry.block_id, entry.length) + block)
            self._wanted.discard(i)

    def finish(self) -> None:
        """All is here: make it and what is promised durable, then the receipt may be signed."""
        with self._lock:
            if self._wanted:
                raise RemoteProtocolError(f"{len(self._wanted)} blocks have not been sent.")
            if self._part is not None and not self._is_done:
                self._check_open()
                self._write_ends()
        # The store's lock comes before ours wherever both are held.
        with self._store._lock, self._lock:
            if self._is_done:
                return  # two connections brought the same bundle
            self._store._complete(self, self._part)
            self._is_done = True
            self._close()

    def _write_ends(self) -> None:
        listed = self.index.blocks.encode()
        footer = len(listed).to_bytes(4, "big") + bytes(4) + END_MAGIC
        end = self.index.blocks.records_end
        tail = listed + self.index.signature + footer
        with self._store._files.failing():
            _write_at(self._fd, 0, encode_header(self.index.header))
            _write_at(self._fd, end, tail)
            os.ftruncate(self._fd, end + len(tail))
            os.fsync(self._fd)

    def pause(self) -> None:
        """The peer went away: let go of descriptor and memory; another PUT goes on from here."""
        with self._store._lock, self._lock:
            if self._store._uploads.get(self.index.header.bundle_id) is self:
                del self._store._uploads[self.index.header.bundle_id]
            self._close()

    def open_part(self, part: Path) -> None:
        """Open the file, and find out which blocks are in it already."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._store._files.failing():
            self._fd = os.open(part, flags, 0o600)
        self._part = part
        self._compare()

    def update(
        self,
        live: LiveMap,
        live_map: bytes,
        tag: Tag,
        lease_until_ms: int,
        grants: tuple[bytes, ...],
    ) -> None:
        """The owner asked again, perhaps with a newer live map."""
        with self._lock:
            self.live = live
            self.live_map = live_map
            self.tag = tag
            self.lease_until_ms = max(lease_until_ms, self.lease_until_ms)
            self.grants = _merged(self.grants, grants)
            self._wanted = {i for i in self._wanted if live.is_live(i)}

    def _compare(self) -> None:
        size = os.fstat(self._fd).st_size
        entries = self.index.blocks.entries
        for i, offset in enumerate(self.index.blocks.offsets()):
            if not self.live.is_live(i):
                continue
            block_id, length = entries[i]
            if offset + length > size or block_id_of(self._read(offset, length)) != block_id:
                self._wanted.add(i)

    def _read(self, offset: int, length: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError:
            return b""  # unreadable is not here: the owner sends it again

    def _check_open(self) -> None:
        if self._fd < 0:
            raise LocalProtocolError("This upload was paused: begin it again.")
        self._store._files.refuse_when_failed()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _DamageNote:
    """Remembers that reading found damage, and lets the error go on."""

    def __init__(self, store: HeldStore, bundle_id: BundleId) -> None:
        self._store = store
        self._bundle_id = bundle_id

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BundleDamaged):
            self._store.note_damage(self._bundle_id)


# Named here, because inside a class with a method `list` the type cannot be written.
HeldPage = list[Held]
HeldIds = list[BundleId]
HeldGroups = dict[GroupId, int]

_NOBODY: Final = NodeId(bytes(20))  # holds the locks that no node asked for


def _line(entry: _Entry) -> Held:
    side = entry.side
    return Held(
        side.bundle_id,
        side.tag,
        side.kind,
        side.opener,
        entry.live.seq,
        side.live_bytes,
        side.lease_until_ms,
    )


def _slim(side: SideFile) -> SideFile:
    return msgspec.structs.replace(side, grants=(), locks=())


def _tags_of(side: SideFile) -> list[Tag]:
    own = [] if side.tag == UNKNOWN_TAG else [side.tag]
    return [*own, *(old.tag for old in side.replaces)]


def _live_bytes(index: BundleIndex, live: LiveMap) -> int:
    """Sealed bytes of the live blocks."""
    return sum(entry.length for i, entry in enumerate(index.blocks.entries) if live.is_live(i))


def _judged_map(index: BundleIndex, raw: bytes) -> tuple[LiveMap, bytes]:
    """The map of `index` that the encoded SignedLiveMap `raw` is; b"" stands for all live."""
    bundle_id = index.header.bundle_id
    if not raw:
        return LiveMap.all_live(bundle_id, len(index.blocks)), b""
    live = verify_live_map(decode_live_map(raw))
    if live.bundle_id != bundle_id or not live.fits(len(index.blocks)):
        raise IntegrityError(f"A live map does not fit bundle {short(bundle_id)}.")
    return live, raw


def _known_map(side: SideFile) -> LiveMap:
    if not side.live_map:
        return LiveMap.all_live(side.bundle_id, side.blocks)
    live = verify_live_map(decode_live_map(side.live_map))
    if live.bundle_id != side.bundle_id or not live.fits(side.blocks):
        raise FormatError("a side file with the live map of another bundle")
    return live


def _check_grants(grants: Sequence[bytes]) -> None:
    if len(grants) > MAX_GRANTS or sum(map(len, grants)) > MAX_GRANT_BYTES:
        raise NotAllowed("Too many grants for one bundle.")


def _merged(old: Sequence[bytes], new: Sequence[bytes]) -> tuple[bytes, ...]:
    """Both, each once, the newest last; the oldest go when there are too many."""
    merged = [grant for grant in old if grant not in new] + list(dict.fromkeys(new))
    while len(merged) > MAX_GRANTS or sum(map(len, merged)) > MAX_GRANT_BYTES:
        del merged[0]
    return tuple(merged)


def _write_at(fd: int, offset: int, raw: bytes) -> None:
    view = memoryview(raw)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def _touched(*paths: Path) -> float:
    """When the newest of these files was written."""
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return max(times, default=0.0)
