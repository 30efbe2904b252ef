"""Claims: a provider's signed word that it has what stands behind some tags, until some time.

One signature covers up to 48 tags, so that a datagram carries them all; a reply that names only a
few of them proves these with a Merkle path. So no storing node can invent a provider, move its
claim to another tag, or stretch its time.

The signature is Ed25519 over

    b"p2pstore 2026 dht claim" NUL | u8 length of network name | network name | 32 public key
    | u64 issued_ms | u64 expires_ms | u16 number of tags | 20 root          (big-endian)

root: the tags in ascending order, none twice, are the leaves of a binary tree; a range of n > 1
leaves splits after its first ceil(n / 2). leaf = BLAKE3(00 | tag)[:20], inner = BLAKE3(01 | left
| right)[:20]. A proof lists, depth first and left to right, the hashes of the largest subtrees
without a proven leaf. 160 bits resist a second preimage; collisions only help a provider to lie
about itself, which it can do anyway.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blake3 import blake3
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import NodeId, PublicKey, node_id_of

CONTEXT = b"p2pstore 2026 dht claim\0"
CLAIM_KEYS = 48  # what fits into 1,200 bytes beside a short network name
KEY = 20
LIFETIME_MS = 24 * 3600 * 1000
SKEW_MS = 3600 * 1000  # home clocks are wrong by a time zone at worst

_HEAD = struct.Struct(">QQH")


class Claim(NamedTuple):
    public_key: PublicKey
    issued_ms: int
    expires_ms: int
    keys: tuple[bytes, ...]
    signature: bytes

    @property
    def provider(self) -> NodeId:
        return node_id_of(self.public_key)


def _leaf(key: bytes) -> bytes:
    return blake3(b"\0" + key).digest(length=KEY)


def _inner(left: bytes, right: bytes) -> bytes:
    return blake3(b"\1" + left + right).digest(length=KEY)


def root_of(keys: Sequence[bytes]) -> bytes:
    if len(keys) == 1:
        return _leaf(keys[0])
    middle = (len(keys) + 1) // 2
    return _inner(root_of(keys[:middle]), root_of(keys[middle:]))


def prove(keys: Sequence[bytes], wanted: Sequence[int]) -> bytes:
    """The hashes with which somebody who knows only the `wanted` leaves gets at the root."""

    def walk(low: int, high: int, inside: list[int]) -> bytes:
        if not inside:
            return root_of(keys[low:high])
        if high - low == 1:
            return b""
        middle = low + (high - low + 1) // 2
        return walk(low, middle, [i for i in inside if i < middle]) + walk(
            middle, high, [i for i in inside if i >= middle]
        )

    return walk(0, len(keys), sorted(wanted))


def proven_root(count: int, leaves: Mapping[int, bytes], hashes: bytes) -> bytes:
    """The root that follows from some leaves and a proof; FormatError when they do not fit."""
    if not leaves or not 0 < count <= CLAIM_KEYS or not 0 <= min(leaves) <= max(leaves) < count:
        raise FormatError("claim proof")
    at = 0

    def walk(low: int, high: int, inside: list[int]) -> bytes:
        nonlocal at
        if not inside:
            at += KEY
            return hashes[at - KEY : at]
        if high - low == 1:
            return _leaf(leaves[low])
        middle = low + (high - low + 1) // 2
        left = walk(low, middle, [i for i in inside if i < middle])
        return _inner(left, walk(middle, high, [i for i in inside if i >= middle]))

    root = walk(0, count, sorted(leaves))
    if at != len(hashes):
        raise FormatError("claim proof")
    return root


def signed_bytes(network: str, claim: Claim, count: int, root: bytes) -> bytes:
    name = network.encode()
    head = _HEAD.pack(claim.issued_ms, claim.expires_ms, count)
    return CONTEXT + bytes((len(name),)) + name + claim.public_key + head + root


def make_claim(
    key: SigningKey, network: str, tags: Sequence[bytes], issued_ms: int, expires_ms: int
) -> Claim:
    """Sign for up to CLAIM_KEYS tags, given in ascending order."""
    claim = Claim(PublicKey(bytes(key.verify_key)), issued_ms, expires_ms, tuple(tags), b"")
    body = signed_bytes(network, claim, len(tags), root_of(tags))
    return claim._replace(signature=key.sign(body).signature)


def check_times(issued_ms: int, expires_ms: int, now_ms: int) -> None:
    """IntegrityError for a claim from the future, one that lives too long, or a dead one."""
    if issued_ms > now_ms + SKEW_MS or expires_ms > issued_ms + LIFETIME_MS:
        raise IntegrityError("claim time")
    if expires_ms <= now_ms:
        raise IntegrityError("claim expired")


def check_signature(network: str, claim: Claim, count: int, root: bytes) -> None:
    """IntegrityError unless the provider signed for a tree of `count` tags with this root."""
    try:
        VerifyKey(claim.public_key).verify(
            signed_bytes(network, claim, count, root), claim.signature
        )
    except (CryptoError, ValueError) as exc:
        raise IntegrityError("claim signature") from exc


def split_keys(packed: bytes) -> tuple[bytes, ...]:
    """Tags from their concatenation; FormatError unless ascending, without repeats, 1 to 48."""
    count, rest = divmod(len(packed), KEY)
    if rest or not 0 < count <= CLAIM_KEYS:
        raise FormatError("keys")
    keys = tuple(packed[i : i + KEY] for i in range(0, len(packed), KEY))
    if any(a >= b for a, b in itertools.pairwise(keys)):
        raise FormatError("keys")
    return keys
