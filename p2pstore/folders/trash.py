"""The batches that wait in one folder's trash, and when each is asked whether it may go.

What may go is `emptying`'s to say. A batch that cannot be asked now is asked again a little later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from p2pstore.errors import FormatError
from p2pstore.folders.books import Hints
from p2pstore.folders.emptying import empty
from p2pstore.folders.intents import Trashed
from p2pstore.folders.parts import Parts
from p2pstore.placement import Root

log = logging.getLogger(__name__)

AGAIN_S = 5.0  # between two questions


class Trash:
    def __init__(self, *, row: int, parts: Parts, hints: Hints) -> None:
        self._row = row
        self._parts = parts
        self._hints = hints
        self._batches: list[Trashed] = []
        self._in_hand: list[Trashed] = []  # being asked now: what they name lies there still
        self._said = ""  # what kept it from being emptied the last time

    def add(self, batch: Trashed) -> None:
        self._batches.append(batch)
        self._hints.news.set()

    def take_over(self, batches: Iterable[Trashed]) -> None:
        """What recovery found, in place of what was known."""
        self._batches = list(batches)

    def batches(self) -> list[Trashed]:
        return [*self._batches, *self._in_hand]

    async def empty_due(self, root: Root, *, room_is_short: bool) -> None:
        """Let go what has waited long enough and is still what was put there."""
        hold_s = self._parts.trash_hold_s
        if room_is_short:
            hold_s = min(hold_s, self._parts.trash_hold_short_s)
        latest = self._parts.now_ms() - hold_s * 1000
        await self._empty(root, [b for b in self._batches if b.since_ms <= latest])

    async def empty_all(self, root: Root) -> None:
        """Let go what may go, however short it lay there."""
        await self._empty(root, list(self._batches))

    async def _empty(self, root: Root, due: Sequence[Trashed]) -> None:
        parts = self._parts
        again = parts.now_ms() + int((AGAIN_S - parts.trash_hold_s) * 1000)
        for batch in due:
            if batch not in self._batches:
                continue
            self._batches.remove(batch)
            self._in_hand.append(batch)
            left: Trashed | None = batch
            back: list[bytes] = []
            try:
                left, back = await parts.in_thread(
                    empty, root, self._row, batch, parts.catalog, parts.store, parts.keeper
                )
                self._said = ""
            except (OSError, FormatError) as exc:  # the latter of its row in the journal
                why = (exc.strerror if isinstance(exc, OSError) else "") or str(exc)
                if why != self._said:  # it is tried every few seconds, and said once
                    log.warning("The trash of %s cannot be emptied now: %s", root.path, exc)
                self._said = why
            finally:
                # Also when the folder is left meanwhile: what was not said to be gone is there.
                self._in_hand.remove(batch)
                if left is not None:
                    self._batches.append(left._replace(since_ms=again))
            self._hints.add(back)
