"""Giving bundles to holders, and what an owner asks of them afterwards.

A push sends what the holder still misses, reading its own copy once, from the first live block to
the last: each block is compared with its id before it leaves, and goes into the proof that the
receipt must state. A receipt counts only when it is signed by the key at the other end of the link,
about this very bundle and live map, with our nonce and the right proof. Anything else is
IntegrityError: the holder lies.

`StaleMap` means that the holder has another live map: that is no lie, and no proof. `Unknown` means
that it has the bundle not (any more). Nothing here decides what a failure means for the copy.
"""

from __future__ import annotations

import hmac
import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial
from typing import Final, NamedTuple, TypeVar

from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.content import (
    MAX_BLOCK,
    BundleIndex,
    LiveMap,
    Prover,
    SignedLiveMap,
    decode_live_map,
    decode_signed_list,
    live_map_hash,
    signed_list,
    verify_live_map,
)
from p2pstore.errors import IntegrityError, RemoteProtocolError
from p2pstore.ids import BlockId, BundleId, GroupId, NodeId, PublicKey, Tag, group_id_of, node_id_of
from p2pstore.net import Exchange, Link
from p2pstore.store import StaleMap
from p2pstore.swarm.ahead import ahead
from p2pstore.swarm.getting import Asker, Lanes, Peers, get_blocks
from p2pstore.swarm.shelf import Place, Shelf, live_bytes
from p2pstore.threads import in_thread
from p2pstore.wire import (
    MAX_HOLDINGS,
    MAX_HOPS,
    MAX_WANTED,
    BlockList,
    Challenge,
    GetHeads,
    GetList,
    Have,
    HaveReply,
    Heads,
    HeadsKept,
    Holding,
    Holdings,
    HoldingsPage,
    LiveMapUpdate,
    Lock,
    Locked,
    Message,
    Ok,
    Proof,
    Put,
    PutBlock,
    PutEnd,
    PutHeads,
    PutReady,
    Release,
    Renew,
    Renewed,
    Stale,
    Unknown,
    Unlock,
    verify_receipt,
)
from p2pstore.wire import Receipt as ReceiptMessage

log = logging.getLogger(__name__)

LEASE_S: Final = 180 * 86_400
LOCK_S: Final = 600
PROOF_S: Final = 120.0  # 16 MiB from a slow disk that is busy, behind other challenges
MAX_RENEWED: Final = MAX_WANTED
SAMPLE: Final = 64  # random blocks of an audit by GET

M = TypeVar("M", bound=Message)


class Receipt(NamedTuple):
    """A holder's signed word, verified in every part. `raw` is what the catalog keeps."""

    bundle_id: BundleId
    holder: NodeId
    seq: int
    size: int
    lease_until_ms: int
    raw: bytes


class _Copy(NamedTuple):
    """Our own copy of a bundle, as it is pushed or proved."""

    place: Place
    listed: BundleIndex
    live: LiveMap
    signed_map: bytes


def no_grants(_: BundleId) -> Sequence[bytes]:
    return ()


def _replaces(index: BundleIndex, bundle_id: BundleId) -> bool:
    return any(old.bundle_id == bundle_id for old in index.blocks.replaces)


