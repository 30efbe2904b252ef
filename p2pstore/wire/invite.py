"""Invitations: the link, and the proof of both sides that they know its secret.

Link: `p2ps://ADDR[,ADDR]/NODEID?n=NETWORK#SECRET`. ADDR is HOST:PORT (IPv6 in brackets), NODEID and
SECRET (16 random bytes) are base32 in lower case without padding, NETWORK is percent-encoded. A
link for a friend has `&r=friend` behind the network.

Handshake, inside the TLS session in which the joiner pinned NODEID:

    joiner  -> JOIN step 1 (nonce J)
    inviter -> JOIN_NONCE (nonce I)
    joiner  -> JOIN step 2 (mac of the joiner)
    inviter -> WELCOME (mac of the inviter, certificate, group state), or FAIL

mac = BLAKE3(key = derive_key(CONTEXT, SECRET), side, 0, membership, 0, joiner's public key,
inviter's public key, J, I); side is `joiner` or `inviter`, so that neither mac can be sent back as
the other; membership is `device` or `friend`, so that both mean the same. The public keys are those
that TLS proved. The inviter burns the secret before it answers, after 10 minutes, or at the third
wrong mac. Randomness and time are arguments.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias
from urllib.parse import quote, unquote

from blake3 import blake3

from p2pstore.errors import IntegrityError, LocalProtocolError, NotAllowed, UsageError
from p2pstore.ids import Bytes32, NodeId, PublicKey, base32, unbase32
from p2pstore.wire.message import Join, JoinNonce, Welcome
from p2pstore.wire.record import MAX_ADDRESSES, MAX_NETWORK

CONTEXT = "p2pstore 2026 invitation"
SECRET_SIZE = 16
NONCE_SIZE = 32
LIFETIME_S = 600.0
MAX_TRIES = 3
MAX_LINK = 2048  # beyond any link that we make; it may come from a QR code or a chat

Membership: TypeAlias = Literal["device", "friend"]

_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:.%]+)\]|([^\s\[\]:,/]+)):([0-9]{1,5})\Z")


@dataclass(frozen=True, slots=True)
class InviteLink:
    addresses: tuple[tuple[str, int], ...]
    node_id: NodeId
    network: str
    secret: bytes = field(repr=False)
    membership: Membership = "device"


def format_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT` or `[IPV6]:PORT`; UsageError."""
    match = _ADDRESS.match(text)
    if match is None or not 1 <= int(match[3]) <= 65535:
        raise UsageError(f"{text!r} is no address of the form HOST:PORT.")
    return match[1] or match[2], int(match[3])


def build_link(link: InviteLink) -> str:
    if not 1 <= len(link.addresses) <= MAX_ADDRESSES:
        raise LocalProtocolError(f"An invitation has 1 to {MAX_ADDRESSES} addresses.")
    places = ",".join(format_address(host, port) for host, port in link.addresses)
    network = quote(link.network, safe="")
    role = "&r=friend" if link.membership == "friend" else ""
    return f"p2ps://{places}/{base32(link.node_id)}?n={network}{role}#{base32(link.secret)}"


def parse_link(text: str) -> InviteLink:
    """UsageError says what is wrong; the secret is never part of the message."""
    text = text.strip()
    match = re.match(r"p2ps://([^/?#]+)/([^/?#]+)\?n=([^?#&]+)(&r=friend)?#(\w+)\Z", text)
    if match is None or len(text) > MAX_LINK:
        raise UsageError("This is no invitation. It begins with p2ps:// and has a # near its end.")
    addresses = tuple(parse_address(place) for place in match[1].split(","))
    network = unquote(match[3])
    try:
        node_id, secret = unbase32(match[2]), unbase32(match[5])
    except ValueError as exc:
        raise UsageError("The invitation was not copied completely.") from exc
    if len(node_id) != 20 or len(secret) != SECRET_SIZE:
        raise UsageError("The invitation was not copied completely.")
    if len(addresses) > MAX_ADDRESSES or len(network) > MAX_NETWORK:
        raise UsageError("The invitation has too many addresses or too long a network name.")
    membership: Membership = "friend" if match[4] else "device"
    return InviteLink(addresses, NodeId(node_id), network, secret, membership)


@dataclass(frozen=True, slots=True)
class Transcript:
    """What both macs cover."""

    membership: Membership
    joiner: PublicKey
    inviter: PublicKey
    joiner_nonce: bytes
    inviter_nonce: bytes

    def mac(self, secret: bytes, side: Literal["joiner", "inviter"]) -> bytes:
        key = blake3(secret, derive_key_context=CONTEXT).digest()
        words = side.encode() + b"\0" + self.membership.encode() + b"\0"
        keys = bytes(self.joiner) + bytes(self.inviter)
        return blake3(words + keys + self.joiner_nonce + self.inviter_nonce, key=key).digest()


