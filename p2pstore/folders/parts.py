"""What every watched folder is handed by the node: the machinery that it drives, and its own name.

Said apart from `Folder`, because those who look, judge and take need it as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import ParamSpec, Protocol, TypeVar

from p2pstore.clock import Clock
from p2pstore.content import Keyring
from p2pstore.folders.taking import Taking
from p2pstore.ids import NodeId
from p2pstore.leases import LeaseKeeper
from p2pstore.placement import Root
from p2pstore.store import BundleStore, Catalog
from p2pstore.threads import in_thread
from p2pstore.watch import OpenWatcher

P = ParamSpec("P")
R = TypeVar("R")


class Room(Protocol):
    def lacks(self, root: Root, incoming: int) -> str | None:
        """Why a batch of so many bytes may not begin now; None when it may."""


@dataclass(frozen=True, slots=True)
class Parts:
    catalog: Catalog
    store: BundleStore
    taking: Taking
    keeper: LeaseKeeper
    opens: OpenWatcher
    ring: Callable[[], Keyring]
    clock: Clock
    pool: Executor  # batches, looks, and what is asked for; each call blocks one thread
    turns: asyncio.Semaphore  # held by each batch: of all folders together they leave threads free
    room: Room
    me: NodeId
    trash_hold_s: float
    trash_hold_short_s: float  # while there is no room for a batch
    volatile: str | None  # why nothing may be replaced on this store
    protected: Callable[[], None]  # something new became durable

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await in_thread(self.pool, function, *args, **kwargs)

    def now(self) -> float:
        """Monotonic seconds: what waits is due by them."""
        return self.clock.monotonic()

    def now_ms(self) -> int:
        """Wall-clock milliseconds: what is recorded bears them."""
        return int(self.clock.wall() * 1000)
