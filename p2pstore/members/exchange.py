"""What devices and holders tell each other of a group: its state, and the heads of its folders.

`Exchange` answers GET_HEADS and PUT_HEADS for the swarm's server (for our own group from HOME, for
groups that we hold for from `kept`), pushes ours to whoever is linked, and pulls from a peer.

Nothing here goes back (I8): states are merged, heads replaced by newer ones only, whoever sends
what. Everything is durable before it is acknowledged. A device that was revoked is told so by
pushing the state to it, and by nothing else; when it is this one, `changed` is called and
`group.is_expelled` says so: from then on it pushes nothing and answers nobody.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

from p2pstore.clock import Clock
from p2pstore.content import Head, head_order
from p2pstore.errors import IntegrityError, NotAllowed, P2PStoreError, RemoteProtocolError
from p2pstore.home import Home
from p2pstore.ids import FolderId, GroupId, NodeId, PublicKey, Tag
from p2pstore.keys import GroupState, Role, public_key_of
from p2pstore.members.group import Group
from p2pstore.members.kept import REPLY_BYTES, KeptGroups, kept_reply
from p2pstore.members.shelf import MAX_HEADS, HeadShelf, Shelved, open_head, within
from p2pstore.net import Link
from p2pstore.store import copies
from p2pstore.threads import in_thread
from p2pstore.wire import GetHeads, Heads, HeadsKept, Hello, PutHeads

log = logging.getLogger(__name__)

PUSH_BYTES = 512 * 1024  # of heads in one PUT_HEADS; with a whole state still below a payload
STRANGER = Role.STRANGER.value


class Acknowledged(NamedTuple):
    """What one holder has, of what this device told it."""

    holder: NodeId
    generation: int
    state_seq: int
    heads: tuple[Head, ...]

    def rows(self, device: NodeId) -> list[copies.HeadAck]:
        """For the catalog: the heads of `device`."""
        return [
            copies.HeadAck(
                self.holder, h.folder, h.incarnation, h.seq, self.generation, self.state_seq
            )
            for h in self.heads
            if h.device == device
        ]


class Pulled(NamedTuple):
    state_changed: bool
    heads: tuple[Head, ...]  # those that were news


class Exchange:
    def __init__(
        self,
        home: Home,
        group: Group,
        *,
        clock: Clock,
        pool: Executor,
        kept: KeptGroups | None = None,
        changed: Callable[[], None] = lambda: None,
        new_heads: Callable[[Sequence[Head]], None] = lambda heads: None,
    ) -> None:
        """`changed`: the group's state did, in the loop; `new_heads`: others' heads came."""
        self._home = home
        self._group = group
        self._clock = clock
        self._pool = pool
        self.kept = kept or KeptGroups(home.path / "groups")
        self._changed = changed
        self._new_heads = new_heads
        self._lock = threading.Lock()
        self._shelf = HeadShelf(home.path / "heads")

    # -- who is who -------------------------------------------------------------------------------

    def role_of(self, hello: Hello) -> str:
        """What a peer is to this node, for the transport: a device of a group that we hold for is a
        friend, as one that holds for us is."""
        if self._group.is_expelled:
            return STRANGER
        role = self._group.role_of_hello(hello)
        if role == STRANGER and self.kept.is_device(hello):
            return Role.FRIEND.value
        return role

    def judge_links(self, links: Iterable[Link]) -> None:
        """Give each link the role that its peer has now; call it when the state has changed."""
        for link in links:
            role = self.role_of(link.hello)
            if role != link.role:
                link.promote(role)

    def revoked(self, group: PublicKey) -> frozenset[PublicKey]:
        """The revoked keys of a group, as far as its state is known here."""
        state = self._group.state
        return state.revoked if group == state.group_public else self.kept.revoked(group)

    def hello(self, network: str, *, record: bytes | None = None) -> Hello:
        chains = self.kept.friend_chains()[:8]  # MAX_FRIEND_CHAINS of the wire
        return self._group.hello(network, record=record, friend_chains=chains)

    def recovery_tags(self) -> list[Tag]:
        """Under which this node announces itself: its own group's, and those that it holds for."""
        return [self._group.state.recovery_tag, *self.kept.recovery_tags()]

    # -- our own heads ----------------------------------------------------------------------------

    async def publish(self, raw: bytes) -> bool:
        """Keep a head that this device has signed, durably; False when a newer one is known."""
        return await in_thread(self._pool, self._publish, raw)

    def _publish(self, raw: bytes) -> bool:
        shelved = open_head(raw)
        with self._lock:
            return self._shelf.put(shelved)

    def known_heads(self) -> list[Head]:
        """The newest of each folder and device of our group."""
        with self._lock:
            return [shelved.head for shelved in self._shelf.all()]

    def own_heads(self) -> list[Head]:
        """Those of this device."""
        return [head for head in self.known_heads() if head.device == self._group.node_id]

    def signed_heads(self) -> list[Shelved]:
        with self._lock:
            return self._shelf.all()

    def greatest_incarnation(self, device: NodeId | None = None) -> int:
        """The greatest that any head of this device names; a rebuild begins with one more."""
        device = device or self._group.node_id
        return max((h.incarnation for h in self.known_heads() if h.device == device), default=0)

    # -- for swarm.Server -------------------------------------------------------------------------

    async def heads(self, group_id: GroupId, link: Link) -> Heads:
        if group_id != self._group.group_id:
            return await in_thread(self._pool, self.kept.heads, group_id, link.hello)
        self._check_asker(link)
        with self._lock:
            raws = within((s.raw for s in self._shelf.all()), REPLY_BYTES)
        return Heads((self._group.state.raw,), raws)

    async def put_heads(self, link: Link, message: PutHeads) -> HeadsKept:
        if message.group != self._group.group_id:
            return await in_thread(self._pool, self.kept.put, message, link.hello)
        self._check_asker(link)
        before = self._group.state.raw
        try:
            reply, news = await in_thread(self._pool, self._put, message)
        finally:
            if self._group.state.raw != before:
                self._changed()
        if news:
            self._new_heads(news)
        return reply

    def _check_asker(self, link: Link) -> None:
        """Devices, and friends, who keep all this for us and bring it back: it proves itself."""
        if self._group.role_of_hello(link.hello) == STRANGER:
            raise NotAllowed("Only members of the group may exchange its state and heads.")

    def _put(self, message: PutHeads) -> tuple[HeadsKept, list[Head]]:
        offered = [open_head(raw) for raw in message.heads]
        if message.state is not None:
            self._adopt(GroupState.decode(message.state))
        if self._group.is_expelled:
            return HeadsKept(*self._group.state.order, ()), []
        news: list[Head] = []
        with self._lock:
            for shelved in offered:
                if self._may_keep(shelved) and self._shelf.put(shelved):
                    news.append(shelved.head)
            reply = kept_reply(self._group.state.order, offered, self._shelf)
        return reply, news

    def _may_keep(self, shelved: Shelved) -> bool:
        """Whether a head may be new to us; NotAllowed when its signer never was of the group."""
        signed = shelved.signed
        if self._group.judge(signed.signer, signed.chain):
            return True
        if self._group.state.name_of(signed.signer) is not None:
            return False  # of one that was revoked: others kept it, it says nothing new
        raise NotAllowed("A head was signed by nobody of the group.")

    def _adopt(self, state: GroupState) -> bool:
        if state.group_public != self._group.state.group_public:
            raise IntegrityError("That is the state of another group.")
        changed = self._group.adopt(state)
        if changed and not self._group.is_expelled:
            admin = self._home.admin()
            if admin is not None and self._group.state.role_of(public_key_of(admin)) is Role.ADMIN:
                self._group.renew(signer=admin, now=self._clock.wall())
        return changed

    # -- asking -----------------------------------------------------------------------------------

    async def push(self, links: Iterable[Link]) -> list[Acknowledged]:
        """Tell every device and holder among `links` the newest state and heads.

        Those that could not be told are left out: they are told again at the next push. A revoked
        device gets the state only.
        """
        if self._group.is_expelled:
            return []
        state = self._group.state
        shelved = self.signed_heads()
        told = await asyncio.gather(*(self._tell(link, state, shelved) for link in links))
        return [acknowledged for acknowledged in told if acknowledged is not None]

    async def tell(self, links: Iterable[Link]) -> list[copies.HeadAck]:
        """`push`, and what the catalog remembers of it."""
        return [row for told in await self.push(links) for row in told.rows(self._group.node_id)]

    async def _tell(
        self, link: Link, state: GroupState, shelved: Sequence[Shelved]
    ) -> Acknowledged | None:
        role = self._group.role_of_hello(link.hello)
        is_revoked = link.public_key in state.revoked
        if role == STRANGER and not is_revoked:
            return None
        try:
            if is_revoked:
                await self._put_to(link, PutHeads(self._group.group_id, state.raw, ()))
                return None
            order, kept = state.order, set[tuple[FolderId, NodeId, int, int]]()
            for message in _messages(state, shelved):
                reply = await self._put_to(link, message)
                order = min(order, (reply.generation, reply.seq))
                kept |= set(reply.heads)
        except P2PStoreError as exc:
            log.debug("%s could not be told the newest heads: %s", link, exc)
            return None
        self._warn_of_lost_count(link, kept)
        heads = tuple(s.head for s in shelved if _key(s.head) in kept)
        return Acknowledged(link.node_id, *order, heads)

    async def _put_to(self, link: Link, message: PutHeads) -> HeadsKept:
        reply, _ = await link.request(message)
        if not isinstance(reply, HeadsKept):
            raise RemoteProtocolError("PUT_HEADS was answered with something else.")
        return reply

    def _warn_of_lost_count(self, link: Link, kept: set[tuple[FolderId, NodeId, int, int]]) -> None:
        for folder, device, *order in kept:
            with self._lock:
                here = self._shelf.get(folder, device)
            if device == self._group.node_id and (
                here is None or head_order(here.head) < tuple(order)
            ):
                log.warning(
                    "%s has a newer head of this device than this device: was HOME restored from "
                    "a copy? p2pstore rebuild-catalog",
                    link,
                )

    async def pull(self, link: Link) -> Pulled:
        """Ask a device, or a friend who keeps it for us, for the newest of our group, and take it.

        What is wrong in the answer is left out; so are heads of those who are not of the group.
        """
        reply, _ = await link.request(GetHeads(self._group.group_id))
        if not isinstance(reply, Heads):
            raise RemoteProtocolError("GET_HEADS was answered with something else.")
        return await self.take(reply, str(link))

    async def take(self, reply: Heads, whose: str) -> Pulled:
        """Take what is newer of what lay with no node; as `pull`."""
        before = self._group.state.raw
        try:
            news = await in_thread(self._pool, self._take, reply, whose)
        finally:
            changed = self._group.state.raw != before
            if changed:
                self._changed()
        if news:
            self._new_heads(news)
        return Pulled(changed, tuple(news))

    def _take(self, reply: Heads, whose: str) -> list[Head]:
        news: list[Head] = []
        for raw in reply.states:
            try:
                self._adopt(GroupState.decode(raw))
            except P2PStoreError as exc:
                log.warning("A group state from %s was refused: %s", whose, exc)
        if self._group.is_expelled:
            return news
        for raw in reply.heads:
            try:
                shelved = open_head(raw)
                with self._lock:
                    if self._may_keep(shelved) and self._shelf.put(shelved):
                        news.append(shelved.head)
            except P2PStoreError as exc:
                log.warning("A head from %s was refused: %s", whose, exc)
        return news


def _key(head: Head) -> tuple[FolderId, NodeId, int, int]:
    return head.folder, head.device, head.incarnation, head.seq


def _messages(state: GroupState, shelved: Sequence[Shelved]) -> Iterator[PutHeads]:
    """The state with the first heads, and the others in as many messages as they need."""
    batch: list[bytes] = []
    size = 0
    first: bytes | None = state.raw
    for raw in (s.raw for s in shelved):
        if batch and (size + len(raw) > PUSH_BYTES or len(batch) == MAX_HEADS):
            yield PutHeads(state.group_id, first, tuple(batch))
            first, batch, size = None, [], 0
        batch.append(raw)
        size += len(raw)
    if batch or first is not None:
        yield PutHeads(state.group_id, first, tuple(batch))
