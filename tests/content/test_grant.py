from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from nacl.signing import SigningKey

from p2pstore.content import (
    MAX_GRANT,
    MAX_GRANT_BLOCKS,
    Grant,
    decode_grant,
    encode_grant,
    share_token,
    sign_grant,
    token_hash,
    verify_grant,
)
from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import BlockId, BundleId

TOKEN = share_token(b"x" * 32)
ONE, TWO = BlockId(b"1" * 32), BlockId(b"2" * 32)


def grant(*blocks: BlockId) -> Grant:
    return Grant(BundleId(b"b" * 32), blocks or None, token_hash(TOKEN), 1000)


def test_a_grant_allows_its_blocks_to_the_token_until_it_ends() -> None:
    some = grant(ONE)
    assert some.allows(ONE, TOKEN, 999)
    assert not some.allows(TWO, TOKEN, 999)
    assert not some.allows(ONE, TOKEN, 1000)
    assert not some.allows(ONE, b"", 999)
    assert not some.allows(ONE, bytes(65), 999)
    assert not some.allows(ONE, token_hash(TOKEN), 999)
    assert grant().allows(TWO, TOKEN, 0)


def test_no_blocks_are_not_all_blocks() -> None:
    assert not Grant(BundleId(b"b" * 32), (), token_hash(TOKEN), 1000).allows(ONE, TOKEN, 0)


def test_grants_round_trip(device: SigningKey) -> None:
    full = grant(*(BlockId(i.to_bytes(32, "big")) for i in range(MAX_GRANT_BLOCKS)))
    for made in (grant(), grant(ONE, TWO), full):
        signed = decode_grant(encode_grant(sign_grant(made, device, b"chain")))
        assert verify_grant(signed) == made
        assert len(encode_grant(signed)) <= MAX_GRANT


def test_changes_are_noticed(device: SigningKey) -> None:
    raw = encode_grant(sign_grant(grant(ONE), device))
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        with pytest.raises((FormatError, IntegrityError)):
            verify_grant(decode_grant(bytes(damaged)))
    for bad in (b"", raw[:-1], raw + b"\0", bytes(MAX_GRANT + 1), b"\x91" * 60_000):
        with pytest.raises(FormatError):
            decode_grant(bad)


def test_a_signed_grant_beyond_its_limits_is_refused(device: SigningKey) -> None:
    ids = tuple(BlockId(i.to_bytes(32, "big")) for i in range(MAX_GRANT_BLOCKS + 1))
    with pytest.raises(FormatError):
        verify_grant(sign_grant(msgspec.structs.replace(grant(), blocks=ids), device))


def test_golden_grants(device: SigningKey, vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("grants"):
        raw = bytes.fromhex(vector["signed"])
        made = verify_grant(decode_grant(raw))
        assert made.allows(ONE, bytes.fromhex(vector["token"]), 999)
        assert encode_grant(sign_grant(made, device)) == raw
