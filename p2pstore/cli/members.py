"""Commands about people and machines: invite, join, peers, words, leave."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import click

from p2pstore.cli import show
from p2pstore.cli.client import Node
from p2pstore.cli.params import PATH, SIZE
from p2pstore.cli.qr import show_qr
from p2pstore.cli.shell import INTERRUPTED, Shell, example, pass_shell, secret
from p2pstore.cli.status import is_holder, peer_rows
from p2pstore.errors import P2PStoreError, UsageError

NOT_NOW = 5
FRIENDS_PART = " --offer 100GB"
WHAT_FOLLOWS = {
    "device": "The new device will read all your files.",
    "friend": "The friend will keep copies of your files, and can read none of them.",
}


@click.command(epilog=example("p2pstore invite", "p2pstore invite --yes | ssh nas p2pstore join -"))
@click.option(
    "--role",
    type=click.Choice(["device", "friend"]),
    default="device",
    show_default=True,
    help="device: one of your own computers; it will read all your files. "
    "friend: keeps copies, and reads nothing of them.",
)
@click.option("--yes", is_flag=True, help="No confirmation: print the link alone and return.")
@pass_shell
def invite(shell: Shell, role: str, yes: bool) -> int:
    """Let another node in: prints a link that works once, for ten minutes.

    When the other computer uses it, both show the same fingerprint words, and you confirm them.
    """
    node = shell.node()
    invitation = node.call("invite", role=role, confirm=not yes)
    link = str(invitation["link"])
    if not yes and sys.stdout.isatty():
        show_qr(link)  # above the link, which a small window must not scroll away
    shell.result(link)
    sys.stdout.flush()
    if yes:
        return 0
    with _taken_back(shell, node, invitation.get("invite")), shell.meter() as meter:
        shell.say(
            f"\nOn the other computer, within {show.span(invitation.get('expires_s', 600))}:  "
            f"p2pstore join LINK{FRIENDS_PART if role == 'friend' else ''}\n"
            f"{WHAT_FOLLOWS[role]} Waiting for it ..."
        )
        joiner = node.call("wait_invite", meter, invite=invitation.get("invite"))
    name = show.name(joiner.get("name", ""))
    shell.say(f"{name} knocks. Its screen must show:  {show.name(joiner.get('fingerprint', ''))}")
    try:
        accept = click.confirm("The same words?", default=False, err=True)
    except click.Abort:
        # No answer is a no, and the other side must not wait for one.
        accept = False
        shell.say("")
    done = node.call("confirm_invite", invite=invitation.get("invite"), accept=accept)
    if not accept:
        shell.fail("Refused. The invitation is used up; for a new one: p2pstore invite")
        return 1
    shell.result(f"{show.name(done.get('name', name))} is in.")
    return 0


@contextlib.contextmanager
def _taken_back(shell: Shell, node: Node, invite: str) -> Iterator[None]:
    """Ctrl-C takes the link back: nobody would be there to confirm who uses it."""
    try:
        yield
    except KeyboardInterrupt:
        node.call("withdraw_invite", invite=invite)
        shell.fail("\nThe invitation is taken back; for a new one: p2pstore invite")
        raise click.exceptions.Exit(INTERRUPTED) from None


@click.command(epilog=example("p2pstore join p2ps://192.168.1.5:8080/...#...", "p2pstore join -"))
@click.argument("link")
@click.option("--offer", type=SIZE, help="Room that this node lends to the group.")
@click.option("--name", help="What this node is called; default: the host's name.")
@pass_shell
def join(shell: Shell, link: str, offer: int | None, name: str | None) -> int:
    """Join a group with an invitation LINK (- reads it from standard input).

    Works before the first run, and while the node runs and has protected nothing yet. A link for a
    friend works at any time: you keep your own group, and lend room with --offer.
    """
    from p2pstore.wire import parse_link

    link = secret(link)
    parse_link(link)  # before a mistake in it makes a HOME
    goes_on = "If the other side confirms now, this node is in; p2pstore peers"
    with shell.any_node(may_be_new=True) as node, shell.waiting(goes_on) as meter:
        done = node.call("join", meter, link=link, offer=offer, name=name)
    group = show.short_id(done.get("group", ""))
    name = show.name(done.get("name", ""))
    if done.get("role") == "friend":
        whose = show.name(done.get("inviter", ""))
        shell.result(f"A friend of group {group} ({whose}) as {name}; your own group stays yours.")
    else:
        shell.result(f"Joined group {group} as {name}.")
    if shell.running() is None:
        shell.say("Start the node: p2pstore service install (always) or p2pstore run (now)")
    return 0


@click.command(epilog=example("p2pstore peers --json"))
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@pass_shell
def peers(shell: Shell, as_json: bool) -> int:
    """List the other nodes: who is connected, since when, what is stored with whom."""
    said = shell.node().call("peers")
    if as_json:
        shell.json(said)
        return 0
    known, now = said.get("peers", []), time.time()
    for line in show.table(peer_rows(known, now, since=True)):
        shell.result(line)
    if not any(is_holder(peer) for peer in known):
        shell.result("No other node holds copies for you yet: p2pstore invite")
    return 0


@click.command(epilog=example("p2pstore connect 192.168.1.5:8080"))
@click.argument("address", metavar="HOST:PORT")
@pass_shell
def connect(shell: Shell, address: str) -> int:
    """Connect to a node by its address."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise UsageError(f"{show.name(address)} is no HOST:PORT, as in 192.168.1.5:8080.")
    peer = shell.node().call("connect", address=address)
    name = show.name(peer.get("name") or show.short_id(peer.get("id", "")))
    shell.result(f"Connected to {name} ({show.name(peer.get('role', 'stranger'))}).")
    return 0


