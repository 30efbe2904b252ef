"""A claim as a reply shows it: only the tags asked for, with the path that proves them."""

from __future__ import annotations

from p2pstore.dht import datagram as wire
from p2pstore.dht.claim import (
    Claim,
    check_signature,
    check_times,
    prove,
    proven_root,
    signed_bytes,
)
from p2pstore.errors import FormatError
from p2pstore.ids import PublicKey


def prove_claim(claim: Claim, asked: tuple[bytes, ...]) -> wire.ProvenClaim:
    """What a reply says of a claim to somebody who asked for these tags."""
    places = {key: i for i, key in enumerate(asked)}
    leaves = [i for i, key in enumerate(claim.keys) if key in places]
    return wire.ProvenClaim(
        claim.public_key,
        claim.issued_ms,
        claim.expires_ms,
        len(claim.keys),
        bytes(leaves),
        bytes(places[claim.keys[i]] for i in leaves),
        prove(claim.keys, leaves),
        claim.signature,
    )


def proven_tags(
    network: str,
    proof: wire.ProvenClaim,
    asked: tuple[bytes, ...],
    now_ms: int,
    known: set[bytes],
) -> list[bytes]:
    """The tags that a part of a reply proves; FormatError or IntegrityError when it lies.

    `known` holds what was verified in this search: most answerers show the same claims.
    """
    if len(proof.leaves) != len(proof.asked) or max(proof.asked) >= len(asked):
        raise FormatError("claim proof")
    tags = [asked[i] for i in proof.asked]
    leaves = dict(zip(proof.leaves, tags, strict=True))
    if len(leaves) != len(tags):
        raise FormatError("claim proof")
    root = proven_root(proof.count, leaves, proof.hashes)
    check_times(proof.issued_ms, proof.expires_ms, now_ms)
    claim = Claim(
        PublicKey(proof.public_key), proof.issued_ms, proof.expires_ms, (), proof.signature
    )
    mark = signed_bytes(network, claim, proof.count, root) + proof.signature
    if mark not in known:
        check_signature(network, claim, proof.count, root)
        known.add(mark)
    return tags
