"""The side file of a bundle that is kept for somebody: all that was promised about it.

    magic "p2pside" 0x01 (8), first 16 bytes of BLAKE3 over the body, body = SideFile as MessagePack

It is written whole, synced and renamed before a RECEIPT or a LOCK is answered. The catalog knows
none of it: losing the catalog loses no promise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from p2pstore.content import MAX_REPLACES, MAX_SIGNED_LIVE_MAP
from p2pstore.durable import read_checked, replace_file, with_check
from p2pstore.errors import FormatError
from p2pstore.ids import BundleId, NodeId, PublicKey, Tag

MAGIC: Final = b"p2pside\x01"
MAX_GRANTS: Final = 64  # shares of one bundle
MAX_GRANT_BYTES: Final = 256 << 10  # of all its grants together
MAX_LOCKS: Final = 64  # devices of one group that evict the same bundle at once
MAX_SIDE: Final = 1 << 20  # grants, locks, replaced ids and the live map at their largest


class SideLock(msgspec.Struct, frozen=True, array_like=True):
    locker: NodeId
    until_s: float  # on the monotonic clock of the boot named in the side file


class SideReplaced(msgspec.Struct, frozen=True, array_like=True):
    bundle_id: BundleId
    tag: Tag


class SideFile(msgspec.Struct, frozen=True, array_like=True):
    bundle_id: BundleId
    group: PublicKey
    opener: PublicKey
    kind: int
    tag: Tag
    lease_until_ms: int
    live_map: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNED_LIVE_MAP)]  # b"": all live
    blocks: int
    live_bytes: int
    released_ms: int = 0  # when it went to the trash; 0 = it did not
    locks: Annotated[tuple[SideLock, ...], msgspec.Meta(max_length=MAX_LOCKS)] = ()
    lock_boot_id: str = ""
    grants: Annotated[tuple[bytes, ...], msgspec.Meta(max_length=MAX_GRANTS)] = ()
    replaces: Annotated[tuple[SideReplaced, ...], msgspec.Meta(max_length=MAX_REPLACES)] = ()


_DECODER = msgspec.msgpack.Decoder(SideFile)
_ENCODER = msgspec.msgpack.Encoder()


def write_side(path: Path, side: SideFile) -> None:
    """Durable when this returns."""
    replace_file(path, encode_side(side))


def encode_side(side: SideFile) -> bytes:
    return with_check(MAGIC, _ENCODER.encode(side))


def read_side(path: Path, bundle_id: BundleId) -> SideFile:
    """FormatError when it is damaged or of another bundle; FileNotFoundError."""
    body = read_checked(path, MAGIC, MAX_SIDE)
    try:
        side = _DECODER.decode(body)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise FormatError(f"{path.name} is damaged: {exc}") from exc
    if side.bundle_id != bundle_id:
        raise FormatError(f"{path.name} belongs to another bundle")
    return side
