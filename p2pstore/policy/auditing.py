"""Which copies are audited next, how, and what of it the network can bear; which leases to renew.

With our own bytes at hand a holder proves the whole bundle: some hundred bytes on the wire, and a
read of 16 MiB at both ends. Without them a few random blocks are fetched, whose ids verify
themselves. A holder that has thrown away a tenth of its bundles passes a day of a hundred audits
one time in 37,000.

What owes us an answer comes first, and what counts no more because its holder lied. Of the rest,
half of the audits go to the copies audited the longest ago, so that each has its turn (every
100 days with 5,000 bundles at one holder), the other half to chance, so that nobody can know when
it need not have a bundle. No copy is audited twice in a day. Chance is a seed that the caller
draws; the same seed gives the same answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from blake3 import blake3

from p2pstore.policy.standing import Copy, Standing, is_disowned, standing_of

DAY_S = 86_400.0
AUDITS_A_DAY = 100  # of one holder
BANDWIDTH_SHARE = 100  # at most one part in so many of what the line carries
WHOLE_BYTES = 1024  # challenge, proof and frames
SAMPLE_BLOCKS = 4
BLOCK_BYTES = 256 * 1024  # the mean; a block is at most 2 MiB
AGAIN_S = DAY_S
OWED_AGAIN_S = 3600.0  # what was not answered is asked for again after this
RENEW_BELOW_S = 150 * DAY_S
MAX_LEASE_S = 400 * DAY_S  # holders refuse longer ones


class Method(StrEnum):
    WHOLE = "whole"  # CHALLENGE over the whole bundle
    SAMPLE = "sample"  # GET of random blocks


class Auditable(NamedTuple):
    """A copy that one holder says it keeps."""

    bundle: bytes
    size: int
    copy: Copy
    is_local: bool  # our own bytes are here to compare with
    blocks: int = SAMPLE_BLOCKS  # ids of its blocks that we can name
    tried_at: float | None = None  # the last audit, answered or not


class Audit(NamedTuple):
    bundle: bytes
    method: Method
    blocks: int = 0  # how many random ones; 0 with WHOLE


class Budget(NamedTuple):
    audits: float
    bytes: float

    def after(self, spent: Iterable[Audit]) -> Budget:
        used = list(spent)
        return Budget(self.audits - len(used), self.bytes - sum(map(audit_cost, used)))


def earned(budget: Budget, elapsed_s: float, *, bytes_a_second: float) -> Budget:
    """What may be spent on one holder after some time has passed; never more than a day's worth."""
    days = max(0.0, min(elapsed_s / DAY_S, 1.0))
    a_day = bytes_a_second * DAY_S / BANDWIDTH_SHARE
    return Budget(
        min(budget.audits + days * AUDITS_A_DAY, AUDITS_A_DAY),
        min(budget.bytes + days * a_day, a_day),
    )


def to_audit(
    copies: Iterable[Auditable], budget: Budget, *, now: float, seed: bytes
) -> list[Audit]:
    """Audits of one holder, in order, within the budget."""
    able = [one for one in copies if _is_due(one, now)]
    able.sort(key=lambda one: (_last(one), one.bundle))
    owing = [one for one in able if _owes(one)]
    rest = [one for one in able if not _owes(one)]
    drawn = sorted(rest, key=lambda one: blake3(seed + one.bundle).digest(length=8))
    mixed = (one for pair in zip(rest, drawn, strict=True) for one in pair)
    chosen: dict[bytes, Audit] = {}
    for one in (*owing, *mixed):
        if one.bundle in chosen:
            continue
        audit = _audit(one)
        if budget.audits < 1:
            break
        if audit_cost(audit) <= budget.bytes:
            chosen[one.bundle] = audit
            budget = budget.after([audit])
    return list(chosen.values())


def audit_cost(audit: Audit) -> int:
    """Bytes on the wire, about."""
    return WHOLE_BYTES if audit.method is Method.WHOLE else audit.blocks * BLOCK_BYTES


def to_renew(copies: Iterable[tuple[bytes, Copy]], now: float) -> list[bytes]:
    """Bundles of one holder whose leases want renewing, the first to end first; for one message.

    A lease far beyond what anybody grants is one that a clock gone wrong has written: it too.
    """
    due = [
        (copy.lease_until, bundle)
        for bundle, copy in copies
        if standing_of(copy, now) is not Standing.LOST
        and not now + RENEW_BELOW_S <= copy.lease_until <= now + MAX_LEASE_S
    ]
    return [bundle for _, bundle in sorted(due)]


def sample_of(blocks: Sequence[bytes], count: int, seed: bytes) -> list[bytes]:
    """That many of a bundle's blocks, drawn by the seed."""
    return sorted(blocks, key=lambda block: blake3(seed + block).digest(length=8))[:count]


def _audit(one: Auditable) -> Audit:
    if one.is_local:
        return Audit(one.bundle, Method.WHOLE)
    return Audit(one.bundle, Method.SAMPLE, min(SAMPLE_BLOCKS, one.blocks))


def _is_due(one: Auditable, now: float) -> bool:
    if one.copy.failed or (not one.is_local and one.blocks < 1):
        return False  # it says that it has it not; or nothing can be asked for
    tried_at = one.tried_at or 0.0
    if _owes(one):
        return abs(now - tried_at) >= OWED_AGAIN_S
    return abs(now - max(tried_at, _last(one))) >= AGAIN_S


def _last(one: Auditable) -> float:
    return max(one.copy.audited_at or 0.0, one.copy.proved_at or 0.0)


def _owes(one: Auditable) -> bool:
    asked = one.copy.suspect_since
    return (
        one.copy.proved_at is None
        or is_disowned(one.copy)
        or (asked is not None and asked > _last(one))
    )
