"""Bytes with an Ed25519 signature: encoded once, signed, kept and verified as they are.

Signed = MessagePack array [payload, signature(64)]. The signature is over a context, a zero byte
and the payload; no two uses share a context.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import Bytes64, PublicKey

encode = msgspec.msgpack.Encoder(order="deterministic").encode

_T = TypeVar("_T")


class Signed(msgspec.Struct, frozen=True, array_like=True):
    payload: bytes
    signature: Bytes64


_signed = msgspec.msgpack.Decoder(Signed)


def sign(context: bytes, payload: bytes, key: SigningKey) -> bytes:
    return encode(Signed(payload, key.sign(context + b"\0" + payload).signature))


def decode(decoder: msgspec.msgpack.Decoder[_T], raw: bytes, limit: int, what: str) -> _T:
    """`raw` as the decoder's type; FormatError when it is too long or not of that type."""
    if len(raw) > limit:
        raise FormatError(f"A {what} of {len(raw)} bytes is longer than {limit}.")
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        # RecursionError: msgspec follows nested arrays, also those that it skips.
        raise FormatError(f"A {what} is damaged: {exc}") from exc


def split(raw: bytes, limit: int, what: str) -> Signed:
    """The parts, not verified yet."""
    return decode(_signed, raw, limit, what)


def verify(context: bytes, signed: Signed, signer: PublicKey, what: str) -> None:
    """IntegrityError unless `signer` signed this payload for this context."""
    try:
        VerifyKey(signer).verify(context + b"\0" + signed.payload, signed.signature)
    except (BadSignatureError, ValueError, TypeError) as exc:
        raise IntegrityError(f"The signature of a {what} is wrong.") from exc
