"""METRICS: the node in the text format of Prometheus, counted anew at each question.

Names are kept for ever; numbers come from a few aggregate queries and from what is in memory.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from p2pstore import __version__
from p2pstore.node.build import Node
from p2pstore.store import BundleState, State


def metrics(node: Node) -> bytes:
    """The Prometheus text format."""
    registry = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"p2pstore_{name}", text, labels, registry=registry)

    files, bundles, copies = node.catalog.view(_counts)
    info = gauge("info", "Always 1; the labels say which program answers", "version")
    info.labels(__version__).set(1)

    number = gauge("files", "Files by state", "state")
    size = gauge("file_bytes", "Bytes of the files' contents by state", "state")
    for state in State:
        count, total = files.get(state, (0, 0))
        number.labels(state).set(count)
        size.labels(state).set(total)

    number = gauge("bundles", "Bundles by state", "state")
    size = gauge("bundle_bytes", "Bytes of the bundles by state", "state")
    for kind in BundleState:
        count, total = bundles.get(kind, (0, 0))
        number.labels(kind).set(count)
        size.labels(kind).set(total)

    number = gauge("copies", "Copies on other nodes by state", "state")
    for name in ("proved", "suspect", "lost", "released"):
        number.labels(name).set(copies.get(name, 0))

    links = node.network.connections.links()
    gauge("peers_connected", "Nodes with a connection").set(len(links))
    gauge("devices_connected", "Devices of the group with a connection").set(
        len(node.network.devices())
    )
    traffic = node.network.transport.traffic()
    passed = gauge("peer_bytes", "Bytes that went between this and other nodes", "direction")
    passed.labels("received").set(traffic.received)
    passed.labels("sent").set(traffic.sent)
    trash = [batch for folder in node.folders.all() for batch in folder.trash()]
    gauge("trash_bytes", "Bytes of originals in the folders' trash").set(
        sum(batch.bytes for batch in trash)
    )
    held = node.held.groups()
    gauge("held_bytes", "Bytes kept for other devices and groups").set(sum(held.values()))
    gauge("opens_ignored", "Opens of placeholders taken for those of a scanner").set(
        node.opening.gate.ignored_total
    )
    _, free, keep_free = node.room.measures()
    gauge("room_bytes", "Bytes that may still be written on the store's disk").set(
        max(0, free - keep_free)
    )
    gauge("folders_missing", "Watched folders that are not there").set(
        sum(1 for folder in node.folders.all() if folder.missing_since is not None)
    )
    gauge("folders_paused", "Watched folders that wait for their owner").set(
        sum(1 for folder in node.folders.all() if folder.is_paused)
    )
    _loops(node, gauge)
    gauge("reachable", "1 when others connect to this node's port from outside").set(
        int(node.network.presence.verdict.state == "outside")
    )
    gauge("tunnels", "Connections of others that go through this node").set(
        node.network.relay.tunnels
    )
    gauge("tunnel_bytes", "Bytes carried for others through this node, since the start").set(
        node.network.relay.carried_bytes
    )
    _announcing(node, gauge)
    gauge("words_confirmed", "1 when the owner has confirmed the recovery words").set(
        int(node.home.words_confirmed)
    )
    gauge("healthy", "1 when nothing keeps the node from its work").set(int(node.trouble() is None))
    return generate_latest(registry)


def _loops(node: Node, gauge: Callable[..., Gauge]) -> None:
    """A loop that has not yet come to an end has no time of its last run."""
    running = gauge("loop_running", "1 while this maintenance loop is at work", "loop")
    failures = gauge("loop_failures", "Failures of the loop in a row", "loop")
    last = gauge("loop_last_run_seconds", "When the loop last came to a good end", "loop")
    progress = gauge("loop_progress_ratio", "How far the loop's present turn is, 0 to 1", "loop")
    for report in node.maintenance.loops.reports():
        running.labels(report.name).set(int(report.state == "works"))
        failures.labels(report.name).set(report.failures)
        if report.last_run is not None:
            last.labels(report.name).set(report.last_run)
        if report.doing.total:
            progress.labels(report.name).set((report.doing.done or 0) / report.doing.total)


def _announcing(node: Node, gauge: Callable[..., Gauge]) -> None:
    """What the DHT is told; alert on p2pstore_announce_late_parts above 0."""
    state = node.network.announcer.state()
    gauge("announced_keys", "Keys that this node announces in the DHT").set(state.keys)
    gauge("announce_parts_due", "Parts of the key space that wait to be announced").set(
        state.parts_due
    )
    gauge("announce_late_parts", "Parts that the network will forget before their turn").set(
        state.late
    )
    gauge("announce_lookups", "Look-ups made to announce keys, since the start").set(state.lookups)
    gauge("announce_datagrams", "Datagrams sent to announce keys, since the start").set(
        state.datagrams
    )
    if state.ends is not None:
        gauge("announce_ends_seconds", "When the present sweep ends, at its pace so far").set(
            state.ends
        )


_Counts = dict[str, tuple[int, int]]


def _counts(db: sqlite3.Connection) -> tuple[_Counts, _Counts, dict[str, int]]:
    files = db.execute("SELECT state, count(*), sum(file_size) FROM files GROUP BY state")
    bundles = db.execute("SELECT state, count(*), sum(bytes) FROM bundles GROUP BY state")
    copies = db.execute("SELECT state, count(*) FROM copies GROUP BY state")
    return (
        {state: (count, total or 0) for state, count, total in files},
        {state: (count, total or 0) for state, count, total in bundles},
        dict(copies.fetchall()),
    )
