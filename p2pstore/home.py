"""HOME: what a node must not lose, in plain files beside the catalog.

    config.toml         settings (config.py)
    device.key          32 bytes, the Ed25519 seed of this device                     0600
    admin.key           32 bytes, the first device's admin key; absent elsewhere      0600
    group.state         the newest group state, as `keys` encodes it
    words.txt           the 24 words until they are confirmed                         0600
    words.confirmed     empty; this device's owner has confirmed them
    incarnation         decimal; raised at each rebuild or restore, never lowered
    folders.json        the watched folders: id, path, name, settings, marker, whom they follow
    heads/              the newest head of each folder and device, one file each
    recovering          empty; a recovery from the words is not finished, or open again
    lock                held (flock) by the one process that works here
    catalog.sqlite, bundles/, held/, leaving, peers.json, dht.state, announced belong to other
                        modules
    DO-NOT-DELETE.txt   says why
    MAY-BE-DELETED.txt  there instead when a leave has ended

Every file is replaced whole (durable.py). A HOME that once had an identity never gets a new one:
`create` refuses when anything of the above is there. This module knows no clock and draws no dice.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from nacl.signing import SigningKey

from p2pstore.config import FolderSettings
from p2pstore.durable import replace_file
from p2pstore.errors import FormatError, HomeLocked, IntegrityError, UsageError
from p2pstore.ids import FolderId, NodeId, PublicKey, node_id_of
from p2pstore.keys import GroupState

REMEDY = (
    "Bring it back from a copy of HOME; or, in a new HOME, everything from the 24 words: "
    "p2pstore recover"
)
MAX_FILE = 64 << 20  # a group state or a folder list above this is damage
DO_NOT_DELETE = """This directory is p2pstore's home on this computer.

It holds the keys and the only local copies of files that were replaced by `.f` placeholders,
and pieces that this computer keeps for others. Deleting it can destroy files for ever.

To stop using p2pstore and get every file back:   p2pstore leave
"""

MAY_BE_DELETED = """This computer has left: every file is back, or where `p2pstore leave` was told.

Nothing in this directory is needed any more; it may be deleted.
"""

RECOVERING = "being recovered"
"""Why a folder is paused whose placeholders are still to be laid out (WatchedFolder.paused)."""


class Followed(msgspec.Struct, frozen=True, array_like=True):
    """How far another device's heads of a folder have been read here."""

    device: bytes
    incarnation: int
    seq: int


class WatchedFolder(msgspec.Struct, frozen=True, kw_only=True):
    """A folder that this device watches. `marker` is its root's marker file's content.

    One that was recovered from the words goes on where lost devices ended: what is later than
    `follows`, or of a device that is not among them and later than `as_of_ns`, is still read.
    """

    folder_id: bytes
    path: str
    name: str
    settings: FolderSettings
    paused: str = ""  # why, when it waits for the owner
    removed: bool = False  # no longer watched; its placeholders' blocks are kept
    follows: tuple[Followed, ...] = ()  # empty: nobody; it was not recovered
    as_of_ns: int = 0  # when the list was written that the recovery began with


