from __future__ import annotations

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from nacl.signing import SigningKey

from p2pstore.errors import PeerUnreachable, RemoteProtocolError
from p2pstore.net import Limits, Request, TlsTransport
from p2pstore.net import tls as recipe
from p2pstore.wire import Ok

Until = Callable[[Callable[[], bool]], Awaitable[None]]
KEY = SigningKey(bytes(range(32)))


async def never(request: Request) -> None:
    raise AssertionError("served a peer that is not identified")


def test_ca_is_the_same_on_every_node() -> None:
    raw = recipe.carrier_ca().public_bytes(serialization.Encoding.DER)
    recipe.carrier_ca.cache_clear()
    assert recipe.carrier_ca().public_bytes(serialization.Encoding.DER) == raw


def test_leaf_gives_the_key_back() -> None:
    public = recipe.Ed25519PrivateKey.from_private_bytes(bytes(KEY)).public_key()
    der = recipe.leaf_certificate(public).public_bytes(serialization.Encoding.DER)
    assert len(der) < recipe.MAX_CERTIFICATE
    assert recipe.key_of_certificate(der) == bytes(KEY.verify_key)


def test_context_without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(recipe.os, "memfd_create", raising=False)
    assert recipe.server_context(KEY).num_tickets == 0


@pytest.mark.parametrize("leaf", [None, b"", b"junk", b"\x30" * 5000])
def test_junk_is_no_certificate(leaf: bytes | None) -> None:
    with pytest.raises(RemoteProtocolError):
        recipe.key_of_certificate(leaf)


