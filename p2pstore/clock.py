"""Time, as an argument: tests choose it, `SystemClock` reads it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds from an arbitrary point; never goes back; goes on while the machine sleeps."""

    def wall(self) -> float:
        """Seconds since the epoch, as the system believes; may jump."""


# A lock that another node promised does not wait while this machine sleeps.
_STEADY = getattr(time, "CLOCK_BOOTTIME", None)


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic() if _STEADY is None else time.clock_gettime(_STEADY)

    def wall(self) -> float:
        return time.time()


class ManualClock:
    """A clock that stands still until it is advanced."""

    def __init__(self, wall: float = 1_700_000_000.0) -> None:
        self._mono = 1000.0
        self._wall = wall

    def monotonic(self) -> float:
        return self._mono

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        self._mono += seconds
        self._wall += seconds
