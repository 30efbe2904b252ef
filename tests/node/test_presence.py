"""Which addresses a node tells, and what it says of being reachable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from p2pstore.clock import ManualClock
from p2pstore.net.portmap import PortMapping
from p2pstore.net.portmap import speaking as speaking_module
from p2pstore.node.presence import Presence
from p2pstore.swarm import Reachability, Verdict
from tests.net.portmap import fake as fake_module
from tests.net.portmap.fake import OUTER_HOST, Router


class Nobody:
    def links(self) -> list[Any]:
        return []


class Setting:
    def __init__(self, router: Router) -> None:
        self.router = router
        self.own = ["192.168.1.2"]
        self.running: list[asyncio.Task[None]] = []

    def make(self, listening: str = "0.0.0.0", *, maps_port: bool = True) -> Presence:
        presence = Presence(
            Nobody(),  # type: ignore[arg-type]
            clock=ManualClock(),
            listening=lambda: (listening, 8080),
            maps_port=maps_port,
            gateway=lambda: self.router.gateway,
            ports=self.router.ports,
            own_addresses=lambda: self.own,
        )
        self.running.append(asyncio.ensure_future(presence.run()))
        return presence

    async def stop(self) -> None:
        for task in self.running:
            task.cancel()
        if self.running:
            await asyncio.wait(self.running)


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    made = Setting(await Router("PCP").start())
    yield made
    await made.stop()
    await made.router.stop()


async def mapped(presence: Presence) -> PortMapping:
    async with asyncio.timeout(5):
        while presence.mapping is None:
            await presence.wait()
    return presence.mapping


async def quiet(setting: Setting) -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert setting.router.asked == []


async def test_the_address_that_the_router_opened_comes_first(setting: Setting) -> None:
    presence = setting.make()
    assert presence.addresses() == [("192.168.1.2", 8080)]
    setting.router.taken = {8080}
    assert await mapped(presence) == PortMapping(OUTER_HOST, 8081, "PCP")
    assert presence.addresses() == [(OUTER_HOST, 8081), ("192.168.1.2", 8080)]
    assert presence.outer_port() == 8081


async def test_the_mapping_is_taken_back_at_the_end(setting: Setting) -> None:
    await mapped(setting.make())
    assert setting.router.mapped
    await setting.stop()
    assert not setting.router.mapped


async def test_an_outer_address_behind_another_router_is_told_to_nobody(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_module, "OUTER_HOST", "100.64.3.4")
    presence = setting.make()
    await mapped(presence)
    assert presence.addresses() == [("192.168.1.2", 8080)]


@pytest.mark.parametrize(
    "why", ["switched off", "loopback", "one IPv6 address", "a public address of its own"]
)
async def test_the_router_is_not_asked(setting: Setting, why: str) -> None:
    hosts = {"loopback": "127.0.0.1", "one IPv6 address": "fd00::1"}
    if why == "a public address of its own":
        setting.own = ["20.5.5.5"]
    setting.make(hosts.get(why, "0.0.0.0"), maps_port=why != "switched off")
    await quiet(setting)


async def test_a_router_of_another_network_than_we_listen_in_is_not_asked(
    setting: Setting,
) -> None:
    presence = setting.make("192.168.99.1")
    assert presence._router() is None
    await quiet(setting)
    here = setting.router.gateway
    assert setting.make(here.own)._router() == here


async def test_without_addresses_it_is_this_machine(setting: Setting) -> None:
    setting.own = []
    presence = setting.make(maps_port=False)
    assert presence.addresses() == [("127.0.0.1", 8080)]


async def test_where_a_relation_found_us_is_told(setting: Setting) -> None:
    presence = setting.make(maps_port=False)
    presence.reachability.verdict = Verdict("outside", "found", (OUTER_HOST, 8080))
    assert presence.addresses() == [(OUTER_HOST, 8080), ("192.168.1.2", 8080)]


async def test_on_loopback_nothing_is_known_and_nobody_wonders(setting: Setting) -> None:
    presence = setting.make("127.0.0.1")
    assert presence.verdict.state == "unknown"
    assert "this machine only" in presence.verdict.why


async def test_what_the_router_said_is_a_part_of_why(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speaking_module, "SEARCH_S", (0.05,))
    setting.router.speaks = ("PCP", "NAT-PMP")  # it refuses in both at once: nothing runs out
    setting.router.refusal = 2
    presence = setting.make()
    async with asyncio.timeout(10):
        while "does not allow" not in presence.verdict.why:
            presence.reachability.verdict = Verdict("no", "It does not answer.")
            await asyncio.sleep(0.01)
    assert presence.verdict.why.startswith("It does not answer. The router: PCP")


async def test_nobody_is_asked_to_dial_before_the_router_was_asked(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    async def look(_: object) -> None:
        order.append("look" if presence.mapping is not None else "look too early")

    monkeypatch.setattr(Reachability, "run", look)
    presence = setting.make()
    await mapped(presence)
    async with asyncio.timeout(5):
        while not order:
            await asyncio.sleep(0.001)
    assert order == ["look"]


async def test_another_network_is_another_router(setting: Setting) -> None:
    presence = setting.make()
    await mapped(presence)
    setting.router.mapped.clear()
    presence.moved()
    async with asyncio.timeout(5):
        while not setting.router.mapped:
            await asyncio.sleep(0.001)
