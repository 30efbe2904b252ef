"""A file as pieces in a place that stores bytes (a carrier), and the meta that lists them.

The meta is JSON, in the form of the system that stored files as pictures; each reads the other's:

    protocol_version  "1.0"
    filename          the base name (what is read is made safe first: `safe_base_name`)
    piece_width       pixels of the pictures that hold the pieces; 0 where there are no pictures
    piece_height
    pieces            [{seq, key, offset, size, checksum}], none for an empty file
        seq           counts up by one from the first (ours from 0)
        key           where the carrier has it, 1 to 2,048 printable characters
        offset, size  in the file; the pieces follow each other without gaps from 0; size >= 1
        checksum      "blake3:" and the BLAKE3 of the piece's content in hex (64 lower case digits).
                      Anything else says nothing: good enough for an old plain meta, not for sealed
    next, more        only where a part follows: the carrier's key of that part, and how many follow

A meta that does not fit one piece is a chain: the head is a part as above; those that follow are
{pieces, next, more}. They are written from the last to the first, the head at the end. The place of
the head is 0, of another part `more` + 1: who reads knows from the head on which place comes next,
so a chain neither loops nor grows.

Sealed (the default), with one random secret of 32 bytes for the upload:

    key    = BLAKE3 derive_key("p2pstore 2026 upload piece" | "p2pstore 2026 upload meta",
             secret, place u64 big-endian); place is the seq of a piece, or that of a part
    nonce  = the first 24 bytes of BLAKE3 keyed with
             derive_key("p2pstore 2026 upload nonce", key) over what is sealed
    stored = nonce (24), XChaCha20-Poly1305(key, nonce, aad = "p2pstore 2026 upload 1", packed)
    packed = a piece's content and zeros, or a part's JSON and spaces, up to `padded_size` (steps of
             about 3 %) or to what the carrier takes, whichever is less

The nonce follows from the content: the same piece sealed again is the same bytes, so that what was
interrupted can be repeated under the same name, and no key ever meets two texts with one nonce. A
piece opens at its own place only, and its checksum lies in the sealed meta: the place can neither
swap pieces nor bring back an earlier one. Names and sizes are inside; what is seen from outside is
how many pieces there are, and their sizes in steps.

What the user keeps is the carrier's key of the head (plain), or (sealed)

    "p2pc:" and, in base32 (RFC 4648) in lower case without padding:
    offset  size  what
    0       1     version, 1
    1       32    secret
    33      2     n, length of the head's key, big-endian
    35      n     the carrier's key of the head, UTF-8
    35 + n  4     CRC-32 of all before it, big-endian; at the end of every version

The length tells a key that was cut from one that was mistyped. Limits: see the constants.
"""

from __future__ import annotations

import binascii
import json
import re
import struct
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, NamedTuple, Protocol, TypeVar

import msgspec
from blake3 import blake3
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as _open,
)
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_encrypt as _seal,
)
from nacl.bindings import sodium_memcmp
from nacl.exceptions import CryptoError

from p2pstore.content.block import padded_size
from p2pstore.content.codec import MAX_INT
from p2pstore.content.filemeta import MAX_NAME
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError, UsageError
from p2pstore.ids import base32, unbase32

MAX_PIECE: Final = 64 << 20  # bytes of content; several of them are in memory at a time
MAX_PIECES: Final = 1 << 17  # 141 GB in pictures of 600x600, 8 TiB in the largest pieces
MAX_PARTS: Final = 1024  # behind the head; each is one more question that must wait for the last
MAX_META: Final = 32 << 20  # bytes of JSON in all parts: 256 for each piece
MAX_LENIENT: Final = 1 << 20  # of JSON that only the lax parser reads: its objects are large
MAX_META_KEY: Final = 2048  # characters, as carriers promise
MAX_SIDE: Final = (1 << 31) - 1  # of a picture, by the PNG format

UPLOAD_PREFIX: Final = "p2pc:"
UPLOAD_AAD: Final = b"p2pstore 2026 upload 1"
UPLOAD_SECRET: Final = 32
UPLOAD_OVERHEAD: Final = 24 + 16  # nonce and authenticator
UNNAMED: Final = "unnamed"

