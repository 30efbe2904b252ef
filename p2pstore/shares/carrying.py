"""Single files at a carrier, under keys that need no node: `upload --carrier`, `download`.

Where the file lies says the carrier; who has the key can read it, for ever. Nothing at such a place
looks at a time or a password, so neither is offered.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from pathlib import Path

from p2pstore.carriers import Carrier
from p2pstore.content import UPLOAD_PREFIX, UploadMeta, parse_upload_key
from p2pstore.errors import Unavailable, UsageError
from p2pstore.pieces import Fetched, Patience, Stored, fetch, get_meta, open_upload, store

Progress = Callable[[int, int], None]
Find = Callable[[str | None], Sequence[tuple[str, Carrier]]]
"""The carrier of that name, in a list; None: all of them. UsageError when there is none."""

ONCE = Patience(tries=1)


def looks_like_upload_key(text: str) -> bool:
    """Whether somebody means the key of a file at a carrier by it, not a path."""
    return text.lstrip()[: len(UPLOAD_PREFIX)].lower() == UPLOAD_PREFIX


class Uploads:
    def __init__(self, home: Path, find: Find, *, pool: Executor) -> None:
        """`find` tells the carriers; notes of interrupted uploads lie in HOME/uploads."""
        self._journals = home / "uploads"
        self._find = find
        self._pool = pool

    async def upload(self, path: str, carrier: str, progress: Progress) -> Stored:
        """See `pieces.store`; repeated after an interruption it goes on."""
        ((name, place),) = self._find(carrier)
        return await store(
            place,
            path,
            pool=self._pool,
            place=name,
            journals=self._journals,
            progress=progress,
        )

    async def download(
        self, key: str, to: str, carrier: str | None, *, force: bool, progress: Progress
    ) -> Fetched:
        """See `pieces.fetch`; repeated after an interruption it goes on."""
        place = await self._having(key, carrier)
        return await fetch(place, key, to, pool=self._pool, force=force, progress=progress)

    async def meta(self, key: str, carrier: str | None = None) -> UploadMeta:
        place = await self._having(key, carrier)
        return await get_meta(place, key, pool=self._pool)

    async def read(
        self, key: str, start: int = 0, end: int | None = None, carrier: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """The bytes start..end (exclusive); only the pieces that they lie in are fetched."""
        place = await self._having(key, carrier)
        reader = await open_upload(place, key, pool=self._pool)
        async with aclosing(reader.read(start, end)) as pieces:
            async for piece in pieces:
                yield piece

    async def _having(self, key: str, carrier: str | None) -> Carrier:
        """The carrier that the key leads to; where none is named all are asked."""
        parse_upload_key(key)  # a key with a mistake is nobody's
        places = self._find(carrier)
        for _, place in places[:-1]:
            try:
                await get_meta(place, key, pool=self._pool, patience=ONCE)
            except (Unavailable, UsageError):
                continue  # not there, or a key that no such carrier gives
            return place
        return places[-1][1]
