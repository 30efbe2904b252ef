"""What is to be done for a bundle so that it keeps enough copies, and which bundle comes first.

Bundles with the fewest live copies come first, before all those of which one holder has the last
copy and we have none; then the older ones. A bundle that fails waits longer and longer by itself,
so that one bad one never holds up the others.

A copy is replaced once it is suspect. If its holder comes back, the copy counts again, and the
bundle has more than it needs: that is left alone up to two copies more, because a holder that was
away will be away again, and sending 16 MiB once more costs more than keeping them. What is beyond
is released after 14 days, the newest first, and only by holders that are there and in good
standing, so that nobody is asked to drop what we may be left with. Friends in their vetting do not
count yet; they are not sent for twice, as long as `min_copies` others count.

What is not here has to be brought back before it can be pushed. That is done only when somebody can
take it (`choose_holders`), except below `min_copies`: then it is brought back to be kept here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from p2pstore.policy.copies import counted_holders
from p2pstore.policy.standing import Copy, Holder, Standing, standing_of

TOLERATED = 2  # copies beyond the target that are left alone
SURPLUS_S = 14 * 86_400.0
PAUSE_S = 60.0  # after the first failure of a bundle; doubled by each further one
MAX_PAUSE_S = 6 * 3600.0


class Action(StrEnum):
    NOTHING = "nothing"
    PUSH = "push"  # from the local copy
    BRING_BACK = "bring back"  # from a holder, and then push
    RELEASE = "release"  # the copies named, and none other
    REST = "rest"  # it failed lately
    AWAIT = "await"  # nobody who has it is there


class BackOff(NamedTuple):
    """How often a bundle failed in a row, and until when it rests (wall clock)."""

    failures: int = 0
    until: float = 0.0

    def failed(self, now: float) -> BackOff:
        pause = min(PAUSE_S * 2.0 ** min(self.failures, 16), MAX_PAUSE_S)
        return BackOff(self.failures + 1, now + pause)

    def is_resting(self, now: float) -> bool:
        """A rest longer than any we give comes from a clock that was set back: it is over."""
        return 0.0 < self.until - now <= MAX_PAUSE_S


class Condition(NamedTuple):
    """What decides about one bundle."""

    bundle: bytes
    is_local: bool  # a whole copy lies here
    copies: Sequence[Copy]
    min_copies: int
    target: int
    since: float  # when it was written
    back_off: BackOff = BackOff()
    surplus_since: float | None = None  # since when `judge` has said `has_surplus`


class Verdict(NamedTuple):
    action: Action
    live: int  # copies that count
    wanted: int = 0  # copies to make; for these `choose_holders` is asked
    release: tuple[Holder, ...] = ()
    has_surplus: bool = False  # the caller remembers since when


def judge(condition: Condition, now: float) -> Verdict:
    """What is to be done for this bundle now."""
    copies = [c for c in condition.copies if standing_of(c, now) is Standing.LIVE]
    live = counted_holders(copy.holder for copy in copies)
    wanted = _wanted(condition, copies, live)
    if wanted > 0:
        if condition.back_off.is_resting(now):
            return Verdict(Action.REST, live, wanted)
        if condition.is_local:
            return Verdict(Action.PUSH, live, wanted)
        return Verdict(Action.BRING_BACK if copies else Action.AWAIT, live, wanted)
    surplus = live - condition.target - TOLERATED
    if surplus <= 0:
        return Verdict(Action.NOTHING, live)
    since = condition.surplus_since
    if since is None or now - since < SURPLUS_S:
        return Verdict(Action.NOTHING, live, has_surplus=True)
    return Verdict(Action.RELEASE, live, 0, _to_release(copies, surplus), True)


def urgency(condition: Condition, verdict: Verdict) -> tuple[bool, int, float, bytes]:
    """What to sort by; the least comes first."""
    is_last = not condition.is_local and verdict.live == 1
    return (not is_last, verdict.live, condition.since, condition.bundle)


def to_repair(conditions: Iterable[Condition], now: float) -> list[tuple[Condition, Verdict]]:
    """The bundles for which copies can be made now, the most urgent first."""
    judged = ((condition, judge(condition, now)) for condition in conditions)
    work = [pair for pair in judged if pair[1].action in (Action.PUSH, Action.BRING_BACK)]
    return sorted(work, key=lambda pair: urgency(*pair))


def _wanted(condition: Condition, live_copies: Sequence[Copy], live: int) -> int:
    if live >= condition.target:
        return 0
    promised = counted_holders(copy.holder._replace(vetted=True) for copy in live_copies)
    return max(condition.target - promised, condition.min_copies - live, 0)


def _to_release(copies: Sequence[Copy], surplus: int) -> tuple[Holder, ...]:
    """The newest ones; never the last copy outside of the house where all others are, and only
    as far as each of them lowers the count by one."""
    kept = list(copies)
    released: list[Holder] = []
    for copy in sorted(copies, key=lambda c: (-(c.since or 0.0), c.holder.node)):
        if len(released) == surplus:
            break
        others = [c for c in kept if c is not copy]
        before, after = (counted_holders(c.holder for c in some) for some in (kept, others))
        houses = {c.holder.prefix for c in others}
        if before - after == 1 and (len(houses) > 1 or copy.holder.prefix in houses):
            kept = others
            released.append(copy.holder)
    return tuple(released)
