"""Asking one peer for blocks: a signed GET, and its answers checked before anybody sees them.

At most 1,024 blocks are wanted from one peer at a time, over all requests; `Lanes` keeps that count
for all who ask in this program. Ids are compared in a thread, some blocks at a time.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Final, Protocol

from nacl.signing import SigningKey

from p2pstore.clock import Clock
from p2pstore.content import MAX_BLOCK, block_id_of
from p2pstore.errors import IntegrityError, RemoteProtocolError
from p2pstore.ids import BlockId, BundleId, NodeId, PublicKey, Tag
from p2pstore.net import Address, Link
from p2pstore.swarm.shelf import BATCH_BLOCKS, BATCH_BYTES
from p2pstore.threads import in_thread
from p2pstore.wire import MAX_WANTED, BlockReply, Get, GetDone, GetRequest, sign_get

VALID_MS: Final = 10 * 60_000  # how long a request may travel and be answered
ANSWER_S: Final = 20.0  # silence between two answers: the peer stalls
SPLIT: Final = 256  # blocks asked for at once; four such requests are a peer's 1,024
CHECK_BYTES: Final = BATCH_BYTES


class Peers(Protocol):
    """What of net.Connections is used here."""

    def links(self) -> list[Link]: ...
    def get(self, node_id: NodeId) -> Link | None: ...
    async def connect(
        self, target: NodeId | Address, addresses: Sequence[Address] = ()
    ) -> Link: ...


class Lanes:
    """Keeps what we want from each peer at a time below MAX_WANTED blocks."""

    def __init__(self) -> None:
        self._free: weakref.WeakKeyDictionary[Link, asyncio.Semaphore]
        self._free = weakref.WeakKeyDictionary()

    @asynccontextmanager
    async def one(self, link: Link) -> AsyncIterator[None]:
        """Wait for the right to ask for SPLIT more blocks."""
        lane = self._free.get(link)
        if lane is None:
            lane = self._free[link] = asyncio.Semaphore(MAX_WANTED // SPLIT)
        async with lane:
            yield


class Asker:
    """Signs requests in our name."""

    def __init__(
        self,
        identity: SigningKey,
        chain: Callable[[], bytes],
        clock: Clock,
        random: Callable[[int], bytes],
    ) -> None:
        self._identity = identity
        self._public_key = PublicKey(bytes(identity.verify_key))
        self._chain = chain
        self._clock = clock
        self._random = random

    def sign(
        self,
        bundle: BundleId,
        tag: Tag,
        blocks: Sequence[BlockId],
        *,
        token: bytes = b"",
        budget: int | None = None,
    ) -> bytes:
        """An encoded SignedGet. No `blocks`: all that we may have of the bundle."""
        return sign_get(
            GetRequest(
                asker=self._public_key,
                chain=self._chain(),
                token=token,
                tag=tag,
                bundle=bundle,
                blocks=tuple(blocks),
                request_id=self._random(16),
                expires_ms=int(self._clock.wall() * 1000) + VALID_MS,
                budget=len(blocks) * MAX_BLOCK if budget is None else budget,
            ),
            self._identity,
        )


async def get_blocks(
    link: Link,
    request: bytes,
    wanted: Sequence[BlockId],
    *,
    hops: int,
    pool: Executor,
    budget: int,
    timeout_s: float = ANSWER_S,
) -> AsyncGenerator[dict[BlockId, bytes], None]:
    """Blocks as they come, some at a time, each equal to its id. Use it with `aclosing`.

    `wanted` empty: whatever the peer sends, up to `budget` bytes. A block that was not asked for,
    one that came before or more than the budget is RemoteProtocolError, a wrong one IntegrityError:
    either way the peer lies.
    """
    left = set(wanted)
    came: set[BlockId] = set()
    batch: list[tuple[BlockId, bytes]] = []
    size = 0
    async with link.exchange(Get(request, hops)) as answers:
        while not answers.is_done:
            for message, payload in await answers.receive_some(CHECK_BYTES, timeout_s):
                if isinstance(message, GetDone):
                    continue
                if not isinstance(message, BlockReply):
                    raise RemoteProtocolError(f"{link} answers GET with {type(message).__name__}.")
                block_id = message.block_id
                if block_id in came or (wanted and block_id not in left):
                    raise RemoteProtocolError(f"{link} sends blocks that nobody asked for.")
                came.add(block_id)
                left.discard(block_id)
                budget -= len(payload)
                if budget < 0:
                    raise RemoteProtocolError(f"{link} sends more than it may.")
                batch.append((block_id, payload))
                size += len(payload)
            if batch and (size >= CHECK_BYTES or len(batch) >= BATCH_BLOCKS or answers.is_done):
                await in_thread(pool, _compare, batch, str(link))
                yield dict(batch)
                batch, size = [], 0


def _compare(batch: Sequence[tuple[BlockId, bytes]], sender: str) -> None:
    for block_id, block in batch:
        if len(block) > MAX_BLOCK or block_id_of(block) != block_id:
            raise IntegrityError(f"{sender} sent a block that is not what its id says.")
