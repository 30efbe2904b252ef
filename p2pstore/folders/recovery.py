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
import stat as stat_module
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from p2pstore.clock import Clock
from p2pstore.content import MAX_READ, Keyring, looks_like_manifest, open_manifest
from p2pstore.errors import P2PStoreError
from p2pstore.folders.intents import (
    COMMIT,
    INGEST,
    LANDING,
    PLACING,
    TRASHED,
    Body,
    Item,
    Trashed,
    items_of,
)
from p2pstore.placement import (
    PART,
    SUFFIX,
    TEMPORARY,
    Directories,
    Identity,
    Root,
    content_hash,
    listing,
    put_back,
    read_placeholder,
    remove_copy,
    swap_path,
    to_trash,
    trash_path,
    write_placeholder,
)
from p2pstore.store import Catalog, FileRow, IntentKind, State, files, journal
from p2pstore.syscalls import rename_exchange

log = logging.getLogger(__name__)


class _Found(NamedTuple):
    identity: Identity
    raw: bytes | None  # the first bytes, when it is small enough to be a placeholder


# An identity that no file has: the next look finds a change, and the path comes to rest anew.
_UNSEEN = _Found(Identity(0, 0, 0, 0), None)


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
        known: dict[str, list[int]] = {}  # the rows that name what lies in trash, by batch
        for intent in self._catalog.view(journal.all_open):
            if intent.kind not in (IntentKind.REPLACE, IntentKind.HYDRATE):
                continue
            body = Body.decode(intent.body)
            if body.folder_id != self._root.folder_id:
                continue
            if intent.state == TRASHED:
                waiting.append(Trashed.of(intent.id, body, intent.created, rehash=True))
                known.setdefault(body.batch, []).append(intent.id)
                continue
            log.info("Recovering %d files of batch %s.", len(body.items), body.batch)
            if intent.state == INGEST:
                items = []
            elif intent.state == PLACING:
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
                waiting.append(Trashed.of(intent.id, settled, intent.created, rehash=True))
                known.setdefault(settled.batch, []).append(intent.id)
        self._remove_parts()
        return waiting + self._unknown(known)

    # -- the three kinds of interruption ----------------------------------------------------------

    def _take_back(self, body: Body) -> list[Item]:
        """No original was renamed: new `.f` to trash, old `.f` back."""
        items: list[Item] = []
        for item in body.items:
            items.extend(self._undo_placeholder(body, item))
        return items

    def _undo_placeholder(self, body: Body, item: Item) -> list[Item]:
        """A `.f` that this batch gave its name goes, the one it displaced returns."""
        path = item.path + SUFFIX
        there, aside = self._look(path), self._look(trash_path(body.batch, path))
        recorded = self._manifest(item.path)
        if there is not None and there.raw == recorded and self._look(item.path) is not None:
            if aside is None:
                return [self._discard(body.batch, path)]
            self._exchange(body.batch, path)
        elif there is None and aside is not None and aside.raw != recorded:
            put_back(self._root, trash_path(body.batch, path), path)
        aside = self._look(trash_path(body.batch, path))
        return [] if aside is None else [Item.of(path, aside.identity)]

    def _finish(self, body: Body) -> list[Item]:
        """Originals were being renamed away: those that are gone get their `.f` for certain."""
        items: list[Item] = []
        for item in body.items:
            there = trash_path(body.batch, item.path)
            original, row = self._look(there), self._row(item.path)
            if original is None:
                items.extend(self._undo_placeholder(body, item))
                self._is_back(item)
            elif row is None or not self._ensure_placeholder(item.path):
                put_back(self._root, there, item.path)
                self._is_back(item)
            else:
                self._set(item.path, State.PLACEHOLDER, self._look(item.path + SUFFIX))
                items.append(Item.of(item.path, original.identity, row.hash, bytes(row.file_id)))
                displaced = self._look(trash_path(body.batch, item.path + SUFFIX))
                if displaced is not None:
                    items.append(Item.of(item.path + SUFFIX, displaced.identity))
        return items

    def _is_back(self, item: Item) -> None:
        """The original is at its place; edited since, it is looked at like any change."""
        found = self._look(item.path)
        if found is not None and found.identity[:3] != item.identity[:3]:
            found = _UNSEEN
        self._set(item.path, State.PROTECTED, found)

    def _ensure_placeholder(self, path: bytes) -> bool:
        """The `.f` stands at its place and verifies; else it is written from the catalog."""
        raw, there = self._manifest(path), self._look(path + SUFFIX)
        if raw is None:
            return False
        if there is not None and self._opens(there.raw):
            return there.raw == raw
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
            is_whole = original is not None and self._content_hash(target) == item.hash
            if target == item.path:
                pass  # it changed places with its placeholder: `_half_exchanged` looks after it
            elif is_whole and placeholder is not None and self._opens(placeholder.raw):
                items.append(self._discard(body.batch, item.path))
                self._set(target, State.PROTECTED, original)
                self._set_in_use(target)
                continue
            elif original is not None and trashed is not None:
                self._set(target, State.PROTECTED, original if is_whole else _UNSEEN)
                self._set_in_use(target)
            if trashed is not None:
                items.append(Item.of(item.path, trashed.identity))
        items.extend(self._half_exchanged(body))
        return items

    def _half_exchanged(self, body: Body) -> list[Item]:
        """What an interrupted exchange left among the temporary files.

        A placeholder goes to trash, as it was about to; a copy whose placeholder still stands is
        removed by way of the trash as well. Anything else came out of a name of the user's.
        """
        items: list[Item] = []
        for item in body.items:
            temporary = swap_path(body.batch, item.path)
            found = self._look(temporary)
            if found is None:
                continue
            if self._opens(found.raw):
                there = trash_path(body.batch, item.path)
                name = put_back(self._root, temporary, there)
                moved = self._look(name)
                if moved is not None and name == there:
                    items.append(Item.of(item.path, moved.identity))
            elif (
                self._content_hash(temporary) == item.hash
                and (placeholder := self._look(item.path)) is not None
                and self._opens(placeholder.raw)
            ):
                remove_copy(self._root, temporary)
            else:
                put_back(self._root, temporary, item.path)
        return items

    def _remove_parts(self) -> None:
        """Copies that were never whole: made under such a name only, and renamed when whole."""
        with Directories(self._root) as directories:
            directory = directories.make(TEMPORARY)
            for name in map(os.fsencode, os.listdir(directory)):
                if name.startswith(PART):
                    remove_copy(self._root, TEMPORARY + b"/" + name)

    def _unnamed(
        self, known: Mapping[str, Sequence[int]]
    ) -> Iterator[tuple[str, bytes, os.stat_result]]:
        """(batch, path, stat) of what lies in trash and no journal row speaks of.

        One batch after the other, each listed to its end first: there may be a million files.
        """
        for batch, entries in groupby(listing(self._root), key=itemgetter(0)):
            rows = [self._catalog.view(partial(items_of, one)) for one in known.get(batch, ())]
            named = {item.path for items in rows for item in items}
            yield from [entry for entry in entries if entry[1] not in named]

    def _unknown(self, known: Mapping[str, Sequence[int]]) -> list[Trashed]:
        """Files in trash that no journal row speaks of go back to where their path says."""
        leftovers: dict[str, list[Item]] = {}
        for batch, path, stat in self._unnamed(known):
            found = self._look(trash_path(batch, path))
            if found is None:
                continue
            original = path.removesuffix(SUFFIX)
            is_ours = self._opens(found.raw)
            if is_ours and (self._look(original) or self._look(path)):
                # What it stands for is there: it may go, after the usual time in trash.
                leftovers.setdefault(batch, []).append(Item.of(path, Identity.of(stat)))
                continue
            if not is_ours and self._is_same_in_place(batch, path):
                leftovers.setdefault(batch, []).extend(self._second_copy(batch, path))
                continue
            name = put_back(self._root, trash_path(batch, path), path)
            log.warning("%s was in trash without a record; it is back.", os.fsdecode(name))
            if name == path and not is_ours:
                leftovers.setdefault(batch, []).extend(self._hydrated(batch, path))
        return [self._adopt(batch, items) for batch, items in leftovers.items() if items]

    def _hydrated(self, batch: str, path: bytes) -> list[Item]:
        """An original that is back beside its own placeholder, with equal content, is hydrated."""
        row, placeholder = self._row(path), self._look(path + SUFFIX)
        if row is None or placeholder is None or not self._opens(placeholder.raw):
            return []
        manifest = open_manifest(placeholder.raw or b"", self._ring()).manifest
        if manifest.file_id != row.file_id or self._content_hash(path) != manifest.hash:
            return []
        self._set(path, State.PROTECTED, self._look(path))
        self._set_in_use(path)
        return [self._discard(batch, path + SUFFIX)]

    def _is_same_in_place(self, batch: str, path: bytes) -> bool:
        """Whether an original in trash was brought back meanwhile, byte for byte."""
        here, there = self._look(path), self._look(trash_path(batch, path))
        if here is None or there is None or here.identity.size != there.identity.size:
            return False
        return self._content_hash(path) == self._content_hash(trash_path(batch, path))

    def _second_copy(self, batch: str, path: bytes) -> list[Item]:
        """It goes after the usual time in trash, and only as every other original does.

        While the catalog does not know the file it stays where it is, until the next start.
        """
        row, there = self._row(path), self._look(trash_path(batch, path))
        if row is None or there is None:
            return []
        content = self._content_hash(trash_path(batch, path))
        return [Item.of(path, there.identity, content, row.file_id)] if content == row.hash else []

    def _adopt(self, batch: str, items: list[Item]) -> Trashed:
        now = int(self._clock.wall() * 1000)
        body = Body(self._root.folder_id, batch, tuple(items))
        intent = self._catalog.write(
            lambda db: journal.open_intent(db, IntentKind.REPLACE, body.encode(), now, TRASHED)
        ).result()
        return Trashed.of(intent, body, now, rehash=True)

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

    def _set_in_use(self, path: bytes) -> None:
        """In work from now on: whoever asked for it must not see it vanish again at once."""
        row, now = self._row(path), int(self._clock.wall() * 1000)
        if row is not None:
            self._catalog.write(lambda db: files.set_last_use(db, [row.id], now)).result()

    def _look(self, path: bytes) -> _Found | None:
        """What lies there; None when nothing does. Any other failure stops the recovery."""
        with Directories(self._root) as directories:
            try:
                directory, name = directories.parent(path)
                stat = os.stat(name, dir_fd=directory, follow_symlinks=False)
                raw = None
                if stat_module.S_ISREG(stat.st_mode) and stat.st_size <= MAX_READ:
                    raw = read_placeholder(directory, name, MAX_READ + 1)
                return _Found(Identity.of(stat), raw)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _opens(self, raw: bytes | None) -> bool:
        if raw is None or not looks_like_manifest(raw):
            return False
        try:
            open_manifest(raw, self._ring())
        except P2PStoreError:
            return False
        return True

    def _manifest(self, path: bytes) -> bytes | None:
        """The `.f` of the recorded version of this path."""
        row = self._row(path)
        if row is None:
            return None
        return self._catalog.view(lambda db: files.manifest(db, row.id))

    def _exchange(self, batch: str, path: bytes) -> None:
        """What lies at the path and what lies in the batch's trash change places."""
        with Directories(self._root) as directories:
            trash, last = directories.parent(trash_path(batch, path))
            directory, name = directories.parent(path)
            rename_exchange(trash, last, directory, name)

    def _discard(self, batch: str, path: bytes) -> Item:
        with Directories(self._root) as directories:
            there = to_trash(self._root, directories, batch, path)
        found = self._look(trash_path(batch, there))
        if found is None:
            raise P2PStoreError(f"{os.fsdecode(path)} vanished while it was recovered.")
        return Item.of(there, found.identity)

    def _content_hash(self, path: bytes) -> bytes:
        fd = self._root.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            return content_hash(fd)
        finally:
            os.close(fd)
