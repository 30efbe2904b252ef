"""Group state: who belongs to a group, in clear for holders; its secrets, sealed for its devices.

    State  = MessagePack array of 1 to 8 parts; nearly always one
    Part   = Signed [clear, boxes, nonce, sealed], by the group key or by a certified admin
    clear  = bytes of [format (1), group, grant, seq, chains, revocations, epoch names, signer,
             chain of the signer (empty: the group key)]
    grant  = Signed [group, generation, recovery public key (X25519), recovery tag], by that key
    boxes  = [[reader, box of the content key], ...]; a reader is a device's Ed25519 key or the
             recovery public key
    sealed = [[[epoch, secret, created (ms)], ...], dedup secret] under the content key, aad = clear
             (see `sealing`)

Holders and friends enforce what is clear. The order is (generation, seq); a generation needs the
group key's grant, so that only the words raise it, and the recovery key cannot be exchanged either.

Two admins may change the state at the same time, and a device that sees both results can sign
neither. So a merge keeps both parts side by side, and what the state says is their union. The next
change by an admin writes all of it into one part. A part goes when a later, trusted one has all its
certificates, revocations and epochs. A revocation is a signed record of its own that nothing undoes
(I8): the set of revoked keys only grows, whatever is merged, in whatever order. Whoever stole an
admin key can therefore revoke devices for good, but not bring one back.

A part whose signer was revoked since still lends its records and old epochs, for what was sealed
with them must stay readable; it has no say in the order and never names the epoch for new blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import msgspec
from blake3 import blake3
from msgspec import Meta
from nacl.public import PrivateKey
from nacl.public import PublicKey as CurveKey
from nacl.signing import SigningKey, VerifyKey

from p2pstore.errors import FormatError, IntegrityError, UsageError
from p2pstore.ids import Bytes24, Bytes32, Epoch, GroupId, PublicKey, Tag, group_id_of
from p2pstore.keys import sealing, signed
from p2pstore.keys.certificate import (
    MAX_CHAIN,
    MAX_REVOCATION,
    Certificate,
    Milliseconds,
    Revocation,
    Role,
    check_key,
    encode_chain,
    issue,
    public_key_of,
    read_chain,
    revoke,
    split_chain,
    verify_revocation,
)
from p2pstore.keys.derive import group_signing_key, recovery_key, recovery_tag
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


class _Grant(msgspec.Struct, frozen=True, array_like=True):
    group: PublicKey
    generation: Counter
    recovery: Bytes32
    tag: Tag


class _Clear(msgspec.Struct, frozen=True, array_like=True):
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


class _Box(msgspec.Struct, frozen=True, array_like=True):
    reader: Bytes32
    box: Annotated[bytes, Meta(min_length=sealing.BOX, max_length=sealing.BOX)]


class _Body(msgspec.Struct, frozen=True, array_like=True):
    clear: bytes
    boxes: Annotated[tuple[_Box, ...], Meta(max_length=MAX_MEMBERS + 1)]
    nonce: Bytes24
    sealed: Annotated[bytes, Meta(max_length=MAX_SEALED)]


_state = msgspec.msgpack.Decoder(
    Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_PARTS)]
)
_body = msgspec.msgpack.Decoder(_Body)
_clear = msgspec.msgpack.Decoder(_Clear)
_grant = msgspec.msgpack.Decoder(_Grant)
_secrets = msgspec.msgpack.Decoder(GroupSecrets)


@dataclass(frozen=True)
class _Part:
    """One verified part. What it lists is verified too; who is revoked is judged by the state."""

    raw: bytes
    clear: _Clear
    grant: _Grant
    body: _Body
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

    def has_all_of(self, other: _Part) -> bool:
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


def _read_part(raw: bytes) -> _Part:
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
    return _Part(
        raw,
        clear,
        grant,
        body,
        {chain: read_chain(chain, clear.group) for chain in clear.chains},
        {record: verify_revocation(record, clear.group) for record in clear.revocations},
    )


def _revoked(
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
class _Member:
    certificate: Certificate
    chain: bytes


def _members(
    chains: Mapping[bytes, tuple[Certificate, ...]], revoked: frozenset[PublicKey]
) -> dict[PublicKey, _Member]:
    """The best good certificate of each key: the highest role, then the newest, then any one."""
    best: dict[PublicKey, tuple[tuple[int, int, bytes], _Member]] = {}
    for chain, links in chains.items():
        if any(link.subject in revoked for link in links):
            continue
        last = links[-1]
        worth = (RANKS[last.role], last.issued_ms, chain)
        if last.subject not in best or best[last.subject][0] < worth:
            best[last.subject] = worth, _Member(last, chain)
    return {subject: member for subject, (_, member) in best.items()}


@dataclass(frozen=True, eq=False)
class GroupState:
    """A verified group state. `raw` is what is stored, sent and kept.

    Whether it is the right group's is for the caller: compare `group_public`.
    """

    raw: bytes = field(repr=False)
    parts: tuple[_Part, ...] = field(repr=False)  # the one that leads first
    revoked: frozenset[PublicKey]
    _all: Mapping[PublicKey, _Member] = field(repr=False)

    @classmethod
    def decode(cls, raw: bytes) -> GroupState:
        """FormatError when it is none, IntegrityError when a signature or a right is missing."""
        parts = signed.decode(_state, raw, MAX_STATE, "group state")
        return cls._of([_read_part(part) for part in parts])

    @classmethod
    def _of(cls, parts: Iterable[_Part]) -> GroupState:
        distinct = {part.raw: part for part in parts}
        group = next(iter(distinct.values())).clear.group
        if any(part.clear.group != group for part in distinct.values()):
            raise IntegrityError("These are states of two groups.")
        chains = {c: links for part in distinct.values() for c, links in part.chains.items()}
        records = {r: body for part in distinct.values() for r, body in part.revocations.items()}
        revoked = _revoked(chains.values(), records.values(), group)

        def standing(part: _Part) -> tuple[bool, tuple[int, int, bytes]]:
            return part.clear.signer not in revoked, part.rank

        ordered = sorted(distinct.values(), key=standing, reverse=True)
        if not standing(ordered[0])[0]:
            raise IntegrityError("The group state was signed by a revoked admin.")
        kept: list[_Part] = []
        for part in ordered:
            trusted = [k for k in kept if standing(k)[0] and k.rank > part.rank]
            if not any(k.has_all_of(part) for k in trusted):
                kept.append(part)
        return cls(
            encode(tuple(part.raw for part in kept)),
            tuple(kept),
            revoked,
            _members(chains, revoked),
        )

    # -- what is clear ----------------------------------------------------------------------------

    @property
    def _leading(self) -> _Part:
        return self.parts[0]

    @property
    def order(self) -> tuple[int, int]:
        return self._leading.order

    @property
    def generation(self) -> int:
        return self.order[0]

    @property
    def seq(self) -> int:
        return self.order[1]

    @property
    def group_public(self) -> PublicKey:
        return self._leading.clear.group

    @property
    def group_id(self) -> GroupId:
        return group_id_of(self.group_public)

    @property
    def recovery_public(self) -> bytes:
        return self._leading.grant.recovery

    @property
    def recovery_tag(self) -> Tag:
        """Where holders announce themselves, so that the words alone find them."""
        return self._leading.grant.tag

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """All certificate chains, those of revoked keys included."""
        return tuple(sorted(self._chains()))

    @property
    def revocations(self) -> tuple[PublicKey, ...]:
        return tuple(sorted(self.revoked))

    def role_of(self, subject: PublicKey) -> Role:
        """STRANGER for whoever is revoked or was never certified; the group's own key is ADMIN."""
        if subject == self.group_public:
            return Role.ADMIN
        member = self._all.get(subject)
        return Role.STRANGER if member is None else member.certificate.role

    def certificate_of(self, subject: PublicKey) -> Certificate | None:
        member = self._all.get(subject)
        return None if member is None else member.certificate

    def chain_of(self, subject: PublicKey) -> bytes | None:
        """The credential that this key presents in HELLO."""
        member = self._all.get(subject)
        return None if member is None else member.chain

    def members(self, role: Role) -> tuple[Certificate, ...]:
        """Good certificates of that role, oldest first."""
        found = [m.certificate for m in self._all.values() if m.certificate.role == role]
        return tuple(sorted(found, key=lambda c: (c.issued_ms, c.subject)))

    def devices(self) -> tuple[Certificate, ...]:
        return self.members(Role.DEVICE)

    def friends(self) -> tuple[Certificate, ...]:
        return self.members(Role.FRIEND)

    def admins(self) -> tuple[Certificate, ...]:
        return self.members(Role.ADMIN)

    def name_of(self, subject: PublicKey) -> str | None:
        """The name in the newest certificate, a revoked one's too: to say who signed something."""
        found = [links[-1] for links in self._chains().values() if links[-1].subject == subject]
        return max(found, key=lambda c: c.issued_ms).name if found else None

    def _chains(self) -> dict[bytes, tuple[Certificate, ...]]:
        return {chain: links for part in self.parts for chain, links in part.chains.items()}

    # -- what is sealed ---------------------------------------------------------------------------

    def open(self, device: SigningKey) -> GroupSecrets:
        """The secrets, for a device that they are sealed for; IntegrityError for any other."""
        return self._open(bytes(device.verify_key), device.to_curve25519_private_key())

    def open_recovery(self, key: PrivateKey) -> GroupSecrets:
        """The secrets, for whoever has the words."""
        return self._open(bytes(key.public_key), key)

    def _open(self, reader: bytes, key: PrivateKey) -> GroupSecrets:
        """The union of all parts' epochs; the current one is that of the first part that opens."""
        opened: list[GroupSecrets] = []
        for part in self.parts:
            try:
                secrets = part.open(reader, key)
            except (IntegrityError, FormatError):
                if part.clear.signer in self.revoked:
                    continue  # its signer may have spoilt it on purpose
                raise
            if secrets is not None:
                opened.append(secrets)
        if not opened:
            raise IntegrityError("The group's secrets are not sealed for this key.")
        current = opened[0].current
        known = {epoch.epoch: epoch for secrets in reversed(opened) for epoch in secrets.epochs}
        known.pop(current.epoch)
        older = sorted(known.values(), key=lambda epoch: (epoch.created_ms, epoch.epoch))
        return GroupSecrets((*older[-(MAX_EPOCHS - 1) :], current), opened[0].dedup)

    @property
    def wants_new_epoch(self) -> bool:
        """Whether a revoked device can read the current epoch: parts that met only in a merge."""
        current = self._leading.clear.epochs[-1]
        return any(
            current in part.clear.epochs and part.readers() & self.revoked for part in self.parts
        )

    # -- changes, by an admin or with the words ---------------------------------------------------

    def certify(
        self, subject: PublicKey, role: Role, name: str, *, signer: SigningKey, now_ms: int
    ) -> bytes:
        """The chain of a new member; `with_member` makes it part of the state."""
        own = self._signer_chain(signer)
        if subject in self.revoked or subject == self.group_public:
            raise UsageError("This key was revoked; the node needs a new identity to come back.")
        certificate = issue(
            signer, group=self.group_public, subject=subject, role=role, name=name, now_ms=now_ms
        )
        return encode_chain((*(split_chain(own) if own else ()), certificate))

    def with_member(
        self,
        chain: bytes,
        *,
        signer: SigningKey,
        secrets: GroupSecrets,
        now_ms: int,
        random: Random,
    ) -> GroupState:
        """The next state, in which the chain's subject is a member; a device gets the secrets."""
        links = read_chain(chain, self.group_public)
        if links[-1].subject in self.revoked:
            raise UsageError("This key was revoked; the node needs a new identity to come back.")
        check_key(links[-1].subject)
        return self._next(
            _Change(chains=(chain,)), signer=signer, secrets=secrets, now_ms=now_ms, random=random
        )

    def with_revocation(
        self,
        subject: PublicKey,
        *,
        signer: SigningKey,
        secrets: GroupSecrets,
        now_ms: int,
        random: Random,
    ) -> GroupState:
        """The next state, in which `subject` is out for good; for a device with a new epoch.

        Revoking an admin takes the group key as signer, which also raises the generation.
        """
        if self.role_of(subject) == Role.ADMIN and public_key_of(signer) != self.group_public:
            raise UsageError("Revoking an admin needs the 24 words.")
        if subject == self.group_public:
            raise UsageError("The group's own key cannot be revoked.")
        record = self._revocation(subject, signer, now_ms)
        change = _Change(revocations=(record,), rotate=self.role_of(subject) != Role.FRIEND)
        return self._next(change, signer=signer, secrets=secrets, now_ms=now_ms, random=random)

    def recovered(
        self,
        root: bytes,
        *,
        device: SigningKey,
        admin: SigningKey,
        name: str,
        now_ms: int,
        random: Random,
        revoke: Collection[PublicKey] = (),
        keep: Collection[PublicKey] = (),
    ) -> GroupState:
        """The next generation, made with the words: a new admin, and this device of its own.

        `revoke` lists the lost ones. Members that a revoked admin had certified are out with it,
        except those in `keep`: the owner has to know them, the thief may have certified others.
        """
        group_key = group_signing_key(root)
        group = self.group_public
        if public_key_of(group_key) != group:
            raise UsageError("These words are those of another group.")
        if {public_key_of(device), public_key_of(admin)} & self.revoked:
            raise UsageError("This key was revoked; the node needs a new identity to come back.")
        chains = list(_founding_chains(group_key, device, admin, name, now_ms))
        for member in (self._all[subject].certificate for subject in keep if subject in self._all):
            chains.append(
                encode_chain(
                    [
                        issue(
                            group_key,
                            group=group,
                            subject=member.subject,
                            role=member.role,
                            name=member.name,
                            now_ms=now_ms,
                        )
                    ]
                )
            )
        records = tuple(self._revocation(subject, group_key, now_ms) for subject in revoke)
        return self._next(
            _Change(tuple(chains), records, rotate=bool(revoke)),
            signer=group_key,
            secrets=self.open_recovery(recovery_key(root)),
            now_ms=now_ms,
            random=random,
        )

    def _revocation(self, subject: PublicKey, signer: SigningKey, now_ms: int) -> bytes:
        return revoke(
            signer,
            group=self.group_public,
            subject=subject,
            chain=self._signer_chain(signer),
            now_ms=now_ms,
        )

    def _signer_chain(self, signer: SigningKey) -> bytes:
        public = public_key_of(signer)
        if public == self.group_public:
            return b""
        if self.role_of(public) != Role.ADMIN:
            names = " or ".join(c.name for c in self.admins()) or "nobody; use the 24 words"
            raise UsageError(f"This device is no admin of the group. Do it on: {names}.")
        return self._all[public].chain

    def _next(
        self,
        change: _Change,
        *,
        signer: SigningKey,
        secrets: GroupSecrets,
        now_ms: int,
        random: Random,
    ) -> GroupState:
        chain = self._signer_chain(signer)
        with_words = not chain
        leading = self._leading
        if change.rotate or self.wants_new_epoch:
            fresh = EpochSecret(Epoch(random(8)), random(32), now_ms)
            secrets = GroupSecrets((*secrets.epochs, fresh), secrets.dedup)
        grant, seq = leading.clear.grant, self.seq + 1
        if with_words:
            higher = msgspec.structs.replace(leading.grant, generation=self.generation + 1)
            grant, seq = signed.sign(GRANT_CONTEXT, encode(higher), signer), 1
        records = {r for part in self.parts for r in part.revocations}
        clear = _Clear(
            1,
            self.group_public,
            grant,
            seq,
            tuple(sorted({*self._chains(), *change.chains})),
            tuple(sorted({*records, *change.revocations})),
            tuple(epoch.epoch for epoch in secrets.epochs),
            public_key_of(signer),
            chain,
        )
        part = _write_part(clear, secrets, signer, random)
        return GroupState._of([part, *self.parts])


