"""How many copies there are, as far as safety is concerned, and how many there should be.

Each node of the owner's group counts; a friend's nodes count once together, because one person can
throw them all away; strangers count once for each /24, after vetting, because one operator can run
many. One carrier (a place that stores bytes and proves nothing) counts at most, and only beside a
node. Two houses or two disks make no difference here: they steer placement, not the count.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

SEEN_WITHIN_S = 14 * 86_400.0  # who was away longer is not waited for


class Holder(NamedTuple):
    """A node other than this one. `owner` names its group, `prefix` its /24 (or /48)."""

    node: bytes
    role: str  # "device", "admin", "friend", "stranger" or "carrier"
    owner: bytes = b""
    prefix: str = ""
    vetted: bool = False  # strangers only


class Copy(NamedTuple):
    """What the catalog knows of one holder's copy. Times on the wall clock, in seconds."""

    holder: Holder
    proved_at: float | None  # the last whole proof
    lease_until: float
    failed: bool = False  # since then an audit found it missing, wrong or of another live map


class Candidate(NamedTuple):
    """A peer that may come to hold something."""

    holder: Holder
    offer: int
    last_seen: float  # wall clock
    revoked: bool = False


def counted_holders(holders: Iterable[Holder]) -> int:
    """How many independent copies these holders are."""
    units: set[tuple[str, bytes | str]] = set()
    carrier = False
    for holder in holders:
        if holder.role in ("device", "admin"):
            units.add(("node", holder.node))
        elif holder.role == "friend":
            units.add(("owner", holder.owner))
        elif holder.role == "stranger" and holder.vetted and holder.prefix:
            units.add(("prefix", holder.prefix))
        elif holder.role == "carrier":
            carrier = True
    return len(units) + (1 if carrier and units else 0)


def is_counted(copy: Copy, now: float) -> bool:
    return copy.proved_at is not None and not copy.failed and copy.lease_until > now


def counted(copies: Iterable[Copy], now: float) -> int:
    """Proven copies on others: from a whole proof on, while audits pass and the lease lasts."""
    return counted_holders(copy.holder for copy in copies if is_counted(copy, now))


def eligible(candidates: Iterable[Candidate], now: float) -> int:
    """How many independent holders there could be: devices and friends with room, seen lately."""
    return counted_holders(
        candidate.holder
        for candidate in candidates
        if candidate.holder.role in ("device", "admin", "friend")
        and candidate.offer > 0
        and not candidate.revoked
        and now - candidate.last_seen <= SEEN_WITHIN_S
    )


def target(wanted: int, min_copies: int, eligible_holders: int) -> int:
    """How many copies to aim for: all that can be had up to `wanted`, never below `min_copies`."""
    return max(min_copies, min(wanted, eligible_holders))
