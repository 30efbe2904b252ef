"""Invitations, joining and connecting, as the control interface asks for them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from p2pstore.config import Config, parse_address, save
from p2pstore.errors import UsageError
from p2pstore.home import Home
from p2pstore.ids import NodeId
from p2pstore.keys import fingerprint
from p2pstore.members import (
    Group,
    KeptGroups,
    default_name,
    found,
    identity,
    is_begun,
    join,
    newcomer,
)
from p2pstore.net import STRANGER, Address, Link, PeerBook, TlsTransport
from p2pstore.node.build import Node
from p2pstore.node.status import peer_lines
from p2pstore.wire import Hello, parse_link

Json = dict[str, Any]
Progress = Callable[[Json], None]


def invite(node: Node, role: str, *, confirm: bool) -> Json:
    invited = node.network.invitations.create(role, confirm=confirm)
    return {
        "invite": invited.id,
        "link": invited.link,
        "fingerprint": fingerprint(node.group.public),
        "expires_s": invited.expires_s,
        "network": node.config.network,
    }


async def wait_invite(node: Node, number: str) -> Json:
    invitations = node.network.invitations
    try:
        knock = await invitations.knock(number)
    except asyncio.CancelledError:
        # Nobody is there any more to confirm: whoever came now would wait in vain.
        invitations.withdraw(number)
        raise
    return {"name": knock.name, "fingerprint": knock.fingerprint}


async def confirm_invite(node: Node, number: str, *, accept: bool) -> Json:
    admitted = await node.network.invitations.confirm(number, accept)
    if admitted is None:
        return {"refused": True}
    return {"id": admitted.node_id.hex(), "name": admitted.name, "role": admitted.role}


def withdraw_invite(node: Node, number: str) -> Json:
    node.network.invitations.withdraw(number)
    return {}


async def connect(node: Node, address: str) -> Json:
    """Meet whoever is at HOST:PORT; its line of `peers`."""
    where = parse_address(address)
    link = await node.network.connections.connect((where.host, where.port))
    if link.role == "device":
        node.network.connections.want(link.node_id)
    for line in peer_lines(node):
        if line["id"] == link.node_id.hex():
            return line
    raise UsageError(f"{address} is this very node.")


async def join_group(
    home: Home, config: Config, args: Mapping[str, Any], progress: Progress
) -> Json:
    """Use an invitation with a HOME in which no node runs.

    A running node stops for it: its transport speaks with the same key, its parts with old keys.
    Whoever joins as a friend has a group of his own first, and says how much room he lends.
    """
    home.refuse_when_left()
    name = args.get("name") or config.name or default_name()
    is_friend = parse_link(args["link"]).membership == "friend"
    if is_friend:
        if args.get("offer") is None and not config.offer_friends:
            raise UsageError(
                "This invitation is for a friend, who keeps copies and reads nothing of them. "
                "Say how much room you lend: p2pstore join LINK --offer 100GB"
            )
        _have_own_group(home, name, progress)
    device = identity(home)
    kept = KeptGroups(home.path / "groups") if is_friend else None
    group = Group(home) if is_friend else None

    def hello() -> Hello:
        if group is None:
            return newcomer(device, config.network, name)
        return group.hello(config.network)

    transport = TlsTransport(device, hello=hello, role_of=lambda _: STRANGER)

    async def dial(address: Address, expect: NodeId) -> Link:
        return await transport.dial(*address, expect)

    try:
        joined = await join(
            home,
            args["link"],
            device=device,
            name=name,
            network=config.network,
            dial=dial,
            kept=kept,
            tell=lambda text: progress({"text": text}),
        )
        book = PeerBook.load(home.path / "peers.json")
        for raw in joined.records:
            book.note_record(raw, config.network)
        book.note_link(joined.link, int(transport.clock.wall() * 1000))
        book.save()
    finally:
        await transport.close()
    offer = "offer_friends" if is_friend else "offer"
    given = {offer: args.get("offer"), "name": args.get("name")}
    changes = {key: value for key, value in given.items() if value is not None}
    if changes:
        save(home.path, changes)
    return {
        "id": joined.inviter.hex(),
        "name": joined.name,
        "group": joined.group_id.hex(),
        "role": joined.role,
        "inviter": joined.inviter_name,
    }


def _have_own_group(home: Home, name: str, progress: Progress) -> None:
    if home.exists and not is_begun(home):
        return
    found(home, name, now=time.time(), random=os.urandom(32))
    text = "A group of your own was made. Its 24 words: p2pstore words show"
    progress({"text": text})
