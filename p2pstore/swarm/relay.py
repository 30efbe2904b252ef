"""Pairing two peers that cannot reach each other: who may, how many, and who pays.

A tunnel is made between two peers to which this node has direct links: nobody is dialled for it,
and none goes through another tunnel. One of the two is a device of our group, or both are friends
of one other group. What passes is sealed by their own TLS; we can count it and drop it, no more.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from p2pstore.clock import Clock
from p2pstore.errors import Busy, NotAllowed
from p2pstore.ids import NodeId
from p2pstore.keys import Role
from p2pstore.net import STRANGER, TUNNEL_OPEN_S, Link, Request, pair
from p2pstore.policy import Ask
from p2pstore.swarm.access import Gate
from p2pstore.swarm.getting import Peers
from p2pstore.swarm.purse import Purse, Purses
from p2pstore.wire import Ok, TunnelData, TunnelTo, Unknown

log = logging.getLogger(__name__)

MAX_TUNNELS: Final = 64  # each holds at most a window of 1 MiB in either direction
PER_PEER: Final = 16
FRIEND_BYTES: Final = 16 << 30  # a day, each friend, in both directions together
_DEVICES: Final = (Role.DEVICE, Role.ADMIN)


class Relay:
    def __init__(
        self,
        node_id: NodeId,
        peers: Peers,
        gate: Gate,
        *,
        clock: Clock,
        accept: Callable[[Request], Awaitable[None]],
        friend_bytes: int = FRIEND_BYTES,
    ) -> None:
        """`accept` serves tunnels that end here (net's `accept_through`)."""
        self._node_id = node_id
        self._peers = peers
        self._gate = gate
        self._accept = accept
        self._purses = Purses(clock, strangers=0, friend=friend_bytes)
        self._ends: Counter[NodeId] = Counter()
        self.tunnels = 0  # that go through this node now
        self.carried_bytes = 0

    async def serve(self, request: Request, message: TunnelTo) -> None:
        self._gate.check(request.link, Ask.TUNNEL)
        if request.link.via is not None:
            raise NotAllowed("A tunnel does not go through another tunnel.")
        if message.node == self._node_id:
            await self._accept(request)
            return
        far = self._peers.get(message.node)
        if far is None or far.via is not None or far.role == STRANGER:
            raise Unknown("This node has no direct link to it.")
        await self._pair(request, far)

    async def _pair(self, request: Request, far: Link) -> None:
        near = request.link
        if not may_pair(near, far):
            raise NotAllowed("These two have nothing to do with each other.")
        ends = (near.node_id, far.node_id)
        if self.tunnels >= MAX_TUNNELS or any(self._ends[end] >= PER_PEER for end in ends):
            raise Busy("This node carries as many tunnels as it can.")
        purses = [purse for link in (near, far) if (purse := self._purse(link)) is not None]

        def pay(count: int) -> None:
            if any(purse.left < count for purse in purses):
                raise Busy("More was carried today than a friend is granted.")
            for purse in purses:
                purse.left -= count
            self.carried_bytes += count

        self.tunnels += 1
        self._ends.update(ends)
        try:
            async with far.exchange(TunnelTo(far.node_id)) as onward:
                first, _ = await onward.receive(TUNNEL_OPEN_S)
                if isinstance(first, TunnelData):
                    await request.reply(TunnelData(), final=False)
                    await pair(request, onward, pay)
        finally:
            self.tunnels -= 1
            self._ends.subtract(ends)
        await request.reply(Ok())

    def _purse(self, link: Link) -> Purse | None:
        return self._purses.of(link.public_key, link.role)


def may_pair(near: Link, far: Link) -> bool:
    if near.role in _DEVICES or far.role in _DEVICES:
        return True
    return near.hello.group is not None and near.hello.group == far.hello.group
