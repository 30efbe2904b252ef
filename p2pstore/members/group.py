"""The group as this device knows it now: its state, the keys that follow from it, who may what.

One object holds the newest group state and hands out what is derived from it; when a newer state is
adopted everything that was handed out as a callable changes at once. HOME is written first.
"""

from __future__ import annotations

import os
import socket
import threading

from nacl.signing import SigningKey

from p2pstore.content import EpochKeys, Keyring
from p2pstore.errors import P2PStoreError, UsageError
from p2pstore.home import Home
from p2pstore.ids import GroupId, NodeId, PublicKey, node_id_of
from p2pstore.ingest import Author
from p2pstore.keys import (
    GroupState,
    Role,
    create_group,
    group_signing_key,
    merge,
    new_root,
    public_key_of,
    root_of,
    verify_chain,
    words_of,
)


class Group:
    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        self.device: SigningKey = home.device()
        self.public: PublicKey = public_key_of(self.device)
        self.node_id: NodeId = node_id_of(self.public)
        self._take(home.state())

    def _take(self, state: GroupState) -> None:
        secrets = state.open(self.device)
        epochs = {e.epoch: EpochKeys.derive(e.epoch, e.secret) for e in secrets.epochs}
        current = epochs[secrets.current.epoch]
        chain = state.chain_of(self.public)
        if chain is None:
            raise UsageError("This device is no longer a member of its group.")
        self._state = state
        self._ring = Keyring(current=current, epochs=epochs, dedup=secrets.dedup)
        self._author = Author(key=self.device, chain=chain, group=state.group_public)

    @property
    def state(self) -> GroupState:
        return self._state

    @property
    def group_id(self) -> GroupId:
        return self._state.group_id

    def ring(self) -> Keyring:
        return self._ring

    def author(self) -> Author:
        return self._author

    def chain(self) -> bytes:
        """This device's certificates, as it shows them to others."""
        return self._author.chain

    def adopt(self, other: GroupState) -> bool:
        """Merge a state that came from elsewhere; True when it told something new."""
        with self._lock:
            merged = merge(self._state, other)
            if merged.raw == self._state.raw:
                return False
            self._home.write_state(merged.raw)
            self._take(merged)
            return True

    def judge(self, signer: PublicKey, chain: bytes) -> bool:
        """Whether a manifest or head of this signer may be believed: a device, not revoked."""
        state = self._state
        if state.role_of(signer) in (Role.ADMIN, Role.DEVICE):
            return True
        try:
            certificate = verify_chain(
                chain, state.group_public, frozenset(state.revocations), signer
            )
        except P2PStoreError:
            return False
        return certificate.role in (Role.ADMIN, Role.DEVICE)

    def role_of(self, public: PublicKey, chain: bytes) -> Role:
        """What a peer is to us, from its key and the certificates that it shows."""
        if self.judge(public, chain):
            return Role.DEVICE
        return self._state.role_of(public)

    def name_of(self, node_id: NodeId) -> str | None:
        """The name that a member of the group was certified under."""
        for certificate in (*self._state.devices(), *self._state.friends()):
            if node_id_of(certificate.subject) == node_id:
                return certificate.name
        return None

    def others(self) -> list[NodeId]:
        """The group's other devices."""
        ids = {node_id_of(c.subject) for c in self._state.devices()}
        return sorted(ids - {self.node_id})


def found(home: Home, name: str, *, now: float, random: bytes) -> str:
    """Found a new group with this device as its first; returns the 24 words.

    The words are on disk before anything depends on them; `random` is 32 bytes.
    """
    root = new_root(random)
    words = words_of(root)
    device, admin = SigningKey.generate(), SigningKey.generate()
    state = create_group(
        root,
        device=device,
        admin=admin,
        name=name,
        now_ms=int(now * 1000),
        random=os.urandom,
    )
    home.make_directory()
    home.write_words(words)
    home.create(device, state=state.raw, admin=admin)
    return words


def confirm(home: Home, words: str) -> None:
    """Accept the owner's words: UsageError unless they are this group's."""
    derived = public_key_of(group_signing_key(root_of(words)))
    if derived != home.state().group_public:
        raise UsageError("These are 24 valid words, but not those of this group.")
    home.confirm_words()


def default_name() -> str:
    """The host's name, for a node that was given none."""
    return socket.gethostname().split(".")[0] or "node"
