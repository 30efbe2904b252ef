"""Passing a signed GET on, and its answers back along the path to the one who asked first.

Only GET is ever passed on. The request stays as the asker signed it, so the holder judges the
asker, not us. Hops are at most 3. A loop ends because each request id is passed on once; ids are
remembered until the request has expired, the oldest are forgotten first when there are too many.

Asked are, one after the other, peers that say they have it; then, only by the node that the asker
itself asked, providers that the DHT names (see `finding`); then the other peers, which may pass it
on. A look-up by each node on the way would make one request many, and outlast the asker's patience.
Peers that lied, failed or stalled are asked last for some minutes.

Who pays: a device of our group what its request allows, a friend FRIEND_BYTES a day, all strangers
together STRANGER_BYTES a day, counted when a block has come. Blocks are compared with their ids
here: garbage goes no further, and costs the asker nothing.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Final

from p2pstore.clock import Clock
from p2pstore.errors import Busy, IntegrityError, NotAllowed, P2PStoreError, RemoteProtocolError
from p2pstore.ids import BlockId, NodeId, node_id_of
from p2pstore.net import STRANGER, Link
from p2pstore.swarm.finding import Finder
from p2pstore.swarm.getting import Peers, get_blocks
from p2pstore.swarm.purse import Purse, Purses
from p2pstore.wire import GetRequest, Have, HaveReply

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
STRANGER_BYTES: Final = 64 * MIB  # a day, all strangers together: names are free
FRIEND_BYTES: Final = 16 << 30  # a day, each friend
MAX_SEEN: Final = 4096
SEEN_S: Final = 1800.0  # longer than a request and two wrong clocks live
MAX_ASKED: Final = 8  # peers, one after the other: more would make one request many
HAVE_S: Final = 5.0
SHUNNED_S: Final = 300.0
MAX_SHUNNED: Final = 1000
ANSWER_S: Final = 15.0  # for one more hop; below what the asker waits


class _Order:
    """What is still wanted of one request, and what it may still cost."""

    def __init__(self, missing: Sequence[BlockId], budget: int, purse: Purse | None) -> None:
        """No `missing`: everything that one peer has."""
        self._left = set(missing)
        self._wants_all = not missing
        self._has_some = False
        self._budget = budget
        self._purse = purse

    @property
    def has_all(self) -> bool:
        return not self._wants_all and not self._left

    @property
    def is_over(self) -> bool:
        """A second peer would send "everything" again."""
        return self._allowed <= 0 or self.has_all or (self._wants_all and self._has_some)

    @property
    def _allowed(self) -> int:
        return self._budget if self._purse is None else min(self._budget, self._purse.left)

    def take(self, batch: Mapping[BlockId, bytes]) -> dict[BlockId, bytes]:
        """Pay for what is wanted; a holder answers all that the request names, not only that."""
        fresh: dict[BlockId, bytes] = {}
        for block_id, block in batch.items():
            if not self._wants_all and block_id not in self._left:
                continue
            if len(block) > self._allowed:
                break
            self._budget -= len(block)
            if self._purse is not None:
                self._purse.left -= len(block)
            self._left.discard(block_id)
            fresh[block_id] = block
        self._has_some |= bool(fresh)
        return fresh


class Forwarder:
    def __init__(
        self,
        peers: Peers,
        *,
        pool: Executor,
        clock: Clock,
        finder: Finder | None = None,
        stranger_bytes: int = STRANGER_BYTES,
        friend_bytes: int = FRIEND_BYTES,
    ) -> None:
        """`finder` None: only peers to which there is a link are asked."""
        self._peers = peers
        self._pool = pool
        self._clock = clock
        self._finder = finder
        self._purses = Purses(clock, strangers=stranger_bytes, friend=friend_bytes)
        self._seen: OrderedDict[bytes, float] = OrderedDict()
        self._shunned: OrderedDict[NodeId, float] = OrderedDict()

    async def fetch(
        self,
        raw: bytes,
        asked: GetRequest,
        missing: Sequence[BlockId],
        *,
        hops: int,
        origin: Link,
        standing: str,
        budget: int,
    ) -> AsyncGenerator[dict[BlockId, bytes], None]:
        """Batches of verified blocks from other peers. `missing` empty: whatever there is.

        `standing` is what the asker is to us. Use it with `aclosing`.
        """
        if self._is_seen(asked.request_id):
            return
        order = _Order(missing, budget, self._purses.of(asked.asker, standing))
        if order.is_over:
            return
        async with aclosing(self._askable(asked, origin, standing, hops)) as links:
            async for link in links:
                async with aclosing(self._ask(link, raw, asked, order, hops)) as batches:
                    async for batch in batches:
                        yield batch
                if order.is_over:
                    return

    async def _ask(
        self, link: Link, raw: bytes, asked: GetRequest, order: _Order, hops: int
    ) -> AsyncGenerator[dict[BlockId, bytes], None]:
        """What this peer has of it; its failure is remembered, not raised."""
        answer = get_blocks(
            link,
            raw,
            asked.blocks,
            hops=hops,
            pool=self._pool,
            budget=asked.budget,
            timeout_s=ANSWER_S,
        )
        try:
            async with aclosing(answer) as batches:
                async for batch in batches:
                    if fresh := order.take(batch):
                        yield fresh
                    if order.has_all:
                        return
        except (NotAllowed, Busy) as exc:
            log.debug("A forwarded request to %s: %s", link, exc)
        except (IntegrityError, RemoteProtocolError) as exc:
            log.info("A forwarded request to %s: %s", link, exc)
            self._shun(link.node_id)
        except P2PStoreError as exc:
            log.debug("A forwarded request to %s: %s", link, exc)
            self._shun(link.node_id)

    def _is_seen(self, request_id: bytes) -> bool:
        now = self._clock.monotonic()
        while self._seen and next(iter(self._seen.values())) <= now:
            self._seen.popitem(last=False)
        if request_id in self._seen:
            return True
        self._seen[request_id] = now + SEEN_S
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return False

    async def _askable(
        self, asked: GetRequest, origin: Link, standing: str, hops: int
    ) -> AsyncGenerator[Link, None]:
        """Whom to ask, the most promising first, each once. Use it with `aclosing`."""
        away = {origin.node_id, node_id_of(asked.asker)}
        tried = set(away)
        shunned = self._shun_list()

        def fresh(links: Iterable[Link], but: Collection[NodeId] = ()) -> Iterator[Link]:
            for link in links:
                if link.node_id in tried or link.node_id in but:
                    continue
                if len(tried) - len(away) >= MAX_ASKED:
                    return
                tried.add(link.node_id)
                yield link

        related = [
            link
            for link in self._peers.links()
            if link.role != STRANGER and link.node_id not in away
        ]
        has = await asyncio.gather(*(self._has(link, asked) for link in related))
        for link in fresh(itertools.compress(related, has), shunned):
            yield link
        if hops == 1 and self._finder is not None:
            for link in fresh(await self._finder.find(asked, standing), shunned):
                yield link
        rest = self._peers.links()
        rest.sort(key=lambda link: (link.node_id in shunned, link.role == STRANGER))
        for link in fresh(rest):
            yield link

    async def _has(self, link: Link, asked: GetRequest) -> bool:
        try:
            reply, _ = await link.request(Have((asked.tag,), (asked.bundle,)), timeout_s=HAVE_S)
        except P2PStoreError:
            return False
        if not isinstance(reply, HaveReply):
            return False
        return any(reply.tags) or any(seq is not None for seq in reply.bundles)

    def _shun(self, node: NodeId) -> None:
        self._shunned[node] = self._clock.monotonic() + SHUNNED_S
        self._shunned.move_to_end(node)
        if len(self._shunned) > MAX_SHUNNED:
            self._shunned.popitem(last=False)

    def _shun_list(self) -> set[NodeId]:
        now = self._clock.monotonic()
        return {node for node, until in self._shunned.items() if until > now}
