"""A look at who answers somewhere, without a link."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from p2pstore.errors import PeerUnreachable
from p2pstore.ids import NodeId
from p2pstore.net import WrongPeer


async def test_the_expected_node_is_found_and_no_link_is_left(nodes: Any, until: Any) -> None:
    here, there = nodes.make(), nodes.make()
    await here.probe(*await there.listen("127.0.0.1", 0), there.node_id)
    await until(lambda: there.count == 0)
    assert here.count == 0


async def test_another_node_is_told(nodes: Any) -> None:
    here, there = nodes.make(), nodes.make()
    with pytest.raises(WrongPeer):
        await here.probe(*await there.listen("127.0.0.1", 0), NodeId(bytes(20)))


async def test_nobody_is_told(nodes: Any) -> None:
    here, there = nodes.make(), nodes.make()
    host, port = await there.listen("127.0.0.1", 0)
    await there.close()
    with pytest.raises(PeerUnreachable):
        await here.probe(host, port, there.node_id)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"", None])
async def test_what_does_not_speak_tls_is_no_node(tls: Any, answer: bytes | None) -> None:
    here = tls.make()
    here.limits = here.limits.__class__(connect_s=0.1, handshake_s=0.1)

    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is None:
            await reader.read(-1)  # until the other side has waited long enough
        else:
            writer.write(answer)
        writer.close()
        await writer.wait_closed()
        ended.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        with pytest.raises(PeerUnreachable):
            await here.probe(host, port, here.node_id)
        await ended.wait()
