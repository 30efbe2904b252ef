"""What `status` says, put together from what the services know. The shape is http.control's STATUS.

Read-only, and cheap enough to be asked every few seconds; runs in a thread.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from p2pstore import __version__
from p2pstore.carriers import FolderConfig, PictureFolderConfig
from p2pstore.folders import Folder
from p2pstore.ids import NodeId, node_id_of, short
from p2pstore.keys import Certificate
from p2pstore.maintenance import Place, Report
from p2pstore.net import Link
from p2pstore.node.build import Node
from p2pstore.store import BundleState, State, blocks, copies, files
from p2pstore.swarm import ANNOUNCE_EVERY_S
from p2pstore.text import plural

Json = dict[str, Any]

DAY_S = 86_400.0
MOST_LINES = 10_000  # of files in one answer
STUBBORN = 3  # failures of a loop in a row: what fails once or twice mostly mends itself


def status(node: Node, paths: Sequence[str]) -> Json:
    """The whole picture; with paths also each of these files."""
    counted = node.maintenance.counted()
    verdict = node.network.presence.verdict
    said: Json = {
        "node": {
            "id": node.group.node_id.hex(),
            "name": node.group.name,
            "listen": node.listening,
            "ui": node.ui or "off",
            "group": node.group.group_id.hex(),
            "version": __version__,
            "home": os.fspath(node.home.path),
            "pid": os.getpid(),
            "started": node.started,
            "reachable": verdict.state,
            "reachable_why": verdict.why,
            "words_confirmed": node.home.words_confirmed,
            "rebuilding": node.maintenance.rebuilding,
        },
        "peers": peer_lines(node),
        "carriers": carrier_lines(node),
        "space": _space(node),
        "folders": folder_lines(node, counted),
        "maintenance": [
            *(_loop_line(report) for report in node.maintenance.loops.reports()),
            _announce_line(node),
        ],
        "warnings": _warnings(node),
    }
    if _other_disk(node):
        said["node"]["bundles_dir"] = os.fspath(node.data)
    if paths:
        said["files"] = [line for path in paths for line in file_lines(node, path, counted)]
    return said


# -- folders and files ----------------------------------------------------------------------------


def folder_lines(
    node: Node, counted: Mapping[int, int] | None = None, *, of: Sequence[Folder] | None = None
) -> list[Json]:
    """Of these folders, else of all that are watched."""
    known = node.maintenance.counted() if counted is None else counted
    return [_folder_line(node, one, known) for one in (node.folders.all() if of is None else of)]


def _folder_line(node: Node, folder: Folder, counted: Mapping[int, int]) -> Json:
    def look(
        db: sqlite3.Connection,
    ) -> tuple[list[files.Count], Mapping[int, tuple[int, int]], int]:
        return (
            files.counts(db, folder.row),
            copies.counts_of_files(db, folder.row, counted),
            blocks.evicted_bytes_of_folder(db, folder.row),
        )

    counts, by_copies, freed = node.catalog.view(look)
    low = folder.settings.min_copies
    pending = folder.waiting.active()
    held_up = folder.waiting.held_up()
    left = {
        c.reason: (c.files, c.file_bytes)
        for c in counts
        if c.state in (State.PROTECTED, State.CONFLICT) and c.reason
    }
    for reason, tally in held_up.items():
        left.setdefault(reason, (tally.files, tally.bytes))
    skipped = {c.reason: c.files for c in counts if c.state == State.SKIPPED}
    total = [c for c in counts if c.state != State.SKIPPED]
    here = [part for n, part in by_copies.items() if n == 0]
    change = folder.losses.change
    return {
        "path": os.fspath(folder.path),
        "files": sum(c.files for c in total) + pending.files,
        "pending": folder.pending(),
        "protected": sum(c.files for c in counts if c.state == State.PROTECTED),
        "placeholders": sum(c.files for c in counts if c.state == State.PLACEHOLDER),
        "skipped": sum(skipped.values()),
        "bytes": sum(c.file_bytes for c in total) + pending.bytes,
        "stored_bytes": sum(c.stored_bytes for c in total),
        "paused": folder.is_paused,
        "obstacle": folder.obstacle,
        "unwatched": folder.unwatched,
        "freed_bytes": freed,
        "min_copies": low,
        "carriers": list(folder.settings.carriers),
        "missing_since": folder.missing_since,
        "mass_change": None if change is None else {"gone": change[0], "total": change[1]},
        "safe": _part([part for n, part in by_copies.items() if n >= low]),
        "one": _part([part for n, part in by_copies.items() if 0 < n < low]),
        "here": {**_part(here), "note": _copying(node)},
        "left": {
            "files": sum(number for number, _ in left.values()),
            "bytes": sum(size for _, size in left.values()),
            "reasons": {reason: number for reason, (number, _) in left.items()},
        },
        "skips": skipped,
    }


def _part(parts: Sequence[tuple[int, int]]) -> Json:
    return {"files": sum(n for n, _ in parts), "bytes": sum(size for _, size in parts)}


def _copying(node: Node) -> str:
    names = [
        node.name_of(holder) for holder, size in node.maintenance.replicator.sending.items() if size
    ]
    if names:
        return f"copying to {', '.join(sorted(names))}"
    return "what others hold is not known again yet" if node.maintenance.rebuilding else ""


def file_lines(node: Node, path: str, counted: Mapping[int, int]) -> list[Json]:
    """One line for a file, or for everything below a directory (at most `MOST_LINES`)."""
    found = node.folders.of(path)
    if found is None:
        return [_unknown(path, "lies in no watched folder")]
    folder, relative = found
    states = tuple(state for state in State if state is not State.DELETED)
    rows = folder.rows_below(relative, states, limit=MOST_LINES)
    if not rows:
        return [_unwritten(folder, path, relative)]

    def look(db: sqlite3.Connection) -> list[Json]:
        return [_file_line(db, node, folder, row, counted) for row in rows]

    return node.catalog.view(look)


def _file_line(
    db: sqlite3.Connection,
    node: Node,
    folder: Folder,
    row: files.FileRow,
    counted: Mapping[int, int],
) -> Json:
    bundles = blocks.bundles_of_file(db, row.id)
    return {
        "path": os.path.join(folder.path, os.fsdecode(row.path)),
        "type": str(row.kind),
        "state": str(row.state),
        "reason": row.reason or folder.waiting.reason(row.path) or "",
        "size": row.file_size,
        "local": bool(bundles) and all(node.store.has(bundle.bundle_id) for bundle in bundles),
        "copies": copies.count_of_file(db, row.id, counted),
        "min_copies": folder.settings.min_copies,
        "evicted": sum(1 for bundle in bundles if bundle.state == BundleState.EVICTED),
    }


def _unwritten(folder: Folder, path: str, relative: bytes) -> Json:
    """A path that the catalog has not yet."""
    reason = folder.waiting.reason(relative)
    if reason is not None or folder.is_in_flight(relative):
        line = _unknown(path, reason or "comes to rest")
        return {**line, "state": "pending", "min_copies": folder.settings.min_copies}
    there = os.path.lexists(path)
    return _unknown(path, "not looked at yet" if there else "there is no such file")


def _unknown(path: str, reason: str) -> Json:
    return {
        "path": path,
        "state": "unknown",
        "reason": reason,
        "size": 0,
        "local": False,
        "copies": 0,
        "min_copies": 0,
    }


# -- peers and room -------------------------------------------------------------------------------


def peer_lines(node: Node) -> list[Json]:
    links = {link.node_id: link for link in node.network.connections.links()}

    def look(db: sqlite3.Connection) -> dict[NodeId, tuple[int, int]]:
        return copies.totals_of_holders(db)

    holds = node.catalog.view(look)
    held = node.held.bytes_by_opener()
    state = node.group.state
    members = {node_id_of(c.subject): c for c in (*state.devices(), *state.friends())}
    members.pop(node.group.node_id, None)
    lines: list[Json] = []
    for node_id in sorted({*links, *members}):
        link, peer = links.get(node_id), node.network.book.get(node_id)
        size, proved = holds.get(node_id, (0, 0))
        addresses = peer.addresses if peer is not None else ()
        address = link.address if link is not None else addresses[0] if addresses else None
        lines.append(
            {
                "id": node_id.hex(),
                "name": members[node_id].name if node_id in members else peer.name if peer else "",
                "address": "" if address is None else f"{address[0]}:{address[1]}",
                "role": _role(members.get(node_id), link),
                "connected": link is not None,
                "through": _through(link),
                "since": link.connected_at if link is not None else None,
                "last_seen": peer.last_seen_ms / 1000 if peer and peer.last_seen_ms else None,
                "holds_bytes": size,
                "held_bytes": held.get(node_id, 0),
                "proved": proved / 1000 if proved else None,
                "holder": node_id in members,
            }
        )
    return lines


def carrier_lines(node: Node) -> list[Json]:
    """Places that store bytes, also those whose set-up cannot be used."""
    places = node.network.places
    totals = places.totals()
    lines: list[Json] = []
    for place in places.all():
        size, proved_ms = totals.get(place.bundles.node, (0, 0))
        lines.append(
            {
                "name": place.name,
                "kind": place.kind,
                "where": place.where,
                "bytes": size,
                "proved": proved_ms / 1000 if proved_ms else None,
                "folders": [
                    os.fsdecode(bytes(folder.path))
                    for folder in node.folders.all()
                    if place.name in folder.settings.carriers
                ],
                "trouble": node.maintenance.replicator.trouble.get(place.bundles.node, ""),
                "same_disk": _is_same_disk(node, place),
            }
        )
    broken = [
        {"name": name, "kind": "", "where": "", "bytes": 0, "folders": [], "trouble": trouble}
        for name, trouble in sorted(places.trouble.items())
    ]
    return [*lines, *broken]


def _is_same_disk(node: Node, place: Place) -> bool:
    """Whether it would go together with the store."""
    if not isinstance(place.config, FolderConfig | PictureFolderConfig):
        return False
    try:
        return os.stat(place.config.path).st_dev == os.stat(node.data).st_dev
    except OSError:
        return False  # it is not there


def share_lines(node: Node) -> list[Json]:
    """What this node has shared, and on how many others each of it lies whole."""
    records = node.shares.all()
    ids = {ref.bundle_id for record in records for ref in record.bundles}
    rows = node.catalog.view(lambda db: blocks.get_bundles(db, list(ids)))
    counts = node.maintenance.copies_of_bundles([row.id for row in rows.values()])
    copies_of = {bundle_id: counts.get(row.id, 0) for bundle_id, row in rows.items()}
    return [
        {
            "key": record.key,
            "name": os.fsdecode(record.name),
            "size": record.size,
            "created": record.created_ms / 1000,
            "expires": record.ends,
            "once": record.is_once,
            "password": record.has_password,
            "copies": min(copies_of.get(ref.bundle_id, 0) for ref in record.bundles),
        }
        for record in records
    ]


def _role(certificate: Certificate | None, link: Link | None) -> str:
    if certificate is not None:
        return certificate.role.value
    return "stranger" if link is None else link.role


def _through(link: Link | None) -> str | None:
    """The peer that carries the link, where the two cannot reach each other."""
    if link is None or link.via is None:
        return None
    return link.via.hello.name or short(link.via.node_id)


def _space(node: Node) -> Json:
    stored = node.catalog.view(blocks.stored_bytes)
    total, free, keep_free = node.room.measures()
    trash = [batch for folder in node.folders.all() for batch in folder.trash()]
    held = sum(node.held.groups().values())
    until = max((batch.since_ms for batch in trash), default=0) / 1000
    waiting = [f.waiting.held_up().get("waiting for room") for f in node.folders.all()]
    return {
        "bundles_bytes": stored.get(BundleState.SEALED, 0) + stored.get(BundleState.EVICTING, 0),
        "trash_bytes": sum(batch.bytes for batch in trash),
        "offered_bytes": node.config.offer_of(total=total, free=free, held=held),
        "held_for_others_bytes": held,
        "trash_until": until + node.config.trash_hold_s if trash else None,
        "free_bytes": free,
        "keep_free_bytes": keep_free,
        "waiting_files": sum(tally.files for tally in waiting if tally is not None),
        "waiting_bytes": sum(tally.bytes for tally in waiting if tally is not None),
    }


def _loop_line(report: Report) -> Json:
    return {
        "name": report.name,
        "state": report.state,
        "doing": report.doing.text,
        "done": report.doing.done,
        "total": report.doing.total,
        "period_s": report.period_s,
        "last_run": report.last_run,
        "next_run": report.next_run,
        "failures": report.failures,
        "last_error": report.last_error,
        "failed_at": report.failed_at,
    }


def _announce_line(node: Node) -> Json:
    """The sweep over the key space, in the shape of a loop."""
    state = node.network.announcer.state()
    rests = "rests" if state.failures else "waits"
    return {
        "name": "announce",
        "state": "works" if state.is_working else rests,
        "doing": plural(state.keys, "key") if state.keys else "",
        "done": state.parts - state.parts_due if state.parts_due else None,
        "total": state.parts if state.parts_due else None,
        "period_s": ANNOUNCE_EVERY_S,
        "last_run": state.oldest,
        "next_run": state.ends if state.parts_due else state.next_due,
        "failures": state.failures,
        "last_error": state.last_error,
        "failed_at": state.failed_at,
    }


def _other_disk(node: Node) -> bool:
    store = os.stat(node.data).st_dev
    roots = [folder.root for folder in node.folders.all()]
    return any(root.device != store for root in roots if root is not None)


# -- what the owner should know -------------------------------------------------------------------


def _ignored_opens(node: Node) -> str:
    """`1,204 opens ignored at 02:00 (backup or indexer)`; empty when there were none."""
    gate = node.opening.gate
    if gate.last_ignored is None:
        return ""
    ago = node.clock.monotonic() - gate.last_ignored
    day = "" if ago < DAY_S else "%a "
    when = time.strftime(f"{day}%H:%M", time.localtime(node.clock.wall() - ago))
    why = ", ".join(reason for reason, _ in gate.ignored.most_common())
    return f"{gate.ignored_total:,} opens ignored at {when} ({why})"


LEAVE = "p2pstore leave, p2pstore leave --cancel"


def _warnings(node: Node) -> list[Json]:
    found: list[Json] = []

    def warn(text: str, command: str | None = None, *, owner: bool = False) -> None:
        found.append({"text": text, "command": command, "owner": owner})

    if not node.home.words_confirmed and node.home.words() is not None:
        warn(
            "Recovery words not confirmed; a lost laptop would mean lost files:",
            "p2pstore words confirm",
            owner=True,
        )
    if node.group.is_expelled:
        warn("This device was revoked: it is no member of its group any more.", owner=True)
    if node.volatile is not None:
        warn(f"Nothing is replaced, because the store may not last: {node.volatile}.", owner=True)
    if node.maintenance.rebuilding:
        warn("The catalog was rebuilt; what holders keep is being compared with it.")
    ignored = _ignored_opens(node)
    if ignored:
        warn(f"{ignored}; to bring files back:", "p2pstore hydrate PATH")
    for folder in node.folders.all():
        if folder.unwatched is not None:
            warn(f"{folder.unwatched}; it is tried again by itself.", owner=True)
        if folder.obstacle is not None:
            warn(f"{folder.path}: files are stored and stay: {folder.obstacle}.")
        if folder.waiting_for_room is not None:
            tally = folder.waiting.held_up().get("waiting for room")
            number = tally.files if tally is not None else 0
            what = f"{plural(number, 'file')} waiting for room"
            warn(f"{folder.path}: {what}: {folder.waiting_for_room}.")
        if folder.opens_unheard:
            warn(f"{folder.path}: opening a placeholder may go unnoticed: {folder.opens_unheard}")
        for path, why in folder.unread[:3]:
            warn(f"{folder.path}/{os.fsdecode(path)} cannot be read ({why}).", owner=True)
    if node.upkeep.handing.is_leaving:
        warn("This node is leaving, and takes no copies. To finish, or to stay:", LEAVE)
    for holder, number in node.upkeep.mover.waiting.items():
        name = node.group.name_of(holder) or short(holder)
        warn(f"{name} asked for it: {plural(number, 'copy', 'copies')} to place elsewhere first.")
    if node.held.lost:
        what = plural(len(node.held.lost), "bundle")
        warn(f"{what} kept for others and gone from this disk.", owner=True)
    damaged = len(node.upkeep.healer.damaged())
    if damaged:
        text = f"{plural(damaged, 'bundle')} damaged here and not healed yet; connect the holders:"
        warn(text, "p2pstore check --read-data --repair", owner=True)
    for report in node.maintenance.loops.reports():
        if report.failures >= STUBBORN:
            warn(f"The {report.name} loop failed {report.failures} times: {report.last_error}")
    alarm = node.network.announcer.state().alarm
    if alarm is not None:
        warn(alarm)
    trouble = node.trouble()
    if trouble is not None:
        warn(trouble, owner=True)
    return found
