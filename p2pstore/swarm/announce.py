"""Telling the DHT which bundles are here, so that devices without a catalog find them.

What is here is told part by part of the key space (see `sweep`), each part every 12 hours; a claim
ends after 24, so one missed turn loses nothing. Nothing is taken back: what is not announced again
is forgotten by the network. New tags are collected for a few seconds and announced together; when
more are waiting than is worth keeping apart, everything is told anew. So it is when there are twice
as many nodes as heard us: what was told to the few of a network that was just beginning is not
found by the many. Another address of ours is no reason: a claim names the node, and where that is
says its address record.

How far a sweep has come is saved, for a node that starts again. Whether all parts will be told
before the network forgets them is worked out from the pace so far; if not, that is an alarm.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Final, NamedTuple, Protocol

from p2pstore.clock import Clock
from p2pstore.dht import Announced
from p2pstore.errors import P2PStoreError
from p2pstore.ids import Tag
from p2pstore.swarm.sweep import Sweep
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

EVERY_S: Final = 12 * 3600.0
LIFETIME_S: Final = 24 * 3600.0
GATHER_S: Final = 3.0  # a batch of new bundles is sealed within a few seconds
RETRY_S: Final = 60.0
ALONE_S: Final = 600.0  # nobody heard it: until somebody comes there is no hurry
TICK_S: Final = 15.0
SAVE_S: Final = 60.0
MAX_WAITING: Final = 10_000
AUDIENCE: Final = 20  # nodes that keep a claim: to be heard by more does not help


class Teller(Protocol):
    """What of dht.Dht is used here."""

    async def announce(self, tags: Sequence[Tag], until_ms: int) -> Announced: ...
    def nodes(self) -> int: ...


class Notes(Protocol):
    """Where the progress is kept; both are called in a thread."""

    def load(self) -> bytes | None: ...
    def save(self, raw: bytes) -> None: ...


class Announcing(NamedTuple):
    """What `status` and the metrics say. Times are wall seconds."""

    keys: int = 0
    parts: int = 0  # of the key space, those with keys
    parts_due: int = 0
    is_working: bool = False
    ends: float | None = None  # when those that are due will have been told, at the pace so far
    next_due: float | None = None
    oldest: float | None = None  # when the part was told that was told longest ago
    late: int = 0  # parts that will be forgotten before their turn comes
    lookups: int = 0  # since the start
    datagrams: int = 0
    failures: int = 0  # in a row
    last_error: str = ""
    failed_at: float | None = None

    @property
    def alarm(self) -> str | None:
        """One sentence, when the network will forget keys before they are announced again."""
        if not self.late:
            return None
        return (
            f"The network will forget some of the {self.keys:,} announced keys before they are "
            "announced again: this node or its network is too slow, or it was cut off for long."
        )


class Announcer:
    def __init__(
        self,
        dht: Teller,
        tags: Callable[[], Iterable[Tag]],
        *,
        pool: Executor,
        clock: Clock,
        notes: Notes | None = None,
        mark: bytes = b"",
        every_s: float = EVERY_S,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`tags` lists what is here, sealed and not in the trash; it is called in a thread.

        `mark` says to whom it is told (the network's name): saved progress under another is void.
        """
        self._dht = dht
        self._tags = tags
        self._pool = pool
        self._clock = clock
        self._notes = notes
        self._mark = mark
        self._pause = pause
        self._sweep = Sweep(clock.wall(), every_s=every_s, lifetime_s=LIFETIME_S)
        self._waiting: dict[Tag, None] = {}
        self._wake = asyncio.Event()
        self._everything = False
        self._audience = AUDIENCE  # nodes that heard the last sweep
        self._not_before = 0.0
        self._swept_at = 0.0
        self._saved_at = 0.0
        self._lookups = 0
        self._datagrams = 0
        self._new_keys = 0  # told since the last sweep
        self._failures = 0
        self._last_error = ""
        self._failed_at: float | None = None
        self._is_working = False
        self._is_alarmed = False

    def announce_soon(self, *tags: Tag) -> None:
        """These are new here. Called in the loop's thread."""
        self._waiting.update(dict.fromkeys(tags))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.clear()
            self._everything = True
        self._wake.set()

    def state(self) -> Announcing:
        now = self._clock.wall()
        outlook = self._sweep.outlook(now)
        return Announcing(
            keys=self._sweep.keys + self._new_keys,
            parts=self._sweep.parts,
            parts_due=outlook.due,
            is_working=self._is_working,
            ends=outlook.ends if outlook.due else None,
            next_due=now + self._sweep.next_due(now) if self._sweep.keys else None,
            oldest=self._sweep.oldest or None,
            late=outlook.late,
            lookups=self._lookups,
            datagrams=self._datagrams,
            failures=self._failures,
            last_error=self._last_error,
            failed_at=self._failed_at,
        )

    async def run(self) -> None:
        """For ever; owned by whoever calls it."""
        if self._notes is not None:
            raw = await in_thread(self._pool, self._notes.load)
            if raw is not None and self._sweep.load(raw, self._mark):
                log.debug("Going on with the announcements where they stopped.")
        while True:
            try:
                if self._is_time():
                    await self._tell_all()
                await self._tell_new()
                self._failures = 0
            except (P2PStoreError, OSError) as exc:
                log.debug("Tags could not be announced: %s", exc)
                self._failures += 1
                self._last_error, self._failed_at = str(exc), self._clock.wall()
                await self._pause(RETRY_S)
                continue
            finally:
                self._watch()
            try:
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            await self._pause(GATHER_S)
            self._wake.clear()

    def _is_time(self) -> bool:
        now = self._clock.monotonic()
        has_grown = min(self._dht.nodes(), AUDIENCE) > 2 * self._audience
        if self._everything or (has_grown and now >= self._swept_at + RETRY_S):
            self._everything = False
            self._sweep.forget()
            return True
        if now < self._not_before:
            return False
        return self._sweep.next_due(self._clock.wall()) <= 0 or not self._sweep.keys

    async def _tell_all(self) -> None:
        """One part after the other, the one told longest ago first."""
        self._is_working = True
        try:
            await self._tell_parts()
        finally:
            self._is_working = False
            self._swept_at = self._clock.monotonic()

    async def _tell_parts(self) -> None:
        parts = self._sweep.lay_out(await in_thread(self._pool, lambda: list(self._tags())))
        self._waiting.clear()
        self._new_keys = 0
        self._audience = self._dht.nodes()
        for part in self._sweep.due(self._clock.wall()):
            began = self._clock.monotonic()
            if await self._tell(parts[part]):
                now = self._clock.monotonic()
                self._sweep.told(part, self._clock.wall(), now - began)
                if now - self._saved_at >= SAVE_S:
                    await self._save()
            else:
                self._audience = 0
                self._not_before = self._clock.monotonic() + ALONE_S
            self._watch()
            await self._tell_new()  # these need not wait for the end of a long sweep
        await self._save()

    async def _tell_new(self) -> None:
        waiting, self._waiting = self._waiting, {}
        try:
            await self._tell(list(waiting))
            self._new_keys += len(waiting)
        except (P2PStoreError, OSError):
            self.announce_soon(*waiting)
            raise

    async def _tell(self, tags: Sequence[Tag]) -> bool:
        """Whether anybody heard it."""
        if not tags:
            return True
        until_ms = int((self._clock.wall() + LIFETIME_S) * 1000)
        told = await self._dht.announce(tags, until_ms)
        self._lookups += told.lookups
        self._datagrams += told.datagrams
        log.debug("Announced %d tags to %d nodes: %d look-ups, %d datagrams.", len(tags), *told)
        return told.nodes > 0

    async def _save(self) -> None:
        self._saved_at = self._clock.monotonic()
        if self._notes is not None:
            await in_thread(self._pool, self._notes.save, self._sweep.encode(self._mark))

    def _watch(self) -> None:
        """Say so once when keys will be forgotten, and once when that is over."""
        alarm = self.state().alarm
        if alarm is not None and not self._is_alarmed:
            log.warning("%s", alarm)
        elif alarm is None and self._is_alarmed:
            log.info("All announced keys are told in time again.")
        self._is_alarmed = alarm is not None
