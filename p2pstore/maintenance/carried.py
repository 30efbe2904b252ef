"""CARRIED: carriers as holders that prove nothing, behind the face of `swarm.Pusher`.

What asks holders (copying, audits, evictions, collecting, repair) asks carriers in the same words:

    push        the whole bundle is put there as a parcel, and read back
    challenge   the whole parcel is read back, and every block compared
    lock        nobody but this device deletes there: granted for as long as is asked
    release     the parcel is deleted, where that is possible

A parcel larger than a piece of the carrier lies in several. The keys under which it lies are kept
where a holder's receipt is (`Keys`); with a carrier that keeps names they can be told without that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Final

import msgspec

from p2pstore.carriers import MAX_KEY, Carrier, NotThere
from p2pstore.clock import Clock
from p2pstore.content import (
    MAX_PARCEL,
    BundleIndex,
    Parcel,
    SignedLiveMap,
    decode_live_map,
    decode_parcel,
    encode_parcel,
    signed_list,
)
from p2pstore.errors import FormatError, IntegrityError, P2PStoreError, UsageError
from p2pstore.ids import BlockId, BundleId, NodeId, Tag, base32, short
from p2pstore.store import StaleMap
from p2pstore.swarm import LEASE_S, LOCK_S, Pusher, Receipt, Shelf
from p2pstore.threads import in_thread
from p2pstore.wire import Unknown

log = logging.getLogger(__name__)

MAX_PARTS: Final = 256  # of a parcel: pictures of 256 x 256 pixels hold one in 90
KEPT_PARCELS: Final = 2  # in memory, of all carriers: a file's blocks come one window after another

Keys = Callable[[BundleId, NodeId], Sequence[str]]
"""Under which keys a bundle was put with a carrier; none when that is not known (any more)."""

_KEYS = msgspec.json.Decoder(list[str])


def keys_of(receipt: bytes) -> list[str]:
    """What stands in place of a carrier's receipt."""
    try:
        keys = _KEYS.decode(receipt)
    except msgspec.MsgspecError:
        return []
    return keys if len(keys) <= MAX_PARTS and all(len(key) <= MAX_KEY for key in keys) else []


class KeptParcels:
    """The last parcels that blocks were taken from, whatever carriers they came from."""

    def __init__(self) -> None:
        self._parcels: dict[tuple[NodeId, BundleId], Parcel] = {}  # the newest at the end

    def take(self, node: NodeId, bundle_id: BundleId) -> Parcel | None:
        return self._parcels.pop((node, bundle_id), None)

    def put(self, node: NodeId, bundle_id: BundleId, parcel: Parcel) -> None:
        self._parcels[node, bundle_id] = parcel
        while len(self._parcels) > KEPT_PARCELS:
            del self._parcels[next(iter(self._parcels))]


