"""Group state: who belongs to a group, in clear for holders; its secrets, sealed for its devices.

    State  = MessagePack array of 1 to 8 parts; nearly always one
    Part   = what the group key or one admin said and sealed (see `part`)

Holders and friends enforce what is clear. The order is (generation, seq); a generation needs the
group key's grant, so that only the words raise it, and the recovery key cannot be exchanged either.

Two admins may change the state at the same time, and a device that sees both results can sign
neither. So a merge keeps both parts side by side, and what the state says is their union. The next
change by an admin writes all of it into one part. A part goes when a later, trusted one has all its
certificates, revocations and epochs. A revocation is a signed record of its own that nothing undoes
(I8): the set of revoked keys only grows, whatever is merged, in whatever order. (An
admin's word against an admin never counted.) Whoever stole an admin key can therefore revoke
devices for good, but not bring one back.

A part whose signer was revoked since still lends its records and old epochs, for what was sealed
with them must stay readable; it has no say in the order and never names the epoch for new blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from p2pstore.errors import FormatError, IntegrityError, UsageError
from p2pstore.ids import Epoch, GroupId, PublicKey, Tag, group_id_of
from p2pstore.keys import signed
from p2pstore.keys.certificate import (
    MAX_NAME,
    Certificate,
    Role,
    check_key,
    encode_chain,
    issue,
    public_key_of,
    read_chain,
    revoke,
    split_chain,
)
from p2pstore.keys.derive import group_signing_key, recovery_key, recovery_tag
from p2pstore.keys.part import (
    GRANT_CONTEXT,
    MAX_EPOCHS,
    MAX_PARTS,
    MAX_STATE,
    Clear,
    EpochSecret,
    Grant,
    GroupSecrets,
    Member,
    Part,
    good_members,
    read_part,
    revoked_keys,
    write_part,
)
from p2pstore.keys.sealing import Random
from p2pstore.keys.signed import encode

_state = msgspec.msgpack.Decoder(
    Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_PARTS)]
)


@dataclass(frozen=True, eq=False)
class GroupState:
    """A verified group state. `raw` is what is stored, sent and kept.

    Whether it is the right group's is for the caller: compare `group_public`.
    """

    raw: bytes = field(repr=False)
    parts: tuple[Part, ...] = field(repr=False)  # the one that leads first
    revoked: frozenset[PublicKey]
    _all: Mapping[PublicKey, Member] = field(repr=False)

    @classmethod
    def decode(cls, raw: bytes) -> GroupState:
        """FormatError when it is none, IntegrityError when a signature or a right is missing."""
        parts = signed.decode(_state, raw, MAX_STATE, "group state")
        return cls._of([read_part(part) for part in parts])

    @classmethod
    def _of(cls, parts: Iterable[Part]) -> GroupState:
        distinct = {part.raw: part for part in parts}
        group = next(iter(distinct.values())).clear.group
        if any(part.clear.group != group for part in distinct.values()):
            raise IntegrityError("These are states of two groups.")
        chains = {c: links for part in distinct.values() for c, links in part.chains.items()}
        records = {r: body for part in distinct.values() for r, body in part.revocations.items()}
        revoked = revoked_keys(chains.values(), records.values(), group)

        def standing(part: Part) -> tuple[bool, tuple[int, int, bytes]]:
            return part.clear.signer not in revoked, part.rank

        ordered = sorted(distinct.values(), key=standing, reverse=True)
        if not standing(ordered[0])[0]:
            raise IntegrityError("The group state was signed by a revoked admin.")
        kept: list[Part] = []
        for part in ordered:
            trusted = [k for k in kept if standing(k)[0] and k.rank > part.rank]
            if not any(k.has_all_of(part) for k in trusted):
                kept.append(part)
        return cls(
            encode(tuple(part.raw for part in kept)),
            tuple(kept),
            revoked,
            good_members(chains, revoked),
        )

    # -- what is clear ----------------------------------------------------------------------------

    @property
    def _leading(self) -> Part:
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

    def free_name(self, wish: str, subject: PublicKey) -> str:
        """`wish`, numbered when another member has that name: people act on names."""
        wish = wish[: MAX_NAME - 4]
        taken = {c.name for c in (*self.devices(), *self.friends()) if c.subject != subject}
        number, name = 1, wish
        while name in taken:
            number += 1
            name = f"{wish}-{number}"
        return name

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
        clear = Clear(
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
        part = write_part(clear, secrets, signer, random)
        return GroupState._of([part, *self.parts])


@dataclass(frozen=True)
class _Change:
    chains: tuple[bytes, ...] = ()
    revocations: tuple[bytes, ...] = ()
    rotate: bool = False


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


def recovery_chain(
    root: bytes, *, device: SigningKey, admin: SigningKey, name: str, now_ms: int
) -> bytes:
    """What a recovering device shows to holders before it has the group's state: the words made it.

    `recovered` with the same arguments writes the same certificates into the next state.
    """
    return _founding_chains(group_signing_key(root), device, admin, name, now_ms)[1]


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
    grant = Grant(group, 1, recovery, recovery_tag(root))
    secrets = GroupSecrets((EpochSecret(Epoch(random(8)), random(32), now_ms),), random(32))
    clear = Clear(
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
    return GroupState._of([write_part(clear, secrets, group_key, random)])


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
