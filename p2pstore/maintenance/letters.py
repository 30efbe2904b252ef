"""LETTERS: the group's state and newest heads, left with carriers beside the bundles.

Without a head nothing leads to the manifests, so a copy with a carrier is worth little unless the
head lies there too. A carrier overwrites nothing; so there are two names, and the older letter goes
before the newer one is put:

    heads-a, heads-b    [state, [signed head], count] as MessagePack; the greater count is newer

State and heads are signed, and what is in them is sealed: a letter needs no trust. Only carriers
that keep names and delete have letters; the others acknowledge nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import msgspec

from p2pstore.carriers import Carrier, NotThere
from p2pstore.content import Head
from p2pstore.errors import IntegrityError, P2PStoreError
from p2pstore.ids import NodeId
from p2pstore.maintenance.places import Places
from p2pstore.store import copies

log = logging.getLogger(__name__)

SLOTS: Final = ("heads-a", "heads-b")
MAX_LETTER: Final = 16 << 20  # of thousands of folders; more is none of ours


class Letter(msgspec.Struct, frozen=True, array_like=True):
    state: bytes
    heads: tuple[bytes, ...]
    count: Annotated[int, msgspec.Meta(ge=0)] = 0


_DECODER = msgspec.msgpack.Decoder(Letter)
_ENCODER = msgspec.msgpack.Encoder()


class Letters:
    def __init__(
        self,
        places: Places,
        *,
        state: Callable[[], tuple[bytes, tuple[int, int]]],
        heads: Callable[[], Sequence[tuple[bytes, Head]]],
    ) -> None:
        """`state`: encoded, and its (generation, seq); `heads`: the newest, signed, with what they
        say."""
        self._places = places
        self._state = state
        self._heads = heads
        self._left: dict[NodeId, tuple[bytes, tuple[bytes, ...]]] = {}  # what lies with each

    async def tell(self) -> list[copies.HeadAck]:
        """Leave a letter where the last one is not the newest; what all of them have now."""
        state, order = self._state()
        heads = self._heads()
        said = (state, tuple(raw for raw, _ in heads))
        acks: list[copies.HeadAck] = []
        for place in self._places.all():
            if not place.keeps_letters:
                continue
            node = place.bundles.node
            if self._left.get(node) != said:
                try:
                    await _leave(place.carrier, *said)
                except P2PStoreError as exc:
                    log.info("%s keeps the older heads: %s", place.name, exc)
                    continue
                self._left[node] = said
            acks.extend(
                copies.HeadAck(node, head.folder, head.incarnation, head.seq, *order)
                for _, head in heads
            )
        return acks

    async def read(self) -> list[Letter]:
        """What lies with all carriers; nothing in it has been verified."""
        found: list[Letter] = []
        for place in self._places.all():
            try:
                found.extend([letter for letter in await _both(place.carrier) if letter])
            except P2PStoreError as exc:
                log.info("%s tells no heads: %s", place.name, exc)
        return found


async def _leave(carrier: Carrier, state: bytes, heads: tuple[bytes, ...]) -> None:
    there = await _both(carrier)
    counts = [-1 if letter is None else letter.count for letter in there]
    slot = SLOTS[counts.index(min(counts))]
    raw = _ENCODER.encode(Letter(state, heads, max(counts) + 1))
    key = carrier.key_of(slot)
    assert key is not None
    await carrier.delete(key)
    await carrier.put(slot, raw)
    if await carrier.get(key) != raw:
        raise IntegrityError("The carrier gives back other bytes than it was given.")


async def _both(carrier: Carrier) -> list[Letter | None]:
    """In the order of the slots; None for one that is not there, or is none of ours."""
    found: list[Letter | None] = []
    for slot in SLOTS:
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
