"""Peer records: a node's own signed word on where it can be reached.

SignedRecord = [payload, signature] with payload = [public key, network, [[host, port], ...],
issued (ms since 1970), name], signed by that public key under `CONTEXT`; at most 1,000 bytes, so
that it travels in one datagram. The greatest `issued_ms` of a key wins.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta
from nacl.signing import SigningKey

from p2pstore.errors import LocalProtocolError
from p2pstore.ids import NodeId, PublicKey, node_id_of
from p2pstore.wire.signed import Signed, decode_payload, encode_payload, sign, split, verify

CONTEXT = b"p2pstore 2026 peer record"
MAX_RECORD = 1000  # fits a datagram of 1,200 B together with its frame
MAX_ADDRESSES = 8  # a home has a few interfaces; more would make us dial for a liar
MAX_NAME = 64  # shown in one column of `peers`
MAX_NETWORK = 64

Host = Annotated[str, Meta(min_length=1, max_length=253)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Address = tuple[Host, Port]
Name = Annotated[str, Meta(max_length=MAX_NAME)]
NetworkName = Annotated[str, Meta(min_length=1, max_length=MAX_NETWORK)]
Milliseconds = Annotated[int, Meta(ge=0, le=2**53)]

SignedRecord = Signed


class PeerRecord(msgspec.Struct, frozen=True, array_like=True):
    public_key: PublicKey
    network: NetworkName
    addresses: Annotated[tuple[Address, ...], Meta(max_length=MAX_ADDRESSES)]
    issued_ms: Milliseconds
    name: Name = ""

    @property
    def node_id(self) -> NodeId:
        return node_id_of(self.public_key)


_decoder = msgspec.msgpack.Decoder(PeerRecord)


def sign_record(record: PeerRecord, key: SigningKey) -> bytes:
    """The encoded signed record; LocalProtocolError when it would not fit or `key` is another."""
    if bytes(key.verify_key) != record.public_key:
        raise LocalProtocolError("A peer record is signed with its own key only.")
    raw = sign(CONTEXT, encode_payload(record), key)
    if len(raw) > MAX_RECORD:
        raise LocalProtocolError(f"A peer record of {len(raw)} bytes exceeds {MAX_RECORD}.")
    return raw


def verify_record(raw: bytes) -> PeerRecord:
    """What the record says, its signature checked; FormatError or IntegrityError."""
    signed = split(raw, MAX_RECORD)
    record = decode_payload(_decoder, signed.payload)
    verify(CONTEXT, signed, record.public_key)
    return record
