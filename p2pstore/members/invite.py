"""The inviter's side of an invitation: links that let one node in, and the answer to JOIN.

An invitation lives in memory: 16 random bytes, 10 minutes, one use, three wrong secrets (`wire` has
the proof itself). JOIN does not say which link the joiner has, so its proof is compared with every
open one; a proof that fits none costs each of them a try.

The order, which a crash must not upset: the secret is burned, the inviter is asked when it wants to
be, the new group state is durable in HOME, and only then WELCOME is sent. An answer that gets lost
leaves a member whose node never heard of it; it joins again with the same key.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import NamedTuple

from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.errors import (
    LocalProtocolError,
    NotAllowed,
    P2PStoreError,
    RemoteProtocolError,
    Unavailable,
    UsageError,
)
from p2pstore.home import Home
from p2pstore.ids import NodeId, PublicKey, node_id_of, short
from p2pstore.keys import Role, fingerprint, public_key_of
from p2pstore.members.group import Group
from p2pstore.net import Address, Request
from p2pstore.threads import in_thread
from p2pstore.wire import (
    LIFETIME_S,
    MAX_ADDRESSES,
    NONCE_SIZE,
    SECRET_SIZE,
    Admission,
    Invitation,
    InviteLink,
    Join,
    Joining,
    JoinNonce,
    Welcome,
    build_link,
    printable,
)

log = logging.getLogger(__name__)

UNWATCHED_S = 3.0  # so long a joiner waits for an owner who asks for it at all
MAX_OPEN = 16  # a person invites a few nodes at a time


class Invited(NamedTuple):
    link: str
    id: str
    expires_s: float  # from now


class Knock(NamedTuple):
    """Who has proved the secret and waits; `fingerprint` is what its screen must show."""

    name: str
    fingerprint: str


class Admitted(NamedTuple):
    node_id: NodeId
    name: str
    role: str


def _future() -> asyncio.Future[object]:
    return asyncio.get_running_loop().create_future()


@dataclass(eq=False)
class _Open:
    """One invitation. `secret` goes when it is used; what is left says why it is of no use."""

    id: str
    invitation: Invitation
    secret: bytes | None = field(repr=False)
    confirm: bool
    knock: asyncio.Future[object] = field(default_factory=_future)
    decision: asyncio.Future[object] = field(default_factory=_future)
    outcome: asyncio.Future[object] = field(default_factory=_future)
    used: bool = False
    withdrawn: bool = False
    watched: bool = False  # the owner has asked who comes

    def why_closed(self, now: float) -> str:
        if self.used:
            return "it was used already"
        if self.withdrawn:
            return "it was taken back"
        return "it has expired" if now >= self.invitation.expires else "too many wrong secrets came"


class Invitations:
    def __init__(
        self,
        home: Home,
        group: Group,
        *,
        network: str,
        addresses: Callable[[], Sequence[Address]],
        clock: Clock,
        pool: Executor,
        records: Callable[[], Sequence[bytes]] = tuple,
        changed: Callable[[], None] = lambda: None,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """`addresses`: where others reach this node. `records`: signed ones of nodes of the group.

        `changed` is called in the loop when the group has a new member; its state is durable then.
        """
        self._home = home
        self._group = group
        self._network = network
        self._addresses = addresses
        self._clock = clock
        self._pool = pool
        self._records = records
        self._changed = changed
        self._random = random
        self._open: dict[str, _Open] = {}

    # -- for the owner ----------------------------------------------------------------------------

    def create(self, role: str = "device", *, confirm: bool = False) -> Invited:
        """A new link. UsageError on a device without the admin key: it names who has it."""
        if role not in ("device", "friend"):
            raise UsageError(f"Nobody is invited as {role!r}; device or friend.")
        self._admin()
        now = self._clock.monotonic()
        self._open = {
            entry.id: entry
            for entry in self._open.values()
            if now < entry.invitation.expires + LIFETIME_S
        }
        if sum(entry.invitation.is_live(now) for entry in self._open.values()) >= MAX_OPEN:
            raise UsageError(f"{MAX_OPEN} invitations are open; wait until some have expired.")
        addresses = tuple(self._addresses())[:MAX_ADDRESSES]
        if not addresses:
            raise UsageError("Nobody could use the invitation: this node has no address.")
        secret = self._random(SECRET_SIZE)
        invitation = Invitation(secret, "device" if role == "device" else "friend", now=now)
        entry = _Open(self._random(8).hex(), invitation, secret, confirm)
        self._open[entry.id] = entry
        membership = invitation.membership
        text = build_link(
            InviteLink(addresses, self._group.node_id, self._network, secret, membership)
        )
        return Invited(text, entry.id, LIFETIME_S)

    async def knock(self, invite: str) -> Knock:
        """Wait for the joiner; Unavailable when nobody came in time."""
        entry = self._find(invite)
        entry.watched = True
        left = entry.invitation.expires - self._clock.monotonic()
        try:
            async with asyncio.timeout(max(0.0, left)):
                knock = await asyncio.shield(entry.knock)
        except TimeoutError as exc:
            raise Unavailable("Nobody used the invitation. A new one: p2pstore invite") from exc
        assert isinstance(knock, Knock)
        return knock

    async def confirm(self, invite: str, accept: bool) -> Admitted | None:
        """Let in or refuse who knocks; None: refused. Unavailable when it has gone away."""
        entry = self._find(invite)
        if not entry.knock.done():
            raise UsageError("Nobody has used this invitation yet.")
        if not entry.decision.done():
            entry.decision.set_result(accept)
        if not accept:
            return None
        admitted = await asyncio.shield(entry.outcome)
        assert isinstance(admitted, Admitted)
        return admitted

    def withdraw(self, invite: str) -> None:
        """Take a link back; who waits for the answer to it is refused."""
        entry = self._find(invite)
        entry.invitation.burn()
        entry.secret = None
        entry.withdrawn = True
        if not entry.decision.done():
            entry.decision.set_result(False)

    def _find(self, invite: str) -> _Open:
        entry = self._open.get(invite)
        if entry is None:
            raise UsageError("There is no such invitation any more. A new one: p2pstore invite")
        return entry

    def _admin(self) -> SigningKey:
        state = self._group.state
        admin = self._home.admin()
        if admin is None or state.role_of(public_key_of(admin)) is not Role.ADMIN:
            names = " or ".join(sorted({c.name for c in state.admins()}))
            where = f"Do it on {names}" if names else "The 24 words make a new one"
            raise UsageError(f"This device has no admin key, so it cannot invite. {where}.")
        return admin

    # -- for the joiner ---------------------------------------------------------------------------

    async def join(self, request: Request) -> None:
        """Answer JOIN, whatever the asker's role. Replies itself; raises for FAIL."""
        first = request.message
        if not isinstance(first, Join):
            raise LocalProtocolError("Only JOIN is answered here.")
        joiner = request.link.public_key
        if joiner in self._group.state.revoked:
            raise NotAllowed("This node was revoked. It needs a new HOME to come back.")
        nonce = self._random(NONCE_SIZE)
        open_now = self._admissions(first, joiner, nonce)
        await request.reply(JoinNonce(nonce), final=False)
        second, _ = await request.receive()
        if not isinstance(second, Join):
            raise RemoteProtocolError("JOIN is followed by JOIN.")
        entry, mac = self._admit(open_now, first, second, nonce)
        try:
            admitted, chain = await self._let_in(entry, joiner, first.name)
        except BaseException as exc:
            if not entry.outcome.done():
                entry.outcome.set_exception(
                    exc
                    if isinstance(exc, P2PStoreError)
                    else Unavailable("The other node went away. A new link: p2pstore invite")
                )
                entry.outcome.exception()  # seen, also when nobody waits for it
            raise
        entry.outcome.set_result(admitted)
        log.info("%s %s joined as %s.", admitted.name, short(admitted.node_id), admitted.role)
        # Before the answer: the joiner may ask, and send bytes, as soon as it has it.
        request.link.promote(admitted.role)
        state = self._group.state
        self._changed()
        await request.reply(
            Welcome(
                mac,
                chain,
                state.group_public,
                state=state.raw,
                name=self._group.name,
                records=tuple(self._records()),
            )
        )

    def _admissions(
        self, first: Join, joiner: PublicKey, nonce: bytes
    ) -> list[tuple[_Open, Admission]]:
        now = self._clock.monotonic()
        found = []
        refusal = NotAllowed("No invitation is open on that node. A new one: p2pstore invite")
        is_ours = self._group.state.role_of(joiner) in (Role.ADMIN, Role.DEVICE)
        for entry in self._open.values():
            if is_ours and entry.invitation.membership == "friend":
                refusal = NotAllowed("This node is a device of the group already, and no friend.")
                continue
            if not entry.invitation.is_live(now):
                refusal = NotAllowed(
                    "No invitation is open on that node; of the last one: "
                    f"{entry.why_closed(now)}. A new one: p2pstore invite"
                )
                continue
            try:
                admission = entry.invitation.open(
                    first, joiner=joiner, inviter=self._group.public, nonce=nonce, now=now
                )
            except NotAllowed as exc:
                refusal = exc
                continue
            found.append((entry, admission))
        if not found:
            raise refusal
        return found

    def _admit(
        self,
        open_now: list[tuple[_Open, Admission]],
        first: Join,
        second: Join,
        nonce: bytes,
    ) -> tuple[_Open, bytes]:
        """The invitation that the joiner's proof fits, burned, and the inviter's proof."""
        now = self._clock.monotonic()
        fitting = [(e, a) for e, a in open_now if self._fits(e, first, second, nonce)]
        for entry, admission in fitting or open_now:
            try:
                mac = admission.admit(second, now=now)
            except NotAllowed as exc:
                refusal = exc
                if not entry.invitation.is_live(now):
                    entry.secret = None
                continue
            entry.secret = None
            entry.used = True
            return entry, mac
        raise refusal

    def _fits(self, entry: _Open, first: Join, second: Join, nonce: bytes) -> bool:
        if entry.secret is None:
            return False
        joining = Joining(
            entry.secret,
            entry.invitation.membership,
            joiner=first.public_key,
            inviter=self._group.public,
            nonce=first.nonce,
            name=first.name,
        )
        return hmac.compare_digest(joining.second(JoinNonce(nonce)).mac, second.mac)

    async def _let_in(self, entry: _Open, joiner: PublicKey, name: str) -> tuple[Admitted, bytes]:
        name = self._group.state.free_name(printable(name).strip() or "node", joiner)
        entry.knock.set_result(Knock(name, fingerprint(joiner)))
        if entry.confirm:
            try:
                await asyncio.wait((entry.decision,), timeout=UNWATCHED_S)
                async with asyncio.timeout(LIFETIME_S if entry.watched else 0):
                    accepted = await asyncio.shield(entry.decision)
            except TimeoutError as exc:
                raise NotAllowed("nobody confirmed the words there in time.") from exc
            if not accepted:
                raise NotAllowed("its owner said that the words are not the same.")
        role = Role(entry.invitation.membership)
        chain = await in_thread(
            self._pool,
            self._group.admit,
            joiner,
            role,
            name,
            signer=self._admin(),
            now=self._clock.wall(),
            random=self._random,
        )
        return Admitted(node_id_of(joiner), name, role.value), chain
