"""What the journal says about a folder's files: enough to finish or take back after a crash.

REPLACE   state   ingest     nothing in the folder was touched
                  placing    the files are protected; some `.f` may have got their names
                  commit     the named originals are being renamed into trash
                  trashed    originals (and old `.f`) lie in trash until `trash_hold` is over
HYDRATE   state   landing    originals may have got their names beside their placeholders
                  trashed    placeholders lie in trash until `trash_hold` is over

Body: MessagePack array [folder id, batch, items]; an item is [path, ino, size, mtime ns, ctime ns,
content hash, file id]. In `trashed` the numbers are those of the file in trash, and the hash of one
of our placeholders is empty.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import msgspec

from p2pstore.errors import FormatError
from p2pstore.placement import Identity
from p2pstore.store import journal

INGEST = "ingest"
PLACING = "placing"
COMMIT = "commit"
LANDING = "landing"
TRASHED = "trashed"


class Item(msgspec.Struct, frozen=True, array_like=True):
    path: bytes
    ino: int
    size: int
    mtime_ns: int
    ctime_ns: int
    hash: bytes = b""
    file_id: bytes = b""

    @property
    def identity(self) -> Identity:
        return Identity(self.ino, self.size, self.mtime_ns, self.ctime_ns)

    @classmethod
    def of(
        cls, path: bytes, identity: Identity, content_hash: bytes = b"", file_id: bytes = b""
    ) -> Item:
        return cls(path, *identity, content_hash, file_id)


class Body(msgspec.Struct, frozen=True, array_like=True):
    folder_id: bytes
    batch: str
    items: tuple[Item, ...]

    def encode(self) -> bytes:
        return _ENCODER.encode(self)

    @classmethod
    def decode(cls, raw: bytes) -> Body:
        try:
            return _DECODER.decode(raw)
        except msgspec.MsgspecError as exc:
            raise FormatError("A journal row of the catalog is damaged.") from exc


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Body)


def items_of(intent: int, db: sqlite3.Connection) -> tuple[Item, ...]:
    """What the row of this batch names; nothing when it is closed."""
    row = journal.get(db, intent)
    return () if row is None else Body.decode(row.body).items


class Trashed(NamedTuple):
    """A batch that waits in trash. Its row in the journal names what lies there: a trash may hold
    a million files."""

    intent: int
    batch: str
    files: int
    bytes: int
    since_ms: int
    rehash: bool  # the node restarted since: contents are hashed anew before anything goes

    @classmethod
    def of(cls, intent: int, body: Body, since_ms: int, *, rehash: bool) -> Trashed:
        size = sum(item.size for item in body.items)
        return cls(intent, body.batch, len(body.items), size, since_ms, rehash)
