"""Finding the nodes nearest to an id, and dividing the key space into regions.

A crawl returns only nodes that answered it, each proven to own its id; what others merely told is
worth a question, not a place. To keep one liar from filling the places: one id per address and
port, few questions and places per subnet of the internet, a bounded number of questions in all.
The stock crawl waits for the slowest of each round and calls itself without bound; this one keeps
`alpha` questions moving, and one that has no answer after half a second no longer counts. Who did
not answer at all is not asked again for some seconds, since everybody tells of him still; unless
nobody else answers, for then it may be us.

Many tags need no crawl each. A region is the ids that share some leading bits; with
ceil(log2(nodes / k)) + 1 bits it holds about k / 2 nodes, all of them among the 2 k nearest to its
middle. The number of nodes is a guess: a region that turns out to hold more than k is halved.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from kademlia.crawling import NodeSpiderCrawl
from kademlia.node import Node

from p2pstore.dht.address import Address, subnet
from p2pstore.dht.protocol import SignedProtocol
from p2pstore.dht.routing import ID_BITS

# The package announces each crawl at info, with all its peers: that is for its own debugging.
logging.getLogger("kademlia.crawling").setLevel(logging.WARNING)

SLOW_S = 0.5  # just after the second sending
MAX_QUESTIONS = 120  # six times k; an honest crawl of a million nodes needs about forty


class Crawl(NodeSpiderCrawl):  # type: ignore[misc]  # the package has no types
    def __init__(
        self,
        protocol: SignedProtocol,
        target: Node,
        peers: list[Node],
        ksize: int,
        alpha: int,
        subnet_limit: int | None,
    ) -> None:
        super().__init__(protocol, target, peers, ksize, alpha)
        self._subnet_limit = subnet_limit
        self._asked_in: Counter[bytes] = Counter()
        self._placed_in: Counter[bytes] = Counter()
        self._placed_at: set[Address] = set()
        self._answered: list[Node] = []
        self._questions = 0

    async def find(self) -> list[Node]:
        """The nodes that answered, nearest first; all of them, not only k."""
        loop = asyncio.get_running_loop()
        under_way: dict[asyncio.Task[tuple[bool, list[Node]]], tuple[Node, float]] = {}
        async with asyncio.TaskGroup() as group:
            while True:
                now = loop.time()
                brisk = sum(now - begun < SLOW_S for _, begun in under_way.values())
                is_lost = not (under_way or self._answered)
                for peer in self._next(max(0, self.alpha - brisk), is_lost=is_lost):
                    question = self.protocol.call_find_node(peer, self.node)
                    under_way[group.create_task(question)] = (peer, now)
                if not under_way:
                    break
                done, _ = await asyncio.wait(
                    under_way, timeout=SLOW_S, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    peer, _ = under_way.pop(task)
                    self._heard(peer, *task.result())
        return sorted(self._answered, key=self.node.distance_to)

    def _next(self, count: int, *, is_lost: bool) -> list[Node]:
        """Whom to ask. `is_lost`: nobody has answered, so that the fault may be ours."""
        chosen: list[Node] = []
        while len(chosen) < count and self._questions < MAX_QUESTIONS:
            left = self.nearest.get_uncontacted()
            peer = next((peer for peer in left if not self.protocol.is_silent(peer)), None)
            if peer is None and is_lost:
                peer = next(iter(left), None)
            if peer is None:
                break
            self.nearest.mark_contacted(peer)
            home = subnet(peer.ip)
            if home is not None and self._subnet_limit is not None:
                self._asked_in[home] += 1
                if self._asked_in[home] > 2 * self._subnet_limit:
                    self.nearest.remove([peer.id])
                    continue
            self._questions += 1
            chosen.append(peer)
        return chosen

    def _heard(self, peer: Node, answered: bool, told: list[Node]) -> None:
        place = Address(peer.ip, peer.port)
        home = subnet(peer.ip)
        full = (
            home is not None
            and self._subnet_limit is not None
            and self._placed_in[home] >= self._subnet_limit
        )
        if not answered or full or place in self._placed_at:
            self.nearest.remove([peer.id])
            return
        self._placed_at.add(place)
        if home is not None:
            self._placed_in[home] += 1
        self._answered.append(peer)
        self.nearest.push([n for n in told if n.id not in self.nearest.contacted])


def region_bits(nodes: int, k: int) -> int:
    return max(0, math.ceil(math.log2(nodes / k)) + 1) if nodes > k else 0


class Region(NamedTuple):
    """The ids that begin with the `bits` bits of `prefix`, and the tags wanted there, ascending."""

    prefix: int
    bits: int
    tags: list[bytes]

    @property
    def middle(self) -> bytes:
        """Where to look: for a lone tag, the tag itself."""
        if len(self.tags) == 1:
            return self.tags[0]
        rest = ID_BITS - self.bits
        return ((self.prefix << rest) | (1 << rest >> 1)).to_bytes(ID_BITS // 8, "big")

    def holds(self, node: Node) -> bool:
        return bool(node.long_id >> (ID_BITS - self.bits) == self.prefix)

    def halves(self) -> list[Region]:
        return regions(self.tags, self.bits + 1)


def regions(tags: Iterable[bytes], bits: int) -> list[Region]:
    """Each tag once, in its region."""
    found: dict[int, list[bytes]] = {}
    for tag in sorted(set(tags)):
        found.setdefault(int.from_bytes(tag, "big") >> (ID_BITS - bits), []).append(tag)
    return [Region(prefix, bits, members) for prefix, members in found.items()]
