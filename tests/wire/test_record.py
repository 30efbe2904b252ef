from __future__ import annotations

import msgspec
import pytest
from nacl.signing import SigningKey

from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import PublicKey
from p2pstore.wire import MAX_RECORD, PeerRecord, sign_record, verify_record
from p2pstore.wire.record import CONTEXT
from p2pstore.wire.signed import encode_payload, sign

KEY = SigningKey(bytes(range(32)))
RECORD = PeerRecord(
    PublicKey(bytes(KEY.verify_key)),
    "main",
    (("192.0.2.7", 8080), ("2001:db8::7", 8080)),
    1_790_000_000_000,
    "laptop",
)


def test_record_comes_back() -> None:
    assert verify_record(sign_record(RECORD, KEY)) == RECORD


def test_full_record_fits_a_datagram() -> None:
    full = PeerRecord(
        RECORD.public_key,
        "n" * 64,
        tuple((f"2001:db8:1234:5678:1234:5678:1234:{i}", 65535) for i in range(8)),
        2**53,
        "n" * 64,
    )
    assert len(sign_record(full, KEY)) <= MAX_RECORD


def test_too_long_record_is_our_bug() -> None:
    long = msgspec.structs.replace(RECORD, addresses=(("h" * 250, 1),) * 8)
    with pytest.raises(LocalProtocolError):
        sign_record(long, KEY)


def test_key_of_somebody_else_is_our_bug() -> None:
    with pytest.raises(LocalProtocolError):
        sign_record(RECORD, SigningKey(bytes(32)))


def test_forged_record_is_refused() -> None:
    forged = sign(CONTEXT, encode_payload(RECORD), SigningKey(bytes(32)))
    with pytest.raises(IntegrityError):
        verify_record(forged)


def test_signature_for_another_use_is_refused() -> None:
    with pytest.raises(IntegrityError):
        verify_record(sign(b"p2pstore 2026 receipt", encode_payload(RECORD), KEY))


def test_every_flipped_bit_is_noticed() -> None:
    raw = sign_record(RECORD, KEY)
    for at in range(len(raw)):
        broken = bytearray(raw)
        broken[at] ^= 1
        with pytest.raises((FormatError, IntegrityError)):
            verify_record(bytes(broken))


@pytest.mark.parametrize("raw", [b"", b"\x92", b"x" * (MAX_RECORD + 1), b"\x91" * 900], ids=len)
def test_junk_is_a_format_error(raw: bytes) -> None:
    with pytest.raises(FormatError):
        verify_record(raw)


@pytest.mark.parametrize("port", [0, 65536])
def test_impossible_port_is_a_format_error(port: int) -> None:
    wrong = msgspec.structs.replace(RECORD, addresses=(("192.0.2.7", port),))
    with pytest.raises(FormatError):
        verify_record(sign_record(wrong, KEY))