@dataclass(frozen=True)
class _Change:
    chains: tuple[bytes, ...] = ()
    revocations: tuple[bytes, ...] = ()
    rotate: bool = False


def _write_part(clear: _Clear, secrets: GroupSecrets, signer: SigningKey, random: Random) -> _Part:
    """Seal for every good device and the recovery key, sign, and read back what was made."""
    chains = {chain: read_chain(chain, clear.group) for chain in clear.chains}
    records = [verify_revocation(record, clear.group) for record in clear.revocations]
    revoked = _revoked(chains.values(), records, clear.group)
    members = _members(chains, revoked)
    grant = _grant.decode(signed.split(clear.grant, MAX_GRANT, "generation grant").payload)
    readers = {
        bytes(subject): VerifyKey(subject).to_curve25519_public_key()
        for subject, member in sorted(members.items())
        if member.certificate.role == Role.DEVICE
    }
    readers[grant.recovery] = CurveKey(grant.recovery)
    content_key, nonce = random(sealing.CONTENT_KEY), random(sealing.NONCE)
    clear_raw = encode(clear)
    body = _Body(
        clear_raw,
        tuple(_Box(r, sealing.seal_key(content_key, key, random)) for r, key in readers.items()),
        nonce,
        sealing.seal(encode(secrets), clear=clear_raw, key=content_key, nonce=nonce),
    )
    raw = signed.sign(CONTEXT, encode(body), signer)
    try:
        return _read_part(raw)
    except FormatError as exc:
        raise UsageError(f"The group has become too large: {exc}") from exc


