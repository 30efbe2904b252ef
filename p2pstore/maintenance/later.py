"""LATER LISTS: which heads of lost devices say more of a recovered folder, and who is asked before.

A folder that was recovered from the words goes on from the newest list that the holders which were
there then had of it (`WatchedFolder.follows`). Who comes later may have a newer one of the same
lost device. What is in it is filed beside what the owner has done since (filing/late.py); that it
was read is recorded when all of it lies in its place: whatever is interrupted is read again.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from p2pstore.content import Head, Keyring, head_order
from p2pstore.home import RECOVERING, Followed, Home, WatchedFolder
from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance.filing import Filer, Late
from p2pstore.maintenance.heads import KnownHead, believed

T = TypeVar("T")


# -- which -----------------------------------------------------------------------------------------


class Absent(NamedTuple):
    """Whose heads may be followed: those of devices that are not there themselves."""

    me: NodeId
    present: Collection[NodeId]

    def may_be_news(self, entry: WatchedFolder, head: Head) -> bool:
        """Whether a head may tell more of a recovered folder than was read of its device.

        Folders of devices that are there are left to them, as when it was recovered; one that its
        owner has paused waits for him.
        """
        if head.folder != entry.folder_id or not entry.follows or entry.removed:
            return False
        if entry.paused not in ("", RECOVERING):
            return False
        if head.device == self.me or head.device in self.present:
            return False
        known = _read_of(entry, head.device)
        return known is None or known < head_order(head)

    def is_news(self, entry: WatchedFolder, one: KnownHead) -> bool:
        """The same of one that is believed. Of a device that was never heard of its clock decides:
        it is later than the list that the recovery began with."""
        if not self.may_be_news(entry, one.head):
            return False
        is_known = _read_of(entry, one.head.device) is not None
        return is_known or one.manifest.meta.mtime_ns > entry.as_of_ns


def _read_of(entry: WatchedFolder, device: NodeId) -> tuple[int, int] | None:
    orders = ((one.incarnation, one.seq) for one in entry.follows if one.device == device)
    return max(orders, default=None)


def followed(entry: WatchedFolder, heads: Iterable[KnownHead]) -> tuple[Followed, ...]:
    """Whom the folder follows when these have been read, too."""
    read = {one.device: (one.incarnation, one.seq) for one in entry.follows}
    for one in heads:
        read[one.head.device] = max(read.get(one.head.device, one.order), one.order)
    return tuple(Followed(device, *order) for device, order in sorted(read.items()))


def late_heads(
    home: Home, told: Sequence[bytes], absent: Absent, filer: Filer, ring: Keyring
) -> dict[FolderId, list[KnownHead]]:
    """Heads of lost devices that may tell more of a recovered folder; the newest first."""
    found: dict[FolderId, list[KnownHead]] = {}
    follow = [entry for entry in home.folders() if entry.follows]
    for raw in {*told, *home.heads()} if follow else ():
        one = believed(raw, filer, ring)
        if one is not None and any(absent.is_news(entry, one) for entry in follow):
            found.setdefault(one.head.folder, []).append(one)
    return {f: sorted(of, key=lambda one: one.order, reverse=True) for f, of in found.items()}


# -- reading ---------------------------------------------------------------------------------------


class Reopening(Protocol):
    """How a folder that is in use comes to rest while more of it is filed; in the loop."""

    async def open_again(self, folder: FolderId) -> bool:
        """The recovery is open again, durably, and nothing is concluded from what lacks in the
        folder; False when that cannot be now. Once it is open it stays so until the caller of
        `complete_with_holdings` says that everything is filed."""

    async def take(self, folder: FolderId, paths: Sequence[bytes]) -> Collection[bytes]:
        """Those that nobody brings back or takes in now, and nobody will before `let_go`."""

    async def let_go(self, folder: FolderId, paths: Collection[bytes]) -> None: ...


class Later(NamedTuple):
    """What later lists of lost devices have brought to a folder."""

    folder: FolderId
    follows: tuple[Followed, ...]  # as is to be recorded when all of it lies in its place
    files: tuple[tuple[NodeId, int], ...]  # from whose list how many


class InHand:
    """A folder's own work, asked from a thread."""

    def __init__(
        self, folder: FolderId, reopening: Reopening, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._folder = folder
        self._reopening = reopening
        self._loop = loop

    def open_again(self) -> bool:
        return self._wait(self._reopening.open_again(self._folder))

    def take(self, paths: Sequence[bytes]) -> Collection[bytes]:
        return self._wait(self._reopening.take(self._folder, paths))

    def let_go(self, paths: Collection[bytes]) -> None:
        self._wait(self._reopening.let_go(self._folder, paths))

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


def read_late(entry: WatchedFolder, filing: Late, heads: Sequence[KnownHead]) -> Later:
    """Of each device the newest list that can be read whole; of the others what can be."""
    read: list[KnownHead] = []
    brought: Counter[NodeId] = Counter()
    for one in heads:
        device = one.head.device
        if any(device == whole.head.device for whole in read):
            continue
        before = filing.files
        if filing.read(one.manifest):
            read.append(one)
        brought[device] += filing.files - before
    files = tuple((device, count) for device, count in brought.items() if count)
    return Later(FolderId(entry.folder_id), followed(entry, read), files)
