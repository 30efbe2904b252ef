"""What a file consists of: its chunks in order, and where each lies.

    BundleRef = [bundle id (32), tag (20)]
    Entry     = [block id (32), table, key (32), offset, length]
                table indexes the list's bundles; offset and length say which part of the block's
                payload it is, because several small chunks may share one block
    ChunkList = [depth, bundles: [BundleRef], entries: [Entry], spans: [int]]
                depth 0: the entries are the file's data, spans is empty
                depth d: each entry is a block that holds an encoded ChunkList of depth d - 1, and
                spans says how many bytes of the file lie below each

encoded as MessagePack arrays. A list of up to 16 entries stays inline in the `.f`. A longer one is
cut into leaves of at most 4,096 entries; a leaf also ends, from 1,024 entries on, behind a block
whose id says so (its first two bytes are a multiple of 1,024), so that an insertion into a large
file does not change all leaves behind it. Lists of leaves are made in the same way, until at most
16 entries are left. With depth <= 3 that is more than any file system can hold.

Bundle ids are hints: a block is right when its id is, wherever it was found. Keys and lengths are
what counts.

Limits, all checked by the decoder: 4,096 entries and as many bundles a list, so an encoded list is
at most 600 kB and fits a block; offset + length <= 1 MiB; the sum of lengths < 2^63.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

import msgspec

from p2pstore.content.block import MAX_PAYLOAD
from p2pstore.content.codec import MAX_INT, decode, encode
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import BlockId, BundleId, Bytes32, Tag

INLINE_ENTRIES = 16
LIST_ENTRIES = 4096
MAX_DEPTH = 3
_LEAF_MIN = 1024
_LEAF_MASK = 1023


class BundleRef(msgspec.Struct, frozen=True, array_like=True, gc=False):
    bundle_id: BundleId
    tag: Tag


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    block: BlockId
    table: Annotated[int, msgspec.Meta(ge=0, lt=LIST_ENTRIES)]
    key: Bytes32
    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_PAYLOAD)]
    length: Annotated[int, msgspec.Meta(gt=0, le=MAX_PAYLOAD)]


Span = Annotated[int, msgspec.Meta(gt=0, le=MAX_INT)]


class ChunkList(msgspec.Struct, frozen=True, array_like=True):
    depth: Annotated[int, msgspec.Meta(ge=0, le=MAX_DEPTH)]
    bundles: Annotated[tuple[BundleRef, ...], msgspec.Meta(max_length=LIST_ENTRIES)]
    entries: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=LIST_ENTRIES)]
    spans: Annotated[tuple[Span, ...], msgspec.Meta(max_length=LIST_ENTRIES)] = ()

    def size(self) -> int:
        """How many bytes of the file lie below."""
        return sum(self.spans) if self.depth else sum(entry.length for entry in self.entries)


EMPTY_LIST = ChunkList(0, (), ())

Store = Callable[[bytes], tuple[BundleRef, Entry]]
"""Seals an encoded list as a block of the meta bundle; says where it lies."""

Load = Callable[[BundleRef, Entry], bytes]
"""The payload bytes that an entry names, `entry.length` of them."""

_LIST = msgspec.msgpack.Decoder(ChunkList)


def check_list(chunks: ChunkList) -> None:
    """FormatError unless the parts of a decoded list fit each other."""
    tables = len(chunks.bundles)
    for entry in chunks.entries:
        if entry.table >= tables:
            raise FormatError("a chunk list names a bundle that it does not have")
        if entry.offset + entry.length > MAX_PAYLOAD:
            raise FormatError("a chunk list names bytes beyond the end of a block")
    if len(chunks.spans) != (len(chunks.entries) if chunks.depth else 0):
        raise FormatError("a chunk list whose spans do not fit its entries")
    if chunks.size() > MAX_INT:
        raise FormatError("a chunk list of impossible size")


def encode_list(chunks: ChunkList) -> bytes:
    if len(chunks.entries) > LIST_ENTRIES or len(chunks.bundles) > LIST_ENTRIES:
        raise LocalProtocolError("a chunk list with too many entries")
    return encode(chunks)


def decode_list(raw: bytes) -> ChunkList:
    """FormatError unless `raw` is a list within all limits."""
    chunks = decode(_LIST, raw, MAX_PAYLOAD, "a chunk list")
    check_list(chunks)
    return chunks


def spill_list(chunks: ChunkList, store: Store) -> ChunkList:
    """A list of one entry that stands for `chunks`, which becomes a block."""
    if chunks.depth >= MAX_DEPTH or not chunks.entries:
        raise LocalProtocolError("a chunk list that cannot become a block")
    ref, entry = store(encode_list(chunks))
    return ChunkList(chunks.depth + 1, (ref,), (_at_table(entry, 0),), (chunks.size(),))


def _at_table(entry: Entry, table: int) -> Entry:
    if entry.table == table:
        return entry
    return Entry(entry.block, table, entry.key, entry.offset, entry.length)


class _Level:
    """The list that is being filled at one depth."""

    __slots__ = ("bundles", "entries", "spans", "tables")

    def __init__(self) -> None:
        self.bundles: list[BundleRef] = []
        self.entries: list[Entry] = []
        self.spans: list[int] = []
        self.tables: dict[BundleId, int] = {}

    def add(self, ref: BundleRef, entry: Entry, span: int) -> None:
        table = self.tables.get(ref.bundle_id)
        if table is None:
            table = self.tables[ref.bundle_id] = len(self.bundles)
            self.bundles.append(ref)
        self.entries.append(_at_table(entry, table))
        self.spans.append(span)

    def is_full(self) -> bool:
        count = len(self.entries)
        if count < _LEAF_MIN:
            return False
        block = self.entries[-1].block
        return count == LIST_ENTRIES or not (block[0] << 8 | block[1]) & _LEAF_MASK

    def take(self, depth: int) -> ChunkList:
        spans = tuple(self.spans) if depth else ()
        return ChunkList(depth, tuple(self.bundles), tuple(self.entries), spans)


class ListBuilder:
    """Builds a file's list from its entries in order; full lists become blocks on the way.

    Memory is bounded by one list a level, whatever the file's size. The `table` of what is added
    is ignored.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._levels = [_Level()]

    def add(self, ref: BundleRef, entry: Entry) -> None:
        self._add(0, ref, entry, entry.length)

    def _add(self, depth: int, ref: BundleRef, entry: Entry, span: int) -> None:
        if depth == len(self._levels):
            if depth > MAX_DEPTH:
                raise LocalProtocolError("a file with too many chunks")
            self._levels.append(_Level())
        level = self._levels[depth]
        level.add(ref, entry, span)
        if level.is_full():
            self._flush(depth)

    def _flush(self, depth: int) -> None:
        chunks = self._levels[depth].take(depth)
        self._levels[depth] = _Level()
        ref, entry = self._store(encode_list(chunks))
        self._add(depth + 1, ref, entry, chunks.size())

    def finish(self) -> ChunkList:
        """The root: at most INLINE_ENTRIES entries. Still too long for a `.f`: `spill_list`."""
        depth = 0
        while depth < len(self._levels) - 1 or len(self._levels[depth].entries) > INLINE_ENTRIES:
            if self._levels[depth].entries:
                self._flush(depth)
            depth += 1
        return self._levels[depth].take(depth)


