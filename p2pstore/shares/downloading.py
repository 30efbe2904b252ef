"""From a key to the file it stands for: the root is found, opened, and read like any manifest.

The key is the only authority: the beginning of the root's id is in it, so whatever opens with the
key is what its maker meant, whoever sends it. What is opened stays known for a while, for who reads
a range after the other.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Final, NamedTuple

import msgspec

from p2pstore.clock import Clock
from p2pstore.content import (
    JOINERS,
    BundleRef,
    FileMeta,
    Keyring,
    Manifest,
    Unsealer,
    decode_share_key,
    open_manifest,
    share_access,
    share_bundle,
    share_root_key,
    share_tag,
    share_token,
)
from p2pstore.errors import BlocksMissing, FormatError, IntegrityError, UsageError
from p2pstore.ids import BlockId
from p2pstore.restore import Restore, Wanted, write_copy
from p2pstore.swarm import ShareFinder, ShareRefused, Source, Ticket

OPEN_S: Final = 600.0
MAX_OPEN: Final = 32
# Whoever shared it says nothing about who may read it here, and nothing of his is ever run.
MODE: Final = 0o644


class _WithTicket:
    """Blocks of one share."""

    def __init__(self, source: Source, ticket: Ticket) -> None:
        self._source = source
        self._ticket = ticket

    async def blocks(
        self, wanted: Sequence[Wanted], *, keep: bool = False
    ) -> Mapping[BlockId, bytes]:
        return await self._source.blocks(wanted, keep=keep, ticket=self._ticket)


class _Opened(NamedTuple):
    manifest: Manifest
    restore: Restore
    until: float  # on the monotonic clock


class Downloads:
    def __init__(
        self, finder: ShareFinder, source: Source, *, pool: Executor, clock: Clock
    ) -> None:
        self._finder = finder
        self._source = source
        self._pool = pool
        self._clock = clock
        self._open: OrderedDict[tuple[str, str], _Opened] = OrderedDict()

    async def meta(self, key: str, password: str = "") -> FileMeta:
        """Name and size of what the key stands for; errors as `copy`."""
        return (await self._opened(key, password)).manifest.meta

    async def read(
        self, key: str, start: int = 0, end: int | None = None, *, password: str = ""
    ) -> AsyncGenerator[bytes, None]:
        """The bytes start..end (exclusive) as they come; UsageError beyond it, else as `copy`."""
        opened = await self._known(key, password)
        try:
            async with aclosing(opened.restore.content(opened.manifest, start, end)) as pieces:
                async for piece in pieces:
                    yield piece
        except BlocksMissing:
            self._open.pop((key, password), None)
            await self._opened(key, password)  # says so when the share has ended meanwhile
            raise

    async def copy(
        self,
        key: str,
        target: str,
        *,
        password: str = "",
        force: bool = False,
        progress: Callable[[int, int], None],
    ) -> tuple[str, int]:
        """Write the file to `target`, or into it under its own name; (path, bytes).

        UsageError and FormatError when the key is none, ShareRefused when it opens nothing (any
        more), Unavailable when nobody is found that has the file, IntegrityError.
        """
        opened = await self._opened(key, password)
        path = await write_copy(
            opened.restore, opened.manifest, target, force=force, mode=MODE, progress=progress
        )
        return path, opened.manifest.meta.size

    async def _known(self, key: str, password: str) -> _Opened:
        known = self._open.get((key, password))
        if known is not None and known.until > self._clock.monotonic():
            return known
        return await self._opened(key, password)

    async def _opened(self, text: str, password: str) -> _Opened:
        key = decode_share_key(text)
        if key.needs_password and not password:
            raise UsageError("This file has a password: give it with --password")
        access = await asyncio.to_thread(
            share_access, key.secret, password if key.needs_password else ""
        )
        ref = BundleRef(share_bundle(key.secret), share_tag(key.secret))
        sealed, ticket = await self._finder.root(key, ref, share_token(access))
        ring = Keyring.of_share(access)
        try:
            raw = Unsealer().unseal(sealed, share_root_key(access))
        except IntegrityError as exc:
            if not key.needs_password:
                raise
            raise ShareRefused("The password is wrong.") from exc
        manifest = open_manifest(raw, ring).manifest
        if manifest.kind != "share":
            raise FormatError("The key leads to something else than a shared file.")
        restore = Restore(
            _WithTicket(self._source, ticket),
            ring=lambda: ring,
            judge=lambda _, __: True,
            pool=self._pool,
        )
        complete = _presentable(await restore.complete(manifest))
        opened = _Opened(complete, restore, self._clock.monotonic() + OPEN_S)
        self._open[text, password] = opened
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)
        return opened


def _presentable(manifest: Manifest) -> Manifest:
    name = presentable(manifest.meta.name)
    return msgspec.structs.replace(manifest, meta=msgspec.structs.replace(manifest.meta, name=name))


def presentable(name: bytes) -> bytes:
    """A name that does nothing to a terminal, shows its suffix at its end and hides nowhere.

    Bytes that are no UTF-8 stay what they are.
    """
    text = name.decode(errors="surrogateescape")
    seemly = "".join(c if c.isprintable() or c in JOINERS or _is_byte(c) else "_" for c in text)
    return seemly.lstrip(".").encode(errors="surrogateescape") or b"file"


def _is_byte(char: str) -> bool:
    return "\udc80" <= char <= "\udcff"
