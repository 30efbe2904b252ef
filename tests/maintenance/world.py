"""A HOME with a real store and a watched folder, filled through ingest, for tests of upkeep."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from p2pstore.clock import ManualClock
from p2pstore.config import FolderSettings
from p2pstore.content import decode_head, head_order, verify_head
from p2pstore.home import Home, WatchedFolder
from p2pstore.ids import BlockId, BundleId, FolderId, NodeId, PublicKey
from p2pstore.ingest import Ingest, Intake, Protected, Version
from p2pstore.maintenance import IndexWriter
from p2pstore.maintenance.index import HeadOrder
from p2pstore.maintenance.rebuild import Rebuilt, ensure_catalog
from p2pstore.members import Group, found
from p2pstore.placement import Root
from p2pstore.restore import Wanted
from p2pstore.store import (
    Catalog,
    DiskBundles,
    FileRow,
    IntentKind,
    State,
    blocks,
    files,
    folders,
    journal,
)
from p2pstore.wire import Holding

NOW = 1_700_000_000.0


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


class Memory:
    """A block source: bundles that lie in another store."""

    def __init__(self, store: DiskBundles) -> None:
        self._store = store

    async def blocks(
        self, wanted: Sequence[Wanted], *, keep: bool = False
    ) -> Mapping[BlockId, bytes]:
        found: dict[BlockId, bytes] = {}
        for one in wanted:
            found.update(self._store.read_blocks(one.ref.bundle_id, [one.block_id]))
        return found


class World:
    def __init__(self, base: Path) -> None:
        self.base = base
        self.clock = ManualClock(NOW)
        self.home = Home(base / "home")
        found(self.home, "here", now=NOW, random=bytes(range(32)))
        self.group = Group(self.home)
        self.store = DiskBundles(self.home.path / "bundles")
        self.folder = base / "folder"
        self.folder.mkdir()
        self.folder_id = FolderId(b"f" * 16)
        self.entry = WatchedFolder(
            folder_id=self.folder_id,
            path=os.fspath(self.folder),
            name="folder",
            settings=FolderSettings(),
        )
        self.home.write_folders([self.entry])
        Root.mark(self.folder, self.folder_id)
        self.pool = ThreadPoolExecutor(2)
        self.catalog = Catalog.open(self.home.path / "catalog.sqlite")
        self.row = self.catalog.write(
            lambda db: folders.add(
                db,
                self.folder_id,
                os.fsencode(self.folder),
                "folder",
                msgspec.msgpack.encode(self.entry.settings),
                self.folder_id,
            )
        ).result()
        self.wire()

    def wire(self) -> None:
        """Parts that write, on the catalog that there is now."""
        self.ingest = Ingest(
            store=self.store,
            catalog=self.catalog,
            author=self.group.author,
            ring=self.group.ring,
            clock=self.clock,
            pool=self.pool,
        )
        self.index = IndexWriter(
            home=self.home,
            catalog=self.catalog,
            ingest=self.ingest,
            author=self.group.author,
            clock=self.clock,
        )

    def close(self) -> None:
        self.catalog.close()
        self.store.close()
        self.pool.shutdown()

    # -- what a node does -------------------------------------------------------------------------

    def protect(
        self, contents: Mapping[str, bytes], *, follows: Version | None = None
    ) -> dict[str, Protected]:
        """Write the files and protect them; the originals stay."""
        intakes: list[Intake] = []
        for name, content in contents.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            fd = os.open(path, os.O_RDONLY)
            intakes.append(Intake(os.fsencode(name), fd, os.fstat(fd), follows=follows))
        intent = self.catalog.write(
            lambda db: journal.open_intent(db, IntentKind.INGEST, b"", int(NOW * 1000))
        ).result()

        def commit(
            db: sqlite3.Connection, safe: Sequence[Protected], rows: Mapping[BundleId, int]
        ) -> None:
            made = [self._file_row(one) for one in safe]
            ids = files.upsert_many(db, made, [one.manifest for one in safe])
            blocks.set_file_bundles(
                db,
                [
                    (number, [rows[bundle] for bundle in one.bundles])
                    for number, one in zip(ids, safe, strict=True)
                ],
            )

        results = self.ingest.protect(self.row, intakes, intent=intent, commit=commit)
        self.catalog.write(lambda db: journal.close(db, intent)).result()
        for intake in intakes:
            os.close(intake.fd)
        return {os.fsdecode(one.path): one for one in results if isinstance(one, Protected)}

    def replace(
        self,
        contents: Mapping[str, bytes],
        *,
        follows: Version | None = None,
        stays: Collection[str] = (),
    ) -> dict[str, Protected]:
        """Protect, then put the placeholder in the original's place, except of those that stay."""
        done = self.protect(contents, follows=follows)
        for name, one in done.items():
            if name in stays:
                continue
            (self.folder / name).unlink()
            dot = self.folder / f"{name}.f"
            dot.write_bytes(one.manifest)
            stat = dot.stat()
            change = (
                self.file(name).id,
                State.PLACEHOLDER,
                stat.st_ino,
                stat.st_size,
                stat.st_mtime_ns,
                stat.st_ctime_ns,
            )
            self.catalog.write(lambda db, change=change: files.set_on_disk(db, [change])).result()
        return done

    def delete(self, name: str) -> None:
        """The file goes, and the catalog has concluded that."""
        row = self.file(name)
        version = msgspec.msgpack.decode(row.version, type=dict[NodeId, int])
        version[self.group.node_id] += 1
        encoded = msgspec.msgpack.encode(version)
        self.catalog.write(lambda db: files.retire(db, row.id, encoded, int(NOW * 1000))).result()
        (self.folder / f"{name}.f").unlink()

    def write_index(self) -> bytes:
        """A new index; its head, encoded, lies in HOME."""
        folder = self.catalog.view(lambda db: folders.get(db, self.row))
        assert folder is not None
        last = None
        for raw in self.home.heads():
            head = verify_head(decode_head(raw))
            if head.device == self.group.node_id:
                last = HeadOrder(*head_order(head))
        head_raw = self.index.write(folder, last)
        assert head_raw is not None
        self.home.write_head(self.folder_id, self.group.node_id, head_raw)
        return head_raw

    def _file_row(self, one: Protected) -> FileRow:
        stat = (self.folder / os.fsdecode(one.path)).stat()
        return FileRow(
            folder=self.row,
            path=one.path,
            state=State.PROTECTED,
            file_id=one.file_id,
            version=msgspec.msgpack.encode(dict(sorted(one.vector.items()))),
            hash=one.hash,
            file_size=one.size,
            size=stat.st_size,
            ino=stat.st_ino,
            mtime_ns=stat.st_mtime_ns,
            ctime_ns=stat.st_ctime_ns,
            manifest_ref=msgspec.msgpack.encode(one.place),
        )

    # -- loss and rebuild -------------------------------------------------------------------------

    def lose_catalog(self) -> None:
        self.catalog.close()
        for path in self.home.path.glob("catalog.sqlite*"):
            path.unlink()

    def damage_catalog(self) -> None:
        self.catalog.close()
        path = self.home.path / "catalog.sqlite"
        raw = bytearray(path.read_bytes())
        raw[:4096] = os.urandom(4096)
        path.write_bytes(raw)

    def ensure(self, **options: Any) -> Rebuilt | None:
        """What `run` does at its start; the store is opened anew as well."""
        self.store.close()
        self.store = DiskBundles(self.home.path / "bundles")
        self.catalog, rebuilt = ensure_catalog(
            self.home,
            self.store,
            author=self.group.author(),
            ring=self.group.ring(),
            judge=self.group.judge,
            clock=self.clock,
            **options,
        )
        self.wire()
        return rebuilt

    def rebuild(self, **options: Any) -> Rebuilt:
        rebuilt = self.ensure(**options)
        assert rebuilt is not None
        return rebuilt

    # -- looking ----------------------------------------------------------------------------------

    def file(self, name: str) -> FileRow:
        row = self.catalog.view(lambda db: files.get(db, self.row, os.fsencode(name)))
        assert row is not None, name
        return row

    def maybe_file(self, name: str) -> FileRow | None:
        return self.catalog.view(lambda db: files.get(db, self.row, os.fsencode(name)))

    def bundles_of(self, name: str) -> dict[BundleId, blocks.BundleRow]:
        row = self.file(name)
        found = self.catalog.view(lambda db: blocks.bundles_of_file(db, row.id))
        return {bundle.bundle_id: bundle for bundle in found}

    def everything(self) -> list[tuple[Any, ...]]:
        """What a rebuild must bring back of files and bundles."""
        paths = self.catalog.read(
            "SELECT path, state, kind, file_id, version, hash, file_size, size, ino, manifest_ref"
            " FROM files ORDER BY path"
        )
        needs = self.catalog.read(
            "SELECT f.path, b.bundle_id, b.tag, b.kind, b.state, b.bytes, b.blocks, b.own"
            " FROM file_bundles r JOIN files f ON f.id=r.file JOIN bundles b ON b.id=r.bundle"
            " ORDER BY 1, 2"
        )
        return [*paths, *needs]


def holding(world: World, row: blocks.BundleRow, **changes: Any) -> Holding:
    """What an honest holder says of a bundle."""
    fields: dict[str, Any] = {
        "bundle": row.bundle_id,
        "tag": row.tag,
        "kind": row.kind,
        "opener": PublicKey(bytes(world.group.device.verify_key)),
        "seq": row.seq,
        "bytes": row.bytes,
        "lease_until_ms": int(NOW * 1000) + 86_400_000,
    }
    return Holding(**{**fields, **changes})


async def each(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item
