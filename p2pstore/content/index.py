"""A folder's index: one line for each path, and the head that names the newest index.

The index is a file like any other (manifest of kind "index"), so content-defined cuts make two
versions share all but a few chunks. It is read and written as a stream.

    magic    "p2pstore index 1\\n"
    lines    u32 length, big-endian, then IndexLine as MessagePack; strictly ascending by path
    end      u32 zero, then u64 the number of lines; nothing behind it

    IndexLine = [path, kind, file id (16), version, size, mtime_ns, target, BundleRef or nil,
                 Entry or nil]

    path     relative to the folder, parts joined by `/`, each a safe name; at most 4,096 bytes
    kind     "file": bundle and entry say where its manifest (a whole `.f`) lies
             "link": target is what the symlink says, never followed
             "deleted": what was here is gone; bundle and entry may name its last manifest
    version  a version vector (version.py)

    Head       = [folder id (16), device (NodeId), incarnation, seq, manifest]
                 manifest = the whole sealed `.f` of the index, its name is the folder's
    SignedHead = [payload: Head encoded, signer (32), chain, signature (64)]
                 context "p2pstore 2026 head"; the signer is the device itself

The index's manifest says in one extended attribute, "user.p2pstore.folder", how the folder was
kept, so that a recovery makes it again at its place: FolderNote = [path, settings], at most 900
bytes encoded (it stays inline then); settings that are too long are left out, then the path.

Heads of one device and folder are ordered by (incarnation, seq). The incarnation is raised at
each rebuild, so that a device that lost its count never writes an older head than others know.

Limits: a line has at most 16 KiB (path and target 4 KiB each, the rest about 1.5 KiB).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import msgspec
from nacl.signing import SigningKey

from p2pstore.content.chunklist import BundleRef, Entry
from p2pstore.content.codec import (
    MAX_CHAIN,
    MAX_INT,
    decode,
    encode,
    public_key_of,
    sign,
    verify,
)
from p2pstore.content.filemeta import MAX_PATH, FileMeta, Xattrs, safe_path
from p2pstore.content.manifest import MAX_READ
from p2pstore.content.version import VersionVector, check_version, sorted_version
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import Bytes64, FileId, FolderId, NodeId, PublicKey, node_id_of

INDEX_MAGIC = b"p2pstore index 1\n"
MAX_LINE = 16 * 1024
MAX_SIGNED_HEAD = MAX_READ + MAX_CHAIN + 512

MAX_NOTE = 900
NOTE_NAME = b"user.p2pstore.folder"

HEAD_CONTEXT = b"p2pstore 2026 head"

_PIECE = 64 * 1024
_LENGTH = struct.Struct(">I")
_END = struct.Struct(">IQ")

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]


class IndexLine(msgspec.Struct, frozen=True, array_like=True):
    path: Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_PATH)]
    kind: Literal["file", "link", "deleted"]
    file_id: FileId
    version: VersionVector
    size: _Count
    mtime_ns: Annotated[int, msgspec.Meta(ge=-MAX_INT, le=MAX_INT)]
    target: Annotated[bytes, msgspec.Meta(max_length=MAX_PATH)] = b""
    ref: BundleRef | None = None
    entry: Entry | None = None


class Head(msgspec.Struct, frozen=True, array_like=True):
    folder: FolderId
    device: NodeId
    incarnation: _Count
    seq: _Count
    manifest: Annotated[bytes, msgspec.Meta(max_length=MAX_READ)]


class SignedHead(msgspec.Struct, frozen=True, array_like=True):
    payload: Annotated[bytes, msgspec.Meta(max_length=MAX_SIGNED_HEAD)]
    signer: PublicKey
    chain: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN)]
    signature: Bytes64


class FolderNote(msgspec.Struct, frozen=True, array_like=True):
    """Where the folder was, absolute, and its settings as their owner encodes them (config)."""

    path: Annotated[bytes, msgspec.Meta(max_length=MAX_PATH)] = b""
    settings: Annotated[bytes, msgspec.Meta(max_length=MAX_NOTE)] = b""


_LINE = msgspec.msgpack.Decoder(IndexLine)
_HEAD = msgspec.msgpack.Decoder(Head)
_NOTE = msgspec.msgpack.Decoder(FolderNote)
_SIGNED = msgspec.msgpack.Decoder(SignedHead)


def note_xattrs(path: bytes, settings: bytes) -> Xattrs:
    """The attribute for the index's manifest; nothing when not even the path fits."""
    for note in (FolderNote(path, settings), FolderNote(path)):
        if len(raw := encode(note)) <= MAX_NOTE:
            return ((NOTE_NAME, raw),)
    return ()


