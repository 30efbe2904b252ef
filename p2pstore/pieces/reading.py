"""Reads what lies under an upload's key: the list of pieces, and any range of bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Executor

from p2pstore.carriers import Carrier, NotThere
from p2pstore.content import MetaReader, Piece, UploadKey, UploadMeta, parse_upload_key
from p2pstore.errors import IntegrityError, UsageError
from p2pstore.pieces.flow import PATIENT, Patience, width
from p2pstore.threads import in_thread


class Reader:
    """One upload. Each piece is verified before a byte of it is handed out."""

    def __init__(
        self,
        carrier: Carrier,
        key: UploadKey,
        meta: UploadMeta,
        *,
        pool: Executor,
        patience: Patience,
    ) -> None:
        self.meta = meta
        self._carrier = carrier
        self._wrap = key.wrap()
        self._pool = pool
        self._patience = patience

    @property
    def width(self) -> int:
        """How many pieces may be asked for at once."""
        return width(max((piece.size for piece in self.meta.pieces), default=0))

    async def piece(self, piece: Piece) -> bytes:
        """Its content; NotThere, IntegrityError."""
        try:
            return await self._once(piece)
        except IntegrityError:
            # It may have been damaged on its way. Twice is no accident.
            return await self._once(piece)

    async def _once(self, piece: Piece) -> bytes:
        try:
            stored = await self._patience.insist(lambda: self._carrier.get(piece.key))
        except NotThere as exc:
            raise NotThere(
                f"{self.meta.name} cannot be read: one of its {len(self.meta.pieces):,} pieces is "
                "not there any more."
            ) from exc
        return await in_thread(self._pool, self._wrap.open_piece, piece, stored)

    async def read(self, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes start..end (exclusive) in order; only the pieces needed are fetched.

        UsageError when the range lies outside of the file.
        """
        size = self.meta.size
        stop = size if end is None else min(end, size)
        if start > size or start < 0 or stop < start:
            raise UsageError(f"The range lies outside the file's {size} bytes.")
        needed = [
            piece
            for piece in self.meta.pieces
            if piece.offset < stop and start < piece.offset + piece.size
        ]
        flying: deque[tuple[Piece, asyncio.Task[bytes]]] = deque()
        waiting = iter(needed)
        try:
            while True:
                while len(flying) < self.width and (piece := next(waiting, None)) is not None:
                    flying.append((piece, asyncio.ensure_future(self.piece(piece))))
                if not flying:
                    return
                piece, task = flying[0]
                content = await task
                flying.popleft()
                yield content[max(0, start - piece.offset) : stop - piece.offset]
        finally:
            for _, task in flying:
                task.cancel()
            await asyncio.gather(*(task for _, task in flying), return_exceptions=True)


async def open_upload(
    carrier: Carrier, key: str, *, pool: Executor, patience: Patience = PATIENT
) -> Reader:
    """The upload under `key`. UsageError, FormatError: see `parse_upload_key`; NotThere."""
    parsed = parse_upload_key(key)
    wrap = parsed.wrap()
    reader = MetaReader(parsed.meta_key, is_sealed=parsed.secret is not None)
    while reader.wanted is not None:
        place, where = reader.wanted
        stored = await _part(carrier, where, patience)
        raw = await in_thread(pool, wrap.open_part, place, stored)
        await in_thread(pool, reader.feed, raw)
    meta = await in_thread(pool, reader.meta)
    return Reader(carrier, parsed, meta, pool=pool, patience=patience)


async def _part(carrier: Carrier, where: str, patience: Patience) -> bytes:
    try:
        return await patience.insist(lambda: carrier.get(where))
    except NotThere as exc:
        raise NotThere("There is nothing under this key, or not any more.") from exc


async def get_meta(
    carrier: Carrier, key: str, *, pool: Executor, patience: Patience = PATIENT
) -> UploadMeta:
    return (await open_upload(carrier, key, pool=pool, patience=patience)).meta
