"""Which of our blocks other devices name: a `.f` that was copied there is a reference to them.

Each device is asked for its newest heads; when it last answered is remembered (kv "collect:shown",
{node id: age in ms}). Of the indexes that all known heads name every manifest is read, from here or
from wherever its block is. What cannot be read is raised; only of a device that was revoked nothing
is read any more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from itertools import islice

import msgspec

from p2pstore.content import (
    IndexLine,
    Keyring,
    Manifest,
    decode_head,
    decode_lines,
    open_manifest,
    verify_head,
    walk,
)
from p2pstore.errors import P2PStoreError, Unavailable
from p2pstore.ids import BlockId, BundleId, NodeId, short
from p2pstore.maintenance.collect.roots import BATCH, named_by
from p2pstore.maintenance.filing import Judge, Local, Place
from p2pstore.store import Catalog, folders

log = logging.getLogger(__name__)

Named = frozenset[tuple[BundleId, BlockId]]

_KEY = "collect:shown"
_SHOWN = msgspec.msgpack.Decoder(dict[NodeId, int])
_NOTHING: Named = frozenset()


class Others:
    """The other devices of the group."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        me: NodeId,
        devices: Callable[[], Sequence[NodeId]],
        pull: Callable[[NodeId], Awaitable[object]],
        heads: Callable[[], Sequence[bytes]],
        ring: Callable[[], Keyring],
        judge: Judge,
    ) -> None:
        """`devices`: those not revoked. `pull` has one of them tell its newest heads, which then
        are among `heads`, all that this node knows, encoded."""
        self._catalog = catalog
        self._me = me
        self._devices = devices
        self._pull = pull
        self._heads = heads
        self._ring = ring
        self._judge = judge
        # What a manifest names of these bundles of ours, by the place of its block: indexes of a
        # device share most. Of other bundles it says nothing.
        self._read: dict[tuple[BlockId, int], Named] = {}
        self._ours: frozenset[BundleId] = frozenset()

    async def ask(self, age_ms: int) -> int:
        """Have all show what they have; since when all of them have at the least: 0 is never."""
        shown = self._catalog.view(lambda db: folders.kv_get(db, _KEY))
        known = {} if shown is None else _SHOWN.decode(shown)
        devices = self._devices()
        for device in devices:
            try:
                await self._pull(device)
            except P2PStoreError as exc:
                log.debug("%s does not show its indexes now: %s", short(device), exc)
            else:
                known[device] = age_ms
        raw = msgspec.msgpack.encode(
            {device: known[device] for device in devices if device in known}
        )
        await self._catalog.awrite(lambda db: folders.kv_set(db, _KEY, raw))
        return min((known.get(device, 0) for device in devices), default=age_ms)

    def named(self, local: Local, ours: Collection[BundleId]) -> Named:
        """Blocks of our bundles that others name. Blocks; Unavailable when one cannot be read."""
        if not self._ours.issuperset(ours):
            self._read, self._ours = {}, frozenset(ours)
        found: set[tuple[BundleId, BlockId]] = set()
        read: dict[tuple[BlockId, int], Named] = {}
        for raw in self._heads():
            manifest = self._index(raw)
            if manifest is None:
                continue
            lines = decode_lines(_contents(manifest, local))
            while batch := list(islice(lines, BATCH)):
                read.update(self._of_lines(batch, local))
        for names in read.values():
            found |= names
        self._read = read  # what no index has any more is forgotten
        return frozenset(found)

    def _index(self, raw: bytes) -> Manifest | None:
        """What a head names; None for a head of ours, which the catalog knows better."""
        signed = decode_head(raw)
        head = verify_head(signed)
        if head.device == self._me:
            return None
        if not self._judge(signed.signer, signed.chain):
            log.info("The index of %s is not read: it was revoked.", short(head.device))
            return None
        return open_manifest(head.manifest, self._ring()).manifest

    def _of_lines(
        self, lines: Sequence[IndexLine], local: Local
    ) -> dict[tuple[BlockId, int], Named]:
        places: list[Place] = [(line.ref, line.entry) for line in lines if line.ref and line.entry]
        gone = {
            (e.block, e.offset) for line in lines if line.kind == "deleted" and (e := line.entry)
        }
        found: dict[tuple[BlockId, int], Named] = {}
        fresh: list[Place] = []
        for ref, entry in places:
            key = entry.block, entry.offset
            if key in self._read:
                found[key] = self._read[key]
            else:
                fresh.append((ref, entry))
        for place, raw in zip(fresh, local.load_many(fresh), strict=True):
            entry = place[1]
            if raw is None and (entry.block, entry.offset) in gone:
                continue  # a deleted file, whose days over there are over
            if raw is None:
                raise Unavailable("A manifest that another device's index names cannot be read.")
            found[entry.block, entry.offset] = self._of_manifest(raw, place, local)
        return found

    def _of_manifest(self, raw: bytes, place: Place, local: Local) -> Named:
        manifest = open_manifest(raw, self._ring()).manifest
        names = frozenset(
            (ref.bundle_id, entry.block)
            for ref, entry in named_by(manifest, place, local.load)
            if ref.bundle_id in self._ours
        )
        return names or _NOTHING


def _contents(manifest: Manifest, local: Local) -> Iterator[bytes]:
    for _, ref, entry in walk(manifest.chunks, local.load):
        yield local.load(ref, entry)
