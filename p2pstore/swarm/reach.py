"""Whether this node can be reached from outside, as far as others can tell.

A peer that is not in our network dials back: at the address that our link to it comes from, which
is the only one that anybody is ever asked to dial, at the port where we are to be reached. It
looks whether our key answers there, and hangs up. A connection that somebody made to us from
outside proves as much. Nobody is asked twice within the hour, and without anybody who could tell
the answer is "unknown".

What a peer says about our outer address is believed of relations only: it goes into our address
record, and a stranger could have others dial somebody else's machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, NamedTuple

from p2pstore.clock import Clock
from p2pstore.dht import is_public
from p2pstore.errors import Busy, NotAllowed, P2PStoreError
from p2pstore.ids import NodeId
from p2pstore.net import STRANGER, Address, Link, Request, pause_or_wake
from p2pstore.policy import Ask
from p2pstore.swarm.access import Gate
from p2pstore.swarm.getting import Peers
from p2pstore.wire import Reach, Reached

log = logging.getLogger(__name__)

AGAIN_S: Final = 20.0  # a peer may ask us again after so long
AT_ONCE: Final = 8  # dials in the interest of others
MAX_ASKERS: Final = 1000
ANSWER_S: Final = 20.0  # the other side's dialling included
EVERY_S: Final = 3600.0
RETRY_S: Final = 30.0  # somebody who could tell had no time
WITNESSES: Final = 3
VALID_S: Final = 3 * EVERY_S  # a connection from outside that long ago still says something

Probe = Callable[[str, int, NodeId], Awaitable[None]]
State = Literal["outside", "network", "no", "unknown"]


class DialBack:
    """Answers REACH."""

    def __init__(self, gate: Gate, probe: Probe, *, clock: Clock) -> None:
        """`probe` raises unless that node's key answers at an address (net's `probe`)."""
        self._gate = gate
        self._probe = probe
        self._clock = clock
        self._asked: OrderedDict[NodeId, float] = OrderedDict()
        self._places = asyncio.Semaphore(AT_ONCE)

    async def serve(self, request: Request, message: Reach) -> None:
        link = request.link
        self._gate.check(link, Ask.REACH)
        if link.via is not None:
            raise NotAllowed("A link through another peer comes from no address of yours.")
        now = self._clock.monotonic()
        if now - self._asked.get(link.node_id, now - AGAIN_S) < AGAIN_S or self._places.locked():
            raise Busy("Ask again in a minute.")
        self._asked[link.node_id] = now
        self._asked.move_to_end(link.node_id)
        if len(self._asked) > MAX_ASKERS:
            self._asked.popitem(last=False)
        host = plain(link.address[0])
        async with self._places:
            try:
                await self._probe(host, message.port, link.node_id)
                reached = Reached(host, True)
            except P2PStoreError as exc:
                reached = Reached(host, False, str(exc)[:300])
        await request.reply(reached)


class Verdict(NamedTuple):
    """`outer` is where we were found from outside, when a relation says so."""

    state: State
    why: str
    outer: Address | None = None


UNKNOWN: Final = Verdict("unknown", "nobody who could tell is connected")


class Reachability:
    def __init__(
        self,
        peers: Peers,
        *,
        clock: Clock,
        port: Callable[[], int],
        changed: Callable[[], None] = lambda: None,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`port` is the one that others are to dial: ours, or what the router opened for it."""
        self._peers = peers
        self._clock = clock
        self._port = port
        self._changed = changed
        self._pause = pause
        self._wake = asyncio.Event()
        self._asked: dict[NodeId, float] = {}
        self._came_at: float | None = None  # the last connection from outside
        self.verdict = UNKNOWN

    def note(self, link: Link) -> None:
        """A link came up: it may prove something, or lead to somebody who can tell."""
        if link.via is not None or not is_public(link.address[0]):
            return
        if not link.is_dialled:
            self._came_at = self._clock.monotonic()
            self._set(Verdict("outside", "others connect from outside", self.verdict.outer))
        if self.verdict.state in ("unknown", "network", "no") or self.verdict.outer is None:
            self._wake.set()

    def ask_again(self) -> None:
        """Another address, another mapping: what was found out does not count any more."""
        self._asked.clear()
        self._came_at = None
        self._wake.set()

    async def run(self) -> None:
        """For ever; owned by whoever calls it."""
        while True:
            self._wake.clear()
            rest_s = await self._turn()
            await pause_or_wake(self._pause, rest_s, self._wake)

    async def _turn(self) -> float:
        """Ask whoever was not asked within the hour; the seconds until the next time."""
        direct = [link for link in self._peers.links() if link.via is None]
        direct.sort(key=lambda link: link.role == STRANGER)
        outside = [link for link in direct if is_public(link.address[0])]
        if outside:
            return await self._judge_outside(outside)
        found, rest_s = await self._ask_some(direct)
        if any(reached.is_reached for _, reached in found):
            self._set(Verdict("network", "nobody outside is connected who could tell"))
        elif found:
            self._set(Verdict("no", found[0][1].why or "not even a peer in this network connects"))
        elif not direct:
            self._set(UNKNOWN)
        return rest_s

    async def _judge_outside(self, links: Sequence[Link]) -> float:
        found, rest_s = await self._ask_some(links)
        came = self._came_at is not None and self._clock.monotonic() - self._came_at < VALID_S
        if any(reached.is_reached for _, reached in found):
            self._set(Verdict("outside", "a peer outside reaches it", self._outer(found)))
        elif found and not came:
            self._set(Verdict("no", found[0][1].why or "a peer outside cannot connect"))
        return rest_s

    async def _ask_some(self, links: Sequence[Link]) -> tuple[list[tuple[Link, Reached]], float]:
        now = self._clock.monotonic()
        fresh = [
            link for link in links if now - self._asked.get(link.node_id, now - EVERY_S) >= EVERY_S
        ]
        found: list[tuple[Link, Reached]] = []
        rest_s = EVERY_S
        for link in fresh[:WITNESSES]:
            try:
                reply, _ = await link.request(Reach(self._port()), timeout_s=ANSWER_S)
            except P2PStoreError as exc:
                log.debug("%s does not say whether it reaches this node: %s", link, exc)
                rest_s = RETRY_S
                continue
            self._asked[link.node_id] = now
            if isinstance(reply, Reached):
                found.append((link, reply))
        return found, rest_s

    def _outer(self, found: list[tuple[Link, Reached]]) -> Address | None:
        for link, reached in found:
            if reached.is_reached and link.role != STRANGER and is_public(reached.host):
                return reached.host, self._port()
        return None

    def _set(self, verdict: Verdict) -> None:
        if verdict == self.verdict:
            return
        before, self.verdict = self.verdict, verdict
        if verdict.state != before.state:
            words = {
                "outside": "can be reached from outside",
                "network": "can be reached in this network",
                "no": f"cannot be reached from outside: {verdict.why}",
                "unknown": "may or may not be reachable",
            }
            log.info("Port %d %s.", self._port(), words[verdict.state].rstrip("."))
        self._changed()


def plain(host: str) -> str:
    """An IPv4 address as everybody writes it, also when it came to a socket for both kinds."""
    mapped = host.lower().removeprefix("::ffff:")
    return mapped if "." in mapped else host
