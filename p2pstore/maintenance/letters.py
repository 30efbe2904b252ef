"""LETTERS: the group's state and newest heads, left with carriers beside the bundles.

Without a head nothing leads to the manifests, so a copy with a carrier is worth little unless the
head lies there too. A carrier overwrites nothing; so there are two names, and the older letter goes
before the newer one is put:

    heads-GROUP-a, -b    [state, [signed head], count] as MessagePack; the greater count is newer
                         GROUP: the first 16 bytes of the group's id in base32

State and heads are signed, and what is in them is sealed: a letter needs no trust. Only carriers
that keep names and delete have letters; the others acknowledge nothing.

Several devices may use one place. So the names are the group's, whose words are all that is needed
to find them; and who writes takes up first what another device has left, and passes it on: nothing
is overwritten whose heads are not in the new letter.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Final

import msgspec

from p2pstore.carriers import Carrier, NotThere
from p2pstore.content import Head
from p2pstore.errors import IntegrityError, P2PStoreError
from p2pstore.ids import GroupId, NodeId, base32
from p2pstore.maintenance.places import Place, Places
from p2pstore.store import copies

log = logging.getLogger(__name__)

MAX_COUNT: Final = (1 << 63) - 1  # reached only where somebody else writes letters
MAX_LETTER: Final = 16 << 20  # of thousands of folders; more is none of ours


class Letter(msgspec.Struct, frozen=True, array_like=True):
    state: bytes
    heads: tuple[bytes, ...]
    count: Annotated[int, msgspec.Meta(ge=0)] = 0


def slots_of(group: GroupId) -> tuple[str, str]:
    name = base32(group[:16])
    return f"heads-{name}-a", f"heads-{name}-b"


_DECODER = msgspec.msgpack.Decoder(Letter)
_ENCODER = msgspec.msgpack.Encoder()


class Letters:
    def __init__(
        self,
        places: Places,
        *,
        group: GroupId,
        state: Callable[[], tuple[bytes, tuple[int, int]]],
        heads: Callable[[], Sequence[tuple[bytes, Head]]],
        take: Callable[[Letter], Awaitable[object]],
    ) -> None:
        """`state`: encoded, and its (generation, seq); `heads`: the newest, signed, with what they
        say; `take` believes of a letter what may be believed: the other two know it then."""
        self._places = places
        self._slots = slots_of(group)
        self._take = take
        self._state = state
        self._heads = heads
        self._left: dict[NodeId, tuple[bytes, tuple[bytes, ...]]] = {}  # what lies with each

    async def tell(self) -> list[copies.HeadAck]:
        """Leave a letter where the last one is not the newest; what all of them have now."""
        lettered = [place for place in self._places.all() if place.keeps_letters]
        for place in lettered:
            if self._left.get(place.bundles.node) != self._said():
                await self._learn(place)
        _, order = self._state()
        said, heads = self._said(), self._heads()
        acks: list[copies.HeadAck] = []
        for place in lettered:
            node = place.bundles.node
            if self._left.get(node) != said:
                try:
                    await self._leave(place.carrier, *said)
                except P2PStoreError as exc:
                    log.info("%s keeps the older heads: %s", place.name, exc)
                    continue
                self._left[node] = said
            acks.extend(
                copies.HeadAck(node, head.folder, head.incarnation, head.seq, *order)
                for _, head in heads
            )
        return acks

    def _said(self) -> tuple[bytes, tuple[bytes, ...]]:
        return self._state()[0], tuple(raw for raw, _ in self._heads())

    async def _learn(self, place: Place) -> None:
        """What another device has left there, before it is overwritten."""
        try:
            there = await self._both(place.carrier)
        except P2PStoreError:
            return  # nor can anything be left there
        for letter in there:
            if letter is not None and (letter.state, letter.heads) != self._said():
                await self._take(letter)

    async def read(self) -> None:
        """Take up what lies with all carriers."""
        for place in self._places.all():
            try:
                there = await self._both(place.carrier)
            except P2PStoreError as exc:
                log.info("%s tells no heads: %s", place.name, exc)
                continue
            for letter in there:
                if letter is not None:
                    await self._take(letter)

    async def _leave(self, carrier: Carrier, state: bytes, heads: tuple[bytes, ...]) -> None:
        there = await self._both(carrier)
        counts = [-1 if letter is None else letter.count for letter in there]
        slot = self._slots[counts.index(min(counts))]
        raw = _ENCODER.encode(Letter(state, heads, min(max(counts) + 1, MAX_COUNT)))
        key = carrier.key_of(slot)
        assert key is not None
        await carrier.delete(key)
        await carrier.put(slot, raw)
        if await carrier.get(key) != raw:
            raise IntegrityError("The carrier gives back other bytes than it was given.")

    async def _both(self, carrier: Carrier) -> list[Letter | None]:
        """In the order of the slots; None for one that is not there, or is none of ours."""
        found: list[Letter | None] = []
        for slot in self._slots:
            key = carrier.key_of(slot)
            try:
                raw = b"" if key is None else await carrier.get(key)
            except (NotThere, IntegrityError):
                raw = b""
            found.append(_decode(raw))
        return found


def _decode(raw: bytes) -> Letter | None:
    if not raw or len(raw) > MAX_LETTER:
        return None
    try:
        return _DECODER.decode(raw)
    except (msgspec.MsgspecError, RecursionError):
        return None
