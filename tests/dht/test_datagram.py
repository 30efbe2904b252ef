from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from nacl.signing import SigningKey

from p2pstore.dht import datagram as wire
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import PublicKey
from p2pstore.wire import PeerRecord, sign_record, verify_record

VECTORS = Path(__file__).parents[1] / "vectors" / "dht"
KEY = SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)


def datagram(body: wire.Body, network: str = "main") -> wire.Datagram:
    return wire.Datagram(wire.VERSION, network, PUBLIC, 1_800_000_000, b"c" * 8, b"k" * 8, body)


BODIES: list[wire.Body] = [
    wire.Ping(),
    wire.Pong(),
    wire.FindNode(b"t" * 20),
    wire.Contacts(b"p" * 39 * 20),
    wire.AddProviders(2**53, 2**53, b"k" * 20 * 48, b"s" * 64, 2**53),
    wire.Added(48, True),
    wire.GetProviders(b"k" * 20 * 48, 65535),
    wire.Providers((), 0),
    wire.PutRecord(b"r" * 1000),
    wire.Kept(True),
    wire.GetRecords(b"i" * 20 * 48),
    wire.Records((b"r" * 1000,)),
    wire.Challenge(),
]


@pytest.mark.parametrize("body", BODIES, ids=lambda b: type(b).__name__)
def test_every_body_survives_and_fits(body: wire.Body) -> None:
    raw = wire.encode(KEY, datagram(body), least=wire.MIN_REQUEST)
    assert wire.MIN_REQUEST <= len(raw) <= wire.MAX_OUT
    message = wire.decode(raw)
    wire.verify(raw, message.public_key)
    assert message.body == body


def test_the_largest_bodies_fit_beside_the_longest_name() -> None:
    name = "ä" * 32
    keys = wire.claim_capacity(name)
    for body in (
        wire.AddProviders(2**53, 2**53, b"k" * 20 * keys, b"s" * 64, 2**53),
        wire.PutRecord(b"r" * 1000),
        wire.Records((b"r" * 1000,)),
        wire.Contacts(b"p" * 39 * 20),
        wire.GetProviders(b"k" * 20 * keys, 65535),
    ):
        assert len(wire.encode(KEY, datagram(body, name))) <= wire.MAX_OUT
    assert 40 <= keys <= wire.claim_capacity("main") == 48


def test_nothing_longer_than_the_limit_leaves() -> None:
    with pytest.raises(LocalProtocolError):
        wire.encode(KEY, datagram(wire.Records((b"r" * 600, b"r" * 600))))


def test_replies_without_parts_are_no_longer_than_the_shortest_request() -> None:
    for body in (wire.Pong(), wire.Challenge(), wire.Added(48, True), wire.Kept(True)):
        assert len(wire.encode(KEY, datagram(body, "n" * 64))) <= wire.MIN_REQUEST


def test_cut_or_changed_bytes_never_pass() -> None:
    raw = wire.encode(KEY, datagram(wire.FindNode(b"t" * 20)), least=wire.MIN_REQUEST)
    for i in range(len(raw)):
        for wrong in (raw[:i], raw[:i] + bytes((raw[i] ^ 1,)) + raw[i + 1 :]):
            with pytest.raises((FormatError, IntegrityError)):
                wire.verify(wrong, wire.decode(wrong).public_key)


def test_junk_behind_is_refused() -> None:
    raw = wire.encode(KEY, datagram(wire.Ping()))
    with pytest.raises(FormatError):
        wire.decode(raw + b"\xc0")


@pytest.mark.parametrize("size", [0, 1, 64, wire.MAX_IN + 1, 65507])
def test_impossible_sizes(size: int) -> None:
    with pytest.raises(FormatError, match="size"):
        wire.decode(bytes(size))


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91" * 1300,  # arrays in arrays
        b"\x97\x01\xa4main\xc4\x20"
        + b"k" * 32
        + b"\x00\xc4\x08"
        + b"c" * 8
        + b"\xc4\x00"
        + b"\x92\x01"
        + b"\x91" * 1200,  # the same where later versions may add fields
        b"\xdd\xff\xff\xff\xff",  # four thousand million elements
        b"\xc6\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xa4\xff\xfe\xfd\xfc",
        msgspec.msgpack.encode([1, "main", PUBLIC, 0, b"c" * 8, b"", ["store", b"k", b"v"]]),
        msgspec.msgpack.encode([1, "main", PUBLIC, 0, b"c" * 8, b"", [99]]),
        msgspec.msgpack.encode([1, "main", PUBLIC, -1, b"c" * 8, b"", [1]]),
        msgspec.msgpack.encode([1, "main", PUBLIC[:31], 0, b"c" * 8, b"", [1]]),
        msgspec.msgpack.encode([1, "m" * 65, PUBLIC, 0, b"c" * 8, b"", [1]]),
        msgspec.msgpack.encode([2, "main", PUBLIC, 0, b"c" * 8, b"", [1]]),
        msgspec.msgpack.encode([1, "main", PUBLIC, 0, b"c" * 8, b"", [3, b"t" * 21]]),
    ],
)
def test_hostile_payloads_are_a_format_error(payload: bytes) -> None:
    with pytest.raises(FormatError):
        wire.decode(bytes(64) + payload)


def test_fields_of_later_versions_are_ignored() -> None:
    payload = msgspec.msgpack.encode([1, "main", PUBLIC, 0, b"c" * 8, b"", [1, 2, [3]], b"", 5])
    assert wire.decode(bytes(64) + payload).body == wire.Ping()


def test_golden_datagram() -> None:
    golden = json.loads((VECTORS / "datagram-1.json").read_text())
    for name, body in (
        ("ping", wire.Ping()),
        ("find_node", wire.FindNode(b"t" * 20)),
        ("add_providers", wire.AddProviders(1, 2, b"k" * 20, b"s" * 64, 3)),
        ("contacts", wire.Contacts(b"")),
    ):
        raw = wire.encode(KEY, datagram(body))
        assert raw.hex() == golden[name]
        assert wire.decode(raw).body == body


def test_golden_record() -> None:
    golden = json.loads((VECTORS / "record-1.json").read_text())
    record = PeerRecord(
        PublicKey(PUBLIC), "main", (("20.0.0.1", 8080),), 1_800_000_000_000, "laptop"
    )
    assert sign_record(record, KEY).hex() == golden["record"]
    assert verify_record(bytes.fromhex(golden["record"])) == record
