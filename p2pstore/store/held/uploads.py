"""Bundles that are coming in: from the signed list to the moment when one is promised.

    incoming/<hex>.part     the bundle's file, as far as it has come (part.py)
    incoming/<hex>.list     its signed list; while it is there, nothing was promised

The order that a crash must not upset: blocks, ends, fsync, rename into place, side file, list
removed. A bundle without side file whose list is still there becomes an upload again. A PUT of what
is here already brings a longer lease, a newer live map, more grants; one of a damaged bundle turns
it into an upload that lacks only what is wrong.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from p2pstore.clock import Clock
from p2pstore.content import BundleIndex, LiveMap, accept_live_map, decode_signed_list, signed_list
from p2pstore.durable import replace_file
from p2pstore.errors import Busy, FormatError, IntegrityError, LocalProtocolError, NotAllowed
from p2pstore.ids import BundleId, GroupId, Tag, group_id_of, short
from p2pstore.store.bundles import BundleDamaged
from p2pstore.store.disk import translated
from p2pstore.store.held.maps import StaleMap, judged_map, live_bytes
from p2pstore.store.held.promises import Promises
from p2pstore.store.held.table import (
    UNKNOWN_TAG,
    Entry,
    Table,
    check_grants,
    merged,
    side_locks,
    slim,
)
from p2pstore.store.held.trash import Trash
from p2pstore.store.part import Part, judge
from p2pstore.store.sidefile import SideFile, SideReplaced

MAX_UPLOADS: Final = 256  # open at once: one descriptor and one block list each


class Uploads:
    def __init__(
        self, root: Path, table: Table, promises: Promises, trash: Trash, clock: Clock
    ) -> None:
        self._root = root
        self._table = table
        self._promises = promises
        self._trash = trash
        self._clock = clock
        self._open: dict[BundleId, Upload] = {}
        with translated("open the store of held bundles"):
            root.mkdir(mode=0o700, exist_ok=True)

    def begin(
        self,
        raw_list: bytes,
        tag: Tag,
        live_map: bytes,
        lease_until_ms: int,
        grants: Sequence[bytes],
    ) -> Upload:
        self._table.files.refuse_when_failed()
        index = decode_signed_list(raw_list)
        bundle_id = index.header.bundle_id
        live = judged_map(index, live_map)
        check_grants(grants)
        with self._table.lock:
            self._refuse_other_list(index)
            entry = self._table.get(bundle_id)
            if entry is not None:
                self._refuse_older_map(entry, live)
                if entry.side.released_ms:
                    self._trash.take_back(bundle_id)
                live_map = live_map if live.seq > entry.live.seq else entry.side.live_map
            upload = Upload(self, index, live, live_map, tag, lease_until_ms, tuple(grants))
            if entry is not None and not entry.is_damaged:
                return upload  # with nothing to be sent
            under_way = self._open.get(bundle_id)
            if under_way is not None:
                under_way.go_on_as(upload)
                return under_way
            if len(self._open) >= MAX_UPLOADS:
                raise Busy("Too many uploads are under way.")
            upload.part = Part(self._make_part(index), index, live, self._table.files)
            self._open[bundle_id] = upload
            return upload

    def bytes_of(self, group: GroupId) -> int:
        """What the group's open uploads will take."""
        with self._table.lock:
            return sum(
                live_bytes(upload.index, upload.live)
                for upload in self._open.values()
                if group_id_of(upload.index.header.group) == group
            )

    def purge(self, untouched_s: float) -> int:
        oldest = self._clock.wall() - untouched_s
        removed = 0
        with self._table.lock, translated("clean up uploads"):
            for path in list(self._root.glob("*.list")):
                bundle_id = BundleId(bytes.fromhex(path.stem))
                part = self.part_path(bundle_id)
                if bundle_id in self._open or _touched(part, path) > oldest:
                    continue
                part.unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                removed += 1
        return removed

    def close(self) -> None:
        with self._table.lock:
            for upload in list(self._open.values()):
                upload.pause()

    def list_path(self, bundle_id: BundleId) -> Path:
        return self._root / f"{bundle_id.hex()}.list"

    def part_path(self, bundle_id: BundleId) -> Path:
        return self._root / f"{bundle_id.hex()}.part"

    # -- what an upload does ---------------------------------------------------------------------

    @property
    def lock(self) -> threading.RLock:
        """Comes before that of an upload wherever both are held."""
        return self._table.lock

    def forget(self, upload: Upload) -> None:
        bundle_id = upload.index.header.bundle_id
        if self._open.get(bundle_id) is upload:
            del self._open[bundle_id]

    def promise(self, upload: Upload) -> None:
        """All of it is durable in its part, or was here before: from now on it is kept."""
        bundle_id = upload.index.header.bundle_id
        if upload.part is None:
            self._renew(upload)
            return
        self._table.files.adopt(upload.part.path, upload.index)
        entry = self._table.get(bundle_id)
        side = self._side_of(upload, entry)
        self._table.sides.write(side)
        locks = {} if entry is None else dict(entry.locks)
        group = group_id_of(upload.index.header.group)
        self._table.insert(Entry(slim(side), group, upload.live, locks))
        self.list_path(bundle_id).unlink(missing_ok=True)
        self.forget(upload)

    def _side_of(self, upload: Upload, entry: Entry | None) -> SideFile:
        """`entry` is what was known of the bundle while it was damaged."""
        index, header = upload.index, upload.index.header
        return SideFile(
            bundle_id=header.bundle_id,
            group=header.group,
            opener=header.opener,
            kind=header.kind,
            tag=upload.tag,
            lease_until_ms=max(upload.lease_until_ms, entry.side.lease_until_ms if entry else 0),
            live_map=upload.live_map,
            blocks=len(index.blocks),
            live_bytes=live_bytes(index, upload.live),
            locks=side_locks(entry.locks if entry else {}),
            lock_boot_id=self._table.boot_id,
            grants=merged(self._table.sides.grants(header.bundle_id), upload.grants),
            replaces=tuple(SideReplaced(*old) for old in index.blocks.replaces),
        )

    def _renew(self, upload: Upload) -> None:
        entry = self._table.here(upload.index.header.bundle_id)
        is_newer = upload.live.seq > entry.live.seq
        newer: dict[str, Any] = {}
        if is_newer:
            self._promises.refuse_when_locked(entry)
            newer = {
                "live": upload.live,
                "live_map": upload.live_map,
                "live_bytes": live_bytes(upload.index, upload.live),
            }
        self._table.change(
            entry,
            lease_until_ms=max(upload.lease_until_ms, entry.side.lease_until_ms),
            tag=upload.tag if entry.side.tag == UNKNOWN_TAG else entry.side.tag,
            grants=upload.grants,
            **newer,
        )
        if is_newer:
            with translated("punch dead blocks out of a held bundle"):
                self._table.files.punch(entry.side.bundle_id)

    # -- what is known of a bundle that comes in ---------------------------------------------------

    def _refuse_older_map(self, entry: Entry, live: LiveMap) -> None:
        if accept_live_map(entry.live, live):
            self._promises.refuse_when_locked(entry)
        elif live != entry.live:
            raise StaleMap(entry.side.bundle_id, entry.live.seq)

    def _refuse_other_list(self, index: BundleIndex) -> None:
        known = self._known_list(index)
        if known is not None and (known.header, known.blocks) != (index.header, index.blocks):
            raise NotAllowed(f"Bundle {short(index.header.bundle_id)} is known with another list.")

    def _known_list(self, index: BundleIndex) -> BundleIndex | None:
        """The list that came first under this id, if it can still be read."""
        bundle_id = index.header.bundle_id
        if (upload := self._open.get(bundle_id)) is not None:
            return upload.index
        entry = self._table.get(bundle_id)
        if entry is None:
            with suppress(FileNotFoundError, FormatError, IntegrityError):
                return decode_signed_list(self.list_path(bundle_id).read_bytes())
            return None
        # What cannot be read may be replaced by what its opener signs; nobody else can sign it.
        if index.header.opener != entry.side.opener:
            raise NotAllowed(f"Bundle {short(bundle_id)} belongs to another device.")
        if entry.side.released_ms:
            self._trash.take_back(bundle_id)
        with suppress(BundleDamaged):
            return self._table.files.index(bundle_id)
        return None

    def _make_part(self, index: BundleIndex) -> Path:
        """The file to write into; a damaged bundle goes back to being one."""
        bundle_id = index.header.bundle_id
        part = self.part_path(bundle_id)
        files = self._table.files
        with files.failing():
            replace_file(self.list_path(bundle_id), signed_list(index))
            sealed = files.path(bundle_id)
            if sealed.exists():
                files.forget(bundle_id)
                sealed.rename(part)
        return part


