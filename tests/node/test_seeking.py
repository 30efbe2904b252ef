"""Seeking ends, whoever answers whatever."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from nacl.signing import SigningKey

from p2pstore.clock import SystemClock
from p2pstore.config import Address, Config
from p2pstore.ids import NodeId, node_id_of
from p2pstore.keys import public_key_of
from p2pstore.net import PeerBook
from p2pstore.node import seeking
from p2pstore.wire import GetPeers, PeerRecord, Peers, sign_record


class Hydra:
    """Whoever is dialled names more nodes that nobody has heard of."""

    def __init__(self, names: int) -> None:
        self.names = names
        self.dialled = 0

    def record(self) -> bytes:
        key = SigningKey.generate()
        return sign_record(PeerRecord(public_key_of(key), "main", (("127.0.0.1", 1),), 1), key)

    async def dial(self, host: str, port: int, expect: NodeId | None = None) -> Any:
        self.dialled += 1
        node_id = expect or node_id_of(public_key_of(SigningKey.generate()))
        hello = SimpleNamespace(name="x")
        return SimpleNamespace(node_id=node_id, request=self.request, hello=hello)

    async def request(self, message: GetPeers) -> tuple[Peers, bytes]:
        return Peers(tuple(self.record() for _ in range(self.names))), b""

    async def close(self) -> None: ...


class Silence:
    """A DHT that knows nobody."""

    async def start(self, *_: Any) -> None: ...

    async def providers(self, tags: Sequence[bytes]) -> Mapping[bytes, Sequence[PeerRecord]]:
        return {}

    async def close(self) -> None: ...


class Seeking:
    """A recovery to which nobody tells anything."""

    device = SigningKey.generate()
    hello = role_of = None
    tag = bytes(20)
    news = 0

    async def ask(self, link: Any) -> bool:
        return False


async def test_who_names_ever_more_nodes_is_left_at_some_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hydra = Hydra(16)
    monkeypatch.setattr(seeking, "TlsTransport", lambda *_, **__: hydra)
    monkeypatch.setattr(seeking, "Dht", lambda *_, **__: Silence())
    monkeypatch.setattr(seeking, "MAX_MET", 100)
    recovery: Any = Seeking()
    config = Config(bootstrap=(Address("127.0.0.1", 1),), mdns=False)
    seeker = seeking.Seeker(recovery, config, PeerBook(), SystemClock(), lambda _: None)
    await seeker.run(0.3)
    assert 16 < hydra.dialled <= 101  # the named one beside them
    assert not seeker.answered


async def test_the_dht_is_asked_once_though_somebody_answered_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whom it names may know of newer files than the one who was quick."""
    looked: list[str] = []

    class Slow(Silence):
        async def start(self, *_: Any) -> None:
            await asyncio.sleep(0.1)

        async def providers(self, tags: Sequence[bytes]) -> Mapping[bytes, Sequence[PeerRecord]]:
            looked.append("yes")
            return {}

    class Answered(Seeking):
        async def ask(self, link: Any) -> bool:
            self.news = 1
            return True

    monkeypatch.setattr(seeking, "TlsTransport", lambda *_, **__: Hydra(0))
    monkeypatch.setattr(seeking, "Dht", lambda *_, **__: Slow())
    monkeypatch.setattr(seeking, "GATHER_S", 0.01)
    config = Config(bootstrap=(Address("127.0.0.1", 1),), mdns=False)
    book: Any = SimpleNamespace(note_link=lambda *_: None)
    recovery: Any = Answered()
    seeker = seeking.Seeker(recovery, config, book, SystemClock(), lambda _: None)
    await seeker.run(5.0)
    assert looked


async def test_when_everybody_was_asked_nothing_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where nobody else can turn up: no search in the local network, and the DHT has answered."""

    class Answered(Seeking):
        async def ask(self, link: Any) -> bool:
            await asyncio.sleep(0)
            self.news += 1
            return True

    hydra = Hydra(0)
    monkeypatch.setattr(seeking, "TlsTransport", lambda *_, **__: hydra)
    monkeypatch.setattr(seeking, "Dht", lambda *_, **__: Silence())
    monkeypatch.setattr(seeking, "GATHER_S", 3600.0)
    config = Config(bootstrap=(Address("127.0.0.1", 1), Address("127.0.0.1", 2)), mdns=False)
    book: Any = SimpleNamespace(note_link=lambda *_: None)
    recovery: Any = Answered()
    seeker = seeking.Seeker(recovery, config, book, SystemClock(), lambda _: None)
    async with asyncio.timeout(20):
        await seeker.run(5.0)
    assert hydra.dialled == 2
    assert recovery.news == 2
