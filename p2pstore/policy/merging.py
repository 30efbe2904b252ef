"""Which small bundles become one, and when the one may take the place of the many.

Each bundle costs a record in the DHT, a receipt, an audit and a side file at every holder, however
small it is; a file that is edited every hour leaves hundreds that hold next to nothing. Merging
them costs their bytes once more on the disk and once more to every holder, so it is done for small
ones only, for many at a time, and for those that have come to rest: what is a day old is not
about to be edited away.

The smallest come first, and none is larger than the others of its merge together: whenever a byte
is copied, the bundle that it lies in at least doubles. So no byte is copied often, however the
bundles come in.

The one takes the place of the many when it is as safe as each of them: it has as many copies as
the best copied of them has, or may come to have again, and as many as `min_copies` asks for, where
there are so many holders at all.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

from p2pstore.policy.copies import counted, counted_holders, is_counted
from p2pstore.policy.standing import Copy, Standing, standing_of

SMALL_BYTES = 1 << 20  # beyond it the bytes cost more than the bundle does
FEWEST = 8  # fewer are not worth a bundle, a receipt and an audit of their own
REST_S = 86_400.0


class Limits(NamedTuple):
    """Of one bundle."""

    bytes: int
    blocks: int
    names: int  # of bundles that it replaces


class Small(NamedTuple):
    """A bundle that could be merged."""

    bundle: bytes
    kin: Hashable  # only bundles of one kin are merged
    bytes: int  # alive
    blocks: int
    names: int  # its own, and those of what was merged into it before
    since: float  # when it was written


def merges(
    bundles: Iterable[Small], limits: Limits, *, now: float, most: int
) -> list[tuple[Small, ...]]:
    """What to merge, at most so many new bundles; those that save the most come first."""
    kins: dict[Hashable, list[Small]] = {}
    for one in bundles:
        if one.bytes < SMALL_BYTES and now - one.since >= REST_S:
            kins.setdefault(one.kin, []).append(one)
    found = [merge for kin in kins.values() for merge in _of_one_kin(kin, limits)]
    found.sort(key=lambda merge: (-len(merge), merge[0].bundle))
    return found[:most]


def _of_one_kin(bundles: Sequence[Small], limits: Limits) -> Iterable[tuple[Small, ...]]:
    left = sorted(bundles, key=lambda one: (one.bytes, one.bundle))
    while len(left) >= FEWEST:
        taken = _fitting(left, limits)
        chosen = left[:taken]
        while len(chosen) >= FEWEST and 2 * chosen[-1].bytes > sum(one.bytes for one in chosen):
            chosen.pop()
        if len(chosen) >= FEWEST:
            yield tuple(chosen)
        left = left[max(taken, 1) :]


def _fitting(bundles: Sequence[Small], limits: Limits) -> int:
    """How many from the first on fit into one bundle."""
    size = count = names = 0
    for number, one in enumerate(bundles):
        size, count, names = size + one.bytes, count + one.blocks, names + one.names
        if size > limits.bytes or count > limits.blocks or names > limits.names:
            return number
    return len(bundles)


def is_as_safe(
    new: Sequence[Copy],
    replaced: Iterable[Sequence[Copy]],
    *,
    min_copies: int,
    eligible: int,
    now: float,
) -> bool:
    """Whether copies of the new bundle make up for those of every bundle that it replaces.

    A holder that is away for now may come back with its copy, so its copy is asked for as well;
    and friends before their vetting, who count for nothing, are not worth less than before.
    """
    has = counted(new, now)
    has_promised = _promised(copy for copy in new if is_counted(copy, now))
    wanted = min(min_copies, eligible)
    for copies in replaced:
        may_count = [copy for copy in copies if standing_of(copy, now) is not Standing.LOST]
        wanted = max(wanted, counted_holders(copy.holder for copy in may_count))
        if has_promised < _promised(may_count):
            return False
    return has >= wanted


def _promised(copies: Iterable[Copy]) -> int:
    return counted_holders(copy.holder._replace(vetted=True) for copy in copies)
