"""Who gets in, and how much of it: packet budgets and address proofs.

A sender's address can be forged. Until it has echoed a cookie that we sent to its address, it
gets no reply longer than its request and may store nothing. The cookie is a keyed hash of the
address, so that nothing has to be remembered about those who ask.
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Callable

from blake3 import blake3

from p2pstore.dht.address import Address

BUDGETS = 8192  # addresses remembered at once; a forged flood only makes us forget the quiet ones
COOKIE = 8
COOKIE_S = 300.0  # a cookie is good for one to two of these


class Budgets:
    """Token buckets by key: `rate` a second, `burst` at once."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self._left: OrderedDict[bytes, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: bytes, now: float) -> float:
        """Take one token, even one of the future; the seconds until it would be there."""
        left, then = self._left.pop(key, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.rate) - 1
        self._left[key] = (left, now)
        if len(self._left) > BUDGETS:
            self._left.popitem(last=False)
        return 0.0 if left >= 0 else -left / self.rate

    def take(self, key: bytes, now: float) -> bool:
        """Whether there was a token; without one nothing is taken."""
        left, then = self._left.pop(key, (self.burst, now))
        left = min(self.burst, left + (now - then) * self.rate)
        allowed = left >= 1
        self._left[key] = (left - 1 if allowed else left, now)
        if len(self._left) > BUDGETS:
            self._left.popitem(last=False)
        return allowed


class Cookies:
    """Address proofs that we hand out."""

    def __init__(self, random: Callable[[int], bytes], now: float) -> None:
        self._random = random
        self._secrets = [random(32), random(32)]
        self._turned = now

    def issue(self, address: Address, now: float) -> bytes:
        self._turn(now)
        return _cookie(self._secrets[0], address)

    def proves(self, cookie: bytes, address: Address, now: float) -> bool:
        self._turn(now)
        return any(hmac.compare_digest(cookie, _cookie(s, address)) for s in self._secrets)

    def _turn(self, now: float) -> None:
        passed = int((now - self._turned) / COOKIE_S)
        if passed > 0:
            fresh = self._random(32)
            self._secrets = [fresh, self._secrets[0] if passed == 1 else self._random(32)]
            self._turned = now


def _cookie(secret: bytes, address: Address) -> bytes:
    return blake3(f"{address.host} {address.port}".encode(), key=secret).digest(length=COOKIE)
