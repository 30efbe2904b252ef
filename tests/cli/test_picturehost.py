"""The host as its users meet it: a process, spoken to over HTTP."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from click.testing import CliRunner

from p2pstore.cli import picturehost
from p2pstore.cli.picturehost import Manners, main, serving
from p2pstore.content import encode_picture

PICTURE = encode_picture(b"abc", 64, 64)


@asynccontextmanager
async def talking(
    directory: Path, **manners: Any
) -> AsyncIterator[tuple[str, aiohttp.ClientSession]]:
    async with serving("127.0.0.1", 0, directory, Manners(**manners)) as address:
        async with aiohttp.ClientSession() as session:
            yield address, session


def form(picture: bytes = PICTURE, *, fields: int = 1) -> aiohttp.FormData:
    made = aiohttp.FormData()
    for number in range(fields):
        made.add_field(f"field-{number}", "text")
    made.add_field("image", picture, filename="a.png", content_type="image/png")
    return made


async def test_what_was_uploaded_is_served(tmp_path: Path) -> None:
    async with talking(tmp_path) as (address, session):
        async with session.post(f"{address}/upload", data=form()) as answer:
            url = (await answer.json())["data"]["url"]
        async with session.get(url) as answer:
            assert answer.content_type == "image/png"
            assert await answer.read() == PICTURE
        assert [path.name for path in tmp_path.iterdir()] == [url.rpartition("/")[2]]


async def test_what_is_no_picture_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picturehost, "MAX_UPLOAD", 20_000)
    empty = aiohttp.FormData({"only": "text"})
    cases = [
        (form(b"GIF89a"), 415),
        (b"raw bytes", 415),
        (form(PICTURE + bytes(20_000)), 413),
        (form(fields=40), 400),
        (aiohttp.FormData([("image", "text")], default_to_multipart=True), 400),
        (empty, 415),
    ]
    async with talking(tmp_path) as (address, session):
        for data, status in cases:
            async with session.post(f"{address}/upload", data=data) as answer:
                assert answer.status == status
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.png", "..%2Fsecret.png", "0123456789abcdef.png", "%00"])
async def test_nothing_else_is_served(tmp_path: Path, name: str) -> None:
    tmp_path.joinpath("secret.png").write_bytes(b"secret")
    directory = tmp_path / "pictures"
    directory.mkdir()
    directory.joinpath("x.png").write_bytes(b"not uploaded")
    async with talking(directory) as (address, session):
        async with session.get(f"{address}/p/{name}") as answer:
            assert answer.status == 404


async def test_each_third_request_fails(tmp_path: Path) -> None:
    async with talking(tmp_path, fail_every=3) as (address, session):
        states = []
        for _ in range(6):
            async with session.get(f"{address}/p/x") as answer:
                states.append(answer.status)
    assert states == [404, 404, 503, 404, 404, 503]


async def test_a_throttled_host_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    sleep = asyncio.sleep

    async def sleeping(delay_s: float) -> None:
        waited.append(delay_s)
        await sleep(0)

    async with talking(tmp_path, throttle=1000) as (address, session):
        monkeypatch.setattr(asyncio, "sleep", sleeping)
        async with session.post(f"{address}/upload", data=form()) as answer:
            url = (await answer.json())["data"]["url"]
        async with session.get(url) as answer:
            assert await answer.read() == PICTURE
        monkeypatch.undo()
    assert sum(waited) == pytest.approx((2 * len(PICTURE) + len("text")) / 1000)


@pytest.mark.slow
def test_it_is_a_program(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "p2pstore.cli.picturehost", "--dir", tmp_path / "new"],
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_wrong_option_is_told(tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(main, ["--dir", str(tmp_path), "--listen", "nowhere"]).exit_code == 1
    assert run(main, ["--dir", str(tmp_path), "--reencode", "bmp"]).exit_code == 2
    assert run(main, []).exit_code == 2
