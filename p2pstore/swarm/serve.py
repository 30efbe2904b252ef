"""What this node answers: one handler for all links, one look at the table of roles per question.

The transports call `serve` for each request, in a task of theirs that ends with the link. What is
asked of bundles is answered from the shelf, whether we opened them or hold them for somebody. A
bundle that is not here is wire.Unknown; one that we are removing is Busy; another live map than
the one named is STALE. Reading and hashing happen in threads, a few proofs at a time: a challenge
of 40 bytes makes us read 16 MiB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final, Protocol

from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.content import decode_live_map, signed_list, verify_live_map
from p2pstore.errors import NotAllowed, RemoteProtocolError
from p2pstore.ids import BundleId, GroupId, NodeId, PublicKey, Tag, node_id_of, short
from p2pstore.net import Link, Request
from p2pstore.policy import Ask
from p2pstore.store import BundleMissing, StaleMap
from p2pstore.swarm.access import Gate
from p2pstore.swarm.forward import Forwarder
from p2pstore.swarm.giving import Giver, Served, nobody_hears
from p2pstore.swarm.shelf import Place, Shelf
from p2pstore.swarm.taking import Admission, Taker
from p2pstore.threads import in_thread
from p2pstore.wire import (
    MAX_PEERS,
    BlockList,
    Challenge,
    Get,
    GetHeads,
    GetList,
    GetPeers,
    Have,
    HaveReply,
    Heads,
    HeadsKept,
    Holding,
    Holdings,
    HoldingsPage,
    Join,
    LiveMapUpdate,
    Lock,
    Locked,
    Message,
    Move,
    Ok,
    Peers,
    Ping,
    Pong,
    Proof,
    Put,
    PutHeads,
    Release,
    Renew,
    Renewed,
    Stale,
    Unknown,
    Unlock,
)

PROOFS_AT_ONCE: Final = 2  # more only make the disk seek


Answer = Callable[[Request, Any], Awaitable[None]]


class Groups(Protocol):
    """Who keeps group states and heads."""

    async def heads(self, group_id: GroupId, link: Link) -> Heads: ...
    async def put_heads(self, link: Link, message: PutHeads) -> HeadsKept: ...


def no_grants(_: BundleId) -> Sequence[bytes]:
    return ()


def tell_nobody(_: BundleId, __: Tag) -> None:
    return None


async def keep_all(_: NodeId, __: Move) -> None:
    raise NotAllowed("This node places nothing elsewhere.")


class Server:
    def __init__(
        self,
        identity: SigningKey,
        shelf: Shelf,
        gate: Gate,
        forwarder: Forwarder,
        *,
        pool: Executor,
        clock: Clock,
        groups: Groups,
        join: Callable[[Request], Awaitable[None]],
        admission: Admission,
        peers: Callable[[], Sequence[bytes]],
        grants: Callable[[BundleId], Sequence[bytes]] = no_grants,
        served: Served = nobody_hears,
        kept: Callable[[BundleId, Tag], None] = tell_nobody,
        moved: Callable[[NodeId, Move], Awaitable[None]] = keep_all,
        also: Mapping[type[Message], Answer] | None = None,
    ) -> None:
        """`join` answers JOIN, both steps; `peers` returns signed records, the liveliest first;
        `moved` notes durably what a holder asked to be rid of, or raises why it cannot be done;
        `also` has what is answered elsewhere, because it is not about bundles (see `relay`)."""
        self._node_id: NodeId = node_id_of(PublicKey(bytes(identity.verify_key)))
        self._shelf = shelf
        self._gate = gate
        self._pool = pool
        self._clock = clock
        self._groups = groups
        self._join = join
        self._peers = peers
        self._giver = Giver(
            shelf, gate, forwarder, pool=pool, clock=clock, grants=grants, served=served
        )
        self._taker = Taker(
            identity, shelf, gate, pool=pool, clock=clock, admission=admission, kept=kept
        )
        self._moved = moved
        self._proofs = asyncio.Semaphore(PROOFS_AT_ONCE)
        self._answers: dict[type[Message], Answer] = {
            Ping: self._ping,
            GetPeers: self._get_peers,
            Join: self._take_join,
            GetHeads: self._get_heads,
            PutHeads: self._put_heads,
            Get: self._giver.give,
            Have: self._have,
            Put: self._taker.take,
            Challenge: self._challenge,
            Lock: self._lock,
            Unlock: self._unlock,
            Renew: self._renew,
            Release: self._release,
            LiveMapUpdate: self._live_map_update,
            Holdings: self._holdings,
            GetList: self._get_list,
            Move: self._move,
            **(also or {}),
        }

    async def serve(self, request: Request) -> None:
        """The handler for net's transports. What it raises is answered as FAIL."""
        answer = self._answers.get(type(request.message))
        if answer is None:
            raise RemoteProtocolError(f"{type(request.message).__name__} is no request.")
        try:
            await answer(request, request.message)
        except StaleMap as exc:
            await request.reply(Stale(exc.seq))
        except BundleMissing as exc:
            raise Unknown(str(exc)) from exc

    # -- nodes and groups --------------------------------------------------------------------

    async def _ping(self, request: Request, message: Ping) -> None:
        await request.reply(Pong())

    async def _get_peers(self, request: Request, message: GetPeers) -> None:
        self._gate.check(request.link, Ask.PEERS)
        await request.reply(Peers(tuple(self._peers())[:MAX_PEERS]))

    async def _take_join(self, request: Request, message: Join) -> None:
        self._gate.check(request.link, Ask.JOIN)
        await self._join(request)

    async def _get_heads(self, request: Request, message: GetHeads) -> None:
        self._admit_heads(request.link, message.group)
        await request.reply(await self._groups.heads(message.group, request.link))

    async def _put_heads(self, request: Request, message: PutHeads) -> None:
        self._admit_heads(request.link, message.group)
        await request.reply(await self._groups.put_heads(request.link, message))

    def _admit_heads(self, link: Link, group: GroupId) -> None:
        """Of its own group; and of ours, which a friend keeps for us, brings back and obeys."""
        self._gate.check(link, Ask.HEADS)
        own = self._gate.group_of(link)
        if own is None or group not in (own, self._gate.group_id):
            raise NotAllowed("That belongs to another group.")

    # -- bundles -----------------------------------------------------------------------------

    async def _have(self, request: Request, message: Have) -> None:
        self._gate.check(request.link, Ask.HAVE)
        group = self._gate.group_of(request.link)
        await request.reply(await in_thread(self._pool, self._look, message, group))

    def _look(self, message: Have, group: GroupId | None) -> HaveReply:
        shelf = self._shelf

        def seq_of(place: Place | None) -> int | None:
            if place is None:
                return None
            own = self._gate.group_id if place.is_own else shelf.held.group_of(place.bundle_id)
            return shelf.live_map(place).seq if own == group else None

        def of_id(bundle_id: BundleId) -> int | None:
            places = shelf.find(bundle_id)
            return seq_of(places[0]) if places else None

        def careful(look: Callable[[], int | None]) -> int | None:
            try:
                return look()
            except (BundleMissing, Unknown):
                return None

        tags = tuple(
            careful(lambda tag=tag: seq_of(shelf.find_tag(tag))) is not None  # type: ignore[misc]
            for tag in message.tags
        )
        bundles = tuple(
            careful(lambda bundle=bundle: of_id(bundle))  # type: ignore[misc]
            for bundle in message.bundles
        )
        return HaveReply(tags, bundles)

    async def _challenge(self, request: Request, message: Challenge) -> None:
        place = await self._admitted(request.link, Ask.CHALLENGE, message.bundle)
        async with self._proofs:
            proof = await in_thread(
                self._pool,
                self._shelf.prove,
                place,
                message.seq,
                message.nonce,
                verifier=request.link.node_id,
                holder=self._node_id,
            )
        await request.reply(Proof(proof))

    async def _lock(self, request: Request, message: Lock) -> None:
        place = await self._admitted(request.link, Ask.LOCK, message.bundle)
        node = request.link.node_id
        seconds = await in_thread(
            self._pool, self._promise, place, node, float(message.lease_s), message.seq
        )
        until_ms = int((self._clock.wall() + seconds) * 1000)
        await request.reply(Locked(int(seconds), until_ms))

    def _promise(self, place: Place, node: NodeId, seconds: float, seq: int) -> float:
        if not place.is_own:
            return self._shelf.held.lock(place.bundle_id, node, seconds, seq=seq)
        self._shelf.refuse_stale(place, seq)
        return self._shelf.promises.lock(place.bundle_id, node, seconds)

    async def _unlock(self, request: Request, message: Unlock) -> None:
        place = await self._admitted(request.link, Ask.LOCK, message.bundle)
        keeper = self._shelf.promises if place.is_own else self._shelf.held
        await in_thread(self._pool, keeper.unlock, message.bundle, request.link.node_id)
        await request.reply(Ok())

    async def _renew(self, request: Request, message: Renew) -> None:
        self._gate.check(request.link, Ask.RENEW)
        group = self._gate.group_of(request.link)
        seqs = await in_thread(self._pool, self._make_longer, message, group)
        await request.reply(Renewed(message.lease_s, tuple(seqs)))

    def _make_longer(self, message: Renew, group: GroupId | None) -> list[int | None]:
        """None for what belongs to another group, as for what is not here: it tells nothing.

        What this node opened itself is None too: it has no lease, and may be evicted at any time.
        """
        if group is None:
            return [None] * len(message.bundles)
        until_ms = int((self._clock.wall() + message.lease_s) * 1000)
        return self._shelf.held.renew(message.bundles, until_ms, group)

    async def _release(self, request: Request, message: Release) -> None:
        place = await self._admitted(request.link, Ask.RELEASE, message.bundle)
        self._refuse_own(place)
        index = await in_thread(self._pool, self._shelf.index, place)
        self._gate.admit_owner(request.link, Ask.RELEASE, index.header)
        await in_thread(self._pool, self._shelf.held.release, message.bundle)
        await request.reply(Ok())

    async def _live_map_update(self, request: Request, message: LiveMapUpdate) -> None:
        await in_thread(self._pool, self._take_map, request.link, message.live_map)
        await request.reply(Ok())

    def _take_map(self, link: Link, raw: bytes) -> None:
        """Runs in a thread. The same map again is no news, and answered like one."""
        signed = decode_live_map(raw)
        place = self._place(link, Ask.RELEASE, verify_live_map(signed).bundle_id)
        self._refuse_own(place)
        self._gate.admit_map(self._shelf.index(place).header, signed)
        if self._shelf.signed_live_map(place) != raw:
            self._shelf.held.accept_live_map(place.bundle_id, signed)

    async def _holdings(self, request: Request, message: Holdings) -> None:
        self._gate.admit(request.link, Ask.HOLDINGS, message.group)
        held, more = await in_thread(
            self._pool, self._shelf.held.list, message.group, message.after, message.limit
        )
        items = tuple(
            Holding(
                bundle=one.bundle_id,
                tag=one.tag,
                kind=one.kind,
                opener=PublicKey(one.opener),
                seq=one.seq,
                bytes=one.live_bytes,
                lease_until_ms=one.lease_until_ms,
            )
            for one in held
        )
        await request.reply(HoldingsPage(items, more))

    async def _move(self, request: Request, message: Move) -> None:
        """It concerns nothing but the asker's own copies of our bundles."""
        self._gate.check(request.link, Ask.MOVE)
        if self._gate.group_of(request.link) is None:
            raise NotAllowed("Only a holder of our bundles may ask for that.")
        await self._moved(request.link.node_id, message)
        await request.reply(Ok())

    async def _get_list(self, request: Request, message: GetList) -> None:
        # What was merged is answered with the list that says so.
        there = await in_thread(self._pool, self._shelf.resolve, message.bundle)
        place = await self._admitted(request.link, Ask.LIST, there)
        answer, listed = await in_thread(self._pool, self._list, place)
        await request.reply(answer, listed)

    def _list(self, place: Place) -> tuple[BlockList, bytes]:
        """Runs in a thread."""
        answer = BlockList(self._shelf.signed_live_map(place))
        return answer, signed_list(self._shelf.index(place))

    # -- what all of them need ---------------------------------------------------------------

    async def _admitted(self, link: Link, ask: Ask, bundle_id: BundleId) -> Place:
        self._gate.check(link, ask)
        return await in_thread(self._pool, self._place, link, ask, bundle_id)

    def _place(self, link: Link, ask: Ask, bundle_id: BundleId) -> Place:
        """Where the bundle lies; NotAllowed when it is none of the asker's. Runs in a thread."""
        place = self._shelf.place(bundle_id)
        group = self._gate.group_id if place.is_own else self._shelf.held.group_of(bundle_id)
        self._gate.admit(link, ask, group)
        return place

    def _refuse_own(self, place: Place) -> None:
        if place.is_own:
            raise NotAllowed(f"Bundle {short(place.bundle_id)} was opened by this node itself.")
