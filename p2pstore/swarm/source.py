"""Where blocks come from: this disk first, then whoever holds them, until none is missing.

    1  our own store, what we hold for others, the cache of single blocks
    2  holders that the catalog names, or that gave some of the bundle before, and that are linked
    3  devices and friends that say they have the bundle (HAVE)
    4  the catalog's holders that are not connected: dialled; then carriers; then providers that
       the DHT names: dialled
    5  any connected device or friend, which may pass the request on (see `forward`)

The blocks of a share are asked for with its ticket, and also of the nodes that this names.

The next step is taken only for what is still missing. Within a step all peers are asked at once;
who is faster gets more of the work. Every block is compared with its id when it comes. A peer that
sends something else is a liar, one that fails or stalls is of no use: neither is asked again within
the call, and for the next minutes it is asked last, so that one stalling peer does not slow down
every window of a large file. A block that several callers want at once is fetched once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Final

from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.content import MAX_BLOCK
from p2pstore.errors import (
    BlocksMissing,
    Busy,
    IntegrityError,
    NotAllowed,
    P2PStoreError,
    RemoteProtocolError,
)
from p2pstore.ids import BlockId, BundleId, NodeId, Tag, short
from p2pstore.net import STRANGER, Link
from p2pstore.swarm.cache import BlockCache
from p2pstore.swarm.call import Call, Ticket, Wanted
from p2pstore.swarm.getting import ANSWER_S, Asker, Lanes, Peers, get_blocks
from p2pstore.swarm.shelf import Shelf
from p2pstore.text import plural
from p2pstore.threads import in_thread
from p2pstore.wire import MAX_HOPS, MAX_WANTED, Have, HaveReply, PeerRecord

log = logging.getLogger(__name__)

PER_PEER: Final = 2  # requests at once: the next one is there when the first has been answered
MAX_DIALLED: Final = 8  # providers that are dialled at once
DIAL_S: Final = 10.0
DHT_S: Final = 20.0
HAVE_S: Final = 5.0
SHUNNED_S: Final = 300.0  # asked last for so long
MAX_SHUNNED: Final = 1000
MAX_GIVERS: Final = 1000  # bundles of which it is remembered who gave some of them

Holders = Callable[[Sequence[BundleId]], Mapping[BundleId, Sequence[NodeId]]]
Providers = Callable[[Sequence[Tag]], Awaitable[Mapping[Tag, Sequence[PeerRecord]]]]


class BlocksNotFound(BlocksMissing):
    """`missing` could be found nowhere; `offline` names known holders that are not reachable."""

    def __init__(self, missing: Collection[BlockId], offline: Sequence[str]) -> None:
        number = len(missing)
        what = plural(number, "block")
        if offline:
            names = ", ".join(offline)
            verb = "holds" if len(offline) == 1 else "hold"
            text = f"{what} cannot be fetched: {names} {verb} them and cannot be reached now."
        else:
            text = f"{what} could be found on no node that is reachable now."
        super().__init__(text)
        self.missing = frozenset(missing)
        self.offline = tuple(offline)


Elsewhere = Callable[[Mapping[BundleId, Sequence[BlockId]]], Awaitable[Mapping[BlockId, bytes]]]


async def nowhere_else(_: Mapping[BundleId, Sequence[BlockId]]) -> Mapping[BlockId, bytes]:
    return {}


async def nobody(_: Sequence[Tag]) -> Mapping[Tag, Sequence[PeerRecord]]:
    return {}


class Source:
    def __init__(
        self,
        identity: SigningKey,
        shelf: Shelf,
        peers: Peers,
        *,
        pool: Executor,
        clock: Clock,
        chain: Callable[[], bytes],
        holders: Holders,
        name_of: Callable[[NodeId], str | None],
        providers: Providers = nobody,
        elsewhere: Elsewhere = nowhere_else,
        cache: BlockCache | None = None,
        lanes: Lanes | None = None,
        random: Callable[[int], bytes] = os.urandom,
        answer_s: float = ANSWER_S,
    ) -> None:
        """`holders` reads the catalog (in a thread), `providers` asks the DHT, `elsewhere` what is
        no node; what it gives equals its ids."""
        self._shelf = shelf
        self._peers = peers
        self._pool = pool
        self._holders = holders
        self._name_of = name_of
        self._providers = providers
        self._elsewhere = elsewhere
        self._cache = cache
        self._lanes = lanes or Lanes()
        self._asker = Asker(identity, chain, clock, random)
        self._answer_s = answer_s
        self._clock = clock
        self._coming: dict[BlockId, asyncio.Future[Mapping[BlockId, bytes]]] = {}
        self._shunned: dict[NodeId, float] = {}
        self._givers: OrderedDict[BundleId, dict[NodeId, None]] = OrderedDict()

    async def blocks(
        self, wanted: Sequence[Wanted], *, keep: bool = False, ticket: Ticket | None = None
    ) -> dict[BlockId, bytes]:
        """All of them, each equal to its id; BlocksNotFound says which could be found nowhere.

        `keep`: they are likely to be wanted again soon, so that what is fetched is cached.
        `ticket`: they belong to a share.
        """
        found, recorded = await in_thread(self._pool, self._look, wanted)
        left = {one.block_id: one for one in wanted if one.block_id not in found}
        known = self._with_givers({one.ref.bundle_id for one in left.values()}, recorded)
        if ticket is not None:
            known = {bundle: [*nodes, *ticket.nodes] for bundle, nodes in known.items()}
        nowhere: set[BlockId] = set()
        offline: dict[str, None] = {}
        while left:
            shared = {b: self._coming[b] for b in left if b in self._coming}
            mine = {block_id: one for block_id, one in left.items() if block_id not in shared}
            if mine:
                fetched, away = await self._fetch_for_all(mine, known, ticket)
                found |= fetched
                nowhere |= mine.keys() - fetched.keys()
                if keep and self._cache is not None:
                    await in_thread(self._pool, self._cache.write, fetched)
                offline.update(dict.fromkeys(away))
            if shared:
                await asyncio.wait(set(shared.values()))
            for block_id, future in shared.items():
                if future.cancelled():
                    continue  # the other caller went away: fetch it ourselves
                block = future.result().get(block_id)
                if block is None:
                    nowhere.add(block_id)
                else:
                    found[block_id] = block
            left = {b: w for b, w in left.items() if b not in found and b not in nowhere}
        if nowhere:
            raise BlocksNotFound(nowhere, list(offline))
        return found

    # -- this disk ---------------------------------------------------------------------------

    def _look(
        self, wanted: Sequence[Wanted]
    ) -> tuple[dict[BlockId, bytes], Mapping[BundleId, Sequence[NodeId]]]:
        """What is here, and who is known to hold what is not. Runs in a thread."""
        found = self._read(wanted)
        away = {one.ref.bundle_id: None for one in wanted if one.block_id not in found}
        return found, self._holders(list(away)) if away else {}

    def _read(self, wanted: Sequence[Wanted]) -> dict[BlockId, bytes]:
        """Whatever is here, by bundle."""
        by_bundle: dict[BundleId, dict[BlockId, Wanted]] = {}
        for one in wanted:
            by_bundle.setdefault(one.ref.bundle_id, {})[one.block_id] = one
        found: dict[BlockId, bytes] = {}
        for bundle_id, ones in by_bundle.items():
            tag = next(iter(ones.values())).ref.tag
            for place in self._shelf.find(bundle_id, tag):
                left = [block_id for block_id in ones if block_id not in found]
                if not left:
                    break
                found |= self._shelf.read(place, left)
        if self._cache is not None and len(found) < len(wanted):
            found |= self._cache.read(w.block_id for w in wanted if w.block_id not in found)
        return found

    # -- other nodes -------------------------------------------------------------------------

    async def _fetch_for_all(
        self,
        wanted: Mapping[BlockId, Wanted],
        known: Mapping[BundleId, Sequence[NodeId]],
        ticket: Ticket | None,
    ) -> tuple[dict[BlockId, bytes], list[str]]:
        """`_fetch`, with its results given to everybody who waits for the same blocks."""
        coming: asyncio.Future[Mapping[BlockId, bytes]]
        coming = asyncio.get_running_loop().create_future()
        self._coming.update(dict.fromkeys(wanted, coming))
        try:
            found, offline = await self._fetch(wanted, known, ticket)
            coming.set_result(found)
            return found, offline
        finally:
            for block_id in wanted:
                del self._coming[block_id]
            coming.cancel()  # nothing happens to one that has its result

    async def _fetch(
        self,
        wanted: Mapping[BlockId, Wanted],
        known: Mapping[BundleId, Sequence[NodeId]],
        ticket: Ticket | None,
    ) -> tuple[dict[BlockId, bytes], list[str]]:
        """What was found, and the names of holders that could not be reached."""
        call = Call(wanted, self._shun_list(), ticket)
        await self._ask(call, self._connected(known))
        if call.missing:
            await self._ask(call, await self._who_has(call))
        if call.missing:
            await self._ask(call, await self._dial(call, known))
        if call.missing and call.ticket.token == b"":
            call.came(await self._elsewhere(call.wanted))
        if call.missing:
            await self._ask(call, await self._dial_providers(call))
        if call.missing:
            call.ask_anew()
            await self._ask(call, self._connected(known))
        if call.missing:
            call.ask_anew()
            bundles = list(call.bundles)
            # With a ticket strangers may ask, and may be asked.
            able = [
                link for link in self._peers.links() if call.ticket.token or link.role != STRANGER
            ]
            await self._ask(call, dict.fromkeys(able, bundles), hops=0)
        offline = [] if not call.missing else self._offline(call, known)
        return call.found, offline

    def _connected(self, known: Mapping[BundleId, Sequence[NodeId]]) -> dict[Link, list[BundleId]]:
        plan: dict[Link, list[BundleId]] = {}
        for bundle, nodes in known.items():
            for node in nodes:
                link = self._peers.get(node)
                if link is not None:
                    plan.setdefault(link, []).append(bundle)
        return plan

    async def _who_has(self, call: Call) -> dict[Link, list[BundleId]]:
        """Devices and friends that say they have some of the bundles, by id or by tag."""
        bundles = call.bundles
        links = [
            link
            for link in self._peers.links()
            if link.role != STRANGER and link.node_id not in call.refused
        ]
        answers = await asyncio.gather(*(self._has(link, bundles) for link in links))
        return {link: has for link, has in zip(links, answers, strict=True) if has}

    async def _has(self, link: Link, bundles: Mapping[BundleId, Tag]) -> list[BundleId]:
        found: list[BundleId] = []
        ids = list(bundles)
        for at in range(0, len(ids), MAX_WANTED // 2):
            part = ids[at : at + MAX_WANTED // 2]
            question = Have(tuple(bundles[one] for one in part), tuple(part))
            try:
                reply, _ = await link.request(question, timeout_s=HAVE_S)
            except P2PStoreError as exc:
                log.debug("%s does not say what it has: %s", link, exc)
                return found
            if not isinstance(reply, HaveReply) or len(reply.bundles) != len(part):
                return found
            tagged = reply.tags if len(reply.tags) == len(part) else (False,) * len(part)
            for one, seq, has_tag in zip(part, reply.bundles, tagged, strict=True):
                if seq is not None or has_tag:
                    found.append(one)
        return found

    async def _dial(
        self, call: Call, known: Mapping[BundleId, Sequence[NodeId]]
    ) -> dict[Link, list[BundleId]]:
        """Known holders to which there is no link yet."""
        bundles = call.bundles
        away: dict[NodeId, list[BundleId]] = {}
        for bundle in bundles:
            for node in known.get(bundle, ()):
                if self._peers.get(node) is None:
                    away.setdefault(node, []).append(bundle)
        nodes = list(away)[:MAX_DIALLED]
        links = await asyncio.gather(*(self._connect(node, ()) for node in nodes))
        return {
            link: away[node]
            for node, link in zip(nodes, links, strict=True)
            if link is not None and link.node_id not in call.refused
        }

    async def _dial_providers(self, call: Call) -> dict[Link, list[BundleId]]:
        bundles = call.bundles
        try:
            async with asyncio.timeout(DHT_S):
                answers = await self._providers(list(bundles.values()))
        except (P2PStoreError, TimeoutError) as exc:
            log.debug("The DHT was not asked for providers: %s", exc)
            return {}
        away: dict[NodeId, list[BundleId]] = {}
        records: dict[NodeId, PeerRecord] = {}
        for bundle, tag in bundles.items():
            for record in answers.get(tag, ()):
                if record.node_id not in call.refused:
                    away.setdefault(record.node_id, []).append(bundle)
                    records[record.node_id] = record
        nodes = list(away)[:MAX_DIALLED]
        links = await asyncio.gather(
            *(self._connect(node, records[node].addresses) for node in nodes)
        )
        return {
            link: away[node] for node, link in zip(nodes, links, strict=True) if link is not None
        }

    async def _connect(self, node: NodeId, addresses: Sequence[tuple[str, int]]) -> Link | None:
        try:
            async with asyncio.timeout(DIAL_S):
                return await self._peers.connect(node, addresses)
        except (P2PStoreError, TimeoutError) as exc:
            log.debug("Node %s cannot be reached: %s", short(node), exc)
            return None

    async def _ask(
        self, call: Call, plan: Mapping[Link, Sequence[BundleId]], *, hops: int = MAX_HOPS
    ) -> None:
        """Fetch what these peers have, all of them at once, until each was asked for what is left.

        A turn that brings nothing does not end it: one peer may have been asked for everything,
        and the honest one be next. `hops` MAX_HOPS: from them only; 0: they may pass it on.
        """
        while plan and call.missing:
            async with asyncio.TaskGroup() as group:
                turns = [
                    group.create_task(self._work(call, link, bundles, len(plan), hops))
                    for link, bundles in plan.items()
                    for _ in range(PER_PEER)
                ]
            if not any(turn.result() for turn in turns):
                return

    async def _work(
        self, call: Call, link: Link, bundles: Sequence[BundleId], sharers: int, hops: int
    ) -> int:
        """How many times that peer was asked."""
        asked = 0
        while (part := call.take(link.node_id, bundles, sharers)) is not None:
            bundle, block_ids = part
            asked += 1
            try:
                async with self._lanes.one(link):
                    await self._get(call, link, bundle, block_ids, hops)
            except P2PStoreError as exc:
                is_lie = isinstance(exc, (IntegrityError, RemoteProtocolError))
                level = logging.DEBUG
                if is_lie and not isinstance(exc, NotAllowed):
                    level = logging.WARNING
                log.log(level, "Not asking %s any more: %s", link, exc)
                call.refused.add(link.node_id)
                if not isinstance(exc, (NotAllowed, Busy)):
                    self._shun(link.node_id)
            finally:
                call.done(block_ids)
        return asked

    async def _get(
        self, call: Call, link: Link, bundle: BundleId, block_ids: list[BlockId], hops: int
    ) -> None:
        tag = call.bundles.get(bundle)
        if tag is None:
            return
        request = self._asker.sign(bundle, tag, block_ids, token=call.ticket.token)
        async with aclosing(
            get_blocks(
                link,
                request,
                block_ids,
                hops=hops,
                pool=self._pool,
                budget=len(block_ids) * MAX_BLOCK,
                timeout_s=self._answer_s,
            )
        ) as batches:
            async for batch in batches:
                call.got(bundle, batch)
                if hops == MAX_HOPS:  # its own, not passed on
                    self._remember(bundle, link.node_id)

    def _remember(self, bundle: BundleId, giver: NodeId) -> None:
        self._givers.setdefault(bundle, {})[giver] = None
        self._givers.move_to_end(bundle)
        while len(self._givers) > MAX_GIVERS:
            self._givers.popitem(last=False)

    def _with_givers(
        self, bundles: Iterable[BundleId], recorded: Mapping[BundleId, Sequence[NodeId]]
    ) -> dict[BundleId, list[NodeId]]:
        """Who gave some of a bundle lately has more of it: a file's rest needs no new search."""
        return {
            bundle: list(dict.fromkeys((*recorded.get(bundle, ()), *self._givers.get(bundle, ()))))
            for bundle in bundles
        }

    def _shun(self, node: NodeId) -> None:
        self._shunned.pop(node, None)
        self._shunned[node] = self._clock.monotonic() + SHUNNED_S
        while len(self._shunned) > MAX_SHUNNED:
            del self._shunned[next(iter(self._shunned))]

    def _shun_list(self) -> list[NodeId]:
        now = self._clock.monotonic()
        self._shunned = {node: until for node, until in self._shunned.items() if until > now}
        return list(self._shunned)

    def _offline(self, call: Call, known: Mapping[BundleId, Sequence[NodeId]]) -> list[str]:
        away: dict[str, None] = {}
        for bundle in call.bundles:
            for node in known.get(bundle, ()):
                if self._peers.get(node) is None:
                    away[self._name_of(node) or f"node {short(node)}"] = None
        return list(away)
