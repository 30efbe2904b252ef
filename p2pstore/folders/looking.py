"""LOOK: what a folder holds is entered into its books.

A look is asked for by hints, or covers everything. It concludes nothing: a change begins to rest, a
path that is gone begins to be missed. While batches run most hints are their doing, so looks are
kept apart then.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from p2pstore.errors import Unavailable
from p2pstore.folders.books import Books, Surroundings
from p2pstore.folders.judging import IN_WORK
from p2pstore.folders.meeting import Meeting
from p2pstore.folders.parts import Parts
from p2pstore.folders.reconcile import Findings, identity_of, look_at, look_at_all
from p2pstore.placement import SUFFIX, UNWRITABLE, Identity, Root
from p2pstore.policy import OPEN_IN_EDITOR
from p2pstore.store import FileRow, State, files

log = logging.getLogger(__name__)

LOOKS_APART_S = 2.0  # while batches run: they make most of the hints
LOOK_SHARE = 30  # ... and a large folder is not looked at for most of the time
LOOKS_APART_MOST_S = 30.0
FOUND_S = 0.05  # between two looks at which directories a scan has found
OPENS_AT_A_TIME = 500  # directories watched before other work of the loop gets its turn

# Why a protected file stays that is no reason to stay for good: the next look asks again.
RETRIED = frozenset((IN_WORK, "opened for writing meanwhile", "changed meanwhile"))


class Looking:
    def __init__(
        self, *, path: Path, row: int, parts: Parts, books: Books, meeting: Meeting
    ) -> None:
        self.scanned = False  # everything was looked at once since the folder was arrived at
        self.unread: list[tuple[bytes, str]] = []
        self.opens_unheard = ""  # why opening a placeholder may not bring it back here
        self._path = path
        self._row = row
        self._parts = parts
        self._books = books
        self._meeting = meeting
        self._ended = float("-inf")
        self._took = 0.0

    def wait_s(self) -> float:
        """Seconds until the next look is worth it: most of what is heard meanwhile is our doing."""
        books = self._books
        if not books.ours or not self.scanned or books.waiting.has_forced():
            return 0.0
        apart = min(max(LOOKS_APART_S, LOOK_SHARE * self._took), LOOKS_APART_MOST_S)
        return max(0.0, self._ended + apart - self._parts.now())

    async def look(self, root: Root) -> None:
        """At what the hints name, if the time for it has come."""
        hints = self._books.hints
        if self.wait_s() or not hints:
            return
        began = self._parts.now()
        self._books.ours.look_begins()
        judge_anew = hints.take_rescan()
        if judge_anew is None:
            await self._look_at(root, hints.take_paths())
        else:
            await self._look_at_all(root, judge_anew=judge_anew)
        self._ended = self._parts.now()
        self._took = self._ended - began

    async def _look_at_all(self, root: Root, *, judge_anew: bool) -> None:
        findings = await self._scan(root)
        self._books.surroundings = Surroundings(findings.repositories, findings.siblings)
        self.unread = [(u.path, u.error.strerror or "error") for u in findings.unread]
        await self._enter(root, findings)
        await self._requeue(judge_anew=judge_anew)
        self.scanned = True

    async def _scan(self, root: Root) -> Findings:
        """Opens are heard from each directory that was found: who opens a placeholder is not to
        wait until a large folder was looked at."""
        parts, findings, watched = self._parts, Findings(), 0
        async with asyncio.TaskGroup() as group:
            look = group.create_task(
                parts.in_thread(look_at_all, root, parts.catalog, self._row, findings=findings)
            )
            is_everywhere = await self._watch_opens((b"",))
            while not look.done() or watched < len(findings.directories):
                await asyncio.wait([look], timeout=FOUND_S)
                found = findings.directories[watched:]
                watched += len(found)
                is_everywhere = await self._watch_opens(found) and is_everywhere
        if is_everywhere:
            self.opens_unheard = ""
        return findings

    async def _look_at(self, root: Root, paths: Sequence[bytes]) -> None:
        parts, books = self._parts, self._books
        # A write into a mapped page may change nothing that a look can see.
        now = parts.now()
        for path in paths:
            books.waiting.touch(path, now=now, settle=books.settings.settle_s)
        findings = await parts.in_thread(look_at, root, parts.catalog, self._row, paths)
        books.surroundings.repositories |= findings.repositories
        for directory, names in findings.siblings.items():
            books.surroundings.siblings.setdefault(directory, set()).update(names)
        await self._watch_opens(findings.directories)
        await self._enter(root, findings)

    async def _watch_opens(self, directories: Sequence[bytes]) -> bool:
        """Hear of opens in these directories; False beyond the system's limit, where only
        `hydrate` works."""
        for start in range(0, len(directories), OPENS_AT_A_TIME):
            try:
                for directory in directories[start : start + OPENS_AT_A_TIME]:
                    self._parts.opens.add_directory(self._path, directory)
            except Unavailable as exc:
                if not self.opens_unheard:
                    log.warning("%s: opens are not noticed everywhere: %s", self._path, exc)
                self.opens_unheard = str(exc)
                return False
            await asyncio.sleep(0)
        return True

    async def _enter(self, root: Root, findings: Findings) -> None:
        parts, books = self._parts, self._books
        now, settle = parts.now(), books.settings.settle_s
        for seen in findings.changed:
            books.losses.found([seen.path])
            if not books.ours.met(seen.path):
                books.waiting.observe(seen.path, identity_of(seen), now=now, settle=settle)
        met = [s for s in findings.placeholders if not books.ours.met(s.path.removesuffix(SUFFIX))]
        if met:
            known, own = await parts.in_thread(self._meeting.placeholders, root, met)
            books.losses.found(known)
            for seen in own:
                if not books.ours.met(seen.path):
                    books.waiting.observe(seen.path, identity_of(seen), now=now, settle=settle)
        if findings.links or findings.others:
            await parts.in_thread(self._meeting.others, root, findings.links, findings.others)
        for gone in findings.gone:
            if not books.ours.met(gone.path) and gone.state != State.HYDRATING:
                books.losses.missing(gone.path, due=now + settle)
                books.waiting.drop(gone.path)
        modified = sum(1 for path in findings.modified if not books.ours.met(path))
        if modified:
            books.losses.changed(modified, now)

    async def _requeue(self, *, judge_anew: bool) -> None:
        """Protected files that may be replaced one day wait for that day."""
        parts, waiting = self._parts, self._books.waiting
        settings = self._books.settings
        states = (State.PROTECTED, State.SKIPPED) if judge_anew else (State.PROTECTED,)
        # An editor's lock file may have gone without the file itself having changed.
        retried = RETRIED | {OPEN_IN_EDITOR}
        if self._books.obstacle is None:
            retried |= {UNWRITABLE}

        # Without a reason: a crash came between protecting and replacing.
        reasons = () if judge_anew else ("", *sorted(retried))

        def protected(db: sqlite3.Connection) -> list[FileRow]:
            return list(files.walk(db, self._row, states=states, reasons=reasons))

        now, wall = parts.now(), parts.clock.wall()
        for row in await parts.in_thread(parts.catalog.view, protected):
            if row.path in waiting or row.path in self._books.in_flight:
                continue
            identity = Identity(row.ino, row.size, row.mtime_ns, row.ctime_ns)
            if row.reason == IN_WORK and not judge_anew:
                due = now + max(0.0, row.last_use / 1000 + settings.keep_s - wall)
                waiting.defer(row.path, identity, IN_WORK, until=due)
            else:
                waiting.observe(row.path, identity, now=now, settle=settings.settle_s)
