"""Which local bundles go when room is wanted, and how much room that is.

The longest unused go first. Age is compared by powers of two (a day, two, four, ...): within such a
step the larger ones go first, because fewer bundles then have to be proved by their holders for the
same room. What is pinned or was used within a day stays: room that is bought by what somebody works
with is soon gone again. Whether a bundle *may* go is another question (`evict.why_not`), asked with
`for_room`: space-driven eviction waits for the target.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

DAY_S = 86_400.0
START_SHARE, STOP_SHARE = 20, 10  # parts of the file system: below 5 % above keep-free, up to 10 %


class Evictable(NamedTuple):
    bundle: bytes
    size: int
    last_use: float  # wall clock; of the latest used file that needs it
    is_pinned: bool = False


def room_wanted(*, free: int, keep_free: int, total: int, waiting: int = 0) -> int:
    """Bytes to make free now; 0 while there is enough.

    It begins late and then goes on for a while, so that it does not run after every file.
    `waiting`: bytes of new files that ingest cannot take for want of room; a batch needs twice its
    size (`room_for_batch`).
    """
    spare = free - keep_free - 2 * waiting
    if spare >= total // START_SHARE:
        return 0
    return total // STOP_SHARE - spare


def to_evict(bundles: Iterable[Evictable], room: int, now: float) -> list[Evictable]:
    """In the order in which they should go, no more of them than the room needs."""
    if room <= 0:
        return []
    able = [b for b in bundles if not b.is_pinned and b.size > 0 and now - b.last_use >= DAY_S]
    able.sort(key=lambda b: (-_step(now - b.last_use), -b.size, b.bundle))
    chosen: list[Evictable] = []
    for bundle in able:
        if room <= 0:
            break
        chosen.append(bundle)
        room -= bundle.size
    # The last one may have brought much more than was missing: what is not needed then stays.
    spared: set[bytes] = set()
    for bundle in sorted(chosen, key=lambda b: (_step(now - b.last_use), -b.size, b.bundle)):
        if room + bundle.size <= 0:
            spared.add(bundle.bundle)
            room += bundle.size
    return [bundle for bundle in chosen if bundle.bundle not in spared]


def _step(age_s: float) -> int:
    return int(age_s // DAY_S).bit_length()
