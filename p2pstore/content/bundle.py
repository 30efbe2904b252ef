"""The bundle file: blocks one after another in one append-only file, signed when it is sealed.

    header    128 bytes
    records   for each block: its id (32), its length (u32), its bytes
    list      what `BlockList.encode` makes
    signature 64 bytes, by the opener, over header + list (context "p2pstore 2026 bundle list")
    footer    16 bytes

All numbers are big-endian.

header:
    offset size
    0      8     magic "p2pbndl" 0x01; the last byte is the version
    8      32    BundleId, random
    40     32    the group's public key
    72     32    public key of the device that opened it: it, or an admin, signs live maps
    104    4     kind: 1 = data, 2 = meta (chunk lists, manifests, indexes; they stay local)
    108    4     zero
    112    8     created, milliseconds since 1970
    120    8     first 8 bytes of BLAKE3 over bytes 0..120: damage shows without a signature

list:
    4   number of blocks n, 1 <= n <= 16,384 in a sealed file
    4   number of replaced bundles r, <= 1,024
    n times: BlockId (32), length (u32)        in the order of the file; offsets follow from it
    r times: BundleId (32), Tag (20)           bundles merged into this one: it answers for them too

footer:
    4   length of the list
    4   zero
    8   magic "p2pbend" 0x01

A file without footer was cut off by a crash: `salvage` walks the records and keeps those whose
bytes hash to their id; the first that does not ends it. A sealed file is read from its end. Dead
blocks may be punched out of a sealed file later: lengths and offsets stay, the bytes become zeros
(livemap.py). Id and list of a bundle never change.

Write order: records, then list + signature + footer, fsync, rename to the final name, fsync of the
directory; only then may a catalog row or a `.f` refer to it.

The signed list travels alone as header + list + signature: what a holder verifies before it takes
the first block.

Limits: 16 MiB of records is the aim (BUNDLE_BYTES; the block that crosses it still goes in, so a
file may be one block longer), 16,384 blocks is a limit.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import msgspec
from blake3 import blake3
from nacl.signing import SigningKey

from p2pstore.content.block import MAX_BLOCK, MIN_BLOCK, block_id_of
from p2pstore.content.codec import MAX_INT, sign, verify
from p2pstore.errors import FormatError, LocalProtocolError
from p2pstore.ids import BlockId, BundleId, PublicKey, Tag

MAGIC = b"p2pbndl\x01"
END_MAGIC = b"p2pbend\x01"
HEADER_SIZE = 128
RECORD_HEAD = 36
SIGNATURE_SIZE = 64
FOOTER_SIZE = 16
BUNDLE_BYTES = 16 * 1024 * 1024
BUNDLE_BLOCKS = 16_384
MAX_REPLACES = 1_024  # a merge of more tiny bundles is split: the list must fit one frame
# Room for the block that crosses the aim, every record head, and the trailer of the longest list.
MAX_BUNDLE_FILE = 24 * 1024 * 1024

LIST_CONTEXT = b"p2pstore 2026 bundle list"

_HEADER = struct.Struct(">8s32s32s32sIIQ")
_COUNTS = struct.Struct(">II")
_ENTRY = struct.Struct(">32sI")
_REPLACED = struct.Struct(">32s20s")
_FOOTER = struct.Struct(">II8s")

MAX_LIST = _COUNTS.size + BUNDLE_BLOCKS * _ENTRY.size + MAX_REPLACES * _REPLACED.size
MAX_SIGNED_LIST = HEADER_SIZE + MAX_LIST + SIGNATURE_SIZE

ReadAt = Callable[[int, int], bytes]
"""(offset, size) -> the bytes there; fewer at the end of the file."""


class Kind(IntEnum):
    DATA = 1
    META = 2


class BundleHeader(msgspec.Struct, frozen=True):
    bundle_id: BundleId
    group: PublicKey  # the group's public key: holders know whose certificates to ask for
    opener: PublicKey
    kind: int
    created_ms: int


def encode_header(header: BundleHeader) -> bytes:
    """HEADER_SIZE bytes."""
    ids = (header.bundle_id, header.group, header.opener)
    if any(len(identifier) != 32 for identifier in ids):
        raise ValueError("the ids of a bundle header have 32 bytes")
    body = _HEADER.pack(MAGIC, *ids, Kind(header.kind), 0, header.created_ms)
    return body + blake3(body).digest(length=8)


def decode_header(raw: bytes) -> BundleHeader:
    """From exactly HEADER_SIZE bytes; FormatError when they are damaged."""
    if len(raw) != HEADER_SIZE or not raw.startswith(MAGIC[:7]):
        raise FormatError("this is no bundle")
    if raw[:8] != MAGIC:
        raise FormatError(f"a bundle of version {raw[7]}; this program reads version 1")
    body = raw[: _HEADER.size]
    if blake3(body).digest(length=8) != raw[_HEADER.size :]:
        raise FormatError("the header of a bundle is damaged")
    _, bundle_id, group, opener, kind, zero, created_ms = _HEADER.unpack(body)
    if zero or kind not in (Kind.DATA, Kind.META) or created_ms > MAX_INT:
        raise FormatError("the header of a bundle has an unknown kind or time")
    return BundleHeader(bundle_id, group, opener, kind, created_ms)


class BlockEntry(NamedTuple):
    block_id: BlockId
    length: int


class Replaced(NamedTuple):
    """A bundle that was merged into this one."""

    bundle_id: BundleId
    tag: Tag


@dataclass(frozen=True)
class BlockList:
    """Which blocks lie in a bundle, in the order of the file."""

    entries: tuple[BlockEntry, ...]
    replaces: tuple[Replaced, ...] = ()

    def offsets(self) -> list[int]:
        """Where in the file each block's bytes begin."""
        return self._offsets

    @cached_property
    def _offsets(self) -> list[int]:
        start = HEADER_SIZE + RECORD_HEAD
        steps = (length + RECORD_HEAD for _, length in self.entries)
        return list(accumulate(steps, initial=start))[:-1]

    @cached_property
    def records_end(self) -> int:
        """Where the list begins in a sealed file."""
        return HEADER_SIZE + sum(length + RECORD_HEAD for _, length in self.entries)

    @cached_property
    def _places(self) -> dict[BlockId, int]:
        # Reversed, so that the first of two equal blocks wins.
        last = len(self.entries) - 1
        return {entry[0]: last - i for i, entry in enumerate(reversed(self.entries))}

    def find(self, block_id: BlockId) -> int | None:
        """The index of a block."""
        return self._places.get(block_id)

    def __len__(self) -> int:
        return len(self.entries)

    def encode(self) -> bytes:
        if len(self.entries) > BUNDLE_BLOCKS or len(self.replaces) > MAX_REPLACES:
            raise LocalProtocolError("a bundle with too many blocks")
        head = _COUNTS.pack(len(self.entries), len(self.replaces))
        pack, pack_replaced = _ENTRY.pack, _REPLACED.pack
        entries = [pack(block_id, length) for block_id, length in self.entries]
        return b"".join((head, *entries, *(pack_replaced(*old) for old in self.replaces)))

    @classmethod
    def decode(cls, raw: bytes) -> BlockList:
        """FormatError unless `raw` is exactly one list within the limits."""
        if not _COUNTS.size <= len(raw) <= MAX_LIST:
            raise FormatError("the list of a bundle has an impossible size")
        count, replaced = _COUNTS.unpack_from(raw)
        middle = _COUNTS.size + count * _ENTRY.size
        if count > BUNDLE_BLOCKS or replaced > MAX_REPLACES:
            raise FormatError("the list of a bundle names too many blocks")
        if len(raw) != middle + replaced * _REPLACED.size:
            raise FormatError("the list of a bundle is cut short or has bytes behind it")
        view = memoryview(raw)
        entries = tuple(map(BlockEntry._make, _ENTRY.iter_unpack(view[_COUNTS.size : middle])))
        if entries:
            lengths = [length for _, length in entries]
            if min(lengths) < MIN_BLOCK or max(lengths) > MAX_BLOCK:
                raise FormatError("the list of a bundle names a block of impossible size")
        replaces = tuple(map(Replaced._make, _REPLACED.iter_unpack(view[middle:])))
        return cls(entries, replaces)

    def hash(self) -> bytes:
        """BLAKE3-256 of the encoded list."""
        return blake3(self.encode()).digest()


