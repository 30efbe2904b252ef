"""What the formats' tests share: one epoch, one device, and a store of blocks in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from nacl.signing import SigningKey

from p2pstore.content import (
    BundleRef,
    ChunkList,
    Entry,
    EpochKeys,
    FileMeta,
    Keyring,
    Manifest,
    bundle_tag,
)
from p2pstore.ids import BlockId, BundleId, Epoch, FileId, GroupId, NodeId

VECTORS = Path(__file__).parent.parent / "vectors" / "content"


def make_stream(seed: str, size: int) -> bytes:
    """The same incompressible bytes at each run."""
    return blake3(seed.encode()).digest(length=size)


class Blocks:
    """Keeps what it is given; plays the meta bundle and the chunks of a file."""

    def __init__(self, keys: EpochKeys) -> None:
        bundle_id = BundleId(make_stream("bundle", 32))
        self.ref = BundleRef(bundle_id, bundle_tag(keys.tag, bundle_id))
        self.kept: dict[BlockId, bytes] = {}

    def store(self, payload: bytes) -> tuple[BundleRef, Entry]:
        block_id = BlockId(hashlib.sha256(payload).digest())
        self.kept[block_id] = payload
        return self.ref, Entry(block_id, 0, bytes(32), 0, len(payload))

    def load(self, ref: BundleRef, entry: Entry) -> bytes:
        return self.kept[entry.block][entry.offset :][: entry.length]


def make_entry(number: int, length: int = 300_000, table: int = 0) -> Entry:
    name = number.to_bytes(8, "big")
    return Entry(BlockId(hashlib.sha256(name).digest()), table, name * 4, 0, length)


def build_manifest(blocks: Blocks, *, chunks: int = 1, **meta: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": b"photo.jpg",
        "size": 300_000 * chunks,
        "mode": 0o100644,
        "uid": 1000,
        "gid": 100,
        "user": "anna",
        "group": "users",
        "mtime_ns": 1_700_000_000_123_456_789,
    }
    entries = tuple(make_entry(i) for i in range(chunks))
    return Manifest(
        FileId(b"f" * 16),
        {NodeId(b"n" * 20): 3},
        b"",
        FileMeta(**fields | meta),
        b"h" * 32,
        ChunkList(0, (blocks.ref,), entries),
        GroupId(b"g" * 32),
        "file",
    )


def read_vectors(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="session")
def keys() -> EpochKeys:
    return EpochKeys.derive(Epoch(b"epoch..1"), b"s" * 32)


@pytest.fixture(scope="session")
def ring(keys: EpochKeys) -> Keyring:
    return Keyring(keys, {keys.epoch: keys}, b"d" * 32)


@pytest.fixture(scope="session")
def device() -> SigningKey:
    return SigningKey(b"k" * 32)


@pytest.fixture
def blocks(keys: EpochKeys) -> Blocks:
    return Blocks(keys)


@pytest.fixture(scope="session")
def stream() -> Callable[[str, int], bytes]:
    return make_stream


@pytest.fixture(scope="session")
def entry() -> Callable[..., Entry]:
    return make_entry


@pytest.fixture
def manifest(blocks: Blocks) -> Callable[..., Manifest]:
    """Builds one: `chunks=` so many chunks, anything else is a field of its FileMeta."""
    return lambda **fields: build_manifest(blocks, **fields)


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], list[dict[str, Any]]]:
    """The golden vectors of that name."""
    return read_vectors
