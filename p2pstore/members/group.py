"""The group as this device knows it now: its state, the keys that follow from it, who may what.

One object holds the newest group state and hands out what is derived from it; when a newer state is
adopted everything that was handed out as a callable changes at once. HOME is written first.

A device that learns that it is no member any more keeps `group.state`, with which it reads what it
has, and puts what it learned beside it as `group.expelled`: whoever stole an admin key could
otherwise make every device throw its keys away. An expelled device brings files back and leaves; it
is answered by nobody. A state that would lose an epoch's secret is refused for the same reason.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import NamedTuple

from nacl.signing import SigningKey

from p2pstore.content import EpochKeys, Keyring
from p2pstore.durable import replace_file
from p2pstore.errors import FormatError, IntegrityError, P2PStoreError, UsageError
from p2pstore.home import MAX_FILE, Home
from p2pstore.ids import GroupId, NodeId, PublicKey, node_id_of
from p2pstore.ingest import Author
from p2pstore.keys import (
    GroupSecrets,
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
from p2pstore.wire import VERSIONS, Hello

EXPELLED = "group.expelled"


class _Keys(NamedTuple):
    secrets: GroupSecrets
    ring: Keyring
    author: Author


class Group:
    def __init__(self, home: Home) -> None:
        self._home = home
        self._lock = threading.Lock()
        if is_begun(home):
            raise UsageError(
                "A join was begun here and not finished. Again, with a new invitation: "
                "p2pstore join LINK; or for a group of your own: p2pstore init"
            )
        self.device: SigningKey = home.device()
        self.public: PublicKey = public_key_of(self.device)
        self.node_id: NodeId = node_id_of(self.public)
        self.reload()

    def reload(self) -> None:
        """Take what HOME says now: another group was joined."""
        with self._lock:
            state = self._home.state()
            keys = self._derive(state)
            forget_former(self._home, state)
            self._keys = keys
            self._state = state
            self.is_expelled = False
            self._read_expulsion()

    def _read_expulsion(self) -> None:
        path = self._home.path / EXPELLED
        if not path.exists():
            return
        if path.stat().st_size > MAX_FILE:
            raise FormatError(f"{path} is larger than it can be.")
        said = GroupState.decode(path.read_bytes())
        if said.group_public != self._state.group_public:
            path.unlink()  # of a group that this device has left
            return
        self._state = merge(self._state, said)
        self.is_expelled = not self._is_member(self._state)
        if not self.is_expelled:
            path.unlink()

    def _is_member(self, state: GroupState) -> bool:
        return state.role_of(self.public) in (Role.ADMIN, Role.DEVICE)

    def _derive(self, state: GroupState) -> _Keys:
        chain = state.chain_of(self.public)
        if chain is None:
            raise UsageError("This device is no longer a member of its group.")
        secrets = state.open(self.device)
        epochs = {e.epoch: EpochKeys.derive(e.epoch, e.secret) for e in secrets.epochs}
        current = epochs[secrets.current.epoch]
        ring = Keyring(current=current, epochs=epochs, dedup=secrets.dedup)
        return _Keys(secrets, ring, Author(key=self.device, chain=chain, group=state.group_public))

    # -- what it says -----------------------------------------------------------------------------

    @property
    def state(self) -> GroupState:
        return self._state

    @property
    def group_id(self) -> GroupId:
        return self._state.group_id

    @property
    def name(self) -> str:
        """What this device was certified as."""
        return self._state.name_of(self.public) or ""

    def ring(self) -> Keyring:
        return self._keys.ring

    def author(self) -> Author:
        return self._keys.author

    def chain(self) -> bytes:
        """This device's certificates, as it shows them to others."""
        return self._keys.author.chain

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

    # -- who may what -----------------------------------------------------------------------------

    def judge(self, signer: PublicKey, chain: bytes) -> bool:
        """Whether a manifest or head of this signer may be believed: a device, not revoked."""
        state = self._state
        if state.role_of(signer) in (Role.ADMIN, Role.DEVICE):
            return True
        return self._certified(signer, chain) in (Role.ADMIN, Role.DEVICE)

    def _certified(self, subject: PublicKey, chain: bytes) -> Role:
        state = self._state
        try:
            return verify_chain(chain, state.group_public, state.revoked, subject).role
        except P2PStoreError:
            return Role.STRANGER

    def role_of(self, public: PublicKey, chain: bytes) -> Role:
        """What a peer is to us, from its key and the certificates that it shows."""
        if self.judge(public, chain):
            return Role.DEVICE
        return self._state.role_of(public)

    def role_of_hello(self, hello: Hello) -> str:
        """What a peer is to *this* group: "device", "friend" or "stranger".

        The group state counts first, so that whoever joined during a connection need not say HELLO
        again; certificates count for members that this device has not heard of yet.
        """
        role = self.role_of(hello.public_key, hello.chain)
        if role is Role.STRANGER:
            shown = (self._certified(hello.public_key, chain) for chain in hello.friend_chains)
            role = Role.FRIEND if Role.FRIEND in shown else Role.STRANGER
        return role.value

    def hello(
        self, network: str, *, record: bytes | None = None, friend_chains: tuple[bytes, ...] = ()
    ) -> Hello:
        """How this device introduces itself now."""
        return Hello(
            network,
            VERSIONS,
            self.public,
            chain=self.chain(),
            friend_chains=friend_chains,
            name=self.name,
            record=record,
            group=self._state.group_public,
        )

    # -- changes ----------------------------------------------------------------------------------

    def adopt(self, other: GroupState) -> bool:
        """Merge a state that came from elsewhere; True when it told something new.

        IntegrityError, and nothing changes: another group's, or one that would lose keys. Look at
        `is_expelled` afterwards.
        """
        with self._lock:
            merged = merge(self._state, other)
            if merged.raw == self._state.raw:
                return False
            self._become(merged)
            return True

    def admit(
        self,
        subject: PublicKey,
        role: Role,
        name: str,
        *,
        signer: SigningKey,
        now: float,
        random: Callable[[int], bytes] = os.urandom,
    ) -> bytes:
        """Make `subject` a member with the admin key `signer`; its chain. Durable on return."""
        with self._lock:
            now_ms = int(now * 1000)
            chain = self._state.certify(subject, role, name, signer=signer, now_ms=now_ms)
            self._become(
                self._state.with_member(
                    chain,
                    signer=signer,
                    secrets=self._keys.secrets,
                    now_ms=now_ms,
                    random=random,
                )
            )
            return self._state.chain_of(subject) or chain

    def revoke(
        self,
        subject: PublicKey,
        *,
        signer: SigningKey,
        now: float,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Put a member out for good; a device's going gives the group a new epoch."""
        with self._lock:
            self._become(
                self._state.with_revocation(
                    subject,
                    signer=signer,
                    secrets=self._keys.secrets,
                    now_ms=int(now * 1000),
                    random=random,
                )
            )

    def renew(
        self, *, signer: SigningKey, now: float, random: Callable[[int], bytes] = os.urandom
    ) -> bool:
        """Write what several admins said into one part, when a revoked device reads the epoch."""
        with self._lock:
            if not self._state.wants_new_epoch:
                return False
            self._become(
                self._state.with_member(
                    self.chain(),
                    signer=signer,
                    secrets=self._keys.secrets,
                    now_ms=int(now * 1000),
                    random=random,
                )
            )
            return True

    def _become(self, state: GroupState) -> None:
        expelled = self._home.path / EXPELLED
        if not self._is_member(state):
            replace_file(expelled, state.raw)
            self._state, self.is_expelled = state, True
            return
        keys = self._derive(state)
        known, new = self._keys.secrets, keys.secrets
        if new.dedup != known.dedup or not set(known.epochs) <= set(new.epochs):
            raise IntegrityError("A group state was refused: keys of the group would be lost.")
        self._home.write_state(state.raw)
        expelled.unlink(missing_ok=True)
        self._state, self._keys, self.is_expelled = state, keys, False


# -- the beginning of an identity -----------------------------------------------------------------


def found(home: Home, name: str, *, now: float, random: bytes) -> str:
    """Found a new group with this device as its first; returns the 24 words.

    The words are on disk before anything depends on them; `random` is 32 bytes. A HOME in which an
    earlier attempt was cut short is begun anew: nothing was made with its keys.
    """
    if is_begun(home):
        # The key last: until it is gone this HOME is seen as begun, and not as one that lost it.
        for leftover in ("incarnation", "DO-NOT-DELETE.txt", "admin.key", "device.key"):
            (home.path / leftover).unlink(missing_ok=True)
    if home.exists:
        raise UsageError(f"{home.path} already has an identity; p2pstore leave ends it.")
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
    (home.path / "words.confirmed").unlink(missing_ok=True)
    home.write_words(words)
    home.create(device, state=state.raw, admin=admin)
    return words


def is_begun(home: Home) -> bool:
    """Whether `found` or `join` was cut short here: a device key, no group state, nothing stored.

    With anything stored the missing state is damage, and the owner has to mend it.
    """
    has_key = (home.path / "device.key").exists()
    return has_key and not (home.path / "group.state").exists() and in_use(home) is None


def in_use(home: Home) -> str | None:
    """What this HOME has protected or keeps for others, in words; None for nothing at all."""
    if home.folders():
        return "watches folders"
    if any((home.path / "heads").glob("*.head")) or _has_files(home, "bundles"):
        return "has protected files"
    if _has_files(home, "held/sides") or _has_files(home, "held/bundles"):
        return "keeps data for others"
    return None


def _has_files(home: Home, below: str) -> bool:
    return any(path.is_file() for path in (home.path / below).rglob("*"))


def forget_former(home: Home, state: GroupState) -> None:
    """Remove words and admin key of a group that this device has left by joining another.

    Joining writes the group state first; when it is cut short there, this ends it. The key of an
    admin that was revoked is known to the state and stays.
    """
    words = home.words()
    if words is not None and _group_of(words) not in (None, state.group_public):
        (home.path / "words.txt").unlink(missing_ok=True)
    admin = home.admin()
    if admin is not None and state.name_of(public_key_of(admin)) is None:
        (home.path / "admin.key").unlink(missing_ok=True)


def _group_of(words: str) -> PublicKey | None:
    try:
        return public_key_of(group_signing_key(root_of(words)))
    except UsageError:
        return None  # edited by somebody: not ours to remove


def confirm(home: Home, words: str) -> None:
    """Accept the owner's words: UsageError unless they are this group's."""
    derived = public_key_of(group_signing_key(root_of(words)))
    if derived != home.state().group_public:
        raise UsageError("These are 24 valid words, but not those of this group.")
    home.confirm_words()


def default_name() -> str:
    """The host's name, for a node that was given none."""
    return socket.gethostname().split(".")[0] or "node"
