"""How much is asked of a carrier at once, and how often again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias, TypeVar

from p2pstore.carriers import NotThere
from p2pstore.errors import NoRoom, Unavailable

T = TypeVar("T")

Progress: TypeAlias = Callable[[int, int], object]
"""Told (bytes done, bytes in all) after each piece, from the event loop."""

IN_FLIGHT: Final = 32 << 20  # bytes of content; each is in memory three times for a while
WIDEST: Final = 8  # pieces at once: hosts limit the connections that they take


def width(piece: int) -> int:
    """How many pieces of that size may be in flight."""
    return max(1, min(WIDEST, IN_FLIGHT // max(1, piece)))


class Patience(NamedTuple):
    """How often something that failed for now is tried again: pauses double, with jitter."""

    tries: int = 6
    first_s: float = 0.5
    most_s: float = 30.0
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    dice: Callable[[], float] = random.random  # 0 to 1: many that failed together part again

    async def insist(self, attempt: Callable[[], Awaitable[T]], *, is_expected: bool = False) -> T:
        """The attempt's answer, or its last error. `is_expected`: NotThere may pass, too."""
        for number in range(self.tries - 1):
            try:
                return await attempt()
            except Unavailable as exc:
                if isinstance(exc, NoRoom) or (isinstance(exc, NotThere) and not is_expected):
                    raise
            pause = min(self.most_s, self.first_s * 2**number)
            await self.sleep(pause * (0.5 + self.dice() / 2))
        return await attempt()


PATIENT: Final = Patience()


async def each(todo: Iterable[T], work: Callable[[T], Awaitable[object]], *, width: int) -> None:
    """Do `work` for each, so many at once, begun in order; the first error ends the others."""
    waiting = iter(todo)

    async def worker() -> None:
        for one in waiting:
            await work(one)

    failed: Sequence[Exception] = ()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(worker())
    except ExceptionGroup as errors:
        failed = errors.exceptions  # of workers side by side: flat
    # What another try would not mend says more than what it might.
    for error in sorted(failed, key=lambda error: isinstance(error, Unavailable)):
        raise error
