"""Fetches an upload into a file: whole under its final name, or not there at all."""

from __future__ import annotations

import asyncio
import os
import stat
from concurrent.futures import Executor
from pathlib import Path
from typing import NamedTuple

from p2pstore.carriers import Carrier
from p2pstore.content import Piece, UploadMeta
from p2pstore.errors import NoRoom, P2PStoreError, Unavailable, UsageError
from p2pstore.pieces.flow import PATIENT, Patience, Progress, each
from p2pstore.pieces.partial import Partial, exists, translated
from p2pstore.pieces.reading import Reader, open_upload
from p2pstore.threads import in_thread


class Fetched(NamedTuple):
    path: Path
    meta: UploadMeta


async def fetch(
    carrier: Carrier,
    key: str,
    target: str | bytes | Path | None = None,
    *,
    pool: Executor,
    force: bool = False,
    progress: Progress | None = None,
    patience: Patience = PATIENT,
) -> Fetched:
    """Write the upload to `target`; into it when it is a directory, None being the current one.

    Its own name, made safe, is taken then. Nothing is overwritten unless `force` says so; other
    things than files never are. An attempt that ends because the carrier fails, or that is
    cancelled, leaves its verified pieces in a hidden file beside the target, and the next one with
    the same key and target goes on there.

    UsageError: no key, or the target exists or cannot be written. FormatError: a key with a
    mistake. NotThere, Unavailable; NoRoom before the first byte. IntegrityError: what came is not
    what was stored.
    """
    reader = await open_upload(carrier, key, pool=pool, patience=patience)
    path = _resolved(target, reader.meta.name)
    _check_target(path, force=force)
    with Partial.open(path, key.strip(), reader.meta) as partial:
        try:
            await _fill(reader, partial, pool, progress or (lambda done, total: None))
            await in_thread(pool, partial.publish, force=force)
        except (P2PStoreError, asyncio.CancelledError) as exc:
            goes_on = isinstance(exc, Unavailable | asyncio.CancelledError)
            if not goes_on or isinstance(exc, NoRoom) or not partial.has_pieces:
                partial.discard()
            raise
    return Fetched(path, reader.meta)


async def _fill(reader: Reader, partial: Partial, pool: Executor, tell: Progress) -> None:
    await in_thread(pool, partial.prepare)
    missing = [piece for piece in reader.meta.pieces if piece.seq not in partial.verified]
    size = reader.meta.size
    done = size - sum(piece.size for piece in missing)
    tell(done, size)

    async def one(piece: Piece) -> None:
        nonlocal done
        content = await reader.piece(piece)
        await in_thread(pool, partial.write, piece, content)
        done += piece.size
        tell(done, size)

    await each(missing, one, width=reader.width)


def _resolved(target: str | bytes | Path | None, name: str) -> Path:
    given = os.fsencode(target) if target is not None else b"."
    if b"\0" in given:
        raise UsageError("A file's name cannot have a byte that is zero.")
    if given.endswith(b"/") or os.path.isdir(given):
        given = os.path.join(given, os.fsencode(name))
    return Path(os.path.abspath(os.fsdecode(given)))


def _check_target(path: Path, *, force: bool) -> None:
    with translated(path):
        try:
            status = path.lstat()
        except FileNotFoundError:
            return
    if not force:
        raise exists(path)
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        raise UsageError(f"{path} is no file, and is not replaced.")
