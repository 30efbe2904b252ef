"""A holder asked to be rid of a copy: what its owner does about that next.

The copy counts no more from the moment on in which the holder asked, but its bytes are there, and
must be until enough others have proved theirs. Enough is

    the target, as far as holders can be reached now, and not less than
    min_copies, as far as there are so many holders at all, and not less than
    one: nothing is let go of that would then be on this device alone

Of a bundle that is not on this device enough is never less than min_copies. Where others cannot be
found for it, it is brought here first; then it counts like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class MoveStep(Enum):
    RELEASE = "the holder may let go of it"
    WAIT = "others must take it first"
    FETCH = "it must be here before others can take it"


@dataclass(frozen=True, kw_only=True)
class Moving:
    """All that decides about one copy. The counts are of independent holders, the one that asked
    left out: who proved the present live map, who could hold something, who is reachable now."""

    counted: int
    eligible: int
    reachable: int
    min_copies: int
    target: int
    is_here: bool


def next_move(moving: Moving) -> MoveStep:
    if moving.counted >= enough_to_release(moving):
        return MoveStep.RELEASE
    if not moving.is_here and moving.eligible > 0:
        return MoveStep.FETCH
    return MoveStep.WAIT


def enough_to_release(moving: Moving) -> int:
    """How many counted copies there must be elsewhere."""
    wanted = max(min(moving.target, moving.reachable), min(moving.min_copies, moving.eligible), 1)
    return wanted if moving.is_here else max(wanted, moving.min_copies)
