"""REBUILD: a catalog that is missing or damaged is made anew from what it was a cache of.

First `rebuild_local`, without network and before anything else of the node runs:

    bundles        those on this disk, each with its signed list; what was on its way out of the
                   store when the catalog broke comes back
    heads          the newest of this device lead to its indexes, and these to the manifests;
                   those of other devices tell what they know of paths that are there
    placeholders   `.f` files that no index has: written after the last one, moved, copied
    originals      compared with their manifests; the equal ones are in work, the others are met
                   by the scan as what they are, a newer version

Later, when peers are connected, `complete` (complete.py) learns from holders where the bundles
lie that are not here. Until then nothing is evicted and nothing is given up (`State.pending`).

Order: the new catalog is written beside the old one; the incarnation in HOME is raised; the old
one gets the name catalog.sqlite.damaged-<ms>; the new one takes its place. Interrupted at any point
it begins again. What only the old one knew (pins, earlier versions) is taken from it as far as it
can be read; what cannot be had back is the proofs of copies and what holders acknowledged, which
both are asked for anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import (
    Keyring,
    Kind,
    bundle_tag,
)
from p2pstore.durable import sync_directory
from p2pstore.errors import FormatError, IntegrityError, Unavailable
from p2pstore.home import Home, WatchedFolder
from p2pstore.ids import BundleId, FolderId, NodeId, PublicKey, short
from p2pstore.ingest import Author
from p2pstore.maintenance import aliases
from p2pstore.maintenance.filing import Disk, Filer, Judge, Local, bundle_row
from p2pstore.maintenance.heads import KnownHead, newest_heads
from p2pstore.maintenance.older import is_older
from p2pstore.maintenance.remains import keep_from_old
from p2pstore.store import (
    BundleRow,
    BundleStore,
    Catalog,
    CatalogDamaged,
    HeldStore,
    blocks,
    folders,
)

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

NAME = "catalog.sqlite"
STATE = "rebuild"  # key of `State` in the catalog
_SIDES = ("-wal", "-shm")
_ROWS = 1000  # bundle rows of one change


class State(msgspec.Struct, frozen=True, array_like=True):
    """What a rebuilt catalog remembers of its making."""

    at_ms: int  # GC waits 30 days from here
    pending: bool  # holders have not been asked yet: nothing is evicted or released
    unread: int  # lists and indexes that could not be read: GC must not conclude anything
    incarnation: int = 0  # of the heads that this device writes from now on
    folders: tuple[bytes, ...] = ()  # whose indexes were not read whole
    heads: tuple[bytes, ...] = ()  # of this device: what the rebuild began with, signed
    asked: tuple[NodeId, ...] = ()  # who has told since what it keeps for us


class Rebuilt(NamedTuple):
    files: int
    placeholders: int
    bundles: int  # that lie here
    missing: int  # that are needed and lie not here
    damaged: tuple[BundleId, ...]
    unread: int
    untrusted: int  # placeholders of signers that the group does not trust
    incarnation: int


def ensure_catalog(
    home: Home,
    store: BundleStore,
    *,
    author: Author,
    ring: Keyring,
    judge: Judge,
    clock: Clock,
    held: HeldStore | None = None,
    progress: Progress = lambda _: None,
    anew: bool = False,
) -> tuple[Catalog, Rebuilt | None]:
    """The catalog of HOME, open; rebuilt when it is damaged, when it comes from an old copy, when
    it is missing and HOME has anything that it was to know, or when `anew` says so.

    Blocks: once the files of all folders are looked at, and originals are read. Nothing else may
    work on HOME meanwhile. UsageError when a newer version wrote the catalog.
    """
    path = home.path / NAME
    if not anew:
        try:
            if path.exists() or not has_something(home, store):
                catalog = Catalog.open(path)
                if not _is_older(catalog, home, author):
                    return catalog, None
                catalog.close()
                log.warning("%s is older than what this device told others. It is rebuilt.", path)
            else:
                log.warning("%s is missing and is rebuilt.", path)
        except CatalogDamaged as exc:
            log.warning("%s It is rebuilt; the damaged one is kept beside it.", exc)
    target = path.with_name(NAME + ".rebuilding")
    remove_catalog(target)
    rebuilt = rebuild_local(
        home,
        store,
        target,
        author=author,
        ring=ring,
        judge=judge,
        clock=clock,
        old=path,
        progress=progress,
    )
    _take_place(target, path, int(clock.wall() * 1000))
    if held is not None:
        held.lock_all()
    log.warning(
        "The catalog was rebuilt: %d files, %d bundles here, %d to be asked for.",
        rebuilt.files,
        rebuilt.bundles,
        rebuilt.missing,
    )
    return Catalog.open(path, check=False), rebuilt


def _is_older(catalog: Catalog, home: Home, author: Author) -> bool:
    left = state(catalog)
    return is_older(catalog, home, author.node_id, 0 if left is None else left.incarnation)


def has_something(home: Home, store: BundleStore) -> bool:
    """Whether a catalog of this HOME would have anything in it."""
    return bool(home.folders() or home.heads() or store.list() or store.trash())


def state(catalog: Catalog) -> State | None:
    """What the last rebuild left to be done; None for a catalog that was never rebuilt."""
    raw = catalog.view(lambda db: folders.kv_get(db, STATE))
    return None if raw is None else msgspec.msgpack.decode(raw, type=State)


def save_state(db: sqlite3.Connection, value: State) -> None:
    folders.kv_set(db, STATE, msgspec.msgpack.encode(value))


def remove_catalog(path: Path) -> None:
    for name in ("", *_SIDES, "-journal"):
        path.with_name(path.name + name).unlink(missing_ok=True)


def _take_place(new: Path, path: Path, now_ms: int) -> None:
    """The old one first: whatever is interrupted here, the next start finds none and begins."""
    for name in ("", *_SIDES):
        old = path.with_name(path.name + name)
        if old.exists():
            old.rename(path.with_name(f"{path.name}.damaged-{now_ms}{name}"))
    sync_directory(path.parent)
    new.rename(path)
    sync_directory(path.parent)


# -- the local part --------------------------------------------------------------------------------


def rebuild_local(
    home: Home,
    store: BundleStore,
    target: Path,
    *,
    author: Author,
    ring: Keyring,
    judge: Judge,
    clock: Clock,
    old: Path | None = None,
    progress: Progress = lambda _: None,
) -> Rebuilt:
    """Write a new catalog at `target`, complete as far as this disk can tell."""
    now_ms = int(clock.wall() * 1000)
    with Catalog.open(target, check=False) as catalog:
        known, damaged = _bundles(catalog, store, author, ring)
        meta = [row.bundle_id for row in known if row.kind == Kind.META]
        filer = Filer(
            catalog=catalog,
            local=Local(store, meta),
            author=author,
            ring=ring,
            judge=judge,
            now_ms=now_ms,
            report=lambda count: progress({"stage": "rebuild", "files": count}),
            guessed={row.bundle_id for row in known},
        )
        heads = newest_heads(home.heads(), filer, ring)
        pending: list[bytes] = []
        # Removed ones first: a watched folder may have the path of a removed one.
        for entry in sorted(home.folders(), key=lambda entry: not entry.removed):
            number = catalog.write(_adding(entry)).result()
            if not _folder(catalog, filer, entry, number, heads.get(FolderId(entry.folder_id), ())):
                pending.append(entry.folder_id)
            _share_out(catalog, number)
        keep_from_old(old, catalog, filer)
        counts = catalog.view(_counts)
        missing = catalog.view(_missing)
        own = [one for of in heads.values() for one in of if one.head.device == filer.node_id]
        incarnation = raise_incarnation(home, max((h.head.incarnation for h in own), default=0))
        left = State(
            now_ms,
            True,
            filer.unread,
            incarnation=incarnation,
            folders=tuple(pending),
            heads=tuple(one.raw for one in own),
        )
        catalog.write(lambda db: save_state(db, left)).result()
    return Rebuilt(
        files=counts[0],
        placeholders=counts[1],
        bundles=len(known),
        missing=missing,
        damaged=tuple(damaged),
        unread=filer.unread,
        untrusted=filer.untrusted,
        incarnation=incarnation,
    )


def raise_incarnation(home: Home, known: int) -> int:
    """One more than the greatest that this disk and `known` tell; HOME has it on return."""
    try:
        here = home.incarnation()
    except FormatError:
        here = 0  # heads tell; a head with a number that others know already is refused by them
    incarnation = 1 + max(here, known)
    home.write_incarnation(incarnation)
    return incarnation


def _bundles(
    catalog: Catalog, store: BundleStore, author: Author, ring: Keyring
) -> tuple[list[BundleRow], list[BundleId]]:
    """A row for each bundle here. Its tag is a guess until a manifest or a holder tells."""
    for bundle_id in store.trash():
        # An eviction that was under way: without its journal nothing says that it may go.
        if not store.has(bundle_id):
            store.from_trash(bundle_id)
    known: list[BundleRow] = []
    damaged: list[BundleId] = []
    me = PublicKey(bytes(author.key.verify_key))
    for bundle_id in store.list():
        try:
            tag = bundle_tag(ring.current.tag, bundle_id)
            known.append(bundle_row(store, bundle_id, tag, me))
        except (Unavailable, IntegrityError) as exc:
            log.warning("Bundle %s cannot be read: %s", short(bundle_id), exc)
            damaged.append(bundle_id)
    for start in range(0, len(known), _ROWS):
        part = known[start : start + _ROWS]
        catalog.write(partial(_put_bundles, part)).result()
    aliases.of_bundles_here(catalog, store, known)
    return known, damaged


def _put_bundles(rows: Sequence[BundleRow], db: sqlite3.Connection) -> None:
    for row in rows:
        blocks.put_bundle(db, row)


def _adding(entry: WatchedFolder) -> Callable[[sqlite3.Connection], int]:
    def change(db: sqlite3.Connection) -> int:
        number = folders.add(
            db,
            FolderId(entry.folder_id),
            os.fsencode(entry.path),
            entry.name,
            msgspec.msgpack.encode(entry.settings),
            entry.folder_id,
        )
        if entry.removed:
            folders.set_state(db, number, folders.REMOVED)
        if entry.paused:
            folders.set_paused(db, number, entry.paused)
        return number

    return change


def _folder(
    catalog: Catalog, filer: Filer, entry: WatchedFolder, number: int, heads: Sequence[KnownHead]
) -> bool:
    """File one folder; False when some of it could not be read here."""
    disk = Disk(entry)
    before = filer.unread
    try:
        for one in heads:
            is_own = one.head.device == filer.node_id
            if entry.follows and not is_own:
                continue  # what it says beyond the own list is filed later, beside what is here
            filer.index(number, disk, one.manifest, of_this_device=is_own)
            if is_own:
                for name in (f"index:{one.head.folder.hex()}", rebuild_root(one.head.folder)):
                    filer.root(number, name, one.manifest, one.head.manifest)
        filer.placeholders(number, disk)
        filer.hydrated(number, disk)
    finally:
        disk.close()
    return filer.unread == before


def rebuild_root(folder: FolderId) -> str:
    """Keeps the index that the rebuild began with until it was read whole."""
    return f"rebuild:{folder.hex()}"


def _share_out(catalog: Catalog, folder: int) -> None:
    """What each file cost to store is not known any more: the sum is, shared out by size."""

    def change(db: sqlite3.Connection) -> None:
        query = "SELECT sum(bytes) FROM bundles WHERE folder=? AND state='sealed' AND kind=?"
        stored = db.execute(query, (folder, int(Kind.DATA))).fetchone()[0] or 0
        query = "SELECT sum(file_size) FROM files WHERE folder=?"
        total = db.execute(query, (folder,)).fetchone()[0] or 0
        if total:
            db.execute(
                "UPDATE files SET stored_bytes=CAST(file_size * ? AS INTEGER) WHERE folder=?",
                (stored / total, folder),
            )

    catalog.write(change).result()


def _counts(db: sqlite3.Connection) -> tuple[int, int]:
    """(files, placeholders), deletions left out."""
    query = "SELECT count(*), sum(state='placeholder') FROM files WHERE state<>'deleted'"
    total, placeholders = db.execute(query).fetchone()
    return int(total), int(placeholders or 0)


def _missing(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT count(*) FROM bundles WHERE state='lost'").fetchone()[0])
