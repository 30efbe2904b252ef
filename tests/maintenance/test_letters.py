"""The newest heads beside the bundles: there at every instant, and never older than they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p2pstore.content import Head
from p2pstore.errors import Unavailable
from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance import Letters
from p2pstore.maintenance.letters import SLOTS
from tests.carriers.faulty import Fault, Faults, FaultyCarrier
from tests.carriers.memory import MemoryCarrier

FOLDER = FolderId(b"f" * 16)
ME = NodeId(b"m" * 20)


class OnePlace:
    """What of maintenance.Places is used."""

    def __init__(self, carrier: Any) -> None:
        self.name = "usb"
        self.carrier = carrier
        self.bundles = self
        self.node = NodeId(b"u" * 20)
        self.keeps_letters = carrier.promises.keeps_names and carrier.promises.deletes

    def all(self) -> Sequence[OnePlace]:
        return [self]


class Group:
    """State and one head, counted up."""

    def __init__(self) -> None:
        self.seq = 1

    def state(self) -> tuple[bytes, tuple[int, int]]:
        return b"state", (1, 4)

    def heads(self) -> list[tuple[bytes, Head]]:
        return [(b"head %d" % self.seq, Head(FOLDER, ME, 1, self.seq, b"manifest"))]


def letters(carrier: Any, group: Group) -> Letters:
    place: Any = OnePlace(carrier)
    return Letters(place, state=group.state, heads=group.heads)


async def newest(carrier: Any) -> bytes:
    found = await letters(carrier, Group()).read()
    return max(found, key=lambda letter: letter.count).heads[0]


async def test_a_letter_acknowledges_what_is_in_it() -> None:
    group, carrier = Group(), MemoryCarrier()
    (ack,) = await letters(carrier, group).tell()
    assert (ack.holder, ack.folder, ack.incarnation, ack.seq) == (b"u" * 20, FOLDER, 1, 1)
    assert (ack.generation, ack.state_seq) == (1, 4)
    assert await newest(carrier) == b"head 1"


async def test_the_last_two_lie_there_and_nothing_else() -> None:
    group, carrier = Group(), MemoryCarrier()
    told = letters(carrier, group)
    for group.seq in range(1, 6):
        await told.tell()
        assert await newest(carrier) == b"head %d" % group.seq
    assert set(carrier.stored) == set(SLOTS)


async def test_what_lies_there_already_is_not_written_again() -> None:
    group, faults = Group(), Faults()
    told = letters(FaultyCarrier(MemoryCarrier(), faults), group)
    first = await told.tell()
    calls = faults.calls
    assert await told.tell() == first
    assert faults.calls == calls


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.LOSE, Fault.TRUNCATE, Fault.LATE])
@pytest.mark.parametrize("call", range(1, 6))
async def test_a_letter_survives_whatever_happens_to_the_next(fault: Fault, call: int) -> None:
    group, inner, faults = Group(), MemoryCarrier(), Faults()
    told = letters(FaultyCarrier(inner, faults), group)
    for group.seq in (1, 2):
        await told.tell()
    faults.at = {faults.calls + call: fault}
    group.seq = 3
    acks = await told.tell()
    there = await newest(inner)
    assert there == (b"head 3" if acks else there)
    assert there in (b"head 2", b"head 3")


@pytest.mark.parametrize("missing", ["keeps_names", "deletes"])
async def test_a_carrier_that_cannot_keep_letters_acknowledges_nothing(missing: str) -> None:
    carrier = MemoryCarrier(**{missing: False})
    assert await letters(carrier, Group()).tell() == []
    assert not carrier.stored


async def test_what_somebody_else_put_there_is_no_letter() -> None:
    carrier = MemoryCarrier()
    for slot, raw in zip(SLOTS, (b"\xc1 no letter", b"\x93" * 5000), strict=True):
        carrier.stored[slot] = raw
    assert await letters(carrier, Group()).read() == []
    (ack,) = await letters(carrier, Group()).tell()
    assert ack.seq == 1


async def test_a_carrier_that_is_away_stops_nothing() -> None:
    faults = Faults(always=Fault.FAIL)
    carrier = FaultyCarrier(MemoryCarrier(), faults)
    assert await letters(carrier, Group()).tell() == []
    assert await letters(carrier, Group()).read() == []
    with pytest.raises(Unavailable):
        await carrier.get("heads-a")


def test_slots_are_names_that_carriers_take(tmp_path: Path) -> None:
    from p2pstore.carriers.config import is_harmless

    assert all(map(is_harmless, SLOTS))
