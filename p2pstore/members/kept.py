"""What we keep for other groups, whose friend this node is: their state and heads, and our
certificate.

    HOME/groups/<group id hex>/friend              the chain that makes this node their friend
    HOME/groups/<group id hex>/<generation>.state  the newest state of that generation
    HOME/groups/<group id hex>/heads/              as in `shelf`

We can read none of it. It is kept as long as anything is kept for the group, and given to its
devices, to one that recovers with the words too: it shows a certificate from the group's own key.
States of one generation are merged, so that no revocation is forgotten whatever comes in which
order; of the generations the greatest eight are kept.
"""

from __future__ import annotations

import logging
import re
import shutil
import threading
from pathlib import Path

from p2pstore.durable import replace_file, sync_directory
from p2pstore.errors import (
    FormatError,
    IntegrityError,
    NoRoom,
    NotAllowed,
    P2PStoreError,
)
from p2pstore.ids import GroupId, NodeId, PublicKey, Tag, group_id_of, node_id_of
from p2pstore.keys import MAX_CHAIN, MAX_STATE, GroupState, Role, merge, verify_chain
from p2pstore.members.shelf import HeadShelf, Shelved, open_head, within
from p2pstore.wire import MAX_PAYLOAD, Heads, HeadsKept, Hello, PutHeads

log = logging.getLogger(__name__)

MAX_GROUPS = 64  # people that one person holds for
MAX_GENERATIONS = 8  # each takes the words; one HEADS carries as many
REPLY_BYTES = MAX_PAYLOAD - 64 * 1024  # what one HEADS may have, its own encoding aside

_STATE = re.compile(r"([0-9]{1,16})\.state\Z")


