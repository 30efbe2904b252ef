"""What HOME keeps of each share that this node made: HOME/shares/ID.share, mode 0600.

    magic "p2pshar" 0x01 (8), checksum (see `durable.with_check`), body = ShareRecord as MessagePack
    ID = the first 16 bytes of the id of the root's bundle, hex

The catalog knows only which bundles a share keeps, so that losing it ends no share. Whoever reads
such a file can read the shared file, as with the key itself; a password is in neither.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, Final

import msgspec

from p2pstore.content import FOR_EVER_MS, MAX_KEY_TEXT, MAX_NAME, BundleRef
from p2pstore.durable import read_checked, replace_file, sync_directory, with_check
from p2pstore.errors import FormatError, NoRoom, Unavailable
from p2pstore.ids import Bytes32

MAGIC: Final = b"p2pshar\x01"
MAX_FILE: Final = 64 << 20  # the bundles of some 15 TB; more is damage
SUFFIX: Final = ".share"


class ShareRecord(msgspec.Struct, frozen=True, array_like=True):
    key: Annotated[str, msgspec.Meta(max_length=MAX_KEY_TEXT)] = msgspec.field()
    token_hash: Bytes32
    name: Annotated[bytes, msgspec.Meta(max_length=MAX_NAME)]
    size: int
    created_ms: int
    expires_ms: int  # FOR_EVER_MS: when it is taken back
    is_once: bool  # it ends when somebody has fetched all of it, and lies on this node alone
    has_password: bool
    bundles: tuple[BundleRef, ...]  # the root's first

    @property
    def id(self) -> str:
        return self.bundles[0].bundle_id[:16].hex()

    @property
    def ends(self) -> float | None:
        """When it ends by itself, in seconds since 1970."""
        return None if self.expires_ms == FOR_EVER_MS else self.expires_ms / 1000

    def has_expired(self, now_ms: int) -> bool:
        return now_ms >= self.expires_ms


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(ShareRecord)


class Records:
    """The files of one HOME. Every change is durable when it returns."""

    def __init__(self, home: Path) -> None:
        self._directory = home / "shares"

    def ids(self) -> set[str]:
        """Of all shares, those too whose record cannot be read."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return set()
        return {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}

    def read(self, share_id: str) -> ShareRecord:
        """FormatError when it is damaged, or cannot be read."""
        path = self._path(share_id)
        try:
            body = read_checked(path, MAGIC, MAX_FILE)
        except OSError as exc:
            raise FormatError(f"{path.name} cannot be read ({exc.strerror})") from exc
        try:
            record = _DECODER.decode(body)
        except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
            raise FormatError(f"{path.name} is damaged: {exc}") from exc
        if not record.bundles or record.id != share_id:
            raise FormatError(f"{path.name} belongs to another share")
        return record

    def write(self, record: ShareRecord) -> None:
        """NoRoom, Unavailable: then there is no such share."""
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(self._directory.parent)
            replace_file(self._path(record.id), with_check(MAGIC, _ENCODER.encode(record)))
        except OSError as exc:
            kind = NoRoom if exc.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
            raise kind(f"What is shared cannot be noted in HOME ({exc.strerror}).") from exc

    def remove(self, share_id: str) -> None:
        self._path(share_id).unlink(missing_ok=True)
        sync_directory(self._directory)

    def _path(self, share_id: str) -> Path:
        return self._directory / f"{share_id}{SUFFIX}"
