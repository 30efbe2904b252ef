"""Whether a link lives: who stalls is dropped, who is silent is asked.

Nothing here waits for a time of its own; the endpoint calls `check` about once a second.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from p2pstore.errors import PeerUnreachable, RemoteProtocolError, Unavailable
from p2pstore.net.limits import Pace
from p2pstore.wire import Ping

if TYPE_CHECKING:
    from p2pstore.net.link.link import Household, Link

log = logging.getLogger(__name__)


class Pulse:
    def __init__(self, link: Link, home: Household) -> None:
        self._link = link
        self._home = home
        self._limits = home.limits
        self._since = home.clock.monotonic()
        self._heard_at = self._since
        self._heard_bytes = 0
        self._is_asking = False
        self._reads = Pace(home.limits.min_rate, home.limits.rate_window_s)
        self._writes = Pace(home.limits.min_rate, home.limits.rate_window_s)

    def check(self, now: float) -> None:
        link = self._link
        if not link.is_ready:
            if now - self._since > self._limits.first_frame_s:
                self._stalled("did not introduce itself in time")
            return
        if link.received_bytes != self._heard_bytes:
            self._heard_bytes = link.received_bytes
            self._heard_at = now
        reads = not link.inflow.is_paused  # while we do not read the peer cannot be heard
        unsent = link.outflow.unsent_bytes
        if self._reads.is_too_slow(
            now, link.received_bytes, busy=link.session.is_mid_frame and reads
        ):
            self._stalled("sends too slowly")
        elif self._writes.is_too_slow(now, link.sent_bytes - unsent, busy=unsent > 0):
            self._stalled("takes what it asked for too slowly")
        elif now - self._heard_at > self._limits.keepalive_s and reads:
            link.session.shrink()
            if not self._is_asking:
                self._is_asking = True
                self._home.tasks.start(self._ask())

    def _stalled(self, what: str) -> None:
        log.debug("The peer %s %s.", self._link, what)
        self._link.abort(PeerUnreachable(f"The peer {what}."))

    async def _ask(self) -> None:
        try:
            await self._link.request(Ping(), timeout_s=self._limits.pong_s)
        except Unavailable:
            self._stalled("does not answer any more")
        except RemoteProtocolError as exc:
            self._link.end(exc)
        finally:
            self._is_asking = False
