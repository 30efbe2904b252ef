"""SEEKING holders of a group of which nothing is known but its words.

Three ways at once: the addresses that the user names, nodes in the local network, and the DHT,
where holders announce themselves under a tag that the words give. Whoever answers tells of more.
Ends when all that could be found were asked. Where somebody may turn up later (the local network),
it ends a few seconds after the last one that had something new to say, because the newest state and
heads may be with another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.config import Config
from p2pstore.dht import LOOPBACK, Dht, DhtSettings
from p2pstore.errors import P2PStoreError, Unavailable, UsageError
from p2pstore.ids import NodeId, PublicKey
from p2pstore.members import Recovery, default_name, newcomer
from p2pstore.net import STRANGER, Address, Discovery, Link, PeerBook, TlsTransport
from p2pstore.wire import GetPeers, PeerRecord, Peers, sign_record, verify_record

log = logging.getLogger(__name__)

GATHER_S = 3.0  # after the last news: others may know something newer
PATIENCE_S = 60.0  # without any answer
LOOK_S = 5.0  # between questions to the DHT, and the most that its first answer is waited for
MAX_MET = 512  # nodes: who names ever more of them, all his own, keeps nobody busy for ever
AT_ONCE = 32

Progress = Callable[[dict[str, Any]], None]


class Seeker:
    def __init__(
        self, recovery: Recovery, config: Config, book: PeerBook, clock: Clock, progress: Progress
    ) -> None:
        self._recovery = recovery
        self._config = config
        self._book = book
        self._clock = clock
        self._progress = progress
        self._transport = TlsTransport(
            recovery.device, hello=recovery.hello, role_of=recovery.role_of, clock=clock
        )
        self._dialled: set[NodeId] = set()
        self._free = asyncio.Semaphore(AT_ONCE)
        self._news, self._looked = asyncio.Event(), asyncio.Event()
        self._meetings: set[asyncio.Task[None]] = set()  # whoever is being asked just now
        self._discovers = False
        self._asked = 0
        self.answered: list[str] = []
        self._group: asyncio.TaskGroup | None = None

    async def run(self, patience_s: float) -> None:
        """Until holders have answered; Unavailable when none does in `patience_s`."""
        dht = self._dht()
        discovery: Discovery | None = None
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                tasks = [self._start(self._named()), group.create_task(self._ask_dht(dht))]
                discovery = await self._discover()
                self._discovers = discovery is not None
                await self._wait(patience_s)
                for task in tasks:
                    task.cancel()
                self._group = None
        finally:
            if discovery is not None:
                await discovery.close()
            await dht.close()
            await self._transport.close()

    async def _wait(self, patience_s: float) -> None:
        if not await _comes(self._news, patience_s):
            return
        await _comes(self._looked, LOOK_S)  # whom the DHT names may know of something newer
        while self._news.is_set():
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_S):
                    await self._more()

    async def _more(self) -> None:
        """Return when there are news, or when nobody is left who may have some."""
        news = asyncio.ensure_future(self._news.wait())
        try:
            while not news.done() and (self._meetings or self._discovers):
                await asyncio.wait({news, *self._meetings}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    # -- ways -------------------------------------------------------------------------------------

    async def _named(self) -> None:
        async with asyncio.TaskGroup() as group:
            for address in self._config.bootstrap:
                group.create_task(self._meet((address.host, address.port), None))

    def _dht(self) -> Dht:
        network, device = self._config.network, self._recovery.device

        def record() -> bytes:
            issued_ms = int(self._clock.wall() * 1000)
            return sign_record(PeerRecord(self._recovery.public, network, (), issued_ms), device)

        return Dht(
            device,
            network,
            record,
            clock=self._clock,
            settings=LOOPBACK if self._is_loopback() else DhtSettings(),
        )

    def _is_loopback(self) -> bool:
        return ipaddress.ip_address(self._config.listen.host).is_loopback

    async def _ask_dht(self, dht: Dht) -> None:
        ways_in = [(address.host, address.port) for address in self._config.bootstrap]
        await dht.start(self._config.listen.host, 0, ways_in)
        while True:
            await self._start(self._look(dht))
            self._looked.set()
            await asyncio.sleep(LOOK_S)

    async def _look(self, dht: Dht) -> None:
        try:
            found = await dht.providers([self._recovery.tag])
        except P2PStoreError as exc:
            log.debug("The DHT could not be asked: %s", exc)
            return
        for record in found.get(self._recovery.tag, ()):
            self._try(record.node_id, record.addresses)

    async def _discover(self) -> Discovery | None:
        if not self._config.mdns or self._is_loopback():
            return None

        discovery = Discovery(self._recovery.node_id, self._config.network, 0, self._try)
        try:
            await discovery.start()
        except OSError as exc:
            log.info("No search in the local network: %s", exc)
        return discovery

    # -- meeting ----------------------------------------------------------------------------------

    def _try(self, node_id: NodeId, addresses: Sequence[Address]) -> None:
        is_new = node_id not in self._dialled and len(self._dialled) < MAX_MET
        if self._group is not None and is_new:
            self._dialled.add(node_id)
            self._start(self._meet_any(node_id, addresses))

    def _start(self, meeting: Coroutine[None, None, None]) -> asyncio.Task[None]:
        assert self._group is not None
        task = self._group.create_task(meeting)
        self._meetings.add(task)
        task.add_done_callback(self._meetings.discard)
        return task

    async def _meet_any(self, node_id: NodeId, addresses: Sequence[Address]) -> None:
        async with self._free:
            for address in addresses:
                if self._group is None or await self._meet(address, node_id):
                    return

    async def _meet(self, address: Address, expect: NodeId | None) -> bool:
        """Whether somebody answered there, of whatever group."""
        try:
            link = await self._transport.dial(*address, expect=expect)
            self._dialled.add(link.node_id)
            await self._ask(link)
        except P2PStoreError as exc:
            log.debug("%s:%d: %s", *address, exc)
            return False
        return True

    async def _ask(self, link: Link) -> None:
        self._asked += 1
        before = self._recovery.news
        if await self._recovery.ask(link):
            self._book.note_link(link, int(self._clock.wall() * 1000))
            self.answered.append(link.hello.name)
        if self._recovery.news != before:
            self._news.set()
        self._progress(
            {"stage": "seek", "text": f"Nodes asked: {self._asked}; with something of this group: "
             f"{len(self.answered)}"}
        )  # fmt: skip
        reply, _ = await link.request(GetPeers())
        if isinstance(reply, Peers):
            for raw in reply.records:
                record = verify_record(raw)
                self._try(record.node_id, record.addresses)


async def _comes(event: asyncio.Event, within_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


async def groups_met(config: Config) -> set[PublicKey]:
    """The groups of the nodes that the user named: to say which word is wrong, if it is one."""
    stranger = SigningKey.generate()
    transport = TlsTransport(
        stranger,
        hello=lambda: newcomer(stranger, config.network, default_name()),
        role_of=lambda _: STRANGER,
    )
    met: set[PublicKey] = set()
    try:
        for address in config.bootstrap:
            with contextlib.suppress(P2PStoreError):
                link = await transport.dial(address.host, address.port)
                if link.hello.group is not None:
                    met.add(link.hello.group)
    finally:
        await transport.close()
    return met


async def seek(
    recovery: Recovery,
    words: str,
    config: Config,
    book: PeerBook,
    clock: Clock,
    progress: Progress,
    *,
    patience_s: float = PATIENCE_S,
) -> list[str]:
    """The names of those that answered, with what they keep in `recovery` and who they are in
    `book`. Unavailable: nobody did. UsageError: somebody of nearly the same words did."""
    seeker = Seeker(recovery, config, book, clock, progress)
    await seeker.run(patience_s)
    if not seeker.answered:
        mistake = await asyncio.to_thread(recovery.why_nobody, words)
        if mistake is not None:
            raise UsageError(f"These are not the words of the group that answered. {mistake}")
        raise Unavailable(
            "No node that keeps anything of this group answered. Start one of the others, name "
            "its address (--bootstrap HOST:PORT), and look at every word again."
        )
    return seeker.answered
