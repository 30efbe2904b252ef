"""Telling the DHT which bundles are here, so that devices without a catalog find them.

All tags are announced when the node starts and every 12 hours; a claim ends after 24, so one missed
turn loses nothing. Nothing is taken back: what is not announced again is forgotten by the network.
New tags are collected for a few seconds and announced together. When more are waiting than is worth
keeping apart, the next full turn comes at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Final, Protocol

from p2pstore.clock import Clock
from p2pstore.errors import P2PStoreError
from p2pstore.ids import Tag
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

EVERY_S: Final = 12 * 3600.0
LIFETIME_MS: Final = 24 * 3600 * 1000
GATHER_S: Final = 3.0  # a batch of new bundles is sealed within a few seconds
RETRY_S: Final = 60.0
MAX_WAITING: Final = 10_000


class Teller(Protocol):
    """What of dht.Dht is used here."""

    async def announce(self, tags: Sequence[Tag], until_ms: int) -> int: ...


class Announcer:
    def __init__(
        self,
        dht: Teller,
        tags: Callable[[], Iterable[Tag]],
        *,
        pool: Executor,
        clock: Clock,
        every_s: float = EVERY_S,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`tags` lists what is here, sealed and not in the trash; it is called in a thread."""
        self._dht = dht
        self._tags = tags
        self._pool = pool
        self._clock = clock
        self._every_s = every_s
        self._pause = pause
        self._waiting: dict[Tag, None] = {}
        self._wake = asyncio.Event()
        self._everything = True
        self.announced = 0  # tags of the last full turn

    def announce_soon(self, *tags: Tag) -> None:
        """These are new here. Called in the loop's thread."""
        self._waiting.update(dict.fromkeys(tags))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.clear()
            self._everything = True
        self._wake.set()

    def announce_all_soon(self) -> None:
        """The network is back, or we have another address."""
        self._everything = True
        self._wake.set()

    async def run(self) -> None:
        """For ever; owned by whoever calls it."""
        last = self._clock.monotonic()
        while True:
            try:
                if self._everything:
                    self._everything = False
                    await self._announce_all()
                    last = self._clock.monotonic()
                await self._announce_waiting()
            except (P2PStoreError, OSError) as exc:
                log.debug("Tags could not be announced: %s", exc)
                self._everything = True
                await self._pause(RETRY_S)
                continue
            rest = self._every_s - (self._clock.monotonic() - last)
            try:
                async with asyncio.timeout(max(0.0, rest)):
                    await self._wake.wait()
            except TimeoutError:
                self._everything = True
                continue
            await self._pause(GATHER_S)
            self._wake.clear()

    async def _announce_all(self) -> None:
        tags = list(dict.fromkeys(await in_thread(self._pool, lambda: list(self._tags()))))
        self._waiting.clear()
        await self._tell(tags)
        self.announced = len(tags)

    async def _announce_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        await self._tell(list(waiting))

    async def _tell(self, tags: Sequence[Tag]) -> None:
        if not tags:
            return
        until_ms = int(self._clock.wall() * 1000) + LIFETIME_MS
        sent = await self._dht.announce(tags, until_ms)
        log.debug("Announced %d tags in %d datagrams.", len(tags), sent)
