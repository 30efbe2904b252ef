"""LOOPS: what goes on by itself, so that each such thing is visible, resumable and stoppable.

A loop has a name and does one turn after another:

    waits    until its period has passed, or somebody wakes it
    works    the turn runs; it may say what it is at, how far it is, and keep its place
    rests    the turn failed: the error is logged with its traceback, kept to be shown, and the next
             try comes after a pause that doubles from FIRST_REST_S to LONGEST_REST_S. Waking it
             does not shorten that: what fails a thousand times a second helps nobody

With `lasts`, when it last came to an end and the place that a turn keeps lie in the catalog (kv,
"loop:<name>", [ms since the epoch, place]): a period of a month goes on over restarts, and a turn
of a week goes on where it was. A place is the turn's own bytes; nobody else reads it. Losing it
with the catalog costs a repetition.

To stop a loop, cancel `run`. Work in threads looks at `stopped`, which is set first, so that a
long piece of it ends early. With `longest_rest_s` a loop whose turn is heavy rests longer.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal, NamedTuple

import msgspec

from p2pstore.clock import Clock
from p2pstore.store import Catalog, folders

log = logging.getLogger(__name__)

FIRST_REST_S = 1.0
LONGEST_REST_S = 300.0
LONGEST_WAIT_S = 600.0  # timers stand still while the machine sleeps: the clock is asked anew
MAX_PLACE = 4096
_KEY = "loop:"

LoopState = Literal["stopped", "waits", "works", "rests"]


class Doing(NamedTuple):
    """What a turn is at, for people; the counts are in whatever unit fits the words."""

    text: str = ""
    done: int | None = None
    total: int | None = None


class Report(NamedTuple):
    """What `status` and `/metrics` say of a loop. Times are seconds since the epoch."""

    name: str
    state: LoopState
    doing: Doing
    period_s: float | None  # None: only when something happens
    last_run: float | None  # when a turn last came to a good end
    next_run: float | None  # None: when something happens
    failures: int  # in a row
    last_error: str
    failed_at: float | None  # of `last_error`, which is kept after a good turn


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    last_ms: int = 0
    place: Annotated[bytes, msgspec.Meta(max_length=MAX_PLACE)] = b""


Turn = Callable[["Loop"], Awaitable[float | None]]
"""One turn; the seconds until the next one, None for the loop's period."""


