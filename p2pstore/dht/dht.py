"""The DHT of one network: who is where, and who has what.

It finds, and nothing more: it is never in the durability path. Nodes announce the tags of the
bundles that they hold; others ask for providers of tags, and for the address record of a node.
Everything ends after 24 hours; announce again every 12.

Saved state is a MessagePack array [version (1), contacts [[host, port], ...], records [signed
peer record, ...]]; a damaged one only costs the contacts in it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
from kademlia.node import Node
from msgspec import Meta, Struct
from nacl.signing import SigningKey

from p2pstore.clock import Clock, SystemClock
from p2pstore.dht import datagram as wire
from p2pstore.dht.address import Address, numeric
from p2pstore.dht.claim import LIFETIME_MS, Claim, make_claim
from p2pstore.dht.gate import Budgets
from p2pstore.dht.protocol import SignedProtocol
from p2pstore.dht.search import Search, fetch_records
from p2pstore.dht.server import DhtServer, Endpoint, udp_endpoint
from p2pstore.dht.shelf import ProviderShelf, RecordShelf
from p2pstore.errors import Unavailable, UsageError
from p2pstore.ids import NodeId, PublicKey, Tag, node_id_of
from p2pstore.wire import PeerRecord

log = logging.getLogger(__name__)

STATE_VERSION = 1
STATE_CONTACTS = 200
STATE_RECORDS = 500
TICK_S = 60.0
ALONE_S = 2.0  # after a first join that nobody answered, then twice as long each time, up to a tick
EXPIRE_S = 600.0
UPKEEP_S = 3600.0
REFRESH_S = 12 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtSettings:
    """`None` switches a limit off, as is needed where many nodes share a loopback address."""

    k: int = 20
    alpha: int = 3
    packets_in_s: float | None = 30.0  # from one address
    burst_in: float = 120.0
    unproven_in_s: float | None = 500.0  # from all who did not prove their address, together
    packets_out_s: float | None = 20.0  # to one address: below what it takes, retries included
    burst_out: float = 60.0
    subnet_limit: int | None = 2  # contacts of one /24 or /48 in a bucket, and in a crawl

    def __post_init__(self) -> None:
        if not 1 <= self.k <= wire.MAX_K:
            raise UsageError(f"k must lie between 1 and {wire.MAX_K}.")


LOOPBACK = DhtSettings(packets_in_s=None, unproven_in_s=None, packets_out_s=None, subnet_limit=None)


class Announced(NamedTuple):
    """What it took to tell the network."""

    nodes: int  # that answered; none: nobody but this node knows it
    lookups: int
    datagrams: int  # that this node sent meanwhile


class _State(Struct, frozen=True, array_like=True):
    version: int
    contacts: Annotated[tuple[tuple[str, int], ...], Meta(max_length=10 * STATE_CONTACTS)]
    records: Annotated[tuple[bytes, ...], Meta(max_length=10 * STATE_RECORDS)]


class Dht:
    """One node's part in the network. All methods belong to the loop that called `start`."""

    def __init__(
        self,
        identity: SigningKey,
        network: str,
        record: Callable[[], bytes],
        *,
        clock: Clock | None = None,
        settings: DhtSettings | None = None,
        related: Callable[[NodeId], bool] = lambda _: False,
        endpoint: Endpoint = udp_endpoint,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`record` returns our signed address record, freshly issued; `related` says of a node
        whether it is of our group or a friend."""
        if not 0 < len(network.encode()) <= wire.MAX_NETWORK:
            raise UsageError(f"A network's name has 1 to {wire.MAX_NETWORK} bytes.")
        self.node_id = node_id_of(PublicKey(bytes(identity.verify_key)))
        self._identity = identity
        self._network = network
        self._record = record
        self._clock = clock or SystemClock()
        self._settings = settings or DhtSettings()
        self._related = related
        self._random = random
        self._records = RecordShelf(network, related)
        self._claims = ProviderShelf()
        self._server = DhtServer(
            self.node_id,
            self._create_protocol,
            ksize=self._settings.k,
            alpha=self._settings.alpha,
            subnet_limit=self._settings.subnet_limit,
            endpoint=endpoint,
        )
        self._record_ms = 0
        self._faults = 0
        self._told = 0
        self._ways_in: tuple[Address, ...] = ()
        self._names: tuple[tuple[str, int], ...] = ()
        self._group: asyncio.TaskGroup | None = None
        self._runner: asyncio.Task[None] | None = None
        self._joined = asyncio.Event()

    # -- life ---------------------------------------------------------------------------------

    async def start(
        self,
        host: str,
        port: int,
        bootstrap: Sequence[tuple[str, int]] = (),
        saved: bytes | None = None,
    ) -> int:
        """Listen, and join the network in the background; the port (PortInUse when it is taken).

        `bootstrap` comes from our user and may hold host names; they are resolved off the loop.
        """
        self._names = tuple(bootstrap)
        self._load(saved)
        self._store_own_record()
        await self._server.listen(port, host)
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._runner = asyncio.create_task(self._run(opened), name="dht")
        await opened
        return self.port

    @property
    def port(self) -> int:
        return int(self._server.transport.get_extra_info("sockname")[1])

    async def joined(self) -> int:
        """Wait until the first attempt to join is over; the contacts it gave."""
        await self._joined.wait()
        return self.nodes()

    async def close(self) -> None:
        """End all that is under way; requests of others then have no answer. May be repeated."""
        if self._runner is None:
            return
        runner, self._runner = self._runner, None
        self._server.stop()
        self._joined.set()
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)
        await self._server.protocol.closed

    def nodes(self) -> int:
        """Contacts in the routing table."""
        return len(self._server.protocol.router) if self._server.protocol else 0

    def state(self) -> bytes:
        """What makes the next start quick; keep it, and hand it to `start`."""
        if self._server.protocol is not None:
            self._remember()
        records = tuple(self._records.newest(STATE_RECORDS))
        return msgspec.msgpack.encode(_State(STATE_VERSION, self._ways_in, records))

    # -- what it is for -----------------------------------------------------------------------

    async def announce(self, tags: Sequence[Tag], until_ms: int) -> Announced:
        """Tell the network that we provide these tags, until then or for 24 h, whichever is less.

        One crawl a region, up to 48 tags a datagram, to every node that is among the k nearest to
        one of them.
        """
        await self._joined.wait()
        protocol = self._protocol()
        before = protocol.sent
        now_ms = self._clock_ms()
        expires_ms = min(until_ms, now_ms + LIFETIME_MS)
        if expires_ms <= now_ms:
            return Announced(0, 0, 0)
        self._store_own_record()
        listeners: set[bytes] = set()
        size = wire.claim_capacity(self._network)

        async def region(members: list[bytes], nodes: list[Node]) -> None:
            plan: dict[bytes, tuple[Node, list[Claim]]] = {n.id: (n, []) for n in nodes}
            for at in range(0, len(members), size):
                keys = members[at : at + size]
                claim = make_claim(self._identity, self._network, keys, now_ms, expires_ms)
                self._claims.add(claim, subnet=None, related=True)
                for node_id in self._storers(keys, nodes):
                    plan[node_id][1].append(claim)
            async with asyncio.TaskGroup() as group:
                for node, claims in plan.values():
                    group.create_task(self._tell(node, claims, listeners))

        lookups = await self._server.each_region(tags, region)
        return Announced(len(listeners), lookups, protocol.sent - before)

    async def providers(self, tags: Sequence[Tag]) -> dict[Tag, list[PeerRecord]]:
        """Who provides each tag, at most 64, ourselves left out; related nodes come first.

        A provider whose address nobody can tell is left out. That a node provides is its own
        signed word, not a proof that it does.
        """
        await self._joined.wait()
        self._protocol()
        return await Search(self._server, self._related).providers(tags)

    async def find(self, node_id: NodeId) -> PeerRecord | None:
        """The newest address record of a node that the network knows; None without any."""
        await self._joined.wait()
        self._protocol()
        if node_id != self.node_id:
            nodes = await self._server.nearest(Node(node_id))
            async with asyncio.TaskGroup() as group:
                for node in nodes[: self._settings.k]:
                    group.create_task(fetch_records(self._server.protocol, node, [node_id]))
        return self._records.get(node_id, self._clock_ms())

    async def refresh_record(self) -> int:
        """Tell the nodes nearest to us where we are now; how many of them keep it."""
        await self._joined.wait()
        self._protocol()
        raw = self._store_own_record()
        nodes = await self._server.nearest(self._server.node)
        async with asyncio.TaskGroup() as group:
            told = [
                group.create_task(self._server.protocol.ask(n, wire.PutRecord(raw)))
                for n in nodes[: self._settings.k]
            ]
        return sum(isinstance(t.result(), wire.Kept) for t in told)

    # -- announcing ---------------------------------------------------------------------------

    def _storers(self, keys: Sequence[bytes], nodes: Sequence[Node]) -> set[bytes]:
        k = self._settings.k
        if len(nodes) <= k:
            return {n.id for n in nodes}
        storers: set[bytes] = set()
        for key in keys:
            target = int.from_bytes(key, "big")
            near = sorted(nodes, key=lambda n: n.long_id ^ target)
            storers.update(n.id for n in near[:k])
        return storers

    async def _tell(self, node: Node, claims: Iterable[Claim], listeners: set[bytes]) -> None:
        """One after the other: that is the pace of the path. A node that fails is left alone."""
        for claim in claims:
            body = wire.AddProviders(
                claim.issued_ms,
                claim.expires_ms,
                b"".join(claim.keys),
                claim.signature,
                self._record_ms,
            )
            added = await self._server.protocol.ask(node, body)
            if not isinstance(added, wire.Added):
                return
            listeners.add(node.id)
            if added.wants_record:
                raw = self._records.raw(self.node_id, self._clock_ms())
                if raw is not None:
                    await self._server.protocol.ask(node, wire.PutRecord(raw))

    # -- within -------------------------------------------------------------------------------

    async def _run(self, opened: asyncio.Future[None]) -> None:
        async with asyncio.TaskGroup() as group:
            self._group = group
            opened.set_result(None)
            try:
                await self._live()
            finally:
                self._group = None

    async def _live(self) -> None:
        try:
            await self._join()
        finally:
            self._joined.set()
        due = dict.fromkeys((self._expire, self._upkeep), self._clock.monotonic())
        every = {self._expire: EXPIRE_S, self._upkeep: UPKEEP_S, self._publish: REFRESH_S}
        due[self._publish] = self._clock.monotonic()
        alone_s = ALONE_S / 2
        while True:
            try:
                if self.nodes() == 0:
                    await self._join()
                for work, when in list(due.items()):
                    if self._clock.monotonic() >= when:
                        due[work] = self._clock.monotonic() + every[work]
                        await work()
                if min(self.nodes(), self._settings.k) > 2 * self._told:
                    # Hardly anybody was there to hear it when we told where we are.
                    due[self._publish] = self._clock.monotonic()
                self._remember()
            except Exception:
                log.exception("The upkeep of the DHT failed; it goes on in an hour.")
                await asyncio.sleep(UPKEEP_S)
            # Its datagrams may have been lost, or the network was not up yet when the node started.
            alone_s = ALONE_S if self.nodes() else min(2 * alone_s, TICK_S)
            await asyncio.sleep(TICK_S if self.nodes() else alone_s)

    async def _join(self) -> None:
        found = [a for host, port in self._names for a in await _resolve_name(host, port)]
        known = dict.fromkeys((*found, *self._ways_in))
        if known:
            await self._server.bootstrap(list(known))
        self._remember()

    def _remember(self) -> None:
        """Keep ways in, so that a table emptied by a day without network is filled again."""
        near = self._server.protocol.router.find_neighbors(self._server.node, STATE_CONTACTS)
        known = dict.fromkeys((*(Address(n.ip, n.port) for n in near), *self._ways_in))
        self._ways_in = tuple(known)[:STATE_CONTACTS]

    async def _expire(self) -> None:
        now_ms = self._clock_ms()
        self._claims.expire(now_ms)
        self._records.expire(now_ms)

    async def _upkeep(self) -> None:
        await self._server.upkeep()

    async def _publish(self) -> None:
        self._told = await self.refresh_record()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._group is None:
            work.close()
        else:
            self._group.create_task(self._guard(work))

    async def _guard(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:
            # A fault of ours that a stranger can trigger must not fill the log nor end the DHT.
            level = logging.DEBUG if self._faults else logging.ERROR
            self._faults += 1
            log.log(level, "Judging a contact of the DHT failed.", exc_info=True)

    def _protocol(self) -> SignedProtocol:
        if self._runner is None:
            raise Unavailable("The DHT is closed.")
        protocol: SignedProtocol = self._server.protocol
        return protocol

    def _store_own_record(self) -> bytes:
        raw = self._record()
        record = self._records.add(raw, self._clock_ms())
        self._record_ms = record.issued_ms
        return self._records.raw(self.node_id, self._clock_ms()) or raw

    def _load(self, saved: bytes | None) -> None:
        if saved is None:
            return
        try:
            state = msgspec.msgpack.decode(saved, type=_State)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            log.warning("The saved contacts of the DHT cannot be read; starting without them.")
            return
        if state.version != STATE_VERSION:
            return
        contacts = (numeric(host, port) for host, port in state.contacts)
        self._ways_in = tuple(a for a in contacts if a is not None)
        for raw in state.records:
            self._records.try_add(raw, self._clock_ms())

    def _clock_ms(self) -> int:
        return int(self._clock.wall() * 1000)

    def _create_protocol(self, node: Node) -> SignedProtocol:
        s = self._settings
        return SignedProtocol(
            node,
            s.k,
            key=self._identity,
            network=self._network,
            clock=self._clock,
            spawn=self._spawn,
            random=self._random,
            related=self._related,
            records=self._records,
            claims=self._claims,
            incoming=None if s.packets_in_s is None else Budgets(s.packets_in_s, s.burst_in),
            unproven=None if s.unproven_in_s is None else Budgets(s.unproven_in_s, s.unproven_in_s),
            outgoing=None if s.packets_out_s is None else Budgets(s.packets_out_s, s.burst_out),
            subnet_limit=s.subnet_limit,
        )


async def _resolve_name(host: str, port: int) -> list[Address]:
    """What a host name of our user's stands for; nothing when it stands for nothing."""
    address = numeric(host, port)
    if address is not None:
        return [address]
    try:
        answers = await asyncio.get_running_loop().getaddrinfo(host, port)
    except (OSError, UnicodeError) as exc:
        log.warning("The bootstrap host %s cannot be resolved: %s", host, exc)
        return []
    found = (numeric(str(a[4][0]), port) for a in answers)
    return list(dict.fromkeys(a for a in found if a is not None))
