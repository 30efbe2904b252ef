"""A grant: the owner's word to a holder that whoever shows a token may get some blocks.

    Grant       = [bundle id (32), blocks: nil or [BlockId], token hash (32), expires_ms]
                  nil = all blocks of the bundle; at most 1,024 ids; expires in ms since 1970
    SignedGrant = [payload: Grant encoded, signer (32), chain, signature (64)]
                  context "p2pstore 2026 grant"

The token is derived from the share secret (`share_token`); its hash is BLAKE3 derive_key
("p2pstore 2026 grant token", token): a holder can check a token but cannot make one up. Who may
sign is judged above: the device that opened the bundle, or an admin.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from blake3 import blake3
from nacl.bindings import sodium_memcmp
from nacl.signing import SigningKey

from p2pstore.content.codec import (
    MAX_CHAIN,
    MAX_INT,
    decode,
    encode,
    public_key_of,
    sign,
    verify,
)
from p2pstore.ids import BlockId, BundleId, Bytes32, Bytes64, PublicKey

MAX_GRANT_BLOCKS = 1024  # more are granted by several grants, or by the whole bundle
MAX_GRANT = 64 * 1024  # a grant travels in a control frame
MAX_TOKEN = 64

FOR_EVER_MS = MAX_INT  # the end of what ends only when it is taken back

GRANT_CONTEXT = b"p2pstore 2026 grant"


class Grant(msgspec.Struct, frozen=True, array_like=True):
    bundle: BundleId
    blocks: Annotated[tuple[BlockId, ...], msgspec.Meta(max_length=MAX_GRANT_BLOCKS)] | None
    token_hash: Bytes32
    expires_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]

    def allows(self, block_id: BlockId, token: bytes, now_ms: int) -> bool:
        """Who shows `token` at that time may have that block."""
        if now_ms >= self.expires_ms or not 0 < len(token) <= MAX_TOKEN:
            return False
        if not sodium_memcmp(token_hash(token), self.token_hash):
            return False
        return self.blocks is None or block_id in self.blocks


class SignedGrant(msgspec.Struct, frozen=True, array_like=True):
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_GRANT)]
    signer: PublicKey
    chain: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN)]
    signature: Bytes64


_GRANT = msgspec.msgpack.Decoder(Grant)
_SIGNED = msgspec.msgpack.Decoder(SignedGrant)


def token_hash(token: bytes) -> bytes:
    return blake3(token, derive_key_context="p2pstore 2026 grant token").digest()


def sign_grant(grant: Grant, key: SigningKey, chain: bytes = b"") -> SignedGrant:
    payload = encode(grant)
    signature = sign(GRANT_CONTEXT, payload, key)
    return SignedGrant(payload, public_key_of(key), chain, signature)


def verify_grant(signed: SignedGrant) -> Grant:
    """The grant, when `signer` signed it; whether the signer may is for the caller to judge."""
    verify(GRANT_CONTEXT, signed.payload, signed.signature, signed.signer)
    return decode(_GRANT, signed.payload, MAX_GRANT, "a grant")


def encode_grant(signed: SignedGrant) -> bytes:
    return encode(signed)


def decode_grant(raw: bytes) -> SignedGrant:
    """FormatError when it is damaged; `verify_grant` comes next."""
    return decode(_SIGNED, raw, MAX_GRANT, "a signed grant")
