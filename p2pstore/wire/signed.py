"""Bytes with an Ed25519 signature: encoded once, signed, kept and verified as they are.

Signed = MessagePack array [payload, signature(64)]. The signature is over `context`, a zero byte
and the payload; contexts differ for each use, so that no signature is good for two things.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import Bytes64, PublicKey


class Signed(msgspec.Struct, frozen=True, array_like=True):
    payload: bytes
    signature: Bytes64


_T = TypeVar("_T")
_signed = msgspec.msgpack.Decoder(Signed)
_encoder = msgspec.msgpack.Encoder(order="deterministic")


def sign(context: bytes, payload: bytes, key: SigningKey) -> bytes:
    """The encoded `Signed` of `payload` under `context`."""
    signature = key.sign(context + b"\0" + payload).signature
    return _encoder.encode(Signed(payload, signature))


def encode_payload(value: msgspec.Struct) -> bytes:
    return _encoder.encode(value)


def split(raw: bytes, limit: int) -> Signed:
    """The parts of an encoded `Signed`, not verified yet; FormatError beyond `limit` bytes."""
    if len(raw) > limit:
        raise FormatError(f"A signed record of {len(raw)} bytes is longer than {limit}.")
    try:
        return _signed.decode(raw)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise FormatError("A signed record cannot be read.") from exc


def decode_payload(decoder: msgspec.msgpack.Decoder[_T], payload: bytes) -> _T:
    try:
        return decoder.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as exc:
        raise FormatError("What a signed record says cannot be read.") from exc


def verify(context: bytes, signed: Signed, signer: PublicKey) -> None:
    """IntegrityError unless `signer` signed this payload under `context`."""
    try:
        VerifyKey(signer).verify(context + b"\0" + signed.payload, signed.signature)
    except (BadSignatureError, ValueError, TypeError) as exc:
        raise IntegrityError("A signature is wrong.") from exc
