"""Stage 2: every draft becomes a manifest, and all of them blocks of the meta bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from p2pstore.content import (
    BundleRef,
    ChunkList,
    Entry,
    FileMeta,
    Manifest,
    Sealer,
    dedup_key,
    fit,
    list_of,
    next_version,
    seal_manifest,
)
from p2pstore.filesystems import mtime_ns_of
from p2pstore.ids import BundleId, FileId
from p2pstore.ingest.batch import Batch, Draft
from p2pstore.ingest.intake import Author, ManifestKind, NotProtected, Protected
from p2pstore.ingest.rolling import Part
from p2pstore.ingest.sharing import SHARED_MANIFESTS, shared

DICE = 16 + 24  # random bytes for each manifest: the id of a new file, and the nonce


def write_manifests(
    batch: Batch,
    author: Author,
    sealer: Sealer,
    drafts: Sequence[Draft | NotProtected],
    kind: ManifestKind,
    random: Callable[[int], bytes],
) -> list[Protected | NotProtected]:
    """What becomes of each draft, in order; lists and attributes may need blocks of their own."""
    secret = batch.ring.dedup

    def keep(payload: bytes) -> tuple[BundleRef, Entry]:
        sealed = sealer.seal(payload)
        (ref,) = batch.meta.append([sealed], [[Part(dedup_key(secret, payload), 0, len(payload))]])
        return ref, Entry(sealed.block_id, 0, sealed.key, 0, len(payload))

    dice, at = random(DICE * len(drafts)), 0
    done: list[tuple[Draft, Manifest]] = []
    raws: list[bytes] = []
    for draft in drafts:
        if isinstance(draft, Draft):
            chunks = list_of(draft.entries, keep)
            manifest = _manifest(batch, draft, chunks, kind, FileId(dice[at : at + 16]))
            manifest = fit(manifest, author.chain, keep)
            nonce = dice[at + 16 : at + DICE]
            at += DICE
            raws.append(seal_manifest(manifest, batch.keys, author.key, author.chain, nonce))
            done.append((draft, manifest))
    finished = (
        _protected(draft, manifest, raw, place)
        for (draft, manifest), raw, place in zip(
            done, raws, store_manifests(batch, sealer, raws), strict=True
        )
    )
    return [next(finished) if isinstance(draft, Draft) else draft for draft in drafts]


def store_manifests(
    batch: Batch, sealer: Sealer, raws: Sequence[bytes]
) -> list[tuple[BundleRef, Entry]]:
    """Blocks of the meta bundle that hold these, several in each; where each of them lies."""
    secret = batch.ring.dedup
    runs = list(shared([len(raw) for raw in raws], SHARED_MANIFESTS))
    sealed = [sealer.seal(b"".join(raws[first:end])) for first, end in runs]
    parts: list[list[Part]] = []
    for first, end in runs:
        held: list[Part] = []
        offset = 0
        for raw in raws[first:end]:
            held.append(Part(dedup_key(secret, raw), offset, len(raw)))
            offset += len(raw)
        parts.append(held)
    refs = batch.meta.append(sealed, parts)
    return [
        (ref, Entry(block_id, 0, key, offset, length))
        for (block_id, key, _), ref, held in zip(sealed, refs, parts, strict=True)
        for _, offset, length in held
    ]


def _manifest(
    batch: Batch,
    draft: Draft,
    chunks: ChunkList,
    kind: ManifestKind,
    new_id: FileId,
) -> Manifest:
    intake = draft.intake
    stat, follows = intake.stat, intake.follows
    if follows is None:
        file_id, vector, parent = new_id, {batch.me: 1}, b""
    else:
        file_id, parent = follows.file_id, follows.parent
        vector = next_version(follows.vector, batch.me)
    # A share is for somebody else: whose file it is here does not concern him.
    uid, gid = (0, 0) if kind == "share" else (stat.st_uid, stat.st_gid)
    meta = FileMeta(
        name=intake.path.rpartition(b"/")[2],
        size=stat.st_size,
        mode=stat.st_mode,
        uid=uid,
        gid=gid,
        user=intake.owner[0],
        group=intake.owner[1],
        mtime_ns=mtime_ns_of(stat),
        xattrs=intake.xattrs,
        holes=draft.holes,
    )
    return Manifest(file_id, vector, parent, meta, draft.hash, chunks, batch.group, kind)


def _protected(
    draft: Draft, manifest: Manifest, raw: bytes, place: tuple[BundleRef, Entry]
) -> Protected:
    bundles: set[BundleId] = {ref.bundle_id for ref, _ in draft.entries}
    bundles.update(ref.bundle_id for ref in manifest.chunks.bundles)
    bundles.add(place[0].bundle_id)
    if manifest.meta.extra is not None:
        bundles.add(manifest.meta.extra[0].bundle_id)
    return Protected(
        draft.intake.path,
        draft.intake.stat.st_size,
        draft.stored,
        manifest.file_id,
        manifest.version,
        draft.hash,
        raw,
        place,
        manifest.chunks,
        frozenset(bundles),
    )
