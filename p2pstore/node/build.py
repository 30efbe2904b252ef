"""What is wired to what: the only place where parts are made.

`Node` holds the parts of one HOME. Making one touches the disk (catalog, store, keys) and starts no
task; `running` does that, in the order in which the parts need each other, and stops them in the
opposite one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from p2pstore import sdnotify
from p2pstore.clock import Clock, SystemClock
from p2pstore.config import Config
from p2pstore.content import Keyring, bundle_tag
from p2pstore.filesystems import is_volatile
from p2pstore.folders import Bringing, DiskRoom, Folders, Opening, Parts, Taking
from p2pstore.home import Home
from p2pstore.ids import BundleId, NodeId, PublicKey, Tag, node_id_of, short
from p2pstore.ingest import Ingest
from p2pstore.leases import LeaseKeeper
from p2pstore.maintenance import Loop, ensure_catalog, rebuild_state, recover, take_in
from p2pstore.members import Group
from p2pstore.node.laying import Laying
from p2pstore.node.network import Network
from p2pstore.node.upkeep import Upkeep
from p2pstore.placement import SUFFIX
from p2pstore.restore import Restore
from p2pstore.shares import Downloads, Maker, Reader, Shares, Uploads
from p2pstore.store import DiskBundles, HeldStore, blocks
from p2pstore.vfs import Vfs
from p2pstore.watch import OpenWatcher

log = logging.getLogger(__name__)

Progress = Callable[[dict[str, Any]], None]

WORK_THREADS = 8  # batches, looks at folders, hydration: each blocks one while it runs
BATCHES = 4  # of all folders at once: a batch may take minutes, and who asks must not wait for it
NET_THREADS = 8  # reading and hashing for peers must not wait for a batch of ours
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Node:
    def __init__(
        self,
        home: Home,
        config: Config,
        clock: Clock | None = None,
        *,
        rebuild: Progress | None = None,
    ) -> None:
        """With `rebuild` the catalog is made anew, whatever is there; it is told how that goes."""
        self.home = home
        self.config = config
        self.clock = clock or SystemClock()
        self.started = self.clock.wall()
        self.ui: str | None = None
        self.completed = asyncio.Event()  # the catalog knows what holders could tell
        self.group = Group(home)
        self.seal_pool = ThreadPoolExecutor(os.cpu_count() or 2, "seal")
        self.pool = ThreadPoolExecutor(WORK_THREADS, "work")
        self.net_pool = ThreadPoolExecutor(NET_THREADS, "net")
        self.data = config.data or home.path / "bundles"
        self.store = DiskBundles(self.data)
        boot_id = BOOT_ID.read_text().strip() if BOOT_ID.exists() else "unknown"
        self.held = HeldStore(home.path / "held", self.clock, boot_id=boot_id)
        self.catalog, self.rebuilt = ensure_catalog(
            home,
            self.store,
            held=self.held,
            author=self.group.author(),
            ring=self.group.ring(),
            judge=self.group.judge,
            clock=self.clock,
            anew=rebuild is not None,
            progress=_patiently(rebuild),
        )
        recover(self.catalog, self.store)
        take_in(self.catalog, self.store, me=self.group.public, tag_of=self._tag_of)
        self.volatile = None if config.allow_volatile_store else is_volatile(self.data)
        self.keeper = LeaseKeeper()
        self.opens = OpenWatcher(self.clock, suffix=SUFFIX)
        self.room = DiskRoom(self.data, config)
        self.network = Network(
            home=home,
            config=config,
            group=self.group,
            store=self.store,
            held=self.held,
            catalog=self.catalog,
            clock=self.clock,
            pool=self.net_pool,
            boot_id=boot_id,
            room=self.room.measures,
            changed=self._group_changed,
            linked=self._linked,
            moved=lambda holder, message: self.upkeep.mover.asked(holder, message),
            refusal=lambda: self.upkeep.handing.refusal(),
            grants=lambda bundle_id: self.shares.grants(bundle_id),
            served=lambda token, bundle_id, sent: self.shares.served(token, bundle_id, sent),
        )
        self.source = self.network.source
        self.pusher = self.network.pusher
        self.ingest = self._make_ingest(self.group.ring)
        self.restore = Restore(
            self.source, ring=self.group.ring, judge=self.group.judge, pool=self.seal_pool
        )
        self.vfs = Vfs(catalog=self.catalog, restore=self.restore)
        self.upkeep = Upkeep(self)
        self.maintenance = self.upkeep.maintenance
        self.shares = self._make_shares()
        self.downloads = Downloads(
            self.network.share_finder, self.source, pool=self.seal_pool, clock=self.clock
        )
        self.uploads = Uploads(self.home.path, self.network.places.some, pool=self.seal_pool)
        self.shares.woken_by(self.maintenance.loops.add("shares", self._shares_turn).wake)
        self.folders = self._make_folders()
        self.laying = Laying(self)
        self.opening = Opening(
            watcher=self.opens,
            folders=self.folders,
            catalog=self.catalog,
            room=self.room,
            clock=self.clock,
        )

    def _make_ingest(self, ring: Callable[[], Keyring]) -> Ingest:
        return Ingest(
            store=self.store,
            catalog=self.catalog,
            author=self.group.author,
            ring=ring,
            clock=self.clock,
            pool=self.seal_pool,
        )

    def _make_shares(self) -> Shares:
        collector = self.maintenance.collector
        assert collector is not None
        return Shares(
            self.home,
            store=self.store,
            catalog=self.catalog,
            author=self.group.author,
            maker=Maker(
                store=self.store,
                catalog=self.catalog,
                author=self.group.author,
                ingest=lambda ring: self._make_ingest(lambda: ring),
                clock=self.clock,
            ),
            reader=Reader(
                self.home.path,
                content=self.vfs.read,
                size=self.vfs.size,
                free=lambda: self.room.free(self.data),
                pool=self.pool,
            ),
            hints=self.network.addresses,
            changed=self._shared,
            end=collector.end,
            clock=self.clock,
            pool=self.pool,
        )

    def name_of(self, node_id: NodeId) -> str:
        """Of a node or a carrier; its short id when it has none here."""
        name = self.group.name_of(node_id) or self.network.places.name_of(node_id)
        return name or short(node_id)

    def _tag_of(self, bundle_id: BundleId) -> Tag:
        return bundle_tag(self.group.ring().current.tag, bundle_id)

    def is_ours(self, key: PublicKey) -> bool:
        """It may have opened bundles of this group's."""
        return key == self.group.public or self.group.state.certificate_of(key) is not None

    async def _shares_turn(self, _: Loop) -> float | None:
        return await self.shares.turn()

    def is_rebuilding(self) -> bool:
        """Whether holders have still to be asked what the rebuilt catalog cannot know."""
        state = rebuild_state(self.catalog)
        return state is not None and state.pending

    def _make_folders(self) -> Folders:
        return Folders(
            home=self.home,
            config=self.config,
            bringing=Bringing(
                restore=self.restore,
                catalog=self.catalog,
                clock=self.clock,
                pool=self.pool,
                room=self.room.check,
            ),
            parts=Parts(
                catalog=self.catalog,
                store=self.store,
                taking=Taking(
                    ingest=self.ingest,
                    catalog=self.catalog,
                    keeper=self.keeper,
                    ring=self.group.ring,
                    clock=self.clock,
                ),
                keeper=self.keeper,
                opens=self.opens,
                ring=self.group.ring,
                clock=self.clock,
                pool=self.pool,
                turns=asyncio.Semaphore(BATCHES),
                room=self.room,
                me=self.group.node_id,
                trash_hold_s=self.config.trash_hold_s,
                trash_hold_short_s=self.config.trash_hold_short_s,
                volatile=self.volatile,
                protected=self.maintenance.changed,
            ),
        )

    # -- life -------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Node]:
        """Everything at work: folders watched, peers served, copies made."""
        self.keeper.start()
        try:
            async with self.opens, self.network.running(), asyncio.TaskGroup() as group:
                await self._salvage()
                self.folders.start(group)
                tasks = [
                    group.create_task(self.opening.run()),
                    group.create_task(self.maintenance.run()),
                ]
                try:
                    yield self
                finally:
                    for task in tasks:
                        task.cancel()
                    await self.folders.close()
        finally:
            await asyncio.to_thread(self.close)

    def close(self) -> None:
        self.upkeep.scrubber.close()
        for pool in (self.pool, self.net_pool, self.seal_pool):
            pool.shutdown()
        self.held.close()
        self.catalog.close()
        self.keeper.close()

    async def _salvage(self) -> None:
        """Bundles that were cut off while they were written: nothing refers to them yet."""

        def salvage() -> int:
            cut = self.store.salvage_all()
            for found in cut:
                if not self._is_known(found.header.bundle_id):
                    self.store.discard(found.header.bundle_id)
            return len(cut)

        count = await asyncio.to_thread(salvage)
        if count:
            log.info("%d bundles were cut off by the last end; their files are still there.", count)

    def _is_known(self, bundle_id: BundleId) -> bool:
        def look(db: sqlite3.Connection) -> bool:
            return blocks.exactly(db, bundle_id) is not None

        return self.catalog.view(look)

    # -- what parts tell each other ---------------------------------------------------------------

    def _group_changed(self) -> None:
        self.network.group_changed()
        self.maintenance.changed()

    async def _shared(self) -> None:
        await self.network.announce_new()
        self.maintenance.copy_soon()

    def _linked(self, node_id: NodeId) -> None:
        self.upkeep.linked(node_id)

    # -- what frontends ask -----------------------------------------------------------------------

    @property
    def listening(self) -> str:
        host, port = self.network.listening
        return f"{host}:{port}"

    def trouble(self) -> str | None:
        """What keeps the node from its work; None when nothing does."""
        try:
            self.catalog.read("SELECT 1")
            self.store.refuse_when_failed()
        except Exception as exc:  # a health check answers, whatever is wrong
            return str(exc)
        return None

    def name_of_key(self, key: PublicKey) -> str:
        """A device's name, or its short id."""
        node_id = node_id_of(key)
        if node_id == self.group.node_id:
            return self.group.name
        return self.group.name_of(node_id) or short(node_id)


def _patiently(progress: Progress | None) -> Progress:
    """Tell systemd that a start takes longer, as long as something is being done."""

    def tell(said: dict[str, Any]) -> None:
        sdnotify.notify("EXTEND_TIMEOUT_USEC=120000000")
        if progress is not None:
            progress(said)

    return tell
