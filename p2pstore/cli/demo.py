"""`p2pstore demo`: the main job before one's eyes, with three real nodes on this machine.

A folder becomes `.f` files, copies of it go to two other nodes, the first frees its room, loses its
catalog, makes it anew, and brings everything back. Every file is compared with what it was before;
only when all are the same does the demo end with 0. At last one file goes to somebody of another
group by its key, and to a host of pictures. Every line with a `$` is a command that is run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click

from p2pstore.cli import show
from p2pstore.cli.progress import Meter
from p2pstore.cli.stage import (
    DemoFailed,
    Member,
    PictureHost,
    Print,
    Prints,
    find_place,
    make_folder,
    prints_of,
    until,
)
from p2pstore.content import Kind

BIG = 200_000_000
META_SHARE = 0.03  # of the folder: what stays of it after everything was freed
COPIES_S = 60.0
TRASH_S = 15.0
REBUILD_S = 30.0
OPEN_S = 10.0
QUIET = ("init", "join", "upload", "download")
CHOSEN = "this.py"  # the placeholder that is simply read

REAL_USE = """\
p2pstore service install             the node, now and after every start of this computer
p2pstore add-folder ~/Vault          its files become .f; open one and the original is back
p2pstore invite                      prints a link; on the other computer:  p2pstore join LINK
p2pstore free-up ~/Vault             when two others hold everything: the room is yours
p2pstore status                      is it safe, how many copies, what is missing?
p2pstore upload FILE                 prints a key; whoever has it:  p2pstore download KEY"""


def main(
    keep: bool, *, place: Path | None = None, library: Path | None = None, big: int = BIG
) -> int:
    """Play it; 0 only if every file came back as it was. Smaller ones are for tests."""
    with _interruptible(), _base(place or find_place(), keep) as base:
        demo = Demo(base)
        try:
            demo.play(library, big)
        finally:
            demo.end(gently=keep)
    return 0


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """A closed terminal or a `kill` ends the demo as Ctrl-C does."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _base(place: Path, keep: bool) -> Iterator[Path]:
    base = Path(tempfile.mkdtemp(prefix="p2pstore-demo-", dir=place))
    try:
        yield base
    finally:
        if keep:
            click.echo(f"\nThe homes and the folder are in {base}. Start a node of them with:")
            click.echo(f"  p2pstore --home {show.argument(base / 'laptop')} run")
        else:
            with _uninterrupted():
                shutil.rmtree(base, ignore_errors=True)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second Ctrl-C must not leave nodes or a gigabyte behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Facts:
    """What the last screen tells; bytes and seconds."""

    before: Prints = field(default_factory=dict)
    stored: int = 0
    replaced_s: float = 0.0
    copied: int = 0
    copied_s: float = 0.0
    freed: int = 0
    stays: int = 0
    rebuilt_s: float = 0.0
    opened_s: float = 0.0
    hydrated: int = 0
    hydrated_s: float = 0.0

    @property
    def size(self) -> int:
        return sum(one.size for one in self.before.values())


