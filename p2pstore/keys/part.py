"""Parts of a group state: what one signer said, verified link by link.

    Part   = Signed [clear, boxes, nonce, sealed], by the group key or by a certified admin
    clear  = bytes of [format (1), group, grant, seq, chains, revocations, epoch names, signer,
             chain of the signer (empty: the group key)]
    grant  = Signed [group, generation, recovery public key (X25519), recovery tag], by that key
    boxes  = [[reader, box of the content key], ...]; a reader is a device's Ed25519 key or the
             recovery public key
    sealed = [[[epoch, secret, created (ms)], ...], dedup secret] under the content key, aad = clear
             (see `sealing`)

Both kinds of records in a part, chains and revocations, carry their own proof, so that a state may
take them from any part. Which signers still count is judged by the state (`group`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from blake3 import blake3
from msgspec import Meta
from nacl.public import PrivateKey
from nacl.public import PublicKey as CurveKey
from nacl.signing import SigningKey, VerifyKey

from p2pstore.errors import FormatError, IntegrityError, UsageError
from p2pstore.ids import Bytes24, Bytes32, Epoch, PublicKey, Tag
from p2pstore.keys import sealing, signed
from p2pstore.keys.certificate import (
    MAX_CHAIN,
    MAX_REVOCATION,
    Certificate,
    Milliseconds,
    Revocation,
    Role,
    read_chain,
    verify_revocation,
)
from p2pstore.keys.sealing import Random
from p2pstore.keys.signed import encode

CONTEXT = b"p2pstore 2026 group state"
GRANT_CONTEXT = b"p2pstore 2026 generation"

MAX_STATE = 512 * 1024  # what the wire reserves for one
MAX_PARTS = 8  # each needs an admin that worked apart from the others
MAX_MEMBERS = 256  # a person's devices and friends, those of the past included
MAX_REVOCATIONS = 256
MAX_EPOCHS = 1024  # one for each revocation, and for each merge that met one
MAX_GRANT = 512
MAX_SEALED = 128 * 1024  # 1,024 epochs of about 60 bytes
RANKS = {Role.ADMIN: 3, Role.DEVICE: 2, Role.FRIEND: 1}

Counter = Annotated[int, Meta(ge=1, le=2**53)]


class EpochSecret(msgspec.Struct, frozen=True, array_like=True):
    epoch: Epoch
    secret: Bytes32
    created_ms: Milliseconds

    def __repr__(self) -> str:
        return f"EpochSecret({self.epoch.hex()})"


class GroupSecrets(msgspec.Struct, frozen=True, array_like=True):
    """All epochs of the group, the one for new things last, and the dedup secret."""

    epochs: Annotated[tuple[EpochSecret, ...], Meta(min_length=1, max_length=MAX_EPOCHS)]
    dedup: Bytes32

    @property
    def current(self) -> EpochSecret:
        return self.epochs[-1]

    def __repr__(self) -> str:
        return f"GroupSecrets({len(self.epochs)} epochs)"


class Grant(msgspec.Struct, frozen=True, array_like=True):
    group: PublicKey
    generation: Counter
    recovery: Bytes32
    tag: Tag


class Clear(msgspec.Struct, frozen=True, array_like=True):
    format: Literal[1]
    group: PublicKey
    grant: Annotated[bytes, Meta(max_length=MAX_GRANT)]
    seq: Counter
    chains: Annotated[
        tuple[Annotated[bytes, Meta(max_length=MAX_CHAIN)], ...], Meta(max_length=MAX_MEMBERS)
    ]
    revocations: Annotated[
        tuple[Annotated[bytes, Meta(max_length=MAX_REVOCATION)], ...],
        Meta(max_length=MAX_REVOCATIONS),
    ]
    epochs: Annotated[tuple[Epoch, ...], Meta(min_length=1, max_length=MAX_EPOCHS)]
    signer: PublicKey
    chain: Annotated[bytes, Meta(max_length=MAX_CHAIN)]


class ReaderBox(msgspec.Struct, frozen=True, array_like=True):
    reader: Bytes32
    box: Annotated[bytes, Meta(min_length=sealing.BOX, max_length=sealing.BOX)]


class Body(msgspec.Struct, frozen=True, array_like=True):
    clear: bytes
    boxes: Annotated[tuple[ReaderBox, ...], Meta(max_length=MAX_MEMBERS + 1)]
    nonce: Bytes24
    sealed: Annotated[bytes, Meta(max_length=MAX_SEALED)]


_body = msgspec.msgpack.Decoder(Body)
_clear = msgspec.msgpack.Decoder(Clear)
_grant = msgspec.msgpack.Decoder(Grant)
_secrets = msgspec.msgpack.Decoder(GroupSecrets)


@dataclass(frozen=True)
class Part:
    """One verified part. What it lists is verified too; who is revoked is judged by the state."""

    raw: bytes
    clear: Clear
    grant: Grant
    body: Body
    chains: Mapping[bytes, tuple[Certificate, ...]]
    revocations: Mapping[bytes, Revocation]

    @property
    def order(self) -> tuple[int, int]:
        return self.grant.generation, self.clear.seq

    @property
    def rank(self) -> tuple[int, int, bytes]:
        """`order`, made total: of two parts of one order all nodes prefer the same."""
        return *self.order, blake3(self.raw).digest()

    def readers(self) -> set[bytes]:
        return {box.reader for box in self.body.boxes}

    def has_all_of(self, other: Part) -> bool:
        return (
            self.chains.keys() >= other.chains.keys()
            and self.revocations.keys() >= other.revocations.keys()
            and set(self.clear.epochs) >= set(other.clear.epochs)
        )

    def open(self, reader: bytes, key: PrivateKey) -> GroupSecrets | None:
        """The secrets; None when there is no box for this reader."""
        box = next((box.box for box in self.body.boxes if box.reader == reader), None)
        if box is None:
            return None
        content_key = sealing.open_key(box, key)
        body = self.body
        plain = sealing.unseal(body.sealed, clear=body.clear, key=content_key, nonce=body.nonce)
        secrets = signed.decode(_secrets, plain, MAX_SEALED, "set of group secrets")
        if tuple(epoch.epoch for epoch in secrets.epochs) != self.clear.epochs:
            raise IntegrityError("The group's epochs are not those that its state names.")
        return secrets


def read_part(raw: bytes) -> Part:
    outer = signed.split(raw, MAX_STATE, "group state")
    body = signed.decode(_body, outer.payload, MAX_STATE, "group state")
    clear = signed.decode(_clear, body.clear, MAX_STATE, "group state")
    signed.verify(CONTEXT, outer, clear.signer, "group state")
    if clear.signer != clear.group:
        links = read_chain(clear.chain, clear.group)
        if links[-1].subject != clear.signer or links[-1].role != Role.ADMIN:
            raise IntegrityError("The group state was signed by somebody who is no admin.")
    grant_parts = signed.split(clear.grant, MAX_GRANT, "generation grant")
    grant = signed.decode(_grant, grant_parts.payload, MAX_GRANT, "generation grant")
    signed.verify(GRANT_CONTEXT, grant_parts, clear.group, "generation grant")
    if grant.group != clear.group:
        raise IntegrityError("The group state has a grant of another group.")
    if len(set(clear.epochs)) != len(clear.epochs):
        raise FormatError("The group state names an epoch twice.")
    return Part(
        raw,
        clear,
        grant,
        body,
        {chain: read_chain(chain, clear.group) for chain in clear.chains},
        {record: verify_revocation(record, clear.group) for record in clear.revocations},
    )


def revoked_keys(
    chains: Iterable[tuple[Certificate, ...]], revocations: Iterable[Revocation], group: PublicKey
) -> frozenset[PublicKey]:
    """The revoked keys. An admin's word against an admin does not count: that takes the words."""
    admins = {link.subject for links in chains for link in links if link.role == Role.ADMIN}
    return frozenset(
        record.subject
        for record in revocations
        if record.issuer == group or record.subject not in admins
    )


