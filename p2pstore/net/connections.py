"""One link to each peer that we want, made again when it breaks.

Of two links to the same peer one stays: when both came up within `TOGETHER_S` (both nodes dialled
at once), the one that the node with the lower id dialled; otherwise the newer, because nobody dials
a peer to which he has a link that he believes in. The other one is retired: it ends when nothing is
under way on it.

A peer that does not answer is reached through another one that has links to both, where there is
one (see `tunnel`). A direct link is tried first, goes on being tried, and takes over when it comes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable

from p2pstore.clock import Clock, SystemClock
from p2pstore.errors import P2PStoreError, PeerUnreachable
from p2pstore.ids import NodeId, short
from p2pstore.net.endpoint import Transport
from p2pstore.net.link import STRANGER, Address, Link
from p2pstore.net.peers import PeerBook
from p2pstore.net.tasks import TaskOwner, pause_or_wake
from p2pstore.wire import MAX_ADDRESSES, format_address

log = logging.getLogger(__name__)

TOGETHER_S = 10.0
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0  # a laptop that comes home is found within five minutes, without mDNS
SAVE_EVERY_S = 30.0
TUNNEL_AFTER_S = 1.0  # so long a direct connection is waited for alone
MAX_RELAYS = 4  # that are asked for a tunnel; one that has no link to the node says so at once
DIRECT_EVERY_S = 300.0  # while a tunnel is up
STEADY_S = 60.0  # a link that lived so long was no failure


def pause_after(failures: int, dice: float) -> float:
    """Seconds to wait after `failures` in a row; `dice` in [0, 1) spreads those who wait alike."""
    longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16))
    return longest * (0.5 + dice / 2)


def keeps_old(old: Link, new: Link, us: NodeId) -> bool:
    """Whether of two links to one peer the older stays; both ends come to the same answer."""
    if (old.via is None) != (new.via is None):
        return old.via is None
    if abs(new.connected_at - old.connected_at) > TOGETHER_S:
        return False
    if old.is_dialled == new.is_dialled:
        return False
    return old.is_dialled == (us < new.node_id)


class Connections:
    def __init__(
        self,
        transport: Transport,
        book: PeerBook,
        *,
        clock: Clock | None = None,
        dice: Callable[[], float] = random.random,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
        find: Callable[[NodeId], Awaitable[Iterable[Address]]] | None = None,
    ) -> None:
        """`find` asks for addresses elsewhere (the DHT) when those in the book do not answer."""
        self._transport = transport
        self._book = book
        self._clock: Clock = clock or SystemClock()
        self._dice = dice
        self._pause = pause
        self._find = find
        self._tasks = TaskOwner()
        self._links: dict[NodeId, Link] = {}
        self._wanted: dict[NodeId, asyncio.Task[None]] = {}
        self._dialling: dict[NodeId, asyncio.Task[Link]] = {}
        self._wake: dict[NodeId, asyncio.Event] = {}
        self._saving = asyncio.Lock()
        self._closed = False
        transport.watch(self._changed)

    def start(self) -> None:
        """Save the book from time to time."""
        self._tasks.start(self._save_for_ever())

    async def close(self) -> None:
        """Stop dialling and save the book; the links are the transport's to close."""
        self._closed = True
        await self._tasks.close()
        await asyncio.to_thread(self._book.save)

    # -- asking ------------------------------------------------------------------------------

    def get(self, node_id: NodeId) -> Link | None:
        """The link to that node, when there is one now."""
        link = self._links.get(node_id)
        return link if link is not None and not link.is_closed else None

    def links(self) -> list[Link]:
        return [link for link in self._links.values() if not link.is_closed]

    async def connect(self, target: NodeId | Address, addresses: Iterable[Address] = ()) -> Link:
        """The link to a node, dialled when there is none, or to whoever is at an address.

        PeerUnreachable when no address answers. Callers at the same time share one attempt.
        """
        if self._closed:
            raise PeerUnreachable("The network was closed.")
        if isinstance(target, tuple):
            link = await self._transport.dial(*target)
            self._settle(link)
            return self.get(link.node_id) or link
        for address in addresses:
            self._book.note_address(target, address)
        link_now = self.get(target)
        if link_now is not None:
            return link_now
        task = self._dialling.get(target)
        if task is None:
            task = self._tasks.start(self._dial_all(target), is_awaited=True)
            task.add_done_callback(_seen)
            self._dialling[target] = task
            task.add_done_callback(lambda _: self._dialling.pop(target, None))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if task.cancelled() and caller is not None and not caller.cancelling():
                raise PeerUnreachable("The network was closed.") from None
            raise

    def want(self, node_id: NodeId) -> None:
        """Keep a link to that node from now on."""
        if node_id not in self._wanted and not self._closed:
            self._wake[node_id] = asyncio.Event()
            self._wanted[node_id] = self._tasks.start(self._keep_linked(node_id))

    def unwant(self, node_id: NodeId) -> None:
        """Dial no more; a link that is up stays."""
        task = self._wanted.pop(node_id, None)
        if task is not None:
            task.cancel()
            del self._wake[node_id]

    def retry(self, node_id: NodeId | None = None) -> None:
        """Something changed (an address was found, the network is back): dial now, not later."""
        for wanted, event in self._wake.items():
            if node_id is None or node_id == wanted:
                event.set()

    # -- the work ----------------------------------------------------------------------------

    async def _dial_all(self, node_id: NodeId) -> Link:
        """Directly, or through a peer while that takes long or when it fails."""
        direct: asyncio.Task[Link]
        direct = self._tasks.start(self._dial_directly(node_id), is_awaited=True)
        direct.add_done_callback(_seen)
        await asyncio.wait((direct,), timeout=TUNNEL_AFTER_S)
        if not (direct.done() and direct.exception() is None):
            link = await self._dial_through(node_id)
            if link is not None:
                return link
        return await direct

    async def _dial_directly(self, node_id: NodeId) -> Link:
        """When it comes after a link through a peer, it takes over from that one."""
        tried: set[Address] = set()
        errors: list[str] = []
        link = await self._dial_each(node_id, self._book.addresses(node_id), tried, errors)
        if link is None and self._find is not None:
            found = tuple(await self._find(node_id))[:MAX_ADDRESSES]
            link = await self._dial_each(node_id, found, tried, errors)
        if link is None:
            reason = " ".join(errors) or "No address of it is known."
            raise PeerUnreachable(f"Node {short(node_id)} cannot be reached. {reason}")
        self._settle(link)
        return self.get(node_id) or link

    def _relays(self, node_id: NodeId) -> list[Link]:
        """Peers that may have a link to that node too. A tunnel through a tunnel is not made."""
        links = [link for link in self.links() if link.via is None and link.role != STRANGER]
        links.sort(key=lambda link: link.role == "friend")
        return [link for link in links if link.node_id != node_id][:MAX_RELAYS]

    async def _dial_through(self, node_id: NodeId) -> Link | None:
        for relay in self._relays(node_id):
            link_now = self.get(node_id)  # it may have dialled us, or answered, meanwhile
            if link_now is not None:
                return link_now
            try:
                link = await self._transport.dial_through(relay, node_id)
            except P2PStoreError as exc:
                log.debug("Reaching %s through %s: %s", short(node_id), relay, exc)
                continue
            log.info("%s is reached through %s.", link.hello.name or short(node_id), relay)
            self._settle(link)
            return self.get(node_id) or link
        return None

    async def _dial_each(
        self, node_id: NodeId, addresses: Iterable[Address], tried: set[Address], errors: list[str]
    ) -> Link | None:
        for address in addresses:
            link = self.get(node_id)  # it may have dialled us meanwhile
            if link is not None and link.via is None:
                return link
            if address in tried:
                continue
            tried.add(address)
            try:
                return await self._transport.dial(*address, expect=node_id)
            except P2PStoreError as exc:
                log.debug("Dialling %s: %s", format_address(*address), exc)
                errors.append(str(exc))
        return None

    async def _keep_linked(self, node_id: NodeId) -> None:
        failures = 0
        while True:
            self._wake[node_id].clear()
            began = self._clock.monotonic()
            try:
                link = await self.connect(node_id)
                await self._stay(node_id, link)
            except P2PStoreError as exc:
                log.debug("Keeping a link to %s: %s", short(node_id), exc)
            if self.get(node_id) is not None:
                continue  # another link took over
            lived = self._clock.monotonic() - began
            failures = 1 if lived >= STEADY_S else failures + 1
            pause_s = pause_after(failures, self._dice())
            await pause_or_wake(self._pause, pause_s, self._wake[node_id])

    async def _stay(self, node_id: NodeId, link: Link) -> None:
        """Until the link ends; one through a peer is left for a direct one as soon as possible."""
        closed = asyncio.ensure_future(link.wait_closed())
        try:
            while link.via is not None and not closed.done():
                pause = asyncio.ensure_future(
                    pause_or_wake(self._pause, DIRECT_EVERY_S, self._wake[node_id])
                )
                try:
                    await asyncio.wait({closed, pause}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    pause.cancel()
                    await asyncio.wait({pause})
                if not closed.done():
                    self._wake[node_id].clear()
                    await self._try_directly(node_id)
            await closed
        finally:
            closed.cancel()
            await asyncio.wait({closed})

    async def _try_directly(self, node_id: NodeId) -> None:
        try:
            await self._dial_directly(node_id)
        except P2PStoreError as exc:
            log.debug("Still reached through another peer only: %s", exc)

    def _changed(self, link: Link, is_up: bool) -> None:
        if is_up:
            self._settle(link)
        elif self._links.get(link.node_id) is link:
            del self._links[link.node_id]
            self._note_seen(link)

    def _settle(self, link: Link) -> None:
        old = self.get(link.node_id)
        if old is link or link.is_closed:
            return
        self._note(link)
        if old is not None and keeps_old(old, link, self._transport.node_id):
            link.retire()
            return
        self._links[link.node_id] = link
        if old is not None:
            old.retire()
            for other in self.links():
                if other.via is old:
                    other.retire()  # it is made anew through the link that stays
            return
        if link.node_id in self._wake:
            self._wake[link.node_id].set()
        if link.via is None and link.role != STRANGER:
            self._retry_through(link)

    def _retry_through(self, relay: Link) -> None:
        """Peers that we wait for may be reached through the new one."""
        for node_id in self._wanted:
            if node_id != relay.node_id and self.get(node_id) is None:
                self.retry(node_id)

    def _note(self, link: Link) -> None:
        """Where a relation is found is written down at once: whoever is killed in the next minute
        may have no other way to those that hold its copies."""
        before = self._book.get(link.node_id)
        known = self._book.note_link(link, int(self._clock.wall() * 1000))
        is_news = before is None or before.addresses != known.addresses or before.role != known.role
        if is_news and known.role != STRANGER and not self._closed:
            self._tasks.start(self._save())

    def _note_seen(self, link: Link) -> None:
        self._book.note_seen(link.node_id, int(self._clock.wall() * 1000))

    async def _save_for_ever(self) -> None:
        while True:
            await self._pause(SAVE_EVERY_S)
            for link in self.links():
                self._note_seen(link)
            await self._save()

    async def _save(self) -> None:
        async with self._saving:
            try:
                await asyncio.to_thread(self._book.save)
            except OSError as exc:
                log.warning("The list of known peers could not be written: %s", exc)


def _seen(task: asyncio.Task[Link]) -> None:
    """An attempt whose caller has gone away fails in silence."""
    if not task.cancelled():
        task.exception()
