"""What a file is beside its bytes: name, owner, times, attributes, holes.

    FileMeta = [name, size, mode, uid, gid, user, group, mtime_ns, xattrs, holes, extra]

    name     1 to 255 bytes as on disk; no slash, no NUL, not `.` or `..`; any encoding
    size     of the whole file, holes included
    mode     st_mode with file type
    user, group   names at the place of ingest, empty when unknown, at most 256 bytes each
    mtime_ns may be negative (before 1970)
    xattrs   [[full name, value]]: `user.*` and POSIX ACLs, sorted by name
    holes    [[offset, length]]: ascending, apart from each other, inside the size
    extra    nil, or [BundleRef, Entry] of the block that holds xattrs and holes; they are empty
             here then

    Extra    = [xattrs, holes], the payload of that block

What exceeds 1 KiB goes to `extra`. Limits: 256 KiB of xattrs (more than ext4 or btrfs keep), 32,768
holes: both together fit one block. A file with more holes keeps the largest; the rest is stored
as zeros, which compress to nothing: the bytes stay exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec

from p2pstore.content.block import MAX_PAYLOAD
from p2pstore.content.chunklist import BundleRef, Entry
from p2pstore.content.codec import MAX_INT, decode, encode
from p2pstore.errors import FormatError, UsageError

MAX_NAME = 255  # what every Linux file system can hold
MAX_PATH = 4096
MAX_OWNER = 256  # LOGIN_NAME_MAX
MAX_INLINE_EXTRA = 1024  # the `.f` has 4 KiB for everything
MAX_XATTR_BYTES = 256 * 1024
MAX_XATTRS = 4096
MAX_HOLES = 32_768

Hole = tuple[
    Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)], Annotated[int, msgspec.Meta(gt=0, le=MAX_INT)]
]
Xattr = tuple[Annotated[bytes, msgspec.Meta(min_length=1, max_length=255)], bytes]
Xattrs = Annotated[tuple[Xattr, ...], msgspec.Meta(max_length=MAX_XATTRS)]
Holes = Annotated[tuple[Hole, ...], msgspec.Meta(max_length=MAX_HOLES)]
_U32 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFF)]
_Owner = Annotated[str, msgspec.Meta(max_length=MAX_OWNER)]


class FileMeta(msgspec.Struct, frozen=True, array_like=True):
    name: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_NAME)]
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
    mode: _U32
    uid: _U32
    gid: _U32
    user: _Owner
    group: _Owner
    mtime_ns: Annotated[int, msgspec.Meta(ge=-MAX_INT, le=MAX_INT)]
    xattrs: Xattrs = ()
    holes: Holes = ()
    extra: tuple[BundleRef, Entry] | None = None


class Extra(msgspec.Struct, frozen=True, array_like=True):
    xattrs: Xattrs
    holes: Holes


_PART = rb"(?!\.{1,2}(?:/|\Z))[^/\0]{1,255}"  # what `safe_name` lets pass
_SAFE_PATH = re.compile(_PART + rb"(?:/" + _PART + rb")*")
_EXTRA = msgspec.msgpack.Decoder(Extra)


def safe_name(name: bytes) -> bytes:
    """`name` when it can only mean one entry of one directory, else FormatError."""
    if not 0 < len(name) <= MAX_NAME:
        raise FormatError(f"a file name of {len(name)} bytes")
    if name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise FormatError(f"a file name that leaves its directory: {name!r}")
    return name


def safe_path(path: bytes) -> bytes:
    """A relative path, each part of it a `safe_name`; else FormatError."""
    if not 0 < len(path) <= MAX_PATH:
        raise FormatError(f"a path of {len(path)} bytes")
    if _SAFE_PATH.fullmatch(
        path
    ):  # every line of every index: one look instead of one for each part
        return path
    for part in path.split(b"/"):
        safe_name(part)
    return path


def check_meta(meta: FileMeta) -> None:
    """FormatError unless the parts of `meta` fit each other."""
    safe_name(meta.name)
    if len(meta.user.encode()) > MAX_OWNER or len(meta.group.encode()) > MAX_OWNER:
        raise FormatError("a file whose owner has too long a name")
    if meta.extra is not None and (meta.xattrs or meta.holes):
        raise FormatError("a file whose attributes lie in two places")
    if meta.holes:
        check_holes(meta.size, meta.holes)
    if meta.xattrs:
        check_xattrs(meta.xattrs)


def check_holes(size: int, holes: Sequence[tuple[int, int]]) -> None:
    if len(holes) > MAX_HOLES:
        raise FormatError("a file with too many holes")
    end = 0
    for offset, length in holes:
        if length <= 0 or offset < end or (end and offset == end):
            raise FormatError("the holes of a file overlap or touch each other")
        end = offset + length
    if end > size:
        raise FormatError("a hole beyond the end of its file")


def check_xattrs(xattrs: Sequence[tuple[bytes, bytes]]) -> None:
    if sum(len(name) + len(value) for name, value in xattrs) > MAX_XATTR_BYTES:
        raise FormatError("a file with too many attributes")
    last = b""
    for name, _ in xattrs:
        if name <= last or b"\0" in name or len(name) > 255:
            raise FormatError("the attributes of a file are not sorted, or named impossibly")
        last = name


def largest_holes(holes: Sequence[tuple[int, int]], most: int = MAX_HOLES) -> list[tuple[int, int]]:
    """The holes to keep of a file that has too many, in order; the others become zeros."""
    if len(holes) <= most:
        return list(holes)
    return sorted(sorted(holes, key=lambda hole: -hole[1])[:most])


def sorted_xattrs(xattrs: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[bytes, bytes], ...]:
    """As FileMeta wants them; UsageError when they are more than a manifest can hold."""
    ordered = tuple(sorted(xattrs))
    try:
        check_xattrs(ordered)
    except FormatError as exc:
        raise UsageError("the file has more extended attributes than can be kept") from exc
    return ordered


def encode_extra(meta: FileMeta) -> bytes:
    """The payload of the block that takes the place of xattrs and holes."""
    return encode(Extra(meta.xattrs, meta.holes))


def needs_extra(meta: FileMeta) -> bool:
    """The attributes and holes are too long for the `.f`."""
    if not meta.xattrs and not meta.holes:
        return False
    return len(encode_extra(meta)) > MAX_INLINE_EXTRA


def with_extra(meta: FileMeta, payload: bytes) -> FileMeta:
    """`meta` with the xattrs and holes that its extra block holds; FormatError when damaged."""
    extra = decode(_EXTRA, payload, MAX_PAYLOAD, "the attributes of a file")
    whole = msgspec.structs.replace(meta, xattrs=extra.xattrs, holes=extra.holes, extra=None)
    check_meta(whole)
    return whole


def data_segments(size: int, holes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(offset in the file, length) of what lies between the holes, in order."""
    segments: list[tuple[int, int]] = []
    position = 0
    for offset, length in holes:
        if offset > position:
            segments.append((position, offset - position))
        position = offset + length
    if position < size:
        segments.append((position, size - position))
    return segments