def record_head(block_id: BlockId, length: int) -> bytes:
    """What is written before each block's bytes."""
    return _ENTRY.pack(block_id, length)


@dataclass(frozen=True, slots=True)
class BundleIndex:
    """What a sealed bundle says of itself; its signature has been verified."""

    header: BundleHeader
    blocks: BlockList
    signature: bytes = field(repr=False)


def trailer(header_bytes: bytes, blocks: BlockList, key: SigningKey) -> bytes:
    """What seals a bundle, to be written behind its last block; `key` is the opener's."""
    if bytes(key.verify_key) != decode_header(header_bytes).opener:
        raise LocalProtocolError("only the device that opened a bundle can seal it")
    if not blocks.entries:
        raise LocalProtocolError("a bundle without blocks is not sealed but abandoned")
    listed = blocks.encode()
    return _trailer(listed, sign(LIST_CONTEXT, header_bytes + listed, key))


def trailer_of(index: BundleIndex) -> bytes:
    """The same bytes again, for who writes the file of a bundle that another device sealed."""
    return _trailer(index.blocks.encode(), index.signature)


def _trailer(listed: bytes, signature: bytes) -> bytes:
    return listed + signature + _FOOTER.pack(len(listed), 0, END_MAGIC)


def read_index(read_at: ReadAt, size: int) -> BundleIndex:
    """Of a sealed bundle of `size` bytes.

    FormatError when it was cut off, is no bundle or has bytes behind its end; IntegrityError when
    the opener did not sign it.
    """
    listed_from = size - FOOTER_SIZE - SIGNATURE_SIZE
    if not HEADER_SIZE <= listed_from <= MAX_BUNDLE_FILE:
        raise FormatError("a bundle of impossible size")
    footer = _exactly(read_at, size - FOOTER_SIZE, FOOTER_SIZE)
    length, zero, magic = _FOOTER.unpack(footer)
    if magic != END_MAGIC or zero:
        raise FormatError("a bundle that was cut off")
    if length > min(MAX_LIST, listed_from - HEADER_SIZE):
        raise FormatError("the list of a bundle has an impossible size")
    head = _exactly(read_at, 0, HEADER_SIZE)
    signed = head + _exactly(read_at, listed_from - length, length + SIGNATURE_SIZE)
    index = decode_signed_list(signed)
    if index.blocks.records_end != listed_from - length:
        raise FormatError("the blocks of a bundle do not fill it")
    return index