def list_of(entries: Sequence[tuple[BundleRef, Entry]], store: Store) -> ChunkList:
    """The root of a file's list from all its entries; a short one needs no block."""
    if len(entries) == 1:  # nearly every file
        ((ref, entry),) = entries
        return ChunkList(0, (ref,), (_at_table(entry, 0),))
    builder = ListBuilder(store)
    for ref, entry in entries:
        builder.add(ref, entry)
    return builder.finish()


def children(
    chunks: ChunkList, start: int = 0, end: int | None = None, base: int = 0
) -> Iterator[tuple[int, int, BundleRef, Entry]]:
    """(position, span, bundle, entry) of each entry that has bytes in start..end, one level only.

    `base` is the position of the list's first byte. Who loads lists without blocking goes down
    level by level with this and `child_list`.
    """
    position = base
    spans = chunks.spans if chunks.depth else [entry.length for entry in chunks.entries]
    bundles = chunks.bundles
    for entry, span in zip(chunks.entries, spans, strict=True):
        if end is not None and position >= end:
            return
        if position + span > start:
            yield position, span, bundles[entry.table], entry
        position += span


def child_list(parent: ChunkList, span: int, raw: bytes) -> ChunkList:
    """The list below an entry of `parent`, checked against what the parent says of it."""
    chunks = decode_list(raw)
    if chunks.depth != parent.depth - 1 or chunks.size() != span:
        raise IntegrityError("a chunk list that is not the one its parent speaks of")
    return chunks


def walk(
    root: ChunkList, load: Load, start: int = 0, end: int | None = None
) -> Iterator[tuple[int, BundleRef, Entry]]:
    """(position, bundle, entry) of each chunk with bytes in start..end; loads lists on the way."""
    yield from _walk(root, load, start, end, 0)


def _walk(
    chunks: ChunkList, load: Load, start: int, end: int | None, base: int
) -> Iterator[tuple[int, BundleRef, Entry]]:
    for position, span, ref, entry in children(chunks, start, end, base):
        if chunks.depth == 0:
            yield position, ref, entry
        else:
            below = child_list(chunks, span, load(ref, entry))
            yield from _walk(below, load, start, end, position)
