"""One node's folder, store and catalog without a network: what the fault tests drive and kill.

`World` wires the real parts as the node does; `Oracle` knows every version of every file by its
hash and looks at the disk from outside: what it finds must satisfy the invariants of SAFETY.md 1,
whatever happened in between.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3
from nacl.signing import SigningKey

from p2pstore.clock import Clock, SystemClock
from p2pstore.config import FolderSettings
from p2pstore.content import (
    BundleRef,
    Entry,
    EpochKeys,
    Keyring,
    Unsealer,
    complete,
    data_segments,
    looks_like_manifest,
    open_manifest,
    walk,
)
from p2pstore.errors import P2PStoreError
from p2pstore.folders import Bringing, Brought, Placeholder, Taking
from p2pstore.folders.emptying import empty
from p2pstore.folders.intents import TRASHED, Body, Trashed
from p2pstore.folders.recovery import Recovery
from p2pstore.folders.taking import Candidate, Taken
from p2pstore.home import WatchedFolder
from p2pstore.ids import BlockId, Epoch, FolderId, PublicKey
from p2pstore.ingest import Author, Ingest
from p2pstore.leases import LeaseKeeper
from p2pstore.placement import OWN, SUFFIX, Identity, Root, listing
from p2pstore.restore import Restore, Wanted
from p2pstore.store import BundleStore, Catalog, DiskBundles, FileRow, files, folders, journal

KEY = SigningKey(b"device".ljust(32, b"."))
GROUP = PublicKey(bytes(SigningKey(b"group".ljust(32, b".")).verify_key))
EPOCH = EpochKeys.derive(Epoch(b"epoch..1"), b"secret".ljust(32, b"."))
RING = Keyring(current=EPOCH, epochs={EPOCH.epoch: EPOCH}, dedup=b"dedup".ljust(32, b"."))
FOLDER_ID = FolderId(b"folder".ljust(16, b"."))


class LocalSource:
    """Blocks from the local store alone."""

    def __init__(self, store: BundleStore) -> None:
        self._store = store

    async def blocks(
        self, wanted: Sequence[Wanted], *, keep: bool = False
    ) -> Mapping[BlockId, bytes]:
        found: dict[BlockId, bytes] = {}
        for want in wanted:
            found |= self._store.read_blocks(want.ref.bundle_id, [want.block_id])
        return found


class World:
    """Everything that one folder needs, without watching it: each step is a call."""

    def __init__(
        self, base: Path, *, store: BundleStore | None = None, clock: Clock | None = None
    ) -> None:
        self.base = base
        self.path = base / "folder"
        self.home = base / "home"
        self.path.mkdir(parents=True, exist_ok=True)
        self.home.mkdir(exist_ok=True)
        if Root.marker(self.path) is None:
            Root.mark(self.path, FOLDER_ID)
        self.clock = clock or SystemClock()
        self.pool = ThreadPoolExecutor(3)  # a batch, what it seals, and who asks meanwhile
        self.disk = DiskBundles(self.home / "bundles")
        self.store: BundleStore = store or self.disk
        self.catalog = Catalog.open(self.home / "catalog.sqlite", check=False)
        self.keeper = LeaseKeeper(budget=1000)
        self.keeper.start()
        self.root = Root(self.path, FOLDER_ID)
        self.row = self.catalog.write(
            lambda db: folders.add(db, FOLDER_ID, os.fsencode(self.path), "folder", b"", FOLDER_ID)
        ).result()
        self.ingest = Ingest(
            store=self.store,
            catalog=self.catalog,
            author=lambda: Author(KEY, b"", GROUP),
            ring=lambda: RING,
            clock=self.clock,
            pool=self.pool,
        )
        self.taking = Taking(
            ingest=self.ingest,
            catalog=self.catalog,
            keeper=self.keeper,
            ring=lambda: RING,
            clock=self.clock,
        )
        self.restore = Restore(
            LocalSource(self.store),
            ring=lambda: RING,
            judge=lambda _key, _chain: True,
            pool=self.pool,
        )
        self.bringing = Bringing(
            restore=self.restore,
            catalog=self.catalog,
            clock=self.clock,
            pool=self.pool,
            room=lambda _root, _size: None,
        )

    # -- files ------------------------------------------------------------------------------------

    def write(self, name: bytes | str, content: bytes) -> Path:
        path = self.at(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def at(self, name: bytes | str) -> Path:
        return self.path / os.fsdecode(name)

    def names(self) -> set[bytes]:
        """Every file of the user's tree, ours left out."""
        return {path for path in _paths(self.path) if not path.startswith(OWN + b"/")}

    def entry(self) -> WatchedFolder:
        return WatchedFolder(
            folder_id=FOLDER_ID,
            path=os.fspath(self.path),
            name="folder",
            settings=FolderSettings(settle_s=0.0),
        )

    def file_row(self, name: bytes | str) -> FileRow | None:
        return self.catalog.view(lambda db: files.get(db, self.row, os.fsencode(name)))

    # -- what the node does -----------------------------------------------------------------------

    def candidate(self, name: bytes | str, *, replace: bool = True) -> Candidate:
        stat = os.lstat(self.at(name))
        return Candidate(os.fsencode(name), Identity.of(stat), replace, "")

    def take(self, *names: bytes | str, replace: bool = True) -> Taken:
        return self.taking.take(
            self.root, self.row, [self.candidate(name, replace=replace) for name in names]
        )

    def replace(self, *names: bytes | str) -> dict[bytes, str]:
        """Take and let go; path -> why it stays, empty when it was replaced."""
        taken = self.take(*names)
        for entry in taken.claims:
            entry.close()
        return {o.path: "" if o.state == "placeholder" else o.reason for o in taken.outcomes}

    def hydrate(self, *names: bytes | str) -> list[Brought]:
        """Names of placeholders as they lie on disk."""
        placeholders = []
        for name in map(os.fsencode, names):
            row = self.file_row(name.removesuffix(SUFFIX))
            placeholders.append(Placeholder(name, row))

        async def bring() -> list[Brought]:
            found = self.bringing.bring(self.root, placeholders, lambda _files, _size: None)
            return [brought async for brought in found]

        return asyncio.run(bring())

    def recover(self) -> list[Trashed]:
        return Recovery(
            catalog=self.catalog,
            ring=lambda: RING,
            clock=self.clock,
            root=self.root,
            folder=self.row,
        ).run()

    def waiting(self) -> list[Trashed]:
        """What the journal says lies in trash, as after a restart."""
        found = []
        for intent in self.catalog.view(journal.all_open):
            if intent.state == TRASHED:
                found.append(Trashed.of(intent.id, Body.decode(intent.body), 0, rehash=True))
        return found

    def empty_trash(self, batches: Iterable[Trashed] | None = None) -> list[Trashed]:
        """What may not go yet."""
        left = []
        for batch in self.waiting() if batches is None else batches:
            rest, _ = empty(self.root, self.row, batch, self.catalog, self.store, self.keeper)
            if rest is not None:
                left.append(rest)
        return left

    def close(self) -> None:
        self.root.close()
        self.keeper.close()
        self.pool.shutdown()
        self.catalog.close()
        self.disk.close()


