"""Blocks and bundles for tests; the store does not look into blocks, so they need no sealing."""

from __future__ import annotations

import hashlib

from nacl.signing import SigningKey

from p2pstore.content import (
    BundleHeader,
    BundleIndex,
    Kind,
    LiveMap,
    SealedBlock,
    SignedLiveMap,
    block_id_of,
    sign_live_map,
)
from p2pstore.ids import BundleId, PublicKey
from p2pstore.store import BundleStore

KEY = SigningKey(b"opener".ljust(32, b"."))
OTHER_KEY = SigningKey(b"somebody else".ljust(32, b"."))
OPENER = PublicKey(bytes(KEY.verify_key))
GROUP = PublicKey(bytes(SigningKey(b"group".ljust(32, b".")).verify_key))


def blocks(number: int, size: int = 5000, seed: int = 0) -> list[SealedBlock]:
    """Different blocks; `size` grows a little from one to the next."""
    made = []
    for i in range(number):
        stamp = hashlib.sha256(f"{seed}/{i}".encode()).digest()
        block = (stamp * (1 + size // 32))[: size + i % 7]
        made.append(SealedBlock(block_id_of(block), stamp, block))
    return made


def header(name: str = "one", *, group: PublicKey = GROUP, key: SigningKey = KEY) -> BundleHeader:
    bundle_id = BundleId(hashlib.sha256(name.encode()).digest())
    return BundleHeader(bundle_id, group, PublicKey(bytes(key.verify_key)), Kind.DATA, 1_700)


def sealed(
    store: BundleStore, name: str = "one", number: int = 10, size: int = 5000
) -> tuple[BundleIndex, list[SealedBlock]]:
    made = blocks(number, size, seed=sum(name.encode()))
    bundle = store.create(header(name), KEY)
    bundle.append(made)
    return bundle.seal(), made


def dead(index: BundleIndex, old: LiveMap, gone: set[int]) -> SignedLiveMap:
    """The next map, in which these are dead as well."""
    return sign_live_map(old.without(gone), KEY)
