"""May the local copy of a bundle go? A list of what is missing; empty means yes (SAFETY, 5).

`why_not` is asked twice. First with `under_lock=False`, to choose and to explain (`evict --why`):
only what the catalog knows. Then, with locks held and proofs just received, with `under_lock=True`,
before the bundle goes into the trash and again before it is unlinked. `now` is the wall clock,
`monotonic` the clock on which proofs and locks of this process were timed: a wall clock that is set
back must not make an ended lock look held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pstore.policy.copies import counted, counted_holders
from p2pstore.policy.standing import Copy, Holder
from p2pstore.text import plural

FRESH_PROOF_S = 600.0
LOCK_MARGIN_S = 60.0  # clocks of two machines run apart, and the unlink takes a moment


class Confirmation(NamedTuple):
    """A holder's lock and the whole proof given under it. Monotonic clock.

    `locked_at` and `locked_until` count from before the lock was asked for, `proved_at` is when
    the challenge was sent. A holder without a proof or a lock has None there.
    """

    holder: Holder
    proved_at: float | None
    locked_at: float | None
    locked_until: float | None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that decides about one local bundle."""

    is_meta: bool
    is_sealed: bool
    min_copies: int  # the greatest of all folders that refer to a live block of it
    target: int  # likewise
    copies: Sequence[Copy]
    confirmations: Sequence[Confirmation] = ()
    meta_copies: Sequence[int] = ()  # counted copies of each meta bundle that names a block of it
    has_meta: bool = True  # the meta bundles of all its live blocks are known
    head_acks: Sequence[Holder] = ()  # acknowledged head and group state that cover its manifests
    words_confirmed: bool = False
    second_device: bool = False  # another unrevoked device holds the group's keys
    for_room: bool = False  # room is wanted: nobody asked for this bundle
    rebuilding: bool = False  # the catalog is being rebuilt
    locked_for_others_s: float = 0.0  # we promised another node to keep it that much longer
    in_the_way: Mapping[str, int] = field(default_factory=dict)  # short words -> files that need it


def why_not(
    facts: Facts,
    *,
    now: float,
    monotonic: float,
    under_lock: bool = True,
    fresh_proof_s: float = FRESH_PROOF_S,
) -> list[str]:
    """What is missing before the local copy may go, in short words for people. The first is what
    many are told alone: what they can do something about stands before what goes by itself."""
    reasons = _of_itself(facts)
    if not (facts.words_confirmed or facts.second_device):
        reasons.append("recovery words not confirmed: p2pstore words confirm")
    held = counted(facts.copies, now)
    if held < facts.min_copies:
        reasons.append(f"needs {_copies(facts.min_copies)} on other nodes, has {held}")
    elif facts.for_room and held < facts.target:
        reasons.append(f"waits for {_copies(facts.target)} on other nodes, has {held}")
    reasons += _keys(facts)
    if under_lock:
        reasons += _under_lock(facts, monotonic, fresh_proof_s)
    return reasons


def _of_itself(facts: Facts) -> list[str]:
    reasons = []
    if facts.min_copies < 1 or facts.target < facts.min_copies:
        reasons.append("its settings make no sense")  # never drop a copy on a wrong number
    if facts.is_meta:
        reasons.append("names and lists stay here")
    if not facts.is_sealed:
        reasons.append("is still being written")
    if facts.rebuilding:
        reasons.append("the catalog is being rebuilt")
    if facts.locked_for_others_s > 0:
        reasons.append("another node relies on this copy just now")
    reasons += [f"{_files(count)} {why}" for why, count in facts.in_the_way.items() if count]
    return reasons


def _keys(facts: Facts) -> list[str]:
    """Without its keys a block is noise: they must be as safe as the block."""
    reasons = []
    if not facts.has_meta or not facts.meta_copies:
        reasons.append("its list of blocks is not stored yet")
    elif min(facts.meta_copies) < facts.min_copies:
        others = plural(facts.min_copies, "other node")
        reasons.append(f"its list of blocks is on {min(facts.meta_copies)} of {others}")
    acks = counted_holders(facts.head_acks)
    if acks < facts.min_copies:
        have = plural(facts.min_copies, "holder has", "holders have")
        reasons.append(f"{acks} of {have} the newest folder index")
    return reasons


def is_confirmed(confirmation: Confirmation, monotonic: float, fresh_proof_s: float) -> bool:
    """Whether the holder proved the whole bundle lately, under a lock that lasts long enough."""
    proved, locked, until = confirmation[1:]
    if proved is None or locked is None or until is None:
        return False
    return (
        locked <= proved <= monotonic
        and monotonic - proved <= fresh_proof_s
        and monotonic + LOCK_MARGIN_S <= until
    )


def _under_lock(facts: Facts, monotonic: float, fresh_proof_s: float) -> list[str]:
    good = [c.holder for c in facts.confirmations if is_confirmed(c, monotonic, fresh_proof_s)]
    confirmed = counted_holders(good)
    if confirmed < facts.min_copies:
        proved = plural(facts.min_copies, "holder proved its copy", "holders proved their copy")
        return [f"{confirmed} of {proved} just now"]
    return []


def _copies(count: int) -> str:
    return plural(count, "copy", "copies")


def _files(count: int) -> str:
    return plural(count, "file")
