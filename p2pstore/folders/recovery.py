"""RECOVERY: after a crash each file is whole under one of its two names, and the journal is
closed.

Runs before the watcher, for each folder whose root is present; idempotent, and may itself be
killed at any point (SAFETY section 3). Nothing of the user's is unlinked here: what is undone
goes back to its place, what is ours and too much goes to trash.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from typing import NamedTuple

from blake3 import blake3

from p2pstore.clock import Clock
from p2pstore.content import MAX_READ, Keyring, looks_like_manifest, open_manifest
from p2pstore.errors import P2PStoreError
from p2pstore.folders.intents import COMMIT, INGEST, LANDING, PLACING, TRASHED, Body, Item, Trashed
from p2pstore.placement import (
    SUFFIX,
    Directories,
    Identity,
    Root,
    listing,
    put_back,
    read_placeholder,
    to_trash,
    trash_path,
    write_placeholder,
)
from p2pstore.store import Catalog, FileRow, IntentKind, State, files, journal

log = logging.getLogger(__name__)

_PIECE = 1 << 20


class _Found(NamedTuple):
    identity: Identity
    raw: bytes | None  # the first bytes, when it is small enough to be a placeholder


class Recovery:
    """Finishes or takes back what a crash interrupted in one folder."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        ring: Callable[[], Keyring],
        clock: Clock,
        root: Root,
        folder: int,
    ) -> None:
        self._catalog = catalog
        self._ring = ring
        self._clock = clock
        self._root = root
        self._folder = folder

    def run(self) -> list[Trashed]:
        """The batches that still wait in trash, each to be hashed again before it goes."""
        waiting: list[Trashed] = []
        for intent in self._catalog.view(journal.all_open):
            if intent.kind not in (IntentKind.REPLACE, IntentKind.HYDRATE):
                continue
            body = Body.decode(intent.body)
            if body.folder_id != self._root.folder_id:
                continue
            if intent.state == TRASHED:
                waiting.append(Trashed(intent.id, body, intent.created, True))
                continue
            log.info("Recovering %d files of batch %s.", len(body.items), body.batch)
            if intent.state in (INGEST, PLACING):
                items = self._take_back(body)
            elif intent.state == COMMIT:
                items = self._finish(body)
            elif intent.state == LANDING:
                items = self._landed(body)
            else:
                raise P2PStoreError(f"The journal has an unknown state: {intent.state!r}.")
            settled = Body(body.folder_id, body.batch, tuple(items))
            self._settle(intent.id, settled)
            if items:
                waiting.append(Trashed(intent.id, settled, intent.created, True))
        waiting.extend(
            self._unknown({(w.body.batch, i.path) for w in waiting for i in w.body.items})
        )
        return waiting

    # -- the three kinds of interruption ----------------------------------------------------------

    def _take_back(self, body: Body) -> list[Item]:
        """No original was renamed: new `.f` to trash, old `.f` back."""
        items: list[Item] = []
        for item in body.items:
            items.extend(self._undo_placeholder(body, item))
        return items

    def _undo_placeholder(self, body: Body, item: Item) -> list[Item]:
        """`name` is there; a `.f` that this batch linked goes, the one it displaced returns."""
        items: list[Item] = []
        row = self._row(item.path)
        displaced = self._look(trash_path(body.batch, item.path + SUFFIX))
        there = self._look(item.path + SUFFIX)
        if self._look(item.path) is None:
            return items
        if there is not None and self._is_version_of(there, row):
            if displaced is None and row is not None and self._is_earlier(there, row):
                return items  # the `.f` of the earlier version, never displaced
            items.append(self._discard(body.batch, item.path + SUFFIX))
            there = None
        if displaced is not None and there is None:
            put_back(self._root, trash_path(body.batch, item.path + SUFFIX), item.path + SUFFIX)
        return items

    def _finish(self, body: Body) -> list[Item]:
        """Originals were being renamed away: those that are gone get their `.f` for certain."""
        items: list[Item] = []
        for item in body.items:
            there = trash_path(body.batch, item.path)
            original = self._look(there)
            if original is None:
                items.extend(self._undo_placeholder(body, item))
                self._set(item.path, State.PROTECTED, self._look(item.path))
                continue
            if not self._ensure_placeholder(item.path):
                put_back(self._root, there, item.path)
                self._set(item.path, State.PROTECTED, self._look(item.path))
                continue
            self._set(item.path, State.PLACEHOLDER, self._look(item.path + SUFFIX))
            items.append(Item.of(item.path, original.identity, item.hash or self._hash(item.path)))
            displaced = self._look(trash_path(body.batch, item.path + SUFFIX))
            if displaced is not None:
                items.append(Item.of(item.path + SUFFIX, displaced.identity))
        return items

    def _ensure_placeholder(self, path: bytes) -> bool:
        """The `.f` stands at its place and verifies; else it is written from the catalog."""
        row = self._row(path)
        raw = None if row is None else self._catalog.view(lambda db: files.manifest(db, row.id))
        there = self._look(path + SUFFIX)
        if there is not None and there.raw is not None and self._opens(there.raw):
            return raw is None or there.raw == raw or self._is_version_of(there, row)
        if raw is None:
            return False
        try:
            aside = b"damaged" if there is not None else b""
            write_placeholder(self._root, path + SUFFIX, raw, aside=aside)
        except OSError as exc:
            log.warning("The placeholder of %s cannot be written: %s", os.fsdecode(path), exc)
            return False
        return True

    def _landed(self, body: Body) -> list[Item]:
        """Originals may stand beside the placeholders that they came from."""
        items: list[Item] = []
        for item in body.items:
            target = item.path.removesuffix(SUFFIX)
            placeholder = self._look(item.path)
            trashed = self._look(trash_path(body.batch, item.path))
            original = self._look(target)
            if original is not None and placeholder is not None and target != item.path:
                if self._content_hash(target) == item.hash:
                    items.append(self._discard(body.batch, item.path))
                    self._set(target, State.PROTECTED, original)
            elif original is not None and trashed is not None:
                items.append(Item.of(item.path, trashed.identity))
                self._set(target, State.PROTECTED, original)
        return items

    def _unknown(self, known: set[tuple[str, bytes]]) -> list[Trashed]:
        """Files in trash that no journal row speaks of go back to where their path says."""
        leftovers: dict[str, list[Item]] = {}
        for batch, path, stat in list(listing(self._root)):
            if (batch, path) in known:
                continue
            found = self._look(trash_path(batch, path))
            if found is None:
                continue
            original = path.removesuffix(SUFFIX)
            is_ours = found.raw is not None and self._opens(found.raw)
            if is_ours and (self._look(original) or self._look(path)):
                # What it stands for is there: it may go, after the usual time in trash.
                leftovers.setdefault(batch, []).append(Item.of(path, Identity.of(stat)))
                continue
            name = put_back(self._root, trash_path(batch, path), path)
            log.warning("%s was in trash without a record; it is back.", os.fsdecode(name))
        return [self._adopt(batch, items) for batch, items in leftovers.items()]

    def _adopt(self, batch: str, items: list[Item]) -> Trashed:
        now = int(self._clock.wall() * 1000)
        body = Body(self._root.folder_id, batch, tuple(items))
        intent = self._catalog.write(
            lambda db: journal.open_intent(db, IntentKind.REPLACE, body.encode(), now, TRASHED)
        ).result()
        return Trashed(intent, body, now, True)

    # -- parts ------------------------------------------------------------------------------------

    def _settle(self, intent: int, body: Body) -> None:
        self._root.sync()

        def record(db: sqlite3.Connection) -> None:
            if body.items:
                journal.advance(db, intent, TRASHED, body.encode())
            else:
                journal.close(db, intent)

        self._catalog.write(record).result()

    def _row(self, path: bytes) -> FileRow | None:
        return self._catalog.view(lambda db: files.get(db, self._folder, path))

    def _set(self, path: bytes, state: str, found: _Found | None) -> None:
        row = self._row(path)
        if row is None or found is None:
            return
        change = (row.id, state, *found.identity)
        self._catalog.write(lambda db: files.set_on_disk(db, [change])).result()

    def _look(self, path: bytes) -> _Found | None:
        """What lies there; None when nothing does. Any other failure stops the recovery."""
        with Directories(self._root) as directories:
            try:
                directory, name = directories.parent(path)
                stat = os.stat(name, dir_fd=directory, follow_symlinks=False)
                raw = None
                if stat.st_size <= MAX_READ:
                    raw = read_placeholder(directory, name, MAX_READ + 1)
                return _Found(Identity.of(stat), raw)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _opens(self, raw: bytes) -> bool:
        if not looks_like_manifest(raw):
            return False
        try:
            open_manifest(raw, self._ring())
        except P2PStoreError:
            return False
        return True

    def _is_version_of(self, found: _Found, row: FileRow | None) -> bool:
        if found.raw is None or row is None or not looks_like_manifest(found.raw):
            return False
        try:
            manifest = open_manifest(found.raw, self._ring()).manifest
        except P2PStoreError:
            return False
        return manifest.file_id == row.file_id

    def _is_earlier(self, found: _Found, row: FileRow) -> bool:
        raw = self._catalog.view(lambda db: files.manifest(db, row.id))
        return found.raw != raw

    def _discard(self, batch: str, path: bytes) -> Item:
        with Directories(self._root) as directories:
            there = to_trash(self._root, directories, batch, path)
        found = self._look(trash_path(batch, there))
        if found is None:
            raise P2PStoreError(f"{os.fsdecode(path)} vanished while it was recovered.")
        return Item.of(there, found.identity)

    def _hash(self, path: bytes) -> bytes:
        row = self._row(path)
        return b"" if row is None else row.hash

    def _content_hash(self, path: bytes) -> bytes:
        fd = self._root.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            hasher, offset = blake3(), 0
            while piece := os.pread(fd, _PIECE, offset):
                hasher.update(piece)
                offset += len(piece)
            return hasher.digest()
        finally:
            os.close(fd)