def elliptic_leaf(tmp_path: Path) -> str:
    """A leaf that the carrier CA signs, but of another kind of key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "p2pstore node")])
    leaf = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(recipe.carrier_ca().subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2200, 1, 1, tzinfo=datetime.UTC))
        .sign(recipe._carrier_key(), None)
    )
    path = tmp_path / "leaf.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + leaf.public_bytes(serialization.Encoding.PEM)
    )
    return str(path)


def client_context(**changes: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if changes.get("alpn", True):
        context.set_alpn_protocols([recipe.ALPN])
    if "maximum" in changes:
        context.maximum_version = changes["maximum"]
    if "leaf" in changes:
        context.load_cert_chain(changes["leaf"])
    return context


async def said_to(address: tuple[str, int], context: ssl.SSLContext | None, first: bytes) -> bytes:
    """Everything that the node says to a client like this one, until it closes."""
    try:
        reader, writer = await asyncio.open_connection(
            *address, ssl=context, server_hostname="p2pstore" if context else None
        )
        writer.write(first)
        try:
            async with asyncio.timeout(5):
                return await reader.read()
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)
    except (OSError, ssl.SSLError):
        return b""


async def test_other_kind_of_key_is_refused(tls: Any, tmp_path: Path) -> None:
    server = tls.make(never)
    address = await server.listen("127.0.0.1", 0)
    said = await said_to(address, client_context(leaf=elliptic_leaf(tmp_path)), b"")
    assert b"not Ed25519" in said
    assert b"node" not in said  # HELLO was not sent
    assert server.links() == []


async def test_server_with_other_kind_of_key_is_refused(tls: Any, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols([recipe.ALPN])
    context.load_cert_chain(elliptic_leaf(tmp_path))
    came = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.extend(await reader.read())
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        with pytest.raises(RemoteProtocolError, match="not Ed25519"):
            await tls.make().dial(*server.sockets[0].getsockname())
        await asyncio.sleep(0)
    assert b"node" not in came


async def test_client_without_certificate_gets_nothing(tls: Any) -> None:
    server = tls.make(never)
    address = await server.listen("127.0.0.1", 0)
    assert await said_to(address, client_context(), b"") == b""


async def test_older_tls_gets_nothing(tls: Any) -> None:
    server = tls.make(never)
    address = await server.listen("127.0.0.1", 0)
    old = client_context(maximum=ssl.TLSVersion.TLSv1_2)
    assert await said_to(address, old, b"") == b""


async def test_plain_http_gets_nothing(tls: Any) -> None:
    server = tls.make(never)
    address = await server.listen("127.0.0.1", 0)
    said = await said_to(address, None, b"GET / HTTP/1.0\r\n\r\n")
    assert b"HTTP" not in said


async def test_other_protocol_over_tls_is_refused(tls: Any, tmp_path: Path) -> None:
    server = tls.make(never)
    address = await server.listen("127.0.0.1", 0)
    said = await said_to(
        address, client_context(alpn=False, leaf=elliptic_leaf(tmp_path)), b"GET /"
    )
    assert b"does not speak" in said


async def test_stalled_handshake_is_ended(tls: Any, until: Until) -> None:
    server = tls.make(never, limits=Limits(check_every_s=3600, handshake_s=0.05))
    address = await server.listen("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*address)
    writer.write(b"\x16\x03")
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()
    await until(lambda: server.count == 0)


async def test_missing_hello_is_ended(tls: Any, until: Until) -> None:
    server = tls.make(never)
    address = await server.listen("127.0.0.1", 0)
    _, writer = await asyncio.open_connection(
        *address, ssl=recipe.client_context(KEY), server_hostname="p2pstore"
    )
    await until(lambda: any(link._transport is not None for link in server._links))
    nodes_now = tls.clock
    nodes_now.advance(4.9)
    server.check()
    assert server.count == 1
    nodes_now.advance(0.2)
    server.check()
    await until(lambda: server.count == 0)
    writer.transport.abort()
    await asyncio.sleep(0)


async def test_floods_of_the_unidentified_are_bounded(tls: Any, until: Until) -> None:
    server = tls.make(never, limits=Limits(check_every_s=3600, max_unidentified=3))
    address = await server.listen("127.0.0.1", 0)
    opened = [await asyncio.open_connection(*address) for _ in range(6)]
    assert await asyncio.wait_for(opened[5][0].read(), 5) == b""
    assert server.count == 3
    for _, writer in opened:
        writer.transport.abort()
    await until(lambda: server.count == 0)


@asynccontextmanager
async def silence() -> AsyncIterator[tuple[str, int]]:
    """The address of a server that accepts and never says a word."""
    ended = asyncio.Semaphore(0)
    served = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        try:
            await reader.read()
        finally:
            writer.transport.abort()
            ended.release()

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()
        for _ in range(20):
            await asyncio.sleep(0)
        for _ in range(served):
            await asyncio.wait_for(ended.acquire(), 5)
        await asyncio.sleep(0)


async def test_dialling_silence_is_given_up(tls: Any) -> None:
    client = tls.make(limits=Limits(check_every_s=3600, handshake_s=0.05))
    async with silence() as address:
        with pytest.raises(PeerUnreachable):
            await client.dial(*address)
    assert client.count == 0


async def test_cancelled_dial_leaves_nothing(tls: Any, until: Until) -> None:
    client = tls.make()
    async with silence() as address:
        dialling = asyncio.ensure_future(client.dial(*address))
        await until(lambda: client.count == 1)
        dialling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialling
    assert client.count == 0


async def test_name_that_does_not_exist_is_unreachable(tls: Any) -> None:
    with pytest.raises(PeerUnreachable):
        await tls.make().dial("nobody.invalid", 8080)


async def test_ipv6_loopback(tls: Any) -> None:
    async def ok(request: Request) -> None:
        await request.reply(Ok())

    server = tls.make(ok)
    try:
        address = await server.listen("::1", 0)
    except Exception:  # whatever a machine without IPv6 says
        pytest.skip("this machine has no IPv6")
    assert (await tls.make().dial(*address)).is_ready


def test_it_works_on_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")
    from p2pstore.ids import BlockId, PublicKey
    from p2pstore.wire import VERSIONS, BlockReply, Get, GetDone, Hello

    async def serve(request: Request) -> None:
        for _ in range(8):
            await request.reply(BlockReply(BlockId(bytes(32))), bytes(1 << 20), final=False)
        await request.reply(GetDone())

    async def run() -> int:
        before = len(asyncio.all_tasks())
        nodes = []
        for seed in (1, 2):
            key = SigningKey(bytes([seed]) * 32)
            said = Hello("main", VERSIONS, PublicKey(bytes(key.verify_key)))
            nodes.append(TlsTransport(key, hello=lambda said=said: said, handler=serve))
        link = await nodes[0].dial(*await nodes[1].listen("127.0.0.1", 0))
        size = 0
        async for _, payload in link.stream(Get(b"x")):
            size += len(payload)
        for node in nodes:
            await node.close()
        assert len(asyncio.all_tasks()) == before
        return size

    assert uvloop.run(run()) == 8 << 20
