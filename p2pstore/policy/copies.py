"""How many copies there are, as far as safety is concerned, and how many there should be.

Each node of the owner's group counts; a friend's nodes count once together, because one person can
throw them all away; strangers count once for each /24, because one operator can run many. Friends
and strangers count after vetting. One carrier (a place that stores bytes and proves nothing) counts
at most, and only beside a node. Two houses or two disks make no difference here: they steer
placement, not the count. A copy counts while it is live (`standing`).
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pstore.policy.placing import Candidate
from p2pstore.policy.standing import LOST_AFTER_S, Copy, Holder, Standing, standing_of


def counts_as(holder: Holder) -> bytes | None:
    """The unit that this holder's copy is: copies of one unit are one. None: it is none by itself,
    as that of a carrier, or of somebody who has not been vetted."""
    if holder.role in ("device", "admin"):
        return b"n" + holder.node
    if holder.role == "friend" and holder.vetted:
        return b"o" + holder.owner
    if holder.role == "stranger" and holder.vetted and holder.prefix:
        return b"p" + holder.prefix.encode()
    return None


def counted_holders(holders: Iterable[Holder]) -> int:
    """How many independent copies these holders are."""
    units: set[bytes] = set()
    carrier = False
    for holder in holders:
        unit = counts_as(holder)
        if unit is not None:
            units.add(unit)
        elif holder.role == "carrier":
            carrier = True
    return len(units) + (1 if carrier and units else 0)


def is_counted(copy: Copy, now: float) -> bool:
    """As far as the copy itself goes; its holder may add nothing to those that are there."""
    return standing_of(copy, now) is Standing.LIVE


def counted(copies: Iterable[Copy], now: float) -> int:
    """Proven copies on others: from a whole proof on, while audits pass and the lease lasts."""
    return counted_holders(copy.holder for copy in copies if is_counted(copy, now))


def eligible(candidates: Iterable[Candidate], now: float) -> int:
    """How many independent holders there could be: devices and friends with room, seen lately.

    Friends before their vetting too: to be vetted they must hold something.
    """
    return counted_holders(
        candidate.holder._replace(vetted=True)
        for candidate in candidates
        if candidate.holder.role in ("device", "admin", "friend")
        and candidate.offer > 0
        and not candidate.revoked
        and not candidate.leaving
        and now - candidate.last_seen <= LOST_AFTER_S
    )


def target(wanted: int, min_copies: int, eligible_holders: int) -> int:
    """How many copies to aim for: all that can be had up to `wanted`, never below `min_copies`."""
    return max(min_copies, min(wanted, eligible_holders))
