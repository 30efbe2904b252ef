"""What may happen on the way, and when: drawn from a seed, without a clock or a socket.

What hits single bytes (a flipped bit, a cut, a stall) is drawn as distances in the bytes of one
direction of one connection. So the same seed spoils the same bytes, however the kernel groups them
into reads; only delays depend on the grouping. Every kind of fault has dice of its own: one that is
added moves no other.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

REORDER_S: Final = 0.05  # so much later a datagram comes that lets the next ones pass


@dataclass(frozen=True, slots=True)
class Faults:
    """Nothing happens unless it is said here. `*_every`: bytes between two of them, on average."""

    delay_s: tuple[float, float] = (0.0, 0.0)  # from, to
    corrupt_every: float = math.inf
    # streams
    rate: float = math.inf  # bytes/s of one direction
    cut_every: float = math.inf
    stall_every: float = math.inf
    stall_s: float = math.inf
    # datagrams, as probabilities
    loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0


class Then(Enum):
    """What comes after a piece of a stream."""

    GO_ON = "go on"
    CUT = "cut"
    STALL = "stall"


class Piece(NamedTuple):
    content: bytes
    delay_s: float
    then: Then
    rest: bytes  # comes after the stall, and is still to be judged


class Late(NamedTuple):
    """A datagram as it will be delivered."""

    content: bytes
    delay_s: float


class _Marks:
    """Places in a flow of bytes at which something happens."""

    def __init__(self, dice: random.Random, every: float) -> None:
        self._dice = dice
        self._every = every
        self._left = self._distance()  # bytes that pass before the next one

    def _distance(self) -> float:
        if math.isinf(self._every):
            return math.inf
        return float(int(self._dice.expovariate(1 / self._every)))

    def first(self, size: int) -> int | None:
        """Where in the next `size` bytes the next one is; None: behind them. Moves nothing."""
        return int(self._left) if self._left < size else None

    def hit(self) -> None:
        """The bytes up to the next one have passed, and it has happened."""
        self._left = self._distance()

    def advance(self, size: int) -> None:
        self._left -= size

    def within(self, size: int) -> list[int]:
        """All places in the next `size` bytes, which have passed then."""
        places: list[int] = []
        at = 0
        while (place := self.first(size - at)) is not None:
            places.append(at + place)
            at += place + 1
            self.hit()
        self.advance(size - at)
        return places


class _Way:
    """What streams and datagrams have in common."""

    def __init__(self, faults: Faults, seed: str, told: Counter[str]) -> None:
        """`told` counts what happens."""
        self.faults = faults
        self.told = told
        self._delays = random.Random(f"{seed}/delay")
        self._flips = random.Random(f"{seed}/flip")
        self._corrupt = _Marks(random.Random(f"{seed}/corrupt"), faults.corrupt_every)

    def _delay(self) -> float:
        return self._delays.uniform(*self.faults.delay_s)

    def _spoil(self, content: bytes) -> bytes:
        places = self._corrupt.within(len(content))
        if not places:
            return content
        spoiled = bytearray(content)
        for place in places:
            spoiled[place] ^= 1 << self._flips.randrange(8)
        self.told["flips"] += len(places)
        return bytes(spoiled)


class StreamWay(_Way):
    """One direction of one connection."""

    def __init__(self, faults: Faults, seed: str, told: Counter[str]) -> None:
        super().__init__(faults, seed, told)
        self._cuts = _Marks(random.Random(f"{seed}/cut"), faults.cut_every)
        self._stalls = _Marks(random.Random(f"{seed}/stall"), faults.stall_every)

    def judge(self, content: bytes) -> Piece:
        cut, stall = self._cuts.first(len(content)), self._stalls.first(len(content))
        end, then = len(content), Then.GO_ON
        if cut is not None and (stall is None or cut <= stall):
            end, then = cut, Then.CUT
        elif stall is not None:
            end, then = stall, Then.STALL
        passing, rest = content[:end], content[end:]
        self._cuts.advance(end)
        self._stalls.advance(end)
        if then is Then.STALL:
            self._stalls.hit()
        self.told["bytes"] += end
        if then is not Then.GO_ON:
            self.told[f"{then.value}s"] += 1
        return Piece(self._spoil(passing), self._delay(), then, rest if then is Then.STALL else b"")


class DatagramWay(_Way):
    """One direction between two addresses."""

    def __init__(self, faults: Faults, seed: str, told: Counter[str]) -> None:
        super().__init__(faults, seed, told)
        self._dice = {
            kind: random.Random(f"{seed}/{kind}") for kind in ("loss", "reorder", "duplicate")
        }

    def judge(self, content: bytes) -> list[Late]:
        """None, one or two deliveries."""
        # Every die is cast for every datagram, so that one that is lost moves no later throw.
        lost, reordered, doubled = (
            self._dice[kind].random() < chance
            for kind, chance in (
                ("loss", self.faults.loss),
                ("reorder", self.faults.reorder),
                ("duplicate", self.faults.duplicate),
            )
        )
        spoiled = self._spoil(content)
        delay = self._delay() + (REORDER_S if reordered else 0.0)
        happened = ("lost",) if lost else ("reordered",) * reordered + ("duplicates",) * doubled
        self.told.update(("datagrams", *happened))
        if lost:
            return []
        return [Late(spoiled, delay)] * (2 if doubled else 1)
