"""A batch's bundles of one kind: append blocks, and a new bundle is begun when one is full.

Hides where a bundle ends. A bundle is sealed at 16 MiB, at 16,384 blocks, or when the batch ends;
two batches in flight never share an open bundle, so each is appended to by one thread only.
Sealing (fsync, rename) and reading back are left to the `finish` callback, which may run elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from p2pstore.content import BUNDLE_BLOCKS, BUNDLE_BYTES, BundleRef, SealedBlock
from p2pstore.ids import BlockId
from p2pstore.store import OpenBundle


class Part(NamedTuple):
    """A chunk, or a manifest, within the plain payload of its block."""

    fingerprint: bytes  # keyed hash of the part
    offset: int
    length: int


class Written(NamedTuple):
    """A block that this batch wrote or relies on: enough to find, read back and remember it."""

    at: int  # index in its bundle's list
    block_id: BlockId
    key: bytes
    parts: list[Part]


class Rolling:
    """Appends in order; `finish` is called once for each bundle, with its blocks."""

    def __init__(
        self,
        begin: Callable[[], tuple[OpenBundle, BundleRef]],
        finish: Callable[[OpenBundle, BundleRef, list[Written]], None],
    ) -> None:
        self._begin = begin
        self._finish = finish
        self._open: OpenBundle | None = None
        self._ref: BundleRef | None = None
        self._written: list[Written] = []

    def append(self, blocks: Sequence[SealedBlock], parts: Sequence[list[Part]]) -> list[BundleRef]:
        """Write the blocks; `parts` says what each of them holds. Returns where each lies."""
        where: list[BundleRef] = []
        start = 0
        while start < len(blocks):
            bundle, ref = self._current()
            fit = _fitting(bundle, blocks, start)
            if fit == 0:
                self.close()
                continue
            some = blocks[start : start + fit]
            indices = bundle.append(some)
            for index, block, held in zip(indices, some, parts[start : start + fit], strict=True):
                self._written.append(Written(index, block.block_id, block.key, held))
            where.extend([ref] * fit)
            start += fit
        return where

    def close(self) -> None:
        """End the current bundle, if there is one."""
        if self._open is None or self._ref is None:
            return
        bundle, ref, written = self._open, self._ref, self._written
        self._open, self._ref, self._written = None, None, []
        self._finish(bundle, ref, written)

    def abandon(self) -> None:
        """Throw the open bundle away; nothing refers to it yet."""
        if self._open is not None:
            self._open.abandon()
            self._open = None

    def _current(self) -> tuple[OpenBundle, BundleRef]:
        if self._open is None or self._ref is None:
            self._open, self._ref = self._begin()
        return self._open, self._ref


def _fitting(bundle: OpenBundle, blocks: Sequence[SealedBlock], start: int) -> int:
    """How many blocks from `start` on the bundle still takes; at least one when it is empty."""
    room = BUNDLE_BYTES - bundle.size
    slots = BUNDLE_BLOCKS - bundle.count
    fit = 0
    for block in blocks[start : start + slots]:
        room -= len(block.block)
        if room < 0 and (fit or bundle.count):
            break
        fit += 1
    return fit
