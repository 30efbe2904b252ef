"""Commands about single files: bring back, replace, free, read, look into."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from p2pstore.cli import show
from p2pstore.cli.params import BYTE_RANGE, DESTINATION, KEY_OR_PATH, PATH
from p2pstore.cli.shares import ask_password
from p2pstore.cli.shell import Shell, example, gravest, pass_shell, secret
from p2pstore.text import plural

NOT_FREED = 5


# -- many paths ------------------------------------------------------------------------------


def _many(shell: Shell, method: str, paths: Sequence[str], goes_on: str) -> dict[str, Any]:
    with shell.waiting(goes_on) as meter:
        done = shell.node().call(method, meter, paths=list(paths))
    return done if isinstance(done, dict) else {}


def _succeeded(done: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in done.get("results", []) if not one.get("error")]


@click.command(epilog=example("p2pstore hydrate ~/Vault/film.mkv.f ~/Vault/2024"))
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@pass_shell
def hydrate(shell: Shell, paths: tuple[str, ...]) -> int:
    """Bring originals back: of files or of everything below folders."""
    goes_on = "The node goes on hydrating; to undo it: p2pstore dehydrate PATH"
    done = _many(shell, "hydrate", paths, goes_on)
    code = shell.failures(done.get("results", []))
    _tell_back(shell, done)
    return code


MOST_NAMED = 20  # a tree that came back is told by its size alone


def _tell_back(shell: Shell, done: Mapping[str, Any]) -> None:
    back = _succeeded(done)
    for one in back if len(back) <= MOST_NAMED else ():
        if one.get("to"):
            shell.result(show.name(one["to"]))
    size = sum(one.get("bytes") or 0 for one in back)
    if back:
        shell.say(f"{show.size(size)} brought back")


@click.command(epilog=example("p2pstore dehydrate ~/Vault/film.mkv"))
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@pass_shell
def dehydrate(shell: Shell, paths: tuple[str, ...]) -> int:
    """Replace files by their .f placeholders now, without waiting for them to be at rest long."""
    goes_on = "The node goes on replacing; to undo it: p2pstore hydrate PATH"
    done = _many(shell, "dehydrate", paths, goes_on)
    code = shell.failures(done.get("results", []))
    for one in _succeeded(done):
        if one.get("to"):
            shell.result(show.name(one["to"]))
    shell.say(
        _replaced(done) or ("Nothing was replaced." if code else "Nothing was left to replace.")
    )
    return code


def _replaced(done: Mapping[str, Any]) -> str:
    """What this call replaced; empty when that is nothing."""
    size = done.get("replaced_bytes", 0)
    return f"{show.size(size)} replaced" if size or done.get("replaced_files") else ""


@click.command("free-up", epilog=example("p2pstore free-up ~/Vault"))
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@pass_shell
def free_up(shell: Shell, paths: tuple[str, ...]) -> int:
    """Replace files now and drop the local copies that enough other nodes hold.

    Exit 0 when all that was asked for came free, else 5 with the reasons.
    """
    goes_on = "The node goes on freeing room; to undo it: p2pstore hydrate PATH"
    done = _many(shell, "free_up", paths, goes_on)
    code = shell.failures(done.get("results", []))
    return _tell_freed(shell, done, code, nothing="Nothing was left to replace or to free.")


def _tell_freed(shell: Shell, done: Mapping[str, Any], code: int, *, nothing: str) -> int:
    """Say what this call did, and what waits; `code` is that of what failed."""
    replaced, freed = _replaced(done), done.get("freed_bytes", 0)
    waiting = done.get("waiting") or []
    if left := done.get("leftover_bytes"):
        shell.say(f"{show.size(left)} that no file needs any more go by themselves, in time.")
    said = f"{replaced}; {show.size(freed)} freed" if replaced else f"{show.size(freed)} freed"
    if not waiting:
        nothing = "Nothing was freed." if code else nothing
        shell.result(said if replaced or freed else nothing)
        return code
    if len(waiting) == 1:
        shell.result(f"{said} yet: {show.name(waiting[0]['reason'])}")
        return gravest([code, NOT_FREED])
    shell.result(f"{said} yet; the rest stays:")
    rows = [
        [f"  {show.size(one.get('bytes', 0))}", show.name(one.get("reason", ""))] for one in waiting
    ]
    for line in show.table(rows, right=frozenset({0})):
        shell.result(line)
    return gravest([code, NOT_FREED])


@click.command(epilog=example("p2pstore pin ~/Vault/current-project"))
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@pass_shell
def pin(shell: Shell, paths: tuple[str, ...]) -> int:
    """Hydrate now and keep the originals here; they are stored all the same."""
    done = _many(shell, "pin", paths, "The node goes on hydrating; to undo: p2pstore unpin PATH")
    code = shell.failures(done.get("results", []))
    _tell_back(shell, done)
    return code


@click.command(epilog=example("p2pstore unpin ~/Vault/current-project"))
@click.argument("paths", metavar="PATH...", type=PATH, nargs=-1, required=True)
@pass_shell
def unpin(shell: Shell, paths: tuple[str, ...]) -> int:
    """Undo `pin`: the files are replaced again a day (`keep`) after their last use."""
    done = _many(shell, "unpin", paths, "")
    return shell.failures(done.get("results", []))


@click.command(epilog=example("p2pstore evict --why ~/Vault"))
@click.argument("paths", metavar="[PATH...]", type=PATH, nargs=-1)
@click.option("--why", is_flag=True, help="Drop nothing; say what is missing for each bundle.")
@pass_shell
def evict(shell: Shell, paths: tuple[str, ...], why: bool) -> int:
    """Drop local bundles that enough proven holders hold; without PATH: those of all files.

    Exit 0 when all that was asked for came free, else 5 with the reasons.
    """
    if why:
        return _tell_why(shell, shell.node().call("evict_why", paths=list(paths)))
    done = _many(shell, "evict", paths, "The node finishes what it began; p2pstore status")
    code = shell.failures(done.get("results", []))
    return _tell_freed(shell, done, code, nothing="Nothing was left to free.")


def _tell_why(shell: Shell, answer: Mapping[str, Any]) -> int:
    shell.result(f"{show.size(answer.get('evictable_bytes', 0))} could be freed now")
    for bundle in answer.get("bundles", []):
        missing = "; ".join(show.name(reason) for reason in bundle.get("missing", []))
        name = str(bundle.get("bundle", ""))[:12]
        size = show.size(bundle.get("bytes", 0))
        shell.result(f"{name}  {size:>8}  {missing or 'can go'}")
        for path in bundle.get("files", [])[:3]:
            shell.result(f"    {show.path(path)}")
    return 0


# -- one file --------------------------------------------------------------------------------


@click.command("open", epilog=example("p2pstore open ~/Vault/film.mkv.f"))
@click.argument("file", metavar="FILE.f", type=PATH)
@click.option("--print", "only_print", is_flag=True, help="Open nothing; print the path.")
@pass_shell
def open_(shell: Shell, file: str, only_print: bool) -> int:
    """Bring an original back and open it with the desktop's program."""
    from p2pstore.cli import opener

    return opener.open_original(shell, file, only_print=only_print)


