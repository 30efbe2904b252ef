"""Devices of one group that keep copies of each other's bundles, with what maintains them."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from p2pstore.carriers import Carrier
from p2pstore.clock import ManualClock
from p2pstore.config import FolderSettings
from p2pstore.content import (
    BundleHeader,
    BundleRef,
    ChunkList,
    Entry,
    EpochKeys,
    FileMeta,
    Keyring,
    Kind,
    Manifest,
    SealedBlock,
    block_id_of,
    bundle_tag,
    seal_manifest,
)
from p2pstore.ids import BundleId, Epoch, FileId, FolderId, NodeId, group_id_of
from p2pstore.ingest import Author
from p2pstore.maintenance import (
    Collector,
    Evictor,
    Keeping,
    Ledger,
    Loop,
    Merger,
    Others,
    Refetcher,
    Replicator,
    World,
    carrier_id,
)
from p2pstore.maintenance.carried import CarriedBundles, keys_of
from p2pstore.maintenance.index import HeadOrder
from p2pstore.node.known import Known
from p2pstore.policy import Holder
from p2pstore.store import (
    BundleRow,
    BundleState,
    Catalog,
    FileRow,
    State,
    blocks,
    copies,
    files,
    folders,
)
from tests.swarm.world import GROUP_KEY, TAG_SECRET, Node
from tests.swarm.world import World as SwarmWorld

DAY_MS = 86_400_000
HEAD = HeadOrder(1, 7)
STATE = (1, 3)
NO_SETTINGS = FolderSettings(min_copies=2)
KEYS = EpochKeys.derive(Epoch(b"an epoch"), b"secret of all".ljust(32, b"."))
RING = Keyring(KEYS, {KEYS.epoch: KEYS}, b"dedup".ljust(32, b"."))


class JumpingClock(ManualClock):
    """Its wall clock can be set."""

    def jump(self, seconds: float) -> None:
        self._wall += seconds

    def sleep_of_the_machine(self, seconds: float) -> None:
        """The monotonic clock of Linux stands still meanwhile."""
        self._wall += seconds


class Filed(NamedTuple):
    """A protected file: its data bundle, and the meta bundle with its manifest."""

    data: BundleRow
    meta: BundleRow
    file: int


class Device(Node):
    """A node with a catalog, one folder, and maintenance without its loops."""

    def __init__(
        self, world: SwarmWorld, name: str, root: Path, *, clock: JumpingClock | None = None
    ) -> None:
        if clock is not None:
            world.clock, before = clock, world.clock
        super().__init__(world, name, root, group_key=GROUP_KEY)
        if clock is not None:
            world.clock = before
        self.pauses: list[float] = []
        self.at_pause: Callable[[], Any] = lambda: None
        self.gone: list[BundleId] = []
        self.asked: list[Device] = []  # whose indexes must be seen before anything is collected
        self.told: list[bytes] = []  # heads that it knows
        self.own_heads: list[bytes] = []
        self.leavers: set[NodeId] = set()  # who is of the group no more
        self.carried: dict[NodeId, CarriedBundles] = {}
        self.facts = World(
            now=self.clock.wall(),
            holders={},
            eligible=0,
            heads={},
            clean=frozenset(),
            state=STATE,
            words_confirmed=True,
            second_device=True,
            rebuilding=False,
        )
        self.path = root / name / "catalog.sqlite"
        self.catalog = Catalog.open(self.path)
        self.folder_id = FolderId(hashlib.sha256(name.encode()).digest()[:16])
        self.folder = self.add_folder(self.folder_id, NO_SETTINGS)
        self.root_bundle = self.bundle(f"index of {name}", Kind.META)
        self.set_index(self.folder_id, [self.root_bundle])
        self.wire()

    def wire(self) -> None:
        self.ledger = Ledger(self.catalog)
        self.replicator = Replicator(
            catalog=self.catalog,
            ledger=self.ledger,
            pusher=self.pusher,
            world=self.look,
            clock=self.clock,
        )
        self.evictor = Evictor(
            catalog=self.catalog,
            store=self.bundles,
            ledger=self.ledger,
            pusher=self.pusher,
            world=self.look,
            promises=self.promises,
            clock=self.clock,
            pool=self.world.pool,
            fresh_proof_s=600.0,
            gone=self.gone.append,
            pause=self.pause,
        )

        others = Others(
            catalog=self.catalog,
            me=self.node_id,
            devices=lambda: [node.node_id for node in self.asked],
            pull=self.pull,
            heads=lambda: self.told,
            ring=self.ring,
            judge=lambda signer, chain: signer not in self.revoked,
        )
        # As `node` wires it: what was merged is found under its old names.
        known = Known(self.catalog, tuple)
        self.shelf._alias_of = known.alias
        self.shelf._by_tag = known.by_tag
        self.source._holders = known.holders
        self.collector = Collector(
            catalog=self.catalog,
            store=self.bundles,
            ledger=self.ledger,
            pusher=self.pusher,
            promises=self.promises,
            others=others,
            source=self.source,
            author=lambda: Author(self.key, b"", self.group),
            ring=self.ring,
            world=self.look,
            clock=self.clock,
            pool=self.world.pool,
        )
        self.merger = Merger(
            catalog=self.catalog,
            store=self.bundles,
            ledger=self.ledger,
            promises=self.promises,
            author=lambda: Author(self.key, b"", self.group),
            ring=self.ring,
            world=self.look,
            age=self.collector.age,
            free=lambda: 1 << 40,
            clock=self.clock,
            pool=self.world.pool,
            sleep=self.pause,
        )

    def ring(self) -> Keyring:
        return RING

    async def pull(self, node_id: NodeId) -> None:
        """The other device tells its heads."""
        await self.connections.connect(node_id)
        node = next(node for node in self.asked if node.node_id == node_id)
        self.told += [raw for raw in node.own_heads if raw not in self.told]

    async def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        result = self.at_pause()
        if result is not None:
            await result

    def use(self, name: str, carrier: Carrier) -> NodeId:
        """Let a carrier hold copies of this device's bundles; what stands for it."""
        node = carrier_id(name)
        self.pusher = Keeping(
            self.key,
            self.shelf,
            self.connections,
            pool=self.world.pool,
            clock=self.clock,
            chain=lambda: self.certificate,
            group=self.group,
        )

        def keys(bundle_id: BundleId, node: NodeId) -> Sequence[str]:
            row = self.catalog.view(lambda db: blocks.get_bundle(db, bundle_id))
            copy = None if row is None else self.copies(row).get(node)
            return [] if copy is None else keys_of(copy.receipt)

        self.carried[node] = CarriedBundles(
            node, carrier, self.shelf, keys=keys, clock=self.clock, pool=self.world.pool
        )
        self.pusher.carried = self.carried
        settings = FolderSettings(min_copies=2, carriers=(name,))
        self.catalog.write(
            lambda db: folders.set_settings(db, self.folder, msgspec.msgpack.encode(settings))
        ).result()
        self.wire()
        return node

    # -- what policy is told ----------------------------------------------------------------------

    def look(self) -> World:
        changed = {
            "now": self.clock.wall(),
            "holders": {
                other.node_id: Holder(other.node_id, "device")
                for other in self.world.nodes
                if other is not self and other.node_id not in self.leavers
            }
            | {node: Holder(node, "carrier") for node in self.carried},
        }
        if not self.facts.eligible:
            changed["eligible"] = len(self.world.nodes) - 1
        if not self.facts.heads:
            changed["heads"] = {self.folder_id: HEAD}
            changed["clean"] = frozenset((self.folder_id,))
        values = {name: getattr(self.facts, name) for name in World.__dataclass_fields__}
        return World(**{**values, **changed})

    # -- rows -------------------------------------------------------------------------------------

    def add_folder(self, folder_id: FolderId, settings: FolderSettings) -> int:
        encoded = msgspec.msgpack.encode(settings)
        path = b"/" + folder_id.hex().encode()
        return self.catalog.write(
            lambda db: folders.add(db, folder_id, path, "f", encoded, folder_id)
        ).result()

    def set_index(self, folder_id: FolderId, rows: list[BundleRow]) -> None:
        root = f"index:{folder_id.hex()}"
        self.catalog.write(lambda db: blocks.set_root(db, root, [row.id for row in rows])).result()

    def bundle(
        self, name: str, kind: Kind = Kind.DATA, *, number: int = 6, folder: int | None = None
    ) -> BundleRow:
        """Sealed here, with its row."""
        made = []
        for i in range(number):
            stamp = hashlib.sha256(f"{name}/{i}".encode()).digest()
            block = (stamp * 100)[: 3000 + i]
            made.append(SealedBlock(block_id_of(block), stamp, block))
        bundle_id = BundleId(hashlib.sha256(f"bundle {name}".encode()).digest())
        header = BundleHeader(bundle_id, self.group, self.public, kind, 1_700)
        bundle = self.bundles.create(header, self.key)
        bundle.append(made)
        bundle.seal()
        tag = bundle_tag(TAG_SECRET, bundle_id)
        self.tags[tag] = bundle_id
        row = BundleRow(
            bundle_id=bundle_id,
            tag=tag,
            kind=int(kind),
            folder=folder or self.folder,
            state=BundleState.SEALED,
            bytes=self.bundles.size(bundle_id),
            blocks=number,
            created=int(self.clock.wall() * 1000),
        )
        number = self.catalog.write(lambda db: blocks.put_bundle(db, row)).result()
        return row._replace(id=number)

    def protect(self, name: str, *, state: str = State.PLACEHOLDER) -> Filed:
        data = self.bundle(f"{self.name}/{name}")
        meta = self.bundle(f"{self.name}/{name}/meta", Kind.META)
        file = self.refer(name.encode(), [data, meta], state=state)
        return Filed(data, meta, file)

    def refer(
        self,
        path: bytes,
        rows: list[BundleRow],
        *,
        state: str = State.PLACEHOLDER,
        folder: int | None = None,
        listed: bool = True,
    ) -> int:
        row = FileRow(
            folder or self.folder,
            path,
            state,
            file_id=os.urandom(16),
            file_size=100,
            manifest_ref=b"" if not listed else b"somewhere",
        )

        def change(db: sqlite3.Connection) -> int:
            (number,) = files.upsert_many(db, [row])
            blocks.set_file_bundles(db, [(number, [one.id for one in rows])])
            return number

        return self.catalog.write(change).result()

    def file_of(
        self, path: bytes, bundle: BundleRow, needs: Sequence[int], *, depth: int = 0
    ) -> int:
        """A file with a manifest that names these blocks of the bundle."""
        entries = self.bundles.index(bundle.bundle_id).blocks.entries
        chunks = ChunkList(
            depth,
            (BundleRef(bundle.bundle_id, bundle.tag),),
            tuple(Entry(entries[i].block_id, 0, bytes(32), 0, 10) for i in needs),
            (10,) * len(needs) if depth else (),
        )
        manifest = Manifest(
            file_id=FileId(os.urandom(16)),
            version={self.node_id: 1},
            parent=b"",
            meta=FileMeta(path, 10 * len(needs), 0o644, 0, 0, "", "", 0),
            hash=bytes(32),
            chunks=chunks,
            group=group_id_of(self.group),
            kind="file",
        )
        raw = seal_manifest(manifest, KEYS, self.key, self.certificate, os.urandom(24))
        number = self.refer(path, [bundle], listed=False)
        self.catalog.write(lambda db: files.set_manifest(db, number, raw)).result()
        return number

    def row(self, bundle: BundleRow) -> BundleRow:
        found = self.catalog.view(lambda db: blocks.by_rowid(db, bundle.id))
        assert found is not None
        return found

    def copies(self, bundle: BundleRow) -> dict[NodeId, copies.Copy]:
        known = self.catalog.view(lambda db: copies.of_bundle(db, bundle.id))
        return {copy.holder: copy for copy in known}

    def note_copy(self, bundle: BundleRow, holder: Node, **changes: Any) -> None:
        """As if a receipt had come."""
        now = int(self.clock.wall() * 1000)
        fields: dict[str, Any] = {
            "bundle": bundle.id,
            "holder": holder.node_id,
            "seq": 0,
            "proved_at": now,
            "lease_until": now + 180 * DAY_MS,
            "receipt": b"",
        }
        copy = copies.Copy(**{**fields, **changes})
        self.catalog.write(lambda db: copies.put(db, copy)).result()

    def acknowledge(self, *holders: Node, head: HeadOrder = HEAD) -> None:
        for holder in holders:
            ack = copies.HeadAck(holder.node_id, self.folder_id, *head, *STATE)
            self.catalog.write(lambda db, ack=ack: copies.acknowledge(db, ack)).result()

    # -- doing ------------------------------------------------------------------------------------

    async def copy_to(self, *holders: Node) -> None:
        """Everything, to each of them, who acknowledge the heads as well."""
        for holder in holders:
            assert await self.replicator.serve(holder.node_id)
        self.acknowledge(*holders)

    async def merge(self) -> float | None:
        """One turn."""
        loop = Loop("merge", self._no_turn, catalog=self.catalog, clock=self.clock)
        return await self.merger.turn(loop)

    async def _no_turn(self, _: Loop) -> None:
        return None

    async def evict(self, *rows: BundleRow) -> dict[str, tuple[int, int]]:
        """Why each stays, by reason."""
        fresh = [self.row(row) for row in rows]
        return (await self.evictor.evict(fresh, lambda _: None)).waiting

    def is_here(self, bundle: BundleRow) -> bool:
        return self.bundles.has(bundle.bundle_id)

    def has_copy(self, bundle_id: BundleId) -> bool:
        return self.bundles.has(bundle_id) or self.held.has(bundle_id)

    async def close(self) -> None:
        await super().close()
        self.catalog.close()


