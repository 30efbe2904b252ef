"""Secrets in envelopes: one random content key, given to each reader under its own public key.

    sealed = XChaCha20-Poly1305(content key, 24-byte nonce, aad = the clear part)
    box    = libsodium's sealed box of the content key: ephemeral X25519 key (32) and 48 bytes

The ephemeral keys come from the caller's dice, so that equal dice give equal bytes (vectors); what
they open with is libsodium's own.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey, SealedBox

from p2pstore.errors import IntegrityError

CONTENT_KEY = 32
NONCE = 24
BOX = 32 + 16 + CONTENT_KEY

Random = Callable[[int], bytes]


def seal_key(content_key: bytes, reader: PublicKey, random: Random) -> bytes:
    ephemeral = PrivateKey(random(32))
    public = bytes(ephemeral.public_key)
    nonce = blake2b(public + bytes(reader), digest_size=NONCE).digest()
    return public + Box(ephemeral, reader).encrypt(content_key, nonce).ciphertext


def open_key(box: bytes, reader: PrivateKey) -> bytes:
    try:
        return SealedBox(reader).decrypt(box)
    except (CryptoError, ValueError, TypeError) as exc:
        raise IntegrityError("The secrets are not sealed for this key.") from exc


def seal(secret: bytes, *, clear: bytes, key: bytes, nonce: bytes) -> bytes:
    return crypto_aead_xchacha20poly1305_ietf_encrypt(secret, clear, nonce, key)


def unseal(sealed: bytes, *, clear: bytes, key: bytes, nonce: bytes) -> bytes:
    try:
        return crypto_aead_xchacha20poly1305_ietf_decrypt(sealed, clear, nonce, key)
    except (CryptoError, ValueError, TypeError) as exc:
        raise IntegrityError("The sealed secrets were changed.") from exc
