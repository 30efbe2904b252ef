"""The datagram: what nodes of one network say to each other over UDP.

    64 bytes   Ed25519 signature over b"p2pstore 2026 dht datagram" NUL | payload
    the rest   payload: a MessagePack array
               [version (1), network name, public key, sent_s, call, cookie, body, padding]

The sender's node id is the hash of its public key; nobody can speak for an id whose key he lacks.
`call` is 8 random bytes chosen by the asker and repeated in the reply. `cookie`: in a reply the
8 bytes with which the asker may prove, in later requests, that it receives at its address; in a
request the cookie got earlier, or nothing. `padding` makes a request at least 256 bytes long,
because an unproven asker gets no reply longer than its request.

body is an array that begins with its kind:

     1 ping []                            ->   2 pong []
     3 find_node [target]                 ->   4 contacts [packed contacts, see address]
     5 add_providers [issued_ms, expires_ms, tags, signature, record_ms]
                                          ->   6 added [tags accepted, record wanted]
     7 get_providers [tags, start]        ->   8 providers [proven claims, next start or 0]
     9 put_record [signed peer record]    ->  10 kept [whether]
    11 get_records [node ids]             ->  12 records [signed peer records]
                                              13 challenge [], to any request: ask with the cookie

Tags and ids are concatenated, 20 bytes each, ascending, at most 48. A proven claim is [public
key, issued_ms, expires_ms, number of tags under the signature, leaves, asked, hashes, signature]:
the i-th byte of `asked` is the place in the request of the tag that is leaf `leaves[i]` (see
claim). A long list of claims comes in pages: `next start` is the `start` of the next request.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from p2pstore.dht.address import CONTACT_MAX
from p2pstore.dht.claim import CLAIM_KEYS, KEY
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import Bytes8, Bytes20, Bytes32, Bytes64

CONTEXT = b"p2pstore 2026 dht datagram\0"
VERSION = 1
MAX_OUT = 1200  # passes every path that carries IPv6 through a tunnel
MAX_IN = 1400  # later versions may use a little more; beyond that it is no datagram of ours
MIN_REQUEST = 256  # more than a pong or challenge under the longest network name
MAX_NETWORK = 64  # bytes of UTF-8; with it a record of MAX_RECORD still fits, see OVERHEAD
MAX_RECORD = 1000
MAX_K = 20
OVERHEAD = 64 + 1 + 1 + (2 + MAX_NETWORK) + 34 + 5 + 10 + 10 + 2  # a datagram without its body
ROOM = MAX_OUT - OVERHEAD - 8  # for the parts of a reply that lists some

Seconds = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Time = Annotated[int, Meta(ge=0, le=2**53)]
Keys = Annotated[bytes, Meta(min_length=KEY, max_length=KEY * CLAIM_KEYS)]
Places = Annotated[bytes, Meta(min_length=1, max_length=CLAIM_KEYS)]
Count = Annotated[int, Meta(ge=0, le=65535)]


class _Body(Struct, frozen=True, array_like=True):
    """Base of all bodies; further fields at the end of one are left for later versions."""


class Ping(_Body, tag=1, frozen=True, array_like=True):
    pass


class Pong(_Body, tag=2, frozen=True, array_like=True):
    pass


class FindNode(_Body, tag=3, frozen=True, array_like=True):
    target: Bytes20


class Contacts(_Body, tag=4, frozen=True, array_like=True):
    packed: Annotated[bytes, Meta(max_length=CONTACT_MAX * MAX_K)]


class AddProviders(_Body, tag=5, frozen=True, array_like=True):
    issued_ms: Time
    expires_ms: Time
    keys: Keys
    signature: Bytes64
    record_ms: Time


class Added(_Body, tag=6, frozen=True, array_like=True):
    accepted: Count
    wants_record: bool


class GetProviders(_Body, tag=7, frozen=True, array_like=True):
    keys: Keys
    start: Count = 0


class ProvenClaim(Struct, frozen=True, array_like=True):
    public_key: Bytes32
    issued_ms: Time
    expires_ms: Time
    count: Count
    leaves: Places
    asked: Places
    hashes: Annotated[bytes, Meta(max_length=KEY * CLAIM_KEYS)]
    signature: Bytes64


class Providers(_Body, tag=8, frozen=True, array_like=True):
    claims: Annotated[tuple[ProvenClaim, ...], Meta(max_length=16)]
    next: Count


class PutRecord(_Body, tag=9, frozen=True, array_like=True):
    record: Annotated[bytes, Meta(max_length=MAX_RECORD)]


class Kept(_Body, tag=10, frozen=True, array_like=True):
    kept: bool


class GetRecords(_Body, tag=11, frozen=True, array_like=True):
    ids: Keys


class Records(_Body, tag=12, frozen=True, array_like=True):
    records: Annotated[
        tuple[Annotated[bytes, Meta(max_length=MAX_RECORD)], ...], Meta(max_length=16)
    ]


class Challenge(_Body, tag=13, frozen=True, array_like=True):
    pass


Request = Ping | FindNode | AddProviders | GetProviders | PutRecord | GetRecords
Reply = Pong | Contacts | Added | Providers | Kept | Records | Challenge
Body = Request | Reply

REPLY_TO: dict[type[Struct], type[Struct]] = {
    Ping: Pong,
    FindNode: Contacts,
    AddProviders: Added,
    GetProviders: Providers,
    PutRecord: Kept,
    GetRecords: Records,
}


class Datagram(Struct, frozen=True, array_like=True):
    version: int
    network: Annotated[str, Meta(max_length=MAX_NETWORK)]
    public_key: Bytes32
    sent_s: Seconds
    call: Bytes8
    cookie: Annotated[bytes, Meta(max_length=8)]
    body: Body
    padding: Annotated[bytes, Meta(max_length=MAX_IN)] = b""


_decoder = msgspec.msgpack.Decoder(Datagram)
_encoder = msgspec.msgpack.Encoder()
encode_part = _encoder.encode  # to see how large a part of a reply becomes


def claim_capacity(network: str) -> int:
    """How many tags an `add_providers` of this network carries."""
    fixed = OVERHEAD - MAX_NETWORK + len(network.encode()) + 2 + 9 + 9 + 3 + 66 + 9
    return min(CLAIM_KEYS, (MAX_OUT - fixed) // KEY)


def decode(raw: bytes) -> Datagram:
    """The fields, nothing proven yet; FormatError names the fault in a word or two."""
    if len(raw) > MAX_IN or len(raw) <= 64:
        raise FormatError("size")
    try:
        datagram = _decoder.decode(memoryview(raw)[64:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as exc:
        raise FormatError("malformed") from exc
    if datagram.version != VERSION:
        raise FormatError("version")
    return datagram


def verify(raw: bytes, public_key: bytes) -> None:
    """IntegrityError unless the owner of the key signed these very bytes."""
    try:
        VerifyKey(public_key).verify(CONTEXT + raw[64:], raw[:64])
    except (CryptoError, ValueError) as exc:
        raise IntegrityError("signature") from exc


def encode(key: SigningKey, datagram: Datagram, *, least: int = 0) -> bytes:
    """Sign; pad up to `least` bytes. LocalProtocolError beyond MAX_OUT."""
    payload = _encoder.encode(datagram)
    missing = least - 64 - len(payload)
    if missing > 0:
        datagram = msgspec.structs.replace(datagram, padding=bytes(missing))
        payload = _encoder.encode(datagram)
    if 64 + len(payload) > MAX_OUT:
        raise LocalProtocolError(f"a datagram of {64 + len(payload)} bytes")
    return key.sign(CONTEXT + payload).signature + payload
