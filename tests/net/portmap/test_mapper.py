"""The whole of it against a router on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from p2pstore.net.portmap import Gateway, PortMapper, PortMapping
from p2pstore.net.portmap import speaking as speaking_module
from p2pstore.net.portmap.igd import MAX_DESCRIPTION
from tests.net.portmap.fake import DESCRIPTION, OUTER_HOST, Router

Make = Callable[..., Awaitable[Router]]


@pytest.fixture
async def router() -> AsyncIterator[Make]:
    made: list[Router] = []

    async def make(*speaks: str, **options: Any) -> Router:
        fake = Router(*speaks)
        for name, value in options.items():
            setattr(fake, name, value)
        made.append(fake)
        return await fake.start()

    yield make
    for fake in made:
        await fake.stop()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaking_module, "TRIES_S", (0.05, 0.05))
    monkeypatch.setattr(speaking_module, "SEARCH_S", (0.1, 0.1))


class Setting:
    def __init__(self, fake: Router | None, **options: Any) -> None:
        self.rests: list[float] = []
        self.changes = 0
        self.turned = asyncio.Event()
        gateway = None if fake is None else fake.gateway
        ports = None if fake is None else fake.ports
        self.mapper = PortMapper(
            8080,
            changed=self.changed,
            gateway=lambda: gateway,
            ports=ports,
            pause=self.pause,
            **options,
        )
        self.runner = asyncio.ensure_future(self.mapper.run())

    def changed(self) -> None:
        self.changes += 1

    async def pause(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.turned.set()
        await asyncio.Event().wait()

    async def turn(self) -> PortMapping | None:
        async with asyncio.timeout(5):
            await self.turned.wait()
        self.turned.clear()
        return self.mapper.mapping

    async def close(self) -> None:
        self.runner.cancel()
        await asyncio.wait((self.runner,))
        await self.mapper.close()


@pytest.mark.parametrize("language", ["PCP", "NAT-PMP", "UPnP"])
async def test_our_port_is_mapped_renewed_and_given_back(router: Make, language: str) -> None:
    fake = await router(language)
    setting = Setting(fake)
    assert await setting.turn() == PortMapping(OUTER_HOST, 8080, language)
    assert fake.mapped == {("TCP", 8080): (8080, 3600), ("UDP", 8080): (8080, 3600)}
    assert setting.rests == [1800.0]
    fake.mapped.clear()  # the router was restarted
    setting.mapper.retry()
    assert await setting.turn() == PortMapping(OUTER_HOST, 8080, language)
    assert fake.mapped.keys() == {("TCP", 8080), ("UDP", 8080)}
    assert setting.changes == 1
    await setting.close()
    assert fake.mapped == {}
    assert setting.mapper.mapping is None


async def test_the_language_that_worked_is_asked_first_afterwards(router: Make) -> None:
    fake = await router("UPnP")
    setting = Setting(fake)
    await setting.turn()
    fake.asked.clear()
    setting.mapper.retry()
    await setting.turn()
    assert "PCP" not in fake.asked
    await setting.close()


async def test_a_router_of_natpmp_says_so_to_pcp_at_once(router: Make) -> None:
    fake = await router("NAT-PMP")
    setting = Setting(fake)
    await setting.turn()
    assert fake.asked.count("PCP") == 1
    await setting.close()


@pytest.mark.parametrize("language", ["PCP", "NAT-PMP", "UPnP"])
async def test_a_port_that_is_taken_outside_is_not_taken_away(router: Make, language: str) -> None:
    fake = await router(language, taken={8080})
    setting = Setting(fake, dice=lambda low, high: 30_000)
    mapping = await setting.turn()
    assert mapping is not None
    assert mapping.port == (30_000 if language == "UPnP" else 8081)
    assert {key[1] for key in fake.mapped} == {mapping.port}
    assert {inner for inner, _ in fake.mapped.values()} == {8080}
    await setting.close()
    assert fake.mapped == {}


async def test_a_lost_datagram_is_sent_again(router: Make) -> None:
    fake = await router("PCP", lose=1)
    setting = Setting(fake)
    assert (await setting.turn()) is not None
    await setting.close()


async def test_a_router_without_leases_gets_the_mapping_taken_back(router: Make) -> None:
    fake = await router("UPnP", only_permanent=True)
    setting = Setting(fake)
    assert (await setting.turn()) is not None
    assert fake.mapped["TCP", 8080] == (8080, 0)
    assert setting.rests == [1800.0]
    await setting.close()
    assert fake.mapped == {}


@pytest.mark.parametrize(
    ("language", "refusal", "said"),
    [("PCP", 2, "does not allow"), ("NAT-PMP", 2, "switched off"), ("UPnP", 501, "error 501")],
)
async def test_a_refusal_is_told_and_asked_again_later(
    router: Make, language: str, refusal: int, said: str
) -> None:
    fake = await router(language, refusal=refusal)
    setting = Setting(fake)
    assert await setting.turn() is None
    assert said in setting.mapper.trouble
    assert setting.rests == [900.0]
    await setting.close()


async def test_when_the_router_stops_granting_there_is_no_mapping(router: Make) -> None:
    fake = await router("PCP")
    setting = Setting(fake)
    await setting.turn()
    fake.speaks = ()
    setting.mapper.retry()
    assert await setting.turn() is None
    assert setting.changes == 2
    await setting.close()


async def test_without_a_router_nothing_is_sent() -> None:
    setting = Setting(None)
    assert await setting.turn() is None
    assert "no router" in setting.mapper.trouble
    await setting.close()


async def test_a_machine_that_is_not_the_router_is_not_listened_to(router: Make) -> None:
    """The answer comes from another address than the router's."""
    fake = await router("UPnP")
    gateway = Gateway("127.0.0.2", "127.0.0.1")
    searching = speaking_module.IgdRouter(gateway, fake.ports)
    searching._ports = searching._ports._replace(group="127.0.0.1")
    with pytest.raises(speaking_module.NotSpoken, match="No router"):
        await searching.outer_address()
    assert "SSDP" in fake.asked


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.3:80/root.xml",
        "http://example.org/root.xml",
        "https://127.0.0.1/root.xml",
        "file:///etc/passwd",
        "http://127.0.0.1@10.0.0.1/",
        "http://[",
        "",
    ],
)
async def test_a_description_elsewhere_is_not_fetched(router: Make, location: str) -> None:
    fake = await router("UPnP")
    fake.location = location
    with pytest.raises(speaking_module.NotSpoken):
        await speaking_module.IgdRouter(fake.gateway, fake.ports).outer_address()