def _exactly(read_at: ReadAt, offset: int, size: int) -> bytes:
    raw = read_at(offset, size)
    if len(raw) != size:
        raise FormatError("a bundle that was cut off")
    return raw


def signed_list(index: BundleIndex) -> bytes:
    """Header, list and signature: all that a holder needs to judge a bundle by."""
    return encode_header(index.header) + index.blocks.encode() + index.signature


def decode_signed_list(raw: bytes) -> BundleIndex:
    """FormatError when it is damaged, IntegrityError when the opener did not sign it."""
    if not HEADER_SIZE + SIGNATURE_SIZE <= len(raw) <= MAX_SIGNED_LIST:
        raise FormatError("a signed list of impossible size")
    signed, signature = raw[:-SIGNATURE_SIZE], raw[-SIGNATURE_SIZE:]
    header = decode_header(signed[:HEADER_SIZE])
    blocks = BlockList.decode(signed[HEADER_SIZE:])
    if not blocks.entries:
        raise FormatError("a bundle without blocks")
    verify(LIST_CONTEXT, signed, signature, header.opener)
    return BundleIndex(header, blocks, signature)


def verify_signed_list(header_bytes: bytes, raw: bytes) -> BundleIndex:
    """`decode_signed_list`, and the bundle is the one whose header is known already.

    An empty `header_bytes` means that nothing is known yet.
    """
    if header_bytes and raw[:HEADER_SIZE] != header_bytes:
        raise FormatError("a signed list of another bundle")
    return decode_signed_list(raw)


def salvage(read_at: ReadAt, size: int) -> tuple[BundleHeader, list[BlockEntry]]:
    """The whole blocks of a bundle that was cut off, each compared with its id.

    The first block that is not whole ends it: whatever lies behind was not synced either.
    """
    header = decode_header(_exactly(read_at, 0, HEADER_SIZE))
    found: list[BlockEntry] = []
    offset = HEADER_SIZE
    while len(found) < BUNDLE_BLOCKS and offset + RECORD_HEAD <= size:
        head = read_at(offset, RECORD_HEAD)
        if len(head) != RECORD_HEAD:
            break
        block_id, length = _ENTRY.unpack(head)
        offset += RECORD_HEAD
        if not MIN_BLOCK <= length <= min(MAX_BLOCK, size - offset):
            break
        block = read_at(offset, length)
        if len(block) != length or block_id_of(block) != block_id:
            break
        found.append(BlockEntry(block_id, length))
        offset += length
    return header, found


def bundle_tag(tag_secret: bytes, bundle_id: BundleId) -> Tag:
    """20 bytes of BLAKE3 keyed with an epoch's tag secret: without it nobody can link them."""
    return Tag(blake3(bundle_id, key=tag_secret).digest(length=20))


def block_list(blocks: Iterable[tuple[BlockId, bytes]]) -> BlockList:
    """The list of blocks that are at hand."""
    return BlockList(tuple(BlockEntry(block_id, len(block)) for block_id, block in blocks))
