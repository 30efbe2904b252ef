"""Which blocks of our bundles are named by files and earlier versions that the catalog has."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from p2pstore.content import (
    BundleRef,
    ChunkList,
    Entry,
    Keyring,
    Kind,
    Manifest,
    child_list,
    children,
    open_manifest,
)
from p2pstore.ids import BlockId, BundleId
from p2pstore.maintenance.filing import Place
from p2pstore.store import BundleRow, Catalog, blocks, dying, merged

Load = Callable[[BundleRef, Entry], bytes]

BATCH = 500  # manifests in memory at a time
_PLACE = msgspec.msgpack.Decoder(tuple[BundleRef, Entry])


def named_by(
    manifest: Manifest, place: Place | None, load: Load, *, below: bool = True
) -> Iterator[Place]:
    """Every block that a manifest needs: its own, lists, contents. Without `below` the lowest
    lists are not read, and what only they name is left out."""
    if place is not None:
        yield place
    if manifest.meta.extra is not None:
        yield manifest.meta.extra
    yield from _listed(manifest.chunks, load, below)


def _listed(chunks: ChunkList, load: Load, below: bool) -> Iterator[Place]:
    for _, span, ref, entry in children(chunks):
        yield ref, entry
        if chunks.depth > 1 or (chunks.depth and below):
            yield from _listed(child_list(chunks, span, load(ref, entry)), load, below)


class Roots:
    """Reads manifests as the catalog has them. Blocks; what cannot be read is raised."""

    def __init__(self, catalog: Catalog, load: Load, ring: Keyring) -> None:
        self._catalog = catalog
        self._load = load
        self._ring = ring

    def named(self, rows: Sequence[BundleRow]) -> Mapping[int, set[BlockId]]:
        """By the row of each bundle what is named in it. A bundle is left out when something that
        needs it has no manifest, or not any more: nothing can be said of it now."""
        kinds = {row.id: row.kind for row in rows}
        found: dict[BundleId, set[BlockId]] = {row.bundle_id: set() for row in rows}
        for old, new in self._catalog.view(partial(merged_into, [row.id for row in rows])).items():
            found[old] = found[new]  # a manifest goes on naming what was merged
        unclear: set[int] = set()
        for needs, read in (
            (dying.references, dying.of_files),
            (dying.earlier_references, dying.of_history),
        ):
            needed = self._catalog.view(partial(needs, bundles=list(kinds)))
            for batch in _batches(list(needed)):
                references = self._catalog.view(partial(_read, read, batch))
                for reference in references:
                    is_data = any(kinds[n] == Kind.DATA for n in needed[reference.id])
                    self._mark(found, reference, below=is_data)
                for number in set(batch) - {reference.id for reference in references}:
                    unclear |= needed[number]
        return {row.id: found[row.bundle_id] for row in rows if row.id not in unclear}

    def _mark(
        self, found: dict[BundleId, set[BlockId]], reference: dying.Reference, *, below: bool
    ) -> None:
        manifest = open_manifest(reference.manifest, self._ring).manifest
        place = _PLACE.decode(reference.place) if reference.place else None
        for ref, entry in named_by(manifest, place, self._load, below=below):
            named = found.get(ref.bundle_id)
            if named is not None:
                named.add(entry.block)


def merged_into(bundles: Sequence[int], db: sqlite3.Connection) -> dict[BundleId, BundleId]:
    """Old id -> the id of that of these bundles in which its blocks lie now."""
    found: dict[BundleId, BundleId] = {}
    for number in bundles:
        row = blocks.by_rowid(db, number)
        if row is not None:
            found.update((name, row.bundle_id) for name in merged.names(db, number))
    return found


def _read(
    read: Callable[[sqlite3.Connection, Sequence[int]], list[dying.Reference]],
    numbers: Sequence[int],
    db: sqlite3.Connection,
) -> list[dying.Reference]:
    return read(db, numbers)


def _batches(numbers: Sequence[int]) -> Iterable[Sequence[int]]:
    for start in range(0, len(numbers), BATCH):
        yield numbers[start : start + BATCH]