def _founding_chains(
    group_key: SigningKey, device: SigningKey, admin: SigningKey, name: str, now_ms: int
) -> tuple[bytes, bytes]:
    group = public_key_of(group_key)
    upper = issue(
        group_key,
        group=group,
        subject=public_key_of(admin),
        role=Role.ADMIN,
        name=name,
        now_ms=now_ms,
    )
    lower = issue(
        admin,
        group=group,
        subject=public_key_of(device),
        role=Role.DEVICE,
        name=name,
        now_ms=now_ms,
    )
    return encode_chain([upper]), encode_chain([upper, lower])


def create_group(
    root: bytes,
    *,
    device: SigningKey,
    admin: SigningKey,
    name: str,
    now_ms: int,
    random: Random,
) -> GroupState:
    """A new group's first state: one admin, one device of the same name, one epoch."""
    group_key = group_signing_key(root)
    group = public_key_of(group_key)
    recovery = bytes(recovery_key(root).public_key)
    grant = _Grant(group, 1, recovery, recovery_tag(root))
    secrets = GroupSecrets((EpochSecret(Epoch(random(8)), random(32), now_ms),), random(32))
    clear = _Clear(
        1,
        group,
        signed.sign(GRANT_CONTEXT, encode(grant), group_key),
        1,
        tuple(sorted(_founding_chains(group_key, device, admin, name, now_ms))),
        (),
        (secrets.current.epoch,),
        group,
        b"",
    )
    return GroupState._of([_write_part(clear, secrets, group_key, random)])


def newer(a: GroupState, b: GroupState) -> bool:
    """Whether `a` comes after `b`. Two states of one order may still differ: merge them."""
    return a.order > b.order


def merge(a: GroupState, b: GroupState) -> GroupState:
    """What both say together; the same whichever comes first. IntegrityError: another group.

    Beyond the limits the parts that lead least are left out, those of revoked admins first. Only a
    hostile admin makes so many; to refuse the merge would let it keep its own revocation out.
    """
    parts = {part.raw: part for part in (*a.parts, *b.parts)}
    merged = GroupState._of(parts.values())
    while len(merged.parts) > MAX_PARTS or len(merged.raw) > MAX_STATE:
        merged = GroupState._of(merged.parts[:-1])
    return merged