class Home:
    """One HOME directory. Reads are cheap; every write is durable when it returns."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- life -------------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether an identity lives here, whole or in part."""
        return any((self.path / name).exists() for name in ("device.key", "group.state"))

    @property
    def was_used(self) -> bool:
        """Whether an identity once lived here: a new one must never take its place unseen."""
        return any(
            (self.path / name).exists()
            for name in ("DO-NOT-DELETE.txt", "folders.json", "catalog.sqlite", "incarnation")
        )

    def create(self, device: SigningKey, *, state: bytes, admin: SigningKey | None = None) -> None:
        """Found an identity here. The group state is written last: with it HOME is complete."""
        if self.exists:
            raise UsageError(f"{self.path} already has an identity; p2pstore leave ends it.")
        self.make_directory()
        replace_file(self.path / "DO-NOT-DELETE.txt", DO_NOT_DELETE.encode(), mode=0o644)
        self.save_device(device)
        if admin is not None:
            replace_file(self.path / "admin.key", bytes(admin))
        self.write_incarnation(1)
        self.write_state(state)

    def mark_left(self) -> None:
        """What lives here has left: from now on everything of it may be deleted."""
        replace_file(self.path / "MAY-BE-DELETED.txt", MAY_BE_DELETED.encode(), mode=0o644)
        (self.path / "DO-NOT-DELETE.txt").unlink(missing_ok=True)

    def refuse_when_left(self) -> None:
        """UsageError: whoever begins anew is to be somebody else than the one who left."""
        if (self.path / "MAY-BE-DELETED.txt").exists():
            raise UsageError(
                f"This node has left, and nothing in {self.path} is needed any more. To begin "
                "anew, delete that directory, or name another: p2pstore --home DIR run"
            )

    def holds(self, path: str) -> bool:
        """Whether that path lies in here, by whatever links it is named."""
        home = os.path.realpath(self.path)
        return os.path.commonpath((home, os.path.realpath(path))) == home

    def make_directory(self) -> None:
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.path / "heads").mkdir(mode=0o700, exist_ok=True)

    def save_device(self, device: SigningKey) -> None:
        replace_file(self.path / "device.key", bytes(device))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only process that works on this HOME; HomeLocked when another one does."""
        self.make_directory()
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                pid = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
                raise HomeLocked(
                    f"Another p2pstore (pid {pid}) works on {self.path}. "
                    "Stop it, or use another --home."
                ) from exc
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            yield
        finally:
            os.close(descriptor)

    # -- identity ---------------------------------------------------------------------------------

    def device(self) -> SigningKey:
        return SigningKey(self._key("device.key"))

    def admin(self) -> SigningKey | None:
        """The admin key, on the device that has it."""
        return SigningKey(self._key("admin.key")) if (self.path / "admin.key").exists() else None

    def node_id(self) -> NodeId:
        return node_id_of(PublicKey(bytes(self.device().verify_key)))

    def state(self) -> GroupState:
        """The newest group state; FormatError when it is missing or damaged."""
        try:
            return GroupState.decode(self._read("group.state"))
        except (FormatError, IntegrityError) as exc:
            raise type(exc)(f"{self.path / 'group.state'} cannot be used: {exc} {REMEDY}") from exc

    def write_state(self, raw: bytes) -> None:
        replace_file(self.path / "group.state", raw)

    # -- words ------------------------------------------------------------------------------------

    def words(self) -> str | None:
        """The 24 words, while they are still on this disk."""
        path = self.path / "words.txt"
        return path.read_text().strip() if path.exists() else None

    def write_words(self, words: str) -> None:
        replace_file(self.path / "words.txt", words.encode() + b"\n")

    @property
    def words_confirmed(self) -> bool:
        return (self.path / "words.confirmed").exists()

    def confirm_words(self) -> None:
        """Remember that the owner has the words; then remove them from this disk."""
        replace_file(self.path / "words.confirmed", b"")
        (self.path / "words.txt").unlink(missing_ok=True)

    # -- incarnation ------------------------------------------------------------------------------

    def incarnation(self) -> int:
        try:
            return int(self._read("incarnation").decode("ascii"))
        except ValueError as exc:
            raise FormatError(f"{self.path}/incarnation is damaged.") from exc

    def write_incarnation(self, incarnation: int) -> None:
        replace_file(self.path / "incarnation", b"%d\n" % incarnation)

    # -- folders and heads ------------------------------------------------------------------------

    def folders(self) -> list[WatchedFolder]:
        path = self.path / "folders.json"
        if not path.exists():
            return []
        try:
            return msgspec.json.decode(self._read(path.name), type=list[WatchedFolder])
        except msgspec.MsgspecError as exc:
            raise FormatError(f"{path} is damaged: {exc}") from exc

    def write_folders(self, folders: list[WatchedFolder]) -> None:
        encoded = msgspec.json.format(msgspec.json.encode(folders))
        replace_file(self.path / "folders.json", encoded)

    def change_folder(
        self, folder_id: FolderId, change: Callable[[WatchedFolder], WatchedFolder]
    ) -> None:
        self.write_folders([change(f) if f.folder_id == folder_id else f for f in self.folders()])

    def heads(self) -> list[bytes]:
        """The newest signed heads that this node knows, encoded."""
        return [
            path.read_bytes()
            for path in sorted((self.path / "heads").glob("*.head"))
            if path.stat().st_size <= MAX_FILE
        ]

    def write_head(self, folder: FolderId, device: NodeId, raw: bytes) -> None:
        replace_file(self.path / "heads" / f"{folder.hex()}-{device.hex()}.head", raw)

    # -- reading ----------------------------------------------------------------------------------

    def _key(self, name: str) -> bytes:
        seed = self._read(name)
        if len(seed) != 32:
            raise FormatError(f"{self.path / name} is damaged: 32 bytes expected. {REMEDY}")
        return seed

    def _read(self, name: str) -> bytes:
        path = self.path / name
        try:
            with open(path, "rb") as file:
                content = file.read(MAX_FILE + 1)
        except FileNotFoundError as exc:
            raise FormatError(
                f"{path} is missing; this HOME is not complete. Bring the file back from a copy."
            ) from exc
        if len(content) > MAX_FILE:
            raise FormatError(f"{path} is larger than it can be.")
        return content
