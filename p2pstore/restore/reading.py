"""The pipeline: manifest verified -> blocks -> unsealed, bounded, compared -> pieces in order.

Every block is checked against its id by the source, against its key when it is unsealed, and
against the manifest's length here; a whole file also against its BLAKE3. A range loads only its
own blocks and the chunk lists above them, so that a video seeks without its rest. Work is done
in windows of up to `WINDOW` bytes: one request to the source and one thread hop each, the next
windows fetched and unsealed while one is hashed and written.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from typing import NamedTuple, Protocol

from blake3 import blake3

from p2pstore.content import (
    BundleRef,
    ChunkList,
    Entry,
    Keyring,
    Manifest,
    Opened,
    Unsealer,
    child_list,
    children,
    complete,
    data_segments,
    open_manifest,
)
from p2pstore.errors import IntegrityError, P2PStoreError, UsageError
from p2pstore.ids import BlockId, PublicKey

FIRST_WINDOW = 1 << 20  # plain bytes unsealed at a time: few at first, for who waits to see some
WINDOW = 8 << 20  # ... then twice as many each time, up to this
AHEAD = 3  # windows that are fetched and unsealed while one is written; bounds memory
SMALL = 4 << 20  # a file up to this size is handled whole, with others like it
# A range up to this length may be kept by the source, and a small file: somebody looks at it, or
# seeks in a video, and will be back. What is longer is being copied.
KEPT = 16 << 20
_ZEROS = bytes(1 << 20)

Judge = Callable[[PublicKey, bytes], bool]
"""Whether a signer's key with its encoded certificates may speak for the group."""


class Wanted(NamedTuple):
    """A block, and the bundle that it was in when the manifest was written: a hint."""

    ref: BundleRef
    block_id: BlockId


class BlockSource(Protocol):
    async def blocks(
        self, wanted: Sequence[Wanted], *, keep: bool = False
    ) -> Mapping[BlockId, bytes]:
        """All of them, each equal to its id; BlocksMissing says which could be found nowhere.

        `keep`: they are likely to be wanted again soon.
        """


class Piece(NamedTuple):
    """Bytes of the file at `offset`; pieces come in order and leave holes out."""

    offset: int
    content: bytes | memoryview


class _Extent(NamedTuple):
    """A chunk and where its payload stands among the file's data (holes left out)."""

    position: int
    ref: BundleRef
    entry: Entry


