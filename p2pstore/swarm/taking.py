"""Answering PUT: a bundle for somebody else, from asking whether there is room to the receipt.

Order: role, signed list, live map, admission - nothing was taken so far -, then the blocks, each
compared with the list in a thread, then all of it durable with its side file, then the proof read
back from the disk, then the receipt. A PUT that is cut off leaves what has come; the next one of
the same bundle goes on from there. Two PUTs of one bundle never run at once: the newer one of the
same node ends the older, whose connection is most likely dead.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.content import (
    BundleIndex,
    LiveMap,
    decode_live_map,
    decode_signed_list,
    live_map_hash,
    verify_live_map,
)
from p2pstore.errors import (
    Busy,
    IntegrityError,
    NoRoom,
    NotAllowed,
    RemoteProtocolError,
)
from p2pstore.ids import BundleId, GroupId, NodeId, PublicKey, Tag, group_id_of, node_id_of, short
from p2pstore.net import Request
from p2pstore.policy import Ask
from p2pstore.store import BundleMissing, HeldStore, StaleMap, Upload
from p2pstore.swarm.access import Gate
from p2pstore.swarm.shelf import BATCH_BLOCKS, BATCH_BYTES, Place, Shelf, live_bytes
from p2pstore.threads import in_thread
from p2pstore.wire import (
    Put,
    PutBlock,
    PutEnd,
    PutReady,
    Receipt,
    ReceiptBody,
    Stale,
    sign_receipt,
)

log = logging.getLogger(__name__)

Admission = Callable[[GroupId, str, int], str | None]
"""(group, role of the peer, bytes) -> why they are not taken, or None. Called in a thread."""

STALL_S: Final = 60.0  # between two blocks, the sender's own disk included


class Taker:
    def __init__(
        self,
        identity: SigningKey,
        shelf: Shelf,
        gate: Gate,
        *,
        pool: Executor,
        clock: Clock,
        admission: Admission,
        kept: Callable[[BundleId, Tag], None],
    ) -> None:
        """`kept` hears of each bundle that is held from now on: its tag is to be announced."""
        self._identity = identity
        self._public_key = PublicKey(bytes(identity.verify_key))
        self._node_id = node_id_of(self._public_key)
        self._shelf = shelf
        self._held: HeldStore = shelf.held
        self._gate = gate
        self._pool = pool
        self._clock = clock
        self._admission = admission
        self._kept = kept
        self._puts: dict[BundleId, tuple[NodeId, asyncio.Task[None]]] = {}
        self._admitting = asyncio.Lock()

    async def take(self, request: Request, message: Put) -> None:
        self._gate.check(request.link, Ask.PUT)
        await self._supersede(message.bundle, request.link.node_id)
        task = asyncio.current_task()
        assert task is not None
        mine = (request.link.node_id, task)
        self._puts[message.bundle] = mine
        try:
            await self._take(request, message)
        finally:
            if self._puts.get(message.bundle) is mine:
                del self._puts[message.bundle]

    async def _supersede(self, bundle_id: BundleId, sender: NodeId) -> None:
        while (older := self._puts.get(bundle_id)) is not None:
            if older[0] != sender:
                raise Busy(f"Another node is sending bundle {short(bundle_id)} now.")
            older[1].cancel()
            await asyncio.wait([older[1]])

    async def _take(self, request: Request, message: Put) -> None:
        index, live, live_map = await in_thread(self._pool, self._judge, request, message)
        begun: list[Upload] = []
        try:
            # Admitted one by one: the next one sees the room that this upload will take.
            async with self._admitting:
                upload = await in_thread(
                    self._pool, self._begin, begun, request, message, index, live, live_map
                )
            await request.reply(PutReady(upload.missing()), final=False)
            nonce = await self._receive(request, upload)
            receipt = await in_thread(
                self._pool, self._finish, upload, live, nonce, request.link.node_id
            )
        except StaleMap as exc:
            await request.reply(Stale(exc.seq))
            return
        finally:
            for one in begun:
                await in_thread(self._pool, one.pause)
        log.debug("Holding bundle %s for %s.", short(message.bundle), request.link)
        self._kept(message.bundle, message.tag)
        await request.reply(Receipt(receipt))

    def _judge(self, request: Request, message: Put) -> tuple[BundleIndex, LiveMap, bytes]:
        """List and live map, and whether the peer may send them at all. Runs in a thread."""
        index = decode_signed_list(request.payload)
        header = index.header
        if header.bundle_id != message.bundle:
            raise RemoteProtocolError("The block list is that of another bundle.")
        self._gate.admit(request.link, Ask.PUT, group_id_of(header.group))
        if self._shelf.bundles.has(message.bundle):
            raise NotAllowed("This node opened that bundle itself.")
        if message.live_map:
            signed = decode_live_map(message.live_map)
            self._gate.admit_map(header, signed)
            live = verify_live_map(signed)
            if live.bundle_id != message.bundle or not live.fits(len(index.blocks)):
                raise IntegrityError("The live map does not fit the bundle.")
        else:
            live = LiveMap.all_live(message.bundle, len(index.blocks))
        if live_bytes(index, live) != message.bytes:
            raise RemoteProtocolError("The bundle has another size than announced.")
        return index, live, message.live_map

    def _begin(
        self,
        begun: list[Upload],
        request: Request,
        message: Put,
        index: BundleIndex,
        live: LiveMap,
        live_map: bytes,
    ) -> Upload:
        """Runs in a thread; adds to `begun`, so that it is let go of whatever happens."""
        group = group_id_of(index.header.group)
        size = 0 if self._held.has(message.bundle) else live_bytes(index, live)
        reason = self._admission(group, request.link.role, size)
        if reason is not None:
            raise NoRoom(f"The bundle is not taken: {reason}.")
        lease_ms = int(self._clock.wall() * 1000) + message.lease_s * 1000
        upload = self._held.begin_put(
            request.payload, message.tag, live_map, lease_ms, message.grants
        )
        begun.append(upload)
        return upload

    async def _receive(self, request: Request, upload: Upload) -> bytes:
        """All blocks up to PUT_END, whose nonce is returned; one batch is written while the next
        one comes."""
        batch: list[tuple[int, bytes]] = []
        size = came = 0
        writing: asyncio.Future[None] | None = None
        loop = asyncio.get_running_loop()
        try:
            while True:
                message, payload = await request.receive(STALL_S)
                if isinstance(message, PutBlock):
                    came += 1
                    if came > len(upload.index.blocks):
                        raise RemoteProtocolError("More blocks than the list names.")
                    batch.append((message.index, payload))
                    size += len(payload)
                    if size < BATCH_BYTES and len(batch) < BATCH_BLOCKS:
                        continue
                elif not isinstance(message, PutEnd):
                    raise RemoteProtocolError("PUT goes on with something else than blocks.")
                if writing is not None:
                    await asyncio.shield(writing)
                writing = loop.run_in_executor(self._pool, _write, upload, batch)
                batch, size = [], 0
                if isinstance(message, PutEnd):
                    await asyncio.shield(writing)
                    return message.nonce
        finally:
            # What has come is kept, also when the link was cut: the next PUT need not send it.
            if writing is not None and not writing.done():
                await asyncio.wait([writing])
            is_sound = writing is None or writing.exception() is None
            if batch and is_sound:
                await in_thread(self._pool, _write, upload, batch)

    def _finish(self, upload: Upload, live: LiveMap, nonce: bytes, verifier: NodeId) -> bytes:
        """Make it durable, read it back, sign. Runs in a thread."""
        upload.finish()
        header = upload.index.header
        place = Place(header.bundle_id, False)
        if not self._held.has(header.bundle_id):
            raise BundleMissing(header.bundle_id, "was released meanwhile")
        proof = self._shelf.prove(place, live.seq, nonce, verifier=verifier, holder=self._node_id)
        body = ReceiptBody(
            group=group_id_of(header.group),
            bundle=header.bundle_id,
            seq=live.seq,
            live_map_hash=live_map_hash(live),
            bytes=live_bytes(upload.index, live),
            holder=self._public_key,
            lease_until_ms=self._held.side(header.bundle_id).lease_until_ms,
            nonce=nonce,
            proof=proof,
        )
        return sign_receipt(body, self._identity)


def _write(upload: Upload, batch: list[tuple[int, bytes]]) -> None:
    for i, block in batch:
        upload.write(i, block)
