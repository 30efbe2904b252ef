"""RECOVERY from the 24 words: what holders keep of a group becomes a HOME that a node can run on.

Words make the group's key, and that key a certificate for a device that nobody has heard of yet:
every holder answers it as one of the group's. What holders keep, each the newest that it knows, is
the group's state, whose secrets are sealed to the recovery key too, and the heads of its folders.

The recovering device writes the next generation of the state, with itself as device and a new admin
key; nobody is revoked by that. Of each folder it takes the newest head over as its own, signed
anew, and makes the folder's directory; bundles, manifests and files follow when the node runs, as
after the loss of a catalog. Folders of devices that are there themselves are left to them. Which
heads were heard of a folder is remembered with it: who has a newer one may only be late.

The order in HOME: the mark `recovering`, the keys, heads, the list of folders, and the group's
state last; with it HOME is complete. Whatever was cut short before that is begun anew. The mark is
removed by the node, when every placeholder lies in its place; and made again, before anything else,
when a late holder has more to tell.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from nacl.signing import SigningKey

from p2pstore.config import FolderSettings
from p2pstore.content import (
    EpochKeys,
    FolderNote,
    Head,
    Keyring,
    Manifest,
    SignedHead,
    encode_head,
    head_order,
    note_of,
    open_manifest,
    seal_manifest,
    sign_head,
)
from p2pstore.durable import replace_file
from p2pstore.errors import (
    FormatError,
    NoRoom,
    NotAllowed,
    P2PStoreError,
    RemoteProtocolError,
    Unavailable,
    UsageError,
)
from p2pstore.home import DO_NOT_DELETE, RECOVERING, Followed, Home, WatchedFolder
from p2pstore.ids import FolderId, GroupId, NodeId, PublicKey, group_id_of, node_id_of
from p2pstore.keys import (
    GroupState,
    Role,
    amend,
    group_signing_key,
    merge,
    public_key_of,
    recovery_chain,
    recovery_key,
    recovery_tag,
    root_of,
    verify_chain,
)
from p2pstore.members.shelf import MAX_HEADS, Key, Shelved, open_head
from p2pstore.net import STRANGER, Link
from p2pstore.placement import Root
from p2pstore.wire import VERSIONS, GetHeads, Heads, Hello

log = logging.getLogger(__name__)

MARK = "recovering"  # in HOME, until all placeholders are in their places
NONCE = 24


class Recovered(NamedTuple):
    """What HOME has now."""

    group_id: GroupId
    name: str
    folders: tuple[WatchedFolder, ...]
    left: tuple[tuple[str, str], ...]  # (folder, device that has it itself)
    as_of: tuple[float, ...]  # of each folder: when the list of its files was written


class _Found(NamedTuple):
    """A head that may be taken over, opened."""

    head: Head
    manifest: Manifest
    note: FolderNote

    @property
    def followed(self) -> Followed:
        return Followed(self.head.device, *head_order(self.head))


class _Chosen(NamedTuple):
    """The newest head of a folder, and all that were heard of it."""

    newest: _Found
    heard: tuple[Followed, ...]


class Recovery:
    """One attempt, from the words to HOME; `ask` holders, then `settle`."""

    def __init__(self, home: Home, words: str, *, name: str, network: str, now: float) -> None:
        """UsageError: the words are none, or an identity lives in this HOME."""
        self._root = root_of(words)
        if (home.exists or home.was_used) and not is_cut_short(home):
            has = "already has" if home.exists else "once had"
            raise UsageError(
                f"{home.path} {has} an identity. Recover into a new home: "
                "p2pstore --home DIR recover"
            )
        self._home = home
        self._name = name
        self._network = network
        self._now_ms = int(now * 1000)
        self.device, self._admin = SigningKey.generate(), SigningKey.generate()
        self.public = public_key_of(self.device)
        self.node_id = node_id_of(self.public)
        self._group = public_key_of(group_signing_key(self._root))
        self.group_id = group_id_of(self._group)
        self.tag = recovery_tag(self._root)
        self._chain = recovery_chain(
            self._root, device=self.device, admin=self._admin, name=name, now_ms=self._now_ms
        )
        self.state: GroupState | None = None
        self.news = 0  # states and heads that were newer than what was known
        self._heads: dict[Key, Shelved] = {}
        self._answered: set[NodeId] = set()
        self._groups_met: set[PublicKey] = set()

    # -- holders ----------------------------------------------------------------------------------

    def hello(self, record: bytes | None = None) -> Hello:
        return Hello(
            self._network,
            VERSIONS,
            self.public,
            chain=self._chain,
            name=self._name,
            record=record,
            group=self._group,
        )

    def role_of(self, hello: Hello) -> str:
        """A peer's role, from the certificates that it shows."""
        for chain in (hello.chain, *hello.friend_chains):
            try:
                return verify_chain(chain, self._group, frozenset(), hello.public_key).role.value
            except P2PStoreError:
                continue
        return STRANGER

    async def ask(self, link: Link) -> bool:
        """Take what this peer keeps of the group; False when it keeps nothing."""
        if link.hello.group is not None:
            self._groups_met.add(link.hello.group)
        try:
            reply, _ = await link.request(GetHeads(self.group_id))
        except NotAllowed:
            return False
        if not isinstance(reply, Heads):
            raise RemoteProtocolError("GET_HEADS was answered with something else.")
        took = self._take_states(reply.states, str(link))
        for raw in reply.heads:
            try:
                self._keep(open_head(raw))
            except P2PStoreError as exc:
                log.warning("A head from %s was refused: %s", link, exc)
        if took and link.role == Role.DEVICE.value:
            self._answered.add(link.node_id)
        return took

    def _take_states(self, raws: Sequence[bytes], whose: str) -> bool:
        took = False
        for raw in raws:
            try:
                state = GroupState.decode(raw)
                if state.group_public != self._group:
                    raise FormatError("it is that of another group")
                merged = state if self.state is None else merge(self.state, state)
                self.news += self.state is None or merged.raw != self.state.raw
                self.state = merged
                took = True
            except P2PStoreError as exc:
                log.warning("A group state from %s was refused: %s", whose, exc)
        return took

    def _keep(self, shelved: Shelved) -> None:
        """The newest of each folder and device, by the device's own count: a clock may be wrong."""
        head, signed = shelved.head, shelved.signed
        self._refuse_outsider(signed, frozenset())
        key = (head.folder, head.device)
        known = self._heads.get(key)
        if known is None and len(self._heads) == MAX_HEADS:
            raise NoRoom("there are more of them than anybody keeps for one group")
        if known is None or head_order(known.head) < head_order(head):
            self._heads[key] = shelved
            self.news += 1

    def _refuse_outsider(self, signed: SignedHead, revoked: frozenset[PublicKey]) -> None:
        role = verify_chain(signed.chain, self._group, revoked, signed.signer).role
        if role not in (Role.DEVICE, Role.ADMIN):
            raise FormatError("no device of the group signed it")

    def why_nobody(self, words: str) -> str | None:
        """The wrong word, when the peers that were met belong to the group of nearly these."""
        return named_mistake(words, self._groups_met)

    # -- HOME -------------------------------------------------------------------------------------

    def settle(
        self,
        place: Callable[[FolderId, str, str], Path],
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> Recovered:
        """Write HOME, durably; afterwards a node can run on it.

        `place` chooses a folder's directory from its id, its name and the path that it had ("":
        unknown).
        Blocks. Unavailable before a holder has answered.
        """
        if self.state is None:
            raise Unavailable("No holder of this group has answered yet.")
        name = self.state.free_name(self._name, self.public)
        state = self.state.recovered(
            self._root,
            device=self.device,
            admin=self._admin,
            name=name,
            now_ms=self._now_ms,
            random=random,
        )
        secrets = state.open_recovery(recovery_key(self._root))
        epochs = {e.epoch: EpochKeys.derive(e.epoch, e.secret) for e in secrets.epochs}
        ring = Keyring(current=epochs[secrets.current.epoch], epochs=epochs, dedup=secrets.dedup)
        chosen, left = self._choose(state, ring)
        home = self._home
        _clear(home)
        home.make_directory()
        replace_file(home.path / MARK, b"")
        replace_file(home.path / "DO-NOT-DELETE.txt", DO_NOT_DELETE.encode(), mode=0o644)
        home.save_device(self.device)
        replace_file(home.path / "admin.key", bytes(self._admin))
        home.write_incarnation(1)
        chain = state.chain_of(self.public) or self._chain
        folders: list[WatchedFolder] = []
        for found, heard in chosen:
            raw = seal_manifest(found.manifest, ring.current, self.device, chain, random(NONCE))
            head = Head(found.head.folder, self.node_id, 1, 1, raw)
            signed = encode_head(sign_head(head, self.device, chain))
            home.write_head(head.folder, self.node_id, signed)
            folders.append(_make_folder(found, heard, place))
        home.write_folders(folders)
        home.confirm_words()  # whoever typed them all has them
        home.write_state(state.raw)
        as_of = tuple(folder.as_of_ns / 1e9 for folder in folders)
        return Recovered(self.group_id, name, tuple(folders), left, as_of)

    def _choose(
        self, state: GroupState, ring: Keyring
    ) -> tuple[list[_Chosen], tuple[tuple[str, str], ...]]:
        """The newest head of each folder, and the folders that a device has which answered."""
        found: dict[FolderId, list[_Found]] = {}
        for shelved in self._heads.values():
            one = self._opened(shelved, state, ring)
            if one is not None:
                found.setdefault(one.head.folder, []).append(one)
        chosen: list[_Chosen] = []
        left: list[tuple[str, str]] = []
        for heads in found.values():
            newest = max(heads, key=lambda one: one.manifest.meta.mtime_ns)
            there = {one.head.device for one in heads} & self._answered
            if there:
                left.append((_name(newest), _device_name(state, min(there))))
            else:
                chosen.append(_Chosen(newest, tuple(one.followed for one in heads)))
        chosen.sort(key=lambda one: _name(one.newest))
        return chosen, tuple(sorted(left))

    def _opened(self, shelved: Shelved, state: GroupState, ring: Keyring) -> _Found | None:
        """The head, when a device of the group signed it and the index that it names."""
        try:
            self._refuse_outsider(shelved.signed, state.revoked)
            opened = open_manifest(shelved.head.manifest, ring)
            if opened.signer != shelved.signed.signer or opened.manifest.kind != "index":
                raise FormatError("it does not name an index of its device")
            return _Found(shelved.head, opened.manifest, note_of(opened.manifest.meta))
        except P2PStoreError as exc:
            log.warning("A head is not believed: %s", exc)
            return None


def is_cut_short(home: Home) -> bool:
    """Whether a recovery was begun here and HOME is not complete."""
    return (home.path / MARK).exists() and not (home.path / "group.state").exists()


def is_recovering(home: Home) -> bool:
    """Whether HOME is complete, and placeholders may still be missing."""
    return (home.path / MARK).exists() and (home.path / "group.state").exists()


def recovering_again(home: Home) -> None:
    """More is to come: durable before any row says so."""
    replace_file(home.path / MARK, b"")


def recovered(home: Home) -> None:
    """Every placeholder lies in its place."""
    (home.path / MARK).unlink(missing_ok=True)


def named_mistake(words: str, groups: set[PublicKey]) -> str | None:
    """Which word is wrong, when one changed word makes them those of one of these groups."""
    return amend(words, lambda root: public_key_of(group_signing_key(root)) in groups)


def _clear(home: Home) -> None:
    """Take away what an attempt left that was cut short; nothing was made with its keys."""
    for name in ("device.key", "admin.key", "folders.json", "incarnation", "words.confirmed"):
        (home.path / name).unlink(missing_ok=True)
    shutil.rmtree(home.path / "heads", ignore_errors=True)


def _make_folder(
    found: _Found,
    heard: tuple[Followed, ...],
    place: Callable[[FolderId, str, str], Path],
) -> WatchedFolder:
    name = _name(found)
    path = place(found.head.folder, name, os.fsdecode(found.note.path))
    path.mkdir(parents=True, exist_ok=True)
    path = path.resolve()
    Root.mark(path, found.head.folder)
    return WatchedFolder(
        folder_id=found.head.folder,
        path=os.fspath(path),
        name=name,
        settings=_settings(found.note.settings),
        paused=RECOVERING,
        follows=heard,
        as_of_ns=found.manifest.meta.mtime_ns,
    )


def _settings(raw: bytes) -> FolderSettings:
    """As they were; another version's, or none, are the defaults: they decide about no content."""
    try:
        return msgspec.msgpack.decode(raw, type=FolderSettings) if raw else FolderSettings()
    except msgspec.MsgspecError as exc:
        log.warning("The settings of a folder cannot be read and are the default ones: %s", exc)
        return FolderSettings()


def _name(found: _Found) -> str:
    return os.fsdecode(found.manifest.meta.name)


def _device_name(state: GroupState, node_id: NodeId) -> str:
    names = {node_id_of(c.subject): c.name for c in state.devices()}
    return names.get(node_id, "another device")
