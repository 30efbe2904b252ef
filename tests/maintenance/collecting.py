"""A HOME whose files come, change and go while what nothing names is collected, and an oracle."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from blake3 import blake3

from p2pstore.content import Unsealer, bundle_tag, open_manifest, walk
from p2pstore.errors import BlocksMissing, Unavailable
from p2pstore.ids import BlockId, BundleId, NodeId, PublicKey
from p2pstore.ingest import Intake, Version
from p2pstore.maintenance import Collector, Ledger, Loop, Merger, Others, World, recover
from p2pstore.maintenance.index import HeadOrder
from p2pstore.maintenance.strays import take_in
from p2pstore.node.known import Known
from p2pstore.store import BundleState, FileRow, blocks, files, journal, merged
from p2pstore.swarm import OwnPromises, Shelf
from tests.maintenance.world import World as HomeWorld

DAY = 86_400.0
HISTORY_S = 30 * DAY


class Killed(BaseException):
    """The process ended here."""


class Kept(NamedTuple):
    """A version as somebody outside remembers it."""

    manifest: bytes
    digest: bytes


class NoSwarm:
    """Nobody else is there."""

    async def blocks(self, wanted: Any) -> Any:
        raise BlocksMissing("nobody is there")


class _NothingHeld:
    """Of what is kept for others."""

    def resolve(self, _: BundleId) -> None:
        return None

    def find_tag(self, _: object) -> None:
        return None


async def no_turn(_: Loop) -> None:
    """For a loop that is only asked what it says."""


class Upkeep(HomeWorld):
    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.life = 0
        self.devices: list[NodeId] = []
        self.told: list[bytes] = []
        self.pulls: list[NodeId] = []
        self.away: set[NodeId] = set()
        self.state: dict[str, Any] = {}
        self.current: dict[str, Kept] = {}
        self.past: list[tuple[float, Kept]] = []  # when it was last in a folder or the history
        self.begin()

    def begin(self) -> None:
        """As a new process would."""
        self.life += 1
        self.promises = OwnPromises(self.home.path / "own-locks", self.clock, boot_id="boot")
        self.collector = self.make_collector()
        self.merger = self.make_merger()
        self.loop = Loop("merge", no_turn, catalog=self.catalog, clock=self.clock)

    def make_merger(self) -> Merger:
        async def at_once(_: float) -> None:
            return None

        return Merger(
            catalog=self.catalog,
            store=self.store,
            ledger=Ledger(self.catalog),
            promises=self.promises,
            author=self.group.author,
            ring=self.group.ring,
            world=self.look,
            age=self.collector.age,
            free=lambda: 1 << 40,
            clock=self.clock,
            pool=self.pool,
            sleep=at_once,
        )

    def make_collector(self) -> Collector:
        return Collector(
            catalog=self.catalog,
            store=self.store,
            ledger=Ledger(self.catalog),
            pusher=None,  # type: ignore[arg-type]
            promises=self.promises,
            others=Others(
                catalog=self.catalog,
                me=self.group.node_id,
                devices=lambda: self.devices,
                pull=self.pull,
                heads=lambda: self.told,
                ring=self.group.ring,
                judge=self.group.judge,
            ),
            source=NoSwarm(),
            author=self.group.author,
            ring=self.group.ring,
            world=self.look,
            clock=self.clock,
            pool=self.pool,
        )

    async def pull(self, node_id: NodeId) -> None:
        if node_id in self.away:
            raise Unavailable("away")
        self.pulls.append(node_id)

    def look(self) -> World:
        said: dict[str, Any] = {
            "now": self.clock.wall(),
            "holders": {},
            "eligible": 0,
            "heads": {self.folder_id: HeadOrder(1, 1)},
            "clean": frozenset((self.folder_id,)),
            "state": (1, 1),
            "words_confirmed": True,
            "second_device": True,
            "rebuilding": False,
        }
        return World(**{**said, **self.state})

    # -- what users do ----------------------------------------------------------------------------

    def put(self, name: str, content: bytes) -> None:
        """A new file, or a new version of one."""
        row = self.maybe_file(name)
        follows = None
        if row is not None and row.state != "deleted":
            manifest = open_manifest(self.current[name].manifest, self.group.ring()).manifest
            follows = Version(manifest.file_id, manifest.version, b"")
            self.catalog.write(
                partial(_keep_version, row.id, int(self.clock.wall() * 1000))
            ).result()
            self._ended(name)
        done = self.protect({name: content}, follows=follows)[name]
        (self.folder / name).unlink()
        self.current[name] = Kept(done.manifest, blake3(content).digest())

    def remove(self, name: str) -> None:
        row = self.file(name)
        now = int(self.clock.wall() * 1000)
        self.catalog.write(lambda db: files.retire(db, row.id, row.version, now)).result()
        self._ended(name)

    def adopt(self, name: str, row: FileRow, kept: Kept, needs: Sequence[BundleId]) -> None:
        """A `.f` is copied in from outside of the folder."""

        def change(db: sqlite3.Connection) -> None:
            new = row._replace(path=os.fsencode(name), id=0)
            (number,) = files.upsert_many(db, [new], [kept.manifest])
            rows = merged.where(db, needs)
            blocks.set_file_bundles(db, [(number, [one.id for one in rows.values()])])

        self.catalog.write(change).result()
        self.current[name] = kept

    def _ended(self, name: str) -> None:
        self.past.append((self.clock.wall() + HISTORY_S, self.current.pop(name)))

    def end_history(self) -> None:
        before = int((self.clock.wall() - HISTORY_S) * 1000)
        while old := self.catalog.view(lambda db: files.history_before(db, before)):
            self.catalog.write(partial(_drop_history, old)).result()

    def crash_in_ingest(self, content: bytes) -> None:
        """Bundles are sealed; then the power goes."""

        def dies(*_: Any) -> None:
            raise Killed

        path = self.folder / "unlucky"
        path.write_bytes(content)
        fd = os.open(path, os.O_RDONLY)
        intent = self.catalog.write(
            lambda db: journal.open_intent(db, "ingest", b"", int(self.clock.wall() * 1000))
        ).result()
        try:
            self.ingest.protect(
                self.row, [Intake(b"unlucky", fd, os.fstat(fd))], intent=intent, commit=dies
            )
        except Killed:
            pass
        finally:
            os.close(fd)
            path.unlink()
        recover(self.catalog, self.store)

    # -- what the machine does --------------------------------------------------------------------

    def pass_days(self, days: float) -> None:
        self.clock.advance(days * DAY)

    async def turn(self) -> int:
        self.end_history()
        return await self.collector.run()

    async def merge(self) -> float | None:
        return await self.merger.turn(self.loop)

    async def turn_that_dies(
        self, at: int, turn: Callable[[], Awaitable[object]] | None = None
    ) -> bool:
        """The process ends before its `at`th change of store or catalog; whether it got so far."""
        count = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal count
                count += 1
                if count >= at:
                    raise Killed
                return real(*args, **kwargs)

            return call

        changed: list[tuple[Any, str]] = [(self.catalog, "write")]
        changed += [
            (self.store, name)
            for name in (
                "create",
                "adopt",
                "to_trash",
                "from_trash",
                "purge",
                "set_live_map",
                "punch",
            )
        ]
        for owner, name in changed:
            setattr(owner, name, counted(getattr(owner, name)))
        died = False
        try:
            await (turn or self.collector.run)()
        except Killed:
            died = True
        finally:
            for owner, name in changed:
                delattr(owner, name)
        self.begin()
        recover(self.catalog, self.store)
        self.take_in()
        return died

    def take_in(self) -> int:
        tag_secret = self.group.ring().current.tag
        return take_in(
            self.catalog,
            self.store,
            me=PublicKey(bytes(self.group.author().key.verify_key)),
            tag_of=lambda bundle_id: bundle_tag(tag_secret, bundle_id),
        )

    # -- the oracle -------------------------------------------------------------------------------

    def block(self, bundle_id: BundleId, block_id: BlockId) -> bytes:
        """As whoever reads finds it, under the id that its manifest names."""
        known = Known(self.catalog, tuple)
        held: Any = _NothingHeld()
        shelf = Shelf(self.store, held, self.promises, alias_of=known.alias)
        for place in shelf.find(bundle_id):
            found = shelf.read(place, [block_id])
            if found:
                return found[block_id]
        raise Unavailable("a block is gone")

    def read(self, raw: bytes) -> bytes:
        """The content's hash, from this disk alone."""
        unseal = Unsealer().unseal

        def load(ref: Any, entry: Any) -> bytes:
            payload = unseal(self.block(ref.bundle_id, entry.block), entry.key)
            return payload[entry.offset : entry.offset + entry.length]

        manifest = open_manifest(raw, self.group.ring()).manifest
        hasher = blake3()
        for _, ref, entry in walk(manifest.chunks, load):
            hasher.update(load(ref, entry))
        assert hasher.digest() == manifest.hash
        return manifest.hash

    def check(self) -> None:
        """Everything that is, or was less than 30 days ago, in a folder or the history."""
        for name, kept in self.current.items():
            assert self.read(kept.manifest) == kept.digest, name
        for until, kept in self.past:
            if self.clock.wall() < until + 30 * DAY:
                assert self.read(kept.manifest) == kept.digest
        for row in self.catalog.view(partial(blocks.list_bundles, states=(BundleState.SEALED,))):
            assert self.store.has(row.bundle_id)
            assert row.seq == self.store.live_map(row.bundle_id).seq

    def check_all_known(self) -> None:
        known = self.catalog.view(lambda db: blocks.get_bundles(db, self.store.list()))
        assert known.keys() == set(self.store.list())

    def live_blocks(self) -> set[BlockId]:
        found: set[BlockId] = set()
        for bundle_id in self.store.list():
            entries = self.store.index(bundle_id).blocks.entries
            found.update(entries[i].block_id for i in self.store.live_map(bundle_id).indices())
        return found

    def needed_blocks(self) -> set[BlockId]:
        """Of the contents and lists of all current files."""
        found: set[BlockId] = set()

        def load(ref: Any, entry: Any) -> bytes:
            found.add(entry.block)
            payload = Unsealer().unseal(self.block(ref.bundle_id, entry.block), entry.key)
            return payload[entry.offset : entry.offset + entry.length]

        for kept in self.current.values():
            manifest = open_manifest(kept.manifest, self.group.ring()).manifest
            found.update(entry.block for _, _, entry in walk(manifest.chunks, load))
        return found


def pieces(seed: int, number: int = 12, size: int = 90_000) -> list[bytes]:
    """What contents are put together from: they share chunks."""
    return [random.Random(seed * 1000 + i).randbytes(size) for i in range(number)]


def _keep_version(file: int, now_ms: int, db: sqlite3.Connection) -> None:
    files.keep_version(db, file, "changed", now_ms)


def _drop_history(entries: list[int], db: sqlite3.Connection) -> None:
    files.drop_history(db, entries)
