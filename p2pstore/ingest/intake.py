"""What goes into ingest and what comes out of it: open files in, protected ones or reasons out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from nacl.signing import SigningKey

from p2pstore.content import BundleRef, ChunkList, Entry
from p2pstore.ids import BundleId, FileId, GroupId, NodeId, PublicKey, group_id_of, node_id_of

ManifestKind = Literal["file", "index", "share"]


class Version(NamedTuple):
    """The version that a file's new content follows."""

    file_id: FileId
    vector: Mapping[NodeId, int]
    parent: bytes  # hash of the previous manifest's plain body


class Intake(NamedTuple):
    """One open regular file. The descriptor stays the caller's."""

    path: bytes  # relative to the folder
    fd: int
    stat: os.stat_result
    owner: tuple[str, str] = ("", "")
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    follows: Version | None = None
    advance: Callable[[int], None] | None = None  # hears of each part of a large file in its place


class Protected(NamedTuple):
    """A file whose every block is in sealed local bundles, read back from disk."""

    path: bytes
    size: int
    stored: int  # sealed bytes written for this file alone
    file_id: FileId
    vector: Mapping[NodeId, int]
    hash: bytes
    manifest: bytes  # the `.f`
    place: tuple[BundleRef, Entry]  # of the manifest itself
    chunks: ChunkList
    bundles: frozenset[BundleId]  # data and meta


class NotProtected(NamedTuple):
    """A file that changed or could not be read; nothing of it is recorded."""

    path: bytes
    reason: str


@dataclass(frozen=True)
class Author:
    """Who signs: this device, with the certificates that say so."""

    key: SigningKey
    chain: bytes
    group: PublicKey

    @cached_property
    def node_id(self) -> NodeId:
        return node_id_of(PublicKey(bytes(self.key.verify_key)))

    @cached_property
    def group_id(self) -> GroupId:
        return group_id_of(self.group)
