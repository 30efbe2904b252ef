"""The shares of this node: made, given away, and taken back.

A share goes through the ordinary pipeline under keys of its own, so its bundles have nothing in
common with any folder: they are granted whole, and gone when it ends. Its record in HOME says that
it exists.

A share that is fetched once lies on this node alone, which ends it when every block of its content
was sent for its token: whoever lost the last answer, or a second one at the same moment, is not
told apart.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Final

from p2pstore.clock import Clock
from p2pstore.content import (
    FOR_EVER_MS,
    MAX_HINTS,
    Grant,
    Kind,
    decode_share_key,
    encode_grant,
    share_access,
    sign_grant,
    token_hash,
)
from p2pstore.errors import (
    FormatError,
    IntegrityError,
    P2PStoreError,
    Unavailable,
    UsageError,
)
from p2pstore.home import Home
from p2pstore.ids import BlockId, BundleId
from p2pstore.ingest import Author, Intake
from p2pstore.net import Address
from p2pstore.shares.making import Maker, Terms
from p2pstore.shares.reading import Reader
from p2pstore.shares.record import Records, ShareRecord
from p2pstore.store import (
    ONCE,
    SHARED,
    BundleRow,
    BundleStore,
    Catalog,
    blocks,
)
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

LONGEST_S: Final = 3600.0  # clocks are set meanwhile

Progress = Callable[[int, int], None]
End = Callable[[Sequence[BundleRow]], Awaitable[None]]
"""Puts bundles away that nobody needs any more, here and at their holders."""


class Shares:
    def __init__(
        self,
        home: Home,
        *,
        store: BundleStore,
        catalog: Catalog,
        author: Callable[[], Author],
        maker: Maker,
        reader: Reader,
        hints: Callable[[], Sequence[Address]],
        changed: Callable[[], Awaitable[None]],
        end: End,
        clock: Clock,
        pool: Executor,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`hints` are addresses for the key; `changed`: there is something new to copy and
        announce. Blocks: it reads HOME."""
        self._store = store
        self._catalog = catalog
        self._author = author
        self._maker = maker
        self._reader = reader
        self._hints = hints
        self._changed = changed
        self._end = end
        self._clock = clock
        self._pool = pool
        self._random = random
        self._records = Records(home.path)
        self._shares: dict[str, ShareRecord] = {}
        self._grants: dict[BundleId, bytes] = {}
        self._unsent: dict[str, set[BlockId]] = {}  # of shares that are fetched once
        self._lock = threading.Lock()  # grants are asked for in any thread
        self._wake: Callable[[], None] = lambda: None
        self._left: list[BundleRow] = []  # of shares without a record: they ended, or never began
        self._load()

    def woken_by(self, wake: Callable[[], None]) -> None:
        """`wake` makes somebody call `turn`; he does now, to learn when the next share ends."""
        self._wake = wake
        wake()

    # -- what there is ------------------------------------------------------------------------

    def all(self) -> list[ShareRecord]:
        """Those that have not ended, the oldest first."""
        now_ms = int(self._clock.wall() * 1000)
        live = (record for record in self._shares.values() if not record.has_expired(now_ms))
        return sorted(live, key=lambda record: record.created_ms)

    def grants(self, bundle_id: BundleId) -> Sequence[bytes]:
        """The signed grant of a bundle of a share, encoded. Any thread."""
        with self._lock:
            grant = self._grants.get(bundle_id)
        return () if grant is None else (grant,)

    def served(self, token: bytes, bundle_id: BundleId, sent: Sequence[BlockId]) -> None:
        """Blocks of ours went to somebody who showed this token."""
        for share_id, left in list(self._unsent.items()):  # threads add to it
            record = self._shares[share_id]
            if record.token_hash == token_hash(token):
                left.difference_update(sent)
                if not left:
                    self._wake()

    def _load(self) -> None:
        """What HOME has, made known to the catalog, which may have been lost meanwhile."""
        ids = self._records.ids()
        for share_id in ids:
            try:
                self._add(self._records.read(share_id))
            except FormatError as exc:
                log.warning("A share cannot be listed, its blocks are kept: %s", exc)

        def settle(db: sqlite3.Connection) -> list[BundleRow]:
            left: list[BundleRow] = []
            for prefix in (SHARED, ONCE):
                for root in blocks.roots_with(db, prefix):
                    if root.removeprefix(prefix) not in ids:
                        left.extend(blocks.bundles_of_root(db, root))
            for record in self._shares.values():
                _keep_alive(record, db)
            return left

        self._left = self._catalog.write(settle).result()

    def _add(self, record: ShareRecord) -> None:
        author = self._author()
        found: dict[BundleId, bytes] = {}
        for ref in record.bundles:
            grant = Grant(ref.bundle_id, None, record.token_hash, record.expires_ms)
            found[ref.bundle_id] = encode_grant(sign_grant(grant, author.key, author.chain))
        with self._lock:
            self._grants |= found
        self._shares[record.id] = record
        if record.is_once:
            self._unsent[record.id] = self._content_of(record)

    def _content_of(self, record: ShareRecord) -> set[BlockId]:
        """What somebody has fetched who has fetched the file: lists may be read more than once."""
        wanted: set[BlockId] = set()
        for ref in record.bundles:
            try:
                index = self._store.index(ref.bundle_id)
            except (Unavailable, IntegrityError) as exc:
                log.warning("A share that is fetched once cannot be read: %s", exc)
                continue
            if index.header.kind == Kind.DATA or ref is record.bundles[0]:
                wanted.update(entry.block_id for entry in index.blocks.entries)
        return wanted

    # -- making -------------------------------------------------------------------------------

    async def upload(
        self,
        path: str,
        *,
        expires_s: float | None = None,
        once: bool = False,
        password: str = "",
        progress: Progress,
    ) -> ShareRecord:
        """Share a file's content, also that of a placeholder; Unavailable when it changes
        meanwhile, UsageError when it is no file, NoRoom."""
        if expires_s is not None and expires_s <= 0:
            raise UsageError("A key that has expired already is of no use to anybody.")
        now_ms = int(self._clock.wall() * 1000)
        secret = self._random(32)
        access = await in_thread(self._pool, share_access, secret, password)
        terms = Terms(
            created_ms=now_ms,
            expires_ms=FOR_EVER_MS if expires_s is None else now_ms + int(expires_s * 1000),
            is_once=once,
            has_password=bool(password),
            hints=tuple(self._hints())[:MAX_HINTS],
        )
        async with self._reader.opened(path) as (file, name):
            status = os.fstat(file.fileno())
            advance = _on_loop(progress, status.st_size)
            intake = Intake(name, file.fileno(), status, advance=advance)
            record = await in_thread(
                self._pool, self._maker.make, intake, secret, access, terms, self._keep
            )
        await self._changed()
        self._wake()
        return record

    def _keep(self, record: ShareRecord) -> None:
        self._records.write(record)
        self._add(record)

    # -- ending -------------------------------------------------------------------------------

    async def unshare(self, key: str) -> ShareRecord:
        """Take it back: nobody gets anything for the key any more. Holders that are away let
        their copies go when they are back. UsageError when this node did not make it."""
        secret = decode_share_key(key).secret
        for record in self._shares.values():
            if decode_share_key(record.key).secret == secret:
                await self._finish(record)
                return record
        raise UsageError("This node made no share with that key. Those it made: p2pstore shares")

    async def turn(self) -> float | None:
        """End what has expired, or was fetched once; the seconds until the next one expires."""
        now_ms = int(self._clock.wall() * 1000)
        if self._left:
            await self._let_go(self._left)
            self._left = []
        for record in list(self._shares.values()):
            is_fetched = record.is_once and not self._unsent.get(record.id)
            if record.has_expired(now_ms) or is_fetched:
                await self._finish(record)
                what = "was fetched" if is_fetched else "has expired"
                log.info("The share of %s %s.", os.fsdecode(record.name), what)
        ends = [record.ends for record in self._shares.values() if record.ends is not None]
        return min(max(0.0, min(ends) - now_ms / 1000), LONGEST_S) if ends else None

    async def _finish(self, record: ShareRecord) -> None:
        """The record first: from there on nothing is given, whatever happens next."""
        await in_thread(self._pool, self._records.remove, record.id)
        self._shares.pop(record.id, None)
        self._unsent.pop(record.id, None)
        with self._lock:
            for ref in record.bundles:
                self._grants.pop(ref.bundle_id, None)

        ids = [ref.bundle_id for ref in record.bundles]
        rows = self._catalog.view(lambda db: blocks.get_bundles(db, ids))
        await self._let_go([rows[bundle] for bundle in ids if bundle in rows])

    async def _let_go(self, rows: Sequence[BundleRow]) -> None:
        """The root's first, without which nothing is found. Each has its place in the catalog until
        its turn comes: that says at the next start what was not done."""
        for row in rows:
            await self._catalog.awrite(partial(_unkeep, row.id))
            try:
                await self._end([row])
            except P2PStoreError as exc:
                log.warning("A bundle of a share that has ended is collected later: %s", exc)


def _keep_alive(record: ShareRecord, db: sqlite3.Connection) -> None:
    """Its bundles are found under its tags, and stay while it lasts."""
    found = blocks.get_bundles(db, [ref.bundle_id for ref in record.bundles])
    for ref in record.bundles:
        if ref.bundle_id in found:
            blocks.set_tag(db, found[ref.bundle_id].id, ref.tag)
    root = (ONCE if record.is_once else SHARED) + record.id
    blocks.add_root(db, root, [row.id for row in found.values()])


def _unkeep(bundle: int, db: sqlite3.Connection) -> None:
    for prefix in (SHARED, ONCE):
        blocks.drop_roots_of(db, bundle, prefix)


def _on_loop(progress: Progress, size: int) -> Callable[[int], None]:
    """Sum up what a thread tells, and tell it in the event loop."""
    loop, done = asyncio.get_running_loop(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        loop.call_soon_threadsafe(progress, done, size)

    return advance
