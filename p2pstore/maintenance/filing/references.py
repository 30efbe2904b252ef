"""Which bundles the files need that manifests speak of, and where manifests themselves lie."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence

from p2pstore.content import (
    BundleHeader,
    BundleRef,
    ChunkList,
    Entry,
    Keyring,
    Kind,
    Manifest,
    SealedBlock,
    Sealer,
    bundle_tag,
    child_list,
    children,
    epoch_of,
)
from p2pstore.errors import IntegrityError, NoRoom, P2PStoreError
from p2pstore.ids import BundleId, Epoch, PublicKey, Tag
from p2pstore.ingest import Author
from p2pstore.maintenance.filing.local import Local, Place
from p2pstore.store import BundleRow, BundleState, BundleStore, Catalog, blocks

log = logging.getLogger(__name__)

References = Mapping[BundleId, tuple[BundleRef, Kind]]


class Needs:
    """The bundles that a manifest's content needs; lists that cannot be read are counted."""

    def __init__(self, local: Local) -> None:
        self.local = local
        self.unread = 0

    def of(self, manifest: Manifest, place: Place | None) -> dict[BundleId, tuple[BundleRef, Kind]]:
        """Every bundle that the file needs; a list that cannot be read is counted as unread."""
        found: dict[BundleId, tuple[BundleRef, Kind]] = {}
        contents = Kind.META if manifest.kind == "index" else Kind.DATA

        def below(chunks: ChunkList) -> None:
            kind = Kind.META if chunks.depth else contents
            for ref in chunks.bundles:
                found.setdefault(ref.bundle_id, (ref, kind))
            if not chunks.depth:
                return
            for _, span, ref, entry in children(chunks):
                try:
                    below(child_list(chunks, span, self.local.load(ref, entry)))
                except P2PStoreError as exc:
                    log.warning("A chunk list cannot be read here: %s", exc)
                    self.unread += 1

        below(manifest.chunks)
        for extra in (place, manifest.meta.extra):
            if extra is not None:
                found.setdefault(extra[0].bundle_id, (extra[0], Kind.META))
        return found


class Housing:
    """Where the blocks of manifests lie, and a bundle for those that lie nowhere here."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        local: Local,
        author: Author,
        ring: Keyring,
        now_ms: int,
        adopt: Callable[[BundleRow], None],
    ) -> None:
        """`adopt` records a bundle that was made here."""
        self._catalog = catalog
        self._local = local
        self._author = author
        self._ring = ring
        self._now_ms = now_ms
        self._adopt = adopt
        self._sealers: dict[Epoch, Sealer] = {}

    def place_of(self, raw: bytes) -> Place | None:
        """Sealing the manifest again gives the id of its block, if it was ever stored."""
        return self._catalog.view(lambda db: self.place_in(db, raw))

    def place_in(self, db: sqlite3.Connection, raw: bytes) -> Place | None:
        sealed = self._seal(raw)
        bundle_id = self._local.where(sealed.block_id)
        row = blocks.exactly(db, bundle_id) if bundle_id is not None else None
        if bundle_id is None or row is None:
            return None
        return BundleRef(bundle_id, row.tag), Entry(sealed.block_id, 0, sealed.key, 0, len(raw))

    def house(self, raws: Sequence[bytes]) -> list[Place] | None:
        """Store manifests that lie in no bundle here, as ingest would have done; where each lies
        then. None when there is no room: nothing but an index needs it."""
        sealed = [self._seal(raw) for raw in raws]
        try:
            ref = self._write(sealed)
        except NoRoom as exc:
            log.warning("Manifests found in placeholders cannot be stored: %s", exc)
            return None
        places = [
            (ref, Entry(block.block_id, 0, block.key, 0, len(raw)))
            for block, raw in zip(sealed, raws, strict=True)
        ]
        store = self._local.store
        store.drop_cache(ref.bundle_id)
        self._local.added(ref.bundle_id)
        if self._local.load_many(places) != list(raws):
            raise IntegrityError("Manifests do not read back as they were written.")
        self._adopt(bundle_row(store, ref.bundle_id, ref.tag, self._me))
        return places

    @property
    def _me(self) -> PublicKey:
        return PublicKey(bytes(self._author.key.verify_key))

    def _write(self, sealed: Sequence[SealedBlock]) -> BundleRef:
        bundle_id = BundleId(os.urandom(32))
        header = BundleHeader(
            bundle_id=bundle_id,
            group=self._author.group,
            opener=self._me,
            kind=int(Kind.META),
            created_ms=self._now_ms,
        )
        bundle = self._local.store.create(header, self._author.key)
        try:
            bundle.append(list({one.block_id: one for one in sealed}.values()))
            bundle.seal()
        except BaseException:
            bundle.abandon()
            raise
        return BundleRef(bundle_id, bundle_tag(self._ring.current.tag, bundle_id))

    def _seal(self, raw: bytes) -> SealedBlock:
        epoch = epoch_of(raw)
        if epoch not in self._sealers:
            self._sealers[epoch] = Sealer(self._ring[epoch].block)
        return self._sealers[epoch].seal(raw)


def bundle_row(store: BundleStore, bundle_id: BundleId, tag: Tag, me: PublicKey) -> BundleRow:
    """The row of a sealed bundle that lies here; BundleDamaged, BundleMissing."""
    index, live = store.index(bundle_id), store.live_map(bundle_id)
    size = store.size(bundle_id)
    if live.seq:
        dead = (e.length for i, e in enumerate(index.blocks.entries) if not live.is_live(i))
        size -= sum(dead)
    return BundleRow(
        bundle_id=bundle_id,
        tag=tag,
        kind=index.header.kind,
        folder=None,
        state=BundleState.SEALED,
        bytes=size,
        blocks=len(index.blocks),
        seq=live.seq,
        created=index.header.created_ms,
        own=int(index.header.opener == me),
    )
