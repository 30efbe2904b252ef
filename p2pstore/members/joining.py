"""The joiner's side of an invitation.

A device joins only from a HOME that has protected nothing and keeps nothing for others: one group's
keys take the place of another's, and what was sealed with the old ones could not be read again.
Friends keep their own group; joining gives them a holder's certificate.

The order in HOME: the device key before the proof is sent (so that an answer that gets lost can be
asked for again with the same key), `words.confirmed` of a former group away, the new group state,
and then the former group's words and admin key away. `Group` ends what was cut short behind the
state; `is_begun` tells a HOME that was cut short before it.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from nacl.signing import SigningKey

from p2pstore.durable import replace_file
from p2pstore.errors import (
    IntegrityError,
    NotAllowed,
    P2PStoreError,
    PeerUnreachable,
    RemoteProtocolError,
    Unavailable,
    UsageError,
)
from p2pstore.home import DO_NOT_DELETE, Home
from p2pstore.ids import GroupId, NodeId, PublicKey, node_id_of
from p2pstore.keys import GroupState, fingerprint, public_key_of, verify_chain
from p2pstore.members.group import Group, forget_former, in_use, is_begun
from p2pstore.members.kept import KeptGroups
from p2pstore.net import Address, Link
from p2pstore.wire import (
    LIFETIME_S,
    NONCE_SIZE,
    VERSIONS,
    Hello,
    InviteLink,
    Joining,
    JoinNonce,
    Welcome,
    format_address,
    parse_link,
)

Dial = Callable[[Address, NodeId], Awaitable[Link]]

GRACE_S = 30.0  # beyond the time in which the inviter's owner may confirm


class Joined(NamedTuple):
    group_id: GroupId
    name: str
    role: str
    inviter: NodeId
    inviter_name: str
    records: tuple[bytes, ...]  # signed address records of nodes of the group, for the peer book
    link: Link


def identity(home: Home) -> SigningKey:
    """The key to join with: the one in HOME, or a new one that `join` will save."""
    return home.device() if (home.path / "device.key").exists() else SigningKey.generate()


def newcomer(device: SigningKey, network: str, name: str) -> Hello:
    """How a node without a group introduces itself."""
    return Hello(network, VERSIONS, public_key_of(device), name=name)


async def join(
    home: Home,
    link_text: str,
    *,
    device: SigningKey,
    name: str,
    network: str,
    dial: Dial,
    group: Group | None = None,
    kept: KeptGroups | None = None,
    is_busy: Callable[[], str | None] = lambda: None,
    tell: Callable[[str], None] = lambda text: None,
    random: Callable[[int], bytes] = os.urandom,
) -> Joined:
    """Use an invitation; on return HOME is a member's, durably, and the link has its role.

    `dial` makes a link with `device` as this node's TLS key and pins the node id it is given.
    `group` is the running node's, to change with HOME; None before the first run. `kept` takes the
    certificate of a friend, who has a group of his own. `is_busy` says what the node knows beyond
    HOME's files (a store on another disk). `tell` gets the words that the inviter's owner compares.
    UsageError: the link, or this HOME, cannot be used. PeerUnreachable: no address answers.
    """
    invite = parse_link(link_text)
    membership = invite.membership
    _check_fits(invite, device, network)
    if membership == "device":
        _check_unused(home, is_busy)
    link = await _dial_all(invite, dial)
    public = public_key_of(device)
    tell(f"Fingerprint of this node, for the other screen: {fingerprint(public)}")
    is_new = not (home.path / "device.key").exists()

    def save() -> None:
        if is_new:
            home.make_directory()
            home.save_device(device)

    try:
        welcome = await _prove(invite, link, public, name, random, save)
    except (NotAllowed, IntegrityError) as exc:
        if is_new and is_begun(home):
            (home.path / "device.key").unlink()
        if isinstance(exc, NotAllowed):
            raise UsageError(f"The other node refused: {exc}") from exc
        raise
    state, certified = _read(welcome, public, membership)
    if membership == "device":
        state.open(device)  # IntegrityError unless the keys are really there
        _check_unused(home, is_busy)
        _settle(home, state)
        if group is not None:
            group.reload()
    elif kept is not None:
        kept.befriend(welcome.group, welcome.chain, state)
    link.promote(membership)
    return Joined(
        state.group_id,
        certified,
        membership,
        link.node_id,
        welcome.name,
        welcome.records,
        link,
    )


def _check_fits(invite: InviteLink, device: SigningKey, network: str) -> None:
    if invite.node_id == node_id_of(public_key_of(device)):
        raise UsageError("This invitation was made on this very node; use it on another one.")
    if invite.network != network:
        raise UsageError(
            f"The invitation is for the network {invite.network!r}, this node is on {network!r}. "
            f'To change that, before joining: network = "{invite.network}" in its config.toml'
        )


def _check_unused(home: Home, is_busy: Callable[[], str | None]) -> None:
    """UsageError unless this HOME may get another group's keys."""
    if not home.exists and home.was_used:
        raise UsageError(
            f"{home.path} once had an identity and its keys are missing. Bring device.key and "
            "group.state back from a copy, or join from a new --home."
        )
    if home.exists and not is_begun(home):
        state = home.state()
        us = PublicKey(bytes(home.device().verify_key))
        others = [c.name for c in (*state.devices(), *state.friends()) if c.subject != us]
        if others:
            raise UsageError(
                f"This node already belongs to a group, with {', '.join(sorted(others))}. "
                "To change: p2pstore leave, then join from a new --home."
            )
    reason = in_use(home) or is_busy()
    if reason is not None:
        raise UsageError(
            f"This node {reason} already, and a device joins with an empty HOME only. "
            "Bring everything back with p2pstore leave, then join from a new --home."
        )


