"""The newest heads beside the bundles: there at every instant, and never older than they were."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pstore.content import Head
from p2pstore.errors import Unavailable
from p2pstore.ids import FolderId, GroupId, NodeId
from p2pstore.maintenance import Letter, Letters
from p2pstore.maintenance.letters import slots_of
from tests.carriers.faulty import Fault, Faults, FaultyCarrier
from tests.carriers.memory import MemoryCarrier

FOLDER = FolderId(b"f" * 16)
ME = NodeId(b"m" * 20)
GROUP = GroupId(b"g" * 32)


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
    """State and one head, counted up; what others have left is passed on."""

    def __init__(self, name: bytes = b"head", group: GroupId = GROUP) -> None:
        self.seq = 1
        self.name = name
        self.group = group
        self.learnt: dict[bytes, int] = {}  # heads of others

    def state(self) -> tuple[bytes, tuple[int, int]]:
        return b"state", (1, 4)

    def heads(self) -> list[tuple[bytes, Head]]:
        known = {self.name: self.seq, **self.learnt}
        return [(b"%s %d" % h, Head(FOLDER, ME, 1, h[1], b"manifest")) for h in known.items()]

    async def take(self, letter: Letter) -> None:
        for raw in letter.heads:
            name, seq = raw.split()
            if name != self.name:
                self.learnt[name] = max(int(seq), self.learnt.get(name, 0))


def letters(carrier: Any, group: Group) -> Letters:
    place: Any = OnePlace(carrier)
    return Letters(place, group=group.group, state=group.state, heads=group.heads, take=group.take)


async def lying(carrier: Any, group: GroupId = GROUP) -> list[Letter]:
    """As somebody finds it who has nothing but the words."""
    found: list[Letter] = []

    async def take(letter: Letter) -> None:
        found.append(letter)

    place: Any = OnePlace(carrier)
    nobody = Group()
    told = Letters(place, group=group, state=nobody.state, heads=nobody.heads, take=take)
    await told.read()
    return found


async def newest(carrier: Any) -> bytes:
    found = await lying(carrier)
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
    assert set(carrier.stored) == set(slots_of(GROUP))


async def test_what_lies_there_already_is_not_written_again() -> None:
    group, faults = Group(), Faults()
    told = letters(FaultyCarrier(MemoryCarrier(), faults), group)
    first = await told.tell()
    calls = faults.calls
    assert await told.tell() == first
    assert faults.calls == calls


@pytest.mark.parametrize("fault", [Fault.FAIL, Fault.LOSE, Fault.TRUNCATE, Fault.LATE])
@pytest.mark.parametrize("call", range(1, 8))
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
    for slot, raw in zip(slots_of(GROUP), (b"\xc1 no letter", b"\x93" * 5000), strict=True):
        carrier.stored[slot] = raw
    assert await lying(carrier) == []
    (ack,) = await letters(carrier, Group()).tell()
    assert ack.seq == 1


async def test_a_carrier_that_is_away_stops_nothing() -> None:
    faults = Faults(always=Fault.FAIL)
    carrier = FaultyCarrier(MemoryCarrier(), faults)
    assert await letters(carrier, Group()).tell() == []
    assert await lying(carrier) == []
    with pytest.raises(Unavailable):
        await carrier.get("heads-a")


def test_slots_are_names_that_carriers_take(tmp_path: Path) -> None:
    from p2pstore.carriers.config import is_harmless

    assert all(map(is_harmless, slots_of(GROUP)))


async def test_two_devices_with_one_disk_keep_each_others_heads() -> None:
    carrier, first, second = MemoryCarrier(), Group(b"first"), Group(b"second")
    ours, theirs = letters(carrier, first), letters(carrier, second)
    for _ in range(4):
        await ours.tell()
        for _ in range(3):
            second.seq += 1
            await theirs.tell()
        found = {raw for letter in await lying(carrier) for raw in letter.heads}
        assert {b"first %d" % first.seq, b"second %d" % second.seq} <= found
        first.seq += 1


async def test_two_groups_with_one_disk_do_not_meet() -> None:
    other = GroupId(b"o" * 32)
    carrier, friend = MemoryCarrier(), Group(b"friend", other)
    await letters(carrier, Group()).tell()
    told = letters(carrier, friend)
    for friend.seq in range(1, 4):
        await told.tell()
    assert await newest(carrier) == b"head 1"
    assert friend.learnt == {}
    assert {raw for letter in await lying(carrier, other) for raw in letter.heads} == {
        b"friend 2",
        b"friend 3",
    }


async def test_a_letter_with_an_impossible_number_stops_nothing() -> None:
    group, carrier = Group(), MemoryCarrier()
    for slot in slots_of(GROUP):
        carrier.stored[slot] = msgspec.msgpack.encode(Letter(b"state", (), (1 << 64) - 1))
    told = letters(carrier, group)
    for group.seq in (1, 2, 3):
        assert await told.tell()
    assert {raw for letter in await lying(carrier) for raw in letter.heads} >= {b"head 3"}