class Loop:
    """One loop. Everything is called in the event loop, but for `say`, `place` and `stopped`."""

    def __init__(
        self,
        name: str,
        turn: Turn,
        *,
        catalog: Catalog,
        clock: Clock,
        period_s: float | None = None,
        lasts: bool = False,
        longest_rest_s: float | None = None,
    ) -> None:
        self.name = name
        self._longest_rest_s = longest_rest_s
        self.stopped = threading.Event()
        self._turn = turn
        self._catalog = catalog
        self._clock = clock
        self._period_s = period_s
        self._lasts = lasts
        self._woken = asyncio.Event()
        self._state: LoopState = "stopped"
        self._doing = Doing()
        self._kept = _Kept()
        self._due: float | None = None  # monotonic
        self._failures = 0
        self._error = ""
        self._failed_at: float | None = None

    # -- what others ask --------------------------------------------------------------------------

    def wake(self) -> None:
        """The next turn comes now, or when the one that runs has ended."""
        self._woken.set()

    def report(self) -> Report:
        due = self._due
        return Report(
            name=self.name,
            state=self._state,
            doing=self._doing,
            period_s=self._period_s,
            last_run=self._kept.last_ms / 1000 if self._kept.last_ms else None,
            next_run=None if due is None else self._clock.wall() + due - self._clock.monotonic(),
            failures=self._failures,
            last_error=self._error,
            failed_at=self._failed_at,
        )

    # -- what a turn asks -------------------------------------------------------------------------

    def say(self, text: str, done: int | None = None, total: int | None = None) -> None:
        self._doing = Doing(text, done, total)

    def heard(self) -> None:
        """Whatever woke the loop until now is covered by the turn that runs."""
        self._woken.clear()

    @property
    def place(self) -> bytes:
        """Where the last turn was; empty: at the beginning."""
        return self._kept.place

    async def keep(self, place: bytes) -> None:
        """Durable on return, if the loop `lasts`. Empty when a turn came to the end of its way."""
        await self._keep(_Kept(self._kept.last_ms, place))

    # -- life -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Turn after turn, until it is cancelled."""
        self.stopped.clear()
        if self._lasts:
            self._kept = await asyncio.to_thread(self._catalog.view, self._load)
        self._state, self._due = "waits", self._first_due()
        try:
            while True:
                await self._until_due()
                await self._one_turn()
        finally:
            self.stopped.set()
            self._state, self._doing, self._due = "stopped", Doing(), None

    async def _one_turn(self) -> None:
        self._state, self._due = "works", None
        self._woken.clear()
        try:
            again_s = await self._whole_turn()
            await self._keep(_Kept(int(self._clock.wall() * 1000), self._kept.place))
        except Exception as exc:  # the top of a long loop: the others go on, and this one later
            self._failures += 1
            self._error, self._failed_at = str(exc) or type(exc).__name__, self._clock.wall()
            longest_s = self._longest_rest_s or LONGEST_REST_S
            rest_s = min(FIRST_REST_S * 2.0 ** min(self._failures - 1, 30), longest_s)
            log.exception("The %s loop failed; it goes on in %.0f s.", self.name, rest_s)
            self._state, self._doing = "rests", Doing()
            self._due = self._clock.monotonic() + rest_s
            return
        self._failures = 0
        self._state, self._doing = "waits", Doing()
        again_s = self._period_s if again_s is None else again_s
        self._due = None if again_s is None else self._clock.monotonic() + again_s

    async def _whole_turn(self) -> float | None:
        """In a task of its own: when this one is cancelled, threads of the turn are told first,
        because the turn waits for them."""
        turn = asyncio.ensure_future(self._turn(self))
        try:
            return await asyncio.shield(turn)
        except asyncio.CancelledError:
            self.stopped.set()
            turn.cancel()
            await asyncio.gather(turn, return_exceptions=True)
            raise

    async def _until_due(self) -> None:
        rests = self._state == "rests"
        while rests or not self._woken.is_set():
            left = None if self._due is None else self._due - self._clock.monotonic()
            if left is not None and left <= 0:
                return
            patience = LONGEST_WAIT_S if left is None else min(left, LONGEST_WAIT_S)
            if rests:
                await asyncio.sleep(patience)
                continue
            try:
                async with asyncio.timeout(patience):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def _first_due(self) -> float | None:
        """At once, unless the last turn is known to have ended less than a period ago."""
        now = self._clock.monotonic()
        if self._period_s is None:
            return None
        if self._kept.place or not self._kept.last_ms:
            return now
        passed = self._clock.wall() - self._kept.last_ms / 1000
        if passed < 0:  # the clock was set back: who knows how long it was
            return now
        return now + max(0.0, self._period_s - passed)

    # -- the catalog ------------------------------------------------------------------------------

    def _load(self, db: sqlite3.Connection) -> _Kept:
        raw = folders.kv_get(db, _KEY + self.name)
        if raw is None:
            return _Kept()
        try:
            return msgspec.msgpack.decode(raw, type=_Kept)
        except msgspec.MsgspecError:
            return _Kept()  # of another version: the turn begins anew

    async def _keep(self, kept: _Kept) -> None:
        if self._lasts:
            raw = msgspec.msgpack.encode(kept)
            await self._catalog.awrite(lambda db: folders.kv_set(db, _KEY + self.name, raw))
        self._kept = kept


class Loops:
    """All loops of a node, in the order in which they were added."""

    def __init__(self, catalog: Catalog, clock: Clock) -> None:
        self._catalog = catalog
        self._clock = clock
        self._loops: list[Loop] = []

    def add(
        self,
        name: str,
        turn: Turn,
        *,
        period_s: float | None = None,
        lasts: bool = False,
        longest_rest_s: float | None = None,
    ) -> Loop:
        """Before `run`. `lasts`: its last turn and its place are remembered over restarts."""
        loop = Loop(
            name,
            turn,
            catalog=self._catalog,
            clock=self._clock,
            period_s=period_s,
            lasts=lasts,
            longest_rest_s=longest_rest_s,
        )
        self._loops.append(loop)
        return loop

    async def run(self) -> None:
        """All of them, until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for loop in self._loops:
                group.create_task(loop.run())

    def reports(self) -> list[Report]:
        return [loop.report() for loop in self._loops]
