"""`status`: the answer to "is it safe, how many copies, what is missing?"."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from p2pstore.cli import show
from p2pstore.cli.params import PATH
from p2pstore.cli.shell import Shell, example, pass_shell

Json = Mapping[str, Any]

NEEDS_OWNER = 1


@click.command(epilog=example("p2pstore status", "p2pstore status ~/Vault/film.mkv.f"))
@click.argument("paths", metavar="[PATH...]", type=PATH, nargs=-1)
@click.option("--check", is_flag=True, help="Exit 1 when something needs you.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def status(shell: Shell, paths: tuple[str, ...], check: bool, as_json: bool) -> int:
    """Is it safe, how many copies, what is missing? With PATHs: of these files."""
    said = shell.node().call("status", paths=list(paths), check=check)
    now = time.time()
    if as_json:
        shell.json(said)
    elif paths:
        shell.result("\n".join(file_lines(said.get("files") or [])))
    else:
        shell.result("\n".join(status_lines(said, now, upkeep=shell.verbose)))
    return NEEDS_OWNER if check and needs_owner(said) else 0


def needs_owner(said: Json) -> bool:
    waits = any(f.get("paused") or f.get("mass_change") for f in said.get("folders") or [])
    return waits or any(w.get("owner") for w in said.get("warnings") or [])


def status_lines(said: Json, now: float, *, upkeep: bool = False) -> list[str]:
    folders, peers = said.get("folders") or [], said.get("peers") or []
    lines = [_node_line(said.get("node") or {}, now)]
    for folder in folders:
        lines += folder_lines(folder, now)
    if not folders:
        lines.append("No folder yet. Give it one: p2pstore add-folder DIR")
    lines += peer_lines(peers, now)
    lines.append(_room_line(said.get("space") or {}, now))
    if upkeep:
        lines.append(_upkeep_line(said.get("maintenance") or [], now))
    lines += _warning_lines([*holder_warnings(folders, peers), *(said.get("warnings") or [])])
    return lines


def _node_line(node: Json, now: float) -> str:
    facts = [show.name(node.get("name", "")), f"p2pstore {node.get('version', '')}"]
    if node.get("started"):
        facts.append(f"up {show.span(now - node['started'])}")
    facts.append(f"group {show.short_id(node.get('group', ''))}")
    port = str(node.get("listen", "")).rpartition(":")[2]
    reach = {"outside": "reachable from outside", "network": "reachable in this network"}
    facts.append(f"{port} {reach.get(str(node.get('reachable')), '')}".rstrip())
    if node.get("ui"):
        facts.append(_address(str(node["ui"])))
    return " · ".join(fact for fact in facts if fact)


def _address(ui: str) -> str:
    return ui if ui.startswith("http") or ui == "off" else f"http://{ui}"


def folder_lines(folder: Json, now: float) -> list[str]:
    path = show.path(folder.get("path", ""))
    typed = show.argument(folder.get("path", ""))
    if folder.get("missing_since"):
        since = show.moment(folder["missing_since"], now)
        return [f"{path}      not plugged in since {since}; goes on by itself"]
    freed = folder.get("freed_bytes")
    files = folder.get("files", 0)
    head = [
        path,
        "1 file" if files == 1 else f"{files:,} files",
        show.size(folder.get("bytes", 0)),
        f"{show.size(freed)} freed here" if freed else "",
    ]
    rows = [head]
    enough = folder.get("min_copies") or 2
    few = "on 1 other" if enough == 2 else f"on fewer than {enough}"
    others = "other" if enough == 1 else "others"
    for key, words, note in (
        ("safe", f"safe on {enough}+ {others}", ""),
        ("one", few, "waits for another holder" if enough > 2 else "waits for a second holder"),
        ("here", "this device only", ""),
        ("left", "left as they are", ""),
    ):
        part = folder.get(key) or {}
        if part.get("files"):
            rows.append(_part(words, part, note))
    if folder.get("skipped"):
        why = show.reasons(folder.get("skips") or {})
        hint = f"(p2pstore status {path}/PATH says why)"
        rows.append(["  skipped", f"{folder['skipped']:,}", "", why or hint])
    if folder.get("pending"):
        rows.append(["  waiting for their turn", f"{folder['pending']:,}", "", ""])
    lines = show.table(rows, right=frozenset({1, 2}))
    if folder.get("mass_change"):
        change = folder["mass_change"]
        lines.append(
            f"  paused: {change.get('gone', 0):,} of {change.get('total', 0):,} files are gone or "
            f"changed at once. Meant: p2pstore resume {typed} --accept   "
            f"Not meant: p2pstore resume {typed} --undo"
        )
    elif folder.get("paused"):
        lines.append(f"  paused; go on with: p2pstore resume {typed}")
    return lines


def _part(words: str, part: Json, note: str) -> list[str]:
    size = show.size(part["bytes"]) if part.get("bytes") is not None else ""
    said = part.get("note") or show.reasons(part.get("reasons") or {}) or note
    return [f"  {words}", f"{part['files']:,}", size, show.name(said)]


def peer_lines(peers: Sequence[Json], now: float) -> list[str]:
    rows = [_peer_row(peer, now) for peer in peers]
    labels = ["Peers  ", *["       "] * len(rows)]
    return [label + line for label, line in zip(labels, show.table(rows), strict=False)]


def _peer_row(peer: Json, now: float) -> list[str]:
    if peer.get("connected"):
        link = "connected"
    elif peer.get("last_seen"):
        link = f"offline {show.span(now - peer['last_seen'])}"
    else:
        link = "offline"
    if peer.get("held_bytes") and peer.get("offer_bytes"):
        held = f"you hold {show.size_of(peer['held_bytes'], peer['offer_bytes'])} for it"
    elif peer.get("held_bytes"):
        held = f"you hold {show.size(peer['held_bytes'])} for it"
    else:
        held = ""
    proved = f"proved {show.ago(peer['proved'], now)}" if peer.get("proved") else ""
    return [
        peer_name(peer),
        show.name(peer.get("role", "")),
        link,
        f"holds {show.size(peer.get('holds_bytes', 0))} for you",
        "   ".join(part for part in (proved, held) if part),
    ]


def peer_name(peer: Json) -> str:
    return show.name(peer.get("name") or show.short_id(peer.get("id", "")))


def _room_line(space: Json, now: float) -> str:
    trash = f"trash {show.size(space.get('trash_bytes', 0))}"
    if space.get("trash_bytes") and space.get("trash_until"):
        trash += f" until {show.moment(space['trash_until'], now)}"
    facts = [
        f"store {show.size(space.get('bundles_bytes', 0))}",
        trash,
        f"for others {show.size(space.get('held_for_others_bytes', 0))}",
    ]
    if space.get("free_bytes") is not None:
        kept = f" ({show.size(space.get('keep_free_bytes', 0))} kept free)"
        facts.append(f"disk {show.size(space['free_bytes'])} free{kept}")
    if space.get("waiting_files"):
        waits = f"{show.files(space['waiting_files'])}, {show.size(space.get('waiting_bytes', 0))}"
        facts.append(f"waiting for room: {waits}")
    return "Room   " + " · ".join(facts)


def _upkeep_line(loops: Sequence[Json], now: float) -> str:
    """What goes on by itself, each in a few words."""
    return "Upkeep " + " · ".join(_loop_words(loop, now) for loop in loops)


def _loop_words(loop: Json, now: float) -> str:
    name = str(loop.get("name", ""))
    if loop.get("failures"):
        times = "once" if loop["failures"] == 1 else f"{loop['failures']:,} times"
        return f"{name} failed {times} ({show.name(loop.get('last_error', ''))})"
    if loop.get("state") == "works":
        done, total = loop.get("done"), loop.get("total")
        far = f" ({done:,} of {total:,})" if done is not None and total else ""
        return f"{name} now{far}"
    if loop.get("last_run"):
        return f"{name} {show.ago(loop['last_run'], now)}"
    return f"{name} not yet"


def holder_warnings(folders: Sequence[Json], peers: Sequence[Json]) -> list[Json]:
    """Say that nobody, or not enough nodes, can hold copies."""
    holders = [peer for peer in peers if is_holder(peer)]
    if not folders:
        return []
    if not holders:
        return [
            {
                "text": "No other node yet: nothing is freed, these files are on this disk alone.",
                "command": "p2pstore invite",
            }
        ]
    warnings: list[Json] = []
    count = len(holders)
    names = ", ".join(peer_name(peer) for peer in holders)
    there = f"there {'is' if count == 1 else 'are'} {count} ({names})"
    accept = "one copy" if count == 1 else f"{count} copies"
    for folder in folders:
        wanted = folder.get("min_copies") or 2
        path = folder.get("path", "")
        if wanted > count:
            text = (
                f"{show.path(path)} needs {wanted} other holders, {there}. "
                f"Invite one, or accept {accept}:"
            )
            command = f"p2pstore add-folder {show.argument(path)} --min-copies {count}"
            warnings.append({"text": text, "command": command})
    return warnings


def is_holder(peer: Json) -> bool:
    """Whether a peer may hold copies for us; own devices may unless the node says otherwise."""
    return bool(peer.get("holder", peer.get("role") in ("device", "admin", "friend")))


def _warning_lines(warnings: Sequence[Json]) -> list[str]:
    rows = [
        [show.name(warning.get("text", "")), show.name(warning.get("command") or "")]
        for warning in warnings
    ]
    return [f" !  {line}" for line in show.table(rows)]


def file_lines(files: Sequence[Json]) -> list[str]:
    return show.table([_file_row(one) for one in files], right=frozenset({1}))


def _file_row(one: Json) -> list[str]:
    said = str(one.get("state", "unknown"))
    if one.get("state") in ("placeholder", "protected", "hydrating"):
        said += f", {show.copies(one.get('copies') or 0)}"
        if one.get("state") == "placeholder" and not one.get("local"):
            said += ", freed here"
    if one.get("reason"):
        said += f": {show.name(one['reason'])}"
    size = "" if one.get("size") is None else show.size(one["size"])
    return [show.path(one.get("path", "")), size, said]