class CarriedBundles:
    """The bundles that one carrier has."""

    def __init__(
        self,
        node: NodeId,
        carrier: Carrier,
        shelf: Shelf,
        *,
        keys: Keys,
        clock: Clock,
        pool: Executor,
        kept: KeptParcels | None = None,
    ) -> None:
        """`node` stands for the carrier where holders have their node id; `kept` is all carriers'
        together."""
        self.node = node
        self._carrier = carrier
        self._shelf = shelf
        self._keys = keys
        self._clock = clock
        self._pool = pool
        self._kept = kept or KeptParcels()

    async def push(self, bundle_id: BundleId, lease_s: int) -> Receipt:
        """The parcel is there, and was read back whole."""
        raw, seq = await in_thread(self._pool, self._pack, bundle_id)
        before = await in_thread(self._pool, self._keys, bundle_id, self.node)
        keys = await self._put(bundle_id, seq, raw)
        if await self._get(keys) != raw:
            await self._delete(keys)
            raise IntegrityError("The carrier gives back other bytes than it was given.")
        await self._delete([key for key in before if key not in keys])  # of an older live map
        until_ms = int((self._clock.wall() + lease_s) * 1000)
        receipt = msgspec.json.encode(keys)
        return Receipt(bundle_id, self.node, seq, len(raw), until_ms, receipt)

    async def check(self, bundle_id: BundleId, seq: int) -> None:
        """Read it back whole: StaleMap, Unknown, IntegrityError when it is not what lies here."""
        parcel = await self._parcel(bundle_id, seq)
        if parcel.live.seq != seq:
            raise StaleMap(bundle_id, parcel.live.seq)
        await in_thread(self._pool, self._compare, parcel)

    async def blocks(
        self, bundle_id: BundleId, seq: int, wanted: Iterable[BlockId]
    ) -> dict[BlockId, bytes]:
        """Those that it has, each compared with its id; Unknown when the bundle is not there."""
        parcel = self._kept.take(self.node, bundle_id) or await self._parcel(bundle_id, seq)
        self._kept.put(self.node, bundle_id, parcel)
        return await in_thread(self._pool, parcel.blocks, wanted)

    async def has(self, bundle_id: BundleId, wanted: Sequence[BlockId]) -> bool:
        """Whether all of these are there now."""
        parcel = await self._parcel(bundle_id, 0)
        return (await in_thread(self._pool, parcel.blocks, wanted)).keys() >= set(wanted)

    async def listed(self, bundle_id: BundleId) -> tuple[BundleIndex, SignedLiveMap | None]:
        parcel = await self._parcel(bundle_id, 0)
        return parcel.index, parcel.signed_map

    async def release(self, bundle_id: BundleId) -> None:
        """What cannot be deleted there is forgotten: it is sealed."""
        keys = await in_thread(self._pool, self._keys, bundle_id, self.node)
        await self._delete(keys)

    def _compare(self, parcel: Parcel) -> None:
        """With our own copy: anybody can sign a list of little with a key of his own, and whoever
        may write to the place can lay it there."""
        place = self._shelf.place(parcel.index.header.bundle_id)
        self._shelf.refuse_stale(place, parcel.live.seq)
        listed = signed_list(self._shelf.index(place))
        if signed_list(parcel.index) != listed or parcel.live != self._shelf.live_map(place):
            raise IntegrityError("The carrier has something else under the bundle's name.")
        parcel.check()

    # -- parcels ----------------------------------------------------------------------------------

    def _pack(self, bundle_id: BundleId) -> tuple[bytes, int]:
        place = self._shelf.place(bundle_id)
        index, live = self._shelf.index(place), self._shelf.live_map(place)
        signed = self._shelf.signed_live_map(place)
        blocks = self._shelf.read_live(place, live.indices())
        self._shelf.refuse_stale(place, live.seq)
        return encode_parcel(index, decode_live_map(signed) if signed else None, blocks), live.seq

    async def _parcel(self, bundle_id: BundleId, seq: int) -> Parcel:
        """As it lies there now, its blocks not compared yet; `seq` helps to find it."""
        keys = await in_thread(self._pool, self._keys, bundle_id, self.node)
        raw = await self._get(keys) if keys else await self._guess(bundle_id, seq)
        try:
            parcel = await in_thread(self._pool, decode_parcel, raw)
        except FormatError as exc:
            raise IntegrityError(f"Bundle {short(bundle_id)}: {exc}") from exc
        if parcel.index.header.bundle_id != bundle_id:
            raise IntegrityError("The carrier gave another bundle.")
        return parcel

    async def _guess(self, bundle_id: BundleId, seq: int) -> bytes:
        """Where nothing is noted, as after a catalog was lost: by the names that are given."""
        for tried in dict.fromkeys((seq, 0)):
            first = self._carrier.key_of(_name(bundle_id, tried, 0))
            if first is None:
                break
            try:
                parts = [await self._carrier.get(first)]
            except NotThere:
                continue
            while len(parts[-1]) == self._carrier.promises.piece and len(parts) < MAX_PARTS:
                key = self._carrier.key_of(_name(bundle_id, tried, len(parts)))
                assert key is not None
                try:
                    parts.append(await self._carrier.get(key))
                except NotThere:
                    break
                _check_length(parts)
            return b"".join(parts)
        raise Unknown(f"Bundle {short(bundle_id)} is not known to be there.")

    async def _put(self, bundle_id: BundleId, seq: int, raw: bytes) -> list[str]:
        piece = self._carrier.promises.piece
        count = -(-len(raw) // piece)
        if count > MAX_PARTS:
            raise UsageError(f"A bundle would need {count} pieces there; the pieces are too small.")
        keys: list[str] = []
        try:
            for part in range(count):
                content = raw[part * piece : (part + 1) * piece]
                keys.append(await self._put_one(_name(bundle_id, seq, part), content))
        except P2PStoreError:
            if not self._carrier.promises.keeps_names:  # else the next try goes on with them
                await self._delete(keys)
            raise
        return keys

    async def _put_one(self, name: str, content: bytes) -> str:
        """In the place of what has rotted there, which nothing else would ever remove."""
        try:
            return await self._carrier.put(name, content)
        except UsageError:
            key = self._carrier.key_of(name)
            if key is None or not self._carrier.promises.deletes:
                raise
            await self._carrier.delete(key)
            return await self._carrier.put(name, content)

    async def _get(self, keys: Sequence[str]) -> bytes:
        parts: list[bytes] = []
        try:
            for key in keys:
                parts.append(await self._carrier.get(key))
                _check_length(parts)
        except NotThere as exc:
            raise Unknown("The carrier does not have it any more.") from exc
        return b"".join(parts)

    async def _delete(self, keys: Sequence[str]) -> None:
        if not self._carrier.promises.deletes:
            return
        for key in keys:
            await self._carrier.delete(key)


def _check_length(parts: Sequence[bytes]) -> None:
    """Each piece is bounded by its carrier; all of them may be 256 times as much."""
    if sum(map(len, parts)) > MAX_PARCEL:
        raise IntegrityError("The carrier gives more than was ever put there.")


def _name(bundle_id: BundleId, seq: int, part: int) -> str:
    return f"{base32(bundle_id)}-{seq}-{part}"


class Keeping(Pusher):
    """Asks holders as `Pusher` does, and carriers in the same words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.carried: Mapping[NodeId, CarriedBundles] = {}

    async def push(
        self, bundle_id: BundleId, tag: Tag, holder: NodeId, *, lease_s: int = LEASE_S
    ) -> Receipt:
        carried = self.carried.get(holder)
        if carried is not None:
            return await carried.push(bundle_id, lease_s)
        return await super().push(bundle_id, tag, holder, lease_s=lease_s)

    async def challenge(self, bundle_id: BundleId, holder: NodeId, seq: int) -> bool:
        carried = self.carried.get(holder)
        if carried is None:
            return await super().challenge(bundle_id, holder, seq)
        await carried.check(bundle_id, seq)
        return True

    async def sample(
        self, bundle_id: BundleId, tag: Tag, holder: NodeId, block_ids: Sequence[BlockId]
    ) -> bool:
        carried = self.carried.get(holder)
        if carried is None:
            return await super().sample(bundle_id, tag, holder, block_ids)
        return await carried.has(bundle_id, block_ids)

    async def lock(
        self, bundle_id: BundleId, holder: NodeId, *, seq: int | None = None, seconds: int = LOCK_S
    ) -> int:
        if holder in self.carried:
            return seconds
        return await super().lock(bundle_id, holder, seq=seq, seconds=seconds)

    async def unlock(self, bundle_id: BundleId, holder: NodeId) -> None:
        if holder not in self.carried:
            await super().unlock(bundle_id, holder)

    async def release(self, bundle_id: BundleId, holder: NodeId) -> None:
        carried = self.carried.get(holder)
        if carried is not None:
            await carried.release(bundle_id)
        else:
            await super().release(bundle_id, holder)

    async def renew(
        self, holder: NodeId, bundles: Sequence[BundleId], *, lease_s: int = LEASE_S
    ) -> tuple[int, Sequence[int | None]]:
        """Nobody else deletes there; whether it is still there audits find out."""
        if holder in self.carried:
            return lease_s, [0] * len(bundles)
        return await super().renew(holder, bundles, lease_s=lease_s)

    async def send_live_map(self, bundle_id: BundleId, holder: NodeId) -> None:
        """A carrier has the older parcel until the next push."""
        if holder not in self.carried:
            await super().send_live_map(bundle_id, holder)

    async def block_list(
        self, bundle_id: BundleId, holder: NodeId
    ) -> tuple[BundleIndex, SignedLiveMap | None]:
        carried = self.carried.get(holder)
        if carried is not None:
            return await carried.listed(bundle_id)
        return await super().block_list(bundle_id, holder)
