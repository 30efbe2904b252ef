"""CHECK: is what lies on this disk what the catalog says, and is it whole?

    catalog    what SQLite finds wrong in the file
    own        each bundle that is recorded as here is here, each one here is recorded; its list is
               signed, its live map as well
    held       likewise, for what is kept for others
    read_data  every live block is read from the disk and compared with its id; where the dedup
               index has its key it is unsealed, and its payload compared with the fingerprint

Nothing is changed and nothing is moved: a damaged bundle is named, and brought back from a holder
by others. What is written or evicted meanwhile is looked at twice before it is called a problem.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from p2pstore.content import Unsealer, block_id_of, dedup_key
from p2pstore.errors import IntegrityError, P2PStoreError, Unavailable
from p2pstore.ids import BundleId, short
from p2pstore.store import BundleMissing, BundleState, BundleStore, Catalog, HeldStore, blocks

Progress = Callable[[dict[str, Any]], None]

DAMAGED = IntegrityError.exit_code
NOT_HERE = Unavailable.exit_code
WINDOW = 64  # blocks read at a time
THREADS = 4  # more only make the disk seek
MAX_PROBLEMS = 1000  # a disk that fails everywhere needs no longer list

_HERE = (BundleState.SEALED, BundleState.EVICTING)


class Problem(NamedTuple):
    text: str
    code: int  # exit code: damaged, or not here


class Checked(NamedTuple):
    bundles: int
    blocks: int
    bytes: int
    problems: tuple[Problem, ...]


class _Looked(NamedTuple):
    blocks: int
    bytes: int
    problems: tuple[Problem, ...] = ()


class _Key(NamedTuple):
    key: bytes
    offset: int
    length: int
    fingerprint: bytes


def check(
    store: BundleStore,
    held: HeldStore,
    catalog: Catalog,
    *,
    read_data: bool,
    dedup_secret: bytes | None = None,
    progress: Progress = lambda _: None,
    stop: threading.Event | None = None,
) -> Checked:
    """Look at everything. Blocks; `stop` ends it early. `store` is best opened just for this: one
    that is in use answers for lists that it has read already."""
    return _Check(store, held, catalog, read_data, dedup_secret, progress, stop).run()


class _Check:
    def __init__(
        self,
        store: BundleStore,
        held: HeldStore,
        catalog: Catalog,
        read_data: bool,
        dedup_secret: bytes | None,
        progress: Progress,
        stop: threading.Event | None,
    ) -> None:
        self._store = store
        self._held = held
        self._catalog = catalog
        self._read_data = read_data
        self._dedup_secret = dedup_secret
        self._progress = progress
        self._stop = stop or threading.Event()
        self._local = threading.local()

    def run(self) -> Checked:
        problems = [Problem(f"The catalog is damaged: {text}", DAMAGED) for text in self._damages()]
        own = self._store.list()
        kept = [held.bundle_id for held in self._all_held()]
        missing = self._missing(own)
        total = self._catalog.view(_stored) + sum(self._held.groups().values())
        jobs = [partial(self._own, one) for one in own] + [partial(self._kept, k) for k in kept]
        bundles = blocks_seen = bytes_seen = 0
        for looked in self._in_threads(jobs):
            bundles += 1
            blocks_seen += looked.blocks
            bytes_seen += looked.bytes
            problems.extend(looked.problems)
            self._progress(
                {
                    "stage": "check",
                    "files": bundles,
                    "files_total": len(jobs),
                    "bytes": bytes_seen,
                    "bytes_total": total,
                }
            )
        problems += self._still_missing(missing)
        problems += self._unknown(own)
        problems += [
            Problem(f"Bundle {short(one)}, kept for another device, is gone.", NOT_HERE)
            for one in self._held.lost
        ]
        lost = self._catalog.view(_lost_files)
        if lost:
            problems.append(Problem(f"{lost:,} files need blocks that are nowhere.", NOT_HERE))
        return Checked(bundles, blocks_seen, bytes_seen, tuple(problems[:MAX_PROBLEMS]))

    def _damages(self) -> list[str]:
        try:
            return self._catalog.damages()
        except P2PStoreError as exc:
            return [str(exc)]

    def _all_held(self) -> Iterator[Any]:
        for group in self._held.groups():
            after: BundleId | None = None
            more = True
            while more:
                page, more = self._held.list(group, after)
                yield from page
                after = page[-1].bundle_id if page else None

    # -- presence ---------------------------------------------------------------------------------

    def _missing(self, own: Iterable[BundleId]) -> list[BundleId]:
        here = set(own)
        return [one for one in self._catalog.view(_recorded) if one not in here]

    def _still_missing(self, missing: Iterable[BundleId]) -> list[Problem]:
        """What was evicted or sealed since the first look is no problem."""
        return [
            Problem(f"Bundle {short(one)} is recorded as here and is missing.", NOT_HERE)
            for one in missing
            if not self._store.has(one) and self._state(one) in _HERE
        ]

    def _unknown(self, own: Iterable[BundleId]) -> list[Problem]:
        return [
            Problem(
                f"Bundle {short(one)} lies here and the catalog does not know it: "
                "p2pstore rebuild-catalog",
                DAMAGED,
            )
            for one in own
            if self._state(one) is None and self._store.has(one)
        ]

    def _state(self, bundle_id: BundleId) -> str | None:
        row = self._catalog.view(lambda db: blocks.get_bundle(db, bundle_id))
        return None if row is None else row.state

    # -- one bundle -------------------------------------------------------------------------------

    def _own(self, bundle_id: BundleId) -> _Looked:
        try:
            index = self._store.index(bundle_id)
            live = self._store.live_map(bundle_id)
            if not self._read_data:
                return _Looked(len(index.blocks), self._store.size(bundle_id))
            self._store.drop_cache(bundle_id)
            return self._read(bundle_id, live.indices())
        except BundleMissing:
            return _Looked(0, 0)  # evicted meanwhile; `_still_missing` tells if it was not
        except (IntegrityError, Unavailable) as exc:
            return _Looked(0, 0, (Problem(str(exc), DAMAGED),))

    def _read(self, bundle_id: BundleId, live: list[int]) -> _Looked:
        keys = self._catalog.view(partial(_keys, bundle_id)) if self._dedup_secret else {}
        entries = self._store.index(bundle_id).blocks.entries
        seen = size = wrong = 0
        for start in range(0, len(live), WINDOW):
            part = live[start : start + WINDOW]
            for i, block in zip(part, self._store.read(bundle_id, part), strict=True):
                seen += 1
                size += len(block)
                if block_id_of(block) != entries[i].block_id or not self._opens(
                    block, keys.get(i, [])
                ):
                    wrong += 1
        if not wrong:
            return _Looked(seen, size)
        text = f"Bundle {short(bundle_id)} is damaged: {wrong} of {seen} blocks are wrong."
        return _Looked(seen, size, (Problem(text, DAMAGED),))

    def _opens(self, block: bytes, keys: Iterable[_Key]) -> bool:
        secret = self._dedup_secret
        if secret is None:
            return True
        unsealer: Unsealer | None = getattr(self._local, "unsealer", None)
        if unsealer is None:
            unsealer = self._local.unsealer = Unsealer()
        for key, offset, length, fingerprint in keys:
            try:
                payload = unsealer.unseal(block, key)[offset : offset + length]
            except P2PStoreError:
                return False
            if dedup_key(secret, payload) != fingerprint:
                return False
        return True

    def _kept(self, bundle_id: BundleId) -> _Looked:
        try:
            index = self._held.index(bundle_id)
            if not self._read_data:
                return _Looked(len(index.blocks), sum(e.length for e in index.blocks.entries))
            seen = size = 0
            for block in self._held.iter_live(bundle_id):  # compares each with its id
                seen += 1
                size += len(block)
            return _Looked(seen, size)
        except BundleMissing:
            return _Looked(0, 0)  # released meanwhile
        except (IntegrityError, Unavailable) as exc:
            return _Looked(0, 0, (Problem(f"{exc} It is kept for another device.", DAMAGED),))

    # -- threads ----------------------------------------------------------------------------------

    def _in_threads(self, jobs: Iterable[Callable[[], _Looked]]) -> Iterator[_Looked]:
        """In order; few at a time, so that a stop ends it soon."""
        waiting: deque[Future[_Looked]] = deque()
        with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "check") as pool:
            for job in jobs:
                if self._stop.is_set():
                    break
                waiting.append(pool.submit(job))
                if len(waiting) > 2 * THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def _recorded(db: sqlite3.Connection) -> list[BundleId]:
    query = "SELECT bundle_id FROM bundles WHERE state IN ('sealed', 'evicting')"
    return [BundleId(one) for (one,) in db.execute(query)]


def _stored(db: sqlite3.Connection) -> int:
    stored = blocks.stored_bytes(db)
    return sum(stored.get(state, 0) for state in _HERE)


def _keys(bundle_id: BundleId, db: sqlite3.Connection) -> dict[int, list[_Key]]:
    """Index in the bundle -> what is known of the chunks in that block."""
    query = (
        "SELECT d.idx, d.block_key, d.offset, d.length, d.key FROM dedup d"
        " JOIN bundles b ON b.id=d.bundle WHERE b.bundle_id=?"
    )
    found: dict[int, list[_Key]] = {}
    for idx, *key in db.execute(query, (bundle_id,)):
        found.setdefault(idx, []).append(_Key(*key))
    return found


def _lost_files(db: sqlite3.Connection) -> int:
    query = (
        "SELECT count(DISTINCT r.file) FROM file_bundles r JOIN bundles b ON b.id=r.bundle"
        " WHERE b.state='lost'"
    )
    return int(db.execute(query).fetchone()[0])
