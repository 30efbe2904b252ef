"""A rebuilt catalog learns from those who hold for us what its own disk could not tell.

Runs beside everything else. Until the first holders have been asked files can be read and brought
back, and nothing is evicted. Those that were away are asked when they come, also after a restart:
a bundle that only they keep is known again then, and so are heads that only they have: of this
device, and of lost ones whose folders it has recovered from earlier heads. When such a head comes
by another way, everybody is asked once more, for what it names.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from p2pstore.content import BundleIndex, decode_head, verify_head
from p2pstore.errors import P2PStoreError, PeerUnreachable
from p2pstore.ids import BundleId, NodeId, short
from p2pstore.maintenance import (
    Absent,
    Completed,
    Holding,
    Loop,
    aliases,
    complete_with_holdings,
    rebuild_state,
)
from p2pstore.text import plural
from p2pstore.threads import in_thread
from p2pstore.wire import Heads

if TYPE_CHECKING:
    from p2pstore.node.build import Node

log = logging.getLogger(__name__)

GATHER_S = 3.0  # for the others, once one is there; between two looks while nobody is
LATE_S = 30.0  # ... and for who was away then
SEARCH_S = 6 * 3600.0  # for what was let go of by all who had it
RETRY_S = 600.0  # what could not be read may be to be had by now

Say = Callable[[str, int | None], None]


class Completing:
    """One loop: who has not been asked since the rebuild is asked as soon as it is connected."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since: float | None = None  # somebody is connected, others are waited for
        # Something could not be read: everybody is asked once more. None: the catalog knows that.
        self._again: bool | None = None
        self._tried: set[bytes] = set()  # heads of others that everybody was asked about
        self._searched = -SEARCH_S  # monotonic

    async def turn(self, loop: Loop) -> float:
        """The seconds until the next look."""
        node = self._node
        others = node.network.holder_ids()
        state = await in_thread(node.pool, rebuild_state, node.catalog)
        if state is None:
            return LATE_S
        if self._again is None:
            self._again = bool(state.folders)
        connected = {link.node_id for link in node.network.holders()}
        news = await in_thread(node.pool, self._news, connected)
        is_anew = self._again or bool(news) or await self._is_to_search()
        known = set() if is_anew else set(state.asked)
        if not connected - known and (others or not state.pending):
            self._since = None
            return GATHER_S if state.pending else LATE_S
        if state.pending and not others <= connected:
            # Devices that come back together are asked together; each link that comes wakes us.
            now = node.clock.monotonic()
            self._since = now if self._since is None else self._since
            if now < self._since + GATHER_S:
                return self._since + GATHER_S - now
        self._since = None
        loop.say("asks what others keep", len(known & others), len(others))
        try:
            done = await ask(node, connected - known, loop.say)
        except PeerUnreachable:  # gone again, as who has just joined is until his node runs
            return GATHER_S if state.pending else LATE_S
        self._tried |= news
        self._say_later(done)
        node.maintenance.rebuilding = False
        node.completed.set()
        if done.missing:
            log.warning("%d bundles are needed and were found nowhere yet.", done.missing)
        if state.pending or done.files or done.doubtful:
            for folder in node.folders.all():
                folder.ask_rescan("the catalog was rebuilt", judge_anew=True)
        node.maintenance.changed()
        self._again = done.unread > 0
        return RETRY_S if self._again else LATE_S

    def _news(self, connected: set[NodeId]) -> set[bytes]:
        """Heads in HOME that may tell more of a recovered folder, and were not tried yet."""
        return _late_heads(self._node, self._node.home.heads(), connected) - self._tried

    def _say_later(self, done: Completed) -> None:
        for later in done.later:
            for device, count in later.files:
                name = self._node.name_of(device)
                log.info("%s came from a later list of %s.", plural(count, "file"), name)

    async def _is_to_search(self) -> bool:
        """Whether other devices may have merged what they had told of, and it is time to ask."""
        now = self._node.clock.monotonic()
        if now - self._searched < SEARCH_S:
            return False
        self._searched = now
        is_adrift: bool = await in_thread(
            self._node.pool, self._node.catalog.view, aliases.is_any_adrift
        )
        return is_adrift


def _late_heads(node: Node, raws: Sequence[bytes], connected: set[NodeId]) -> set[bytes]:
    """Those that may tell more of a recovered folder; whether they are believed shows later."""
    follow = [entry for entry in node.home.folders() if entry.follows]
    absent = Absent(node.group.node_id, connected)
    found: set[bytes] = set()
    for raw in set(raws) if follow else ():
        with contextlib.suppress(P2PStoreError):  # it is named where it is to be used
            head = verify_head(decode_head(raw))
            if any(absent.may_be_news(entry, head) for entry in follow):
                found.add(raw)
    return found


async def ask(node: Node, connected: set[NodeId], say: Say) -> Completed:
    """Ask these holders what they keep for us, and record it.

    Who does not answer to the end is asked again later and keeps nobody waiting; when nobody does,
    that is raised.
    """
    said: dict[NodeId, list[bytes]] = {}
    trouble: P2PStoreError | None = None
    for holder in sorted(connected):
        try:
            said[holder] = list((await node.pusher.get_heads(holder)).heads)
        except P2PStoreError as exc:
            log.info("%s does not say what it keeps: %s", short(holder), exc)
            trouble = exc
    if trouble is not None and not said:
        raise trouble
    present = {link.node_id for link in node.network.holders()}
    told = [raw for raws in said.values() for raw in raws]
    late = await in_thread(node.pool, _late_heads, node, told, present)
    if late:
        # In HOME before their holders count as asked: what cannot be read now is tried again.
        await node.network.exchange.take(Heads((), tuple(late)), "holders")

    async def holdings() -> AsyncIterator[tuple[NodeId, Holding]]:
        for holder in list(said):
            try:
                async for holding in node.pusher.holdings(holder):
                    yield holder, holding
            except P2PStoreError as exc:
                log.info("%s did not say all that it keeps: %s", short(holder), exc)
                del said[holder]
                if not said:
                    raise

    async def heads() -> AsyncIterator[bytes]:
        for raws in list(said.values()):
            for raw in raws:
                yield raw

    async def merged(lost: Sequence[BundleId]) -> AsyncIterator[BundleIndex]:
        for holder in list(said):
            try:
                async for index in node.pusher.merged(lost, holder):
                    if node.is_ours(index.header.opener):
                        yield index
            except P2PStoreError as exc:
                log.info("%s did not say what was merged: %s", short(holder), exc)

    async with node.laying.filing() as laying:
        completed = await complete_with_holdings(
            node.catalog,
            home=node.home,
            store=node.store,
            author=node.group.author(),
            ring=node.group.ring(),
            judge=node.group.judge,
            clock=node.clock,
            pool=node.pool,
            source=node.source,
            holdings=holdings,
            heads=heads,
            merged=merged,
            asked=lambda: list(said),
            reopening=laying,
            present=present,
            reads=node.opens.mark_own,
            progress=lambda done: say("files what it hears", done.get("files")),
        )
        for later in completed.later:
            laying.has_read(later)
    return completed
