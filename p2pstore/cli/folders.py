"""Commands about watched folders: add, remove, list, pause, resume, and what lies in them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import click

from p2pstore.cli import show
from p2pstore.cli.params import DURATION, PATH, SIZE
from p2pstore.cli.shell import Shell, example, pass_shell
from p2pstore.errors import UsageError
from p2pstore.text import plural

SHOWN = 20  # reasons to stay that are listed one by one; `status PATH` tells the rest


@click.command(
    "add-folder",
    epilog=example(
        "p2pstore add-folder ~/Vault",
        "p2pstore add-folder ~/Photos --exclude '*.tmp' --min-copies 1 --wait",
    ),
)
@click.argument("dir", type=PATH)
@click.option("--exclude", metavar="GLOB", multiple=True, help="Do not even read these.")
@click.option("--protect-only", metavar="GLOB", multiple=True, help="Store, never replace.")
@click.option("--replace", metavar="GLOB", multiple=True, help="Replace these too (databases...).")
@click.option("--settle", type=DURATION, help="Rest before a file is taken; default 5s.")
@click.option("--keep", type=DURATION, help="How long a file in work stays; default 24h.")
@click.option("--min-copies", type=click.IntRange(1, 64), help="Before room is freed; default 2.")
@click.option("--min-size", type=SIZE, help="Smaller files are stored, never replaced.")
@click.option(
    "--carrier",
    "carriers",
    metavar="NAME",
    multiple=True,
    help="A copy there, too (p2pstore carriers add); none: at no carrier any more.",
)
@click.option("--pin", is_flag=True, help="Store everything, replace nothing.")
@click.option("--force", is_flag=True, help="Though another sync tool has its marks here.")
@click.option("--dry-run", is_flag=True, help="Only the preview.")
@click.option("--yes", is_flag=True, help="No question.")
@click.option("--wait", is_flag=True, help="Show progress until every file is replaced or stays.")
@pass_shell
def add_folder(shell: Shell, /, dir: str, **options: Any) -> int:
    """Watch DIR, with all below it: files at rest are stored and replaced by .f placeholders.

    First a preview of what would happen. On a watched DIR: changes the given settings.
    """
    node = shell.node()
    arguments = {"dir": dir, "settings": _settings(options), "force": options["force"]}
    with shell.meter() as meter:
        preview = node.call("preview", meter, **arguments)
    shell.result("\n".join(preview_lines(preview)))
    if options["dry_run"]:
        return 0
    changes_only = preview.get("watched", False)
    if not (changes_only or options["yes"] or not shell.asks) and not click.confirm(
        "Go on?", default=True, err=True
    ):
        shell.say("Nothing was changed.")
        return 0
    node.call("add_folder", **arguments)
    if changes_only:
        shell.result("The settings are changed." if arguments["settings"] else "Nothing to change.")
    elif not options["wait"]:
        shell.result(f"Watching {show.path(dir)}. How far it is: p2pstore status")
    if not options["wait"]:
        return 0
    goes_on = (
        f"The node goes on protecting {show.path(dir)}; "
        f"to stop that: p2pstore pause {show.argument(dir)}"
    )
    with shell.waiting(goes_on) as meter:
        settled = node.call("wait_folder", meter, dir=dir)
    shell.result("\n".join(settled_lines(settled)))
    return 0


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the given settings only, under the names of FolderSettings."""
    given = {
        "exclude": list(options["exclude"]) or None,
        "protect_only": list(options["protect_only"]) or None,
        "replace": list(options["replace"]) or None,
        "settle_s": options["settle"],
        "keep_s": options["keep"],
        "min_copies": options["min_copies"],
        "min_size": options["min_size"],
        "pin": options["pin"] or None,
        "carriers": _carriers(options["carriers"]),
    }
    return {name: value for name, value in given.items() if value is not None}


def _carriers(named: Sequence[str]) -> list[str] | None:
    if not named:
        return None
    return [] if list(named) == ["none"] else list(dict.fromkeys(named))


