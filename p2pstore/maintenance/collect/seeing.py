"""The first half of a turn: which blocks and bundles nothing names, as far as the catalog tells."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from p2pstore.content import Kind
from p2pstore.errors import IntegrityError, Unavailable
from p2pstore.ids import BlockId, short
from p2pstore.maintenance.collect.roots import Roots
from p2pstore.maintenance.live import follow_map
from p2pstore.store import BundleRow, BundleState, BundleStore, Catalog, blocks, dying

log = logging.getLogger(__name__)

DAY_MS = 86_400_000
KEPT_MS = 30 * DAY_MS  # as long as nobody names it
UNNAMED_MS = DAY_MS  # as long as nobody ever named it
GROUP_BLOCKS = 200_000  # of the bundles that are looked at together: about 20 MB of ids
NOTED_AT_ONCE = 200  # bundles of one change
WORTH_BYTES = 256 * 1024  # a new live map has every holder read the whole bundle
WORTH_PART = 4  # ... so it takes this much, or a quarter of what is left

Say = Callable[[str, int, int], None]


class Ripe(NamedTuple):
    """What has been dying for long enough."""

    row: BundleRow
    since: int  # age when the last of it was first seen
    limit: int  # rows of `dying` up to this age are meant
    dead: frozenset[int]  # blocks by index; empty: all of the bundle


class _Seen(NamedTuple):
    """What was found of a bundle: `dying.WHOLE`, bits, or None."""

    row: BundleRow
    stamp: bytes
    dead: bytes | None


class Seeing:
    """Looks through the bundles that this device opened. Everything blocks."""

    def __init__(self, catalog: Catalog, store: BundleStore) -> None:
        self._catalog = catalog
        self._store = store

    def look(self, roots: Roots, age_ms: int, say: Say, is_stopped: Callable[[], bool]) -> None:
        """Hold each bundle whose references have changed against them; record what is dying."""
        stamps, known = self._catalog.view(lambda db: (dying.stamps(db), dying.examined(db)))
        done = 0
        for page in self._changed(stamps, known):
            seen: list[_Seen] = []
            for group in self._groups(page, stamps, seen):
                if is_stopped():
                    return
                named = roots.named(group)
                for row in group:
                    if row.id in named:
                        seen += self._blocks(row, stamps[row.id], named[row.id])
            for start in range(0, len(seen), NOTED_AT_ONCE):
                part = seen[start : start + NOTED_AT_ONCE]
                self._catalog.write(partial(_note, part, age_ms)).result()
            done += len(page)
            say("looks at what is still needed", done, len(stamps))

    def _changed(
        self, stamps: dict[int, bytes], known: dict[int, bytes]
    ) -> Iterator[list[BundleRow]]:
        after = 0
        while page := self._catalog.view(partial(_page, after)):
            after = page[-1].id
            yield [row for row in page if row.own and known.get(row.id) != stamps.get(row.id, b"")]

    def _groups(
        self, rows: Sequence[BundleRow], stamps: dict[int, bytes], seen: list[_Seen]
    ) -> Iterator[list[BundleRow]]:
        """Those that are partly needed, a number of them at a time; the others are `seen`."""
        group: list[BundleRow] = []
        size = 0
        for row in rows:
            stamp = stamps.get(row.id, b"")
            is_dead = self._catalog.view(partial(_judge, row))
            if is_dead is not None:
                seen.append(_Seen(row, stamp, dying.WHOLE if is_dead else None))
                continue
            group.append(row)
            size += row.blocks
            if size >= GROUP_BLOCKS:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _blocks(self, row: BundleRow, stamp: bytes, named: set[BlockId]) -> list[_Seen]:
        """What is dying of a bundle; nothing when that cannot be told."""
        try:
            entries = self._store.index(row.bundle_id).blocks.entries
            live = self._store.live_map(row.bundle_id)
        except (Unavailable, IntegrityError) as exc:
            log.info("Bundle %s is looked at later: %s", short(row.bundle_id), exc)
            return []  # gone or damaged meanwhile: nothing is concluded, and it is not called seen
        dead = [i for i in live.indices() if entries[i].block_id not in named]
        return [_Seen(row, stamp, dying.bits_of(dead, len(entries)) if dead else None)]

    # -- what has waited long enough ---------------------------------------------------------------

    def ripe(self, age_ms: int) -> list[Ripe]:
        found: list[Ripe] = []
        for number in self._catalog.view(dying.bundles):
            row, rows, is_unnamed = self._catalog.view(partial(_dying, number))
            if row is None or row.state not in (BundleState.SEALED, BundleState.EVICTED):
                continue
            is_whole = any(one.bits == dying.WHOLE for one in rows)
            limit = age_ms - (UNNAMED_MS if is_whole and is_unnamed else KEPT_MS)
            rows = [one for one in rows if one.since <= limit]
            if not rows:
                continue
            since = max(one.since for one in rows)
            if is_whole:
                if any(one.bits == dying.WHOLE for one in rows):
                    found.append(Ripe(row, since, limit, frozenset()))
            elif row.state == BundleState.SEALED:
                dead = self._worth(row, dying.indices(dying.union(rows)))
                if dead:
                    found.append(Ripe(row, since, limit, dead))
        return found

    def _worth(self, row: BundleRow, dead: Sequence[int]) -> frozenset[int]:
        """The blocks that may be punched out now; none when it is not worth a new live map."""
        try:
            if follow_map(self._catalog, self._store, row):
                return frozenset()  # a crash came between: the row is another one now
            entries = self._store.index(row.bundle_id).blocks.entries
            live = self._store.live_map(row.bundle_id)
        except (Unavailable, IntegrityError):
            return frozenset()
        lengths = {i: entries[i].length for i in live.indices()}
        dying_now = frozenset(i for i in dead if i in lengths)
        size, total = sum(lengths[i] for i in dying_now), sum(lengths.values())
        is_worth = size >= WORTH_BYTES or size * WORTH_PART >= total
        return dying_now if is_worth and len(dying_now) < len(lengths) else frozenset()


def _page(after: int, db: sqlite3.Connection) -> list[BundleRow]:
    states = (BundleState.SEALED, BundleState.EVICTED)
    return blocks.list_bundles(db, states=states, after=after)


def _judge(row: BundleRow, db: sqlite3.Connection) -> bool | None:
    """True: nothing needs it. False: all of it counts as needed. None: look at its blocks."""
    if dying.is_pinned(db, row.id):
        return False
    if blocks.roots_of(db, row.id):
        return False  # superseded: that has a time of its own
    if not dying.is_needed(db, row.id):
        return True
    if row.state != BundleState.SEALED:
        return False
    if row.kind == Kind.META and dying.earlier_references(db, [row.id]):
        return False  # where the manifest of an earlier version lies in it is not recorded
    return None


def _note(seen: Sequence[_Seen], age_ms: int, db: sqlite3.Connection) -> None:
    for row, stamp, dead in seen:
        dying.note(db, row, stamp, dead, age_ms)


def _dying(number: int, db: sqlite3.Connection) -> tuple[BundleRow | None, list[dying.Dying], bool]:
    row = blocks.by_rowid(db, number)
    return row, dying.of_bundle(db, number), dying.is_unnamed(db, number)
