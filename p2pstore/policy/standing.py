"""How a copy stands at a time: live, suspect or lost.

Being away is one thing, being wrong another. A holder that is merely away keeps its copies live for
a day, so that nights and reboots cost no repair. Then they are suspect: they count no more and
replacements are made, but when the holder comes back they count again at once. After 14 days nobody
waits for them. An audit that stays unanswered by a holder that is there is treated the same.

A wrong answer is no absence. A holder that says that it has a bundle not has lost that one. A wrong
proof under the very live map that was named, or a block with other bytes, is a lie: who lies about
one bundle may have lied about all, so none of that holder's copies counts any more, each until it
is proved anew.

Times are seconds on the wall clock. A time in the future (somebody set the clock back) counts as
now. A clock that jumps ahead makes everything look old, never wrong: who answers is live again.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

DAY_S = 86_400.0
SUSPECT_AFTER_S = DAY_S
LOST_AFTER_S = 14 * DAY_S
LEASE_GRACE_S = 30 * DAY_S  # a holder may drop what it keeps this long after the lease's end
BARRED_S = 30 * DAY_S  # a liar is given nothing new for so long after its last lie
AHEAD_S = 60.0  # between two looks at the clock; more is another clock
LOOK_AROUND_S = 3600.0  # after we were away ourselves, others get this long to be heard


class Standing(StrEnum):
    LIVE = "live"  # proved, and nothing speaks against it: it counts
    SUSPECT = "suspect"  # counts no more, may come back
    LOST = "lost"  # nobody waits for it


class Holder(NamedTuple):
    """A node other than this one. `owner` names its group, `prefix` its /24 (or /48)."""

    node: bytes
    role: str  # "device", "admin", "friend", "stranger" or "carrier"
    owner: bytes = b""
    prefix: str = ""
    vetted: bool = False  # friends and strangers; own devices need it not
    last_seen: float | None = None  # None: absence is not judged (a carrier, or one asked just now)
    lied_at: float | None = None  # the last lie


class Copy(NamedTuple):
    """What the catalog knows of one holder's copy."""

    holder: Holder
    proved_at: float | None  # the last whole proof of the present live map; None: its word only
    lease_until: float
    failed: bool = False  # since then it said that it has it not, or proved this one wrongly
    audited_at: float | None = None  # the last audit that it passed, of either kind
    suspect_since: float | None = None  # the first audit after that which it did not answer
    since: float | None = None  # the first receipt


def standing_of(copy: Copy, now: float) -> Standing:
    if copy.failed or is_disowned(copy):
        return Standing.LOST
    quiet = _quiet_s(copy, now)
    if quiet >= LOST_AFTER_S or now >= copy.lease_until + LEASE_GRACE_S:
        return Standing.LOST
    if copy.proved_at is None or quiet >= SUSPECT_AFTER_S or now >= copy.lease_until:
        return Standing.SUSPECT
    return Standing.LIVE


def is_away(holder: Holder, now: float) -> bool:
    """Whether it has not been seen for so long that its copies do not count for now."""
    return holder.last_seen is not None and now - holder.last_seen >= SUSPECT_AFTER_S


def is_disowned(copy: Copy) -> bool:
    """Whether a lie of its holder, about whatever bundle, is newer than the copy's own proof."""
    lied_at = copy.holder.lied_at
    return lied_at is not None and (copy.proved_at is None or copy.proved_at <= lied_at)


def is_barred(holder: Holder, now: float) -> bool:
    """Whether it lied so lately that it gets nothing new; a mended disk deserves another chance."""
    return holder.lied_at is not None and now - holder.lied_at < BARRED_S


def seen_by_us(last_seen: float, *, watching_since: float, now: float) -> float:
    """The `last_seen` to judge by: while we have not been looking for long ourselves, nobody is
    away. Otherwise a laptop that wakes after three days would copy everything anew.

    `watching_since`: since when this node runs, is awake, and has had a link to anybody. A time in
    the future was written by a clock that was wrong: nobody knows more than that we have not seen
    that holder since we watch. Otherwise one that is gone would count until then.
    """
    if now - watching_since < LOOK_AROUND_S:
        return now
    return last_seen if last_seen <= now + AHEAD_S else watching_since


def _quiet_s(copy: Copy, now: float) -> float:
    """For how long the holder has not been there, or has owed an answer about this copy."""
    last_seen, asked = copy.holder.last_seen, copy.suspect_since
    away = 0.0 if last_seen is None else now - last_seen
    if asked is None or asked <= max(copy.audited_at or 0.0, copy.proved_at or 0.0):
        return away
    return max(away, now - asked)
