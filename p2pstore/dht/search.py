"""Looking for the providers of some tags, and for where they are.

One crawl a region of the key space, then few of the nodes that are near to each tag are asked: the
nearest first, the others only when these know of nobody. What comes back is proven claims (see
`claim`); no answerer can fill all the places.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from kademlia.node import Node

from p2pstore.dht import datagram as wire
from p2pstore.dht.proofs import proven_tags
from p2pstore.dht.protocol import SignedProtocol
from p2pstore.dht.server import DhtServer
from p2pstore.dht.shelf import MAX_PROVIDERS
from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import NodeId, PublicKey, Tag, node_id_of
from p2pstore.wire import PeerRecord

FIRST_ASKED = 4  # of the nodes nearest to a tag; the others when these know of no provider
MAX_PAGES = 40  # of claims from one node for one request: 64 providers of one tag
FRESH_RECORD_MS = 3600 * 1000  # a record of that age is believed without asking again


class Search:
    """One search, made once."""

    def __init__(self, server: DhtServer, related: Callable[[NodeId], bool]) -> None:
        self._server = server
        self._protocol: SignedProtocol = server.protocol
        self._related = related
        self._now_ms = self._protocol.now_ms()
        self._answers: defaultdict[bytes, dict[bytes, dict[NodeId, None]]] = defaultdict(dict)
        self._namers: defaultdict[NodeId, dict[bytes, None]] = defaultdict(dict)
        self._nodes: dict[bytes, Node] = {}
        self._verified: set[bytes] = set()

    async def providers(self, tags: Sequence[Tag]) -> dict[Tag, list[PeerRecord]]:
        """Those whose address somebody could tell, at most 64 of each tag."""

        async def region(members: list[bytes], nodes: list[Node]) -> None:
            wanted = set(members)
            for claim in self._protocol.claims.under(members, self._now_ms):
                here = [key for key in claim.keys if key in wanted]
                self._note(self._server.node.id, here, claim.provider)
            await self._ask(members, nodes, 0, FIRST_ASKED)
            missing = [t for t in members if not self._answers[t]]
            await self._ask(missing, nodes, FIRST_ASKED, self._server.ksize)

        await self._server.each_region(tags, region)
        chosen = {tag: self._choose(self._answers[tag]) for tag in tags}
        records = await self._resolve({n for ids in chosen.values() for n in ids})
        return {tag: [records[n] for n in ids if n in records] for tag, ids in chosen.items()}

    async def _ask(self, tags: Sequence[bytes], nodes: Sequence[Node], low: int, high: int) -> None:
        """Ask those of the nodes that are the low-th to high-th nearest to each tag."""
        plan: defaultdict[int, list[bytes]] = defaultdict(list)
        for tag in tags:
            target = int.from_bytes(tag, "big")
            order = sorted(range(len(nodes)), key=lambda i: nodes[i].long_id ^ target)
            for index in order[low:high]:
                plan[index].append(tag)
        async with asyncio.TaskGroup() as group:
            for index, wanted in plan.items():
                group.create_task(self._ask_node(nodes[index], wanted))

    async def _ask_node(self, node: Node, tags: Sequence[bytes]) -> None:
        size = wire.claim_capacity(self._protocol.network)
        for at in range(0, len(tags), size):
            asked = tuple(tags[at : at + size])
            start = 0
            for _ in range(MAX_PAGES):
                body = wire.GetProviders(b"".join(asked), start)
                page = await self._protocol.ask(node, body)
                if not isinstance(page, wire.Providers):
                    return
                try:
                    self._read(node, page, asked)
                except (FormatError, IntegrityError) as exc:
                    self._protocol.dropped[str(exc)] += 1
                    return
                if page.next <= start:
                    break
                start = page.next

    def _choose(self, answers: dict[bytes, dict[NodeId, None]]) -> list[NodeId]:
        """Take turns among the answerers, so that none of them can fill all places."""
        chosen: dict[NodeId, None] = {}
        queues = [iter(found) for found in answers.values()]
        while queues:
            for queue in list(queues):
                node_id = next(queue, None)
                if node_id is None:
                    queues.remove(queue)
                elif node_id != self._server.node.id:
                    chosen[node_id] = None
        first = list(chosen)
        # Whom we know counts, wherever a liar's inventions stand.
        first.sort(key=lambda n: not self._related(n))
        return first[:MAX_PROVIDERS]

    async def _resolve(self, wanted: set[NodeId]) -> dict[NodeId, PeerRecord]:
        """Address records: fresh ones of ours, else from two of those who named the provider.

        Two, because one may keep an old record back to send us astray; more while some is lacking.
        """
        fresh_ms = self._now_ms - FRESH_RECORD_MS
        for turn in range(FIRST_ASKED):
            plan: defaultdict[bytes, list[NodeId]] = defaultdict(list)
            for node_id in wanted:
                record = self._protocol.records.get(node_id, self._now_ms)
                namers = list(self._namers[node_id])
                if turn < len(namers) and (record is None or record.issued_ms < fresh_ms):
                    plan[namers[turn]].append(node_id)
            if not plan or (turn >= 2 and not self._lacks(wanted)):
                break
            async with asyncio.TaskGroup() as group:
                for namer, ids in plan.items():
                    group.create_task(fetch_records(self._protocol, self._nodes[namer], ids))
        found = {n: self._protocol.records.get(n, self._now_ms) for n in wanted}
        return {n: r for n, r in found.items() if r is not None}

    def _lacks(self, wanted: set[NodeId]) -> bool:
        return any(self._protocol.records.get(n, self._now_ms) is None for n in wanted)

    def _read(self, node: Node, page: wire.Providers, asked: tuple[bytes, ...]) -> None:
        self._nodes[node.id] = node
        for part in page.claims:
            tags = proven_tags(self._protocol.network, part, asked, self._now_ms, self._verified)
            provider = node_id_of(PublicKey(part.public_key))
            self._note(node.id, tags, provider)
            self._namers[provider][node.id] = None

    def _note(self, answerer: bytes, tags: Iterable[bytes], provider: NodeId) -> None:
        for tag in tags:
            found = self._answers[tag].setdefault(answerer, {})
            if len(found) < MAX_PROVIDERS:
                found[provider] = None


async def fetch_records(protocol: SignedProtocol, node: Node, ids: Sequence[NodeId]) -> None:
    """Ask one node for address records of those ids, and keep the newer ones."""
    rest = sorted(ids)
    size = wire.claim_capacity(protocol.network)
    while rest:
        asked = rest[:size]
        body = await protocol.ask(node, wire.GetRecords(b"".join(asked)))
        if not isinstance(body, wire.Records):
            return
        got = set()
        for raw in body.records:
            record = protocol.records.try_add(raw, protocol.now_ms(), among=asked)
            if record is not None:
                got.add(record.node_id)
        # A reply holds a few records only; what it left out after the last is asked again.
        last = max(got, default=None)
        rest = [] if last is None else [n for n in rest if n > last]
