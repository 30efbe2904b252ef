"""Writing a share: its content, and the root that the key leads to.

Order of writes: bundles, read back; their rows, kept alive by a root of the share's name; the
root's bundle; last what the caller keeps of it, from where on the share exists. What a crash leaves
behind before that is collected later.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from p2pstore.clock import Clock
from p2pstore.content import (
    BundleHeader,
    BundleRef,
    Keyring,
    Kind,
    Sealer,
    ShareKey,
    encode_share_key,
    share_bundle,
    share_root_key,
    share_tag,
    share_token,
    token_hash,
)
from p2pstore.errors import IntegrityError, Unavailable
from p2pstore.ids import BlockId, BundleId, PublicKey
from p2pstore.ingest import Author, Ingest, Intake, Protected
from p2pstore.net import Address
from p2pstore.shares.record import ShareRecord
from p2pstore.store import (
    ONCE,
    SHARED,
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    IntentKind,
    blocks,
    journal,
)


class Terms(NamedTuple):
    """What a share is to be, beside its content."""

    created_ms: int
    expires_ms: int
    is_once: bool
    has_password: bool
    hints: tuple[Address, ...]


class Maker:
    def __init__(
        self,
        *,
        store: BundleStore,
        catalog: Catalog,
        author: Callable[[], Author],
        ingest: Callable[[Keyring], Ingest],
        clock: Clock,
    ) -> None:
        """`ingest` makes a pipeline with these keys."""
        self._store = store
        self._catalog = catalog
        self._author = author
        self._ingest = ingest
        self._clock = clock

    def make(
        self,
        intake: Intake,
        secret: bytes,
        access: bytes,
        terms: Terms,
        keep: Callable[[ShareRecord], None],
    ) -> ShareRecord:
        """The share as HOME and the holders are to know it; `keep` makes it so. Blocks.

        Unavailable when the file changes meanwhile.
        """
        root = BundleRef(share_bundle(secret), share_tag(secret))
        kept = (ONCE if terms.is_once else SHARED) + root.bundle_id[:16].hex()
        with self._begun(kept) as intent:
            ring = Keyring.of_share(access)
            content = self._write_content(intake, ring, kept, intent)
            root_id = self._write_root(
                root, access, content.manifest, [kept, journal.root_of(intent)]
            )
            rows = self._catalog.view(lambda db: blocks.get_bundles(db, list(content.bundles)))
            key = ShareKey(secret, root_id[:16], terms.has_password, terms.hints)
            record = ShareRecord(
                key=encode_share_key(key),
                token_hash=token_hash(share_token(access)),
                name=intake.path,
                size=content.size,
                created_ms=terms.created_ms,
                expires_ms=terms.expires_ms,
                is_once=terms.is_once,
                has_password=terms.has_password,
                bundles=(root, *(BundleRef(b, rows[b].tag) for b in sorted(content.bundles))),
            )
            keep(record)
        return record

    @contextmanager
    def _begun(self, kept: str) -> Iterator[int]:
        """An open row of the journal. Until it is closed nothing of the share is copied: a holder
        that was given a bundle without its grant would never give it to anybody."""
        now_ms = int(self._clock.wall() * 1000)
        intent = self._catalog.write(
            lambda db: journal.open_intent(db, IntentKind.INGEST, b"", now_ms)
        ).result()
        try:
            yield intent
        except BaseException:
            self._catalog.write(lambda db: blocks.drop_root(db, kept)).result()
            raise
        finally:
            self._catalog.write(lambda db: journal.close(db, intent)).result()

    def _write_content(self, intake: Intake, ring: Keyring, kept: str, intent: int) -> Protected:
        """Durable, read back, and kept alive."""

        def commit(
            db: sqlite3.Connection, safe: Sequence[Protected], rows: Mapping[BundleId, int]
        ) -> None:
            blocks.add_root(db, kept, [rows[b] for one in safe for b in one.bundles])

        (result,) = self._ingest(ring).protect(
            None, [intake], intent=intent, commit=commit, kind="share"
        )
        if not isinstance(result, Protected):
            raise Unavailable(
                f"{os.fsdecode(intake.path)} {result.reason}; try again when it is left alone."
            )
        return result

    def _write_root(
        self, ref: BundleRef, access: bytes, manifest: bytes, roots: Sequence[str]
    ) -> BlockId:
        author = self._author()
        now_ms = int(self._clock.wall() * 1000)
        header = BundleHeader(
            bundle_id=ref.bundle_id,
            group=author.group,
            opener=PublicKey(bytes(author.key.verify_key)),
            kind=int(Kind.META),
            created_ms=now_ms,
        )
        sealed = Sealer(access).seal_under(share_root_key(access), manifest)
        bundle = self._store.create(header, author.key)
        try:
            bundle.append([sealed])
            bundle.seal()
        except BaseException:
            bundle.abandon()
            raise
        self._store.drop_cache(ref.bundle_id)
        if self._store.read(ref.bundle_id, [0]) != [sealed.block]:
            raise IntegrityError("The share does not read back as it was written.")
        row = BundleRow(
            bundle_id=ref.bundle_id,
            tag=ref.tag,
            kind=int(Kind.META),
            folder=None,
            state=BundleState.SEALED,
            bytes=self._store.size(ref.bundle_id),
            blocks=1,
            created=now_ms,
        )

        def put(db: sqlite3.Connection) -> None:
            number = blocks.put_bundle(db, row)
            for name in roots:
                blocks.add_root(db, name, [number])

        self._catalog.write(put).result()
        return sealed.block_id