def preview_lines(preview: dict[str, Any]) -> list[str]:
    path = show.path(preview.get("path", ""))
    files, size = preview.get("files", 0), preview.get("bytes", 0)
    lines = [f"{path}: {show.files(files)}, {show.size(size)}"]
    known = ["watched already"] if preview.get("watched") else []
    if preview.get("placeholders"):
        known.append(f"beside {preview['placeholders']:,} .f")
    if known:
        lines[0] += f" ({', '.join(known)})"
    rows = []
    for key, words in (
        ("replace", "become .f"),
        ("protect_only", "are stored and stay"),
        ("skipped", "are left out"),
    ):
        part = preview.get(key) or {}
        if part.get("files"):
            why = show.reasons(part.get("reasons") or {})
            rows.append([f"  {part['files']:,}", words, show.size(part.get("bytes", 0)), why])
    lines += show.table(rows, right=frozenset({0, 2}))
    needed, free = preview.get("room_needed_bytes"), preview.get("room_free_bytes")
    if needed is not None and free is not None:
        kept = preview.get("keep_free_bytes")
        tail = f" ({show.size(kept)} stay free)" if kept else ""
        lines.append(f"Room: at most {show.size(needed)} of {show.size(free)} free in HOME{tail}")
        if needed > free - (kept or 0):
            lines.append("  More than fits at once: it goes in steps, as other nodes take copies.")
    holders = preview.get("holders")
    if holders is not None:
        wanted = preview.get("min_copies", 2)
        text = f"Copies: {holders} other {'node' if holders == 1 else 'nodes'} reachable now"
        if holders < wanted:
            must = "1 is needed" if wanted == 1 else f"{wanted} are needed"
            text += f", {must} before room is freed: p2pstore invite"
        lines.append(text)
    lines += [show.name(note) for note in preview.get("notes") or []]
    return lines


def settled_lines(settled: dict[str, Any]) -> list[str]:
    lines = [
        f"{show.files(settled.get('replaced', 0))} of {settled.get('files', 0):,} "
        f"replaced, {show.size(settled.get('bytes', 0))} protected"
    ]
    if settled.get("reasons"):
        lines.append(f"  staying: {show.reasons(settled['reasons'])}")
    left = settled.get("left") or []
    lines += [
        f"  {show.path(one.get('path', ''))}: {show.name(one.get('reason', ''))}"
        for one in left[:SHOWN]
    ]
    more = settled.get("left_total", len(left)) - min(len(left), SHOWN)
    if more > 0:
        lines.append(f"  and {more:,} more (p2pstore status PATH says why)")
    return lines


@click.command(
    "remove-folder",
    epilog=example("p2pstore remove-folder ~/Vault --hydrate"),
)
@click.argument("dir", type=PATH)
@click.option("--hydrate", is_flag=True, help="Bring all originals back first.")
@click.option("--leave-placeholders", is_flag=True, help="Leave the .f; they stay good.")
@pass_shell
def remove_folder(shell: Shell, dir: str, hydrate: bool, leave_placeholders: bool) -> int:
    """Stop watching DIR; nothing in it is removed."""
    how = _one_of({"--hydrate": hydrate, "--leave-placeholders": leave_placeholders})
    how = {"--hydrate": "hydrate", "--leave-placeholders": "leave"}.get(how or "")
    node = shell.node()
    if how is None:
        how = _how_to_leave(shell, node.call("folders"), dir)
        if how == "cancel":
            shell.say("Nothing was changed.")
            return 0
    goes_on = f"The node goes on bringing originals back in {show.path(dir)}; p2pstore status"
    with shell.waiting(goes_on) as meter:
        done = node.call("remove_folder", meter, dir=dir, how=how)
    left, back = done.get("placeholders", 0), done.get("hydrated", 0)
    told = f"{show.path(dir)} is not watched any more"
    if back:
        told += f"; {show.files(back)} brought back"
    if left:
        told += f"; {plural(left, 'placeholder')} left: add-folder takes up what was left"
    shell.result(told)
    return 0


def _one_of(options: dict[str, bool]) -> str | None:
    """The option that was given; UsageError when they contradict each other."""
    given = [name for name, is_given in options.items() if is_given]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} contradict each other: choose one.")
    return given[0] if given else None


def _how_to_leave(shell: Shell, listed: dict[str, Any], dir: str) -> str | None:
    """Return what to do with placeholders: None when there are none, else what the owner says."""
    rows: list[dict[str, Any]] = listed.get("folders", [])
    count = sum(row.get("placeholders", 0) for row in rows if row.get("path") == dir)
    if not count:
        return None
    if not shell.asks:
        raise UsageError(
            f"{show.path(dir)} has {plural(count, 'placeholder')}: say --hydrate (bring the "
            "originals back) or --leave-placeholders."
        )
    answer: str = click.prompt(
        f"There are still {plural(count, 'placeholder')}: hydrate first, or leave what is there",
        type=click.Choice(["hydrate", "leave", "cancel"]),
        default="hydrate",
        err=True,
    )
    return answer