@dataclass(frozen=True)
class Member:
    certificate: Certificate
    chain: bytes


def good_members(
    chains: Mapping[bytes, tuple[Certificate, ...]], revoked: frozenset[PublicKey]
) -> dict[PublicKey, Member]:
    """The best good certificate of each key: the highest role, then the newest, then any one."""
    best: dict[PublicKey, tuple[tuple[int, int, bytes], Member]] = {}
    for chain, links in chains.items():
        if any(link.subject in revoked for link in links):
            continue
        last = links[-1]
        worth = (RANKS[last.role], last.issued_ms, chain)
        if last.subject not in best or best[last.subject][0] < worth:
            best[last.subject] = worth, Member(last, chain)
    return {subject: member for subject, (_, member) in best.items()}


def write_part(clear: Clear, secrets: GroupSecrets, signer: SigningKey, random: Random) -> Part:
    """Seal for every good device and the recovery key, sign, and read back what was made."""
    chains = {chain: read_chain(chain, clear.group) for chain in clear.chains}
    records = [verify_revocation(record, clear.group) for record in clear.revocations]
    revoked = revoked_keys(chains.values(), records, clear.group)
    members = good_members(chains, revoked)
    grant = _grant.decode(signed.split(clear.grant, MAX_GRANT, "generation grant").payload)
    readers = {
        bytes(subject): VerifyKey(subject).to_curve25519_public_key()
        for subject, member in sorted(members.items())
        if member.certificate.role == Role.DEVICE
    }
    readers[grant.recovery] = CurveKey(grant.recovery)
    content_key, nonce = random(sealing.CONTENT_KEY), random(sealing.NONCE)
    clear_raw = encode(clear)
    body = Body(
        clear_raw,
        tuple(
            ReaderBox(r, sealing.seal_key(content_key, key, random)) for r, key in readers.items()
        ),
        nonce,
        sealing.seal(encode(secrets), clear=clear_raw, key=content_key, nonce=nonce),
    )
    raw = signed.sign(CONTEXT, encode(body), signer)
    try:
        return read_part(raw)
    except FormatError as exc:
        raise UsageError(f"The group has become too large: {exc}") from exc