class Joining:
    """The joiner's side: `first`, `second` with the answer, `finish` with the welcome."""

    def __init__(
        self,
        secret: bytes,
        membership: Membership,
        *,
        joiner: PublicKey,
        inviter: PublicKey,
        nonce: bytes,
        name: str,
    ) -> None:
        self._secret = secret
        self._membership: Membership = membership
        self._joiner = joiner
        self._inviter = inviter
        self._nonce = nonce
        self._name = name
        self._transcript: Transcript | None = None

    def _join(self, step: Literal[1, 2], mac: bytes) -> Join:
        return Join(self._joiner, self._nonce, mac, self._name, self._membership, step)

    def first(self) -> Join:
        return self._join(1, bytes(32))

    def second(self, answer: JoinNonce) -> Join:
        self._transcript = Transcript(
            self._membership, self._joiner, self._inviter, self._nonce, answer.nonce
        )
        return self._join(2, self._transcript.mac(self._secret, "joiner"))

    def finish(self, welcome: Welcome) -> Welcome:
        """The welcome, once the inviter has proved the secret; IntegrityError otherwise."""
        if self._transcript is None:
            raise LocalProtocolError("The second step of JOIN was not made.")
        expected = self._transcript.mac(self._secret, "inviter")
        if not hmac.compare_digest(expected, welcome.mac):
            raise IntegrityError("The other node does not know the invitation's secret.")
        return welcome


class Invitation:
    """The inviter's side of one secret: one use, 10 minutes, three wrong macs.

    One object serves all joiners that try it; `open` makes the part of one connection.
    """

    def __init__(self, secret: bytes, membership: Membership, *, now: float) -> None:
        if len(secret) != SECRET_SIZE:
            raise LocalProtocolError(f"An invitation's secret has {SECRET_SIZE} bytes.")
        self._secret: bytes | None = secret
        self.membership: Membership = membership
        self.expires = now + LIFETIME_S  # on the clock that `now` came from
        self._tries_left = MAX_TRIES

    def is_live(self, now: float) -> bool:
        return self._secret is not None and now < self.expires and self._tries_left > 0

    def burn(self) -> None:
        self._secret = None

    def open(
        self, first: Join, *, joiner: PublicKey, inviter: PublicKey, nonce: bytes, now: float
    ) -> Admission:
        """Take JOIN step 1 of the peer whose TLS key is `joiner`; NotAllowed."""
        if not self.is_live(now):
            raise NotAllowed("There is no such invitation, or it was used or has expired.")
        if first.step != 1 or first.public_key != joiner:
            raise NotAllowed("JOIN names another key than the connection's, or skips a step.")
        if first.role != self.membership:
            raise NotAllowed(f"This invitation is for a {self.membership}.")
        transcript = Transcript(self.membership, joiner, inviter, first.nonce, nonce)
        return Admission(self, transcript)

    def check(self, transcript: Transcript, mac: bytes, now: float) -> Bytes32:
        """Burn the secret and return the inviter's mac; NotAllowed when `mac` is wrong."""
        if not self.is_live(now) or self._secret is None:
            raise NotAllowed("There is no such invitation, or it was used or has expired.")
        if not hmac.compare_digest(transcript.mac(self._secret, "joiner"), mac):
            self._tries_left -= 1
            if not self._tries_left:
                self.burn()
            raise NotAllowed("The secret of the invitation is wrong.")
        answer = transcript.mac(self._secret, "inviter")
        self.burn()
        return answer


@dataclass(frozen=True, slots=True)
class Admission:
    """One joiner's attempt: `nonce` is the answer to step 1, `admit` takes step 2."""

    invitation: Invitation
    transcript: Transcript

    @property
    def nonce(self) -> JoinNonce:
        return JoinNonce(self.transcript.inviter_nonce)

    def admit(self, second: Join, *, now: float) -> Bytes32:
        """The mac for WELCOME; from here on the secret is used up. NotAllowed."""
        same = (self.transcript.joiner, self.transcript.joiner_nonce, self.transcript.membership)
        if second.step != 2 or (second.public_key, second.nonce, second.role) != same:
            raise NotAllowed("The steps of JOIN do not belong together.")
        return self.invitation.check(self.transcript, second.mac, now)
