from __future__ import annotations

import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from urllib.request import Request, urlopen

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from p2pstore.carriers import Carrier, NotThere, make_carrier
from p2pstore.carriers import s3 as module
from p2pstore.carriers.s3 import PIECE
from p2pstore.errors import IntegrityError, NoRoom, P2PStoreError, Unavailable, UsageError
from tests.carriers.servers import make_bucket, s3_config, s3_server

pytestmark = pytest.mark.slow


@asynccontextmanager
async def bucket(address: str, **changed: object) -> AsyncIterator[Carrier]:
    carrier = make_carrier("cloud", s3_config(address, **changed))
    yield carrier
    await carrier.close()


@asynccontextmanager
async def answering(
    answer: Callable[[web.Request], web.Response], **changed: object
) -> AsyncIterator[Carrier]:
    """A carrier whose host answers everything so."""

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return answer(request)

    app = web.Application(client_max_size=2 * PIECE)
    app.router.add_route("*", "/{path:.*}", handle)
    async with TestServer(app) as server:
        async with bucket(str(server.make_url("")).rstrip("/"), **changed) as carrier:
            yield carrier


def error(status: int, code: str) -> Callable[[web.Request], web.Response]:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>No.</Message></Error>"
    return lambda _: web.Response(status=status, text=body, content_type="application/xml")


# -- a server that checks keys --------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a server, and the keys that it knows."""
    with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="4") as address:
        make_bucket(address)  # the first of the four
        for form in (
            "Action=CreateUser&UserName=me",
            "Action=PutUserPolicy&UserName=me&PolicyName=all&PolicyDocument="
            '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"*","Resource":"*"}]}',
            "Action=CreateAccessKey&UserName=me",
        ):
            headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/iam/aws4"}
            query = f"{form}&Version=2010-05-08".encode()
            with urlopen(Request(address, query, headers)) as answer:
                text = answer.read().decode()
        keys = {
            ours: text.partition(f"<{theirs}>")[2].partition("<")[0]
            for ours, theirs in (("access_key", "AccessKeyId"), ("secret_key", "SecretAccessKey"))
        }
        yield address, keys


async def test_the_right_keys_open(strict: tuple[str, dict[str, str]]) -> None:
    address, keys = strict
    async with bucket(address, **keys) as carrier:
        assert await carrier.get(await carrier.put("piece", b"x")) == b"x"


@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
async def test_wrong_keys_are_told(strict: tuple[str, dict[str, str]], wrong: str) -> None:
    address, keys = strict
    async with bucket(address, **{**keys, wrong: "A" * 20}) as carrier:
        for call in (carrier.put("piece", b"x"), carrier.get("piece"), carrier.delete("piece")):
            with pytest.raises(UsageError, match=wrong):
                await call


# -- a server that believes every key -------------------------------------------------------------


async def test_a_missing_bucket_is_told(s3: str) -> None:
    async with bucket(s3, bucket="another") as carrier:
        for call in (carrier.put("piece", b"x"), carrier.get("piece"), carrier.delete("piece")):
            with pytest.raises(UsageError, match="does not exist"):
                await call


async def test_a_prefix_is_a_carrier_of_its_own(s3: str) -> None:
    async with bucket(s3, prefix="one") as one, bucket(s3, prefix="one/two") as two:
        await one.put("piece", b"first")
        with pytest.raises(NotThere):
            await two.get("piece")
        await two.put("piece", b"second")
        assert await one.get("piece") == b"first"
        assert await two.get("piece") == b"second"


async def test_a_whole_bundle_fits(s3: str) -> None:
    content = os.urandom(PIECE)
    async with bucket(s3, prefix="large") as carrier:
        await carrier.put("bundle", content)
        assert await carrier.get("bundle") == content
        await carrier.delete("bundle")


