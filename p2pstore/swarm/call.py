"""One fetch of blocks: what is still missing, and who is asked for which part of it next.

No peer is asked twice for a block in the same way, and no block is asked of two peers at once. Who
has failed is asked no more, and who failed in an earlier call only when nobody else is left.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple, Protocol

from p2pstore.ids import BlockId, BundleId, NodeId, Tag
from p2pstore.swarm.getting import SPLIT

LEAST_SHARE: Final = 16  # blocks of a request; smaller ones cost more than they spread


class Ref(Protocol):
    @property
    def bundle_id(self) -> BundleId: ...
    @property
    def tag(self) -> Tag: ...


class Wanted(Protocol):
    """A block, and the bundle that it was in when somebody last looked."""

    @property
    def ref(self) -> Ref: ...
    @property
    def block_id(self) -> BlockId: ...


class Ticket(NamedTuple):
    """What somebody who is no member shows for the blocks of a share, and who may have them."""

    token: bytes
    nodes: tuple[NodeId, ...] = ()  # beside those that are found in the ordinary ways


class Call:
    """What one fetch still misses, and whom it need not ask any more."""

    def __init__(
        self,
        wanted: Mapping[BlockId, Wanted],
        shunned: Iterable[NodeId],
        ticket: Ticket | None = None,
    ) -> None:
        self.ticket = ticket or Ticket(b"")
        self.found: dict[BlockId, bytes] = {}
        self.shunned = set(shunned)  # failed in an earlier call: asked when nobody else is left
        self.refused: set[NodeId] = set(self.shunned)  # liars, and those that failed
        self._tags: dict[BundleId, Tag] = {}
        self._missing: dict[BundleId, dict[BlockId, set[NodeId]]] = {}
        self._busy: set[BlockId] = set()
        for block_id, one in wanted.items():
            self._tags[one.ref.bundle_id] = one.ref.tag
            self._missing.setdefault(one.ref.bundle_id, {})[block_id] = set()

    @property
    def bundles(self) -> dict[BundleId, Tag]:
        """The bundles of which something is missing."""
        return {bundle: self._tags[bundle] for bundle, left in self._missing.items() if left}

    @property
    def missing(self) -> list[BlockId]:
        return [block_id for left in self._missing.values() for block_id in left]

    @property
    def wanted(self) -> dict[BundleId, list[BlockId]]:
        """What is missing, by bundle."""
        return {bundle: list(left) for bundle, left in self._missing.items() if left}

    def came(self, blocks: Mapping[BlockId, bytes]) -> None:
        """From wherever it was."""
        for bundle in self._missing:
            self.got(bundle, {b: blocks[b] for b in self._missing[bundle] if b in blocks})

    def take(
        self, node: NodeId, bundles: Collection[BundleId], sharers: int
    ) -> tuple[BundleId, list[BlockId]] | None:
        """Blocks of one bundle for that node, which it has not been asked for yet."""
        if node in self.refused:
            return None
        for bundle in bundles:
            free = [
                block_id
                for block_id, asked in self._missing.get(bundle, {}).items()
                if block_id not in self._busy and node not in asked
            ]
            if free:
                share = max(LEAST_SHARE, -(-len(free) // max(1, sharers)))
                part = free[: min(share, SPLIT)]
                self._busy.update(part)
                for block_id in part:
                    self._missing[bundle][block_id].add(node)
                return bundle, part
        return None

    def got(self, bundle: BundleId, blocks: Mapping[BlockId, bytes]) -> None:
        self.found.update(blocks)
        for block_id in blocks:
            self._missing[bundle].pop(block_id, None)

    def done(self, part: Iterable[BlockId]) -> None:
        self._busy.difference_update(part)

    def ask_anew(self) -> None:
        """Whoever did not have it may be asked once more, in another way; the shunned too."""
        self.refused -= self.shunned
        self.shunned.clear()
        for left in self._missing.values():
            for asked in left.values():
                asked.clear()
