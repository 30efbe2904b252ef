"""Dialling back, and what is concluded from it."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from p2pstore.clock import ManualClock
from p2pstore.errors import Busy, NotAllowed, Unavailable
from p2pstore.ids import NodeId
from p2pstore.swarm import Reachability
from p2pstore.swarm.reach import AGAIN_S, EVERY_S, RETRY_S, VALID_S, plain
from p2pstore.wire import Reach, Reached

from .world import OTHER_GROUP_KEY, World


async def test_a_peer_dials_back_and_finds_our_key(world: World) -> None:
    a, b = await world.pair()
    link = a.connections.get(b.node_id)
    assert link is not None
    _, port = await a.address()
    assert (await link.request(Reach(port)))[0] == Reached("127.0.0.1", True)
    assert a.connections.get(b.node_id) is link  # the look replaced no connection
    assert b.connections.get(a.node_id) is not None


async def test_a_port_where_nobody_is_is_not_reached(world: World) -> None:
    a, b = await world.pair()
    link = a.connections.get(b.node_id)
    assert link is not None
    reply, _ = await link.request(Reach(1))
    assert isinstance(reply, Reached)
    assert not reply.is_reached
    assert "cannot be reached" in reply.why


async def test_another_node_at_the_port_is_not_us(world: World) -> None:
    a, b = await world.pair()
    _, port = await b.address()
    link = a.connections.get(b.node_id)
    assert link is not None
    reply, _ = await link.request(Reach(port))
    assert isinstance(reply, Reached)
    assert not reply.is_reached


async def test_nobody_makes_us_dial_all_the_time(world: World) -> None:
    a, b = await world.pair()
    stranger = world.node("stranger", OTHER_GROUP_KEY)
    await stranger.meet(b)
    for node in (a, stranger):
        link = node.connections.get(b.node_id)
        assert link is not None
        await link.request(Reach(1))
        with pytest.raises(Busy):
            await link.request(Reach(1))
    world.clock.advance(AGAIN_S)
    await link.request(Reach(1))


async def test_a_tunnel_leads_to_no_address(world: World) -> None:
    a, b, c = world.node("a"), world.node("b"), world.node("c")
    await a.meet(b)
    await c.meet(b)
    link = await a.connections.connect(c.node_id)
    with pytest.raises(NotAllowed):
        await link.request(Reach(1))


@pytest.mark.parametrize(
    ("host", "wanted"),
    [("::ffff:20.1.2.3", "20.1.2.3"), ("20.1.2.3", "20.1.2.3"), ("2a00::1", "2a00::1")],
)
def test_addresses_are_told_as_everybody_writes_them(host: str, wanted: str) -> None:
    assert plain(host) == wanted


# -- what is concluded ------------------------------------------------------------------------


class Witness(SimpleNamespace):
    """A link whose peer answers REACH as it is told."""

    def __init__(
        self,
        number: int,
        host: str = "20.0.0.1",
        says: bool | None = True,
        role: str = "device",
        **more: Any,
    ) -> None:
        super().__init__(
            node_id=NodeId(number.to_bytes(20, "big")),
            address=(host, 8080),
            role=role,
            via=None,
            is_dialled=True,
            says=says,
            sees="20.9.9.9",
            asked=0,
        )
        self.__dict__.update(more)

    async def request(self, message: Reach, timeout_s: float) -> tuple[Reached, bytes]:
        assert message.port == 8080
        self.asked += 1
        if self.says is None:
            raise Unavailable("no time")
        return Reached(self.sees, self.says, "" if self.says else "It does not answer."), b""


class Setting:
    def __init__(self, *links: Witness) -> None:
        self.found = list(links)
        self.clock = ManualClock()
        self.changes = 0
        self.rests: list[float] = []
        self.turned = asyncio.Event()
        self.reach = Reachability(
            self,  # type: ignore[arg-type]
            clock=self.clock,
            port=lambda: 8080,
            changed=self.changed,
            pause=self.pause,
        )

    def links(self) -> list[Any]:
        return list(self.found)

    def changed(self) -> None:
        self.changes += 1

    async def pause(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.turned.set()
        await asyncio.Event().wait()

    async def turn(self) -> str:
        """One turn of the loop."""
        running = asyncio.ensure_future(self.reach.run())
        async with asyncio.timeout(5):
            await self.turned.wait()
        self.turned.clear()
        running.cancel()
        await asyncio.wait((running,))
        return self.reach.verdict.state


async def test_without_anybody_it_is_unknown() -> None:
    setting = Setting()
    assert await setting.turn() == "unknown"
    assert setting.changes == 0


async def test_a_peer_outside_that_reaches_us_settles_it() -> None:
    setting = Setting(Witness(1, says=False), Witness(2))
    assert await setting.turn() == "outside"
    assert setting.reach.verdict.outer == ("20.9.9.9", 8080)
    assert setting.changes == 1


async def test_peers_outside_that_cannot_connect_say_why() -> None:
    setting = Setting(Witness(1, says=False))
    assert await setting.turn() == "no"
    assert setting.reach.verdict.why == "It does not answer."


async def test_what_a_stranger_says_of_our_address_is_not_told_to_others() -> None:
    setting = Setting(Witness(1, role="stranger"))
    assert await setting.turn() == "outside"
    assert setting.reach.verdict.outer is None


async def test_an_address_of_a_home_is_not_told_to_others() -> None:
    setting = Setting(Witness(1, sees="192.168.1.2"))
    await setting.turn()
    assert setting.reach.verdict.outer is None


async def test_peers_in_our_own_network_cannot_tell_about_outside() -> None:
    setting = Setting(Witness(1, host="192.168.1.7"))
    assert await setting.turn() == "network"
    setting = Setting(Witness(1, host="192.168.1.7", says=False))
    assert await setting.turn() == "no"


async def test_a_tunnelled_peer_cannot_tell() -> None:
    setting = Setting(Witness(1, via=object()))
    assert await setting.turn() == "unknown"


async def test_nobody_is_asked_twice_within_the_hour() -> None:
    witness = Witness(1, says=False)
    setting = Setting(witness)
    await setting.turn()
    witness.says = True
    assert await setting.turn() == "no"
    setting.clock.advance(EVERY_S)
    assert await setting.turn() == "outside"
    assert witness.asked == 2


async def test_another_mapping_makes_it_ask_anew() -> None:
    witness = Witness(1, says=False)
    setting = Setting(witness)
    await setting.turn()
    witness.says = True
    setting.reach.ask_again()
    assert await setting.turn() == "outside"


async def test_who_had_no_time_is_asked_again_soon() -> None:
    witness = Witness(1, says=None)
    setting = Setting(witness)
    assert await setting.turn() == "unknown"
    assert setting.rests == [RETRY_S]
    witness.says = True
    assert await setting.turn() == "outside"


async def test_few_are_asked_and_relations_first() -> None:
    strangers = [Witness(number, role="stranger") for number in range(5)]
    friend = Witness(9, role="friend")
    setting = Setting(*strangers, friend)
    await setting.turn()
    assert friend.asked == 1
    assert sum(one.asked for one in strangers) == 2


async def test_a_connection_from_outside_proves_it() -> None:
    setting = Setting()
    setting.reach.note(Witness(1, host="192.168.1.7", is_dialled=False))  # type: ignore[arg-type]
    assert setting.reach.verdict.state == "unknown"
    setting.reach.note(Witness(2, is_dialled=True))  # type: ignore[arg-type]
    assert setting.reach.verdict.state == "unknown"
    setting.reach.note(Witness(3, is_dialled=False))  # type: ignore[arg-type]
    assert setting.reach.verdict.state == "outside"
    setting.found = [Witness(1, says=False)]
    assert await setting.turn() == "outside"  # it was, a moment ago: that peer's way is broken
    setting.clock.advance(VALID_S)
    assert await setting.turn() == "no"


async def test_a_new_peer_outside_wakes_who_does_not_know() -> None:
    setting = Setting()
    running = asyncio.ensure_future(setting.reach.run())
    await setting.turned.wait()
    setting.found = [Witness(1)]
    setting.reach.note(setting.found[0])  # type: ignore[arg-type]
    setting.turned.clear()
    await setting.turned.wait()
    assert setting.reach.verdict.state == "outside"
    running.cancel()
    await asyncio.wait((running,))
