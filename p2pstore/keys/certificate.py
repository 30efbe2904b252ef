"""Certificates: the group's word on who a key belongs to. Revocations take it back for ever.

    Certificate = Signed [group, subject, role, name, issued (ms), issuer]
                  role: "admin", "device" or "friend"; signed by the issuer
    Chain       = MessagePack array of one or two encoded certificates, from the group down
    Revocation  = Signed [group, subject, issued (ms), issuer, chain of the issuer (empty: group)]

Good chains: group -> admin, group -> device or friend, group -> admin -> device or friend. An admin
never certifies an admin: whoever steals an admin's device could otherwise stay in for ever. For the
same reason an admin revokes devices and friends only; revoking an admin takes the group key, that
is, the words.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from p2pstore.errors import IntegrityError, UsageError
from p2pstore.ids import PublicKey
from p2pstore.keys import signed
from p2pstore.keys.signed import encode

CONTEXT = b"p2pstore 2026 certificate"
REVOCATION_CONTEXT = b"p2pstore 2026 revocation"

MAX_NAME = 64  # shown in one column of `peers`
MAX_CERTIFICATE = 1024  # three keys, 64 characters of name, a signature
MAX_CHAIN = 4096  # what the wire reserves; two certificates need less than half
MAX_LINKS = 2
MAX_REVOCATION = MAX_CHAIN + 512


class Role(StrEnum):
    ADMIN = "admin"
    DEVICE = "device"
    FRIEND = "friend"
    STRANGER = "stranger"  # never certified: whoever has no good chain


Milliseconds = Annotated[int, Meta(ge=0, le=2**53)]
Name = Annotated[str, Meta(max_length=MAX_NAME)]


class Certificate(msgspec.Struct, frozen=True, array_like=True):
    group: PublicKey
    subject: PublicKey
    role: Role
    name: Name
    issued_ms: Milliseconds
    issuer: PublicKey


class Revocation(msgspec.Struct, frozen=True, array_like=True):
    group: PublicKey
    subject: PublicKey
    issued_ms: Milliseconds
    issuer: PublicKey
    chain: Annotated[bytes, Meta(max_length=MAX_CHAIN)]


_certificate = msgspec.msgpack.Decoder(Certificate)
_revocation = msgspec.msgpack.Decoder(Revocation)
_chain = msgspec.msgpack.Decoder(
    Annotated[
        tuple[Annotated[bytes, Meta(max_length=MAX_CERTIFICATE)], ...],
        Meta(min_length=1, max_length=MAX_LINKS),
    ]
)


def public_key_of(key: SigningKey) -> PublicKey:
    return PublicKey(bytes(key.verify_key))


def issue(
    key: SigningKey, *, group: PublicKey, subject: PublicKey, role: str, name: str, now_ms: int
) -> bytes:
    """One certificate, signed with the group key or an admin's; UsageError if it could not hold."""
    if role not in (Role.ADMIN, Role.DEVICE, Role.FRIEND):
        raise UsageError(f"Nobody is certified as {role!r}.")
    issuer = public_key_of(key)
    if role == Role.ADMIN and issuer != group:
        raise UsageError("Only the group's words make an admin.")
    if len(name) > MAX_NAME:
        raise UsageError(f"A name has at most {MAX_NAME} characters.")
    check_key(subject)
    body = Certificate(group, subject, Role(role), name, now_ms, issuer)
    return signed.sign(CONTEXT, encode(body), key)


def check_key(key: PublicKey) -> None:
    """IntegrityError for bytes that are no usable Ed25519 key: nothing could be sealed to it."""
    try:
        VerifyKey(key).to_curve25519_public_key()
    except (CryptoError, RuntimeError, ValueError, TypeError) as exc:
        raise IntegrityError("This is not a public key.") from exc


def encode_chain(certificates: Sequence[bytes]) -> bytes:
    """Certificates from the group down, as `verify_chain` takes them."""
    if not 1 <= len(certificates) <= MAX_LINKS:
        raise ValueError(f"a chain has one or two certificates, not {len(certificates)}")
    return encode(tuple(certificates))


def split_chain(chain: bytes) -> tuple[bytes, ...]:
    """The encoded certificates of a chain, not verified; FormatError."""
    return signed.decode(_chain, chain, MAX_CHAIN, "certificate chain")


def read_chain(chain: bytes, group: PublicKey) -> tuple[Certificate, ...]:
    """The certificates from the group's key down, each proved by the one before; nothing is said
    about revocation. IntegrityError when a link is wrong, FormatError when it is no chain."""
    issuer = group
    links: list[Certificate] = []
    for raw in split_chain(chain):
        if links and links[-1].role != Role.ADMIN:
            raise IntegrityError(f"A {links[-1].role} cannot certify anybody.")
        links.append(_verify_link(raw, group, issuer))
        issuer = links[-1].subject
    return tuple(links)


def verify_chain(
    chain: bytes, group: PublicKey, revoked: AbstractSet[PublicKey], subject: PublicKey
) -> Certificate:
    """The certificate of `subject`, proved from the group's key down.

    IntegrityError when a link is wrong, revoked, or about another group or subject; FormatError
    when it is no chain.
    """
    links = read_chain(chain, group)
    for link in links:
        if link.subject in revoked:
            raise IntegrityError(f"The {link.role} {link.name!r} was revoked.")
    if links[-1].subject != subject:
        raise IntegrityError("The certificate is about another key.")
    return links[-1]


def _verify_link(raw: bytes, group: PublicKey, issuer: PublicKey) -> Certificate:
    parts = signed.split(raw, MAX_CERTIFICATE, "certificate")
    body = signed.decode(_certificate, parts.payload, MAX_CERTIFICATE, "certificate")
    if body.group != group:
        raise IntegrityError("The certificate is of another group.")
    if body.issuer != issuer:
        raise IntegrityError("The certificate was issued by somebody else.")
    if body.role == Role.STRANGER:
        raise IntegrityError("A certificate names no role.")
    if body.role == Role.ADMIN and issuer != group:
        raise IntegrityError("Only the group's own key makes an admin.")
    signed.verify(CONTEXT, parts, issuer, "certificate")
    return body


def revoke(
    key: SigningKey, *, group: PublicKey, subject: PublicKey, chain: bytes, now_ms: int
) -> bytes:
    """A revocation, signed with the group key (`chain` empty) or by an admin with its chain."""
    body = Revocation(group, subject, now_ms, public_key_of(key), chain)
    return signed.sign(REVOCATION_CONTEXT, encode(body), key)


def verify_revocation(raw: bytes, group: PublicKey) -> Revocation:
    """What a revocation says. It stays good when its issuer is revoked later: nothing revives."""
    parts = signed.split(raw, MAX_REVOCATION, "revocation")
    body = signed.decode(_revocation, parts.payload, MAX_REVOCATION, "revocation")
    if body.group != group or body.subject == group:
        raise IntegrityError("The revocation is of another group, or of the group itself.")
    if body.issuer != group:
        issuer = verify_chain(body.chain, group, frozenset(), body.issuer)
        if issuer.role != Role.ADMIN:
            raise IntegrityError(f"A {issuer.role} cannot revoke anybody.")
    signed.verify(REVOCATION_CONTEXT, parts, body.issuer, "revocation")
    return body
