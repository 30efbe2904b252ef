"""What is asked of a router, in whatever language, and what it answers."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from p2pstore.errors import P2PStoreError, Unavailable

LEASE_S = 3600  # what is not renewed is gone in an hour, should this node die


class Protocol(Enum):
    TCP = "TCP"
    UDP = "UDP"


class Wish(NamedTuple):
    """Let the router pass what comes to `outer` on to `inner` of ours. `lease_s` 0: no more."""

    protocol: Protocol
    inner: int
    outer: int
    lease_s: int = LEASE_S


class Granted(NamedTuple):
    """`lease_s` 0: until it is taken back. `host`: the router's outer address, if it says so."""

    outer: int
    lease_s: int
    host: str | None = None


class Refused(Unavailable):
    """The router answered that it will not."""


class NotSpoken(P2PStoreError):
    """The router does not speak this language, or answers nonsense."""
