"""The peers that this node knows, kept in HOME/peers.json.

The file is a JSON object {"version": 1, "peers": [KnownPeer, ...]}, bytes in base64; it is written
to a temporary name, synced and renamed. It is a memory of addresses: who may do what is said by the
group state. A file that cannot be read is put aside as `peers.json.damaged`, and the book begins
anew: the DHT and the local network find peers again.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from p2pstore.durable import replace_file
from p2pstore.errors import P2PStoreError
from p2pstore.ids import NodeId, PublicKey, short
from p2pstore.keys import Role, verify_chain
from p2pstore.net.link import STRANGER, Address, Link
from p2pstore.wire import MAX_ADDRESSES, Hello, verify_record

log = logging.getLogger(__name__)

VERSION = 1
MAX_STRANGERS = 1000  # enough to find the network again; devices and friends are always kept
MAX_FILE = 16 * 1024 * 1024


class KnownPeer(msgspec.Struct, frozen=True):
    """`addresses`: the one that worked last comes first. `record`: newest signed one, or empty.
    `group`: the public key of the group that it has shown to be a device of."""

    node_id: NodeId
    addresses: tuple[Address, ...] = ()
    public_key: PublicKey | None = None
    name: str = ""
    role: str = STRANGER
    last_seen_ms: int = 0
    record: bytes = b""
    issued_ms: int = 0
    group: PublicKey | None = None


class _File(msgspec.Struct, frozen=True):
    version: int
    peers: tuple[KnownPeer, ...]


class PeerBook:
    def __init__(self, path: Path | None = None) -> None:
        """`path` None: nothing is kept beyond this process."""
        self._path = path
        self._peers: dict[NodeId, KnownPeer] = {}
        self.is_changed = False

    @classmethod
    def load(cls, path: Path) -> PeerBook:
        book = cls(path)
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_FILE + 1)
        except FileNotFoundError:
            return book
        try:
            content = msgspec.json.decode(raw[:MAX_FILE], type=_File)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            aside = path.with_name(path.name + ".damaged")
            os.replace(path, aside)
            log.warning("The list of known peers cannot be read; it was put aside as %s.", aside)
            return book
        book._peers = {peer.node_id: peer for peer in content.peers}
        return book

    def get(self, node_id: NodeId) -> KnownPeer | None:
        return self._peers.get(node_id)

    def peers(self) -> list[KnownPeer]:
        """The ones seen last come first."""
        return sorted(self._peers.values(), key=lambda peer: -peer.last_seen_ms)

    def addresses(self, node_id: NodeId) -> tuple[Address, ...]:
        peer = self._peers.get(node_id)
        return peer.addresses if peer is not None else ()

    def note_record(self, raw: bytes, network: str) -> KnownPeer | None:
        """Keep a signed address record; None when it is wrong, old or of another network."""
        try:
            record = verify_record(raw)
        except P2PStoreError:
            return None
        known = self._peers.get(record.node_id) or KnownPeer(record.node_id)
        if record.network != network or record.issued_ms <= known.issued_ms:
            return None
        # An address that worked is kept before those that are only claimed.
        addresses = known.addresses[:1] + record.addresses if known.last_seen_ms else ()
        return self._keep(
            msgspec.structs.replace(
                known,
                public_key=record.public_key,
                addresses=_distinct(addresses or record.addresses + known.addresses),
                name=record.name or known.name,
                record=raw,
                issued_ms=record.issued_ms,
            )
        )

    def note_address(self, node_id: NodeId, address: Address) -> KnownPeer:
        """Somebody (the user, the local network) says that the node is there."""
        known = self._peers.get(node_id) or KnownPeer(node_id)
        if address in known.addresses:
            return known
        return self._keep(
            msgspec.structs.replace(known, addresses=_distinct((address, *known.addresses)))
        )

    def note_link(self, link: Link, now_ms: int) -> KnownPeer:
        """A link is ready: who it is, what it says, and where it was reached."""
        if link.hello.record is not None:
            self.note_record(link.hello.record, link.hello.network)
        known = self._peers.get(link.node_id) or KnownPeer(link.node_id)
        addresses = known.addresses
        # The source port of an accepted link leads nowhere, and a tunnel's address to its relay.
        if link.is_dialled and link.via is None:
            addresses = _distinct((link.address, *addresses))
        return self._keep(
            msgspec.structs.replace(
                known,
                public_key=link.public_key,
                addresses=addresses,
                name=link.hello.name or known.name,
                role=link.role,
                last_seen_ms=now_ms,
                group=_proven_group(link.hello) or known.group,
            )
        )

    def note_seen(self, node_id: NodeId, now_ms: int) -> None:
        """Its link stood until now: who is linked for a month was not last seen a month ago."""
        known = self._peers.get(node_id)
        if known is not None:
            self._keep(msgspec.structs.replace(known, last_seen_ms=now_ms))

    def forget(self, node_id: NodeId) -> None:
        if self._peers.pop(node_id, None) is not None:
            self.is_changed = True

    def _keep(self, peer: KnownPeer) -> KnownPeer:
        self._peers[peer.node_id] = peer
        self.is_changed = True
        strangers = [other for other in self._peers.values() if other.role == STRANGER]
        if len(strangers) > MAX_STRANGERS:
            oldest = min(
                (other for other in strangers if other.node_id != peer.node_id),
                key=lambda other: other.last_seen_ms,
            )
            log.debug("Forgetting %s, not seen for the longest time.", short(oldest.node_id))
            del self._peers[oldest.node_id]
        return peer

    def encode(self) -> bytes:
        content = _File(VERSION, tuple(self.peers()))
        return msgspec.json.format(msgspec.json.encode(content), indent=1)

    def save(self) -> None:
        """Write the file, durably, when anything changed. Blocks: call it in a thread."""
        if self._path is None or not self.is_changed:
            return
        self.is_changed = False
        replace_file(self._path, self.encode())


def _proven_group(hello: Hello) -> PublicKey | None:
    """Its group, by its certificates. Copies and rooms are reckoned by group: who could claim that
    of others would be taken for them. Whether it was revoked there only its group's state says."""
    if hello.group is None:
        return None
    try:
        role = verify_chain(hello.chain, hello.group, frozenset(), hello.public_key).role
    except P2PStoreError:
        return None
    return hello.group if role in (Role.ADMIN, Role.DEVICE) else None


def _distinct(addresses: tuple[Address, ...]) -> tuple[Address, ...]:
    return tuple(dict.fromkeys(addresses))[:MAX_ADDRESSES]
