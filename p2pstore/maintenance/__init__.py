"""Maintenance: copies, indexes, eviction, and what else keeps the store healthy by itself."""

from p2pstore.maintenance import aliases, anew
from p2pstore.maintenance.audit import Auditor
from p2pstore.maintenance.carried import Keeping
from p2pstore.maintenance.check import Checked, check
from p2pstore.maintenance.collect import Collector, Others
from p2pstore.maintenance.complete import Completed, Holding, complete_with_holdings
from p2pstore.maintenance.evict import Evictor, Freed, recover
from p2pstore.maintenance.facts import Ledger
from p2pstore.maintenance.filing import bundle_row
from p2pstore.maintenance.handing_over import HandingOver, Kept
from p2pstore.maintenance.heal import Healer
from p2pstore.maintenance.index import IndexWriter
from p2pstore.maintenance.lapse import Lapser
from p2pstore.maintenance.later import Absent, Later, Reopening
from p2pstore.maintenance.letters import Letter, Letters
from p2pstore.maintenance.loops import Loop, Loops, Report
from p2pstore.maintenance.merge import Merger
from p2pstore.maintenance.moving import Around, Mover
from p2pstore.maintenance.places import Place, Places, carrier_id
from p2pstore.maintenance.rebuild import Rebuilt, ensure_catalog
from p2pstore.maintenance.rebuild import state as rebuild_state
from p2pstore.maintenance.refetch import Refetcher
from p2pstore.maintenance.relief import Relief
from p2pstore.maintenance.renew import Renewer
from p2pstore.maintenance.repair import Repairer
from p2pstore.maintenance.replicate import Replicator
from p2pstore.maintenance.report import Reporter, verify_report
from p2pstore.maintenance.room import RoomMaker
from p2pstore.maintenance.scrub import Scrubber
from p2pstore.maintenance.service import Maintenance, Swarm
from p2pstore.maintenance.strays import take_in
from p2pstore.maintenance.surplus import Surplus
from p2pstore.maintenance.verify import Problem
from p2pstore.maintenance.world import World

__all__ = [
    "Absent",
    "Around",
    "Auditor",
    "Checked",
    "Collector",
    "Completed",
    "Evictor",
    "Freed",
    "HandingOver",
    "Healer",
    "Holding",
    "IndexWriter",
    "Keeping",
    "Kept",
    "Lapser",
    "Later",
    "Ledger",
    "Letter",
    "Letters",
    "Loop",
    "Loops",
    "Maintenance",
    "Merger",
    "Mover",
    "Others",
    "Place",
    "Places",
    "Problem",
    "Rebuilt",
    "Refetcher",
    "Relief",
    "Renewer",
    "Reopening",
    "Repairer",
    "Replicator",
    "Report",
    "Reporter",
    "RoomMaker",
    "Scrubber",
    "Surplus",
    "Swarm",
    "World",
    "aliases",
    "anew",
    "bundle_row",
    "carrier_id",
    "check",
    "complete_with_holdings",
    "ensure_catalog",
    "rebuild_state",
    "recover",
    "take_in",
    "verify_report",
]
