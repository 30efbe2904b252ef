"""The secrets that formats are sealed with, derived from a group's epoch secrets.

    block, manifest, tag = BLAKE3 derive_key("p2pstore 2026 epoch block | manifest | tag", secret)

Each is 32 bytes and has one use. The dedup secret is no part of an epoch: it lives as long as the
group, so that a chunk that was sealed years ago is still known.

A share has no group: its own 32-byte secret takes the place of an epoch's, and the epoch's name is
derived from it as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from p2pstore.errors import IntegrityError
from p2pstore.ids import Epoch, Tag

SECRET_SIZE = 32


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
    def of_share(cls, share_secret: bytes) -> EpochKeys:
        """The keys of a share: its manifest needs no group secret."""
        name = Epoch(_derive("share epoch", share_secret, 8))
        return cls.derive(name, _derive("share keys", share_secret))


def share_tag(share_secret: bytes) -> Tag:
    """The one tag of the bundle that holds a share's root; who has only the share key finds it."""
    return Tag(_derive("share tag", share_secret, 20))


def share_token(share_secret: bytes) -> bytes:
    """What a stranger shows to a holder to get the blocks of a share."""
    return _derive("share token", share_secret)


@dataclass(frozen=True, slots=True)
class Keyring:
    """All epochs that this device can read, and the one that new things are sealed with."""

    current: EpochKeys
    epochs: Mapping[Epoch, EpochKeys] = field(repr=False)
    dedup: bytes = field(repr=False)

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
