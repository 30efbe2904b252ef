"""The newest head of each folder and device, of one group: one file each, in one directory.

    <folder hex>-<device hex>.head      an encoded SignedHead, as it came

A head is replaced by a newer one only, by (incarnation, seq) (I8). Two different heads of one
number mean that a device lost its count; the first one stays, the other is refused, so that "I have
number 7" always means one thing. Who may sign is judged before; signatures are checked here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from p2pstore.content import Head, SignedHead, decode_head, head_order, verify_head
from p2pstore.durable import replace_file
from p2pstore.errors import IntegrityError, NoRoom, P2PStoreError
from p2pstore.ids import FolderId, NodeId, short

log = logging.getLogger(__name__)

MAX_HEAD = 8 * 1024  # what the wire carries: a sealed manifest (4 KiB), a chain, a signature
MAX_HEADS = 512  # folders times devices; as many as one HEADS carries
MAX_BYTES = 1 << 20  # of one group; HEADS has 2 MiB for these and the group's states

Key: TypeAlias = tuple[FolderId, NodeId]


class Shelved(NamedTuple):
    head: Head
    signed: SignedHead
    raw: bytes


def open_head(raw: bytes) -> Shelved:
    """A head with a good signature; FormatError, IntegrityError."""
    signed = decode_head(raw)
    return Shelved(verify_head(signed), signed, raw)


class HeadShelf:
    """Not for several threads at once: the caller has a lock."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._heads: dict[Key, Shelved] = {}
        self._bytes = 0
        for path in sorted(directory.glob("*.head")):
            try:
                with path.open("rb") as file:
                    self._keep(open_head(file.read(MAX_HEAD + 1)))
            except P2PStoreError as exc:
                # It is told again by whoever has it; the file stays for the owner to look at.
                log.warning("The head %s cannot be read and is left alone: %s", path, exc)

    def _keep(self, shelved: Shelved) -> None:
        head = shelved.head
        key = (head.folder, head.device)
        old = self._heads.get(key)
        self._bytes += len(shelved.raw) - (len(old.raw) if old else 0)
        self._heads[key] = shelved

    def get(self, folder: FolderId, device: NodeId) -> Shelved | None:
        return self._heads.get((folder, device))

    def all(self) -> list[Shelved]:
        """In a steady order."""
        return [self._heads[key] for key in sorted(self._heads)]

    def put(self, shelved: Shelved) -> bool:
        """Keep it, durably, when it is newer than what is here; False when it is not.

        IntegrityError: another head of the same number is here. NoRoom beyond the limits.
        """
        head, raw = shelved.head, shelved.raw
        old = self._heads.get((head.folder, head.device))
        if old is not None and head_order(head) <= head_order(old.head):
            if head_order(head) == head_order(old.head) and head != old.head:
                raise IntegrityError(
                    f"Device {short(head.device)} signed two heads of folder "
                    f"{short(head.folder)} with one number."
                )
            return False
        size = self._bytes + len(raw) - (len(old.raw) if old else 0)
        count = len(self._heads) + (old is None)
        if len(raw) > MAX_HEAD or size > MAX_BYTES or count > MAX_HEADS:
            raise NoRoom("This group has more heads than are kept for one.")
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(self._directory / f"{head.folder.hex()}-{head.device.hex()}.head", raw)
        self._keep(shelved)
        return True


def within(raws: Iterable[bytes], room: int) -> tuple[bytes, ...]:
    """As many as fit into `room` bytes, for one message."""
    taken: list[bytes] = []
    for raw in raws:
        room -= len(raw) + 5  # MessagePack's head of a byte string
        if room < 0 or len(taken) == MAX_HEADS:
            log.warning("A group has more heads than fit one message; some were left out.")
            break
        taken.append(raw)
    return tuple(taken)