class Group(SwarmWorld):
    """A world of devices that all know each other."""

    nodes: list[Any]

    def __init__(self, root: Path, kind: str = "memory") -> None:
        super().__init__(root, kind)
        self.clock: JumpingClock = JumpingClock()

    def device(self, name: str, **options: Any) -> Device:
        device = Device(self, name, self.root, **options)
        self.nodes.append(device)
        return device

    def refetcher(self, device: Device, *, free: Callable[[], int]) -> Refetcher:
        """What brings the device's bundles back from others, while it has so many bytes `free`."""
        return Refetcher(
            catalog=device.catalog,
            store=device.bundles,
            pusher=device.pusher,
            source=device.source,
            promises=device.promises,
            opened_by=lambda key: key == device.public,
            admit_map=device.gate.admit_map,
            free=free,
            pool=self.pool,
        )

    async def devices(self, number: int) -> list[Device]:
        made = [self.device(f"device {i}") for i in range(number)]
        for one in made:
            for other in made:
                if other is not one:
                    await one.knows(other)
        return made

    def copies_of(self, bundle_id: BundleId) -> int:
        """On how many devices it is, whole and not in any trash."""
        return sum(node.has_copy(bundle_id) for node in self.nodes)

    def cut(self) -> None:
        """Every link that is up breaks."""
        for node in self.nodes:
            for link in node.transport.links():
                link.abort() if hasattr(link, "abort") else None
