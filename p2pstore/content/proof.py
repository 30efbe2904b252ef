"""The answer to a challenge: what only somebody who has all the bytes at this moment can compute.

    key   = BLAKE3 derive_key("p2pstore 2026 proof",
                u8 length of nonce, nonce, verifier's NodeId (20), holder's NodeId (20))
    proof = BLAKE3 keyed with it over the live blocks in list order, nothing between them

Both ids are those of the TLS session, never fields of a message: the answer of an honest holder is
useless to a liar who passes the question on. The nonce is 16 to 64 random bytes, new each time.
"""

from __future__ import annotations

from blake3 import blake3

from p2pstore.ids import NodeId

PROOF_CONTEXT = "p2pstore 2026 proof"
MIN_NONCE = 16  # below that answers could be computed ahead and kept instead of the bytes
MAX_NONCE = 64


class Prover:
    """Fed with the live blocks one by one, in the order of the list."""

    __slots__ = ("_hash",)

    def __init__(self, nonce: bytes, verifier: NodeId, holder: NodeId) -> None:
        if not MIN_NONCE <= len(nonce) <= MAX_NONCE or len(verifier) != 20 or len(holder) != 20:
            raise ValueError("a proof needs a nonce of 16 to 64 bytes and two node ids")
        material = bytes([len(nonce)]) + nonce + verifier + holder
        key = blake3(material, derive_key_context=PROOF_CONTEXT).digest()
        self._hash = blake3(key=key)

    def update(self, block: bytes | memoryview) -> None:
        self._hash.update(block)

    def digest(self) -> bytes:
        """32 bytes."""
        return self._hash.digest()