class Restore:
    def __init__(
        self, source: BlockSource, *, ring: Callable[[], Keyring], judge: Judge, pool: Executor
    ) -> None:
        self._source = source
        self._ring = ring
        self._judge = judge
        self._pool = pool
        self._local = threading.local()

    def open(self, raw: bytes, *, is_recorded: bool = False) -> Opened:
        """The manifest in a `.f`; FormatError, or IntegrityError when its signer is not trusted.

        `is_recorded`: the catalog has these very bytes (see `open_manifest`).
        """
        opened = open_manifest(raw, self._ring(), is_recorded=is_recorded)
        if not self._judge(opened.signer, opened.chain):
            raise IntegrityError(
                "The placeholder is signed by a device that this group does not trust."
            )
        return opened

    async def complete(self, manifest: Manifest) -> Manifest:
        """The manifest with its attributes and holes, where these lie in a block of their own."""
        if manifest.meta.extra is None:
            return manifest
        ref, entry = manifest.meta.extra
        (payload,) = await self._payloads([_Extent(0, ref, entry)])
        return complete(manifest, payload)

    async def wanted(self, manifest: Manifest) -> list[Wanted]:
        """Every block of the file's content, lists included."""
        found: list[Wanted] = []
        async for extent in self._extents(manifest.chunks, 0, manifest.meta.size, seen=found):
            found.append(Wanted(extent.ref, extent.entry.block))
        return found

    async def small(self, manifests: Sequence[Manifest]) -> list[bytes | P2PStoreError]:
        """Whole contents of files up to `SMALL`, hash verified; an error takes one file only."""
        extents = [
            _Extent(0, m.chunks.bundles[e.table], e) for m in manifests for e in m.chunks.entries
        ]
        loop = asyncio.get_running_loop()
        try:
            blocks = await self._blocks(extents)
        except P2PStoreError:
            if len(manifests) == 1:
                raise
            # Some block of some file is missing: find out whose, one by one.
            return [await self._one(manifest) for manifest in manifests]
        return await loop.run_in_executor(self._pool, self._assemble, manifests, blocks)

    async def _one(self, manifest: Manifest) -> bytes | P2PStoreError:
        try:
            return (await self.small([manifest]))[0]
        except P2PStoreError as exc:
            return exc

    async def stream(
        self, manifest: Manifest, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[list[Piece], None]:
        """Pieces of the bytes start..end (exclusive), in order, without the holes.

        A whole file's hash is verified before the iteration ends: nothing that was received may be
        published before that. `manifest` is complete (see `complete`).
        """
        size = manifest.meta.size
        stop = size if end is None else min(end, size)
        segments = data_segments(size, manifest.meta.holes)
        whole = _Whole(manifest) if start == 0 and stop == size else None
        async with aclosing(self._ahead(manifest, segments, start, stop)) as windows:
            async for extents, payloads in windows:
                pieces = _in_file(extents, payloads, segments, start, stop)
                if whole is None:
                    yield pieces
                    continue
                # Hashed while they are written, in a thread that does not queue behind unsealing.
                hashing = asyncio.ensure_future(asyncio.to_thread(whole.update, pieces))
                try:
                    yield pieces
                except BaseException:
                    whole.stop()
                    raise
                finally:
                    await hashing
        if whole is not None:
            try:
                await asyncio.to_thread(whole.compare)
            finally:
                whole.stop()

    async def content(
        self, manifest: Manifest, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes start..end (exclusive) as they come, holes as zeros; UsageError beyond it."""
        size = manifest.meta.size
        stop = size if end is None else min(end, size)
        if not 0 <= start <= size or stop < start:
            raise UsageError(f"The range lies outside the file's {size} bytes.")
        at = start
        async with aclosing(self.stream(manifest, start, stop)) as windows:
            async for pieces in windows:
                for offset, content in pieces:
                    for zeros in _zeros(offset - at):
                        yield zeros
                    yield bytes(content)
                    at = offset + len(content)
        for zeros in _zeros(stop - at):
            yield zeros

    async def _ahead(
        self,
        manifest: Manifest,
        segments: Sequence[tuple[int, int]],
        start: int,
        stop: int,
    ) -> AsyncGenerator[tuple[list[_Extent], list[bytes]], None]:
        """Windows of extents with their payloads, in order, some of them fetched ahead."""
        is_whole = stop - start == manifest.meta.size
        keep = stop - start <= (SMALL if is_whole else KEPT)
        flying: deque[tuple[list[_Extent], asyncio.Task[list[bytes]]]] = deque()
        try:
            async for window in self._windows(manifest, segments, start, stop, keep=keep):
                task = asyncio.ensure_future(self._payloads(window, keep=keep))
                flying.append((window, task))
                if len(flying) > AHEAD:
                    yield flying[0][0], await flying[0][1]
                    flying.popleft()
            while flying:
                yield flying[0][0], await flying[0][1]
                flying.popleft()
        finally:
            for _, task in flying:
                task.cancel()
            await asyncio.gather(*(task for _, task in flying), return_exceptions=True)

    async def _windows(
        self,
        manifest: Manifest,
        segments: Sequence[tuple[int, int]],
        start: int,
        stop: int,
        *,
        keep: bool,
    ) -> AsyncIterator[list[_Extent]]:
        first, last = _data_position(segments, start), _data_position(segments, stop)
        window: list[_Extent] = []
        held, limit = 0, FIRST_WINDOW
        async for extent in self._extents(manifest.chunks, first, last, keep=keep):
            window.append(extent)
            held += extent.entry.length
            if held >= limit:
                yield window
                window, held, limit = [], 0, min(WINDOW, 2 * limit)
        if window:
            yield window

    async def _extents(
        self,
        chunks: ChunkList,
        first: int,
        last: int,
        *,
        base: int = 0,
        seen: list[Wanted] | None = None,
        keep: bool = False,
    ) -> AsyncIterator[_Extent]:
        """The data chunks that overlap first..last, loading the lists above them as they come.

        The entries of loaded lists are added to `seen`.
        """
        for position, span, ref, entry in children(chunks, first, last, base):
            if not chunks.depth:
                yield _Extent(position, ref, entry)
                continue
            if seen is not None:
                seen.append(Wanted(ref, entry.block))
            (payload,) = await self._payloads([_Extent(position, ref, entry)], keep=keep)
            below = child_list(chunks, span, payload)
            under = self._extents(below, first, last, base=position, seen=seen, keep=keep)
            async for extent in under:
                yield extent

    async def _blocks(
        self, extents: Sequence[_Extent], *, keep: bool = False
    ) -> Mapping[BlockId, bytes]:
        wanted = {e.entry.block: Wanted(e.ref, e.entry.block) for e in extents}
        return await self._source.blocks(list(wanted.values()), keep=keep)

    async def _payloads(self, extents: Sequence[_Extent], *, keep: bool = False) -> list[bytes]:
        """What the extents hold: fetched, then unsealed in one thread hop."""
        blocks = await self._blocks(extents, keep=keep)
        entries = [extent.entry for extent in extents]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, self._unseal, entries, blocks)

    def _unseal(self, entries: Sequence[Entry], blocks: Mapping[BlockId, bytes]) -> list[bytes]:
        unsealer: Unsealer | None = getattr(self._local, "unsealer", None)
        if unsealer is None:
            unsealer = self._local.unsealer = Unsealer()
        payloads: list[bytes] = []
        for entry in entries:
            payload = unsealer.unseal(blocks[entry.block], entry.key)
            if entry.offset or entry.length != len(payload):
                payload = payload[entry.offset : entry.offset + entry.length]
            if len(payload) != entry.length:
                raise IntegrityError("A block is shorter than its manifest states.")
            payloads.append(payload)
        return payloads

    def _assemble(
        self, manifests: Sequence[Manifest], blocks: Mapping[BlockId, bytes]
    ) -> list[bytes | P2PStoreError]:
        results: list[bytes | P2PStoreError] = []
        for manifest in manifests:
            try:
                payloads = self._unseal(manifest.chunks.entries, blocks)
                content = _with_holes(manifest, payloads)
                if len(content) != manifest.meta.size or blake3(content).digest() != manifest.hash:
                    raise IntegrityError(
                        "The content does not have the hash that its manifest states."
                    )
                results.append(content)
            except P2PStoreError as exc:
                results.append(exc)
        return results


def _zeros(count: int) -> Iterator[bytes]:
    while count > 0:
        yield _ZEROS[:count]
        count -= len(_ZEROS)


def _with_holes(manifest: Manifest, payloads: Sequence[bytes]) -> bytes:
    """The content of a small file: its data, with zeros where its holes are."""
    whole = payloads[0] if len(payloads) == 1 else b"".join(payloads)
    if not manifest.meta.holes:
        return whole
    filled, at = bytearray(manifest.meta.size), 0
    for offset, length in data_segments(manifest.meta.size, manifest.meta.holes):
        piece = whole[at : at + length]
        filled[offset : offset + len(piece)] = piece
        at += length
    if at != len(whole):
        raise IntegrityError("The manifest lists other content than the file's size.")
    return bytes(filled)


def _data_position(segments: Sequence[tuple[int, int]], offset: int) -> int:
    """How many data bytes (holes left out) stand before `offset` of the file."""
    return sum(min(length, max(0, offset - start)) for start, length in segments)


def _in_file(
    extents: Sequence[_Extent],
    payloads: Sequence[bytes],
    segments: Sequence[tuple[int, int]],
    start: int,
    stop: int,
) -> list[Piece]:
    """Payloads at their places in the file, split at holes and cut to start..stop."""
    pieces: list[Piece] = []
    base = 0  # data bytes before the current segment
    segment = iter(segments)
    offset, length = next(segment, (0, 0))
    for extent, payload in zip(extents, payloads, strict=True):
        view, position = memoryview(payload), extent.position
        while view:
            while position >= base + length:
                base += length
                offset, length = next(segment, (0, 0))
                if not length:
                    raise IntegrityError("The manifest lists more content than the file's size.")
            take = min(len(view), base + length - position)
            place = offset + position - base
            low, high = max(place, start), min(place + take, stop)
            if low < high:
                pieces.append(Piece(low, view[low - place : high - place]))
            view, position = view[take:], position + take
    return pieces


class _Whole:
    """A file's whole content going by, holes as zeros. One thread at a time.

    A hole may be of exabytes, whoever made the manifest: what nobody waits for any more is stopped.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._hasher = blake3()
        self._at = 0
        self._is_stopped = False

    def stop(self) -> None:
        """Nobody asks for the result any more. Any thread."""
        self._is_stopped = True

    def update(self, pieces: Sequence[Piece]) -> None:
        for offset, content in pieces:
            self._fill(offset)
            self._hasher.update(content)
            self._at += len(content)

    def compare(self) -> None:
        """All pieces were seen; IntegrityError when they are not what was put in."""
        self._fill(self._manifest.meta.size)
        if self._hasher.digest() != self._manifest.hash:
            raise IntegrityError("The content does not have the hash that its manifest states.")

    def _fill(self, until: int) -> None:
        while self._at < until and not self._is_stopped:
            step = min(until - self._at, len(_ZEROS))
            self._hasher.update(memoryview(_ZEROS)[:step])
            self._at += step
