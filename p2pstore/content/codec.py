"""How structures become bytes and back, and how bytes are signed.

Every structure is MessagePack, an array in the order of its fields, so that equal values have
equal bytes. The only maps are version vectors; those that encode one sort it before (msgspec sorts
maps with text keys only). A decoder takes arrays that are longer
than it knows: a later version may add fields behind.

A signature is Ed25519 over  context, one zero byte, payload  where payload is the encoded
structure. What was signed is kept as it came and never encoded again to verify it. Contexts are
all different, so that a signature made for one use is worth nothing for another.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from nacl.bindings import crypto_sign, crypto_sign_open
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey

from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import PublicKey

T = TypeVar("T")

MAX_INT = (1 << 63) - 1  # what SQLite and file systems can hold
MAX_CHAIN = 1024  # a credential is two or three certificates of about 200 bytes

encode = msgspec.msgpack.Encoder().encode


def decode(decoder: msgspec.msgpack.Decoder[T], raw: bytes, limit: int, what: str) -> T:
    """`raw` as the decoder's type; FormatError when longer than `limit` or not of that type."""
    if len(raw) > limit:
        raise FormatError(f"{what}: {len(raw)} bytes, at most {limit} are allowed")
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        # RecursionError: msgspec follows nested arrays, also those in fields that it skips.
        raise FormatError(f"{what} is damaged: {exc}") from exc


def public_key_of(key: SigningKey) -> PublicKey:
    return PublicKey(bytes(key.verify_key))


def sign(context: bytes, payload: bytes, key: SigningKey) -> bytes:
    """The 64 bytes of the signature."""
    # The binding itself: the key's own method makes three more objects for each signature.
    secret = bytes(key) + bytes(key.verify_key)
    return crypto_sign(context + b"\0" + payload, secret)[:64]


def verify(context: bytes, payload: bytes, signature: bytes, signer: bytes) -> None:
    """IntegrityError unless `signer` signed `payload` for this context."""
    if len(signature) != 64 or len(signer) != 32:
        raise IntegrityError("a signature or a public key of the wrong length")
    try:
        crypto_sign_open(signature + context + b"\0" + payload, signer)
    except CryptoError as exc:
        raise IntegrityError(f"the signature is wrong ({context.decode()})") from exc
