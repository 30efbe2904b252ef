"""Whom to give a bundle to, in order.

1. Who holds other bundles of the same file or batch: a file's fate then hangs on one set of holders
   instead of on the union of many, and one holder can give it back whole.
2. A house that holds no copy yet: fire and theft take all that stands in one. A house is known by
   its network, /24 or /48, which is a guess: it steers, it never decides what counts.
3. Own devices before friends: they count at once, and nobody is obliged for it.
4. Room in the offer, by powers of two, then reliability, by tenths: small differences would only
   make every bundle go to the same one.
5. A hash of seed and node. The seed is the file or batch, so that its bundles go the same way and
   those of different ones spread over all.

A second node of a friend adds nothing that counts, so it comes after everybody else. Who is
leaving, revoked, full, away, has lied, or loses what it takes gets nothing: a holder that says at
each audit that it has the bundle not would otherwise be given it again for ever.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from blake3 import blake3

from p2pstore.policy.standing import (
    SUSPECT_AFTER_S,
    Copy,
    Holder,
    Standing,
    is_barred,
    standing_of,
)

_ROLES = {"device": 0, "admin": 0, "friend": 1}  # nobody else takes bundles
_V4_HOUSE, _V6_HOUSE = 24, 48
MIN_RELIABILITY = 0.8  # below it a holder gets nothing new
_BENEFIT = 9  # audits that everybody is taken to have passed: one early failure is no pattern
_ONE_HOUSE = "all copies in one house"
_NONE: Mapping[bytes, int] = MappingProxyType({})

_Rank = tuple[int, int, int, bytes, bytes]


class Candidate(NamedTuple):
    """A peer that may come to hold something."""

    holder: Holder
    offer: int
    last_seen: float  # wall clock
    revoked: bool = False
    leaving: bool = False  # it asked its owners to move what it holds
    free: int | None = None  # what is left of the offer; None: not known
    reliability: float = 1.0  # share of the audits of late that it passed


def choose_holders(
    candidates: Iterable[Candidate],
    *,
    holding: Iterable[Holder],
    size: int,
    now: float,
    count: int,
    siblings: Mapping[bytes, int] = _NONE,
    seed: bytes = b"",
) -> list[Candidate]:
    """At most `count`, the best first; each after the first is chosen beside those before it.

    `holding`: who holds this bundle, was seen less than 14 days ago and has not lost it, or is
    about to hold it. `siblings`: node -> bundles of the same file or batch that it holds. The
    answer does not depend on the order of the candidates.
    """
    taken = list(holding)
    nodes = {holder.node for holder in taken}
    houses = {holder.prefix for holder in taken} | {""}  # an unknown house is never a new one
    friends = {holder.owner for holder in taken if holder.role == "friend"}
    able = {
        candidate.holder.node: (candidate, _rank(candidate, seed))
        for candidate in candidates
        if candidate.holder.node not in nodes and not why_not_holder(candidate, size, now)
    }

    def place(node: bytes) -> tuple[bool, int, bool, _Rank]:
        candidate, rank = able[node]
        holder = candidate.holder
        adds_nothing = holder.role == "friend" and holder.owner in friends
        return (adds_nothing, -siblings.get(node, 0), holder.prefix in houses, rank)

    chosen: list[Candidate] = []
    while able and len(chosen) < count:
        candidate, _ = able.pop(min(able, key=place))
        chosen.append(candidate)
        houses.add(candidate.holder.prefix)
        if candidate.holder.role == "friend":
            friends.add(candidate.holder.owner)
    return chosen


def why_not_holder(candidate: Candidate, size: int, now: float) -> str | None:
    """Why it gets no bundle of this size; None when it may."""
    if candidate.revoked:
        return "is revoked"
    if candidate.holder.role not in _ROLES:
        return "is neither ours nor a friend's"
    if candidate.leaving:
        return "is leaving"
    if is_barred(candidate.holder, now):
        return "gave a wrong proof lately"
    if candidate.offer <= 0 or (candidate.free is not None and candidate.free < size):
        return "has no room"
    if candidate.reliability < MIN_RELIABILITY:
        return "loses what it takes"
    if now - candidate.last_seen >= SUSPECT_AFTER_S:
        return "is away"  # a copy there would not count
    return None


def reliability(answered: int, asked: int) -> float:
    """From the audits of late (a month, say: it is to be able to mend)."""
    return (answered + _BENEFIT) / (asked + _BENEFIT)


def house(address: str) -> str:
    """The network that an address lies in, as a guess at the house; empty when it is none."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    bits = _V4_HOUSE if ip.version == 4 else _V6_HOUSE
    return str(ipaddress.ip_network((ip, bits), strict=False))


def one_house(copies: Collection[Copy], now: float) -> str | None:
    """A warning when every live copy lies in one house; None for less than two, or unknown ones."""
    houses = [c.holder.prefix for c in copies if standing_of(c, now) is Standing.LIVE]
    if len(houses) < 2 or not houses[0] or len(set(houses)) > 1:
        return None
    return _ONE_HOUSE


def _rank(candidate: Candidate, seed: bytes) -> _Rank:
    """What does not depend on who else is chosen."""
    holder = candidate.holder
    free = candidate.offer if candidate.free is None else candidate.free
    return (
        _ROLES[holder.role],
        -free.bit_length(),
        -round(candidate.reliability * 10),
        blake3(seed + holder.node).digest(length=8),
        holder.node,
    )
