"""Whole nodes in one process, on a network in memory or over TLS."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from nacl.signing import SigningKey

from p2pstore.clock import ManualClock
from p2pstore.content import (
    BundleHeader,
    BundleIndex,
    BundleRef,
    Kind,
    SealedBlock,
    block_id_of,
    bundle_tag,
)
from p2pstore.ids import BlockId, BundleId, GroupId, NodeId, PublicKey, Tag, node_id_of
from p2pstore.keys import encode_chain, issue
from p2pstore.net import (
    Connections,
    Endpoint,
    Limits,
    Link,
    MemoryNetwork,
    MemoryTransport,
    PeerBook,
    Request,
    TlsTransport,
)
from p2pstore.store import DiskBundles, HeldStore
from p2pstore.swarm import (
    BlockCache,
    DialBack,
    Finder,
    Forwarder,
    Gate,
    OwnPromises,
    Pusher,
    Relay,
    Server,
    ShareFinder,
    Shelf,
    Source,
)
from p2pstore.wire import VERSIONS, Heads, HeadsKept, Hello, PeerRecord, PutHeads, Reach, TunnelTo

GROUP_KEY = SigningKey(b"group".ljust(32, b"."))
OTHER_GROUP_KEY = SigningKey(b"another group".ljust(32, b"."))
TAG_SECRET = b"tags".ljust(32, b".")
LIMITS = Limits(check_every_s=3600)


def public(key: SigningKey) -> PublicKey:
    return PublicKey(bytes(key.verify_key))


class Wanted(NamedTuple):
    ref: BundleRef
    block_id: BlockId


class Sealed(NamedTuple):
    bundle_id: BundleId
    tag: Tag
    listed: BundleIndex
    blocks: list[SealedBlock]

    def wanted(self) -> list[Wanted]:
        ref = BundleRef(self.bundle_id, self.tag)
        return [Wanted(ref, block.block_id) for block in self.blocks]

    def content(self) -> dict[BlockId, bytes]:
        return {block.block_id: block.block for block in self.blocks}


class HeadShelf:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.kept: dict[GroupId, tuple[bytes | None, tuple[bytes, ...]]] = {}

    async def heads(self, group_id: GroupId, link: Link) -> Heads:
        state, heads = self.kept.get(group_id, (None, ()))
        return Heads(() if state is None else (state,), heads)

    async def put_heads(self, link: Link, message: PutHeads) -> HeadsKept:
        self.kept[message.group] = (message.state, message.heads)
        return HeadsKept(1, 2, ())


class Node:
    def __init__(
        self,
        world: World,
        name: str,
        root: Path,
        *,
        group_key: SigningKey,
        certified_as: str | None = "device",
        friends: Sequence[SigningKey] = (),
        **swarm: Any,
    ) -> None:
        self.name = name
        self.world = world
        self.clock = world.clock
        self.key = SigningKey(hashlib.sha256(name.encode()).digest())
        self.public = public(self.key)
        self.node_id = node_id_of(self.public)
        self.group = public(group_key)
        self.certificate = b""
        if certified_as is not None:
            raw = issue(
                group_key,
                group=self.group,
                subject=self.public,
                role=certified_as,
                name=name,
                now_ms=1,
            )
            self.certificate = encode_chain([raw])
        self.revoked: frozenset[PublicKey] = frozenset()
        self.friends = frozenset(map(public, friends))
        self.refusal: str | None = None
        self.kept: list[Tag] = []
        self.joins: list[Request] = []
        self.grants: list[bytes] = []
        self.holders: dict[BundleId, list[NodeId]] = {}
        self.records: dict[Tag, list[PeerRecord]] = {}
        self.served: list[str] = []
        self.told: list[tuple[bytes, BundleId, list[BlockId]]] = []  # sent for a token
        self.bundles = DiskBundles(root / name / "bundles")
        (root / name / "held").mkdir(parents=True)
        self.held = HeldStore(root / name / "held", self.clock, boot_id="boot")
        self.promises = OwnPromises(root / name / "own-locks", self.clock, boot_id="boot")
        self.tags: dict[Tag, BundleId] = {}
        self.shelf = Shelf(self.bundles, self.held, self.promises, by_tag=self.tags.get)
        self.gate = Gate(self.group, lambda _: self.revoked, lambda: self.friends)
        hello = Hello("main", VERSIONS, self.public, self.certificate, name=name, group=self.group)
        options: dict[str, Any] = {
            "hello": lambda: hello,
            "role_of": self.role_of,
            "limits": LIMITS,
            "clock": self.clock,
        }
        self.transport: Endpoint
        if world.kind == "memory":
            self.transport = MemoryTransport(world.network, self.key, **options)
        else:
            self.transport = TlsTransport(self.key, **options)
        self.book = PeerBook()
        self.connections = Connections(self.transport, self.book, clock=self.clock)
        pool = world.pool
        self.looked_up: list[Tag] = []
        self.finder = Finder(
            self.connections,
            self.providers,
            clock=self.clock,
            **{k: swarm.pop(k) for k in ("stranger_lookups", "friend_lookups") if k in swarm},
        )
        self.forwarder = Forwarder(
            self.connections,
            pool=pool,
            clock=self.clock,
            finder=self.finder,
            **{k: swarm.pop(k) for k in ("stranger_bytes", "friend_bytes") if k in swarm},
        )
        self.relay = Relay(
            self.node_id,
            self.connections,
            self.gate,
            clock=self.clock,
            accept=self.transport.accept_through,
            friend_bytes=swarm.pop("tunnel_bytes", 1 << 30),
        )
        self.groups = HeadShelf()
        self.server = Server(
            self.key,
            self.shelf,
            self.gate,
            self.forwarder,
            pool=pool,
            clock=self.clock,
            groups=self.groups,
            join=self.join,
            admission=lambda group, role, size: self.refusal,
            peers=lambda: (),
            grants=lambda _: self.grants,
            served=lambda token, bundle, sent: self.told.append((token, bundle, list(sent))),
            kept=lambda _, tag: self.kept.append(tag),
            also={
                TunnelTo: self.relay.serve,
                Reach: DialBack(self.gate, self.transport.probe, clock=self.clock).serve,
            },
        )
        self.transport.handler = self.serve
        self.cache = BlockCache(root / name / "cache")
        self.source = Source(
            self.key,
            self.shelf,
            self.connections,
            pool=pool,
            clock=self.clock,
            chain=lambda: self.certificate,
            holders=self.known_holders,
            name_of=world.name_of,
            providers=self.providers,
            cache=self.cache,
            **swarm,
        )
        self.share_finder = ShareFinder(
            self.key,
            self.shelf,
            self.connections,
            pool=pool,
            clock=self.clock,
            chain=lambda: self.certificate,
            providers=self.providers,
        )
        self.pusher = Pusher(
            self.key,
            self.shelf,
            self.connections,
            pool=pool,
            clock=self.clock,
            chain=lambda: self.certificate,
            group=self.group,
            grants=lambda _: self.grants,
        )

    def role_of(self, hello: Hello) -> str:
        if hello.group == self.group:
            role = self.gate.role_in(self.group, hello.public_key, hello.chain)
            return "stranger" if role is None else str(role.value)
        return "friend" if hello.group in self.friends else "stranger"

    async def serve(self, request: Request) -> None:
        self.served.append(type(request.message).__name__)
        await self.server.serve(request)

    async def join(self, request: Request) -> None:
        self.joins.append(request)

    def known_holders(self, bundles: Sequence[BundleId]) -> Mapping[BundleId, Sequence[NodeId]]:
        return {bundle: self.holders[bundle] for bundle in bundles if bundle in self.holders}

    async def providers(self, tags: Sequence[Tag]) -> Mapping[Tag, Sequence[PeerRecord]]:
        self.looked_up += tags
        return {tag: self.records[tag] for tag in tags if tag in self.records}

    async def record(self) -> PeerRecord:
        """What it would sign about itself."""
        return PeerRecord(self.public, "main", (await self.address(),), 1, self.name)

    def seal(self, name: str = "one", number: int = 10, size: int = 5000) -> Sealed:
        """A bundle of its own, with blocks that differ from those of any other name."""
        blocks = []
        for i in range(number):
            stamp = hashlib.sha256(f"{name}/{i}".encode()).digest()
            block = (stamp * (1 + size // 32))[: size + i % 7]
            blocks.append(SealedBlock(block_id_of(block), stamp, block))
        bundle_id = BundleId(hashlib.sha256(f"bundle {name}".encode()).digest())
        header = BundleHeader(bundle_id, self.group, self.public, Kind.DATA, 1_700)
        bundle = self.bundles.create(header, self.key)
        bundle.append(blocks)
        tag = bundle_tag(TAG_SECRET, bundle_id)
        self.tags[tag] = bundle_id
        return Sealed(bundle_id, tag, bundle.seal(), blocks)

    def drop(self, sealed: Sealed) -> None:
        """The local copy goes, as after an evict."""
        self.bundles.to_trash(sealed.bundle_id)
        self.bundles.purge(sealed.bundle_id)

    def spoil(self, sealed: Sealed, i: int = 0) -> None:
        """One bit of a block of the held, or own, bundle flips on the disk."""
        own = self.bundles.has(sealed.bundle_id)
        store = self.bundles if own else self.held._files
        offset = sealed.listed.blocks.offsets()[i]
        with open(store.path(sealed.bundle_id), "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1]))

    async def knows(self, other: Node) -> None:
        """It can dial `other`, which listens."""
        self.book.note_address(other.node_id, await other.address())

    async def address(self) -> tuple[str, int]:
        if self.world.addresses.get(self.node_id) is None:
            self.world.addresses[self.node_id] = await self.transport.listen("127.0.0.1", 0)
        return self.world.addresses[self.node_id]

    async def meet(self, other: Node) -> Link:
        await self.knows(other)
        link = await self.connections.connect(other.node_id)
        while other.connections.get(self.node_id) is None:
            await asyncio.sleep(0)
        return link

    async def close(self) -> None:
        await self.transport.close()
        await self.connections.close()
        self.held.close()
        self.bundles.close()


class World:
    def __init__(self, root: Path, kind: str = "memory") -> None:
        self.root = root
        self.kind = kind
        self.clock = ManualClock()
        self.network = MemoryNetwork()
        self.pool = ThreadPoolExecutor(2)
        self.nodes: list[Node] = []
        self.addresses: dict[NodeId, tuple[str, int]] = {}

    def node(self, name: str, group_key: SigningKey = GROUP_KEY, **options: Any) -> Node:
        node = Node(self, name, self.root, group_key=group_key, **options)
        self.nodes.append(node)
        return node

    async def pair(self) -> tuple[Node, Node]:
        """Two devices of one group; the first has dialled the second."""
        a, b = self.node("laptop"), self.node("desk")
        await a.meet(b)
        return a, b

    def name_of(self, node_id: NodeId) -> str | None:
        return next((node.name for node in self.nodes if node.node_id == node_id), None)

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()
        self.pool.shutdown()
