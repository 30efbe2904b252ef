"""What the root secret becomes. Each use has a context of its own.

    group key     Ed25519 seed = derive_key("p2pstore 2026 group signing key", root)
    recovery key  X25519 secret = derive_key("p2pstore 2026 recovery key", root)
    recovery tag  20 bytes = derive_key("p2pstore 2026 recovery tag", root)

Under the recovery tag the holders of a group announce themselves, so that words alone find them.
"""

from __future__ import annotations

from blake3 import blake3
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from p2pstore.ids import Tag


def _derive(use: str, root: bytes, length: int = 32) -> bytes:
    if len(root) != 32:
        raise ValueError(f"a root has 32 bytes, got {len(root)}")
    return blake3(root, derive_key_context=f"p2pstore 2026 {use}").digest(length=length)


def group_signing_key(root: bytes) -> SigningKey:
    return SigningKey(_derive("group signing key", root))


def recovery_key(root: bytes) -> PrivateKey:
    return PrivateKey(_derive("recovery key", root))


def recovery_tag(root: bytes) -> Tag:
    return Tag(_derive("recovery tag", root, 20))
