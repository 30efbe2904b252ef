"""Finding who has a bundle, in the interest of somebody whose request was passed to us.

The DHT is asked for providers of the request's tag, and a few of them are dialled, at addresses
that each of them signed itself: never at one that a message names. Look-ups are paid from a purse
by what the asker is to us; two for the same tag are one, and its outcome is good for a minute, so
that the many requests for a large file, or for one that nobody has, cost a single look-up.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from p2pstore.clock import Clock
from p2pstore.errors import P2PStoreError
from p2pstore.ids import NodeId, Tag, short
from p2pstore.net import Link
from p2pstore.swarm.getting import Peers
from p2pstore.swarm.purse import Purses
from p2pstore.wire import GetRequest, PeerRecord

log = logging.getLogger(__name__)

Providers = Callable[[Sequence[Tag]], Awaitable[Mapping[Tag, Sequence[PeerRecord]]]]

STRANGER_LOOKUPS: Final = 200  # a day, all strangers together: each is some forty datagrams
FRIEND_LOOKUPS: Final = 5_000  # a day, each friend
DEVICE_LOOKUPS: Final = 50_000  # a day, each of ours: one that runs wild ends here
MAX_DIALLED: Final = 3  # of the providers of one tag
AT_ONCE: Final = 4  # look-ups for others: our own come first
LOOKUP_S: Final = 5.0  # look-up and dialling together stay below what the asker waits for us
DIAL_S: Final = 5.0
QUIET_S: Final = 60.0
MAX_REMEMBERED: Final = 4096


class Finder:
    def __init__(
        self,
        peers: Peers,
        providers: Providers,
        *,
        clock: Clock,
        stranger_lookups: int = STRANGER_LOOKUPS,
        friend_lookups: int = FRIEND_LOOKUPS,
        device_lookups: int = DEVICE_LOOKUPS,
    ) -> None:
        """`providers` asks the DHT; it names only addresses that may be dialled."""
        self._peers = peers
        self._providers = providers
        self._clock = clock
        self._purses = Purses(
            clock, strangers=stranger_lookups, friend=friend_lookups, device=device_lookups
        )
        self._places = asyncio.Semaphore(AT_ONCE)
        self._coming: dict[Tag, asyncio.Future[None]] = {}
        self._known: OrderedDict[Tag, tuple[float, tuple[NodeId, ...]]] = OrderedDict()

    async def find(self, asked: GetRequest, standing: str) -> list[Link]:
        """Links to nodes that say in the DHT that they have it; the asker itself may be one."""
        links = [self._peers.get(node) for node in await self._nodes(asked, standing)]
        return [link for link in links if link is not None]

    async def _nodes(self, asked: GetRequest, standing: str) -> tuple[NodeId, ...]:
        tag = asked.tag
        while True:
            known = self._known.get(tag)
            if known is not None and known[0] > self._clock.monotonic():
                return known[1]
            coming = self._coming.get(tag)
            if coming is None:
                break
            await asyncio.wait((coming,))  # whoever began it may have gone away: look again
        purse = self._purses.of(asked.asker, standing)
        if purse is not None:
            if purse.left <= 0:
                return ()
            purse.left -= 1
        done = self._coming[tag] = asyncio.get_running_loop().create_future()
        try:
            nodes = await self._look_up(tag)
            self._known[tag] = (self._clock.monotonic() + QUIET_S, nodes)
            self._known.move_to_end(tag)
            if len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)
            return nodes
        finally:
            del self._coming[tag]
            done.set_result(None)

    async def _look_up(self, tag: Tag) -> tuple[NodeId, ...]:
        """The providers to which there is a link, dialled where there was none."""
        try:
            async with asyncio.timeout(LOOKUP_S), self._places:
                records = (await self._providers([tag])).get(tag, ())
        except (P2PStoreError, TimeoutError) as exc:
            log.debug("The DHT was not asked for providers: %s", exc)
            return ()
        linked = [record for record in records if self._peers.get(record.node_id) is not None]
        away = [record for record in records if self._peers.get(record.node_id) is None]
        dialled = await asyncio.gather(*(self._dial(record) for record in away[:MAX_DIALLED]))
        return (
            *(record.node_id for record in linked),
            *(node_id for node_id in dialled if node_id is not None),
        )

    async def _dial(self, record: PeerRecord) -> NodeId | None:
        try:
            async with asyncio.timeout(DIAL_S):
                link = await self._peers.connect(record.node_id, record.addresses)
        except (P2PStoreError, TimeoutError) as exc:
            log.debug("Provider %s cannot be reached: %s", short(record.node_id), exc)
            return None
        return link.node_id
