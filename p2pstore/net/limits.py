"""What strangers may cost us over TCP (SAFETY: limits), and whether a peer keeps pace.

The sizes of single frames are constants of `wire.session`; what is counted over links is here.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pstore.wire import MAX_EXCHANGES

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """The defaults are what a node uses; tests and the demo choose their own."""

    handshake_s: float = 5.0  # TLS takes 4 ms; slower than this is holding a place
    first_frame_s: float = 5.0  # HELLO is sent at once
    connect_s: float = 5.0  # to reach an address at all, name look-up included
    shutdown_s: float = 2.0  # for the farewell of TLS; a stop has 10 s for everything
    check_every_s: float = 1.0
    keepalive_s: float = 60.0  # below the shortest usual timeouts of NAT tables for TCP
    pong_s: float = 15.0
    min_rate: int = 4096  # bytes/s while something is under way: below it a place is only held
    rate_window_s: float = 30.0
    requests_in_flight: int = MAX_EXCHANGES
    peer_bytes: int = 16 * MIB  # received and not yet taken by anyone, from one peer
    total_bytes: int = 64 * MIB  # the same, from all
    write_high: int = 512 * 1024  # unsent bytes of a link at which its senders wait
    max_peers: int = 256
    max_unidentified: int = 64  # no HELLO yet: all that a flood can take
    per_address: int = 4  # a home behind one address has a few nodes
    per_relay: int = 32  # through one peer: the devices and friends' nodes that it may pair us with
    per_loopback: int = 64  # many nodes on one machine are a test or a demo


class Pace:
    """Whether a direction in which something is under way moves at least `min_rate` bytes/s."""

    def __init__(self, min_rate: int, window_s: float) -> None:
        self._floor = min_rate * window_s
        self._window_s = window_s
        self._since: float | None = None
        self._mark = 0

    def is_too_slow(self, now: float, moved: int, *, busy: bool) -> bool:
        """`moved` counts all bytes so far; True at the end of a window that moved too few."""
        if not busy:
            self._since = None
            return False
        if self._since is None:
            self._since, self._mark = now, moved
            return False
        if now - self._since < self._window_s:
            return False
        is_slow = moved - self._mark < self._floor
        self._since, self._mark = now, moved
        return is_slow
