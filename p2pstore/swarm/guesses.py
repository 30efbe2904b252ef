"""Slowing down who tries passwords of a share.

A key with a password is safe from guessing only as long as holders do not answer as fast as one can
ask: each address has a few wrong tokens free, then one every SECONDS_EACH. While it has none left
the right one is refused as well, or the refusal would tell which it is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from p2pstore.clock import Clock

FREE: Final = 10  # people mistype, and a few of them may live behind one address
SECONDS_EACH: Final = 10.0  # 8,640 a day: 100,000 words take twelve days
MAX_ADDRESSES: Final = 4096  # remembered; who has more has more computers than this can stop


class Guesses:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ends: OrderedDict[str, float] = OrderedDict()  # when all of them are free again

    def is_out(self, host: str) -> bool:
        """Whether this address has no guess left now."""
        return self._ends.get(host, 0.0) - self._clock.monotonic() > (FREE - 1) * SECONDS_EACH

    def wrong(self, host: str) -> None:
        """One was used."""
        now = self._clock.monotonic()
        end = max(now, self._ends.get(host, 0.0)) + SECONDS_EACH
        self._ends[host] = min(end, now + FREE * SECONDS_EACH)  # more were under way at once
        self._ends.move_to_end(host)
        if len(self._ends) > MAX_ADDRESSES:
            self._ends.popitem(last=False)
