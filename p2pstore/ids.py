"""Names of things. An id is bytes of one exact length, and never mixed with another kind.

Decoding a msgspec structure checks the lengths, because each type carries them; an id from
any other source goes through `checked`.
"""

from __future__ import annotations

import base64
from typing import Annotated, NewType, TypeVar

from blake3 import blake3
from msgspec import Meta

Bytes8 = Annotated[bytes, Meta(min_length=8, max_length=8)]
Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
Bytes20 = Annotated[bytes, Meta(min_length=20, max_length=20)]
Bytes24 = Annotated[bytes, Meta(min_length=24, max_length=24)]
Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
Bytes64 = Annotated[bytes, Meta(min_length=64, max_length=64)]

BlockId = NewType("BlockId", Bytes32)  # BLAKE3 of the sealed bytes
BundleId = NewType("BundleId", Bytes32)  # random
GroupId = NewType("GroupId", Bytes32)  # BLAKE3 of the group's public key
NodeId = NewType("NodeId", Bytes20)  # first 20 bytes of BLAKE3 of the node's public key
Tag = NewType("Tag", Bytes20)  # under which a bundle is announced in the DHT
FolderId = NewType("FolderId", Bytes16)  # random
FileId = NewType("FileId", Bytes16)  # random
Epoch = NewType("Epoch", Bytes8)  # names a group secret
PublicKey = NewType("PublicKey", Bytes32)  # Ed25519

LENGTHS = {
    "BlockId": 32,
    "BundleId": 32,
    "GroupId": 32,
    "NodeId": 20,
    "Tag": 20,
    "FolderId": 16,
    "FileId": 16,
    "Epoch": 8,
    "PublicKey": 32,
}

_T = TypeVar("_T", BlockId, BundleId, GroupId, NodeId, Tag, FolderId, FileId, Epoch, PublicKey)


def checked(kind: type[_T], raw: bytes) -> _T:
    """`raw` as an id of that kind; ValueError when the length is another."""
    expected = LENGTHS[kind.__name__]
    if len(raw) != expected:
        raise ValueError(f"{kind.__name__} needs {expected} bytes, got {len(raw)}")
    return kind(raw)


def node_id_of(public_key: PublicKey) -> NodeId:
    return NodeId(blake3(public_key).digest(length=20))


def group_id_of(public_key: PublicKey) -> GroupId:
    return GroupId(blake3(public_key).digest())


def base32(raw: bytes) -> str:
    """In lower case, without padding: how links and keys are written."""
    return base64.b32encode(raw).decode().rstrip("=").lower()


def unbase32(text: str) -> bytes:
    """ValueError when `text` is not exactly what `base32` makes (in either case)."""
    raw = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    if base32(raw) != text.lower():
        raise ValueError("not canonical base32")
    return raw


def short(identifier: bytes) -> str:
    """The first characters of an id for humans, as `7k2f-q9`; never parsed back."""
    text = base64.b32encode(identifier[:4]).decode().lower()
    return f"{text[:4]}-{text[4:6]}"
