"""CHECK: is what lies on this disk what the catalog says, and is it whole?

    catalog    what SQLite finds wrong in the file
    own        each bundle that is recorded as here is here, each one here is recorded, and each is
               what it should be (`verify`); with `read_data` every byte is read
    held       likewise, for what is kept for others
    names      with `read_data` every manifest that the catalog has is opened

Nothing is changed and nothing is moved: what is wrong is named, with what mends it. What is written
or evicted meanwhile is looked at twice before it is called a problem.
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

from p2pstore.content import Keyring, open_manifest
from p2pstore.errors import P2PStoreError, Unavailable
from p2pstore.ids import BundleId, short
from p2pstore.maintenance.verify import DAMAGED, ITS_OWNER, Looked, Problem, Verifier
from p2pstore.store import BundleState, BundleStore, Catalog, HeldStore, blocks
from p2pstore.text import plural

Progress = Callable[[dict[str, Any]], None]

NOT_HERE = Unavailable.exit_code
THREADS = 4  # more only make the disk seek
MAX_PROBLEMS = 1000  # a disk that fails everywhere needs no longer list

MANIFESTS = 500  # in memory at a time

REBUILD = "p2pstore rebuild-catalog"
MEND = "p2pstore check --repair"

_HERE = (BundleState.SEALED, BundleState.EVICTING)


class Checked(NamedTuple):
    bundles: int
    blocks: int
    bytes: int
    problems: tuple[Problem, ...]


def check(
    store: BundleStore,
    held: HeldStore,
    catalog: Catalog,
    *,
    read_data: bool,
    ring: Keyring | None = None,
    progress: Progress = lambda _: None,
    stop: threading.Event | None = None,
) -> Checked:
    """Look at everything. Blocks; `stop` ends it early. `store` is best opened just for this: one
    that is in use answers for lists that it has read already. With the keys of `ring` what is read
    is opened as well."""
    return _Check(store, held, catalog, read_data, ring, progress, stop).run()


class _Check:
    def __init__(
        self,
        store: BundleStore,
        held: HeldStore,
        catalog: Catalog,
        read_data: bool,
        ring: Keyring | None,
        progress: Progress,
        stop: threading.Event | None,
    ) -> None:
        self._store = store
        self._held = held
        self._catalog = catalog
        self._read_data = read_data
        self._ring = ring
        self._verifier = Verifier(store, held, catalog, None if ring is None else ring.dedup)
        self._progress = progress
        self._stop = stop or threading.Event()

    def run(self) -> Checked:
        problems = [
            Problem(f"The catalog is damaged: {text}", DAMAGED, REBUILD) for text in self._damages()
        ]
        own = self._store.list()
        kept = [held.bundle_id for held in self._all_held()]
        missing = self._missing(own)
        total = self._catalog.view(_stored) + sum(self._held.groups().values())
        look, read = self._verifier, self._read_data
        jobs = [partial(look.own, one, read=read) for one in own]
        jobs += [partial(look.kept, one, read=read) for one in kept]
        bundles = blocks_seen = bytes_seen = 0
        for looked in self._in_threads(jobs):
            bundles += 1
            blocks_seen += looked.blocks
            bytes_seen += looked.bytes
            problems.extend(looked.problems)
            self._progress(
                {
                    "stage": "check",
                    "bundles": bundles,
                    "bundles_total": len(jobs),
                    "bytes": bytes_seen,
                    "bytes_total": total,
                }
            )
        if self._read_data and self._ring is not None:
            problems += self._names(self._ring)
        problems += self._still_missing(missing)
        problems += self._unknown(own)
        problems += [
            Problem(f"Bundle {short(one)}, kept for another device, is gone.", NOT_HERE, ITS_OWNER)
            for one in self._held.lost
        ]
        said = " ".join(problem.text for problem in problems)
        problems += [
            Problem(
                f"Of bundle {short(one)}, kept for another device, content or promise is damaged.",
                DAMAGED,
                ITS_OWNER,
            )
            for one in self._held.doubtful()
            if short(one) not in said
        ]
        lost = self._catalog.view(_lost_files)
        if lost:
            text = f"{plural(lost, 'file')} with blocks that are nowhere."
            remedy = f"{MEND}, with more devices connected"
            problems.append(Problem(text, NOT_HERE, remedy, is_lost=True))
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

    def _names(self, ring: Keyring) -> Iterator[Problem]:
        """Manifests in the catalog that say nothing any more."""
        after = 0
        while page := self._catalog.view(partial(_manifests, after)):
            after = page[-1][0]
            for _, path, raw in page:
                if self._stop.is_set():
                    return
                try:
                    open_manifest(raw, ring)
                except P2PStoreError:
                    text = f"What the catalog knows of {os.fsdecode(path)} is damaged."
                    yield Problem(text, DAMAGED, REBUILD)

    # -- presence ---------------------------------------------------------------------------------

    def _missing(self, own: Iterable[BundleId]) -> list[BundleId]:
        here = set(own)
        return [one for one in self._catalog.view(_recorded) if one not in here]

    def _still_missing(self, missing: Iterable[BundleId]) -> list[Problem]:
        """What was evicted or sealed since the first look is no problem."""
        return [
            Problem(f"Bundle {short(one)} is recorded as here and is missing.", NOT_HERE, MEND, one)
            for one in missing
            if not self._store.has(one) and self._state(one) in _HERE
        ]

    def _unknown(self, own: Iterable[BundleId]) -> list[Problem]:
        return [
            Problem(
                f"Bundle {short(one)} lies here and the catalog does not know it.",
                DAMAGED,
                MEND,
                one,
            )
            for one in own
            if self._state(one) is None and self._store.has(one)
        ]

    def _state(self, bundle_id: BundleId) -> str | None:
        row = self._catalog.view(lambda db: blocks.exactly(db, bundle_id))
        return None if row is None else row.state

    # -- threads ----------------------------------------------------------------------------------

    def _in_threads(self, jobs: Iterable[Callable[[], Looked]]) -> Iterator[Looked]:
        """In order; few at a time, so that a stop ends it soon."""
        waiting: deque[Future[Looked]] = deque()
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


def _manifests(after: int, db: sqlite3.Connection) -> list[tuple[int, bytes, bytes]]:
    query = (
        "SELECT f.id, CAST(d.path || '/' || f.path AS BLOB), CAST(m.raw AS BLOB) FROM manifests m"
        " JOIN files f ON f.id=m.file JOIN folders d ON d.id=f.folder"
        " WHERE f.id>? ORDER BY f.id LIMIT ?"
    )
    return db.execute(query, (after, MANIFESTS)).fetchall()


def _lost_files(db: sqlite3.Connection) -> int:
    query = (
        "SELECT count(DISTINCT r.file) FROM file_bundles r JOIN bundles b ON b.id=r.bundle"
        " WHERE b.state='lost'"
    )
    return int(db.execute(query).fetchone()[0])