async def test_what_is_larger_than_a_piece_is_not_read(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bucket(s3, prefix="bounds") as carrier:
        await carrier.put("piece", bytes(1001))
        monkeypatch.setattr(module, "PIECE", 1000)
        with pytest.raises(IntegrityError):
            await carrier.get("piece")


async def test_variables_for_other_tools_play_no_part(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "AWS_SESSION_TOKEN": "wrong",
        "AWS_ACCESS_KEY_ID": "wrong",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_SKIP_SIGNATURE": "true",
        "AWS_UNSIGNED_PAYLOAD": "true",
    }.items():
        monkeypatch.setenv(name, value)
    seen = {}

    def note(request: web.Request) -> web.Response:
        seen.update(request.headers)
        return web.Response(headers={"ETag": '"1"'})

    async with answering(note) as carrier:
        await carrier.put("piece", b"abc")
    assert "Credential=someone/" in seen["Authorization"]
    assert "x-amz-security-token" not in {name.lower() for name in seen}
    assert len(seen["x-amz-content-sha256"]) == 64  # what makes a put exact
    assert seen["If-None-Match"] == "*"


# -- a server that refuses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind", "said"),
    [
        (403, "RequestTimeTooSkewed", UsageError, "clock"),
        (403, "AccessDenied", UsageError, "rights"),
        (403, "SignatureDoesNotMatch", UsageError, "secret_key"),
        (403, "SomethingNew", UsageError, "403 SomethingNew"),
        (400, "AuthorizationHeaderMalformed", UsageError, "region"),
        (400, "EntityTooLarge", UsageError, "size"),
        (301, "PermanentRedirect", UsageError, "region"),
        (403, "QuotaExceeded", NoRoom, "full"),
        (507, "XMinioStorageFull", NoRoom, "full"),
        (503, "SlowDown", Unavailable, "503"),
        (500, "InternalError", Unavailable, "500"),
        (404, "NotFound", Unavailable, "404"),
        (418, "Teapot", Unavailable, "418"),
    ],
)
async def test_a_refusal_is_told(
    status: int, code: str, kind: type[P2PStoreError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRIES", 0)
    async with answering(error(status, code)) as carrier:
        for call in (carrier.put("piece", b"x"), carrier.get("piece"), carrier.delete("piece")):
            with pytest.raises(P2PStoreError, match=said) as caught:
                await call
            assert type(caught.value) is kind


async def test_a_page_that_says_404_is_no_missing_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES", 0)
    async with answering(lambda _: web.Response(status=404, text="<html>")) as carrier:
        with pytest.raises(Unavailable) as caught:
            await carrier.get("piece")
        assert type(caught.value) is Unavailable


async def test_a_short_outage_is_waited_for() -> None:
    states = iter([503, 200])

    def answer(_: web.Request) -> web.Response:
        return web.Response(status=next(states), headers={"ETag": '"1"'})

    async with answering(answer) as carrier:
        await carrier.put("piece", b"x")
    assert next(states, None) is None


async def test_a_silent_host_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRIES", 0)
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = "http://{}:{}".format(*listening.getsockname())
        async with bucket(address) as carrier:
            with pytest.raises(Unavailable):
                await carrier.get("piece")
    async with bucket(address) as carrier:  # nobody listens any more
        with pytest.raises(Unavailable):
            await carrier.get("piece")


async def test_a_host_without_conditions_is_asked_first() -> None:
    stored: dict[str, bytes] = {}
    bodies: list[bytes] = [b"first"]

    def answer(request: web.Request) -> web.Response:
        if request.method == "PUT":
            if "If-None-Match" in request.headers:
                return error(501, "NotImplemented")(request)
            stored[request.path] = bodies[0]
            return web.Response(headers={"ETag": '"1"'})
        if request.path in stored:
            headers = {"ETag": '"1"', "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}
            return web.Response(body=stored[request.path], headers=headers)
        return error(404, "NoSuchKey")(request)

    async with answering(answer) as carrier:
        await carrier.put("piece", b"first")
        await carrier.put("piece", b"first")
        with pytest.raises(UsageError, match="other bytes"):
            await carrier.put("piece", b"second")
    assert list(stored) == ["/pieces/piece"]


def test_without_authorities_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    with pytest.raises(UsageError, match="ca-certificates"):
        make_carrier("cloud", s3_config("http://127.0.0.1:1"))


def test_without_its_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match=r"p2pstore\[s3\]"):
        make_carrier("cloud", s3_config("http://127.0.0.1:9"))