JOINERS: Final = "\u200c\u200d"  # between letters of Persian, and inside emoji
_VERSION = 1
_PROTOCOL = "1.0"
_CHECKSUM = re.compile(r"blake3:[0-9a-f]{64}\Z")
_HEAD_OF_KEY = struct.Struct(">B32sH")
_CRC = struct.Struct(">I")
_OTHER_KEYS = ("p2p:", "p2ps:")  # of shares, and invitations
_LONGEST_KEY = 8 * (_HEAD_OF_KEY.size + 4 * MAX_META_KEY + _CRC.size) // 5 + 8

_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
_Side = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]
_Key = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_META_KEY)]
_Many = Annotated[int, msgspec.Meta(ge=0, le=MAX_PARTS)]

Part = TypeVar("Part")


class Piece(msgspec.Struct, frozen=True):
    seq: _Number
    key: _Key
    offset: _Number
    size: Annotated[int, msgspec.Meta(ge=1, le=MAX_PIECE)]
    checksum: str | None = ""

    @property
    def is_checked(self) -> bool:
        """Whether its content can be told from another of the same length."""
        return self.checksum is not None and _CHECKSUM.match(self.checksum) is not None


class UploadMeta(NamedTuple):
    """What was stored, checked: the pieces are in order and follow each other from 0."""

    name: str  # safe: one entry of one directory
    width: int
    height: int
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return self.pieces[-1].offset + self.pieces[-1].size if self.pieces else 0


_Pieces = Annotated[tuple[Piece, ...], msgspec.Meta(max_length=MAX_PIECES)]


class _Head(msgspec.Struct, frozen=True):
    protocol_version: str | float
    filename: str | None
    piece_width: _Side
    piece_height: _Side
    pieces: _Pieces
    next: _Key | None = None
    more: _Many = 0