@click.command(epilog=example("p2pstore folders --json"))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def folders(shell: Shell, as_json: bool) -> int:
    """List the watched folders and their settings."""
    listed = shell.node().call("folders")
    if as_json:
        shell.json(listed)
        return 0
    rows = listed.get("folders", [])
    if not rows:
        shell.result("No folder is watched yet. Give it one: p2pstore add-folder DIR")
    for folder in rows:
        paused = "   paused" if folder.get("paused") else ""
        shell.result(f"{show.path(folder.get('path', ''))}   {show.files(folder.get('files', 0))}"
                     f"   {show.size(folder.get('bytes', 0))}{paused}")  # fmt: skip
        settings = _settings_words(folder.get("settings") or {})
        if settings:
            shell.result(f"  {settings}")
    return 0


def _settings_words(settings: dict[str, Any]) -> str:
    words = []
    for key, value in settings.items():
        label = key.removesuffix("_s").replace("_", "-")
        if value in (None, [], False, ""):
            continue
        if key.endswith("_s"):
            words.append(f"{label} {show.span(value)}")
        elif isinstance(value, list):
            words.append(f"{label} {' '.join(show.name(one) for one in value)}")
        elif value is True:
            words.append(label)
        elif key == "min_size":
            words.append(f"{label} {show.size(value)}")
        else:
            words.append(f"{label} {show.name(value)}")
    return " · ".join(words)


@click.command(epilog=example("p2pstore ls -l ~/Vault"))
@click.argument("path", type=PATH, required=False)
@click.option("-l", "long", is_flag=True, help="Sizes, times, copies and states.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def ls(shell: Shell, path: str | None, long: bool, as_json: bool) -> int:
    """List files by their real names, placeholders too. Without PATH: the watched folders."""
    listed = shell.node().call("ls", path=path)
    if as_json:
        shell.json(listed)
        return 0
    entries = listed.get("entries", [])
    if not long:
        for entry in entries:
            shell.result(_entry_name(entry))
        return 0
    now = time.time()
    rows = [
        [
            "" if entry.get("size") is None else show.size(entry["size"]),
            show.moment(entry["mtime"], now) if entry.get("mtime") else "",
            _entry_state(entry),
            _entry_name(entry),
        ]
        for entry in entries
    ]
    for line in show.table(rows, right=frozenset({0})):
        shell.result(line)
    return 0


def _entry_name(entry: dict[str, Any]) -> str:
    return show.name(entry.get("name", "")) + ("/" if entry.get("type") == "folder" else "")


def _entry_state(entry: dict[str, Any]) -> str:
    if entry.get("type") == "folder":
        return show.files(entry["files"]) if "files" in entry else ""
    state = str(entry.get("state", ""))
    is_stored = entry.get("type") != "link" and state in ("placeholder", "protected", "hydrating")
    if is_stored and entry.get("copies") is not None:
        state += f", {show.copies(entry['copies'])}"
    if entry.get("reason"):
        state += f" ({show.name(entry['reason'])})"
    return state


@click.command(epilog=example("p2pstore pause ~/Vault"))
@click.argument("dir", type=PATH)
@pass_shell
def pause(shell: Shell, dir: str) -> int:
    """Leave DIR alone until `resume`: nothing is stored, replaced or concluded from it."""
    shell.node().call("pause", dir=dir)
    shell.result(f"{show.path(dir)} is paused. Go on with: p2pstore resume {show.argument(dir)}")
    return 0


@click.command(epilog=example("p2pstore resume ~/Vault --undo"))
@click.argument("dir", type=PATH)
@click.option("--accept", is_flag=True, help="Yes, those files were meant to go.")
@click.option("--undo", is_flag=True, help="Bring the placeholders back.")
@pass_shell
def resume(shell: Shell, dir: str, accept: bool, undo: bool) -> int:
    """Go on with DIR. After a mass change say whether it is meant (--accept) or not (--undo)."""
    chosen = _one_of({"--accept": accept, "--undo": undo})
    how = None if chosen is None else chosen.removeprefix("--")
    with shell.waiting("The node goes on with it; p2pstore status") as meter:
        done = shell.node().call("resume", meter, dir=dir, how=how)
    back = done.get("restored", 0) if isinstance(done, dict) else 0
    tail = f"; {plural(back, 'placeholder')} brought back" if back else ""
    shell.result(f"{show.path(dir)} goes on{tail}")
    return 0