def note_of(meta: FileMeta) -> FolderNote:
    """What the index's manifest says of its folder; empty when it says nothing. FormatError."""
    for name, raw in meta.xattrs:
        if name == NOTE_NAME:
            return decode(_NOTE, raw, MAX_NOTE, "a folder's note")
    return FolderNote()


def check_line(line: IndexLine) -> None:
    """FormatError unless the parts of a line fit each other."""
    safe_path(line.path)
    check_version(line.version)
    if (line.ref is None) != (line.entry is None) or (line.kind == "file" and line.ref is None):
        raise FormatError("an index line that does not say where its manifest lies")
    if line.entry is not None and line.entry.table:
        raise FormatError("an index line whose manifest has a table")
    if bool(line.target) != (line.kind == "link") or b"\0" in line.target:
        raise FormatError("an index line with a wrong link target")


def encode_lines(lines: Iterable[IndexLine]) -> Iterator[bytes]:
    """The index in pieces of about 64 KiB. The lines must ascend by path."""
    piece = bytearray(INDEX_MAGIC)
    last, count = b"", 0
    for line in lines:
        check_line(line)
        if line.path <= last:
            raise LocalProtocolError("index lines that do not ascend by path")
        if len(line.version) > 1:
            line = msgspec.structs.replace(line, version=sorted_version(line.version))
        raw = encode(line)
        if len(raw) > MAX_LINE:
            raise LocalProtocolError("an index line that is too long")
        last = line.path
        count += 1
        piece += _LENGTH.pack(len(raw))
        piece += raw
        if len(piece) >= _PIECE:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece) + _END.pack(0, count)


def decode_lines(pieces: Iterable[bytes]) -> Iterator[IndexLine]:
    """The lines of an index that arrives in pieces of any size.

    FormatError when it is damaged, unsorted, cut short or has bytes behind its end; lines that came
    before the damage have been given out already.
    """
    source = _Source(pieces)
    if source.take(len(INDEX_MAGIC)) != INDEX_MAGIC:
        raise FormatError("this is no index")
    last, count = b"", 0
    while length := _LENGTH.unpack(source.take(4))[0]:
        if length > MAX_LINE:
            raise FormatError("an index line that is too long")
        line = decode(_LINE, source.take(length), MAX_LINE, "an index line")
        check_line(line)
        if line.path <= last:
            raise FormatError("index lines that do not ascend by path")
        last = line.path
        count += 1
        yield line
    if int.from_bytes(source.take(8), "big") != count:
        raise FormatError("an index with another number of lines than it says")
    if source.has_more():
        raise FormatError("an index with bytes behind its end")


class _Source:
    """Takes exact sizes out of pieces of any size."""

    __slots__ = ("_at", "_buffer", "_pieces")

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._buffer = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end <= len(self._buffer):
            taken = self._buffer[self._at : end]
            self._at = end
            return taken
        parts = [self._buffer[self._at :]]
        have = len(parts[0])
        while have < size:
            piece = next(self._pieces, None)
            if piece is None:
                raise FormatError("an index that was cut off")
            parts.append(piece)
            have += len(piece)
        self._buffer = b"".join(parts)
        self._at = size
        return self._buffer[:size]

    def has_more(self) -> bool:
        return self._at < len(self._buffer) or any(self._pieces)


def sign_head(head: Head, key: SigningKey, chain: bytes) -> SignedHead:
    """`key` is the device's own."""
    signer = public_key_of(key)
    if node_id_of(signer) != head.device:
        raise LocalProtocolError("a device signs its own heads only")
    payload = encode(head)
    return SignedHead(payload, signer, chain, sign(HEAD_CONTEXT, payload, key))


def verify_head(signed: SignedHead) -> Head:
    """IntegrityError unless the device that the head names signed it; the chain is judged above."""
    verify(HEAD_CONTEXT, signed.payload, signed.signature, signed.signer)
    head = decode(_HEAD, signed.payload, MAX_SIGNED_HEAD, "a head")
    if node_id_of(signed.signer) != head.device:
        raise IntegrityError("a head that another device signed")
    return head


def encode_head(signed: SignedHead) -> bytes:
    return encode(signed)


def decode_head(raw: bytes) -> SignedHead:
    """FormatError when it is damaged; `verify_head` comes next."""
    return decode(_SIGNED, raw, MAX_SIGNED_HEAD, "a signed head")


def head_order(head: Head) -> tuple[int, int]:
    """The greater is the newer, among heads of one device and folder."""
    return (head.incarnation, head.seq)
