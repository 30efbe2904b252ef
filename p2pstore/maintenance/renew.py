"""RENEW: leases are made longer long before they end, in bulk for each holder.

A holder may drop what it keeps for us some time after the lease has ended. Each day those that have
less than 150 of their 180 days left are renewed, of whoever is connected; a holder that was away
for months is asked when it is back. What it answers that it has not is lost.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from functools import partial

from p2pstore.clock import Clock
from p2pstore.errors import P2PStoreError
from p2pstore.ids import BundleId, NodeId
from p2pstore.maintenance.loops import Loop
from p2pstore.policy import MAX_LEASE_S, RENEW_BELOW_S
from p2pstore.store import Catalog, copies
from p2pstore.swarm import MAX_RENEWED, Pusher
from p2pstore.threads import in_thread

log = logging.getLogger(__name__)

AGAIN_S = 600.0  # when somebody was not connected, or did not answer


class Renewer:
    def __init__(
        self,
        *,
        catalog: Catalog,
        pusher: Pusher,
        connected: Callable[[], Sequence[NodeId]],
        name_of: Callable[[NodeId], str],
        clock: Clock,
        pool: Executor,
    ) -> None:
        self._catalog = catalog
        self._pusher = pusher
        self._connected = connected
        self._name_of = name_of
        self._clock = clock
        self._pool = pool

    async def turn(self, loop: Loop) -> float | None:
        """Everything that is due at everybody connected."""
        for holder in self._connected():
            done = 0
            while due := await in_thread(self._pool, self._due, holder):
                loop.say(f"asks {self._name_of(holder)} to keep copies longer", done)
                try:
                    await self._renew(holder, due)
                except P2PStoreError as exc:
                    log.info("%s renews no leases now: %s", self._name_of(holder), exc)
                    break
                done += len(due)
        is_left = await in_thread(self._pool, self._is_any_due)
        return AGAIN_S if is_left else None

    def _due(self, holder: NodeId, limit: int = MAX_RENEWED) -> list[tuple[int, BundleId]]:
        now = self._clock.wall()
        before, beyond = int((now + RENEW_BELOW_S) * 1000), int((now + MAX_LEASE_S) * 1000)
        return self._catalog.view(lambda db: copies.to_renew(db, holder, before, beyond, limit))

    def _is_any_due(self) -> bool:
        holders = self._catalog.view(copies.holders)
        return any(self._due(holder, 1) for holder in holders)

    async def _renew(self, holder: NodeId, due: Sequence[tuple[int, BundleId]]) -> None:
        asked = self._clock.wall()
        seconds, seqs = await self._pusher.renew(holder, [bundle for _, bundle in due])
        until_ms = int((asked + seconds) * 1000)
        await self._catalog.awrite(partial(_record, due, seqs, holder, until_ms))


def _record(
    due: Sequence[tuple[int, BundleId]],
    seqs: Sequence[int | None],
    holder: NodeId,
    until_ms: int,
    db: sqlite3.Connection,
) -> None:
    for (number, _), seq in zip(due, seqs, strict=True):
        if seq is None:
            copies.set_state(db, number, holder, copies.CopyState.LOST)
        else:
            copies.set_lease(db, number, holder, until_ms)
