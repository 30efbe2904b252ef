"""The routing table: kademlia's, with the faults of the stock one taken out.

- `find_neighbors` is exact: the k nearest of all that are known, not of those met first.
- An address follows its node: the caller proves the new address, then `move`.
- A contact goes after two failures in a row, not after one lost datagram.
- One owner's subnet cannot fill a bucket. Loopback and home networks are exempt: no stranger can
  choose to be there, and a home may well be one /24.
- Buckets are split by range, so crafted ids cannot make the table grow without bound.

Whoever is in here answered a ping of ours at that address, under that id, at least once.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain

from kademlia.node import Node
from kademlia.routing import KBucket, RoutingTable

from p2pstore.dht.address import subnet
from p2pstore.ids import NodeId

ID_BITS = 160
FAILURES = 2  # in a row; each of them is three datagrams without an answer
SPLIT_BITS = 5  # Kademlia 4.2: buckets that are not ours split down to multiples of b bits
LONELY_S = 3600.0


class Bucket(KBucket):  # type: ignore[misc]  # the package has no types
    def __init__(self, low: int, high: int, ksize: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        super().__init__(low, high, ksize)

    def touch_last_updated(self) -> None:
        self.last_updated = self._clock()

    def split(self) -> tuple[Bucket, Bucket]:
        low, high = self.range
        middle = (low + high) // 2
        halves = (
            Bucket(low, middle, self.ksize, self._clock),
            Bucket(middle + 1, high, self.ksize, self._clock),
        )
        for half in halves:
            half.last_updated = self.last_updated
        for node in chain(self.nodes.values(), self.replacement_nodes.values()):
            halves[node.long_id > middle].add_node(node)
        return halves

    def bits(self) -> int:
        """How many leading bits its ids share."""
        return ID_BITS - int(self.range[1] - self.range[0]).bit_length()

    def crowded(self, node: Node, limit: int | None) -> bool:
        """Whether the subnet of a newcomer has its share of this bucket already."""
        home = subnet(node.ip)
        if limit is None or home is None:
            return False
        others = chain(self.nodes.values(), self.replacement_nodes.values())
        return sum(subnet(n.ip) == home for n in others if n.id != node.id) >= limit


class Table(RoutingTable):  # type: ignore[misc]  # the package has no types
    def __init__(
        self,
        node: Node,
        ksize: int,
        *,
        subnet_limit: int | None,
        clock: Callable[[], float],
        probe: Callable[[Node], None],
    ) -> None:
        """`probe` is asked to ping the oldest contact of a full bucket; it must not block."""
        self._clock = clock
        self._subnet_limit = subnet_limit
        self._probe = probe
        self._failures: Counter[NodeId] = Counter()
        super().__init__(None, ksize, node)

    def flush(self) -> None:
        self.buckets = [Bucket(0, 2**ID_BITS - 1, self.ksize, self._clock)]

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self.buckets)

    def __iter__(self) -> Iterator[Node]:
        return chain.from_iterable(bucket.nodes.values() for bucket in self.buckets)

    def get(self, node_id: NodeId) -> Node | None:
        return self.bucket_of(Node(node_id))[node_id]

    def bucket_of(self, node: Node) -> Bucket:
        return self.buckets[self.get_bucket_for(node)]

    def get_bucket_for(self, node: Node) -> int:
        low, high = 0, len(self.buckets) - 1
        while low < high:
            middle = (low + high) // 2
            if node.long_id <= self.buckets[middle].range[1]:
                high = middle
            else:
                low = middle + 1
        return low

    def add_contact(self, node: Node) -> None:
        """Take in a contact that has just proved its id and address."""
        if node.id == self.node.id:
            return
        self._failures.pop(node.id, None)
        while True:
            index = self.get_bucket_for(node)
            bucket = self.buckets[index]
            if bucket.crowded(node, self._subnet_limit):
                return
            if bucket.add_node(node):
                bucket.replacement_nodes.pop(node.id, None)
                return
            ours = bucket.has_in_range(self.node)
            if not ours and bucket.bits() % SPLIT_BITS == 0:
                # Old contacts stay: who is up for an hour will likely be up for another (2.2).
                self._probe(bucket.head())
                return
            bucket.replacement_nodes.pop(node.id, None)
            self.split_bucket(index)

    def alive(self, node: Node) -> None:
        """It answered: forget its failures, and let it be the last to be doubted."""
        self._failures.pop(node.id, None)
        bucket = self.bucket_of(node)
        if node.id in bucket.nodes:
            bucket.nodes.move_to_end(node.id)

    def failed(self, node: Node) -> None:
        """It did not answer at the address that we have for it."""
        known = self.get(node.id)
        if known is None or not known.same_home_as(node):
            return
        self._failures[node.id] += 1
        if self._failures[node.id] >= FAILURES:
            self.remove_contact(node)

    def remove_contact(self, node: Node) -> None:
        self._failures.pop(node.id, None)
        super().remove_contact(node)

    def lonely_buckets(self) -> list[Bucket]:
        now = self._clock()
        return [b for b in self.buckets if b.last_updated <= now - LONELY_S]

    @staticmethod
    def some_id_in(bucket: Bucket, dice: bytes) -> bytes:
        low, high = bucket.range
        return int(low + int.from_bytes(dice, "big") % (high - low + 1)).to_bytes(20, "big")

    def find_neighbors(
        self, node: Node, k: int | None = None, exclude: Node | None = None
    ) -> list[Node]:
        target = node.long_id
        out = None if exclude is None else exclude.id
        return heapq.nsmallest(
            k or self.ksize,
            (n for n in self if n.id != out),
            key=lambda n: n.long_id ^ target,
        )

    def size_of_network(self) -> int:
        """An estimate from how densely the ids lie around ours; exact while all are known."""
        near = self.find_neighbors(self.node)
        if len(near) < self.ksize:
            return len(near) + 1
        furthest = int(self.node.distance_to(near[-1]))
        return max(len(self) + 1, (len(near) << ID_BITS) // furthest)
