from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from nacl.signing import SigningKey

from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import BlockId, BundleId, GroupId, PublicKey, Tag
from p2pstore.wire import (
    MAX_WANTED,
    GetRequest,
    PeerRecord,
    ReceiptBody,
    sign_get,
    sign_receipt,
    sign_record,
    verify_get,
    verify_receipt,
    verify_record,
)

VECTORS = Path(__file__).parent.parent / "vectors" / "wire" / "claims.json"
KEY = SigningKey(bytes(range(32)))
PUBLIC = PublicKey(bytes(KEY.verify_key))
OTHER = SigningKey(bytes(32))

GET = GetRequest(
    PUBLIC,
    b"chain",
    b"",
    Tag(b"T" * 20),
    BundleId(b"B" * 32),
    (BlockId(b"b" * 32),),
    b"r" * 16,
    1_790_000_000_000,
    1 << 20,
)
RECEIPT = ReceiptBody(
    GroupId(b"G" * 32),
    BundleId(b"B" * 32),
    3,
    b"m" * 32,
    16_000_000,
    PUBLIC,
    1_800_000_000_000,
    b"n" * 32,
    b"p" * 32,
)
RECORD = PeerRecord(PUBLIC, "main", (("192.0.2.7", 8080),), 1_790_000_000_000, "laptop")


def test_claims_have_their_golden_bytes() -> None:
    golden = json.loads(VECTORS.read_text())
    assert sign_get(GET, KEY).hex() == golden["get"]
    assert sign_receipt(RECEIPT, KEY).hex() == golden["receipt"]
    assert sign_record(RECORD, KEY).hex() == golden["record"]
    assert verify_get(bytes.fromhex(golden["get"])) == GET
    assert verify_receipt(bytes.fromhex(golden["receipt"]), PUBLIC) == RECEIPT
    assert verify_record(bytes.fromhex(golden["record"])) == RECORD


def test_longest_request_can_be_signed() -> None:
    full = msgspec.structs.replace(
        GET, blocks=(BlockId(b"b" * 32),) * MAX_WANTED, chain=b"c" * 4096, token=b"t" * 64
    )
    assert verify_get(sign_get(full, KEY)) == full


def test_one_block_too_many_is_a_format_error() -> None:
    long = msgspec.structs.replace(GET, blocks=(BlockId(b"b" * 32),) * (MAX_WANTED + 1))
    with pytest.raises(FormatError):
        verify_get(sign_get(long, KEY))


def test_only_the_asker_and_the_holder_sign() -> None:
    with pytest.raises(LocalProtocolError):
        sign_get(GET, OTHER)
    with pytest.raises(LocalProtocolError):
        sign_receipt(RECEIPT, OTHER)


def test_receipt_of_another_holder_is_refused() -> None:
    with pytest.raises(FormatError):
        verify_receipt(sign_receipt(RECEIPT, KEY), PublicKey(bytes(OTHER.verify_key)))


def test_altered_claims_are_refused() -> None:
    for raw, verify in (
        (sign_get(GET, KEY), verify_get),
        (sign_receipt(RECEIPT, KEY), verify_receipt),
    ):
        for at in range(len(raw)):
            broken = bytearray(raw)
            broken[at] ^= 4
            with pytest.raises((FormatError, IntegrityError)):
                verify(bytes(broken))


def test_a_claim_is_not_good_as_another() -> None:
    with pytest.raises((FormatError, IntegrityError)):
        verify_receipt(sign_get(GET, KEY))
    with pytest.raises((FormatError, IntegrityError)):
        verify_get(sign_receipt(RECEIPT, KEY))