# -- leave -----------------------------------------------------------------------------------


@click.command(epilog=example("p2pstore leave", "p2pstore leave --to /media/usb/everything"))
@click.option("--to", metavar="DIR", type=PATH, help="Export everything there instead.")
@click.option("--yes", is_flag=True, help="No question; does not override what would lose files.")
@click.option("--cancel", is_flag=True, help="Stay after all, wherever a leave has come to.")
@pass_shell
def leave(shell: Shell, to: str | None, yes: bool, cancel: bool) -> int:
    """Bring everything back, verify it, say goodbye to the holders; then HOME may be deleted.

    What is kept here for others is first moved to other nodes by their owners. Interrupted, that
    goes on; "p2pstore leave" goes along with it, "p2pstore leave --cancel" ends it.
    """
    node = shell.node()
    if cancel:
        was_leaving = node.call("leave_cancel").get("was_leaving")
        shell.result("This node stays." if was_leaving else "This node was not leaving.")
        return 0
    if not yes and shell.asks:
        what = f"Export every file to {show.path(to)}" if to else "Bring every original back"
        if not click.confirm(f"{what} and stop using p2pstore here?", err=True):
            shell.say("Nothing was changed.")
            return 0
    goes_on = (
        "The node goes on leaving: p2pstore leave waits for its end, p2pstore leave --cancel "
        "lets it stay"
    )
    with shell.waiting(goes_on) as meter:
        done: dict[str, Any] = node.call("leave", meter, to=to, yes=yes)
    if not done.get("left"):
        shell.fail("Not finished yet:")
        for reason in done.get("reasons", []):
            shell.fail(f"  {show.name(reason)}")
        return NOT_NOW
    _remove_traces(shell)
    where = f" in {show.path(done['exported'])}" if done.get("exported") else ""
    counted = f"{show.files(done.get('files', 0))}, {show.size(done.get('bytes', 0))}"
    shell.result(f"Every file is back{where} and verified ({counted}).")
    shell.result(f"{show.path(done.get('home', shell.home))} may be deleted now.")
    shell.say("What is left in .p2pstore of each folder is its trash; it may go too.")
    return 0


def _remove_traces(shell: Shell) -> None:
    """Take the service and the desktop entries back; what was never installed is no error."""
    if shell.home_is_chosen:
        return  # those belong to the default HOME's node
    from p2pstore.cli import desktop, service

    for remove in (service.uninstall, desktop.remove):
        try:
            shell.say(remove())
        except P2PStoreError as exc:
            shell.say(str(exc))