@pytest.mark.parametrize(
    "description",
    [
        "",
        "not XML",
        "<root/>",
        '<!DOCTYPE a [<!ENTITY b "c">]><root>&b;</root>',
        DESCRIPTION.replace("/control", "http://10.0.0.1/control"),
        DESCRIPTION.replace("/control", "http://[").replace(
            "<device>", "<URLBase>http://[</URLBase><device>", 1
        ),
        DESCRIPTION.replace("WANIPConnection:1", "WANIPConnection:1\r\nX: y"),
        DESCRIPTION + " " * MAX_DESCRIPTION,
    ],
    ids=["empty", "text", "nothing", "entities", "elsewhere", "no URL", "header", "long"],
)
async def test_a_description_that_is_none_is_refused(router: Make, description: str) -> None:
    fake = await router("UPnP", description=description)
    with pytest.raises(speaking_module.NotSpoken):
        await speaking_module.IgdRouter(fake.gateway, fake.ports).outer_address()


async def test_a_half_granted_mapping_is_taken_back(router: Make) -> None:
    fake = await router("UPnP", only_tcp=True)
    setting = Setting(fake)
    assert await setting.turn() is None
    assert fake.asked.count("AddPortMapping") == 2
    assert fake.mapped == {}
    await setting.close()


async def test_a_fault_of_ours_ends_neither_the_node_nor_the_asking(
    router: Make, caplog: pytest.LogCaptureFixture
) -> None:
    fake = await router("PCP")
    faults = [RuntimeError("a bug"), RuntimeError("a bug")]

    def gateway() -> Gateway:
        if faults:
            raise faults.pop()
        return fake.gateway

    setting = Setting(fake)
    setting.mapper._gateway = gateway
    for _ in range(3):
        await setting.turn()
        setting.mapper.retry()
    await setting.turn()
    assert setting.mapper.mapping is not None
    assert [record.levelname for record in caplog.records].count("ERROR") == 1
    await setting.close()