class Upload:
    """A bundle that is being taken; made by `HeldStore.begin_put`, resumable at any time."""

    def __init__(
        self,
        uploads: Uploads,
        index: BundleIndex,
        live: LiveMap,
        live_map: bytes,
        tag: Tag,
        lease_until_ms: int,
        grants: tuple[bytes, ...],
    ) -> None:
        self.index = index
        self.live = live
        self.live_map = live_map
        self.tag = tag
        self.lease_until_ms = lease_until_ms
        self.grants = grants
        self.part: Part | None = None  # of what is here already there is none
        self._uploads = uploads
        self._lock = threading.Lock()
        self._is_done = False

    def missing(self) -> bytes:
        """Bit i (least significant first) = block i is wanted."""
        bits = bytearray(-(-len(self.index.blocks) // 8))
        with self._lock:
            for i in self.part.wanted if self.part is not None else ():
                bits[i >> 3] |= 1 << (i & 7)
        return bytes(bits)

    def write(self, i: int, block: bytes) -> None:
        """Take one block; IntegrityError when it is not what the list says."""
        judge(self.index, i, block)
        with self._lock:
            if self.part is not None:
                self.part.write(i, block)

    def finish(self) -> None:
        """All is here: make it and what is promised durable, then the receipt may be signed."""
        with self._lock:
            if self.part is not None and not self._is_done:
                self.part.finish()
        with self._uploads.lock, self._lock:
            if self._is_done:
                return  # two connections brought the same bundle
            self._uploads.promise(self)
            self._is_done = True
            self._close()

    def pause(self) -> None:
        """The peer went away: let go of descriptor and memory; another PUT goes on from here."""
        with self._uploads.lock, self._lock:
            self._uploads.forget(self)
            self._close()

    def go_on_as(self, asked: Upload) -> None:
        """The owner asked again, perhaps with a newer live map; StaleMap when with an older."""
        with self._lock:
            if asked.live.seq < self.live.seq:
                raise StaleMap(self.index.header.bundle_id, self.live.seq)
            if self.part is None:
                raise LocalProtocolError("An upload of what is here already does not go on.")
            self.live = asked.live
            self.live_map = asked.live_map
            self.tag = asked.tag
            self.lease_until_ms = max(asked.lease_until_ms, self.lease_until_ms)
            self.grants = merged(self.grants, asked.grants)
            self.part.wanted = {i for i in self.part.wanted if asked.live.is_live(i)}

    def _close(self) -> None:
        if self.part is not None:
            self.part.close()


def _touched(*paths: Path) -> float:
    """When the newest of these files was written."""
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return max(times, default=0.0)