class Pusher:
    def __init__(
        self,
        identity: SigningKey,
        shelf: Shelf,
        peers: Peers,
        *,
        pool: Executor,
        clock: Clock,
        chain: Callable[[], bytes],
        group: PublicKey,
        grants: Callable[[BundleId], Sequence[bytes]] = no_grants,
        lanes: Lanes | None = None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`group` is our group's public key, `grants` the signed grants of an own bundle."""
        self._node_id = node_id_of(PublicKey(bytes(identity.verify_key)))
        self._shelf = shelf
        self._peers = peers
        self._pool = pool
        self._group_id = group_id_of(group)
        self._grants = grants
        self._lanes = lanes or Lanes()
        self._asker = Asker(identity, chain, clock, random)
        self._random = random

    # -- giving ------------------------------------------------------------------------------

    async def push(
        self, bundle_id: BundleId, tag: Tag, holder: NodeId, *, lease_s: int = LEASE_S
    ) -> Receipt:
        """Have `holder` keep the bundle, or keep it longer: what is there is not sent again.

        Unavailable, NoRoom, Busy, NotAllowed, StaleMap; IntegrityError when the receipt is wrong;
        BundleDamaged when our own copy is.
        """
        link = await self._peers.connect(holder)
        copy = await in_thread(self._pool, self._open, bundle_id)
        size = live_bytes(copy.listed, copy.live)
        grants = tuple(await in_thread(self._pool, self._grants, bundle_id))
        put = Put(bundle_id, tag, copy.signed_map, grants, size, lease_s)
        async with link.exchange(put, signed_list(copy.listed)) as exchange:
            ready, _ = await exchange.receive()
            if isinstance(ready, Stale):
                raise StaleMap(bundle_id, ready.seq)
            if not isinstance(ready, PutReady):
                raise RemoteProtocolError(f"{link} answers PUT with {type(ready).__name__}.")
            nonce = self._random(32)
            proof = await self._send(exchange, copy, ready.missing, nonce, link.node_id)
            await exchange.send(PutEnd(nonce))
            answer, _ = await exchange.receive(PROOF_S)
        if isinstance(answer, Stale):
            raise StaleMap(bundle_id, answer.seq)
        if not isinstance(answer, ReceiptMessage):
            raise RemoteProtocolError(f"{link} answers PUT with {type(answer).__name__}.")
        body = verify_receipt(answer.raw, link.public_key)
        stated = (body.group, body.bundle, body.seq, body.live_map_hash, body.bytes, body.nonce)
        group = group_id_of(copy.listed.header.group)
        expected = (group, bundle_id, copy.live.seq, live_map_hash(copy.live), size, nonce)
        if stated != expected:
            raise IntegrityError(f"{link} signed a receipt about something else.")
        if not hmac.compare_digest(body.proof, proof):
            raise IntegrityError(f"{link} signed a receipt with a wrong proof.")
        return Receipt(
            bundle_id, link.node_id, body.seq, body.bytes, body.lease_until_ms, answer.raw
        )

    async def _send(
        self, exchange: Exchange, copy: _Copy, missing: bytes, nonce: bytes, holder: NodeId
    ) -> bytes:
        """Read all live blocks in order, send the missing ones; the proof over all of them."""
        prover = Prover(nonce, self._node_id, holder)
        batches = await in_thread(self._pool, self._shelf.batches, copy.place)

        def read(indices: list[int]) -> list[tuple[int, bytes]]:
            blocks = self._shelf.read_live(copy.place, indices)
            for block in blocks:  # one call at a time, in order: see `ahead`
                prover.update(block)
            return list(zip(indices, blocks, strict=True))

        reads = (partial(read, indices) for indices in batches)
        async with aclosing(ahead(self._pool, reads)) as read_batches:
            async for batch in read_batches:
                for i, block in batch:
                    if i >> 3 < len(missing) and missing[i >> 3] >> (i & 7) & 1:
                        await exchange.send(PutBlock(i), block)
        return prover.digest()

    # -- asking for proofs and promises ------------------------------------------------------

    async def challenge(self, bundle_id: BundleId, holder: NodeId, seq: int) -> bool:
        """Whether the holder proves all live blocks; computed here over our own copy as well.

        False: it lies. StaleMap: it, or our own copy, has another live map; raised, so that nobody
        takes it for a proof. IntegrityError: it says itself that its copy is damaged. Unknown,
        Busy, Unavailable as they come.
        """
        link = await self._peers.connect(holder)
        place = await in_thread(self._pool, self._shelf.place, bundle_id)
        nonce = self._random(32)
        answer = await self._ask(link, Challenge(bundle_id, seq, nonce), Proof, PROOF_S)
        wanted = await in_thread(self._pool, self._expect, place, seq, nonce, link.node_id)
        return hmac.compare_digest(answer.proof, wanted)

    async def sample(
        self, bundle_id: BundleId, tag: Tag, holder: NodeId, block_ids: Sequence[BlockId]
    ) -> bool:
        """Audit without own bytes: whether the holder sends all of these (at most SAMPLE) blocks,
        chosen at random by the caller. IntegrityError when it sends something else."""
        wanted = list(block_ids)[:SAMPLE]
        link = await self._peers.connect(holder)
        request = self._asker.sign(bundle_id, tag, wanted)
        budget = len(wanted) * MAX_BLOCK
        got: set[BlockId] = set()
        async with (
            self._lanes.one(link),
            aclosing(
                get_blocks(link, request, wanted, hops=MAX_HOPS, pool=self._pool, budget=budget)
            ) as batches,
        ):
            async for batch in batches:
                got.update(batch)
        return got >= set(wanted)

    async def lock(
        self, bundle_id: BundleId, holder: NodeId, *, seq: int | None = None, seconds: int = LOCK_S
    ) -> int:
        """Have the holder promise not to drop it; the seconds granted, from before this call on.

        `seq` is that of our own live map unless it is given. Busy when the holder removes its copy.
        """
        link = await self._peers.connect(holder)
        if seq is None:
            seq = (await in_thread(self._pool, self._open, bundle_id)).live.seq
        locked = await self._ask(link, Lock(bundle_id, seq, seconds), Locked)
        return min(locked.seconds, seconds)

    async def unlock(self, bundle_id: BundleId, holder: NodeId) -> None:
        await self._ask(await self._peers.connect(holder), Unlock(bundle_id), Ok)

    async def renew(
        self, holder: NodeId, bundles: Sequence[BundleId], *, lease_s: int = LEASE_S
    ) -> tuple[int, Sequence[int | None]]:
        """Make leases longer, at most MAX_RENEWED at once: the seconds granted, from before this
        call on, and of each bundle the live map's seq there; None: it is not held."""
        link = await self._peers.connect(holder)
        answer = await self._ask(link, Renew(tuple(bundles), lease_s), Renewed)
        if len(answer.seqs) != len(bundles):
            raise RemoteProtocolError(f"{link} answers RENEW for other bundles than were named.")
        return min(answer.seconds, lease_s), answer.seqs

    async def release(self, bundle_id: BundleId, holder: NodeId) -> None:
        """Into the holder's trash, for 7 days. Busy when somebody has locked it there."""
        await self._ask(await self._peers.connect(holder), Release(bundle_id), Ok)

    async def send_live_map(self, bundle_id: BundleId, holder: NodeId) -> None:
        """Tell the holder which blocks are dead by now."""
        link = await self._peers.connect(holder)
        signed_map = (await in_thread(self._pool, self._open, bundle_id)).signed_map
        if signed_map:
            await self._ask(link, LiveMapUpdate(signed_map), Ok)

    async def holdings(
        self, holder: NodeId, group: GroupId | None = None
    ) -> AsyncIterator[Holding]:
        """All bundles of the group (ours, if none is named) that the holder says it keeps."""
        after: BundleId | None = None
        while True:
            link = await self._peers.connect(holder)
            question = Holdings(group or self._group_id, after, MAX_HOLDINGS)
            page = await self._ask(link, question, HoldingsPage)
            for item in page.items:
                if after is not None and item.bundle <= after:
                    raise RemoteProtocolError(f"{link} lists its holdings out of order.")
                after = item.bundle
                yield item
            if not page.more:
                return
            if not page.items:
                raise RemoteProtocolError(f"{link} says that there is more, and sends nothing.")

    async def block_list(
        self, bundle_id: BundleId, holder: NodeId
    ) -> tuple[BundleIndex, SignedLiveMap | None]:
        """Which blocks the bundle has, and which of them are live there; None: all of them.

        The list is signed by whoever it says has opened the bundle, the map by whoever it names:
        whether those are believed is the caller's to judge.
        """
        link = await self._peers.connect(holder)
        index, live_map = await self._list(link, bundle_id)
        if index.header.bundle_id != bundle_id:
            if _replaces(index, bundle_id):
                raise Unknown(f"{link} has it merged into another bundle.")
            raise IntegrityError(f"{link} sent the list of another bundle.")
        if not live_map:
            return index, None
        signed = decode_live_map(live_map)
        live = verify_live_map(signed)
        if live.bundle_id != bundle_id or not live.fits(len(index.blocks)):
            raise IntegrityError(f"{link} sent a live map that does not fit the bundle.")
        return index, signed

    async def merged(
        self, bundles: Sequence[BundleId], holder: NodeId
    ) -> AsyncIterator[BundleIndex]:
        """The bundles there that answer for some of these, which were merged into them.

        Each is signed by whoever it says has opened it, and names what it replaces: whether that
        is believed is the caller's to judge.
        """
        link = await self._peers.connect(holder)
        told: set[BundleId] = set()
        for at in range(0, len(bundles), MAX_WANTED):
            part = tuple(bundles[at : at + MAX_WANTED])
            answer = await self._ask(link, Have((), part), HaveReply)
            for bundle_id, seq in zip(part, answer.bundles, strict=False):
                if seq is None or bundle_id in told:
                    continue
                try:
                    index, _ = await self._list(link, bundle_id)
                except Unknown:
                    continue  # gone meanwhile, or a holder that answers for exact ids only
                if _replaces(index, bundle_id):
                    told.update(old.bundle_id for old in index.blocks.replaces)
                    yield index

    async def _list(self, link: Link, bundle_id: BundleId) -> tuple[BundleIndex, bytes]:
        answer, listed = await link.request(GetList(bundle_id))
        if not isinstance(answer, BlockList):
            raise RemoteProtocolError(f"{link} answers GET_LIST with {type(answer).__name__}.")
        return await in_thread(self._pool, decode_signed_list, listed), answer.live_map

    # -- heads -------------------------------------------------------------------------------

    async def put_heads(
        self, holder: NodeId, state: bytes | None, heads: Sequence[bytes]
    ) -> HeadsKept:
        """Have the holder keep our group's state and heads; what it has now, durably."""
        link = await self._peers.connect(holder)
        return await self._ask(link, PutHeads(self._group_id, state, tuple(heads)), HeadsKept)

    async def get_heads(self, holder: NodeId, group: GroupId | None = None) -> Heads:
        """What it keeps; nothing in it has been verified."""
        link = await self._peers.connect(holder)
        return await self._ask(link, GetHeads(group or self._group_id), Heads)

    # -- inside ------------------------------------------------------------------------------

    async def _ask(
        self, link: Link, question: Message, kind: type[M], timeout_s: float = 30.0
    ) -> M:
        """The answer of that kind; STALE is raised as StaleMap."""
        answer, _ = await link.request(question, timeout_s=timeout_s)
        if isinstance(answer, kind):
            return answer
        bundle = getattr(question, "bundle", None)
        if isinstance(answer, Stale):
            raise StaleMap(bundle or BundleId(bytes(32)), answer.seq)
        raise RemoteProtocolError(
            f"{link} answers {type(question).__name__} with {type(answer).__name__}."
        )

    def _open(self, bundle_id: BundleId) -> _Copy:
        place = self._shelf.place(bundle_id)
        signed_map = self._shelf.signed_live_map(place)
        return _Copy(place, self._shelf.index(place), self._shelf.live_map(place), signed_map)

    def _expect(self, place: Place, seq: int, nonce: bytes, holder: NodeId) -> bytes:
        """The proof that an honest holder gives. Also while we are removing our own copy."""
        self._shelf.refuse_stale(place, seq)
        prover = Prover(nonce, self._node_id, holder)
        for indices in self._shelf.batches(place):
            for block in self._shelf.read_live(place, indices):
                prover.update(block)
        return prover.digest()
