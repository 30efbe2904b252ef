"""Who is asking, and whether that is enough: the table of `policy.access` applied to links.

A link's role is what the transport found out when it greeted us: a device of our group, a friend,
or a stranger. A friend is a device of its own group, which it shows by the chain in its HELLO; what
it may ask for are the bundles of that group. A signed GET is judged by the asker that signed it,
whoever passes it on. Revocations are looked up anew at every question. Any thread may ask.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from p2pstore.content import (
    BundleHeader,
    Grant,
    SignedLiveMap,
    decode_grant,
    verify_grant,
)
from p2pstore.errors import FormatError, IntegrityError, NotAllowed
from p2pstore.ids import GroupId, PublicKey, group_id_of
from p2pstore.keys import Role, verify_chain
from p2pstore.net import Link
from p2pstore.policy import Ask, Need, need
from p2pstore.wire import GetRequest

REMEMBERED: Final = 1024  # verified chains: each costs two signatures otherwise

_DEVICES = (Role.ADMIN, Role.DEVICE)


def no_groups() -> tuple[PublicKey, ...]:
    return ()


class Gate:
    def __init__(
        self,
        group: PublicKey,
        revoked: Callable[[PublicKey], AbstractSet[PublicKey]],
        related: Callable[[], Iterable[PublicKey]] = no_groups,
    ) -> None:
        """`revoked` names the revoked keys of a group, as far as its state is known here;
        `related` the public keys of the friends' groups."""
        self.group = group
        self.group_id = group_id_of(group)
        self._revoked = revoked
        self._related = related
        self._chains: OrderedDict[tuple[bytes, ...], tuple[AbstractSet[PublicKey], Role | None]]
        self._chains = OrderedDict()
        self._lock = threading.Lock()

    def check(self, link: Link, ask: Ask) -> Need:
        """What the link has to show for this; NotAllowed when nothing would do."""
        needed = need(link.role, ask)
        if needed is Need.NEVER:
            raise NotAllowed(f"A {link.role} may not ask for {ask.value.upper()}.")
        return needed

    def group_of(self, link: Link) -> GroupId | None:
        """The group that the node at the other end is a device of, as far as we believe it."""
        if link.role in _DEVICES:
            return None if link.public_key in self._revoked(self.group) else self.group_id
        group = link.hello.group
        if link.role != Role.FRIEND or group is None:
            return None
        role = self.role_in(group, link.public_key, link.hello.chain)
        return group_id_of(group) if role in _DEVICES else None

    def admit(self, link: Link, ask: Ask, group: GroupId) -> None:
        """NotAllowed unless the link may ask this about bundles of that group."""
        self.check(link, ask)
        if self.group_of(link) != group:
            raise NotAllowed("That belongs to another group.")

    def admit_owner(self, link: Link, ask: Ask, header: BundleHeader) -> None:
        """NotAllowed unless it is the device that opened the bundle, or an admin of its group."""
        self.admit(link, ask, group_id_of(header.group))
        if link.public_key == header.opener or link.role == Role.ADMIN:
            return
        if self.role_in(header.group, link.public_key, link.hello.chain) != Role.ADMIN:
            raise NotAllowed("Only the device that opened a bundle, or an admin, may do that.")

    def admit_map(self, header: BundleHeader, signed: SignedLiveMap) -> None:
        """NotAllowed unless the signer may say which blocks are dead. The signature is not judged
        here."""
        if not self._may_sign(header, signed.signer, signed.chain):
            raise NotAllowed("A live map is signed by the opener of the bundle or an admin only.")

    def grant(self, header: BundleHeader, raw: bytes) -> Grant | None:
        """The grant of a share of this bundle, when its owner signed it."""
        try:
            signed = decode_grant(raw)
            found = verify_grant(signed)
        except (FormatError, IntegrityError):
            return None
        if found.bundle != header.bundle_id:
            return None
        return found if self._may_sign(header, signed.signer, signed.chain) else None

    def may_get(self, asked: GetRequest, link: Link, group: PublicKey) -> bool:
        """Whether the asker is a device of the group that the blocks belong to."""
        if link.public_key == asked.asker and self.group_of(link) == group_id_of(group):
            return True
        return self.role_in(group, asked.asker, asked.chain) in _DEVICES

    def standing(self, asked: GetRequest, link: Link) -> str | None:
        """What the asker is to us: "device", "friend", or "stranger" when he shows a token.

        None: a stranger without anything to show.
        """
        if link.public_key == asked.asker and self.group_of(link) is not None:
            return Role.DEVICE if link.role in _DEVICES else Role.FRIEND
        if self.role_in(self.group, asked.asker, asked.chain) in _DEVICES:
            return Role.DEVICE
        if any(self.role_in(g, asked.asker, asked.chain) in _DEVICES for g in self._related()):
            return Role.FRIEND
        return Role.STRANGER if asked.token else None

    def role_in(self, group: PublicKey, subject: PublicKey, chain: bytes) -> Role | None:
        """The role that a chain proves, and nobody has revoked."""
        if not chain:
            return None
        revoked = self._revoked(group)
        name = (group, subject, chain)
        known = self._chains.get(name)
        if known is not None and known[0] == revoked:
            return known[1]
        role: Role | None
        try:
            role = verify_chain(chain, group, revoked, subject).role
        except (FormatError, IntegrityError):
            role = None
        with self._lock:
            self._chains[name] = (frozenset(revoked), role)
            while len(self._chains) > REMEMBERED:
                self._chains.popitem(last=False)
        return role

    def _may_sign(self, header: BundleHeader, signer: PublicKey, chain: bytes) -> bool:
        if signer == header.opener:
            return signer not in self._revoked(header.group)
        return self.role_in(header.group, signer, chain) == Role.ADMIN