async def _dial_all(invite: InviteLink, dial: Dial) -> Link:
    errors: list[str] = []
    for address in invite.addresses:
        try:
            return await dial(address, invite.node_id)
        except (NotAllowed, Unavailable, RemoteProtocolError) as exc:
            errors.append(f"{format_address(*address)}: {exc}")
    raise PeerUnreachable(
        f"The node that made the invitation cannot be reached. {' '.join(errors)}"
    )


async def _prove(
    invite: InviteLink,
    link: Link,
    public: PublicKey,
    name: str,
    random: Callable[[int], bytes],
    save: Callable[[], None],
) -> Welcome:
    """WELCOME; `save` is called before the proof is sent, for what must not be lost then."""
    joining = Joining(
        invite.secret,
        invite.membership,
        joiner=public,
        inviter=link.public_key,
        nonce=random(NONCE_SIZE),
        name=name,
    )
    # The inviter may push the group's state, as payload, right behind its answer. Which node it is
    # has been proved by TLS against the link's id.
    link.session.allow_payload()
    async with link.exchange(joining.first()) as exchange:
        answer, _ = await exchange.receive()
        if not isinstance(answer, JoinNonce):
            raise RemoteProtocolError("JOIN was answered with something else.")
        second = joining.second(answer)
        save()
        await exchange.send(second)
        welcome, _ = await exchange.receive(LIFETIME_S + GRACE_S)
        if not isinstance(welcome, Welcome):
            raise RemoteProtocolError("JOIN was answered with something else.")
        return joining.finish(welcome)


def _read(welcome: Welcome, public: PublicKey, membership: str) -> tuple[GroupState, str]:
    """The group's state and the name we got; IntegrityError unless it makes us what was said."""
    state = GroupState.decode(welcome.state)
    if state.group_public != welcome.group:
        raise IntegrityError("The other node sent the state of another group.")
    certificate = verify_chain(welcome.chain, welcome.group, state.revoked, public)
    if certificate.role.value != membership or state.role_of(public).value != membership:
        raise IntegrityError(f"The other node's certificate is not that of a {membership}.")
    return state, certificate.name


def _settle(home: Home, state: GroupState) -> None:
    (home.path / "words.confirmed").unlink(missing_ok=True)
    try:
        home.incarnation()
    except P2PStoreError:
        home.write_incarnation(1)
    replace_file(home.path / "DO-NOT-DELETE.txt", DO_NOT_DELETE.encode(), mode=0o644)
    home.write_state(state.raw)
    forget_former(home, state)
