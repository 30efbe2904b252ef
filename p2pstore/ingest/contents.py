"""Stage 1: what the files hold becomes blocks, and every chunk of every file has a place.

Small files are read whole, fingerprinted, looked up and sealed together in the calling thread, so
that no file costs a future; their chunks share blocks. Files above `WINDOW` are cut here and sealed
window by window in the pool. A chunk that is known is sealed again unless its bundle may be relied
on (SAFETY 3, step 4).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future, wait
from typing import NamedTuple

from blake3 import blake3

from p2pstore.content import (
    CHUNK_MIN,
    BundleRef,
    Entry,
    SealedBlock,
    dedup_key,
    largest_holes,
)
from p2pstore.ingest.batch import Batch, Draft, Tools
from p2pstore.ingest.intake import Intake, NotProtected
from p2pstore.ingest.reading import WINDOW, ChangedWhileRead, Windows, holes_of, read_whole
from p2pstore.ingest.rolling import Part, Written
from p2pstore.ingest.sharing import SHARED_CHUNKS, shared
from p2pstore.store import Catalog, Known, blocks, journal

WINDOWS_IN_FLIGHT = 6  # bounds memory: this many windows raw and sealed

Placed = tuple[BundleRef, Entry]
Payload = bytes | memoryview


class _Piece(NamedTuple):
    """A chunk of a large file on its way: either known, or sealed and not yet written."""

    fingerprint: bytes
    length: int
    known: Known | None
    sealed: SealedBlock | None


class Contents:
    """Gives the chunks of one batch their places; one thread calls it."""

    def __init__(self, batch: Batch, catalog: Catalog, pool: Executor, tools: Tools) -> None:
        self._batch = batch
        self._catalog = catalog
        self._pool = pool
        self._tools = tools

    def read(self, files: Sequence[Intake]) -> list[Draft | NotProtected]:
        """The files' contents, in their order; small neighbours share look-ups and blocks."""
        drafts: list[Draft | NotProtected] = []
        small: list[tuple[Intake, bytes]] = []
        held = 0
        for intake in files:
            large: tuple[tuple[int, int], ...] | None = None
            failed: NotProtected | None = None
            try:
                holes = holes_of(intake.fd, intake.stat)
                if intake.stat.st_size > WINDOW or holes:
                    large = tuple(largest_holes(holes))
                else:
                    content = read_whole(intake.fd, intake.stat.st_size)
                    small.append((intake, content))
                    held += len(content)
                    if held < WINDOW:
                        continue
            except ChangedWhileRead:
                failed = NotProtected(intake.path, "is being written")
            except OSError as exc:
                failed = NotProtected(intake.path, f"cannot be read ({exc.strerror})")
            drafts.extend(self._small(small))
            small, held = [], 0
            if failed is not None:
                drafts.append(failed)
            elif large is not None:
                drafts.append(self._large(intake, large))
        drafts.extend(self._small(small))
        return drafts

    # -- small files ------------------------------------------------------------------------------

    def _small(self, files: Sequence[tuple[Intake, bytes]]) -> list[Draft]:
        """Files that fit into memory together: one look-up and one append for all of them."""
        with self._tools.turn:
            payloads, spans = self._payloads(files)
            secret = self._batch.ring.dedup
            fingerprints = [dedup_key(secret, payload) for payload in payloads]
        known = self._known(fingerprints)
        with self._tools.turn:
            new = self._share(fingerprints, payloads, known)
            return self._drafts(files, spans, fingerprints, known, new)

    def _payloads(self, files: Sequence[tuple[Intake, bytes]]) -> tuple[list[Payload], list[int]]:
        """The chunks of all files, and how many each file has."""
        payloads: list[Payload] = []
        spans: list[int] = []
        for _, content in files:
            before = len(payloads)
            if len(content) > CHUNK_MIN:
                payloads.extend(self._cut(content))
            elif content:
                payloads.append(content)
            spans.append(len(payloads) - before)
        return payloads, spans

    def _drafts(
        self,
        files: Sequence[tuple[Intake, bytes]],
        spans: Sequence[int],
        fingerprints: Sequence[bytes],
        known: dict[bytes, Known],
        new: dict[bytes, int],
    ) -> list[Draft]:
        """Every file with the places of its chunks; `new` says what each new one cost."""
        drafts: list[Draft] = []
        at = 0
        for (intake, content), count in zip(files, spans, strict=True):
            entries: list[Placed] = []
            stored = 0
            for fingerprint in fingerprints[at : at + count]:
                place = known.get(fingerprint)
                if place is None:
                    entries.append(self._batch.written[fingerprint])
                    stored += new.pop(fingerprint, 0)
                else:
                    entries.append(self._use(place, fingerprint))
            drafts.append(Draft(intake, blake3(content).digest(), (), entries, stored))
            at += count
        return drafts

    def _cut(self, content: bytes) -> list[Payload]:
        view, start = memoryview(content), 0
        payloads: list[Payload] = []
        for length in self._tools.chunker().cut(view, final=True):
            payloads.append(view[start : start + length])
            start += length
        return payloads

    def _share(
        self, fingerprints: Sequence[bytes], payloads: Sequence[Payload], known: dict[bytes, Known]
    ) -> dict[bytes, int]:
        """Seal and append what is new, neighbours in one block; the sealed bytes of each."""
        written = self._batch.written
        fresh = {
            fingerprint: payload
            for fingerprint, payload in zip(fingerprints, payloads, strict=True)
            if fingerprint not in known and fingerprint not in written
        }
        marks, plain = list(fresh), list(fresh.values())
        sealed: list[SealedBlock] = []
        parts: list[list[Part]] = []
        seal = self._tools.sealer(self._batch.keys).seal
        for first, end in shared([len(payload) for payload in plain], SHARED_CHUNKS):
            sealed.append(seal(plain[first] if end == first + 1 else b"".join(plain[first:end])))
            held: list[Part] = []
            offset = 0
            for position in range(first, end):
                length = len(plain[position])
                held.append(Part(marks[position], offset, length))
                offset += length
            parts.append(held)
        refs = self._batch.data.append(sealed, parts)
        sizes: dict[bytes, int] = {}
        for (block_id, key, block), held, ref in zip(sealed, parts, refs, strict=True):
            plain_bytes = held[-1].offset + held[-1].length
            for fingerprint, offset, length in held:
                written[fingerprint] = (ref, Entry(block_id, 0, key, offset, length))
                sizes[fingerprint] = len(block) * length // plain_bytes
        return sizes

    # -- large files ------------------------------------------------------------------------------

    def _large(self, intake: Intake, holes: tuple[tuple[int, int], ...]) -> Draft | NotProtected:
        """Read and cut here, seal in the pool, place in order."""
        windows = Windows(intake.fd, intake.stat.st_size, holes)
        entries: list[Placed] = []
        stored = 0
        flying: deque[tuple[Future[list[_Piece]], bytearray]] = deque()

        def land() -> int:
            future, buffer = flying.popleft()
            placed, size = self._place(future.result())
            windows.spare.put(buffer)
            entries.extend(placed)
            if intake.advance is not None:
                intake.advance(sum(entry.length for _, entry in placed))
            return size

        try:
            for buffer, lengths in windows:
                flying.append((self._pool.submit(self._seal_window, buffer, lengths), buffer))
                while len(flying) >= WINDOWS_IN_FLIGHT or (flying and flying[0][0].done()):
                    stored += land()
            while flying:
                stored += land()
            if os.pread(intake.fd, 1, intake.stat.st_size):
                raise ChangedWhileRead
        except ChangedWhileRead:
            return NotProtected(intake.path, "is being written")
        except OSError as exc:
            return NotProtected(intake.path, f"cannot be read ({exc.strerror})")
        finally:
            wait(future for future, _ in flying)
        return Draft(intake, windows.hash, holes, entries, stored)

    def _seal_window(self, buffer: bytearray, lengths: Sequence[int]) -> list[_Piece]:
        """Fingerprint all, look all up at once, seal those that are not known. In the pool."""
        payloads: list[memoryview] = []
        view, start = memoryview(buffer), 0
        for length in lengths:
            payloads.append(view[start : start + length])
            start += length
        secret = self._batch.ring.dedup
        fingerprints = [dedup_key(secret, payload) for payload in payloads]
        known = self._known(fingerprints)
        seal = self._tools.sealer(self._batch.keys).seal
        pieces: list[_Piece] = []
        for fingerprint, payload in zip(fingerprints, payloads, strict=True):
            place = known.get(fingerprint)
            sealed = seal(payload) if place is None else None
            pieces.append(_Piece(fingerprint, len(payload), place, sealed))
        return pieces

    def _place(self, pieces: Sequence[_Piece]) -> tuple[list[Placed], int]:
        """Append what is new to the batch; the place of every piece, and the new bytes."""
        written = self._batch.written
        fresh: dict[bytes, tuple[SealedBlock, int]] = {}
        for fingerprint, length, _, block in pieces:
            if block is not None and fingerprint not in written:
                fresh.setdefault(fingerprint, (block, length))
        sealed = [block for block, _ in fresh.values()]
        parts = [[Part(mark, 0, length)] for mark, (_, length) in fresh.items()]
        for ref, (mark, (block, length)) in zip(
            self._batch.data.append(sealed, parts), fresh.items(), strict=True
        ):
            written[mark] = (ref, Entry(block.block_id, 0, block.key, 0, length))
        placed = [
            written[fingerprint] if known is None else self._use(known, fingerprint)
            for fingerprint, _, known, _ in pieces
        ]
        return placed, sum(len(block.block) for block in sealed)

    # -- known chunks -----------------------------------------------------------------------------

    def _known(self, fingerprints: Sequence[bytes]) -> dict[bytes, Known]:
        """The known chunks whose bundles this batch may rely on, once the catalog has noted it.

        Whoever removes a bundle looks for such notes in its own transaction (SAFETY 3, step 4).
        """
        known = self._catalog.view(lambda db: blocks.lookup_many(db, fingerprints))
        relied = self._batch.relied
        unsaid = {place.bundle for place in known.values()} - relied.keys()
        if unsaid:
            root = journal.root_of(self._batch.intent)
            kept = self._catalog.write(lambda db: blocks.claim(db, root, unsaid)).result()
            relied.update((bundle, bundle in kept) for bundle in unsaid)
        return {key: place for key, place in known.items() if relied[place.bundle]}

    def _use(self, known: Known, fingerprint: bytes) -> Placed:
        """Lean on a block that is there, and remember to read it back."""
        batch = self._batch
        placed = batch.leant.get(fingerprint)
        if placed is None:
            number, bundle_id, tag, idx, block_id, key, offset, length = known
            batch.rows[bundle_id] = number
            used = batch.used.setdefault(bundle_id, {})
            block = used.setdefault(idx, Written(idx, block_id, key, []))
            block.parts.append(Part(fingerprint, offset, length))
            placed = BundleRef(bundle_id, tag), Entry(block_id, 0, key, offset, length)
            batch.leant[fingerprint] = placed
        return placed
