"""A carrier in front of another one, that does what bad places do, at chosen calls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum

from p2pstore.carriers import Carrier, NotThere, Promises
from p2pstore.errors import IntegrityError, NoRoom, Unavailable


class Fault(Enum):
    FAIL = "fail"  # Unavailable, and nothing is done
    LATE = "late"  # it is done, then Unavailable
    FULL = "full"  # NoRoom
    GONE = "gone"  # a get finds nothing
    LOSE = "lose"  # a put says that it is stored, and nothing is
    LIE = "lie"  # a bit is wrong: of what a put stores, or of what a get brings
    TRUNCATE = "truncate"  # half is missing, as above
    REENCODE = "reencode"  # a get notices what the place has done to the piece
    SLOW = "slow"  # the call waits for `Faults.go_on`


@dataclass
class Faults:
    """What goes wrong at which call; calls of put, get and delete are counted together, from 1."""

    at: dict[int, Fault] = field(default_factory=dict)
    always: Fault | None = None
    calls: int = 0
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def next(self) -> Fault | None:
        self.calls += 1
        fault = self.at.get(self.calls, self.always)
        if fault is Fault.SLOW:
            await self.go_on.wait()
        if fault is Fault.FAIL:
            raise Unavailable("The carrier fails, as it was told to.")
        if fault is Fault.FULL:
            raise NoRoom("The carrier is full, as it was told to be.")
        return fault


class FaultyCarrier:
    def __init__(self, inner: Carrier, faults: Faults | None = None) -> None:
        self.inner = inner
        self.faults = faults or Faults()

    @property
    def promises(self) -> Promises:
        return self.inner.promises

    def key_of(self, name: str) -> str | None:
        return self.inner.key_of(name)

    async def put(self, name: str, content: bytes) -> str:
        fault = await self.faults.next()
        if fault is Fault.LOSE:
            return self.inner.key_of(name) or f"lost:{name}"
        key = await self.inner.put(name, _spoilt(content, fault))
        if fault is Fault.LATE:
            raise Unavailable("The carrier fails when all is done, as it was told to.")
        return key

    async def get(self, key: str) -> bytes:
        fault = await self.faults.next()
        if fault is Fault.GONE:
            raise NotThere("The carrier has lost it, as it was told to.")
        if fault is Fault.REENCODE:
            raise IntegrityError("The picture came back as JPEG instead of PNG.")
        return _spoilt(await self.inner.get(key), fault)

    async def delete(self, key: str) -> None:
        await self.faults.next()
        await self.inner.delete(key)

    async def close(self) -> None:
        await self.inner.close()


def _spoilt(content: bytes, fault: Fault | None) -> bytes:
    if fault is Fault.TRUNCATE:
        return content[: len(content) // 2]
    if fault is Fault.LIE and content:
        return bytes([content[0] ^ 1]) + content[1:]
    return content
