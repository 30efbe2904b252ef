"""recover: everything back from the 24 words."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from p2pstore.cli import show
from p2pstore.cli.params import DURATION, PATH
from p2pstore.cli.process import start_logging
from p2pstore.cli.shell import Shell, example, pass_shell
from p2pstore.cli.words import ask_words
from p2pstore.errors import UsageError


@click.command(
    epilog=example(
        "p2pstore recover --bootstrap 192.168.1.5:8080", "p2pstore recover --to /media/usb - < note"
    )
)
@click.argument("given", metavar="[-]", required=False)
@click.option("--bootstrap", metavar="HOST:PORT", multiple=True, help="A node that may know.")
@click.option("--to", metavar="DIR", type=PATH, help="Folders below DIR, not where they were.")
@click.option("--placeholders", is_flag=True, help="Bring the .f files back, no originals.")
@click.option("--wait", type=DURATION, default="60s", show_default=True, help="For an answer.")
@click.option("--name", help="What this node is called; default: the host's name.")
@pass_shell
def recover(
    shell: Shell,
    given: str | None,
    bootstrap: tuple[str, ...],
    to: str | None,
    placeholders: bool,
    wait: float,
    name: str | None,
) -> int:
    """Bring everything back from the 24 recovery words, into a HOME that is new.

    Asks for the words (`-` reads them from standard input), finds who keeps copies, brings back
    group, folders, every .f, and then every file. Stop it when you like, and type it again.
    """
    if given not in (None, "-"):
        raise UsageError("Arguments are public: type the words when asked, or give - and a pipe.")
    from p2pstore import config, node

    wishes = node.Wishes(
        name=name,
        bootstrap=tuple(config.parse_address(text) for text in bootstrap),
        to=Path(to) if to else None,
        patience_s=wait,
        placeholders_only=placeholders,
    )
    settings = config.load(shell.home, os.environ, {})
    start_logging(shell, quiet=True)

    def words() -> str:
        if given == "-" or not sys.stdin.isatty():
            return sys.stdin.read()
        return ask_words(shell)

    if shell.running() is not None:
        raise UsageError(f"A node runs on {show.path(shell.home)}; recover into a new --home.")
    with shell.waiting("What came back stays; to go on: p2pstore recover") as meter:
        done = node.recover(settings, shell.home, words, wishes, meter)
    what = "placeholders are back" if placeholders else "is back"
    for folder in done["folders"]:
        counted = f"{show.files(folder['files'])}, {show.size(folder['bytes'])}"
        shell.result(f"{show.path(folder['path'])} {what} ({counted}){_as_of(folder)}.")
    for folder in done["left"]:
        owner, title = show.name(folder["device"]), show.name(folder["name"])
        shell.say(f"{title} is on {owner} itself and was left to it.")
    if not done["folders"] and not done["left"]:
        shell.say("The group is back; it has no folders that a holder knows of.")
    shell.say("Start the node: p2pstore service install (always) or p2pstore run (now)")
    return shell.failures(done["failed"])


def _as_of(folder: dict[str, Any]) -> str:
    """Who did not answer may know of something newer: the user sees how old this is."""
    then = folder["as_of"]
    return "" if then is None else f", as of {show.moment(then, time.time())}"
