"""The durability report: shown, and checked when somebody else made it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from p2pstore.cli import show
from p2pstore.cli.shell import Shell
from p2pstore.errors import UsageError
from p2pstore.text import plural

Json = Mapping[str, Any]


def show_report(shell: Shell, paths: Sequence[str], *, as_json: bool) -> int:
    """Of the running node; as JSON it is signed, and can be checked by others."""
    signed = shell.node().call("report", paths=list(paths))
    if as_json:
        shell.json(signed)
    else:
        shell.result("\n".join(report_lines(signed["report"], time.time())))
        shell.say("Signed, to keep or to hand on: p2pstore status --report --json > report.json")
    return 0


def check_report(shell: Shell, path: str) -> int:
    """Exit 3 when the file is none, 4 when it was changed or its signer is no device."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"{show.path(path)} cannot be read: {exc}") from exc
    with shell.any_node() as node:
        done = node.call("check_report", text=text)
    now = time.time()
    said = done["report"]
    whose = "of this group" if done["ours"] else "of another group"
    revoked = ", which was revoked since" if done["revoked"] else ""
    made = show.ago(said["made"] / 1000, now)
    shell.result(f"Signed {made} by {show.name(done['signer'])}, a device {whose}{revoked}:")
    shell.result("\n".join(report_lines(said, now)))
    return 0


def report_lines(said: Json, now: float) -> list[str]:
    lines: list[str] = []
    for folder in said["folders"]:
        counted = f"{show.files(folder['files'])}, {show.size(folder['bytes'])}"
        lines.append(f"{show.path(folder['path'])}  {counted}")
        for number, count in folder["copies"].items():
            where = {"0": "on this device only", "1": "on 1 other"}.get(
                number, f"safe on {number} others"
            )
            lines.append(f"  {where}: {show.files(count)}")
    for holder in said["holders"]:
        name = show.name(holder["name"] or show.short_id(holder["id"]))
        what = f"{plural(holder['bundles'], 'bundle')}, {show.size(holder['bytes'])}"
        proved = f"last proof {show.ago(holder['last_proof'] / 1000, now)}"
        again = f"all asked again by {show.moment(holder['next_audit'] / 1000, now)}"
        lines.append(f"{name}  {show.name(holder['role'])}  {what}  {proved}, {again}")
    names = {holder["id"]: holder["name"] for holder in said["holders"]}
    for file in said["files"]:
        counted = f"{show.size(file['size'])}, copies: {file['copies']}"
        lines.append(f"{show.path(file['path'])}  {counted}")
        for bundle in file["bundles"]:
            lines.append(f"  {bundle['kind']} {bundle['id'][:12]}  {_holders(bundle, names, now)}")
    return lines


def _holders(bundle: Json, names: Mapping[str, str], now: float) -> str:
    parts = [
        f"{show.name(names.get(holder['id']) or show.short_id(holder['id']))} "
        f"(proved {show.ago(holder['proved'] / 1000, now)})"
        for holder in bundle["holders"]
    ]
    return ", ".join([*(["here"] if bundle["here"] else []), *parts]) or "nowhere"
