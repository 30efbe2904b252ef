"""init and run: the commands that begin a node."""

from __future__ import annotations

import logging
import os
import secrets
import sys
import time
from typing import Any

import click

from p2pstore.cli import show
from p2pstore.cli.shell import Shell, example, pass_shell
from p2pstore.errors import P2PStoreError

TRIES = 3


@click.command(epilog=example("p2pstore init --name laptop"))
@click.option("--name", help="What this node is called; default: the host's name.")
@click.option("--yes", is_flag=True, help="No questions; the words count as confirmed.")
@pass_shell
def init(shell: Shell, name: str | None, yes: bool) -> int:
    """Make a new node and group.

    Prints 24 words once: with them alone every file can be recovered, and without them and without
    another device of the group a lost computer means lost files. Write them on paper.
    """
    from p2pstore import config, node

    chosen = name or config.load(shell.home, os.environ, {}).name or None
    words = node.init_home(shell.home, chosen, now=time.time())
    shell.say(f"A new node in {show.path(shell.home)}. Its 24 recovery words:\n")
    # On a pipe the words are the result: on one line, so that a script can keep them.
    shell.result("\n".join(_columns(words)) if sys.stdout.isatty() else words)
    shell.say("\nWrite them on paper now. Whoever has them has all your files.")
    if yes or (shell.asks and _knows_two(shell, words.split())):
        node.confirm_words(shell.home, words)
        shell.say("Start the node: p2pstore service install (always) or p2pstore run (now)")
    else:
        shell.say("They stay unconfirmed, and no room is freed, until: p2pstore words confirm")
    return 0


def _columns(words: str) -> list[str]:
    numbered = [f"{place:2}. {word}" for place, word in enumerate(words.split(), 1)]
    rows = len(numbered) // 4
    return show.table([numbered[row::rows] for row in range(rows)])


def _knows_two(shell: Shell, words: list[str]) -> bool:
    """Ask for two of the words; whoever wrote them down can tell."""
    places = sorted(secrets.SystemRandom().sample(range(len(words)), 2))
    for place in places:
        for _ in range(TRIES):
            if click.prompt(f"Word {place + 1}", err=True).strip().lower() == words[place]:
                break
            shell.say("That is another word; look at your note again.")
        else:
            return False
    return True


@click.command(epilog=example("p2pstore run --listen 0.0.0.0:8080 --ui 127.0.0.1:8081"))
@click.option("--listen", metavar="HOST:PORT", help="Peers' port, TCP and UDP; 0: any free one.")
@click.option("--ui", metavar="HOST:PORT|off", help="The status page; takes the next free port.")
@click.option("--bootstrap", metavar="HOST:PORT", multiple=True, help="A node to begin with.")
@click.option("--no-mdns", is_flag=True, help="Do not look for nodes in the local network.")
@click.option("--no-port-map", is_flag=True, help="Do not ask the router to open the peers' port.")
@click.option("--offer", metavar="SIZE", help="Room lent to the group's other nodes.")
@click.option("--network", metavar="NAME", help="Nodes of one network share a DHT.")
@pass_shell
def run(
    shell: Shell,
    listen: str | None,
    ui: str | None,
    bootstrap: tuple[str, ...],
    no_mdns: bool,
    no_port_map: bool,
    offer: str | None,
    network: str | None,
) -> int:
    """Run the node in the foreground, until Ctrl-C or SIGTERM.

    In an empty HOME it makes a new node first and says where the recovery words are. Every option
    is also a key of HOME/config.toml and a variable: P2PSTORE_LISTEN=0.0.0.0:8080.
    """
    from p2pstore import config

    given: dict[str, Any] = {
        "listen": listen,
        "ui": ui,
        "bootstrap": list(bootstrap) or None,
        "mdns": False if no_mdns else None,
        "port_map": False if no_port_map else None,
        "offer": offer,
        "network": network,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    settings = config.load(shell.home, os.environ, overrides)
    start_logging(shell)
    if shell.run_node is None:
        raise P2PStoreError("This command line was started without a node; use python -m p2pstore.")
    return shell.run_node(settings, shell.home)


def start_logging(shell: Shell, *, quiet: bool = False) -> None:
    """What a node says goes to stderr; `quiet`: little, beside a command's own words."""
    usual = logging.ERROR if quiet else logging.WARNING if shell.quiet else logging.INFO
    level = logging.DEBUG if shell.verbose else usual
    # journald adds the time itself.
    journal = "JOURNAL_STREAM" in os.environ
    form = "%(message)s" if journal else "%(asctime)s %(message)s"
    logging.basicConfig(stream=sys.stderr, level=level, format=form, datefmt="%H:%M:%S")
    if not shell.verbose:
        for chatty in ("aiohttp", "asyncio", "kademlia", "rpcudp", "watchfiles", "zeroconf"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
