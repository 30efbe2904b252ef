"""Commands about shared files: upload, download, shares, unshare."""

from __future__ import annotations

import os
import sys
import time

import click

from p2pstore.cli import show
from p2pstore.cli.params import DESTINATION, DURATION, PATH
from p2pstore.cli.qr import show_qr
from p2pstore.cli.shell import Shell, example, gravest, pass_shell, secret
from p2pstore.errors import P2PStoreError, UsageError

SHOWN = 12  # letters of a key: enough to tell it from others, and the whole of it is a secret


def ask_password(wanted: bool, *, new: bool = False) -> str:
    """The password, from the terminal without showing it, else from a line of standard input."""
    if not wanted:
        return ""
    if sys.stdin.isatty():
        given = click.prompt("Password", hide_input=True, confirmation_prompt=new, err=True)
    else:
        given = sys.stdin.readline().rstrip("\n")
    if not given:
        raise UsageError("An empty password protects nothing.")
    return str(given)


@click.command(
    epilog=example(
        "p2pstore upload holiday.mp4",
        "p2pstore upload --expires 7d --password letter.pdf",
        "p2pstore -q upload notes.txt | qrencode -t utf8",
    )
)
@click.argument("file", metavar="FILE", type=PATH)
@click.option("--expires", metavar="D", type=DURATION, help="It ends by itself after that time.")
@click.option(
    "--once",
    is_flag=True,
    help="It ends when somebody has fetched all of it. It lies on this node alone, which has to "
    "run; whoever fetches at the same moment gets it too.",
)
@click.option(
    "--password",
    "has_password",
    is_flag=True,
    help="Asks for one, without which the key gives nothing (from a pipe: its first line). "
    "Choose a long one: who has the key may try many.",
)
@click.option("--carrier", metavar="NAME", help="Put it there, not in the swarm.")
@pass_shell
def upload(
    shell: Shell,
    file: str,
    expires: float | None,
    once: bool,
    has_password: bool,
    carrier: str | None,
) -> int:
    """Store one file and print the key with which anybody can download it.

    The key is the right to read this one file, and nothing else. Nodes that keep it check the time
    and the password; what somebody has downloaded, nobody can take back. At a carrier a file stays
    until somebody deletes it there.
    """
    password = ask_password(has_password, new=True)
    goes_on = "The node goes on; to take it back: p2pstore unshare KEY (see: p2pstore shares)"
    with shell.waiting(goes_on) as meter:
        done = shell.node().call(
            "upload",
            meter,
            path=file,
            expires=expires,
            once=once,
            password=password,
            carrier=carrier,
        )
    key = str(done["key"])
    if shell.quiet:
        shell.result(key)
        return 0
    if sys.stdout.isatty():
        show_qr(key)
    shell.result(f"YOUR DOWNLOAD KEY IS : {key}")
    where = f" --carrier {carrier}" if carrier else ""
    until = done.get("expires")
    ends = "" if until is None else f", until {show.moment(until, time.time())}"
    shell.say(
        f"{show.name(done.get('name', ''))}, {show.size(done.get('size', 0))}{ends}. "
        f"Who has the key gets it with:  p2pstore download KEY{where}"
    )
    return 0


@click.command(
    epilog=example(
        "p2pstore download p2p:aeaa... ~/Downloads/",
        "echo p2p:aeaa... | p2pstore download -",
    )
)
@click.argument("key")
@click.argument("dest", metavar="[DEST]", type=DESTINATION, required=False)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option(
    "--password",
    "has_password",
    is_flag=True,
    help="Asks for the password (from a pipe: a line, behind the key).",
)
@click.option("--carrier", metavar="NAME", help="Where an upload to a carrier lies.")
@pass_shell
def download(
    shell: Shell,
    key: str,
    dest: str | None,
    force: bool,
    has_password: bool,
    carrier: str | None,
) -> int:
    """Fetch the file that a KEY stands for (- reads it from standard input).

    DEST is a file or a directory; without it the file comes here, under its own name. Nothing is
    overwritten, and nothing appears there before all of it was verified.
    """
    key = secret(key)
    password = ask_password(has_password)
    target = dest or os.getcwd()
    with shell.waiting("The node goes on writing; remove the file if you do not want it.") as meter:
        done = shell.node().call(
            "download", meter, key=key, to=target, force=force, password=password, carrier=carrier
        )
    shell.result(f"{show.path(done.get('path', target))}   {show.size(done.get('size', 0))}")
    return 0


@click.command(epilog=example("p2pstore shares"))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def shares(shell: Shell, as_json: bool) -> int:
    """List what this node has uploaded: key, size, until when, on how many other nodes."""
    said = shell.node().call("shares")
    if as_json:
        shell.json(said)
        return 0
    for one in said.get("shares", []):
        ends = one.get("expires")
        until = "until taken back" if ends is None else f"until {show.moment(ends, time.time())}"
        how = [until]
        if one.get("once"):
            how.append("once, from here alone")
        else:
            how.append(show.copies(one.get("copies", 0)))
        if one.get("password"):
            how.append("with a password")
        shell.result(
            f"{show.name(one.get('name', ''))}   {show.size(one.get('size', 0))}   "
            f"{' · '.join(how)}\n  {one.get('key', '')}"
        )
    if not said.get("shares"):
        shell.say("Nothing is shared. To share a file:  p2pstore upload FILE")
    return 0


@click.command(epilog=example("p2pstore unshare p2p:aeaa..."))
@click.argument("keys", metavar="KEY...", nargs=-1, required=True)
@pass_shell
def unshare(shell: Shell, keys: tuple[str, ...]) -> int:
    """Take back what was uploaded: its KEY gives nothing any more (- reads it from a pipe).

    Nodes that cannot be reached now let it go when they are back. What somebody has downloaded
    stays with him.
    """
    node, codes = shell.node(), [0]
    for key in [secret(key) for key in keys]:
        try:
            done = node.call("unshare", key=key)
            shell.result(f"{show.name(done.get('name', ''))} is not shared any more.")
        except P2PStoreError as exc:
            shell.fail(f"{show.name(key[:SHOWN])}...: {exc}")
            codes.append(exc.exit_code)
    return gravest(codes)