@contextmanager
def world(base: Path) -> Iterator[World]:
    made = World(base)
    try:
        yield made
    finally:
        made.close()


# -- the oracle -----------------------------------------------------------------------------------


class Where(NamedTuple):
    """Where one version of a file was found."""

    originals: list[bytes]
    placeholders: list[bytes]


class Oracle:
    """Looks from outside: no catalog, only what lies on the disk."""

    def __init__(self, base: Path) -> None:
        self.path = base / "folder"
        self.store = DiskBundles(base / "home" / "bundles")
        self._unsealer = Unsealer()
        self._contents: dict[bytes, bytes | None] = {}

    def close(self) -> None:
        self.store.close()

    def find(self) -> dict[bytes, Where]:
        """content hash -> where it is: as bytes, or as a placeholder whose content is whole."""
        found: dict[bytes, Where] = {}
        for path, raw in _tree(self.path):
            if looks_like_manifest(raw):
                content = self.content_of(raw)
                if content is not None:
                    digest = blake3(content).digest()
                    found.setdefault(digest, Where([], [])).placeholders.append(path)
            else:
                found.setdefault(blake3(raw).digest(), Where([], [])).originals.append(path)
        return found

    def content_of(self, raw: bytes) -> bytes | None:
        """The whole content that the placeholder stands for; None when any of it is missing."""
        if raw not in self._contents:
            try:
                self._contents[raw] = self._read(raw)
            except P2PStoreError:
                self._contents[raw] = None
        return self._contents[raw]

    def _read(self, raw: bytes) -> bytes | None:
        manifest = open_manifest(raw, RING).manifest
        if manifest.meta.extra is not None:
            manifest = complete(manifest, self._payload(*manifest.meta.extra))
        data = b"".join(self._payload(r, e) for _, r, e in walk(manifest.chunks, self._payload))
        content, at = bytearray(manifest.meta.size), 0
        for offset, length in data_segments(manifest.meta.size, manifest.meta.holes):
            content[offset : offset + length] = data[at : at + length]
            at += length
        whole = bytes(content)
        return whole if blake3(whole).digest() == manifest.hash else None

    def _payload(self, ref: BundleRef, entry: Entry) -> bytes:
        block = self.store.read_blocks(ref.bundle_id, [entry.block])[entry.block]
        payload = self._unsealer.unseal(block, entry.key)
        return payload[entry.offset : entry.offset + entry.length]

    # -- the invariants ---------------------------------------------------------------------------

    def assert_nothing_lost(self, versions: Iterable[bytes]) -> None:
        """I1: each version exists as original, or as a placeholder all of whose blocks are here."""
        found = self.find()
        for content in versions:
            assert blake3(content).digest() in found, (
                f"lost: {content[:40]!r} ({len(content)} bytes); there is {sorted(found.values())}"
            )

    def assert_names_are_whole(self, versions: Mapping[bytes, Iterable[bytes]]) -> None:
        """I2: what bears a final name is one of its versions, or a placeholder of one."""
        for path, raw in _tree(self.path):
            if path.startswith(OWN + b"/"):
                continue
            logical = path.removesuffix(SUFFIX) if looks_like_manifest(raw) else path
            if logical not in versions:
                continue
            content = self.content_of(raw) if looks_like_manifest(raw) else raw
            assert content in set(versions[logical]), f"{path!r} holds {raw[:40]!r}"

    def assert_one_of_two(self, names: Iterable[bytes], *, may_have_both: bool = False) -> None:
        """I4: `name` or `name.f`; nothing incomplete is left behind."""
        there = set(_paths(self.path))
        for name in names:
            original, placeholder = name in there, name + SUFFIX in there
            assert original or placeholder, f"neither {name!r} nor its .f is there"
            assert may_have_both or not (original and placeholder), f"{name!r} and its .f"
        assert not [path for path in there if path.startswith(OWN + b"/tmp/")]


def _paths(base: Path) -> Iterator[bytes]:
    """The relative path of each regular file."""
    top = os.fsencode(base)
    waiting = [top]
    while waiting:
        with suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield entry.path[len(top) + 1 :]


def _tree(base: Path) -> Iterator[tuple[bytes, bytes]]:
    """(relative path, content) of each regular file."""
    top = os.fsencode(base)
    for path in _paths(base):
        with suppress(FileNotFoundError), open(top + b"/" + path, "rb", buffering=0) as file:
            yield path, file.read()


def assert_journal_closed(made: World) -> None:
    """I4: only what waits in trash is still open."""
    for intent in made.catalog.view(journal.all_open):
        assert intent.state == TRASHED, intent


def assert_trash_known(made: World) -> None:
    """Everything in trash is spoken of by the journal."""
    bodies = [Body.decode(intent.body) for intent in made.catalog.view(journal.all_open)]
    known = {(body.batch, item.path) for body in bodies for item in body.items}
    there = {(batch, path) for batch, path, _ in listing(made.root)}
    assert there <= known, there - known


def copied(source: Path, target: Path) -> None:
    """All of a tree, times and attributes as they are. A program of its own: it is faster."""
    subprocess.run(["cp", "-a", source, target], check=True)
