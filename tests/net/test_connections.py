from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from p2pstore.errors import PeerUnreachable
from p2pstore.ids import NodeId
from p2pstore.net import Address, Connections, Endpoint, PeerBook, pause_after
from p2pstore.net.connections import LONGEST_PAUSE_S

Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Pauses:
    """Records how long was waited for; goes on when told."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.go = asyncio.Event()

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        await self.go.wait()
        self.go.clear()


def connections(nodes: Any, node: Endpoint, book: PeerBook | None = None, **options: Any) -> Any:
    options.setdefault("pause", Pauses())
    return Connections(
        node, book or PeerBook(), clock=nodes.clock, dice=lambda: 1.0 - 2**-53, **options
    )


def test_pauses_grow_to_a_limit() -> None:
    assert [pause_after(n, 0.999999) for n in (1, 2, 3)] == pytest.approx([1, 2, 4], rel=1e-3)
    assert pause_after(100, 0.999999) == pytest.approx(LONGEST_PAUSE_S, rel=1e-3)
    assert pause_after(100, 0.0) == LONGEST_PAUSE_S / 2


async def test_connect_by_address_learns_who_is_there(nodes: Any) -> None:
    server, client = nodes.make(), nodes.make()
    book = PeerBook()
    links = connections(nodes, client, book)
    address = await server.listen("127.0.0.1", 0)
    link = await links.connect(address)
    assert links.get(server.node_id) is link
    assert book.addresses(server.node_id) == (address,)
    assert links.links() == [link]
    await links.close()


async def test_connect_by_id_tries_all_addresses_and_shares_the_attempt(nodes: Any) -> None:
    server, wrong, client = nodes.make(), nodes.make(), nodes.make()
    links = connections(nodes, client)
    address = await server.listen("127.0.0.1", 0)
    other = await wrong.listen("127.0.0.1", 0)
    both = await asyncio.gather(
        links.connect(server.node_id, [address, other]),
        links.connect(server.node_id),
    )
    assert both[0] is both[1]
    assert await links.connect(server.node_id) is both[0]
    assert len(client.links()) == 1
    await links.close()


async def test_unknown_node_is_looked_for(memory: Any) -> None:
    server, client = memory.make(), memory.make()
    address = await server.listen("127.0.0.1", 0)
    asked: list[NodeId] = []

    async def find(node_id: NodeId) -> Iterable[Address]:
        asked.append(node_id)
        return [address]

    links = connections(memory, client, find=find)
    assert (await links.connect(server.node_id)).node_id == server.node_id
    assert asked == [server.node_id]
    await links.close()


async def test_nobody_knows_the_node(memory: Any) -> None:
    links = connections(memory, memory.make())
    with pytest.raises(PeerUnreachable, match="No address"):
        await links.connect(NodeId(bytes(20)))
    await links.close()


async def test_wanted_link_is_made_again(memory: Any, until: Until) -> None:
    server, client = memory.make(), memory.make()
    book, pauses = PeerBook(), Pauses()
    address = await server.listen("127.0.0.1", 0)
    book.note_address(server.node_id, address)
    links = connections(memory, client, book, pause=pauses)
    links.want(server.node_id)
    await until(lambda: links.get(server.node_id) is not None)
    memory.world.unreachable.add(address)
    client.links()[0].abort()
    await until(lambda: len(pauses.asked) == 1)
    pauses.go.set()
    await until(lambda: len(pauses.asked) == 2)
    memory.world.unreachable.clear()
    links.retry(server.node_id)
    await until(lambda: links.get(server.node_id) is not None)
    assert pauses.asked == pytest.approx([1.0, 2.0], rel=1e-3)
    links.unwant(server.node_id)
    await links.close()


async def test_two_that_dial_each_other_keep_the_same_link(nodes: Any, until: Until) -> None:
    one, two = nodes.make(), nodes.make()
    of_one, of_two = connections(nodes, one), connections(nodes, two)
    address_one = await one.listen("127.0.0.1", 0)
    address_two = await two.listen("127.0.0.1", 0)
    await asyncio.gather(one.dial(*address_two), two.dial(*address_one))
    await until(lambda: len(one.links()) == len(two.links()) == 1)
    kept, there = of_one.get(two.node_id), of_two.get(one.node_id)
    assert kept is one.links()[0]
    assert there is two.links()[0]
    assert kept.is_dialled is (one.node_id < two.node_id)
    assert there.is_dialled is not kept.is_dialled
    await of_one.close()
    await of_two.close()


async def test_later_link_replaces_one_that_the_peer_has_lost(memory: Any, until: Until) -> None:
    one, two = sorted((memory.make(), memory.make()), key=lambda node: node.node_id)
    of_one = connections(memory, one)
    address_one = await one.listen("127.0.0.1", 0)
    address_two = await two.listen("127.0.0.1", 0)
    old = await one.dial(*address_two)
    await until(lambda: of_one.get(two.node_id) is old)
    memory.clock.advance(60)
    await two.dial(*address_one)
    await until(lambda: of_one.get(two.node_id) is not old)
    assert of_one.get(two.node_id).is_dialled is False
    await asyncio.wait_for(old.wait_closed(), 5)
    await of_one.close()


async def test_peer_was_last_seen_when_its_link_ended(memory: Any, until: Until) -> None:
    server, client, book = memory.make(), memory.make(), PeerBook()
    links = connections(memory, client, book)
    await links.connect(await server.listen("127.0.0.1", 0))
    linked = book.get(server.node_id).last_seen_ms
    memory.clock.advance(30 * 86_400)
    client.links()[0].abort()
    await until(lambda: links.get(server.node_id) is None)
    assert book.get(server.node_id).last_seen_ms == linked + 30 * 86_400_000
    await links.close()


async def test_peers_that_are_linked_are_seen_each_time_the_list_is_saved(
    memory: Any, until: Until
) -> None:
    """Our own process may end without a word."""
    server, client, book, pauses = memory.make(), memory.make(), PeerBook(), Pauses()
    links = connections(memory, client, book, pause=pauses)
    await links.connect(await server.listen("127.0.0.1", 0))
    linked = book.get(server.node_id).last_seen_ms
    links.start()
    await until(lambda: bool(pauses.asked))
    memory.clock.advance(3_600)
    pauses.go.set()
    await until(lambda: book.get(server.node_id).last_seen_ms == linked + 3_600_000)
    await links.close()


async def test_close_leaves_no_attempt(memory: Any, until: Until, tmp_path: Path) -> None:
    book = PeerBook(tmp_path / "peers.json")
    links = connections(memory, memory.make(), book)
    links.start()
    book.note_address(NodeId(bytes(20)), ("192.0.2.7", 1))
    links.want(NodeId(bytes(20)))
    await asyncio.sleep(0)
    await links.close()
    assert len(PeerBook.load(tmp_path / "peers.json").peers()) == 1


@pytest.mark.parametrize("role", ["device", "friend"])
async def test_where_a_relation_is_found_is_written_down_at_once(
    memory: Any, until: Until, tmp_path: Path, role: str
) -> None:
    """Nobody closes anything here, and no time passes: the process may be killed."""
    path = tmp_path / "peers.json"
    server, client = memory.make(), memory.make(role=role)
    links = connections(memory, client, PeerBook(path))
    address = await server.listen("127.0.0.1", 0)
    await links.connect(server.node_id, [address])
    await until(path.exists)
    assert PeerBook.load(path).addresses(server.node_id) == (address,)
    await links.close()


async def test_a_stranger_costs_no_write(memory: Any, tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    server, client = memory.make(), memory.make(role="stranger")
    links = connections(memory, client, PeerBook(path))
    await links.connect(server.node_id, [await server.listen("127.0.0.1", 0)])
    assert not len(links._tasks)
    await links.close()
