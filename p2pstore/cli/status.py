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
LONG_PATH = 32  # a longer one has a line of its own: columns beside it would be far away
PEERS, PLACES, ROOM, MARK = "Peers  ", "Places ", "Room   ", " !  "


@click.command(epilog=example("p2pstore status", "p2pstore status ~/Vault/film.mkv.f"))
@click.argument("paths", metavar="[PATH...]", type=PATH, nargs=-1)
@click.option("--check", is_flag=True, help="Exit 1 when something needs you.")
@click.option("--report", is_flag=True, help="Who holds what, proved when; --json: signed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def status(shell: Shell, paths: tuple[str, ...], check: bool, report: bool, as_json: bool) -> int:
    """Is it safe, how many copies, what is missing? With PATHs: of these files."""
    if report:
        from p2pstore.cli.report import show_report

        return show_report(shell, paths, as_json=as_json)
    said = shell.node().call("status", paths=list(paths), check=check)
    now = time.time()
    if as_json:
        shell.json(said)
    elif paths:
        shell.result("\n".join(file_lines(said.get("files") or [], show.width())))
    else:
        lines = status_lines(said, now, upkeep=shell.verbose, width=show.width())
        shell.result("\n".join(lines))
    return NEEDS_OWNER if check and needs_owner(said) else 0


def needs_owner(said: Json) -> bool:
    waits = any(f.get("paused") or f.get("mass_change") for f in said.get("folders") or [])
    return waits or any(w.get("owner") for w in said.get("warnings") or [])


def status_lines(
    said: Json, now: float, *, upkeep: bool = False, width: int | None = None
) -> list[str]:
    """The whole picture; `width`: columns into which it is to fit, where words can be parted."""
    folders, peers = said.get("folders") or [], said.get("peers") or []
    lines = show.fold(_node_facts(said.get("node") or {}, now), " · ", width=width, indent=2)
    lines += folder_lines(folders, now, width)
    if not folders:
        lines.append("No folder yet. Give it one: p2pstore add-folder DIR")
    lines += _peer_lines(peers, now, width)
    lines += _carrier_lines(said.get("carriers") or [], now, width)
    lines += _room_lines(said.get("space") or {}, now, width)
    if upkeep:
        lines.append(_upkeep_line(said.get("maintenance") or [], now))
    rebuilding = bool((said.get("node") or {}).get("rebuilding"))
    nobody = holder_warnings(folders, peers, now, rebuilding=rebuilding)
    warnings = [*nobody, *(said.get("warnings") or [])]
    return lines + _warning_lines(warnings, width)


def _node_facts(node: Json, now: float) -> list[str]:
    facts = [show.name(node.get("name", "")), f"p2pstore {node.get('version', '')}"]
    if node.get("started"):
        facts.append(f"up {show.span(now - node['started'])}")
    facts.append(f"group {show.short_id(node.get('group', ''))}")
    port = str(node.get("listen", "")).rpartition(":")[2]
    reach = {
        "outside": "reachable from outside",
        "network": "reachable in this network",
        "no": "not reachable (p2pstore doctor)",
    }
    facts.append(f"{port} {reach.get(str(node.get('reachable')), '')}".rstrip())
    ui = str(node.get("ui") or "off")
    if ui != "off":
        facts.append(ui if ui.startswith("http") else f"http://{ui}")
    return [fact for fact in facts if fact]


def folder_lines(folders: Sequence[Json], now: float, width: int | None = None) -> list[str]:
    """Every folder with its parts, in columns that all of them share."""
    rows: list[list[str]] = []
    beside: dict[int, list[str]] = {}  # lines that are no row, before the row of that number
    for folder in folders:
        path = show.path(folder.get("path", ""))
        if folder.get("missing_since"):
            since = show.moment(folder["missing_since"], now)
            absent = f"{path}      not plugged in since {since}; goes on by itself"
            beside.setdefault(len(rows), []).append(absent)
            continue
        head, *parts = _folder_rows(folder)
        if len(path) > LONG_PATH:
            beside.setdefault(len(rows), []).append(path)
            head[0] = "  all"
        rows += [head, *parts]
        beside.setdefault(len(rows), []).extend(_paused_lines(folder))
    lines: list[str] = []
    for number, row in enumerate(_together(rows, width)):
        lines += [*beside.get(number, ()), *row]
    return lines + beside.get(len(rows), [])


def _together(rows: Sequence[Sequence[str]], width: int | None) -> list[list[str]]:
    """The lines of each row; one row may need several."""
    aligned = show.table([row[:-1] for row in rows], right=frozenset({1, 2}))
    wide = max((len(line) for line in aligned), default=0)
    return [
        show.table([[line.ljust(wide), row[-1]]], width=width)
        for line, row in zip(aligned, rows, strict=True)
    ]


def _folder_rows(folder: Json) -> list[list[str]]:
    path, freed = show.path(folder.get("path", "")), folder.get("freed_bytes")
    head = [
        path,
        _counted(folder.get("files", 0), " file" if folder.get("files") == 1 else " files"),
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
        place = "PATH" if len(path) > LONG_PATH else f"{path}/PATH"
        hint = f"(p2pstore status {place} says why)"
        rows.append(["  skipped", _counted(folder["skipped"]), "", why or hint])
    if folder.get("pending"):
        rows.append(["  waiting for their turn", _counted(folder["pending"]), "", ""])
    return rows


def _paused_lines(folder: Json) -> list[str]:
    typed = show.argument(folder.get("path", ""))
    if folder.get("mass_change"):
        change = folder["mass_change"]
        return [
            f"  paused: {change.get('gone', 0):,} of {change.get('total', 0):,} files are gone or "
            "changed at once.",
            f"    meant:     p2pstore resume {typed} --accept",
            f"    not meant: p2pstore resume {typed} --undo",
        ]
    if folder.get("paused"):
        return [f"  paused; go on with: p2pstore resume {typed}"]
    return []


def _counted(count: int, unit: str = "") -> str:
    """A number whose last digit stands where those of the rows above stand."""
    return f"{count:,}{unit.ljust(len(' files'))}"


def _part(words: str, part: Json, note: str) -> list[str]:
    size = show.size(part["bytes"]) if part.get("bytes") is not None else ""
    said = part.get("note") or show.reasons(part.get("reasons") or {}) or note
    return [f"  {words}", _counted(part["files"]), size, show.name(said)]


def peer_rows(peers: Sequence[Json], now: float, *, since: bool = False) -> list[list[str]]:
    """Name, role, link (and `since` when), what each holds for us, when it proved it."""
    return [_peer_row(peer, now, since=since) for peer in peers]


def _peer_lines(peers: Sequence[Json], now: float, width: int | None) -> list[str]:
    inner = None if width is None else width - len(PEERS)
    return _labelled(PEERS, show.table(peer_rows(peers, now), width=inner))


def carrier_rows(carriers: Sequence[Json], now: float) -> list[list[str]]:
    """Name, kind, place, what of folders lies there (files that were uploaded to it are counted
    by nobody), since when it is known to."""
    rows = []
    for one in carriers:
        proved = f"read back {show.ago(one['proved'], now)}" if one.get("proved") else ""
        held = f"holds {show.size(one['bytes'])} of folders" if one.get("bytes") else ""
        rows.append(
            [
                show.name(one.get("name", "")),
                show.name(one.get("kind", "")),
                show.path(one.get("where", "")),
                held,
                show.name(one.get("trouble") or "") or proved,
            ]
        )
    return rows


def _carrier_lines(carriers: Sequence[Json], now: float, width: int | None) -> list[str]:
    inner = None if width is None else width - len(PLACES)
    return _labelled(PLACES, show.table(carrier_rows(carriers, now), width=inner))


def _labelled(label: str, lines: Sequence[str]) -> list[str]:
    """The label before the first line, as much room before the others."""
    return [(" " * len(label) if number else label) + line for number, line in enumerate(lines)]


def _peer_row(peer: Json, now: float, *, since: bool) -> list[str]:
    if peer.get("held_bytes") and peer.get("offer_bytes"):
        held = f"you hold {show.size_of(peer['held_bytes'], peer['offer_bytes'])} for it"
    elif peer.get("held_bytes"):
        held = f"you hold {show.size(peer['held_bytes'])} for it"
    else:
        held = ""
    proved = f"proved {show.ago(peer['proved'], now)}" if peer.get("proved") else ""
    began = peer.get("since")
    return [
        peer_name(peer),
        show.name(peer.get("role", "")),
        _link(peer, now) + (f" since {show.moment(began, now)}" if since and began else ""),
        _held_for_you(peer),
        ", ".join(part for part in (proved, held) if part),
    ]


def _link(peer: Json, now: float) -> str:
    if peer.get("connected"):
        through = peer.get("through")
        return f"connected through {show.name(through)}" if through else "connected"
    if peer.get("last_seen"):
        return f"offline {show.span(now - peer['last_seen'])}"
    return "never seen"


def _held_for_you(peer: Json) -> str:
    if peer.get("holds_bytes"):
        return f"holds {show.size(peer['holds_bytes'])} for you"
    return "holds nothing yet" if is_holder(peer) else ""


def peer_name(peer: Json) -> str:
    return show.name(peer.get("name") or show.short_id(peer.get("id", "")))


def _room_lines(space: Json, now: float, width: int | None) -> list[str]:
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
    facts[0] = ROOM + facts[0]
    return show.fold(facts, " · ", width=width, indent=len(ROOM))


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


def holder_warnings(
    folders: Sequence[Json], peers: Sequence[Json], now: float, *, rebuilding: bool = False
) -> list[Json]:
    """Say that nobody, or not enough nodes, can hold copies."""
    if not folders:
        return []
    holders = [peer for peer in peers if is_holder(peer)]
    able = [peer for peer in holders if peer.get("connected") or peer.get("holds_bytes")]
    absent = [peer for peer in holders if peer not in able]
    if not holders:
        text = "No other node yet: nothing is freed, these files are on this disk alone."
        return [{"text": text, "command": "p2pstore invite"}]
    away = ", ".join(f"{peer_name(peer)} ({_link(peer, now)})" for peer in absent)
    holds = "holds" if len(absent) == 1 else "hold"
    if not able and rebuilding:
        text = f"What {away} {holds} is not known again yet. Start it there:"
        return [{"text": text, "command": "p2pstore run"}]
    if not able:
        text = (
            f"{away} {holds} nothing yet: nothing is freed, these files are on this disk alone. "
            "Start it there:"
        )
        return [{"text": text, "command": "p2pstore run"}]
    names = ", ".join(peer_name(peer) for peer in able)
    count = len(able)
    there = f"there {'is' if count == 1 else 'are'} {count} ({names})"
    accept = "one copy" if count == 1 else f"{count} copies"
    remedy = f"Invite one, or accept {accept}:"
    if absent:
        there += f"; {away} {holds} nothing yet"
        remedy = f"Start it, invite another, or accept {accept}:"
    warnings: list[Json] = []
    for folder in folders:
        low = folder.get("min_copies") or 2
        wanted = low - 1 if folder.get("carriers") and low > 1 else low
        path = folder.get("path", "")
        if wanted > count:
            text = f"{show.path(path)} needs {wanted} other holders, {there}. {remedy}"
            command = f"p2pstore add-folder {show.argument(path)} --min-copies {count}"
            warnings.append({"text": text, "command": command})
    return warnings


def is_holder(peer: Json) -> bool:
    """Whether a peer may hold copies for us; own devices may unless the node says otherwise."""
    return bool(peer.get("holder", peer.get("role") in ("device", "admin", "friend")))


def _warning_lines(warnings: Sequence[Json], width: int | None) -> list[str]:
    lines: list[str] = []
    for warning in warnings:
        text, command = show.name(warning.get("text", "")), show.name(warning.get("command") or "")
        line = f"{text}  {command}".rstrip()
        if width is None or len(MARK) + len(line) <= width:
            lines.append(MARK + line)
            continue
        folded = show.fold(text.split(" "), " ", width=width - len(MARK), indent=0)
        lines += _labelled(MARK, folded)
        if command:
            lines.append(" " * (len(MARK) + 4) + command)
    return lines


def file_lines(files: Sequence[Json], width: int | None = None) -> list[str]:
    return show.table([_file_row(one) for one in files], right=frozenset({1}), width=width)


def _file_row(one: Json) -> list[str]:
    said = str(one.get("state", "unknown"))
    # A link has no blocks: where it points stands in the folder's index.
    is_stored = one.get("state") in ("placeholder", "protected", "hydrating")
    if is_stored and one.get("type") != "link":
        said += f", {show.copies(one.get('copies') or 0)}"
        if one.get("state") == "placeholder" and not one.get("local"):
            said += ", freed here"
    if one.get("reason"):
        said += f": {show.name(one['reason'])}"
    is_known = one.get("size") is not None and one.get("state") != "unknown"
    size = show.size(one["size"]) if is_known else ""
    return [show.path(one.get("path", "")), size, said]
