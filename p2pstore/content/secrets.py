"""The secrets that formats are sealed with, derived from a group's epoch secrets.

    block, manifest, tag = BLAKE3 derive_key("p2pstore 2026 epoch block | manifest | tag", secret)

Each is 32 bytes and has one use. The dedup secret is no part of an epoch: it lives as long as the
group, so that a chunk that was sealed years ago is still known.

A share has no group: its own 32-byte secret takes the place of an epoch's, and the epoch's name is
derived from it as well. Bundle id and tag come from the secret in the key, so that whoever has the
key finds the share; token and keys come from `share_access`, which also wants the password, if
there is one: argon2id over it (3 rounds, 64 MiB), salted by the secret, hashed with the secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blake3 import blake3
from nacl.pwhash.argon2id import kdf as argon2id

from p2pstore.errors import IntegrityError
from p2pstore.ids import BundleId, Epoch, Tag

SECRET_SIZE = 32
_GUESS_ROUNDS, _GUESS_BYTES = 3, 64 << 20


def _derive(use: str, secret: bytes, length: int = 32) -> bytes:
    return blake3(secret, derive_key_context=f"p2pstore 2026 {use}").digest(length=length)


@dataclass(frozen=True, slots=True)
class EpochKeys:
    epoch: Epoch
    block: bytes = field(repr=False)
    manifest: bytes = field(repr=False)
    tag: bytes = field(repr=False)

    @classmethod
    def derive(cls, epoch: Epoch, secret: bytes) -> EpochKeys:
        if len(secret) != SECRET_SIZE or len(epoch) != 8:
            raise ValueError("an epoch has a name of 8 bytes and a secret of 32")
        return cls(
            epoch,
            block=_derive("epoch block", secret),
            manifest=_derive("epoch manifest", secret),
            tag=_derive("epoch tag", secret),
        )

    @classmethod
    def of_share(cls, access: bytes) -> EpochKeys:
        """The keys of a share: its manifest needs no group secret."""
        name = Epoch(_derive("share epoch", access, 8))
        return cls.derive(name, _derive("share keys", access))


def share_tag(share_secret: bytes) -> Tag:
    """The one tag of the bundle that holds a share's root; who has only the share key finds it."""
    return Tag(_derive("share tag", share_secret, 20))


def share_bundle(share_secret: bytes) -> BundleId:
    """The id of that bundle; as good as a random one, since the secret is."""
    return BundleId(_derive("share bundle", share_secret))


def share_token(access: bytes) -> bytes:
    """What a stranger shows to a holder to get the blocks of a share."""
    return _derive("share token", access)


def share_root_key(access: bytes) -> bytes:
    """The key of the one block that holds a share's manifest: no entry anywhere names it."""
    return _derive("share root", access)


def share_access(share_secret: bytes, password: str) -> bytes:
    """What opens a share: its secret, or with a password a secret made of both.

    Blocks for a fifth of a second and takes 64 MiB: that is what guessing costs.
    """
    if not password:
        return share_secret
    stretched = argon2id(
        SECRET_SIZE,
        password.encode(),
        _derive("share salt", share_secret, 16),
        opslimit=_GUESS_ROUNDS,
        memlimit=_GUESS_BYTES,
    )
    return _derive("share password", share_secret + stretched)


@dataclass(frozen=True, slots=True)
class Keyring:
    """All epochs that this device can read, and the one that new things are sealed with."""

    current: EpochKeys
    epochs: Mapping[Epoch, EpochKeys] = field(repr=False)
    dedup: bytes = field(repr=False)

    @classmethod
    def of_share(cls, access: bytes) -> Keyring:
        """A share's own: it reads nothing else, and shares no chunk with anything."""
        keys = EpochKeys.of_share(access)
        return cls(keys, {keys.epoch: keys}, _derive("share dedup", access))

    def __getitem__(self, epoch: Epoch) -> EpochKeys:
        """The keys of that epoch; IntegrityError when it is none of ours."""
        keys = self.epochs.get(epoch)
        if keys is not None:
            return keys
        if epoch == self.current.epoch:
            return self.current
        raise IntegrityError(
            "This was sealed by another group, or after this device was taken out of it: "
            f"there are no keys here of epoch {epoch.hex()}."
        )

    get = __getitem__
