from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from p2pstore import Client
from p2pstore.api import Download, Upload
from p2pstore.errors import (
    FormatError,
    IntegrityError,
    NotRunning,
    P2PStoreError,
    Unavailable,
    UsageError,
)
from tests.e2e.nodes import Node

KEY = "p2pc:abcdef"


async def test_no_node_is_not_running(tmp_path: Path) -> None:
    with pytest.raises(NotRunning, match="p2pstore run"):
        async with Client(tmp_path / "none"):
            pass


async def test_home_comes_from_the_argument_or_the_environment(
    fake: Any, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake.answers["peers"] = {"peers": []}
    monkeypatch.setenv("P2PSTORE_HOME", str(home))
    async with Client() as node:
        assert await node.call("peers") == {"peers": []}
    with pytest.raises(NotRunning):
        await Client(tmp_path / "other").__aenter__()


async def test_a_client_that_is_not_open_says_so(home: Path) -> None:
    with pytest.raises(UsageError, match="async with"):
        await Client(home).call("status")


async def test_arguments_and_progress_travel(fake: Any, home: Path) -> None:
    fake.answers["connect"] = {"ok": 1}
    told: list[dict[str, Any]] = []
    async with Client(home) as node:
        assert await node.call("connect", progress=told.append, address="x:1") == {"ok": 1}
    assert fake.calls == [("connect", {"address": "x:1"})]
    assert told == [{"stage": "scan"}]


@pytest.mark.parametrize(
    "error", [UsageError, FormatError, IntegrityError, Unavailable, NotRunning, P2PStoreError]
)
async def test_errors_are_those_of_the_node(fake: Any, home: Path, error: Any) -> None:
    fake.answers["join"] = error("A sentence.")
    async with Client(home) as node:
        with pytest.raises(error, match="A sentence") as caught:
            await node.call("join", link="x")
    assert type(caught.value) is error


async def test_a_method_that_the_node_does_not_know(fake: Any, home: Path) -> None:
    async with Client(home) as node:
        with pytest.raises(UsageError, match="knows no method"):
            await node.call("nonsense")


async def test_a_node_that_ends_meanwhile(fake: Any, home: Path) -> None:
    fake.answers["check"] = "nothing"
    async with Client(home) as node:
        with pytest.raises(NotRunning, match="stopped before"):
            await node.call("check")


async def test_a_long_line_comes_whole(fake: Any, home: Path) -> None:
    fake.answers["status"] = {"files": ["x" * 100] * 20_000}
    async with Client(home) as node:
        assert await node.status() == fake.answers["status"]


async def test_paths_become_absolute(
    fake: Any, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    fake.answers |= {
        "status": {},
        "add_folder": {"path": "/v"},
        "wait_folder": {"files": 3},
        "upload": {"key": "p2p:k", "name": "a", "size": 3, "expires": 7.5},
        "download": {"path": "/x/a", "size": 3},
        "hydrate": {"results": [{"path": "/v/a.f", "to": "/v/a"}, {"path": "/v/b"}]},
    }
    async with Client(home) as node:
        await node.status(["a", b"\xff"])
        assert await node.add("Vault", wait=True, min_copies=1) == {"files": 3}
        uploaded = await node.upload(Path("a"), expires_s=60, once=True)
        assert uploaded == Upload("p2p:k", "a", 3, 7.5)
        assert await node.download(KEY) == Download("/x/a", 3)
        assert await node.hydrate("a.f", "b") == ["/v/a", "/v/b"]
    here = str(tmp_path)
    assert fake.calls == [
        ("status", {"paths": [f"{here}/a", f"{here}/\udcff"]}),
        ("add_folder", {"dir": f"{here}/Vault", "settings": {"min_copies": 1}, "force": False}),
        ("wait_folder", {"dir": f"{here}/Vault"}),
        (
            "upload",
            {
                "path": f"{here}/a",
                "carrier": None,
                "expires": 60,
                "once": True,
                "password": None,
            },
        ),
        (
            "download",
            {"key": KEY, "to": here, "force": False, "carrier": None, "password": None},
        ),
        ("hydrate", {"paths": [f"{here}/a.f", f"{here}/b"]}),
    ]


async def test_one_of_many_that_failed_is_raised(fake: Any, home: Path) -> None:
    error = {"code": 3, "message": "no placeholder"}
    fake.answers["hydrate"] = {"results": [{"path": "/a"}, {"path": "/b", "error": error}]}
    async with Client(home) as node:
        with pytest.raises(FormatError, match="no placeholder"):
            await node.hydrate("/a", "/b")


# -- files ----------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 40_000  # some chunks


@pytest.mark.parametrize("key", ["p2p:k", "P2P:K", " p2p:k\n", "P2pc:k"])
async def test_a_key_is_no_path_however_it_was_passed_on(fake: Any, home: Path, key: str) -> None:
    fake.contents[key] = b"content"
    async with Client(home) as node, node.open(key) as file:
        assert file.size == 7


async def test_a_file_is_read_in_order(fake: Any, home: Path) -> None:
    fake.contents["/v/photo.jpg"] = CONTENT
    async with Client(home) as node, node.open("/v/photo.jpg") as file:
        assert (file.name, file.size) == ("photo.jpg", len(CONTENT))
        assert await file.read(5) == CONTENT[:5]
        assert await file.tell() == 5
        assert await file.read(0) == b""
        assert await file.read(3_000_000) == CONTENT[5:3_000_005]
        assert await file.read() == CONTENT[3_000_005:]
        assert await file.read(9) == b""
    assert fake.ranges == ["0-"]


async def test_a_file_is_read_anywhere(fake: Any, home: Path) -> None:
    fake.contents[KEY] = CONTENT
    async with Client(home) as node:
        file = await node.open(KEY)
        assert await file.seek(-3, os.SEEK_END) == len(CONTENT) - 3
        assert await file.read(10) == CONTENT[-3:]
        assert await file.seek(1000) == 1000
        assert await file.read(2) == CONTENT[1000:1002]
        assert await file.seek(0, os.SEEK_CUR) == 1002
        assert await file.read(2) == CONTENT[1002:1004]
        assert await file.seek(10**9) == 10**9
        assert await file.read() == b""
        with pytest.raises(ValueError, match="negative"):
            await file.seek(-1)
        await file.aclose()
        with pytest.raises(ValueError, match="not open"):
            await file.read(1)
    assert fake.ranges == [f"{len(CONTENT) - 3}-", "1000-"]


async def test_a_file_is_iterated_in_chunks(fake: Any, home: Path) -> None:
    fake.contents[KEY] = CONTENT
    async with Client(home) as node, node.open(KEY) as file:
        await file.seek(7)
        chunks = [chunk async for chunk in file]
    assert b"".join(chunks) == CONTENT[7:]
    assert max(map(len, chunks)) <= 1 << 20


async def test_an_empty_file_asks_for_nothing(fake: Any, home: Path) -> None:
    fake.contents[KEY] = b""
    async with Client(home) as node, node.open(KEY) as file:
        assert await file.read() == b""
    assert fake.ranges == []


async def test_a_body_that_is_cut_tells_why(fake: Any, home: Path) -> None:
    fake.contents[KEY] = CONTENT
    fake.breaks_at = 100_000
    async with Client(home) as node, node.open(KEY) as file:
        with pytest.raises(Unavailable, match="middle of the file"):
            await file.read()
        fake.failure = {"code": 4, "message": "a wrong block"}
        with pytest.raises(IntegrityError, match="a wrong block"):
            await file.read()


async def test_a_file_that_became_shorter_is_noticed(fake: Any, home: Path) -> None:
    fake.contents[KEY] = CONTENT
    async with Client(home) as node, node.open(KEY) as file:
        fake.contents[KEY] = CONTENT[:10]
        with pytest.raises(Unavailable, match="shorter"):
            await file.read()


@pytest.mark.slow
async def test_a_real_node_answers(node: Node, tmp_path: Path) -> None:
    vault = tmp_path / "Vault"
    vault.mkdir()
    (vault / "a.txt").write_bytes(b"content of a")
    async with Client(node.home) as client:
        done = await client.add(vault, wait=True, settle_s=0.3)
        assert done["replaced"] == 1
        assert (vault / "a.txt.f").exists()
        (row,) = (await client.status([vault / "a.txt"]))["files"]
        assert row["state"] == "placeholder"
        assert await client.hydrate(vault / "a.txt.f") == [str(vault / "a.txt")]
        with pytest.raises(UsageError):
            await client.add("/")
    assert (vault / "a.txt").read_bytes() == b"content of a"
