"""The proxies on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from tests.chaos import Address, Faults, TcpProxy, UdpProxy

CHECKOUT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 2000


@pytest.fixture
async def echo() -> AsyncIterator[Address]:
    """A TCP server that sends everything back, and ends when its client does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65_536):
                writer.write(piece)
                await writer.drain()
            writer.write_eof()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[:2]
    server.close()


async def through(proxy: TcpProxy, content: bytes = CONTENT) -> bytes:
    """What comes back of it; ConnectionError when the connection is reset."""
    reader, writer = await asyncio.open_connection(*proxy.address)

    async def send() -> None:
        writer.write(content)
        await writer.drain()
        writer.write_eof()

    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(send())
            reading = both.create_task(reader.read())
        return reading.result()
    except* ConnectionError as lost:
        raise ConnectionResetError("reset") from lost
    finally:
        writer.transport.abort()


async def test_in_fair_weather_everything_passes(echo: Address) -> None:
    async with TcpProxy(echo, Faults(delay_s=(0, 0.002)), seed=1) as proxy:
        assert await asyncio.gather(*(through(proxy) for _ in range(5))) == [CONTENT] * 5
        assert proxy.told == {"connections": 5, "bytes": 10 * len(CONTENT)}


async def test_flipped_bits_arrive_flipped(echo: Address) -> None:
    async with TcpProxy(echo, Faults(corrupt_every=50_000), seed=1) as proxy:
        came = await through(proxy)
        assert len(came) == len(CONTENT)
        assert sum(a != b for a, b in zip(came, CONTENT, strict=True)) == proxy.told["flips"] > 3


async def test_a_cut_is_heard_by_both_sides(echo: Address) -> None:
    async with TcpProxy(echo, Faults(cut_every=100_000), seed=1) as proxy:
        with pytest.raises(ConnectionResetError):
            await through(proxy)
        assert proxy.told["cuts"] == 1
        proxy.faults = Faults()
        assert await through(proxy) == CONTENT, "the next connection has the new weather"


async def test_a_stall_is_silence_and_no_end(echo: Address) -> None:
    async with TcpProxy(echo, Faults(stall_every=100_000), seed=1) as proxy:
        waiting = asyncio.ensure_future(through(proxy))
        async with asyncio.timeout(20):
            while not proxy.told["stalls"]:
                await asyncio.sleep(0.005)
        assert (await asyncio.wait([waiting], timeout=0.2))[1] == {waiting}
        waiting.cancel()
        await asyncio.wait([waiting])
    async with TcpProxy(echo, Faults(stall_every=100_000, stall_s=0.01), seed=1) as proxy:
        assert await through(proxy) == CONTENT
        assert proxy.told["stalls"]


async def test_a_throttled_line_takes_its_time(echo: Address) -> None:
    loop = asyncio.get_running_loop()
    async with TcpProxy(echo, Faults(rate=2_000_000), seed=1) as proxy:
        began = loop.time()
        assert await through(proxy) == CONTENT
        assert loop.time() - began > len(CONTENT) / 2_000_000


async def test_nobody_behind_it_is_a_closed_door(echo: Address) -> None:
    del echo
    async with TcpProxy(("127.0.0.1", 1), Faults(), seed=1) as proxy:
        with contextlib.suppress(ConnectionError):
            assert await through(proxy, b"x") == b""


class Peer(asyncio.DatagramProtocol):
    """A UDP socket that keeps, or sends back, what it hears."""

    def __init__(self, *, echoes: bool = False) -> None:
        self.heard: list[bytes] = []
        self.echoes = echoes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:  # type: ignore[override]
        self.heard.append(data)
        if self.echoes:
            self.transport.sendto(data, addr)


async def exchanged(faults: Faults, count: int, wanted: int) -> tuple[list[bytes], UdpProxy]:
    """What comes back of `count` datagrams, once `wanted` came or were lost, or after 2 s."""
    loop = asyncio.get_running_loop()
    server, _ = await loop.create_datagram_endpoint(
        lambda: Peer(echoes=True), local_addr=("127.0.0.1", 0)
    )
    async with UdpProxy(server.get_extra_info("sockname"), faults, seed=7) as proxy:
        client, peer = await loop.create_datagram_endpoint(Peer, remote_addr=proxy.address)
        for i in range(count):
            client.sendto(i.to_bytes(2, "big"))
            await asyncio.sleep(0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while len(peer.heard) + proxy.told["lost"] < wanted:
                    await asyncio.sleep(0.005)
        client.close()
    server.close()
    await asyncio.sleep(0)
    return peer.heard, proxy


def numbers(count: int) -> list[bytes]:
    return [i.to_bytes(2, "big") for i in range(count)]


async def test_datagrams_find_their_way_back() -> None:
    heard, proxy = await exchanged(Faults(), 50, 50)
    assert sorted(heard) == numbers(50)
    assert proxy.told == {"datagrams": 100}


async def test_lost_datagrams_do_not_come() -> None:
    heard, proxy = await exchanged(Faults(loss=1.0), 5, 5)
    assert heard == []
    assert proxy.told["lost"] == 5


async def test_reordered_datagrams_come_later_than_their_followers() -> None:
    heard, proxy = await exchanged(Faults(reorder=0.3), 40, 40)
    assert sorted(heard) == numbers(40)
    assert heard != numbers(40)
    assert proxy.told["reordered"] > 5


async def test_doubled_datagrams_come_twice() -> None:
    heard, _ = await exchanged(Faults(duplicate=1.0), 5, 20)
    assert sorted(heard) == sorted(numbers(5) * 4)


@pytest.mark.slow
async def test_the_program_serves_both_on_one_port(echo: Address) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.chaos", "--to", f"{echo[0]}:{echo[1]}", "--seed", "7",
        "--delay", "1ms-3ms", "--cut-every", "1GB", "--loss", "0.3",
        stdout=subprocess.PIPE, cwd=CHECKOUT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        found = re.fullmatch(r"Listening at 127\.0\.0\.1:(\d+), seed 7\n", line)
        assert found, line
        reader, writer = await asyncio.open_connection("127.0.0.1", int(found[1]))
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        process.send_signal(signal.SIGINT)
        told = (await process.stdout.read()).decode()
        assert re.search(r"^bytes +10$", told, re.MULTILINE)
        assert await process.wait() == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
