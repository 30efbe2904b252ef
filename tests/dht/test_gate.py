from __future__ import annotations

import itertools

from p2pstore.dht.address import Address
from p2pstore.dht.gate import BUDGETS, COOKIE_S, Budgets, Cookies

HERE, THERE = Address("20.0.0.1", 8080), Address("20.0.0.1", 8081)


def cookies() -> Cookies:
    numbers = itertools.count(1)
    return Cookies(lambda size: next(numbers).to_bytes(size, "big"), 0.0)


def test_a_burst_and_then_the_rate() -> None:
    budgets = Budgets(30, 120)
    assert sum(budgets.take(b"a", 0.0) for _ in range(200)) == 120
    assert sum(budgets.take(b"a", 1.0) for _ in range(200)) == 30
    assert budgets.take(b"b", 1.0)


def test_waiting_keeps_the_rate() -> None:
    budgets = Budgets(10, 2)
    waits = [budgets.wait_s(b"a", 0.0) for _ in range(5)]
    assert [round(w, 3) for w in waits] == [0, 0, 0.1, 0.2, 0.3]


def test_budgets_of_a_forged_flood_take_bounded_memory() -> None:
    budgets = Budgets(30, 120)
    for i in range(BUDGETS + 10):
        budgets.take(i.to_bytes(4, "big"), 0.0)
    assert len(budgets._left) == BUDGETS


def test_a_cookie_proves_its_own_address_for_a_while() -> None:
    jar = cookies()
    cookie = jar.issue(HERE, 0.0)
    assert jar.proves(cookie, HERE, 0.0)
    assert not jar.proves(cookie, THERE, 0.0)
    assert not jar.proves(b"", HERE, 0.0)
    assert jar.proves(cookie, HERE, COOKIE_S)
    assert not jar.proves(cookie, HERE, 2 * COOKIE_S)


def test_a_long_silence_ends_all_cookies() -> None:
    jar = cookies()
    cookie = jar.issue(HERE, 0.0)
    assert not jar.proves(cookie, HERE, 10 * COOKIE_S)
