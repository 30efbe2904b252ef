"""Which part of the key space was announced when, what is due, and whether all will be in time.

A part is the tags that begin with the same bits; there are so many parts that each has about
PART_TAGS. Every part is due again `every_s` after it was told, the one told longest ago first, so
that a sweep that was broken off goes on where it stopped. What it was told the network forgets
after `lifetime_s`. No clock here: `now` is wall time in seconds, as records expire by it.

Saved state: a MessagePack array [version (1), mark, bits, [ms at which each part was told, 0 =
never, ...]]. `mark` is the caller's: another one means that what was told is true no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta

from p2pstore.ids import Tag

VERSION: Final = 1
PART_TAGS: Final = (
    1024  # some twenty datagrams to each node: seconds of work, a second lost at most
)
MAX_BITS: Final = 12  # 4,096 parts: beyond four million tags the parts grow
MARGIN_S: Final = 3600.0  # a laptop that sleeps for an hour is not late yet
RESUMED_PARTS: Final = 8  # a shorter sweep is rather made anew: others forget too


class _Saved(msgspec.Struct, frozen=True, array_like=True):
    version: int
    mark: bytes
    bits: Annotated[int, Meta(ge=0, le=MAX_BITS)]
    told_ms: Annotated[tuple[int, ...], Meta(max_length=1 << MAX_BITS)]


class Outlook(NamedTuple):
    """What will be, at the pace so far. Times are wall seconds."""

    due: int  # parts that are to be told now
    ends: float  # when these will have been told
    late: int  # parts that the network will have forgotten before their turn comes


class Sweep:
    def __init__(self, now: float, *, every_s: float, lifetime_s: float) -> None:
        self._every_s = every_s
        self._lifetime_s = lifetime_s
        self._began = now
        self._bits = 0
        self._told = [0.0]
        self._counts = [0]
        self._pace_s = 0.0  # a part with tags takes so long

    # -- what there is ------------------------------------------------------------------------

    def lay_out(self, tags: Iterable[Tag]) -> list[list[Tag]]:
        """All tags by part, in ascending order; the parts follow the number of tags."""
        ordered = sorted(set(tags))
        wanted = math.ceil(math.log2(max(1, len(ordered) / PART_TAGS)))
        self._divide(min(MAX_BITS, wanted))
        parts: list[list[Tag]] = [[] for _ in self._told]
        for tag in ordered:
            parts[self.part_of(tag)].append(tag)
        self._counts = [len(part) for part in parts]
        return parts

    def part_of(self, tag: Tag) -> int:
        return int.from_bytes(tag[:2], "big") >> (16 - self._bits)

    def _divide(self, bits: int) -> None:
        """Into 2**bits parts. A part that takes in others is as old as the oldest of them."""
        while self._bits < bits:
            self._told = [told for told in self._told for _ in range(2)]
            self._bits += 1
        while self._bits > bits:
            pairs = zip(self._told[::2], self._told[1::2], strict=True)
            self._told = [min(pair) for pair in pairs]
            self._bits -= 1
        self._counts = [0] * len(self._told)

    @property
    def keys(self) -> int:
        return sum(self._counts)

    @property
    def parts(self) -> int:
        """Those with tags."""
        return sum(1 for count in self._counts if count)

    @property
    def oldest(self) -> float:
        """When the part was told that was told longest ago; 0: never."""
        return min((told for told, n in zip(self._told, self._counts, strict=True) if n), default=0)

    # -- what is to be done -------------------------------------------------------------------

    def due(self, now: float) -> list[int]:
        """The parts whose turn has come, told longest ago first."""
        return [part for part in self._order() if self._is_due(part, now)]

    def _is_due(self, part: int, now: float) -> bool:
        # A clock that was set back leaves times in the future: they say nothing.
        return not max(0.0, now - self._every_s) < self._told[part] <= now

    def next_due(self, now: float) -> float:
        """Seconds until a part is due; `every_s` when there is none with tags."""
        if self.due(now):
            return 0.0
        return min(
            (self._told[part] + self._every_s - now for part in self._order()),
            default=self._every_s,
        )

    def told(self, part: int, now: float, took_s: float) -> None:
        self._told[part] = now
        self._pace_s = took_s if not self._pace_s else 0.7 * self._pace_s + 0.3 * took_s

    def forget(self) -> None:
        """Nothing that was told is true any more."""
        self._told = [0.0] * len(self._told)

    def outlook(self, now: float) -> Outlook:
        """Each part in its turn, one after the other, none before it is due."""
        due = set(self.due(now))
        at, ends, late = now, now, 0
        for part in self._order():
            told = self._told[part]
            if part not in due:
                at = max(at, told + self._every_s)
            at += self._pace_s
            if part in due:
                ends = at
            # What was forgotten while this node was off is not late because of that.
            if at > max(told, self._began) + self._lifetime_s - MARGIN_S:
                late += 1
        return Outlook(len(due), ends, late)

    def _order(self) -> list[int]:
        having = [part for part, count in enumerate(self._counts) if count]
        return sorted(having, key=lambda part: self._told[part])

    # -- across restarts ----------------------------------------------------------------------

    def encode(self, mark: bytes) -> bytes:
        told_ms = tuple(int(told * 1000) for told in self._told)
        return msgspec.msgpack.encode(_Saved(VERSION, mark, self._bits, told_ms))

    def load(self, raw: bytes, mark: bytes) -> bool:
        """Go on where the last process stopped; False when that is not possible or not worth it."""
        try:
            saved = msgspec.msgpack.decode(raw, type=_Saved)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return False
        count = len(saved.told_ms)
        if saved.version != VERSION or saved.mark != mark or count != 1 << saved.bits:
            return False
        if count < RESUMED_PARTS:
            return False
        self._bits = saved.bits
        self._told = [ms / 1000 for ms in saved.told_ms]
        self._counts = [0] * count
        return True
