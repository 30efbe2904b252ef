"""MOVE, the holder's side: this node leaves, or stays, and every owner hears of it.

Nothing that is kept for others is dropped here. Whoever leaves asks the devices that gave it their
bundles to place them elsewhere; they RELEASE each one when others have it (`moving` is what they do
meanwhile), and until then it is kept and served as ever. What was released lies in the trash for 7
days, and counts as gone: its owner has proofs from others.

    HOME/leaving     an empty file, there while this node leaves

It survives restarts, so that a move of days need not begin anew. At every link that comes up the
owner is told how it stands, "leaving" or "staying": one that was away when somebody changed his
mind hears it then. Who leaves takes nothing new.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Final, Literal, NamedTuple

from p2pstore.durable import replace_file, sync_directory
from p2pstore.errors import NoRoom, P2PStoreError, RemoteProtocolError, Unavailable
from p2pstore.ids import BundleId, NodeId, PublicKey, node_id_of
from p2pstore.maintenance.loops import Loop
from p2pstore.net import Link
from p2pstore.store import HeldStore
from p2pstore.threads import in_thread
from p2pstore.wire import Move, Ok

Why = Literal["leaving", "room", "staying"]

log = logging.getLogger(__name__)

AGAIN_S: Final = 30.0  # after an owner did not answer


class Kept(NamedTuple):
    """What is here of one owner."""

    bundles: int
    bytes: int


class HandingOver:
    def __init__(
        self,
        path: Path,
        held: HeldStore,
        links: Callable[[], Sequence[Link]],
        *,
        me: NodeId,
        pool: Executor,
    ) -> None:
        """`links` are those to everybody that may have given us something."""
        self._path = path
        self._held = held
        self._links = links
        self._me = me
        self._pool = pool
        self._is_leaving = path.exists()
        self._untold: set[NodeId] = set()  # linked since it was last told how it stands
        self._asking: dict[NodeId, asyncio.Lock] = {}  # two questions would overtake each other
        self._wake: Callable[[], None] = lambda: None
        self._told: Callable[[NodeId], None] = lambda _: None

    @property
    def is_leaving(self) -> bool:
        return self._is_leaving

    def refusal(self) -> str | None:
        """Why nothing is taken from others."""
        return "this node is leaving" if self._is_leaving else None

    def woken_by(self, wake: Callable[[], None]) -> None:
        """`wake` makes `turn` run soon."""
        self._wake = wake

    def then(self, told: Callable[[NodeId], None]) -> None:
        """`told` hears of each owner that was told, at a new link, that this node stays."""
        self._told = told

    def kept(self) -> dict[NodeId, Kept]:
        """What is here of whom; what came back from others of our own is nobody's. In a thread."""
        found: dict[NodeId, Kept] = {}
        for one in self._held.oldest():
            owner = node_id_of(PublicKey(one.opener))
            bundles, size = found.get(owner, (0, 0))
            found[owner] = Kept(bundles + 1, size + one.live_bytes)
        found.pop(self._me, None)
        return found

    async def leave(self) -> None:
        """From now on, restarts included."""
        if not self._is_leaving:
            await in_thread(self._pool, replace_file, self._path, b"")
            self._is_leaving = True
            log.info("This node is leaving: what it keeps for others goes elsewhere.")

    async def stay(self) -> None:
        """After all. Who is connected is told at once, the others when they are."""
        if not self._is_leaving:
            return
        await in_thread(self._pool, _remove, self._path)
        self._is_leaving = False
        log.info("This node stays.")
        for owner in await in_thread(self._pool, self.kept):
            self._untold.add(owner)
        self._wake()

    async def tell(self) -> dict[NodeId, P2PStoreError | None]:
        """Ask every owner to move what is here; None for each that does, or why it does not:
        NoRoom when it has no other device at all, anything else may pass."""
        owners = list(await in_thread(self._pool, self.kept))
        answers = await asyncio.gather(*(self._tell(owner) for owner in owners))
        return dict(zip(owners, answers, strict=True))

    async def _tell(self, owner: NodeId) -> P2PStoreError | None:
        try:
            await self.ask(owner, "leaving")
        except P2PStoreError as exc:
            return exc
        return None

    async def ask(self, owner: NodeId, why: Why, bundles: Sequence[BundleId] = ()) -> None:
        """Send MOVE. Unavailable when there is no link; NoRoom and others as the owner says."""
        async with self._asking.setdefault(owner, asyncio.Lock()):
            link = self._link(owner)
            if link is None or (why == "room" and owner in self._untold):
                raise Unavailable("It cannot be reached now.")
            answer, _ = await link.request(Move(tuple(bundles), why))
            if not isinstance(answer, Ok):
                raise RemoteProtocolError(f"{link} answers MOVE with {type(answer).__name__}.")

    def _link(self, node: NodeId) -> Link | None:
        return next((link for link in self._links() if link.node_id == node), None)

    # -- the loop ---------------------------------------------------------------------------------

    def linked(self, node: NodeId) -> None:
        """A link came up. Called in the loop."""
        self._untold.add(node)
        self._wake()

    async def turn(self, loop: Loop) -> float | None:
        """Tell each that was linked how it stands."""
        loop.say("tells owners whether this node stays")
        owners = await in_thread(self._pool, self.kept)
        failed = False
        for node in list(self._untold):
            if node in owners and not await self._tell_how_it_stands(node):
                failed = True
            else:
                self._untold.discard(node)
        return AGAIN_S if failed else None

    async def _tell_how_it_stands(self, node: NodeId) -> bool:
        """False: it must be told again."""
        is_leaving = self._is_leaving
        try:
            await self.ask(node, "leaving" if is_leaving else "staying")
        except NoRoom as exc:
            log.debug("%s", exc)  # noted all the same; told to whoever waits for the end
        except P2PStoreError as exc:
            log.info("An owner was not told whether this node stays: %s", exc)
            return self._link(node) is None  # then it is told at the next link
        if not is_leaving:
            self._told(node)
        return True


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    sync_directory(path.parent)
