"""The network side of a node: who it talks to, what it answers, how it is found.

Wiring only: transport, links, DHT, swarm and members are made here, handed to each other, started
and stopped in order. What each of them does is theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from p2pstore.clock import Clock
from p2pstore.config import Config
from p2pstore.dht import LOOPBACK, Dht, DhtSettings, is_public
from p2pstore.durable import replace_file
from p2pstore.errors import P2PStoreError, PeerUnreachable, PortInUse, Unavailable
from p2pstore.home import Home
from p2pstore.ids import BlockId, BundleId, GroupId, NodeId, Tag, group_id_of, node_id_of, short
from p2pstore.keys import Role
from p2pstore.maintenance import Keeping, Letters, Places, Swarm
from p2pstore.members import Exchange, Group, Invitations
from p2pstore.net import (
    Address,
    Connections,
    Discovery,
    Link,
    PeerBook,
    Request,
    TlsTransport,
)
from p2pstore.node.known import Known, SweepNotes
from p2pstore.node.presence import Presence
from p2pstore.policy import Candidate, Holder, admit_put, house, offer_to_friend
from p2pstore.store import BundleStore, Catalog, HeldStore, copies
from p2pstore.swarm import (
    Announcer,
    BlockCache,
    DialBack,
    Finder,
    Forwarder,
    Gate,
    Lanes,
    OwnPromises,
    Relay,
    Server,
    ShareFinder,
    Shelf,
    Source,
)
from p2pstore.syscalls import socket_owner
from p2pstore.threads import in_thread
from p2pstore.wire import Heads, Hello, Move, PeerRecord, Reach, TunnelTo, sign_record

log = logging.getLogger(__name__)

PORT_TRIES = 20  # for a free port that is free for TCP and UDP alike
RECORDS_TOLD = 16
TOTALS_S = 60.0  # what friends keep for us changes slowly, and is asked for with each PUT
SAVE_S = 600.0  # the contacts of the DHT


class Network:
    def __init__(
        self,
        *,
        home: Home,
        config: Config,
        group: Group,
        store: BundleStore,
        held: HeldStore,
        catalog: Catalog,
        clock: Clock,
        pool: Executor,
        boot_id: str,
        room: Callable[[], tuple[int, int, int]],
        changed: Callable[[], None],
        linked: Callable[[NodeId], None],
        moved: Callable[[NodeId, Move], Awaitable[None]],
        refusal: Callable[[], str | None],
        grants: Callable[[BundleId], Sequence[bytes]],
        served: Callable[[bytes, BundleId, Sequence[BlockId]], None],
    ) -> None:
        """`room` tells (total, free, keep-free) of the store's disk; `changed`: the group did;
        `moved`: a holder wants to be rid of something; `refusal`: why we take nothing now;
        `grants` of what was shared, and `served`: some of it was sent for a token."""
        self._home = home
        self._config = config
        self._group = group
        self._held = held
        self._catalog = catalog
        self._clock = clock
        self._pool = pool
        self._room = room
        self._linked = linked
        self._refusal = refusal
        self.listening: Address = (config.listen.host, config.listen.port)
        self._listens = False
        self._totals: Mapping[NodeId, tuple[int, int]] = {}
        self._totals_at = -TOTALS_S
        self.exchange = Exchange(home, group, clock=clock, pool=pool, changed=changed)
        self.book = PeerBook.load(home.path / "peers.json")
        self.transport = TlsTransport(
            group.device, hello=self._hello, role_of=self.exchange.role_of, clock=clock
        )
        self.connections = Connections(
            self.transport, self.book, clock=clock, find=self._find_addresses
        )
        self.dht = Dht(
            group.device,
            config.network,
            self._record,
            clock=clock,
            settings=LOOPBACK if _is_loopback(config.listen.host) else DhtSettings(),
            related=self._is_related,
        )
        self.promises = OwnPromises(home.path / "promises", clock, boot_id=boot_id)
        self.known = Known(catalog, lambda: self.places.ids())
        self.shelf = Shelf(
            store, held, self.promises, by_tag=self.known.by_tag, alias_of=self.known.alias
        )
        self.gate = Gate(
            group.state.group_public, self.exchange.revoked, self.exchange.kept.related
        )
        lanes = Lanes()
        finder = Finder(self.connections, self._providers, clock=clock)
        forwarder = Forwarder(self.connections, pool=pool, clock=clock, finder=finder)
        self.invitations = Invitations(
            home,
            group,
            network=config.network,
            addresses=self.addresses,
            clock=clock,
            pool=pool,
            records=self._records,
            changed=changed,
        )
        self.announcer = Announcer(
            self.dht,
            self._tags,
            pool=pool,
            clock=clock,
            notes=SweepNotes(home.path / "announced"),
            mark=config.network.encode(),
        )
        self.presence = Presence(
            self.connections,
            clock=clock,
            listening=lambda: self.listening,
            maps_port=config.port_map,
        )
        self.relay = Relay(
            group.node_id,
            self.connections,
            self.gate,
            clock=clock,
            accept=self.transport.accept_through,
        )
        self.transport.handler = Server(
            group.device,
            self.shelf,
            self.gate,
            forwarder,
            pool=pool,
            clock=clock,
            groups=self.exchange,
            join=self._join,
            admission=self._admit,
            peers=self._records,
            grants=grants,
            served=served,
            kept=self._kept,
            moved=moved,
            also={
                TunnelTo: self.relay.serve,
                Reach: DialBack(self.gate, self.transport.probe, clock=clock).serve,
            },
        ).serve
        self.places = Places(home.path, self.shelf, catalog=catalog, clock=clock, pool=pool)
        self.pusher = Keeping(
            group.device,
            self.shelf,
            self.connections,
            pool=pool,
            clock=clock,
            chain=group.chain,
            group=group.state.group_public,
            grants=grants,
            lanes=lanes,
        )
        self.share_finder = ShareFinder(
            group.device,
            self.shelf,
            self.connections,
            pool=pool,
            clock=clock,
            chain=group.chain,
            providers=self._providers,
        )
        self.source = Source(
            group.device,
            self.shelf,
            self.connections,
            pool=pool,
            clock=clock,
            chain=group.chain,
            holders=self.known.holders,
            name_of=group.name_of,
            providers=self._providers,
            elsewhere=self.places.blocks,
            cache=BlockCache(home.path / "cache"),
            lanes=lanes,
        )
        self.pusher.carried = self.places.carried
        self.letters = Letters(
            self.places,
            group=group.group_id,
            state=lambda: (group.state.raw, group.state.order),
            heads=lambda: [(one.raw, one.head) for one in self.exchange.signed_heads()],
            take=lambda letter: self.exchange.take(
                Heads((letter.state,), letter.heads), "a carrier"
            ),
        )
        self._discovery: Discovery | None = None
        self.transport.watch(self._link_changed)

    # -- life -------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Network]:
        """Listen, join the DHT, keep links to the group's devices."""
        await self._listen()
        try:
            self.connections.start()
            for node_id in self._related_nodes():
                self.connections.want(node_id)
            await self._discover()
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self.announcer.run()),
                    group.create_task(self._meet_bootstraps()),
                    group.create_task(self.presence.run()),
                    group.create_task(self._upkeep()),
                    group.create_task(self.read_letters()),
                ]
                try:
                    yield self
                finally:
                    for task in tasks:
                        task.cancel()
        finally:
            await self._close()

    async def _listen(self) -> None:
        """The same port for TCP and UDP; PortInUse names who has it."""
        host, port = self._config.listen.host, self._config.listen.port
        saved = _read_or_none(self._home.path / "dht.state")
        bootstrap = [(a.host, a.port) for a in self._config.bootstrap]
        for attempt in range(PORT_TRIES):
            try:
                self.listening = await self.transport.listen(host, port)
            except PortInUse as exc:
                raise self._port_in_use(host, port) from exc
            try:
                await self.dht.start(host, self.listening[1], self._ways_in(bootstrap), saved)
                self._listens = True
                return
            except PortInUse as exc:
                if port or attempt + 1 == PORT_TRIES:
                    raise self._port_in_use(host, port) from exc
                await self.transport.stop_listening()

    def _port_in_use(self, host: str, port: int) -> PortInUse:
        owner = socket_owner(port)
        by = f" ({owner[0]}, pid {owner[1]})" if owner is not None else ""
        free = port + 10 if port < 65_000 else 8090
        return PortInUse(
            f"Port {port} is in use{by}. Stop it, or: p2pstore run --listen {host}:{free}"
        )

    def _ways_in(self, bootstrap: Sequence[Address]) -> list[Address]:
        known = [a for peer in self.book.peers()[:20] for a in peer.addresses[:1]]
        return [*bootstrap, *known]

    async def read_letters(self) -> None:
        """Carriers may have newer heads than this HOME, which may come from a copy."""
        await self.letters.read()

    async def _meet_bootstraps(self) -> None:
        """Nodes named by the user are met over TLS too, not only in the DHT."""
        for address in self._config.bootstrap:
            try:
                await self.connections.connect((address.host, address.port))
            except P2PStoreError as exc:
                log.info("%s:%d does not answer: %s", address.host, address.port, exc)

    async def _upkeep(self) -> None:
        """Notice another address of ours, tell it at once; keep the DHT's contacts on disk."""
        known, local = self.addresses(), self.presence.local()
        saved = self._clock.monotonic()
        while True:
            await self.presence.wait()
            now = self.addresses()
            if now != known:
                known = now
                log.info("This node is now reached at %s:%d.", *now[0])
                await self.dht.refresh_record()
            if self.presence.local() != local:
                local = self.presence.local()
                self.presence.moved()
                self.connections.retry()
            await self.announce_new()
            if self._clock.monotonic() - saved >= SAVE_S:
                saved = self._clock.monotonic()
                await self._save_dht()

    async def _save_dht(self) -> None:
        path = self._home.path / "dht.state"
        await in_thread(self._pool, replace_file, path, self.dht.state())

    async def _discover(self) -> None:
        if not self._config.mdns or _is_loopback(self.listening[0]):
            return
        self._discovery = Discovery(
            self._group.node_id, self._config.network, self.listening[1], self._found
        )
        try:
            await self._discovery.start()
        except OSError as exc:
            log.info("No search in the local network: %s", exc)

    async def _close(self) -> None:
        if self._discovery is not None:
            await self._discovery.close()
        await self.connections.close()
        await self._save_dht()
        await self.dht.close()
        await self.transport.close()
        await self.places.close()

    # -- who and where ----------------------------------------------------------------------------

    def addresses(self) -> list[Address]:
        """Where others can reach this node, the best first."""
        return self.presence.addresses()

    def _record(self) -> bytes:
        record = PeerRecord(
            public_key=self._group.public,
            network=self._config.network,
            addresses=tuple(self.addresses()[:8]),
            issued_ms=int(self._clock.wall() * 1000),
            name=self._group.name,
        )
        return sign_record(record, self._group.device)

    def _hello(self) -> Hello:
        # Whoever does not listen (a command while no node runs) tells no address.
        record = self._record() if self._listens else None
        return self.exchange.hello(self._config.network, record=record)

    def _records(self) -> list[bytes]:
        """Signed records of nodes that we know, the liveliest first, our own in front."""
        known = [peer.record for peer in self.book.peers() if peer.record]
        return [self._record(), *known[:RECORDS_TOLD]]

    async def _find_addresses(self, node_id: NodeId) -> Iterable[Address]:
        record = await self.dht.find(node_id)
        return () if record is None else self._dialled(record).addresses

    async def _providers(self, tags: Sequence[Tag]) -> Mapping[Tag, Sequence[PeerRecord]]:
        """Whom the DHT names, with those of their addresses that may be dialled."""
        found = await self.dht.providers(tags)
        return {tag: [self._dialled(record) for record in found[tag]] for tag in found}

    def _dialled(self, record: PeerRecord) -> PeerRecord:
        """Without what would make us knock at machines of our own network for a stranger."""
        if self._is_related(record.node_id) or _is_loopback(self.listening[0]):
            return record
        addresses = tuple(address for address in record.addresses if is_public(address[0]))
        return msgspec.structs.replace(record, addresses=addresses)

    def _found(self, node_id: NodeId, addresses: tuple[Address, ...]) -> None:
        """The local network names a node."""
        for address in addresses:
            self.book.note_address(node_id, address)
        if node_id in self._related_nodes():
            self.connections.want(node_id)
            self.connections.retry(node_id)

    def _is_related(self, node_id: NodeId) -> bool:
        return self._group.name_of(node_id) is not None

    def _link_changed(self, link: Link, is_up: bool) -> None:
        if is_up:
            self.presence.reachability.note(link)
        if is_up and link.role in ("device", "friend"):
            self.connections.want(link.node_id)
            self._linked(link.node_id)

    def devices(self) -> list[Link]:
        """Links to devices of the group."""
        others = set(self._group.others())
        return [link for link in self.connections.links() if link.node_id in others]

    def holder_ids(self) -> set[NodeId]:
        """Everybody that may keep copies for us: own devices, and friends."""
        return {*self._group.others(), *self._friends()}

    def holders(self) -> list[Link]:
        """Links to those of them that are connected."""
        able = self.holder_ids()
        return [link for link in self.connections.links() if link.node_id in able]

    def _friends(self) -> list[NodeId]:
        """Nodes that were invited as friends."""
        return [node_id_of(certificate.subject) for certificate in self._group.state.friends()]

    def _related_nodes(self) -> set[NodeId]:
        """Whom to keep a link with: own devices, friends, and those whose friend we are."""
        return {*self.holder_ids(), *self.exchange.kept.nodes()}

    async def pull(self, node_id: NodeId) -> None:
        """Have a device that is connected tell the newest state and heads that it has."""
        link = self.connections.get(node_id)
        if link is None:
            raise PeerUnreachable(f"{short(node_id)} is not connected.")
        await self.exchange.pull(link)

    def group_changed(self) -> None:
        """A new member, or a revoked one: judge the links anew, and want the new."""
        self.exchange.judge_links(self.connections.links())
        for node_id in self._related_nodes():
            self.connections.want(node_id)

    # -- what the swarm asks ----------------------------------------------------------------------

    async def _join(self, request: Request) -> None:
        await self.invitations.join(request)
        self.group_changed()
        self._linked(request.link.node_id)

    def _admit(self, group_id: GroupId, role: str, size: int) -> str | None:
        if (refusal := self._refusal()) is not None:
            return refusal
        total, free, keep_free = self._room()
        used = self._held.used_bytes(group_id)
        if role == "friend":
            granted, proved = self._config.offer_friends, self._kept_for_us(group_id)
            offer = offer_to_friend(granted=granted, proved_bytes=proved, their_offer=proved)
        else:
            offer = self._config.offer_of(total=total, free=free, held=used)
        return admit_put(size, offer, used, free, keep_free)

    def _kept_for_us(self, group_id: GroupId) -> int:
        """Bytes of ours that nodes of that friend's group have proved; looked up now and then."""
        now = self._clock.monotonic()
        if now - self._totals_at > TOTALS_S:
            self._totals = self._catalog.view(copies.totals_of_holders)
            self._totals_at = now
        friends = (node for node in self._friends() if self._owner(node, Role.FRIEND) == group_id)
        return sum(self._totals.get(node, (0, 0))[0] for node in friends)

    async def announce_new(self) -> None:
        """Own bundles that were sealed since the last look are to be found at once."""
        self.announcer.announce_soon(*await in_thread(self._pool, self.known.new_tags))

    def _kept(self, bundle_id: BundleId, tag: Tag) -> None:
        del bundle_id
        self.announcer.announce_soon(tag)

    def _tags(self) -> list[Tag]:
        """Of everything that is here, and those under which holders of a group are found."""
        return [*self.known.tags(), *self._held.tags(), *self.exchange.recovery_tags()]

    # -- what maintenance asks --------------------------------------------------------------------

    def for_maintenance(self) -> Swarm:
        return Swarm(
            links=self.holders,
            candidates=self._candidates,
            state=lambda: self._group.state.order,
            tell=self._tell,
            heads=self.exchange.own_heads,
            publish=self.exchange.publish,
            second_device=lambda: bool(self._group.others()),
            words_confirmed=lambda: self._home.words_confirmed,
            carriers=self.places.ids,
            lettered=self.places.lettered,
        )

    async def _tell(self) -> Sequence[copies.HeadAck]:
        """Strangers too: a device that was revoked meanwhile learns it so."""
        told = await self.exchange.tell(self.connections.links())
        return [*told, *await self.letters.tell()]

    def _candidates(self) -> list[Candidate]:
        """The group's other devices, and friends; when they were last seen, links and book tell."""
        state, now = self._group.state, self._clock.wall()
        links = {link.node_id: link for link in self.connections.links()}
        found: list[Candidate] = []
        for certificate in (*state.devices(), *state.friends()):
            node_id = node_id_of(certificate.subject)
            if node_id == self._group.node_id:
                continue
            link, peer = links.get(node_id), self.book.get(node_id)
            seen = now if link is not None else peer.last_seen_ms / 1000 if peer else 0.0
            addresses = peer.addresses if peer is not None else ()
            # The address of a link through another peer is that peer's.
            direct = link if link is not None and link.via is None else None
            where = direct.address if direct is not None else addresses[0] if addresses else None
            holder = Holder(
                node=node_id,
                role=certificate.role.value,
                owner=self._owner(node_id, certificate.role),
                prefix="" if where is None else house(where[0]),
            )
            found.append(Candidate(holder=holder, offer=1, last_seen=seen))
        return found

    def _owner(self, node_id: NodeId, role: Role) -> bytes:
        """Whose node it is. A friend that we have never met is one of its own."""
        if role is not Role.FRIEND:
            return self._group.group_id
        peer = self.book.get(node_id)
        return node_id if peer is None or peer.group is None else group_id_of(peer.group)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError as exc:
        raise Unavailable(f"{host} is no numeric address to listen on.") from exc


def _read_or_none(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
