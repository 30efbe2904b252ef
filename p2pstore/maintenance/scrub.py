"""SCRUB: the own disk is read again from end to end, so that rot is found while others have copies.

Every bundle of ours, then every one that is kept for others, in the order of rows and ids, once in
`period_s`; where it is lies in the catalog, so that it goes on there after a restart. It reads
RATE_BYTES a second, or as fast as twice the period needs, with the disk priority of what may wait.

    ours      a damaged or missing one is noted, and healed (`heal`)
    others'   a damaged one is noted where it is held: its owner's next question finds that out, and
              what it sends then is compared block by block
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated

import msgspec

from p2pstore.clock import Clock
from p2pstore.ids import BundleId, short
from p2pstore.maintenance.heal import Healer
from p2pstore.maintenance.live import follow_map
from p2pstore.maintenance.loops import Loop
from p2pstore.maintenance.verify import Looked, Verifier
from p2pstore.store import BundleRow, BundleState, BundleStore, Catalog, HeldStore, blocks
from p2pstore.syscalls import idle_io
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

RATE_BYTES = 4 << 20  # a second
KEEP_EVERY = 64 << 20  # bytes after which the place is written down
PAGE = 100


class _Place(msgspec.Struct, frozen=True, array_like=True):
    """Behind which row of ours, then behind which bundle of others'."""

    own: int = 0
    held: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    own_done: bool = False
    done: int = 0  # bytes so far, to be shown


class Scrubber:
    def __init__(
        self,
        *,
        catalog: Catalog,
        store: BundleStore,
        held: HeldStore,
        healer: Healer,
        clock: Clock,
        dedup_secret: Callable[[], bytes],
        period_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._held = held
        self._healer = healer
        self._clock = clock
        self._dedup_secret = dedup_secret
        self._period_s = period_s
        self._sleep = sleep
        self._pool = ThreadPoolExecutor(1, "scrub", initializer=idle_io)

    def close(self) -> None:
        """Its thread ends; call it when the loop has been stopped."""
        self._pool.shutdown()

    async def turn(self, loop: Loop) -> None:
        """From where the last turn was to the end of the disk."""
        place = _placed(loop.place)
        total = await in_thread(self._pool, self._total)
        rate = max(RATE_BYTES, 2 * total / self._period_s)
        verifier = Verifier(self._store, self._held, self._catalog, self._dedup_secret())
        unkept = 0
        async for look, after in self._bundles(place):
            began = self._clock.monotonic()
            loop.say("reads what is stored here", place.done, max(total, place.done))
            looked = await look(verifier)
            place = after(place.done + looked.bytes)
            unkept += looked.bytes
            if unkept >= KEEP_EVERY:
                await loop.keep(msgspec.msgpack.encode(place))
                unkept = 0
            spent = self._clock.monotonic() - began
            await self._sleep(max(0.0, looked.bytes / rate - spent))
        await loop.keep(b"")

    async def _bundles(
        self, place: _Place
    ) -> AsyncIterator[tuple[Callable[[Verifier], Awaitable[Looked]], Callable[[int], _Place]]]:
        """How to look at each bundle, and the place behind it, by the bytes read until then."""
        after = place.own
        while not place.own_done:
            page = await in_thread(self._pool, self._catalog.view, partial(_page, after))
            if not page:
                break
            for row in page:
                yield partial(self._own, row), partial(_behind_own, row.id)
            after = page[-1].id
        for bundle_id in await in_thread(self._pool, self._kept):
            if bundle_id > place.held:
                yield partial(self._other, bundle_id), partial(_behind_held, bundle_id)

    async def _own(self, row: BundleRow, verifier: Verifier) -> Looked:
        looked = await in_thread(self._pool, verifier.own, row.bundle_id, read=True)
        is_missing: bool = await in_thread(self._pool, self._is_missing, row)
        if looked.problems or is_missing:
            log.warning("Bundle %s is damaged or gone from this disk.", short(row.bundle_id))
            await self._healer.note(row.bundle_id)
        elif looked.blocks:
            # The catalog may have come from a copy: the map on the disk is what holds.
            await in_thread(self._pool, follow_map, self._catalog, self._store, row)
        return looked

    async def _other(self, bundle_id: BundleId, verifier: Verifier) -> Looked:
        return await in_thread(self._pool, verifier.kept, bundle_id, read=True)

    def _is_missing(self, row: BundleRow) -> bool:
        now = self._catalog.view(lambda db: blocks.by_rowid(db, row.id))
        is_meant = now is not None and now.state == BundleState.SEALED
        return is_meant and not self._store.has(row.bundle_id)

    def _kept(self) -> list[BundleId]:
        return sorted(held.bundle_id for held in self._held.oldest())

    def _total(self) -> int:
        stored = self._catalog.view(blocks.stored_bytes)
        return stored.get(BundleState.SEALED, 0) + sum(self._held.groups().values())


def _placed(raw: bytes) -> _Place:
    try:
        return msgspec.msgpack.decode(raw, type=_Place) if raw else _Place()
    except msgspec.MsgspecError:
        return _Place()  # of another version: from the beginning


def _behind_own(row: int, done: int) -> _Place:
    return _Place(own=row, done=done)


def _behind_held(bundle_id: BundleId, done: int) -> _Place:
    return _Place(held=bundle_id, own_done=True, done=done)


def _page(after: int, db: sqlite3.Connection) -> list[BundleRow]:
    return blocks.list_bundles(db, states=(BundleState.SEALED,), after=after, limit=PAGE)
