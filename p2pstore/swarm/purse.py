"""What others may use up in a day when this node works for them, by what they are to us.

All strangers together have one purse, because names are free; each friend has one of its own.
Devices of our group have none, or one each. A purse is full again a day after it was last filled.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from p2pstore.clock import Clock
from p2pstore.ids import PublicKey
from p2pstore.keys import Role

DAY_S: Final = 86_400.0
MAX_PAYERS: Final = 1000


class Purse:
    """What somebody may still use today."""

    def __init__(self, size: int, now: float) -> None:
        self._size = size
        self.left = size
        self._since = now

    def refill(self, now: float) -> None:
        if now - self._since >= DAY_S:
            self._since, self.left = now, self._size


class Purses:
    def __init__(
        self, clock: Clock, *, strangers: int, friend: int, device: int | None = None
    ) -> None:
        """`device` None: our own devices are not counted."""
        self._clock = clock
        self._sizes: dict[str, int | None] = {
            Role.FRIEND: friend,
            Role.DEVICE: device,
            Role.ADMIN: device,
        }
        self._strangers = Purse(strangers, clock.monotonic())
        self._purses: OrderedDict[PublicKey, Purse] = OrderedDict()

    def of(self, payer: PublicKey, standing: str) -> Purse | None:
        """The purse of whoever signed a request; None where nothing is counted."""
        now = self._clock.monotonic()
        purse = self._strangers
        if standing in self._sizes:
            size = self._sizes[standing]
            if size is None:
                return None
            purse = self._purses.setdefault(payer, Purse(size, now))
            self._purses.move_to_end(payer)
            if len(self._purses) > MAX_PAYERS:
                self._purses.popitem(last=False)
        purse.refill(now)
        return purse
