"""The RPCs over UDP: kademlia's protocol with signed datagrams under it.

Of the package this keeps the shape (rpc_* answers, call_* asks, welcome_if_new and
handle_call_response judge contacts); everything that touches bytes is ours, see `datagram`.
A datagram from outside costs at most one signature check and one reply, never raises, never logs
above debug, and is counted under the reason for which it was dropped.

Order of the checks, cheapest first: size, form, network, asked for (replies) or budget of the
address (requests), clock, signature. A reply must come from the address that was asked and, where
we know whom we asked, from that id.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol, cast

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol
from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.dht import datagram as wire
from p2pstore.dht.address import (
    Address,
    household,
    may_tell,
    numeric,
    pack_contacts,
    subnet,
    unpack_contacts,
)
from p2pstore.dht.claim import (
    Claim,
    check_signature,
    check_times,
    root_of,
    split_keys,
)
from p2pstore.dht.gate import Budgets, Cookies
from p2pstore.dht.proofs import prove_claim
from p2pstore.dht.routing import Table
from p2pstore.dht.shelf import ProviderShelf, RecordShelf
from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import NodeId, PublicKey, node_id_of

log = logging.getLogger(__name__)

TRIES_S = (0.4, 0.8, 1.6)  # how long each of three sendings waits for its answer
SILENT_S = 5.0  # after all of these went unanswered; a start alone makes several look-ups
MAX_SILENT = 1024  # the oldest are forgotten: a question more
CLOCK_S = 3600  # datagrams further from our clock are old recordings, or from a broken clock
MAX_JARS = 4096  # cookies of others that we remember
MAX_WELCOMES = 64  # pings under way to newcomers; more are strangers in a hurry
MAX_PARTS = 16  # of a reply that lists some
MAX_CHALLENGES = 2  # one for the cookie we lack, one for a cookie that has just ended


class Reply(NamedTuple):
    sender: NodeId
    body: wire.Reply


class Sender(NamedTuple):
    """Who made a request: the key is proven, the address perhaps not."""

    public_key: PublicKey
    node: Node
    address: Address


class DatagramOut(Protocol):
    def sendto(self, raw: bytes, address: Any) -> None: ...
    def get_extra_info(self, name: str, default: Any = None) -> Any: ...
    def close(self) -> None: ...


class _Call:
    """A request under way."""

    __slots__ = ("address", "body", "challenges", "expect", "future")

    def __init__(
        self,
        address: Address,
        body: wire.Request,
        expect: NodeId | None,
        future: asyncio.Future[Reply | None],
    ) -> None:
        self.address = address
        self.body = body
        self.expect = expect
        self.future = future
        self.challenges = 0


class SignedTransport:
    """Signs and sizes everything that leaves, in one place; knows the family of the socket."""

    def __init__(self, transport: DatagramOut) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        self._mapped = sock is not None and sock.family.name == "AF_INET6"
        self.closed = False

    def send(self, raw: bytes, address: Address) -> None:
        host = address.host
        if self._mapped and ":" not in host:
            host = f"::ffff:{host}"
        elif not self._mapped and ":" in host:
            return  # no way there from an IPv4 socket; the request times out
        if not self.closed:
            try:
                self._transport.sendto(raw, (host, address.port))
            except OSError as exc:
                # A full buffer or a dead route is a lost datagram, as UDP promises.
                log.debug("Could not send to %s: %s", host, exc)

    def close(self) -> None:
        self.closed = True
        self._transport.close()


class SignedProtocol(KademliaProtocol):  # type: ignore[misc]  # the package has no types
    def __init__(
        self,
        source: Node,
        ksize: int,
        *,
        key: SigningKey,
        network: str,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
        random: Callable[[int], bytes],
        related: Callable[[NodeId], bool],
        records: RecordShelf,
        claims: ProviderShelf,
        incoming: Budgets | None,
        unproven: Budgets | None,
        outgoing: Budgets | None,
        subnet_limit: int | None,
    ) -> None:
        super().__init__(source, None, ksize)
        self.key = key
        self.network = network
        self.clock = clock
        self.records = records
        self.claims = claims
        self.sent = 0
        self.received = 0
        self.dropped: Counter[str] = Counter()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.router = Table(
            source, ksize, subnet_limit=subnet_limit, clock=clock.monotonic, probe=self._probe
        )
        self._public = PublicKey(bytes(key.verify_key))
        self._spawn = spawn
        self.random = random
        self._related = related
        self._incoming = incoming
        self._unproven = unproven
        self._outgoing = outgoing
        self._cookies = Cookies(random, clock.monotonic())
        self._jar: OrderedDict[Address, bytes] = OrderedDict()
        self._calls: dict[bytes, _Call] = {}
        # By id and address: who names an honest node's address under another id silences nobody.
        self._silent: OrderedDict[tuple[bytes, Address], float] = OrderedDict()
        self._welcomes: set[tuple[bytes, Address]] = set()
        self._handlers: dict[type, Callable[[Sender, Any], wire.Reply]] = {
            wire.Ping: self._answer_ping,
            wire.FindNode: self._answer_find_node,
            wire.AddProviders: self._answer_add_providers,
            wire.GetProviders: self._answer_get_providers,
            wire.PutRecord: self._answer_put_record,
            wire.GetRecords: self._answer_get_records,
        }

    def __getattr__(self, name: str) -> Any:
        # The stock one makes an RPC to somebody of every misspelt attribute.
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # -- the socket ---------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self.transport = SignedTransport(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)

    def error_received(self, exc: Exception) -> None:
        self.dropped["icmp"] += 1  # says nothing of who; the request's own timeout judges

    def datagram_received(self, raw: bytes, addr: Any) -> None:
        self.received += 1
        try:
            self._take(raw, addr)
        except (FormatError, IntegrityError) as exc:
            self.dropped[str(exc)] += 1

    def _take(self, raw: bytes, addr: Any) -> None:
        address = numeric(addr[0], addr[1])
        if address is None:
            raise FormatError("address")
        message = wire.decode(raw)
        if message.network != self.network:
            raise IntegrityError("network")
        if message.public_key == self._public:
            raise IntegrityError("own key")
        handler = self._handlers.get(type(message.body))
        if handler is None:
            self._take_reply(raw, message, address)
        else:
            self._take_request(raw, message, address, handler)

    def _verify(self, raw: bytes, message: wire.Datagram) -> NodeId:
        if abs(message.sent_s - self.clock.wall()) > CLOCK_S:
            raise IntegrityError("clock")
        wire.verify(raw, message.public_key)
        return node_id_of(PublicKey(message.public_key))

    # -- answering ----------------------------------------------------------------------------

    def _take_request(
        self,
        raw: bytes,
        message: wire.Datagram,
        address: Address,
        handler: Callable[[Sender, Any], wire.Reply],
    ) -> None:
        now = self.clock.monotonic()
        proven = self._cookies.proves(message.cookie, address, now)
        # Budgets of their own for the proven: else who forges an address silences its owner.
        payer = household(address.host) + bytes((proven,))
        if self._incoming is not None and not self._incoming.take(payer, now):
            raise IntegrityError("rate")
        if not proven and self._unproven is not None and not self._unproven.take(b"", now):
            raise IntegrityError("rate of all")
        node = Node(self._verify(raw, message), address.host, address.port)
        sender = Sender(PublicKey(message.public_key), node, address)
        stores = isinstance(message.body, wire.AddProviders | wire.PutRecord)
        cookie = self._cookies.issue(address, now)
        reply: wire.Reply = wire.Challenge()
        if proven or not stores:
            reply = handler(sender, message.body)
        answer = self._seal(reply, message.call, cookie)
        if not proven and len(answer) > len(raw):
            # The address may be forged: not one byte more than was spent to get it.
            answer = self._seal(wire.Challenge(), message.call, cookie)
            if len(answer) > len(raw):
                raise IntegrityError("short")
        self._send(answer, address)
        if proven:
            self.welcome_if_new(node)

    def _answer_ping(self, sender: Sender, body: wire.Ping) -> wire.Reply:
        return wire.Pong()

    def _answer_find_node(self, sender: Sender, body: wire.FindNode) -> wire.Reply:
        near = self.router.find_neighbors(Node(body.target), wire.MAX_K, exclude=sender.node)
        told = ((n.id, Address(n.ip, n.port)) for n in near)
        # Who asks from outside can do nothing with addresses of our home, and learns none.
        return wire.Contacts(pack_contacts(c for c in told if may_tell(sender.address, c[1])))

    def _answer_add_providers(self, sender: Sender, body: wire.AddProviders) -> wire.Reply:
        now_ms = self.now_ms()
        keys = split_keys(body.keys)
        claim = Claim(sender.public_key, body.issued_ms, body.expires_ms, keys, body.signature)
        check_times(claim.issued_ms, claim.expires_ms, now_ms)
        check_signature(self.network, claim, len(keys), root_of(keys))
        node_id = NodeId(sender.node.id)
        accepted = self.claims.add(
            claim, subnet=subnet(sender.address.host), related=self._related(node_id)
        )
        record = self.records.get(node_id, now_ms)
        known_ms = 0 if record is None else record.issued_ms
        return wire.Added(accepted, accepted > 0 and known_ms < body.record_ms)

    def _answer_get_providers(self, sender: Sender, body: wire.GetProviders) -> wire.Reply:
        keys = split_keys(body.keys)
        claims = self.claims.under(keys, self.now_ms())
        at = min(body.start, len(claims))
        proven: list[wire.ProvenClaim] = []
        room = wire.ROOM
        while at < len(claims) and len(proven) < MAX_PARTS:
            part = prove_claim(claims[at], keys)
            room -= len(wire.encode_part(part))
            if room < 0:
                break
            proven.append(part)
            at += 1
        return wire.Providers(tuple(proven), at if proven and at < len(claims) else 0)

    def _answer_put_record(self, sender: Sender, body: wire.PutRecord) -> wire.Reply:
        # Only its signer brings a record: a stranger cannot fill the shelf with those of others.
        record = self.records.add(body.record, self.now_ms(), signer=sender.public_key)
        return wire.Kept(record.public_key == sender.public_key)

    def _answer_get_records(self, sender: Sender, body: wire.GetRecords) -> wire.Reply:
        now_ms = self.now_ms()
        room = wire.ROOM
        found: list[bytes] = []
        for node_id in split_keys(body.ids):
            raw = self.records.raw(NodeId(node_id), now_ms)
            if raw is not None and len(raw) + 3 <= room and len(found) < MAX_PARTS:
                room -= len(raw) + 3
                found.append(raw)
        return wire.Records(tuple(found))

    # -- asking -------------------------------------------------------------------------------

    async def request(
        self, address: Address, body: wire.Request, expect: NodeId | None = None
    ) -> Reply | None:
        """Ask up to three times; None without an answer, or when somebody else answered."""
        await self._pace(address)
        if self.transport.closed:
            return None
        call_id = self.random(8)
        call = _Call(address, body, expect, asyncio.get_running_loop().create_future())
        self._calls[call_id] = call
        try:
            for patience_s in TRIES_S:
                self._send_call(call_id, call)
                await asyncio.wait((call.future,), timeout=patience_s)
                if call.future.done():
                    return call.future.result()
            return None
        finally:
            del self._calls[call_id]

    def give_up(self) -> None:
        """Every request under way gets no answer, now."""
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_result(None)

    async def ask(self, node: Node, body: wire.Request) -> wire.Reply | None:
        """Ask a contact and judge it by what comes of it."""
        address = Address(node.ip, node.port)
        reply = await self.request(address, body, NodeId(node.id))
        if not self.transport.closed:
            if reply is None:
                self._silent[node.id, address] = self.clock.monotonic() + SILENT_S
                while len(self._silent) > MAX_SILENT:
                    self._silent.popitem(last=False)
            self.handle_call_response((reply is not None, None), node)
        return None if reply is None else reply.body

    def is_silent(self, node: Node) -> bool:
        """Whether it did not answer just now, so that it is not worth waiting for it again."""
        until = self._silent.get((node.id, Address(node.ip, node.port)), 0.0)
        return self.clock.monotonic() < until

    async def call_ping(self, node_to_ask: Node) -> tuple[bool, None]:
        return await self.ask(node_to_ask, wire.Ping()) is not None, None

    async def call_find_node(
        self, node_to_ask: Node, node_to_find: Node
    ) -> tuple[bool, list[Node]]:
        body = await self.ask(node_to_ask, wire.FindNode(node_to_find.id))
        if not isinstance(body, wire.Contacts):
            return False, []
        try:
            told = unpack_contacts(body.packed, wire.MAX_K)
        except FormatError as exc:
            self.dropped[str(exc)] += 1
            return False, []
        teller = Address(node_to_ask.ip, node_to_ask.port)
        return True, [
            Node(node_id, address.host, address.port)
            for node_id, address in told
            if node_id != self.source_node.id and may_tell(teller, address)
        ]

    def handle_call_response(self, result: tuple[bool, Any], node: Node) -> tuple[bool, Any]:
        if not result[0]:
            self.router.failed(node)
            return result
        known = self.router.get(node.id)
        if known is None:
            self.router.add_contact(node)  # it answered us there: that was the ping back
        elif known.same_home_as(node):
            self.router.alive(node)
        else:
            self._welcome(node)
        return result

    def welcome_if_new(self, node: Node) -> None:
        """Ping back whoever asks us and is new, or new at this address, before trusting it."""
        known = self.router.get(node.id)
        if known is None or not known.same_home_as(node):
            self._welcome(node)

    def _welcome(self, node: Node) -> None:
        mark = (node.id, Address(node.ip, node.port))
        if mark not in self._welcomes and len(self._welcomes) < MAX_WELCOMES:
            self._welcomes.add(mark)
            self._spawn(self._meet(node, mark))

    async def _meet(self, node: Node, mark: tuple[bytes, Address]) -> None:
        try:
            known = self.router.get(node.id)
            if known is not None and not known.same_home_as(node):
                # An address follows its node only once nobody answers at the old one: else
                # whoever passes our pings on to a node could take its place.
                old = Address(known.ip, known.port)
                if await self.request(old, wire.Ping(), NodeId(node.id)) is not None:
                    return
                if await self.request(mark[1], wire.Ping(), NodeId(node.id)) is not None:
                    self.router.remove_contact(known)
                    self.router.add_contact(node)
            elif await self.request(mark[1], wire.Ping(), NodeId(node.id)) is not None:
                self.router.add_contact(node)
        finally:
            self._welcomes.discard(mark)

    def _probe(self, node: Node) -> None:
        mark = (node.id, Address(node.ip, node.port))
        if mark not in self._welcomes and len(self._welcomes) < MAX_WELCOMES:
            self._welcomes.add(mark)
            self._spawn(self._doubt(node, mark))

    async def _doubt(self, node: Node, mark: tuple[bytes, Address]) -> None:
        try:
            await self.call_ping(node)
        finally:
            self._welcomes.discard(mark)

    def now_ms(self) -> int:
        return int(self.clock.wall() * 1000)

    def _take_reply(self, raw: bytes, message: wire.Datagram, address: Address) -> None:
        call = self._calls.get(message.call)
        if call is None or call.address != address or call.future.done():
            raise IntegrityError("unasked")
        sender = self._verify(raw, message)
        if message.cookie:
            self._jar[address] = message.cookie
            self._jar.move_to_end(address)
            if len(self._jar) > MAX_JARS:
                self._jar.popitem(last=False)
        body = cast(wire.Reply, message.body)
        if call.expect is not None and sender != call.expect:
            call.future.set_result(None)  # somebody else lives there now
        elif isinstance(body, wire.Challenge):
            call.challenges += 1
            if call.challenges <= MAX_CHALLENGES:
                self._send_call(message.call, call)
        elif isinstance(body, wire.REPLY_TO[type(call.body)]):
            call.future.set_result(Reply(sender, body))
        else:
            raise IntegrityError("other reply")

    def _send_call(self, call_id: bytes, call: _Call) -> None:
        cookie = self._jar.get(call.address, b"")
        self._send(self._seal(call.body, call_id, cookie, wire.MIN_REQUEST), call.address)

    def _seal(self, body: wire.Body, call_id: bytes, cookie: bytes, least: int = 0) -> bytes:
        return wire.encode(
            self.key,
            wire.Datagram(
                wire.VERSION,
                self.network,
                self._public,
                int(self.clock.wall()),
                call_id,
                cookie,
                body,
            ),
            least=least,
        )

    def _send(self, raw: bytes, address: Address) -> None:
        self.sent += 1
        self.transport.send(raw, address)

    async def _pace(self, address: Address) -> None:
        """Stay below what the other side takes from one address."""
        if self._outgoing is not None:
            now = self.clock.monotonic()
            wait_s = self._outgoing.wait_s(household(address.host), now)
            if wait_s > 0:
                await asyncio.sleep(wait_s)
