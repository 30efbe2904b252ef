"""Answering GET: find, judge, read, send; what is not here may be fetched through another peer.

The request is signed by the asker, who need not be at the other end of the link: it is his role, or
the grant whose token he shows, that decides block by block. Reading is done in threads, one batch
ahead of what is being sent, so that a slow link holds at most two batches in memory.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Final, NamedTuple

from p2pstore.clock import Clock
from p2pstore.content import MAX_BLOCK
from p2pstore.errors import Busy, IntegrityError, NotAllowed, Unavailable
from p2pstore.ids import BlockId, BundleId
from p2pstore.net import STRANGER, Link, Request
from p2pstore.policy import Ask
from p2pstore.swarm.access import Gate
from p2pstore.swarm.ahead import ahead
from p2pstore.swarm.forward import Forwarder
from p2pstore.swarm.getting import VALID_MS
from p2pstore.swarm.guesses import Guesses
from p2pstore.swarm.shelf import Place, Shelf, batched
from p2pstore.threads import in_thread
from p2pstore.wire import (
    MAX_HOPS,
    MAX_WANTED,
    BlockReply,
    Get,
    GetDone,
    GetRequest,
    verify_get,
)

SKEW_MS: Final = 10 * 60_000  # clocks of home computers are that wrong
PER_LINK: Final = 4  # answers read and sent at once to one peer, two batches each
FOR_STRANGERS: Final = 8  # ... and to all strangers together


Served = Callable[[bytes, BundleId, Sequence[BlockId]], None]
"""Hears which blocks of a bundle of ours were sent to somebody who showed this token."""


def nobody_hears(_: bytes, __: BundleId, ___: Sequence[BlockId]) -> None:
    return None


class _Part(NamedTuple):
    place: Place
    blocks: tuple[BlockId, ...]


class _Plan(NamedTuple):
    parts: list[_Part]
    is_known: bool  # some bundle that the request may mean is here
    is_granted: bool  # ... and the asker may have some of it


class Giver:
    def __init__(
        self,
        shelf: Shelf,
        gate: Gate,
        forwarder: Forwarder,
        *,
        pool: Executor,
        clock: Clock,
        grants: Callable[[BundleId], Sequence[bytes]],
        served: Served = nobody_hears,
    ) -> None:
        """`grants` returns the signed grants of an own bundle; those of held ones are beside it."""
        self._shelf = shelf
        self._gate = gate
        self._forwarder = forwarder
        self._pool = pool
        self._clock = clock
        self._grants = grants
        self._served = served
        self._guesses = Guesses(clock)
        self._wanted: weakref.WeakKeyDictionary[Link, int] = weakref.WeakKeyDictionary()
        self._lanes: weakref.WeakKeyDictionary[Link, asyncio.Semaphore]
        self._lanes = weakref.WeakKeyDictionary()
        self._strangers = asyncio.Semaphore(FOR_STRANGERS)

    async def give(self, request: Request, message: Get) -> None:
        self._gate.check(request.link, Ask.GET)
        asked = verify_get(message.request)
        now_ms = int(self._clock.wall() * 1000)
        if not now_ms - SKEW_MS <= asked.expires_ms <= now_ms + VALID_MS + SKEW_MS:
            raise NotAllowed("The request has expired, or the clocks of the two nodes differ.")
        async with self._counted(request.link, len(asked.blocks)), self._lane(request.link):
            host = request.link.address[0]
            if asked.token and self._guesses.is_out(host):
                raise NotAllowed(
                    "Too many keys were wrong, or too many passwords; try again later."
                )
            plan = await in_thread(self._pool, self._plan, asked, request.link, now_ms)
            if plan.is_known and not plan.is_granted:
                if asked.token:
                    self._guesses.wrong(host)
                raise NotAllowed("These blocks belong to another group.")
            standing = self._gate.standing(asked, request.link)
            if standing is None and not plan.is_granted:
                raise NotAllowed("Strangers need the key of a share.")
            sent, spent = await self._send(request, plan.parts, asked.budget)
            if asked.token:
                for part in plan.parts:
                    if part.place.is_own:
                        given = [block for block in part.blocks if block in sent]
                        self._served(asked.token, part.place.bundle_id, given)
            missing = [block for block in dict.fromkeys(asked.blocks) if block not in sent]
            wants_more = bool(missing) or not (asked.blocks or sent)
            if wants_more and standing is not None and message.hops < MAX_HOPS:
                async with aclosing(
                    self._forwarder.fetch(
                        message.request,
                        asked,
                        missing,
                        hops=message.hops + 1,
                        origin=request.link,
                        standing=standing,
                        budget=asked.budget - spent,
                    )
                ) as found:
                    async for batch in found:
                        for block_id, block in batch.items():
                            await request.reply(BlockReply(block_id), block, final=False)
                            sent.add(block_id)
            left = tuple(block for block in missing if block not in sent)
            await request.reply(GetDone(left))

    async def _send(
        self, request: Request, parts: Sequence[_Part], budget: int
    ) -> tuple[set[BlockId], int]:
        """What was sent, and its bytes."""
        sent: set[BlockId] = set()
        spent = 0
        reads = (partial(self._shelf.read, part.place, part.blocks) for part in parts)
        async with aclosing(ahead(self._pool, reads)) as batches:
            async for batch in batches:
                for block_id, block in batch.items():
                    if block_id in sent:
                        continue
                    if spent + len(block) > budget:
                        return sent, spent
                    await request.reply(BlockReply(block_id), block, final=False)
                    sent.add(block_id)
                    spent += len(block)
        return sent, spent

    def _plan(self, asked: GetRequest, link: Link, now_ms: int) -> _Plan:
        """Which blocks are read where. Runs in a thread."""
        parts: list[_Part] = []
        places = self._shelf.find(asked.bundle, asked.tag)
        is_granted = False
        taken: set[BlockId] = set()
        for place in places:
            try:
                index = self._shelf.index(place)
                live = self._shelf.live_map(place)
            except (Unavailable, IntegrityError):
                continue  # gone meanwhile, or damaged: another place, another peer
            may_have = self._judge(asked, link, place, now_ms)
            entries = index.blocks.entries
            if asked.blocks:
                found = (index.blocks.find(block) for block in dict.fromkeys(asked.blocks))
                indices = [i for i in found if i is not None and live.is_live(i)]
            else:
                indices = live.indices()
            good = [i for i in indices if may_have(entries[i].block_id)]
            # A device of the group is known to be in the right place even with none of them.
            is_granted |= bool(good) or self._gate.may_get(asked, link, index.header.group)
            good = [i for i in good if entries[i].block_id not in taken]
            taken.update(entries[i].block_id for i in good)
            for batch in batched((i, entries[i].length) for i in good):
                parts.append(_Part(place, tuple(entries[i].block_id for i in batch)))
        return _Plan(parts, bool(places), is_granted)

    def _judge(
        self, asked: GetRequest, link: Link, place: Place, now_ms: int
    ) -> Callable[[BlockId], bool]:
        header = self._shelf.index(place).header
        if self._gate.may_get(asked, link, header.group):
            return lambda _: True
        if not asked.token:
            return lambda _: False
        if place.is_own:
            raw = self._grants(place.bundle_id)
        else:
            raw = self._shelf.held.side(place.bundle_id).grants
        grants = [grant for one in raw if (grant := self._gate.grant(header, one)) is not None]
        return lambda block: any(grant.allows(block, asked.token, now_ms) for grant in grants)

    @asynccontextmanager
    async def _counted(self, link: Link, wanted: int) -> AsyncIterator[None]:
        """SAFETY: 1,024 wanted blocks a peer, freed when the answer ends or the link does."""
        wanted = wanted or 1
        before = self._wanted.get(link, 0)
        if before + wanted > MAX_WANTED:
            raise Busy(f"More than {MAX_WANTED} blocks are wanted at once.")
        self._wanted[link] = before + wanted
        try:
            yield
        finally:
            self._wanted[link] -= wanted

    @asynccontextmanager
    async def _lane(self, link: Link) -> AsyncIterator[None]:
        lane = self._lanes.get(link)
        if lane is None:
            lane = self._lanes[link] = asyncio.Semaphore(PER_LINK)
        async with lane:
            if link.role != STRANGER:
                yield
                return
            async with self._strangers:
                yield


def most(asked: GetRequest) -> int:
    """Bytes that an honest answer has at most."""
    return min(asked.budget, len(asked.blocks) * MAX_BLOCK) if asked.blocks else asked.budget
