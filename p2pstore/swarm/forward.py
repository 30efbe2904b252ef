"""Passing a signed GET on, and its answers back along the path to the one who asked first.

Only GET is ever passed on, over links that are up: nothing is sent to an address because a message
names it. The request stays as the asker signed it, so the holder judges the asker, not us. Hops are
at most 3. A loop ends because each request id is passed on once; ids are remembered until the
request has expired, the oldest are forgotten first when there are too many.

Who pays: a device of our group what its request allows, a friend FRIEND_BYTES a day, all strangers
together STRANGER_BYTES a day, counted when a block has come. Blocks are compared with their ids
here: garbage goes no further, and costs the asker nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Final

from p2pstore.clock import Clock
from p2pstore.errors import IntegrityError, P2PStoreError, RemoteProtocolError
from p2pstore.ids import BlockId
from p2pstore.keys import Role
from p2pstore.net import STRANGER, Link
from p2pstore.swarm.getting import Peers, get_blocks
from p2pstore.wire import GetRequest, Have, HaveReply

log = logging.getLogger(__name__)

MIB: Final = 1 << 20
STRANGER_BYTES: Final = 64 * MIB  # a day, all strangers together: names are free
FRIEND_BYTES: Final = 16 << 30  # a day, each friend
MAX_SEEN: Final = 4096
SEEN_S: Final = 1800.0  # longer than a request and two wrong clocks live
MAX_ASKED: Final = 8  # peers, one after the other: more would make one request many
MAX_PAYERS: Final = 1000
HAVE_S: Final = 5.0
DAY_S: Final = 86_400.0
ANSWER_S: Final = 15.0  # for one more hop; below what the asker waits


class _Purse:
    """Bytes that somebody may still use today."""

    def __init__(self, size: int, now: float) -> None:
        self._size = size
        self.left = size
        self._since = now

    def refill(self, now: float) -> None:
        if now - self._since >= DAY_S:
            self._since, self.left = now, self._size


class Forwarder:
    def __init__(
        self,
        peers: Peers,
        *,
        pool: Executor,
        clock: Clock,
        stranger_bytes: int = STRANGER_BYTES,
        friend_bytes: int = FRIEND_BYTES,
    ) -> None:
        self._peers = peers
        self._pool = pool
        self._clock = clock
        self._friend_bytes = friend_bytes
        self._strangers = _Purse(stranger_bytes, clock.monotonic())
        self._friends: OrderedDict[bytes, _Purse] = OrderedDict()
        self._seen: OrderedDict[bytes, float] = OrderedDict()

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
        purse = self._purse(asked, standing)
        # A holder answers all that the request names, what the asker has by now included.
        left = set(missing)
        for link in await self._order(asked, origin):
            allowed = budget if purse is None else min(budget, purse.left)
            if allowed <= 0:
                return
            try:
                async with aclosing(
                    get_blocks(
                        link,
                        raw,
                        asked.blocks,
                        hops=hops,
                        pool=self._pool,
                        budget=asked.budget,
                        timeout_s=ANSWER_S,
                    )
                ) as batches:
                    async for batch in batches:
                        fresh: dict[BlockId, bytes] = {}
                        for block_id, block in batch.items():
                            if missing and block_id not in left:
                                continue
                            if len(block) > allowed:
                                break
                            allowed -= len(block)
                            budget -= len(block)
                            if purse is not None:
                                purse.left -= len(block)
                            left.discard(block_id)
                            fresh[block_id] = block
                        if fresh:
                            yield fresh
                            if not missing:
                                left.update(fresh)
                        if missing and not left:
                            return
            except (IntegrityError, RemoteProtocolError) as exc:
                log.info("A forwarded request to %s: %s", link, exc)
            except P2PStoreError as exc:
                log.debug("A forwarded request to %s: %s", link, exc)
            if not missing and left:
                return  # "everything" has come from one peer; a second one would send it again

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

    def _purse(self, asked: GetRequest, standing: str) -> _Purse | None:
        """None: no limit but the request's own."""
        now = self._clock.monotonic()
        if standing in (Role.DEVICE, Role.ADMIN):
            return None
        if standing == Role.FRIEND:
            purse = self._friends.setdefault(asked.asker, _Purse(self._friend_bytes, now))
            self._friends.move_to_end(asked.asker)
            if len(self._friends) > MAX_PAYERS:
                self._friends.popitem(last=False)
        else:
            purse = self._strangers
        purse.refill(now)
        return purse

    async def _order(self, asked: GetRequest, origin: Link) -> list[Link]:
        """Whom to ask: those that say they have it, then our relations, then the rest."""
        links = [
            link
            for link in self._peers.links()
            if link is not origin
            and link.node_id != origin.node_id
            and link.public_key != asked.asker
        ]
        related = [link for link in links if link.role != STRANGER]
        has = await asyncio.gather(*(self._has(link, asked) for link in related))
        first = [link for link, has_it in zip(related, has, strict=True) if has_it]
        others = [link for link in related if link not in first]
        strangers = [link for link in links if link.role == STRANGER]
        return [*first, *others, *strangers][:MAX_ASKED]

    async def _has(self, link: Link, asked: GetRequest) -> bool:
        try:
            reply, _ = await link.request(Have((asked.tag,), (asked.bundle,)), timeout_s=HAVE_S)
        except P2PStoreError:
            return False
        if not isinstance(reply, HaveReply):
            return False
        return any(reply.tags) or any(seq is not None for seq in reply.bundles)
