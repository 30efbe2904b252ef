"""What peers sign about blocks: a request that others may forward, and a holder's receipt.

Both are `Signed` (see `signed`): [payload, signature], payload a MessagePack array in the order of
the fields below. Who may ask, and whether a receipt counts, is judged above.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from nacl.signing import SigningKey

from p2pstore.errors import FormatError, LocalProtocolError
from p2pstore.ids import BlockId, BundleId, Bytes16, Bytes32, GroupId, PublicKey, Tag
from p2pstore.wire.record import Milliseconds
from p2pstore.wire.signed import Signed, decode_payload, encode_payload, sign, split, verify

GET_CONTEXT = b"p2pstore 2026 get request"
RECEIPT_CONTEXT = b"p2pstore 2026 receipt"

MAX_WANTED = 1024  # blocks a request: 36 KB of ids, well below a control frame
MAX_CHAIN = 4096  # a certificate chain has at most three links
MAX_TOKEN = 64
MAX_SIGNED_GET = 48 * 1024  # 1,024 ids, a chain and the rest, inside a control frame
MAX_RECEIPT = 1024

Size = Annotated[int, Meta(ge=0, le=2**53)]
Seq = Annotated[int, Meta(ge=0, le=2**53)]
Chain = Annotated[bytes, Meta(max_length=MAX_CHAIN)]

SignedGet = Signed


class GetRequest(msgspec.Struct, frozen=True, array_like=True):
    """Who asks for which blocks, until when, and for how many bytes at most.

    `chain` is the asker's credential (empty for a stranger), `token` that of a share's grant (or
    empty). No `blocks` means every live block of the bundle. `request_id` is random and ends loops
    of forwarding. `budget` bounds the payload bytes that all answers together may have.
    """

    asker: PublicKey
    chain: Chain
    token: Annotated[bytes, Meta(max_length=MAX_TOKEN)]
    tag: Tag
    bundle: BundleId
    blocks: Annotated[tuple[BlockId, ...], Meta(max_length=MAX_WANTED)]
    request_id: Bytes16
    expires_ms: Milliseconds
    budget: Size


class ReceiptBody(msgspec.Struct, frozen=True, array_like=True):
    """A holder's word: "I hold these bytes of this bundle, durably, until then".

    `seq` and `live_map_hash` (BLAKE3 of the encoded signed live map) name what was covered,
    `bytes` how many sealed bytes that is. `nonce` is the one that the owner sent with PUT_END, and
    `proof` the proof of content.Prover for it.
    """

    group: GroupId
    bundle: BundleId
    seq: Seq
    live_map_hash: Bytes32
    bytes: Size
    holder: PublicKey
    lease_until_ms: Milliseconds
    nonce: Bytes32
    proof: Bytes32


_get = msgspec.msgpack.Decoder(GetRequest)
_receipt = msgspec.msgpack.Decoder(ReceiptBody)


def sign_get(request: GetRequest, key: SigningKey) -> bytes:
    if bytes(key.verify_key) != request.asker:
        raise LocalProtocolError("A request is signed with the asker's own key only.")
    raw = sign(GET_CONTEXT, encode_payload(request), key)
    if len(raw) > MAX_SIGNED_GET:
        raise LocalProtocolError(f"A signed request of {len(raw)} bytes is too long.")
    return raw


def verify_get(raw: bytes) -> GetRequest:
    """The request, its signature by the asker checked; FormatError or IntegrityError."""
    signed = split(raw, MAX_SIGNED_GET)
    request = decode_payload(_get, signed.payload)
    verify(GET_CONTEXT, signed, request.asker)
    return request


def sign_receipt(body: ReceiptBody, key: SigningKey) -> bytes:
    if bytes(key.verify_key) != body.holder:
        raise LocalProtocolError("A receipt is signed with the holder's own key only.")
    return sign(RECEIPT_CONTEXT, encode_payload(body), key)


def verify_receipt(raw: bytes, holder: PublicKey | None = None) -> ReceiptBody:
    """The receipt, its signature checked; FormatError when it is not `holder`'s."""
    signed = split(raw, MAX_RECEIPT)
    body = decode_payload(_receipt, signed.payload)
    if holder is not None and body.holder != holder:
        raise FormatError("A receipt names another holder than the peer that sent it.")
    verify(RECEIPT_CONTEXT, signed, body.holder)
    return body
