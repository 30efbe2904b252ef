"""Does an original hold what a manifest says, and which chunks has it?"""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

from blake3 import blake3

from p2pstore.content import Entry, Manifest, dedup_key, walk
from p2pstore.errors import P2PStoreError
from p2pstore.filesystems import mtime_ns_of
from p2pstore.ids import BundleId
from p2pstore.maintenance.filing.disk import Disk
from p2pstore.maintenance.filing.local import Local
from p2pstore.watch import Seen

log = logging.getLogger(__name__)

_PIECE = 1 << 20


class Chunk(NamedTuple):
    """A chunk that was read from an original: what the dedup index wants to know."""

    bundle_id: BundleId
    entry: Entry
    fingerprint: bytes


class Comparing:
    def __init__(self, local: Local, dedup_secret: bytes) -> None:
        self._local = local
        self._secret = dedup_secret

    def compare(self, disk: Disk, seen: Seen, manifest: Manifest) -> list[Chunk] | None:
        """None unless the original holds just what the manifest says.

        Its chunks are fingerprinted on the way: the dedup index knows again what most likely
        changes next. The others stay unknown, which costs room and nothing else; to learn them
        every block here would have to be unsealed.
        """
        if seen.size != manifest.meta.size:
            return None
        try:
            fd = disk.open(seen.path)
        except OSError:
            return None
        try:
            if _identity(os.fstat(fd)) != _identity_seen(seen):
                return None
            digest, chunks = self._hash(fd, manifest)
            if digest != manifest.hash or _identity(os.fstat(fd)) != _identity_seen(seen):
                return None
            return chunks
        except OSError as exc:
            log.warning("%s cannot be read: %s", os.fsdecode(seen.path), exc)
            return None
        finally:
            os.close(fd)

    def _hash(self, fd: int, manifest: Manifest) -> tuple[bytes, list[Chunk]]:
        if not manifest.meta.holes and manifest.meta.extra is None:
            try:
                return self._hash_chunks(fd, manifest)
            except P2PStoreError:
                pass  # its list is not here: the content can be compared all the same
        hasher, at = blake3(), 0
        while piece := os.pread(fd, _PIECE, at):
            hasher.update(piece)
            at += len(piece)
        return hasher.digest(), []

    def _hash_chunks(self, fd: int, manifest: Manifest) -> tuple[bytes, list[Chunk]]:
        hasher = blake3()
        chunks: list[Chunk] = []
        for position, ref, entry in walk(manifest.chunks, self._local.load):
            piece = os.pread(fd, entry.length, position)
            if len(piece) != entry.length:
                return b"", []
            hasher.update(piece)
            chunks.append(Chunk(ref.bundle_id, entry, dedup_key(self._secret, piece)))
        return hasher.digest(), chunks


def _identity(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_ino, stat.st_size, mtime_ns_of(stat), stat.st_ctime_ns


def _identity_seen(seen: Seen) -> tuple[int, int, int, int]:
    return seen.ino, seen.size, seen.mtime_ns, seen.ctime_ns