@click.command(epilog=example("p2pstore cat ~/Vault/film.mkv.f --range 0-99 | xxd"))
@click.argument("file", metavar="FILE.f|PATH|KEY", type=KEY_OR_PATH)
@click.option("--range", "span", type=BYTE_RANGE, help="Byte offsets, both inclusive; A- to end.")
@click.option("--password", "has_password", is_flag=True, help="Asks for the password of a KEY.")
@pass_shell
def cat(shell: Shell, file: str, span: tuple[int, int | None] | None, has_password: bool) -> int:
    """Write a file's content to standard output, without bringing the original back.

    KEY is that of a file that somebody shared (- reads it from standard input).
    """
    start, end = span or (0, None)
    out = sys.stdout.buffer
    file = secret(file)
    password = ask_password(has_password)
    with shell.any_node() as node:
        for piece in node.cat(file, start, end, password=password):
            out.write(piece)
    out.flush()
    return 0


@click.command(epilog=example("p2pstore inspect ~/Vault/film.mkv.f"))
@click.argument("file", metavar="FILE.f", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def inspect(shell: Shell, file: str, as_json: bool) -> int:
    """Say what the manifest says: name, size, blocks, bundles, device, signature."""
    with shell.any_node() as node:
        said = node.call("inspect", path=file)
    if as_json:
        shell.json(said)
        return 0
    for label, value in _inspect_rows(said):
        shell.result(f"{label:<10} {value}")
    return 0


def _inspect_rows(said: Mapping[str, Any]) -> list[tuple[str, str]]:
    bundles = said.get("bundles") or []
    rows = [
        ("name", show.name(said.get("name", ""))),
        ("size", f"{show.size(said.get('size', 0))} ({said.get('size', 0):,} bytes)"),
    ]
    if said.get("mtime"):
        rows.append(("changed", show.moment(said["mtime"], time.time())))
    if said.get("mode") is not None:
        rows.append(("mode", f"{said['mode'] & 0o7777:04o}"))
    rows += [
        ("blocks", f"{said.get('blocks', 0):,} in {plural(len(bundles), 'bundle')}"),
        ("bundles", " ".join(str(one)[:12] for one in bundles[:8])),
        ("hash", str(said.get("hash", ""))),
        ("device", show.name(said.get("device", ""))),
        ("signature", show.name(said.get("signature", ""))),
    ]
    if said.get("copies") is not None:
        rows.append(("copies", show.copies(said["copies"])))
    return rows


@click.command(epilog=example("p2pstore restore ~/Vault/film.mkv.f --to /media/usb/"))
@click.argument("path", type=PATH)
@click.option("--to", metavar="DEST", required=True, type=DESTINATION, help="A new file or folder.")
@pass_shell
def restore(shell: Shell, path: str, to: str) -> int:
    """Write a copy elsewhere, touching nothing; never overwrites."""
    with shell.waiting("The node goes on writing; remove the copy if you do not want it.") as meter:
        done = shell.node().call("restore", meter, path=path, to=to)
    shell.result(f"{show.name(done.get('path', to))}   {show.size(done.get('bytes', 0))}")
    return 0


@click.command(epilog=example("p2pstore undelete ~/Vault/film.mkv"))
@click.argument("path", type=PATH)
@pass_shell
def undelete(shell: Shell, path: str) -> int:
    """Bring the placeholder of a deleted file back; deleted files are kept for 30 days.

    Of a directory: those of all that was deleted below it.
    """
    done = shell.node().call("undelete", path=path)
    code = shell.failures(done.get("results", []))
    for one in _succeeded(done):
        shell.result(show.name(one["to"]))
    return code
