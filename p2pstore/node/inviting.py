"""Invitations, joining and connecting, as the control interface asks for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from p2pstore.config import Config, parse_address, save
from p2pstore.errors import UsageError
from p2pstore.home import Home
from p2pstore.keys import fingerprint
from p2pstore.members import default_name, identity, join, newcomer
from p2pstore.net import Address, Link, PeerBook, TlsTransport
from p2pstore.node.build import Node
from p2pstore.node.status import peer_lines

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
    """
    device = identity(home)
    name = args.get("name") or config.name or default_name()
    transport = TlsTransport(
        device,
        hello=lambda: newcomer(device, config.network, name),
        role_of=lambda _: "stranger",
    )

    async def dial(address: Address, expect: bytes) -> Link:
        return await transport.dial(address[0], address[1], expect)  # type: ignore[arg-type]

    try:
        joined = await join(
            home,
            args["link"],
            device=device,
            name=name,
            network=config.network,
            dial=dial,
            tell=lambda text: progress({"text": text}),
        )
        book = PeerBook.load(home.path / "peers.json")
        for raw in joined.records:
            book.note_record(raw, config.network)
        book.note_link(joined.link, int(transport.clock.wall() * 1000))
        book.save()
    finally:
        await transport.close()
    changes = {
        key: value
        for key, value in (("offer", args.get("offer")), ("name", args.get("name")))
        if value is not None
    }
    if changes:
        save(home.path, changes)
    return {
        "id": joined.inviter.hex(),
        "name": joined.name,
        "group": joined.group_id.hex(),
        "role": joined.role,
    }
