"""VERIFY: is a bundle on this disk what its list, its ids and the catalog's keys say?

    own     list and live map are signed; every live block is read from the disk and compared with
            its id, its record head with the list; where the dedup index has its key it is unsealed,
            and its payload compared with the fingerprint
    held    likewise, without keys

Nothing is changed. What went meanwhile is no problem: who asks looks whether it should be there.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

from p2pstore.content import BundleIndex, LiveMap, Unsealer, block_id_of, dedup_key
from p2pstore.errors import IntegrityError, P2PStoreError, Unavailable
from p2pstore.ids import BundleId, short
from p2pstore.store import BundleMissing, BundleStore, Catalog, HeldStore

DAMAGED = IntegrityError.exit_code
WINDOW = 64  # blocks read at a time

HEAL = "p2pstore check --read-data --repair"
ITS_OWNER = "nothing: its owner sees it at the next audit, and gives it to us or to another anew"
BLOCKS_ARE_WHOLE = "nothing: the blocks of it, kept for another device, are whole; look at the disk"


class Problem(NamedTuple):
    text: str
    code: int  # exit code: damaged, or not here
    remedy: str = ""  # a command, or what helps
    bundle: BundleId | None = None  # that can be healed
    is_lost: bool = False  # of files whose bundles were given up


class Looked(NamedTuple):
    """What a bundle has alive: as much whether it was read or only its list."""

    blocks: int
    bytes: int
    problems: tuple[Problem, ...] = ()


class _Key(NamedTuple):
    key: bytes
    offset: int
    length: int
    fingerprint: bytes


class Verifier:
    """Looks at one bundle at a time; any number of threads may. Blocks on the disk."""

    def __init__(
        self,
        store: BundleStore,
        held: HeldStore,
        catalog: Catalog,
        dedup_secret: bytes | None = None,
    ) -> None:
        self._store = store
        self._held = held
        self._catalog = catalog
        self._dedup_secret = dedup_secret
        self._local = threading.local()

    def own(self, bundle_id: BundleId, *, read: bool) -> Looked:
        try:
            index = self._store.index(bundle_id)
            live = self._store.live_map(bundle_id)
            if not read:
                return _listed(index, live)
            self._store.drop_cache(bundle_id)
            looked = self._read(bundle_id, live.indices())
            heads = self._store.wrong_heads(bundle_id, live.indices())
            if heads and not looked.problems:
                return looked._replace(problems=(_damaged(bundle_id, _heads(bundle_id, heads)),))
            return looked
        except BundleMissing:
            return Looked(0, 0)  # evicted meanwhile; `_still_missing` tells if it was not
        except (IntegrityError, Unavailable) as exc:
            return Looked(0, 0, (_damaged(bundle_id, str(exc)),))

    def _read(self, bundle_id: BundleId, live: list[int]) -> Looked:
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
            return Looked(seen, size)
        text = f"Bundle {short(bundle_id)} is damaged: {wrong} of {seen} blocks are wrong."
        return Looked(seen, size, (_damaged(bundle_id, text),))

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

    def kept(self, bundle_id: BundleId, *, read: bool) -> Looked:
        try:
            index = self._held.index(bundle_id)
            if not read:
                return _listed(index, self._held.live_map(bundle_id))
            seen = size = 0
            for block in self._held.iter_live(bundle_id):  # compares each with its id
                seen += 1
                size += len(block)
            heads = self._held.wrong_heads(bundle_id)
            if heads:
                problem = Problem(_heads(bundle_id, heads), DAMAGED, BLOCKS_ARE_WHOLE)
                return Looked(seen, size, (problem,))
            return Looked(seen, size)
        except BundleMissing:
            return Looked(0, 0)  # released meanwhile
        except (IntegrityError, Unavailable) as exc:
            text = f"{exc} It is kept for another device."
            return Looked(0, 0, (Problem(text, DAMAGED, ITS_OWNER),))


def _listed(index: BundleIndex, live: LiveMap) -> Looked:
    alive = live.indices()
    return Looked(len(alive), sum(index.blocks.entries[i].length for i in alive))


def _heads(bundle_id: BundleId, wrong: int) -> str:
    return f"Bundle {short(bundle_id)} is damaged between its blocks, at {wrong} places."


def _damaged(bundle_id: BundleId, text: str) -> Problem:
    return Problem(text, DAMAGED, HEAL, bundle_id)


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
