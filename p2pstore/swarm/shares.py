"""Finding the root of a share: one block, of whose id only the beginning is known.

Asked are, one after the other, this disk, the nodes that the key names, providers of the share's
tag in the DHT, and then whoever is linked, who may pass the request on. A node that has the bundle
and refuses is believed when nobody else gives it: the share has ended, or the password is wrong.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Final

from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.content import MAX_BLOCK, BundleRef, ShareKey
from p2pstore.errors import IntegrityError, NotAllowed, P2PStoreError, Unavailable
from p2pstore.ids import BlockId, NodeId
from p2pstore.net import STRANGER, Address, Link
from p2pstore.swarm.call import Ticket
from p2pstore.swarm.getting import Asker, Peers, get_blocks
from p2pstore.swarm.shelf import Shelf
from p2pstore.swarm.source import Providers
from p2pstore.threads import in_thread
from p2pstore.wire import MAX_HOPS

log = logging.getLogger(__name__)

DIAL_S: Final = 5.0
DHT_S: Final = 20.0
MAX_DIALLED: Final = 8  # providers of one tag
MAX_ASKED: Final = 8  # of those that may pass it on


class ShareRefused(Unavailable):
    """The share is there, and is not given for this token."""


class ShareFinder:
    def __init__(
        self,
        identity: SigningKey,
        shelf: Shelf,
        peers: Peers,
        *,
        pool: Executor,
        clock: Clock,
        chain: Callable[[], bytes],
        providers: Providers,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._shelf = shelf
        self._peers = peers
        self._pool = pool
        self._providers = providers
        self._asker = Asker(identity, chain, clock, random)

    async def root(self, key: ShareKey, ref: BundleRef, token: bytes) -> tuple[bytes, Ticket]:
        """The sealed block, and what to show for the others.

        ShareRefused, or Unavailable when nobody is found that has it.
        """
        here = await in_thread(self._pool, self._here, key, ref)
        named = await self._met(key.hints) if here is None else []
        ticket = Ticket(token, tuple(link.node_id for link in named))
        if here is not None:
            return here, ticket
        refusal: NotAllowed | None = None
        asked: set[tuple[NodeId, int]] = set()
        async with aclosing(self._askable(ref, named)) as links:
            async for link, hops in links:
                if (link.node_id, hops) in asked:
                    continue
                asked.add((link.node_id, hops))
                try:
                    block = await self._ask(link, key, ref, token, hops)
                except NotAllowed as exc:
                    refusal = exc
                except P2PStoreError as exc:
                    log.debug("%s does not give the root of a share: %s", link, exc)
                else:
                    if block is not None:
                        return block, ticket
        if refusal is not None:
            raise ShareRefused(
                "The share has ended or was taken back, or the password is wrong. After many wrong "
                "ones the right one is not taken either for a while: try it again in a minute."
            )
        raise Unavailable(
            "No node was found that has this file. Whoever gave the key must have a node running "
            "that this one can reach; try again later."
        )

    async def _met(self, addresses: Sequence[Address]) -> list[Link]:
        """Links to whoever answers at the addresses that a key names."""
        links = await asyncio.gather(*(self._dial(address) for address in addresses))
        return list({link.node_id: link for link in links if link is not None}.values())

    def _here(self, key: ShareKey, ref: BundleRef) -> bytes | None:
        for place in self._shelf.find(ref.bundle_id, ref.tag):
            entries = self._shelf.index(place).blocks.entries
            roots = [entry.block_id for entry in entries if key.is_root(entry.block_id)]
            for block in self._shelf.read(place, roots).values():
                return block
        return None

    async def _askable(
        self, ref: BundleRef, named: Sequence[Link]
    ) -> AsyncGenerator[tuple[Link, int], None]:
        """Links, and the hops to begin with: MAX_HOPS is not passed on."""
        for link in named:
            yield link, MAX_HOPS
        for link in await self._providing(ref):
            yield link, MAX_HOPS
        linked = sorted(self._peers.links(), key=lambda link: link.role == STRANGER)
        for link in linked[:MAX_ASKED]:
            yield link, 0

    async def _providing(self, ref: BundleRef) -> list[Link]:
        try:
            async with asyncio.timeout(DHT_S):
                records = (await self._providers([ref.tag])).get(ref.tag, ())
        except (P2PStoreError, TimeoutError) as exc:
            log.debug("The DHT was not asked for a share: %s", exc)
            return []
        links = await asyncio.gather(
            *(self._dial(one.node_id, one.addresses) for one in records[:MAX_DIALLED])
        )
        return [link for link in links if link is not None]

    async def _dial(
        self, target: NodeId | Address, addresses: Sequence[Address] = ()
    ) -> Link | None:
        try:
            async with asyncio.timeout(DIAL_S):
                return await self._peers.connect(target, addresses)
        except (P2PStoreError, TimeoutError) as exc:
            log.debug("A node that a share leads to cannot be reached: %s", exc)
            return None

    async def _ask(
        self, link: Link, key: ShareKey, ref: BundleRef, token: bytes, hops: int
    ) -> bytes | None:
        request = self._asker.sign(ref.bundle_id, ref.tag, (), token=token, budget=MAX_BLOCK)
        found: dict[BlockId, bytes] = {}
        async with aclosing(
            get_blocks(link, request, (), hops=hops, pool=self._pool, budget=MAX_BLOCK)
        ) as batches:
            async for batch in batches:
                found |= batch
        if not found:
            return None
        for block_id, block in found.items():
            if key.is_root(block_id):
                return block
        raise IntegrityError(f"{link} sent something else than the root of the share.")
