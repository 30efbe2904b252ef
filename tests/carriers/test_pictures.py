from __future__ import annotations

import asyncio
import gzip
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import ResolveResult
from aiohttp.test_utils import TestServer

from p2pstore.carriers import Carrier, NotThere, PictureHostConfig, make_carrier
from p2pstore.carriers import pictures as module
from p2pstore.carriers.address import MAX_ANSWER
from p2pstore.cli.picturehost import Manners, serving
from p2pstore.content import capacity, encode_picture
from p2pstore.errors import IntegrityError, NoRoom, P2PStoreError, Unavailable, UsageError

SIDE: dict[str, Any] = {"width": 64, "height": 64}
PICTURE = encode_picture(b"abc", 64, 64)
PIECE = os.urandom(capacity(64, 64))


@asynccontextmanager
async def carrying(url: str, **changed: Any) -> AsyncIterator[Carrier]:
    carrier = make_carrier("web", PictureHostConfig(url=url, **{**SIDE, **changed}))
    try:
        yield carrier
    finally:
        await carrier.close()


@asynccontextmanager
async def hosted(directory: Path, **manners: Any) -> AsyncIterator[Carrier]:
    """A carrier on a host with such manners."""
    rules = {"header": "header:Location", "text": "text", "page": 'regex:href="([^"]+)"'}
    rule = rules.get(manners.get("answer", ""), "json:data.url")
    async with serving("127.0.0.1", 0, directory, Manners(**manners)) as address:
        async with carrying(f"{address}/upload", address=rule) as carrier:
            yield carrier


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def served(handler: Handler, **changed: Any) -> AsyncIterator[tuple[str, Carrier]]:
    """A server that answers everything by this handler, and a carrier that uploads to it."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handler)
    async with TestServer(app) as server:
        address = str(server.make_url("")).rstrip("/")
        async with carrying(f"{address}/upload", **changed) as carrier:
            yield address, carrier


def answering(*args: Any, **options: Any) -> Handler:
    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(*args, **options)

    return handle


# -- hosts as they are ----------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["json", "header", "text", "page"])
async def test_the_address_comes_back_in_any_way(tmp_path: Path, answer: str) -> None:
    async with hosted(tmp_path, answer=answer) as carrier:
        key = await carrier.put("piece", PIECE)
        assert key.startswith("http://127.0.0.1:")
        assert await carrier.get(key) == PIECE


@pytest.mark.parametrize(
    ("reencode", "said"),
    [("jpeg", "JPEG"), ("palette", "palette"), ("rgba", "alpha"), ("scale", "scales")],
)
async def test_a_host_that_changes_pictures_is_noticed(
    tmp_path: Path, reencode: str, said: str
) -> None:
    async with hosted(tmp_path, reencode=reencode) as carrier:
        key = await carrier.put("piece", PIECE)
        with pytest.raises(IntegrityError, match=f"web .*{said}"):
            await carrier.get(key)


async def test_a_host_that_compresses_pictures_anew_is_welcome(tmp_path: Path) -> None:
    async with hosted(tmp_path, reencode="lossless") as carrier:
        key = await carrier.put("piece", PIECE)
        assert (tmp_path / key.rpartition("/")[2]).read_bytes() != encode_picture(PIECE, 64, 64)
        assert await carrier.get(key) == PIECE


async def test_a_page_with_status_200_is_noticed(tmp_path: Path) -> None:
    async with hosted(tmp_path, error_page=True) as carrier:
        with pytest.raises(Unavailable, match="without an address"):
            await carrier.put("piece", PIECE)
        with pytest.raises(Unavailable, match="web page") as caught:
            await carrier.get(f"{carrier_address(carrier)}/p/0123456789abcdef.png")
        assert type(caught.value) is Unavailable


def carrier_address(carrier: Any) -> str:
    return str(carrier._config.url).rpartition("/")[0]


async def test_a_host_that_fails_now_and_then_can_be_asked_again(tmp_path: Path) -> None:
    async with hosted(tmp_path, fail_every=2) as carrier:
        key = await carrier.put("piece", PIECE)
        with pytest.raises(Unavailable, match="503"):
            await carrier.get(key)
        assert await carrier.get(key) == PIECE
        with pytest.raises(Unavailable, match="503"):
            await carrier.put("piece", PIECE)


async def test_pieces_of_another_size_stay_readable(tmp_path: Path) -> None:
    async with serving("127.0.0.1", 0, tmp_path, Manners()) as address:
        async with carrying(f"{address}/upload", width=900, height=700) as large:
            key = await large.put("piece", bytes(1_500_000))
        async with carrying(f"{address}/upload") as small:
            assert await small.get(key) == bytes(1_500_000)


async def test_what_is_sent_is_the_form_that_was_asked_for() -> None:
    seen: dict[str, Any] = {}

    async def handle(request: web.Request) -> web.Response:
        if request.method == "POST":
            form = await request.post()
            picture = form["pic"]
            assert isinstance(picture, web.FileField)
            seen["form"] = (form["album"], picture.filename, picture.content_type)
            seen["picture"] = picture.file.read()
        seen[request.method] = dict(request.headers)
        return web.json_response({"data": {"url": "/p/1"}})

    more = {"headers": {"Authorization": "Bearer secret"}, "form": {"album": "größer"}}
    async with served(handle, field="pic", **more) as (address, carrier):
        assert await carrier.put("piece", b"abc") == f"{address}/p/1"  # it was relative
        with pytest.raises(Unavailable):
            await carrier.get(f"{address}/p/1")
    assert seen["form"] == ("größer", "piece.png", "image/png")
    assert seen["picture"] == PICTURE
    assert int(seen["POST"]["Content-Length"]) > len(PICTURE)  # many hosts want to know it
    assert seen["POST"]["Authorization"] == "Bearer secret"
    assert "Authorization" not in seen["GET"]


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (301, UsageError),
        (400, UsageError),
        (401, UsageError),
        (403, UsageError),
        (404, UsageError),
        (413, UsageError),
        (415, UsageError),
        (429, Unavailable),
        (500, Unavailable),
        (503, Unavailable),
        (507, NoRoom),
    ],
)
async def test_a_refused_upload_is_told(status: int, kind: type[P2PStoreError]) -> None:
    async with served(answering(status=status, headers={"Location": "/x"})) as (_, carrier):
        with pytest.raises(P2PStoreError, match="The carrier web") as caught:
            await carrier.put("piece", b"abc")
        assert type(caught.value) is kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotThere), (410, NotThere), (403, Unavailable), (500, Unavailable), (204, Unavailable)],
)
async def test_a_refused_download_is_told(status: int, kind: type[P2PStoreError]) -> None:
    async with served(answering(status=status)) as (address, carrier):
        with pytest.raises(P2PStoreError, match="The carrier web") as caught:
            await carrier.get(f"{address}/p/1")
        assert type(caught.value) is kind


async def test_nothing_is_deleted() -> None:
    async with carrying("http://127.0.0.1:9/upload") as carrier:
        with pytest.raises(UsageError, match="no way to delete"):
            await carrier.delete("http://127.0.0.1:9/p/1")


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = "http://{}:{}".format(*listening.getsockname())
    async with carrying(f"{address}/upload") as carrier:
        for call in (carrier.put("piece", b"abc"), carrier.get(f"{address}/p/1")):
            with pytest.raises(Unavailable, match="cannot be reached"):
                await call


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://{}", "Connection refused"),
        ("https://{}", "Connection refused"),
        ("https://nowhere.invalid", "it has no public address"),
    ],
)
async def test_why_nobody_is_there_is_told_in_words(
    url: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def resolve(*_: object) -> list[ResolveResult]:
        return []

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = url.format("{}:{}".format(*listening.getsockname()))
    async with carrying(f"{url}/upload") as carrier:
        with pytest.raises(Unavailable) as caught:
            await carrier.put("piece", b"abc")
    host = urlsplit(url).hostname
    assert str(caught.value) == f"The carrier web ({host}) cannot be reached: {why}."


async def test_a_host_that_speaks_no_tls_is_told_in_words() -> None:
    async with served(answering(status=200)) as (address, _):
        async with carrying(f"{address.replace('http', 'https')}/upload") as carrier:
            with pytest.raises(Unavailable, match="reached: it does not speak TLS"):
                await carrier.put("piece", b"abc")


async def test_a_silent_host_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = "http://{}:{}".format(*listening.getsockname())
        async with carrying(f"{address}/upload") as carrier:
            with pytest.raises(Unavailable, match="silent"):
                await carrier.get(f"{address}/p/1")


async def test_a_host_that_hangs_up_half_way() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(PICTURE))})
        await response.prepare(request)
        await response.write(PICTURE[:1000])
        assert request.transport is not None
        request.transport.abort()
        return response

    async with served(handle) as (address, carrier):
        with pytest.raises(Unavailable):
            await carrier.get(f"{address}/p/1")


# -- malice ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_counted", [True, False])
async def test_more_than_a_picture_is_not_read(
    monkeypatch: pytest.MonkeyPatch, is_counted: bool
) -> None:
    monkeypatch.setattr(module, "MAX_PICTURE", 100_000)

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if is_counted:
            response.content_length = 1 << 40
        await response.prepare(request)
        while True:  # until the other side has gone
            await response.write(bytes(50_000))

    async with served(handle) as (address, carrier):
        with pytest.raises(IntegrityError, match="more than"):
            await carrier.get(f"{address}/p/1")


async def test_a_long_answer_to_an_upload_is_not_read() -> None:
    async with served(answering(body=bytes(MAX_ANSWER + 1))) as (_, carrier):
        with pytest.raises(IntegrityError, match="more than"):
            await carrier.put("piece", b"abc")


async def test_what_was_packed_for_transport_is_not_unpacked() -> None:
    headers = {"Content-Encoding": "gzip"}
    bomb = gzip.compress(PICTURE + bytes(10_000_000))
    async with served(answering(body=bomb, headers=headers)) as (address, carrier):
        with pytest.raises(Unavailable, match="no picture"):
            await carrier.get(f"{address}/p/1")


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)",
        "ftp://h/1",
        "http://h/a b",
        "http://me:pw@h/",
        "/" + "a" * 2047,
    ],
)
async def test_an_address_that_is_none_is_refused(address: str) -> None:
    async with served(answering(text=address), address="text") as (_, carrier):
        with pytest.raises(Unavailable, match="no address"):
            await carrier.put("piece", b"abc")


@pytest.mark.parametrize("key", ["", "piece", "/p/1", "file:///etc/passwd", "http://h/\r\nx"])
async def test_a_key_that_is_no_address_is_refused(key: str) -> None:
    async with carrying("http://127.0.0.1:9/upload") as carrier:
        with pytest.raises(UsageError):
            await carrier.get(key)


def redirecting(count: int, to: str = "") -> Handler:
    async def handle(request: web.Request) -> web.Response:
        number = int(request.match_info["path"])
        if number < count:
            return web.Response(status=302, headers={"Location": to or f"{number + 1}"})
        return web.Response(body=PICTURE)

    return handle


async def test_redirects_are_followed_but_not_for_ever() -> None:
    async with served(redirecting(module.REDIRECTS)) as (address, carrier):
        assert await carrier.get(f"{address}/0") == b"abc"
    async with served(redirecting(module.REDIRECTS + 1)) as (address, carrier):
        with pytest.raises(Unavailable, match="without end"):
            await carrier.get(f"{address}/0")
    async with served(redirecting(1, "file:///etc/passwd")) as (address, carrier):
        with pytest.raises(UsageError):
            await carrier.get(f"{address}/0")


@pytest.mark.parametrize(
    "place",
    ["127.0.0.1", "[::1]", "0.0.0.0", "10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]"],
)
async def test_no_key_leads_into_our_own_network(place: str) -> None:
    async with carrying("http://pictures.example/upload") as carrier:
        with pytest.raises(UsageError, match="not public"):
            await carrier.get(f"http://{place}/p/1")


@pytest.mark.parametrize("place", ["localhost", "127.1", "2130706433", "0x7f.1"])
async def test_no_name_leads_into_our_own_network(place: str) -> None:
    async with carrying("http://pictures.example/upload") as carrier:
        with pytest.raises(Unavailable, match=r"no public address|canonical"):
            await carrier.get(f"http://{place}/p/1")


async def test_no_redirect_leads_into_our_own_network() -> None:
    async with served(redirecting(1, "http://127.0.0.2/p/1")) as (address, carrier):
        with pytest.raises(UsageError, match="not public"):
            await carrier.get(f"{address}/0")


async def test_many_large_pictures_at_once(tmp_path: Path) -> None:
    async with hosted(tmp_path) as carrier:
        keys = await asyncio.gather(*(carrier.put(f"piece-{n}", PIECE) for n in range(30)))
        assert set(await asyncio.gather(*(carrier.get(key) for key in keys))) == {PIECE}