class _Group:
    """One group's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.chain = b""
        self.states: dict[int, GroupState] = {}
        self.shelf = HeadShelf(directory / "heads")
        if (directory / "friend").exists():
            self.chain = _read(directory / "friend", MAX_CHAIN)
        for path in directory.glob("*.state"):
            match = _STATE.match(path.name)
            if match is None:
                continue
            try:
                self.states[int(match[1])] = GroupState.decode(_read(path, MAX_STATE))
            except P2PStoreError as exc:
                log.warning("The group state %s cannot be read and is left alone: %s", path, exc)

    @property
    def revoked(self) -> frozenset[PublicKey]:
        return frozenset().union(*(state.revoked for state in self.states.values()))

    @property
    def newest(self) -> GroupState | None:
        return self.states[max(self.states)] if self.states else None

    def keep(self, state: GroupState) -> None:
        """Durable on return."""
        known = self.states.get(state.generation)
        merged = state if known is None else merge(known, state)
        if known is not None and merged.raw == known.raw:
            return
        generations = sorted({*self.states, merged.generation})[-MAX_GENERATIONS:]
        if merged.generation not in generations:
            return
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self.directory / f"{merged.generation}.state", merged.raw)
        self.states[merged.generation] = merged
        for generation in set(self.states) - set(generations):
            # What it revoked stays revoked only if a later one says so; the words made that one.
            (self.directory / f"{generation}.state").unlink(missing_ok=True)
            del self.states[generation]


class KeptGroups:
    """Safe to call from several threads."""

    def __init__(self, root: Path) -> None:
        """`root` is HOME/groups."""
        self._root = root
        self._lock = threading.RLock()
        self._groups: dict[GroupId, _Group] = {}
        if root.is_dir():
            for directory in sorted(root.iterdir()):
                if re.fullmatch(r"[0-9a-f]{64}", directory.name) and directory.is_dir():
                    self._groups[GroupId(bytes.fromhex(directory.name))] = _Group(directory)

    def groups(self) -> list[GroupId]:
        return sorted(self._groups)

    def __contains__(self, group_id: object) -> bool:
        return group_id in self._groups

    # -- the relation -----------------------------------------------------------------------------

    def befriend(self, public: PublicKey, chain: bytes, state: GroupState) -> None:
        """This node has become the group's friend, with that (verified) certificate."""
        group_id = group_id_of(public)
        with self._lock:
            group = self._groups.get(group_id)
            if group is None:
                if len(self._groups) >= MAX_GROUPS:
                    raise NoRoom(f"This node already holds for {MAX_GROUPS} groups.")
                group = _Group(self._root / group_id.hex())
            group.keep(state)
            replace_file(group.directory / "friend", chain)
            sync_directory(self._root)
            group.chain = chain
            self._groups[group_id] = group

    def forget(self, group_id: GroupId) -> None:
        """Nothing is held for the group any more."""
        with self._lock:
            group = self._groups.pop(group_id, None)
            if group is not None:
                shutil.rmtree(group.directory)

    def nodes(self) -> set[NodeId]:
        """The devices of these groups."""
        with self._lock:
            newest = [group.newest for group in self._groups.values()]
            return {node_id_of(c.subject) for s in newest if s is not None for c in s.devices()}

    def friend_chains(self) -> tuple[bytes, ...]:
        """What HELLO shows: the groups that this node is a friend of."""
        with self._lock:
            return tuple(g.chain for _, g in sorted(self._groups.items()) if g.chain)

    def related(self) -> list[PublicKey]:
        """The public keys of these groups."""
        with self._lock:
            newest = [group.newest for group in self._groups.values()]
            return [state.group_public for state in newest if state is not None]

    def revoked(self, public: PublicKey) -> frozenset[PublicKey]:
        with self._lock:
            group = self._groups.get(group_id_of(public))
            return group.revoked if group is not None else frozenset()

    def recovery_tags(self) -> list[Tag]:
        """Under which this node announces itself, so that these groups' words find it."""
        with self._lock:
            newest = [group.newest for group in self._groups.values()]
            return [state.recovery_tag for state in newest if state is not None]

    def is_device(self, hello: Hello) -> bool:
        """Whether the peer is an unrevoked device of a group that we keep things for."""
        with self._lock:
            return self._device_of(hello) is not None

    def _device_of(self, hello: Hello) -> _Group | None:
        if hello.group is None:
            return None
        group = self._groups.get(group_id_of(hello.group))
        if group is None or not _is_device(group, hello.group, hello.public_key, hello.chain):
            return None
        return group

    def _asked(self, group_id: GroupId, hello: Hello) -> _Group:
        group = self._device_of(hello)
        if group is None or group is not self._groups.get(group_id):
            raise NotAllowed("Only devices of that group may ask for its heads here.")
        return group

    # -- HEADS ------------------------------------------------------------------------------------

    def heads(self, group_id: GroupId, hello: Hello) -> Heads:
        with self._lock:
            group = self._asked(group_id, hello)
            newest_first = [group.states[g].raw for g in sorted(group.states, reverse=True)]
            heads = within((s.raw for s in group.shelf.all()), REPLY_BYTES)
            states = within(newest_first, REPLY_BYTES - sum(map(len, heads)) - 5 * len(heads))
            return Heads(states, heads)

    def put(self, message: PutHeads, hello: Hello) -> HeadsKept:
        """Keep what is newer. NotAllowed, IntegrityError, FormatError, NoRoom."""
        offered = [open_head(raw) for raw in message.heads]
        state = None if message.state is None else GroupState.decode(message.state)
        with self._lock:
            group = self._asked(message.group, hello)
            assert hello.group is not None
            if state is not None:
                if state.group_id != message.group:
                    raise IntegrityError("That is the state of another group.")
                group.keep(state)
            for shelved in offered:
                signed = shelved.signed
                if signed.signer in group.revoked:
                    continue  # what it said before is kept; it says nothing new
                if not _is_device(group, hello.group, signed.signer, signed.chain):
                    raise NotAllowed("A head was signed by nobody of the group.")
                group.shelf.put(shelved)
            order = group.newest.order if group.newest is not None else (0, 0)
            return kept_reply(order, offered, group.shelf)


def kept_reply(order: tuple[int, int], offered: list[Shelved], shelf: HeadShelf) -> HeadsKept:
    """What is here now of what was offered."""
    kept: dict[tuple[bytes, bytes], Shelved] = {}
    for shelved in offered:
        here = shelf.get(shelved.head.folder, shelved.head.device)
        if here is not None:
            kept[here.head.folder, here.head.device] = here
    heads = tuple(
        (s.head.folder, s.head.device, s.head.incarnation, s.head.seq) for s in kept.values()
    )
    return HeadsKept(*order, heads)


def _is_device(group: _Group, public: PublicKey, subject: PublicKey, chain: bytes) -> bool:
    """A device or admin of the group, by the certificates that it shows."""
    try:
        certificate = verify_chain(chain, public, group.revoked, subject)
    except P2PStoreError:
        return False
    return certificate.role in (Role.ADMIN, Role.DEVICE)


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise FormatError(f"{path} is larger than it can be.")
    return raw
