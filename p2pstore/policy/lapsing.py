"""What a holder may drop whose owner has let the lease end.

Only for want of room, the oldest leases first, and no earlier than 30 days after the end. These
days are counted by a clock that a wrong date does not move, from when the end was first seen: a
computer that believes to be in another year has seen no lease end 30 days ago.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

GRACE_MS = 30 * 86_400_000


class Lapsed(NamedTuple):
    bundle: bytes
    size: int  # bytes that dropping it brings
    lease_until_ms: int
    seen_at: int  # when its end was first seen, on the clock that `age` is read from


def to_drop(lapsed: Iterable[Lapsed], *, age: int, missing: int) -> list[Lapsed]:
    """As many as `missing` bytes need; none while nothing is missing."""
    chosen: list[Lapsed] = []
    for one in sorted(lapsed, key=lambda one: (one.lease_until_ms, one.bundle)):
        if missing <= 0:
            break
        if age - one.seen_at >= GRACE_MS:
            chosen.append(one)
            missing -= one.size
    return chosen
