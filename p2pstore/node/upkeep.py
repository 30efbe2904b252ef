"""What keeps the store healthy by itself: its parts, made and wired, and the loops they run in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from p2pstore.ids import NodeId
from p2pstore.maintenance import (
    Around,
    Auditor,
    Collector,
    Evictor,
    HandingOver,
    Healer,
    IndexWriter,
    Lapser,
    Ledger,
    Maintenance,
    Merger,
    Mover,
    Others,
    Refetcher,
    Relief,
    Renewer,
    Repairer,
    Replicator,
    RoomMaker,
    Scrubber,
    Surplus,
    Swarm,
    rebuild_state,
)
from p2pstore.node.rebuilding import LATE_S, Completing
from p2pstore.policy import Candidate
from p2pstore.restore import Wanted

if TYPE_CHECKING:
    from p2pstore.node.build import Node

MOVE_S = RELIEF_S = REPAIR_S = ROOM_S = 60.0  # between two looks when nothing happens
AUDIT_S = 600.0
RENEW_S = 86_400.0
HEAL_S = LAPSE_S = MERGE_S = SURPLUS_S = 3600.0


class Upkeep:
    def __init__(self, node: Node) -> None:
        """`node` has everything that stands below this, and its folders later."""
        self._node = node
        self.maintenance = self._make_maintenance()
        self.refetcher = self._make_refetcher()
        self.healer = Healer(
            catalog=node.catalog,
            store=node.store,
            refetcher=self.refetcher,
            source=node.source,
            free=lambda: node.room.free(node.data),
            pool=node.net_pool,
        )
        self.scrubber = Scrubber(
            catalog=node.catalog,
            store=node.store,
            held=node.held,
            healer=self.healer,
            clock=node.clock,
            dedup_secret=lambda: node.group.ring().dedup,
            period_s=node.config.scrub_period_s,
        )
        assert self.maintenance.evictor is not None
        self.repairer = self._make_repairer(self.maintenance.evictor)
        self.renewer = Renewer(
            catalog=node.catalog,
            pusher=node.pusher,
            connected=self._holders_connected,
            name_of=node.name_of,
            clock=node.clock,
            pool=node.net_pool,
        )
        self.room_maker = RoomMaker(
            catalog=node.catalog,
            evictor=self.maintenance.evictor,
            measures=node.room.measures,
            waiting=self._bytes_waiting,
            clock=node.clock,
            pool=node.net_pool,
        )
        self.merger = self._make_merger()
        self.mover = self._make_mover()
        self.handing = HandingOver(
            node.home.path / "leaving",
            node.held,
            node.network.connections.links,
            me=node.group.node_id,
            pool=node.net_pool,
        )
        self.relief = Relief(
            node.held,
            self.handing,
            free=lambda: node.room.free(node.home.path),
            me=node.group.node_id,
            pool=node.net_pool,
        )
        self.surplus = Surplus(
            catalog=node.catalog,
            ledger=Ledger(node.catalog),
            pusher=node.pusher,
            world=self.maintenance.world,
            connected=self._holders_connected,
            clock=node.clock,
            pool=node.net_pool,
        )
        self.lapser = Lapser(
            node.held,
            node.catalog,
            free=lambda: node.room.free(node.home.path),
            clock=node.clock,
            pool=node.net_pool,
        )
        self.ask_what_others_keep: Callable[[], None] = lambda: None
        self._add_loops()

    def linked(self, node_id: NodeId) -> None:
        """A node is connected that we have to do with."""
        self.maintenance.linked(node_id)
        self.handing.linked(node_id)
        self.mover.linked()
        self.ask_what_others_keep()

    def _make_maintenance(self) -> Maintenance:
        node = self._node
        swarm = self._without_leavers(node.network.for_maintenance())
        ledger = Ledger(node.catalog)
        replicator = Replicator(
            catalog=node.catalog,
            ledger=ledger,
            pusher=node.pusher,
            world=lambda: maintenance.world(),
            clock=node.clock,
        )
        maintenance = Maintenance(
            catalog=node.catalog,
            held=node.held,
            ledger=ledger,
            index=IndexWriter(
                home=node.home,
                catalog=node.catalog,
                ingest=node.ingest,
                author=node.group.author,
                clock=node.clock,
            ),
            replicator=replicator,
            auditor=Auditor(
                catalog=node.catalog,
                store=node.store,
                pusher=node.pusher,
                blocks_of=self._blocks_of,
                world=lambda: maintenance.world(),
                connected=self._holders_connected,
                name_of=node.name_of,
                lied=lambda _: maintenance.copy_soon(),
                clock=node.clock,
                pool=node.net_pool,
            ),
            swarm=swarm,
            clock=node.clock,
            pool=node.pool,
            history_s=node.config.history_s,
            vetting_s=node.config.vetting_s,
        )
        maintenance.evictor = Evictor(
            catalog=node.catalog,
            store=node.store,
            ledger=ledger,
            pusher=node.pusher,
            world=maintenance.world,
            promises=node.network.promises,
            clock=node.clock,
            pool=node.net_pool,
            fresh_proof_s=node.config.fresh_proof_s,
            gone=lambda _: None,  # what is not announced again is forgotten by the DHT
            lost=maintenance.copy_soon,
        )
        maintenance.collector = self._make_collector(maintenance, ledger)
        maintenance.rebuilding = node.is_rebuilding()
        if not maintenance.rebuilding:
            node.completed.set()
        return maintenance

    def _make_collector(self, maintenance: Maintenance, ledger: Ledger) -> Collector:
        node = self._node
        others = Others(
            catalog=node.catalog,
            me=node.group.node_id,
            devices=node.group.others,
            pull=node.network.pull,
            heads=node.home.heads,
            ring=node.group.ring,
            judge=node.group.judge,
        )
        return Collector(
            catalog=node.catalog,
            store=node.store,
            ledger=ledger,
            pusher=node.pusher,
            promises=node.network.promises,
            others=others,
            source=node.source,
            author=node.group.author,
            ring=node.group.ring,
            world=maintenance.world,
            clock=node.clock,
            pool=node.net_pool,
        )

    def _without_leavers(self, swarm: Swarm) -> Swarm:
        """Who leaves is given nothing, and does not count."""

        def candidates() -> list[Candidate]:
            leaving = self.mover.leaving
            return [c._replace(leaving=c.holder.node in leaving) for c in swarm.candidates()]

        return dataclasses.replace(
            swarm,
            links=lambda: [a for a in swarm.links() if a.node_id not in self.mover.leaving],
            candidates=candidates,
        )

    def _holders_connected(self) -> list[NodeId]:
        """Carriers too: whether they are there shows when they are asked."""
        node = self._node
        return [
            *(link.node_id for link in node.network.holders()),
            *node.network.places.ids(),
        ]

    def _make_refetcher(self) -> Refetcher:
        node = self._node
        return Refetcher(
            catalog=node.catalog,
            store=node.store,
            pusher=node.pusher,
            source=node.source,
            promises=node.network.promises,
            opened_by=node.is_ours,
            admit_map=node.network.gate.admit_map,
            free=lambda: node.room.free(node.data),
            pool=node.net_pool,
        )

    def _make_repairer(self, evictor: Evictor) -> Repairer:
        node = self._node
        return Repairer(
            catalog=node.catalog,
            ledger=Ledger(node.catalog),
            refetcher=self.refetcher,
            world=self.maintenance.world,
            connected=self._holders_connected,
            copy_soon=self.maintenance.copy_soon,
            evict=lambda rows: evictor.evict(rows, lambda _: None),
            clock=node.clock,
            pool=node.net_pool,
        )

    def _make_merger(self) -> Merger:
        node = self._node
        maintenance = self.maintenance
        assert maintenance.collector is not None
        return Merger(
            catalog=node.catalog,
            store=node.store,
            ledger=Ledger(node.catalog),
            promises=node.network.promises,
            author=node.group.author,
            ring=node.group.ring,
            world=maintenance.world,
            age=maintenance.collector.age,
            free=lambda: node.room.free(node.data),
            clock=node.clock,
            pool=node.net_pool,
        )

    def _make_mover(self) -> Mover:
        node = self._node
        maintenance, replicator = self.maintenance, self.maintenance.replicator
        evictor = maintenance.evictor
        assert evictor is not None
        return Mover(
            catalog=node.catalog,
            store=node.store,
            ledger=Ledger(node.catalog),
            pusher=node.pusher,
            refetcher=self.refetcher,
            around=Around(
                world=maintenance.world,
                links=node.network.holders,
                trouble=lambda: replicator.trouble,
                is_sending=lambda: any(replicator.sending.values()),
                copy_soon=maintenance.copy_soon,
                evict=lambda rows: evictor.evict(rows, lambda _: None),
                name_of=node.name_of,
            ),
            me=node.group.public,
            clock=node.clock,
            pool=node.net_pool,
        )

    def _add_loops(self) -> None:
        node = self._node
        loops = self.maintenance.loops
        if rebuild_state(node.catalog) is not None:
            completing = loops.add("complete", Completing(node).turn, period_s=LATE_S)
            self.ask_what_others_keep = completing.wake
        loops.add("audit", self.maintenance.auditor.turn, period_s=AUDIT_S)
        loops.add("renew", self.renewer.turn, period_s=RENEW_S)
        loops.add("repair", self.repairer.turn, period_s=REPAIR_S)
        loops.add("merge", self.merger.turn, period_s=MERGE_S, longest_rest_s=MERGE_S)
        loops.add("room", self.room_maker.turn, period_s=ROOM_S)
        self.healer.woken_by(loops.add("heal", self.healer.turn, period_s=HEAL_S).wake)
        period_s = node.config.scrub_period_s
        loops.add("scrub", self.scrubber.turn, period_s=period_s, lasts=True)
        self.mover.woken_by(loops.add("move", self.mover.turn, period_s=MOVE_S).wake)
        self.handing.woken_by(loops.add("hand over", self.handing.turn).wake)
        self.relief.woken_by(loops.add("relief", self.relief.turn, period_s=RELIEF_S).wake)
        self.handing.then(self.relief.asks_anew)
        loops.add("lapse", self.lapser.turn, period_s=LAPSE_S)
        loops.add("surplus", self.surplus.turn, period_s=SURPLUS_S)

    def _bytes_waiting(self) -> int:
        """Of files that cannot be taken for want of room."""
        tallies = (f.waiting.held_up().get("waiting for room") for f in self._node.folders.all())
        return sum(tally.bytes for tally in tallies if tally is not None)

    async def _blocks_of(self, raw: bytes) -> list[Wanted]:
        """Every block that a manifest's content needs."""
        node = self._node
        return await node.restore.wanted(node.restore.open(raw).manifest)
