"""RELIEF: this disk runs full, and what is kept for others is in the way.

A holder drops nothing by itself (SAFETY 5). While less than `keep-free` is free, the owners of the
bundles whose leases end first are asked with MOVE to place so many elsewhere that enough is free
again. They RELEASE each when others have it; it then goes for good at once, not after 7 days: its
owner let go of it knowing that others hold it. An owner that has nobody else says so, and its
bundles stay. As soon as enough is free, what has not gone yet stays, and its owner is told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from concurrent.futures import Executor
from typing import Final

from p2pstore.errors import P2PStoreError
from p2pstore.ids import BundleId, NodeId, PublicKey, node_id_of
from p2pstore.maintenance.handing_over import HandingOver
from p2pstore.maintenance.loops import Loop
from p2pstore.store import HeldStore
from p2pstore.threads import in_thread
from p2pstore.wire import MAX_WANTED

log = logging.getLogger(__name__)

SOON_S: Final = 2.0  # while something is on its way


class Relief:
    def __init__(
        self,
        held: HeldStore,
        handing: HandingOver,
        *,
        free: Callable[[], int],
        me: NodeId,
        pool: Executor,
    ) -> None:
        """`free`: bytes above keep-free on the disk with what is held; negative when beyond."""
        self._held = held
        self._handing = handing
        self._free = free
        self._me = me
        self._pool = pool
        self._asked: dict[NodeId, set[BundleId]] = {}
        self._wake: Callable[[], None] = lambda: None

    def woken_by(self, wake: Callable[[], None]) -> None:
        """`wake` makes `turn` run soon."""
        self._wake = wake

    def asks_anew(self, owner: NodeId) -> None:
        """It has just heard, at a new link, that this node keeps everything."""
        self._asked.pop(owner, None)
        self._wake()

    async def turn(self, loop: Loop) -> float | None:
        """One look at the disk; soon another one while owners move something."""
        if self._handing.is_leaving:
            self._asked.clear()  # all of it goes anyway
            return None
        if await in_thread(self._pool, self._free) < 0:
            await self._purge()
        if await in_thread(self._pool, self._free) >= 0:
            await self._withdraw()
            return None
        loop.say("asks owners to place elsewhere what there is no room for")
        unable: set[NodeId] = set()
        while plan := await in_thread(self._pool, self._plan, self._snapshot(), unable):
            for owner, bundles in plan.items():
                if not await self._ask(owner, bundles):
                    unable.add(owner)
        return SOON_S if self._asked else None

    async def _purge(self) -> None:
        """What was let go of because we asked needs no trash."""
        for owner, bundles in self._snapshot().items():
            gone = await in_thread(self._pool, self._held.purge_released, list(bundles))
            if owner in self._asked:
                self._asked[owner] -= set(gone)

    def _snapshot(self) -> dict[NodeId, frozenset[BundleId]]:
        """For a thread: a link may come up meanwhile."""
        return {owner: frozenset(bundles) for owner, bundles in self._asked.items()}

    def _plan(
        self, asked: Mapping[NodeId, Container[BundleId]], unable: Container[NodeId]
    ) -> dict[NodeId, list[BundleId]]:
        """Whose bundles are to go, the oldest leases first, beyond what was asked for already."""
        missing = -self._free()
        plan: dict[NodeId, list[BundleId]] = {}
        for one in self._held.oldest():
            owner = node_id_of(PublicKey(one.opener))
            if missing <= 0 or owner == self._me or owner in unable:
                continue
            missing -= one.live_bytes
            if one.bundle_id not in asked.get(owner, ()):
                plan.setdefault(owner, []).append(one.bundle_id)
        return {owner: bundles[:MAX_WANTED] for owner, bundles in plan.items()}

    async def _ask(self, owner: NodeId, bundles: list[BundleId]) -> bool:
        """Whether it will do it."""
        try:
            await self._handing.ask(owner, "room", bundles)
        except P2PStoreError as exc:
            log.info("There is too little room, and an owner moves nothing: %s", exc)
            return False
        self._asked.setdefault(owner, set()).update(bundles)
        log.info("%d bundles are to be placed elsewhere: there is no room.", len(bundles))
        return True

    async def _withdraw(self) -> None:
        for owner in list(self._asked):
            try:
                await self._handing.ask(owner, "staying")
            except P2PStoreError as exc:
                log.debug("An owner hears at the next link that the rest stays: %s", exc)
            del self._asked[owner]