class _Following(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pieces: _Pieces
    next: _Key | None = None
    more: _Many = 0


class _HeadOut(msgspec.Struct, omit_defaults=True):
    protocol_version: str
    filename: str
    piece_width: int
    piece_height: int
    pieces: Sequence[msgspec.Raw]
    next: str = ""
    more: int = 0


class _FollowingOut(msgspec.Struct, omit_defaults=True):
    pieces: Sequence[msgspec.Raw]
    next: str = ""
    more: int = 0


_encode = msgspec.json.Encoder().encode
_HEAD = msgspec.json.Decoder(_Head)
_FOLLOWING = msgspec.json.Decoder(_Following)


def checksum(content: bytes | memoryview) -> str:
    return "blake3:" + blake3(content).hexdigest()


# -- names ----------------------------------------------------------------------------------------


def safe_base_name(name: str) -> str:
    """A name that means one entry of the directory where it is used, whatever `name` says.

    The last part of a path of either kind of slash; what no terminal or UTF-8 name should hold is
    `_`; what is longer than 255 bytes is cut before its suffix; UNNAMED when nothing is left.
    """
    base = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    base = "".join(char if char.isprintable() or char in JOINERS else "_" for char in base)
    if base.strip() in ("", ".", ".."):
        return UNNAMED
    raw = base.encode()
    if len(raw) <= MAX_NAME:
        return base
    stem, dot, suffix = base.rpartition(".")
    tail = (dot + suffix).encode() if stem and len(suffix.encode()) <= 16 else b""
    return (raw[: MAX_NAME - len(tail)] + tail).decode(errors="ignore")


# -- writing a meta -------------------------------------------------------------------------------


class MetaWriter:
    """The parts of a meta, from the last to the head; `link` says where each was put."""

    def __init__(self, meta: UploadMeta, room: int) -> None:
        """`room`: bytes that a part may have."""
        self._meta = meta
        self._room = min(room, MAX_META)
        self._entries = [msgspec.Raw(_encode(piece)) for piece in meta.pieces]
        self._lengths = sum(len(bytes(entry)) + 1 for entry in self._entries)
        if len(self._entries) > MAX_PIECES or self._lengths > MAX_META:
            raise _too_many(len(self._entries))
        self._next = ""
        self._written = 0  # parts
        self.is_done = False

    def part(self) -> tuple[int, bytes]:
        """(place, JSON) of the part to be put now; UsageError when pieces are too small for it."""
        if self._lengths <= self._room:
            head = _encode(
                _HeadOut(
                    _PROTOCOL,
                    self._meta.name,
                    self._meta.width,
                    self._meta.height,
                    self._entries,
                    self._next,
                    self._written,
                )
            )
            if len(head) <= self._room:
                self.is_done = True
                return 0, head
        if self._written == MAX_PARTS:
            raise _too_many(len(self._meta.pieces))
        taken = self._take(self._room - len(_encode(_FollowingOut((), self._next, self._written))))
        if not taken:
            raise UsageError(
                f"This place takes {self._room} bytes at a time; that is too little to list where "
                "the pieces are. Choose larger pieces (for pictures: width and height)."
            )
        part = _encode(_FollowingOut(taken, self._next, self._written))
        self._written += 1
        return self._written, part

    def _take(self, room: int) -> list[msgspec.Raw]:
        """The last entries that fit, taken off the list."""
        first = len(self._entries)
        used = -1  # one comma less than entries
        while first and used + len(bytes(self._entries[first - 1])) + 1 <= room:
            first -= 1
            used += len(bytes(self._entries[first])) + 1
        taken = self._entries[first:]
        del self._entries[first:]
        self._lengths -= used + 1
        return taken

    def link(self, key: str) -> None:
        """The part that `part` gave last lies there."""
        self._next = key


def _too_many(pieces: int) -> UsageError:
    return UsageError(
        f"The file would be {pieces:,} pieces, more than this place can list. Choose larger pieces "
        "(for pictures: width and height)."
    )


def rehearse(meta: UploadMeta, room: int, key: str) -> None:
    """UsageError when a meta with keys as long as `key` would not fit parts of `room` bytes."""
    writer = MetaWriter(meta, room)
    while not writer.is_done:
        writer.part()
        writer.link(key)


# -- reading a meta -------------------------------------------------------------------------------


class MetaReader:
    """Takes the parts in the order in which `wanted` asks for them; all of them may be hostile."""

    def __init__(self, key: str, *, is_sealed: bool) -> None:
        self._is_sealed = is_sealed
        self._head: _Head | None = None
        self._pieces: list[Piece] = []
        self._bytes = 0
        self.wanted: tuple[int, str] | None = (0, key)  # (place, carrier's key); None: complete

    def feed(self, raw: bytes) -> None:
        """The part that was wanted; FormatError when it is none."""
        if self.wanted is None:
            raise LocalProtocolError("A meta that is complete has no further part.")
        self._bytes += len(raw)
        if self._bytes > MAX_META:
            raise FormatError(f"The list of pieces is longer than {MAX_META} bytes.")
        place = self.wanted[0]
        part: _Head | _Following
        if place == 0:
            part = self._head = self._read_head(raw)
        else:
            part = _decoded(_FOLLOWING, raw)
            if part.more != place - 1:
                raise FormatError("A part of the list of pieces is at a wrong place.")
        if (part.more == 0) != (part.next is None):
            raise FormatError("The list of pieces ends where another part should follow.")
        self._pieces += part.pieces
        if len(self._pieces) > MAX_PIECES:
            raise FormatError(f"The list has more than {MAX_PIECES:,} pieces.")
        self.wanted = None if part.next is None else (part.more, _harmless(part.next))

    def _read_head(self, raw: bytes) -> _Head:
        try:
            head = _decoded(_HEAD, raw)
        except FormatError:
            if self._is_sealed or len(raw) > MAX_LENIENT:
                raise
            head = _lenient(raw)
        if head.protocol_version not in (_PROTOCOL, 1.0):
            raise FormatError(
                f"The list of pieces is of version {str(head.protocol_version)[:20]!r}, "
                "which this program does not know."
            )
        return head

    def meta(self) -> UploadMeta:
        """All of it; FormatError when the pieces do not make a file."""
        if self.wanted is not None or self._head is None:
            raise LocalProtocolError("The meta is not complete yet.")
        head = self._head
        pieces = tuple(sorted(self._pieces, key=lambda piece: piece.offset))
        _check_pieces(pieces, is_sealed=self._is_sealed)
        name = safe_base_name(head.filename or "")
        return UploadMeta(name, head.piece_width, head.piece_height, pieces)


def _decoded(decoder: msgspec.json.Decoder[Part], raw: bytes) -> Part:
    try:
        return decoder.decode(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        # RecursionError: msgspec follows nested arrays, also those in fields that it skips.
        raise FormatError(f"The key leads to no list of pieces, or a damaged one: {exc}.") from exc


def _lenient(raw: bytes) -> _Head:
    """The same for names that are no UTF-8: the old system wrote them as half a surrogate pair."""
    try:
        return msgspec.convert(json.loads(raw.decode("utf-8", "surrogateescape")), _Head)
    except (msgspec.MsgspecError, RecursionError, ValueError) as exc:
        raise FormatError(f"The key leads to no list of pieces, or a damaged one: {exc}.") from exc


def _harmless(key: str) -> str:
    if not key.isprintable():
        raise FormatError("The list of pieces names a key that no place gives.")
    return key


def _check_pieces(pieces: Iterable[Piece], *, is_sealed: bool) -> None:
    end = 0
    seq: int | None = 0 if is_sealed else None
    for piece in pieces:
        if seq is None:
            seq = piece.seq
        if piece.offset != end:
            raise FormatError("The pieces overlap or leave a gap.")
        if piece.seq != seq:
            raise FormatError("The pieces are numbered wrongly.")
        if is_sealed and not piece.is_checked:
            raise FormatError("A piece of a sealed upload has no checksum.")
        _harmless(piece.key)
        end += piece.size
        seq += 1
        if end > MAX_INT:
            raise FormatError("The pieces are more than a file can hold.")


# -- sealing --------------------------------------------------------------------------------------


class Wrap(Protocol):
    """How pieces and parts are stored: as they are, or sealed."""

    @property
    def overhead(self) -> int:
        """Bytes that a piece grows by."""

    def piece(self, seq: int, content: bytes) -> bytes: ...

    def part(self, place: int, raw: bytes) -> bytes: ...

    def open_piece(self, piece: Piece, stored: bytes) -> bytes:
        """Its content, of the right length and checksum; IntegrityError."""

    def open_part(self, place: int, stored: bytes) -> bytes:
        """Its JSON; IntegrityError."""


class Plain:
    """As the old system did: the place can read everything."""

    overhead = 0

    def piece(self, seq: int, content: bytes) -> bytes:
        return content

    def part(self, place: int, raw: bytes) -> bytes:
        return raw

    def open_piece(self, piece: Piece, stored: bytes) -> bytes:
        if len(stored) != piece.size:
            raise IntegrityError(
                f"Piece {piece.seq} has {len(stored):,} bytes instead of {piece.size:,}."
            )
        return _verified(piece, stored)

    def open_part(self, place: int, stored: bytes) -> bytes:
        return stored


class Sealed:
    """Nobody reads it who has not the secret. May be used by several threads at once."""

    overhead = UPLOAD_OVERHEAD

    def __init__(self, secret: bytes, most: int = MAX_PIECE + UPLOAD_OVERHEAD) -> None:
        """`most`: bytes that the place takes at a time."""
        if len(secret) != UPLOAD_SECRET:
            raise LocalProtocolError(f"The secret of an upload has {UPLOAD_SECRET} bytes.")
        self._secret = secret
        self._most = most - UPLOAD_OVERHEAD

    def piece(self, seq: int, content: bytes) -> bytes:
        return self._sealed("piece", seq, self._padded(content, b"\0"))

    def part(self, place: int, raw: bytes) -> bytes:
        return self._sealed("meta", place, self._padded(raw, b" "))

    def open_piece(self, piece: Piece, stored: bytes) -> bytes:
        packed = self._opened("piece", piece.seq, stored)
        content, padding = packed[: piece.size], packed[piece.size :]
        if len(content) != piece.size or padding.strip(b"\0"):
            raise IntegrityError(f"Piece {piece.seq} has another length than the list says.")
        return _verified(piece, content)

    def open_part(self, place: int, stored: bytes) -> bytes:
        return self._opened("meta", place, stored)

    def _padded(self, content: bytes, filler: bytes) -> bytes:
        return content.ljust(max(len(content), min(padded_size(len(content)), self._most)), filler)

    def _key(self, use: str, place: int) -> bytes:
        context = f"p2pstore 2026 upload {use}"
        return blake3(self._secret + place.to_bytes(8), derive_key_context=context).digest()

    def _sealed(self, use: str, place: int, packed: bytes) -> bytes:
        key = self._key(use, place)
        nonce_key = blake3(key, derive_key_context="p2pstore 2026 upload nonce").digest()
        nonce = blake3(packed, key=nonce_key).digest(length=24)
        return nonce + _seal(packed, UPLOAD_AAD, nonce, key)

    def _opened(self, use: str, place: int, stored: bytes) -> bytes:
        what = "The list of pieces" if use == "meta" else f"Piece {place}"
        if not UPLOAD_OVERHEAD <= len(stored) <= MAX_PIECE * 2:
            raise IntegrityError(f"{what} has an impossible length.")
        try:
            return _open(stored[24:], UPLOAD_AAD, stored[:24], self._key(use, place))
        except CryptoError as exc:
            raise IntegrityError(
                f"{what} cannot be opened with this key: it was changed where it lies."
            ) from exc


def _verified(piece: Piece, content: bytes) -> bytes:
    if piece.is_checked and not sodium_memcmp(
        checksum(content).encode(), str(piece.checksum).encode()
    ):
        raise IntegrityError(f"Piece {piece.seq} is not what was stored (its checksum is wrong).")
    return content


# -- the key that the user keeps ------------------------------------------------------------------


class UploadKey(NamedTuple):
    meta_key: str  # the carrier's key of the head
    secret: bytes | None  # None: a plain upload

    def wrap(self) -> Wrap:
        return Plain() if self.secret is None else Sealed(self.secret)


def encode_upload_key(key: UploadKey) -> str:
    if key.secret is None:
        return key.meta_key
    where = key.meta_key.encode()
    raw = _HEAD_OF_KEY.pack(_VERSION, key.secret, len(where)) + where
    raw += _CRC.pack(binascii.crc32(raw))
    return UPLOAD_PREFIX + base32(raw)


def parse_upload_key(text: str) -> UploadKey:
    """UsageError: no key of an upload at all. FormatError: mistyped, cut, of a later version.

    Line ends and spaces in a sealed key are passed over: it may come from a letter.
    """
    text = text.strip()
    if text[: len(UPLOAD_PREFIX)].lower() == UPLOAD_PREFIX:
        return _parse_sealed("".join(text[len(UPLOAD_PREFIX) :].split()))
    if not text or len(text) > MAX_META_KEY or not text.isprintable():
        raise UsageError("This is no download key. An upload prints one.")
    if text.lower().startswith(_OTHER_KEYS):
        raise UsageError("This is no key of something that was stored as pieces in a place.")
    return UploadKey(text, None)


def _parse_sealed(text: str) -> UploadKey:
    mistyped = FormatError("The download key is mistyped: its checksum does not fit.")
    cut = FormatError("The download key was not copied completely.")
    if len(text) > _LONGEST_KEY:
        raise mistyped
    try:
        raw = unbase32(text)
    except ValueError as exc:
        # A length that no bytes have: characters are missing, if those that are there are right.
        is_cut = re.fullmatch(r"[a-z2-7]*", text, re.IGNORECASE | re.ASCII) is not None
        raise (cut if is_cut else mistyped) from exc
    body, crc = raw[: -_CRC.size], raw[-_CRC.size :]
    is_whole = _CRC.pack(binascii.crc32(body)) == crc
    if is_whole and body and body[0] != _VERSION:
        raise FormatError("The download key was made by a later version: install a newer p2pstore.")
    if len(raw) < _HEAD_OF_KEY.size + 1 + _CRC.size:
        raise mistyped if raw[:1] not in (b"", bytes([_VERSION])) else cut
    version, secret, length = _HEAD_OF_KEY.unpack_from(raw)
    missing = _HEAD_OF_KEY.size + length + _CRC.size - len(raw)
    if version == _VERSION and 0 < length <= 4 * MAX_META_KEY and missing > 0:
        raise cut
    if not is_whole or missing:
        raise mistyped
    try:
        where = body[_HEAD_OF_KEY.size :].decode()
    except UnicodeDecodeError as exc:
        raise mistyped from exc
    if not where.isprintable() or len(where) > MAX_META_KEY:
        raise FormatError("The download key names a place that cannot be.")
    return UploadKey(where, secret)