class Demo:
    def __init__(self, base: Path) -> None:
        self._base = base
        self._vault = base / "Vault"
        self._began = time.monotonic()
        network = f"demo-{base.name[-8:]}"
        names = ("laptop", "nas", "desktop")
        self._members = [Member(base, name, network) for name in names]
        self._laptop, *self._others = self._members
        self._guest = Member(base, "guest", network)
        self._members.append(self._guest)
        self._host = PictureHost(base)
        self._facts = Facts()
        self._number = 0

    def play(self, library: Path | None, big: int) -> None:
        click.echo(f"Three nodes on this machine, each with a home of its own in {self._base}")
        self._join()
        self._fill(library, big)
        self._replace()
        self._copy()
        self._free()
        self._lose_and_rebuild()
        self._open_one()
        self._hydrate()
        self._compare()
        self._give_away()
        self._tell()

    def end(self, *, gently: bool) -> None:
        """End every process: with a word when the homes are kept, else at once."""
        with _uninterrupted():
            self._host.end()
            for member in self._members if gently else ():
                member.tell_end()
            for member in self._members:
                try:
                    if gently:
                        member.wait_end()
                except DemoFailed as exc:
                    click.echo(str(exc), err=True)
                finally:
                    member.kill()

    # -- the steps --------------------------------------------------------------------------------

    def _join(self) -> None:
        self._step("Three nodes, joined by invitation")
        self._run(self._laptop, "init", "--name", "laptop", "--yes", show_result=False)
        self._note("a new group; its 24 words, printed here, can bring everything back")
        self._laptop.start()
        self._laptop.wait_started()
        for other in self._others:
            link = self._run(self._laptop, "invite", "--yes")
            self._run(other, "join", "-", "--name", other.name, given=link)
            other.start()
        for other in self._others:
            other.wait_started()
        until("the three nodes are connected", self._all_connected, COPIES_S)
        names = [member.name for member in (self._laptop, *self._others)]
        self._say(f"{', '.join(names)} are connected")

    def _all_connected(self) -> bool | None:
        peers = self._laptop.node.call("peers")["peers"]
        return sum(peer["connected"] for peer in peers) == len(self._others) or None

    def _fill(self, library: Path | None, big: int) -> None:
        self._step("A folder: Python's standard library, and one large file cut from a tar")
        self._facts.before = make_folder(self._vault, big=big, library=library)
        size = show.size(self._facts.size)
        self._say(f"Vault: {show.files(len(self._facts.before))}, {size}; SHA-256 of each noted")

    def _replace(self) -> None:
        self._step("Every file becomes a .f")
        began = time.monotonic()
        self._run(self._laptop, "add-folder", "Vault", "--yes", "--wait")
        self._facts.replaced_s = time.monotonic() - began
        left = [path for path in self._facts.before if (self._vault / path).exists()]
        if left:
            raise DemoFailed(f"{show.files(len(left))} did not become .f, among them {left[0]}.")
        name = self._chosen()
        size = (self._vault / f"{name}.f").stat().st_size
        self._say(f"{name} is now {name}.f, {size:,} bytes, and says (to read it would open it):")
        self._run(self._laptop, "inspect", f"Vault/{name}.f")

    def _chosen(self) -> str:
        names = self._facts.before
        return next((path for path in names if Path(path).name == CHOSEN), next(iter(names)))

    def _copy(self) -> None:
        self._step("Receipts come in: the others prove that they hold every byte")
        began = time.monotonic()
        with Meter() as meter:
            until("two others hold every file", lambda: self._is_safe(meter), COPIES_S)
        self._facts.copied_s = time.monotonic() - began
        self._facts.copied = sum(other.held_bytes() for other in self._others)
        self._facts.stored = sum(self._laptop.store_bytes().values())
        self._run(self._laptop, "peers")

    def _is_safe(self, meter: Meter) -> bool | None:
        (folder,) = self._laptop.node.call("status", paths=[])["folders"]
        safe = folder["safe"]["files"]
        meter(
            {
                "stage": "push",
                "files": safe,
                "files_total": len(self._facts.before),
                "bytes": folder["safe"]["bytes"],
                "bytes_total": self._facts.size,
            }
        )
        return safe >= len(self._facts.before) or None

    def _free(self) -> None:
        self._step("The laptop frees its room")
        before = self._laptop.store_bytes()[Kind.DATA]
        self._run(self._laptop, "free-up", "Vault")
        until("the laptop's trash is empty", self._trash_is_empty, TRASH_S)
        kinds = self._laptop.store_bytes()
        self._facts.freed, self._facts.stays = before - kinds[Kind.DATA], kinds[Kind.META]
        share = self._facts.stays / self._facts.size
        self._say("trash of the folder and of the store: empty")
        self._say(
            f"bundles of data: {show.size(kinds[Kind.DATA])}; "
            f"of manifests and lists: {show.size(kinds[Kind.META])}, {share:.1%} of the folder"
        )
        if kinds[Kind.DATA] or share > META_SHARE:
            raise DemoFailed(f"More than manifests and lists ({META_SHARE:.0%}) stayed.")
        self._run(self._laptop, "status")

    def _trash_is_empty(self) -> bool | None:
        places = (self._vault / ".p2pstore" / "trash", self._laptop.home / "bundles" / "trash")
        return not any(names for place in places for _, _, names in os.walk(place)) or None

    def _lose_and_rebuild(self) -> None:
        self._step("The laptop is stopped and loses its catalog")
        self._laptop.tell_end()
        self._laptop.wait_end()
        self._say(f"removed: {', '.join(self._laptop.lose_catalog())}")
        began = time.monotonic()
        self._laptop.start()
        self._laptop.wait_started()
        until("every placeholder is known again", self._is_known, REBUILD_S)
        self._facts.rebuilt_s = time.monotonic() - began
        known = show.files(len(self._facts.before))
        self._say(f"started again: {known} known again after {self._facts.rebuilt_s:.1f} s")
        until("the others told what they hold", self._is_compared, REBUILD_S)
        self._say(f"after {time.monotonic() - began:.1f} s the others have told what they hold")

    def _is_known(self) -> bool | None:
        (folder,) = self._laptop.node.call("status", paths=[])["folders"]
        return folder["placeholders"] == len(self._facts.before) or None

    def _is_compared(self) -> bool | None:
        return not self._laptop.node.call("status", paths=[])["node"]["rebuilding"] or None

    def _open_one(self) -> None:
        self._step("A .f is simply read, and the original is back")
        name = self._chosen()
        original = self._vault / name
        self._note(f'open("Vault/{name}.f").read()')
        began = time.monotonic()
        (self._vault / f"{name}.f").read_bytes()
        until(f"{name} is back", lambda: original.exists() or None, OPEN_S)
        self._facts.opened_s = time.monotonic() - began
        self._say(f"after {self._facts.opened_s:.1f} s there is {original.name} again")

    def _hydrate(self) -> None:
        self._step("Everything comes back from the others")
        before = sum(path.stat().st_size for path in self._originals())
        began = time.monotonic()
        self._run(self._laptop, "hydrate", "Vault")
        self._facts.hydrated_s = time.monotonic() - began
        self._facts.hydrated = sum(path.stat().st_size for path in self._originals()) - before

    def _originals(self) -> Iterator[Path]:
        return (path for name in self._facts.before if (path := self._vault / name).exists())

    def _compare(self) -> None:
        self._step("Every file is compared with what it was")
        wrong = differences(self._facts.before, prints_of(self._vault))
        for line in wrong[:20]:
            self._say(show.name(line))
        if wrong:
            raise DemoFailed(f"{show.files(len(wrong))} came back otherwise than they were.")
        matched = f"{show.files(len(self._facts.before))}: every hash, size, time and mode matches"
        self._say(click.style(matched, fg="green", bold=True))

    def _give_away(self) -> None:
        self._step("One file for somebody of another group, by its key")
        name = self._chosen()
        self._run(self._guest, "init", "--name", "guest", "--yes", show_result=False)
        self._guest.start()
        self._guest.wait_started()
        key = self._run(self._laptop, "upload", f"Vault/{name}")
        self._run(self._guest, "download", "-", "by-key", given=key)
        self._note("and as pictures, on a host that knows nothing of all this")
        self._run(self._laptop, "carriers", "add", "pictures", "png", self._host.start())
        key = self._run(self._laptop, "upload", "--carrier", "pictures", f"Vault/{name}")
        self._run(self._laptop, "download", "--carrier", "pictures", "-", "as-pictures", given=key)
        expected = (self._vault / name).read_bytes()
        if any((self._base / got).read_bytes() != expected for got in ("by-key", "as-pictures")):
            raise DemoFailed("The file that was given away is not what it was.")
        self._say(f"{self._host.count()} pictures there; both came back as they were")

    # -- talking ----------------------------------------------------------------------------------

    def _tell(self) -> None:
        facts = self._facts
        count, size = len(facts.before), facts.size
        rows = [
            ["stored", f"{show.size(size)} in {show.size(facts.stored)}, compressed and sealed"],
            ["replaced", f"{show.files(count)} in {_speed(size, facts.replaced_s, count)}, "
             "a second of rest included"],
            ["moved", f"{show.size(facts.copied)} to two nodes, all receipts "
             f"{facts.copied_s:.1f} s after the last file was replaced"],
            ["freed", f"{show.size(facts.freed)}; {show.size(facts.stays)} of manifests stay"],
            ["rebuilt", f"the catalog in {facts.rebuilt_s:.1f} s"],
            ["opened", f"one .f in {facts.opened_s:.1f} s"],
            ["hydrated", f"{show.size(facts.hydrated)} in "
             f"{_speed(facts.hydrated, facts.hydrated_s)}"],
            ["all in all", f"{time.monotonic() - self._began:.0f} s"],
        ]  # fmt: skip
        click.echo()
        for label, words in rows:
            click.echo(f"   {label:<11} {words}")
        click.secho("\nIn earnest:", bold=True)
        for line in REAL_USE.splitlines():
            click.echo(f"   {line}")

    def _step(self, title: str) -> None:
        self._number += 1
        click.secho(f"\n{self._number}. {title}", bold=True)

    def _say(self, line: str) -> None:
        click.echo(f"   {line}")

    def _note(self, line: str) -> None:
        click.secho(f"   {line}", dim=True)

    def _run(self, member: Member, *words: str, given: str = "", show_result: bool = True) -> str:
        what = "LINK" if words[0] == "join" else "KEY"
        typed = f"{f'echo {what} | ' if given else ''}p2pstore {' '.join(words)}"
        prompt = click.style(f"{member.name}$", fg="cyan")
        click.echo(f"   {prompt} {typed}")
        said = member.command(*words, given=given, quiet=words[0] in QUIET)
        for line in said.splitlines() if show_result else ():
            self._say(line)
        return said


def _speed(size: int, seconds: float, count: int = 0) -> str:
    files = f"{count / seconds:,.0f} files/s, " if count else ""
    return f"{seconds:.1f} s ({files}{show.size(size / seconds)}/s)"


def differences(before: Mapping[str, Print], after: Mapping[str, Print]) -> list[str]:
    """One sentence for each path that is not as it was."""
    lines: list[str] = []
    for path in sorted({*before, *after}):
        was, came = before.get(path), after.get(path)
        if was is None:
            lines.append(f"{path} was not there before")
        elif came is None:
            lines.append(f"{path} is missing")
        elif was != came:
            fields: dict[str, Any] = was._asdict()
            other = [name for name, value in fields.items() if value != getattr(came, name)]
            lines.append(f"{path} has another {' and '.join(other)}")
    return lines
