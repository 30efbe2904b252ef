"""BATCH: what has rested goes, some hundred files at a time, each batch in a thread of its own.

A path is looked at once more and judged when its turn comes. What a batch says of it decides what
it waits for next: a program that has it open, the end of work, room, nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from p2pstore.errors import P2PStoreError
from p2pstore.folders.books import Books
from p2pstore.folders.intents import Trashed
from p2pstore.folders.judging import IN_WORK, Rules, Stays, judge
from p2pstore.folders.looking import RETRIED
from p2pstore.folders.meeting import Meeting
from p2pstore.folders.parts import Parts
from p2pstore.folders.reconcile import identity_of, still
from p2pstore.folders.taking import Candidate, Outcome, Taken
from p2pstore.folders.trash import Trash
from p2pstore.placement import Claim, Identity, Root
from p2pstore.store import FileRow, State, files

log = logging.getLogger(__name__)

BATCH_FILES = 500
BATCH_BYTES = 64 << 20
BATCHES_IN_FLIGHT = 3
RETRY_S = 5.0  # a file that somebody has open is tried again after this
LEASE_HOLD_S = 1.0  # a claim is kept this long after its rename (SAFETY, section 2)
TOO_MANY = "too many files at once"  # what a claim beyond the budget of leases is told
NO_ROOM = "waiting for room"


class Batching:
    def __init__(
        self, *, path: Path, row: int, parts: Parts, books: Books, meeting: Meeting, trash: Trash
    ) -> None:
        self.waiting_for_room: str | None = None
        self._path = path
        self._row = row
        self._parts = parts
        self._books = books
        self._meeting = meeting
        self._trash = trash
        self._running = 0
        self._held: list[list[Claim]] = []  # leased a second longer, of each batch

    @property
    def is_idle(self) -> bool:
        return not self._running

    @property
    def holds_files(self) -> bool:
        """Files are open: in a batch, or leased a second longer."""
        return bool(self._running or self._held)

    def next_due(self) -> float | None:
        """When the next path may go; None while no batch may begin."""
        return self._books.waiting.next_due() if self._running < BATCHES_IN_FLIGHT else None

    async def begin(self, root: Root, group: asyncio.TaskGroup) -> bool:
        """Begin one batch, when there is rest, room and width for it."""
        if self._running >= BATCHES_IN_FLIGHT:
            return False
        batch = await self._next(root)
        if not batch:
            return False
        size = sum(candidate.identity.size for candidate in batch)
        self.waiting_for_room = self._parts.room.lacks(root, size)
        if self.waiting_for_room is not None:
            self._defer(batch, NO_ROOM)
            return False
        for candidate in batch:
            self._books.in_flight.begin(candidate.path, candidate.identity.size)
        self._books.ours.begin(candidate.path for candidate in batch)
        self._running += 1
        group.create_task(self._run(root, batch))
        return True

    async def let_go(self) -> None:
        """Close all claims: whoever breaks a lease needs the root to get his file back."""
        held, self._held = self._held, []
        for claims in held:
            await self._parts.in_thread(_close_all, claims)

    # -- which ------------------------------------------------------------------------------------

    async def _next(self, root: Root) -> list[Candidate]:
        """Up to a batch of paths that rested, looked at once more and judged."""
        parts, books = self._parts, self._books
        now = parts.now()
        due = books.waiting.due(now, BATCH_FILES)
        if not due:
            return []
        paths = [path for path, _ in due]
        seen = await parts.in_thread(still, root, paths)
        rows = await parts.in_thread(
            parts.catalog.view, lambda db: files.get_many(db, self._row, paths)
        )
        batch: list[Candidate] = []
        skipped: list[FileRow] = []
        size = 0
        rules = self._rules()
        for path, rest in due:
            there = seen.get(path)
            if there is None:
                books.waiting.drop(path)
                books.hints.add((path,))
                continue
            identity = identity_of(there)
            if identity != rest.identity:
                books.waiting.observe(path, identity, now=now, settle=books.settings.settle_s)
                continue
            if batch and size + identity.size > BATCH_BYTES:
                books.waiting.observe(path, identity, now=now, settle=0.0)
                continue
            forced = books.waiting.take_forced(path)
            verdict = judge(there, rows.get(path), rules, forced=forced)
            if isinstance(verdict, FileRow):
                skipped.append(verdict)
            elif isinstance(verdict, Stays):
                self._stay(verdict.row, identity, verdict.reason)
            else:
                advance = partial(books.in_flight.advance, path)
                batch.append(verdict._replace(advance=advance))
                size += identity.size
        if skipped:
            await parts.catalog.awrite(lambda db: files.upsert_many(db, skipped))
        return batch

    def _rules(self) -> Rules:
        return Rules(
            folder=self._row,
            settings=self._books.settings,
            repositories=self._books.surroundings.repositories,
            siblings=self._books.surroundings.siblings,
            volatile=self._parts.volatile,
            obstacle=self._books.obstacle,
            wall=self._parts.clock.wall(),
        )

    def _stay(self, row: FileRow, identity: Identity, reason: str) -> None:
        if reason != row.reason:
            self._parts.catalog.write(
                lambda db: files.set_state(db, [row.id], State.PROTECTED, reason)
            )
        if reason == IN_WORK:
            self._wait_for_end_of_work(row.path, identity, row.last_use / 1000)

    # -- what becomes of them ---------------------------------------------------------------------

    async def _run(self, root: Root, batch: Sequence[Candidate]) -> None:
        try:
            await self._take(root, batch)
        finally:
            self._running -= 1
            self._books.hints.news.set()

    async def _take(self, root: Root, batch: Sequence[Candidate]) -> None:
        """One batch in a thread; its outcomes come back here."""
        parts, books = self._parts, self._books
        candidates = {candidate.path: candidate for candidate in batch}
        try:
            async with parts.turns:
                taken = await parts.in_thread(parts.taking.take, root, self._row, batch)
        except (P2PStoreError, OSError) as exc:
            log.warning("A batch of %d files of %s failed: %s", len(batch), self._path, exc)
            self._defer(batch, str(exc) if isinstance(exc, P2PStoreError) else str(exc.strerror))
            return
        finally:
            books.in_flight.end(candidates)
            parts.opens.catch_up()  # what was opened until now, we opened
            books.ours.placed(candidates, parts.now())
            books.ours.end(candidates)
        self._hold(taken)
        for outcome in taken.outcomes:  # at once: whoever waited for the batch may force them now
            self._settle(outcome, candidates[outcome.path])
        for outcome in taken.outcomes:
            if outcome.state == "found placeholder" and await parts.in_thread(
                self._meeting.misnamed, root, outcome.path
            ):
                books.losses.found([outcome.path])
        parts.protected()

    def _settle(self, outcome: Outcome, candidate: Candidate) -> None:
        if outcome.state == "later" and outcome.reason == TOO_MANY:
            # Its turn comes when the leases of others are given back: no reason to stay.
            self._defer((candidate,), "", after_s=LEASE_HOLD_S)
        elif outcome.state == "later":
            self._defer((candidate,), outcome.reason)
        elif outcome.state == "gone":
            self._books.hints.add((outcome.path,))
        elif outcome.state == "protected" and outcome.reason == IN_WORK:
            wall = self._parts.clock.wall()
            self._wait_for_end_of_work(outcome.path, candidate.identity, wall)
        elif outcome.state == "protected" and outcome.reason in RETRIED:
            self._defer((candidate,), outcome.reason)

    def _defer(self, batch: Sequence[Candidate], reason: str, *, after_s: float = RETRY_S) -> None:
        until = self._parts.now() + after_s
        for candidate in batch:
            self._books.waiting.defer(candidate.path, candidate.identity, reason, until=until)

    def _wait_for_end_of_work(self, path: bytes, identity: Identity, last_use: float) -> None:
        left = last_use + self._books.settings.keep_s - self._parts.clock.wall()
        until = self._parts.now() + max(RETRY_S, left)
        self._books.waiting.defer(path, identity, IN_WORK, until=until)

    def _hold(self, taken: Taken) -> None:
        """Keep the leases a second more; remember the trash."""
        if taken.intent is not None and taken.body is not None:
            now = self._parts.now_ms()
            self._trash.add(Trashed.of(taken.intent, taken.body, now, rehash=False))
        if taken.claims:
            self._held.append(taken.claims)
            asyncio.get_running_loop().call_later(LEASE_HOLD_S, self._let_go_of, taken.claims)

    def _let_go_of(self, claims: list[Claim]) -> None:
        """The second is over; when the folder was left before, its claims are closed already."""
        if claims in self._held:
            # Held until they are closed: giving way to a writer needs the root open.
            loop = asyncio.get_running_loop()
            closing = loop.run_in_executor(self._parts.pool, _close_all, claims)
            closing.add_done_callback(lambda _: self._forget(claims))

    def _forget(self, claims: list[Claim]) -> None:
        if claims in self._held:
            self._held.remove(claims)


def _close_all(claims: Sequence[Claim]) -> None:
    for entry in claims:
        entry.close()
