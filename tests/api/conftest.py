"""A node as its clients see it: a small server that speaks http/control.py on a Unix socket."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from p2pstore.errors import P2PStoreError
from tests.e2e.conftest import ended
from tests.e2e.nodes import Node


class FakeNode:
    """Answers from a table; what is an error is told as one."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.contents: dict[str, bytes] = {}
        self.ranges: list[str] = []
        self.breaks_at: int | None = None  # bytes of a body after which it is cut
        self.failure: dict[str, Any] | None = None

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/api/v1/{method}", self._call)
        app.router.add_get("/api/v1/cat", self._cat)
        app.router.add_get("/api/v1/cat/failure", self._failure)
        return app

    async def _call(self, request: web.Request) -> web.StreamResponse:
        method = request.match_info["method"]
        args = json.loads(await request.read())
        self.calls.append((method, args))
        answer = self.answers.get(method)
        if method == "stat" and answer is None:
            content = self.contents[args["path"]]
            answer = {"name": "photo.jpg", "size": len(content)}
        if answer is None:
            error = {"code": 2, "message": f"This node knows no method {method!r}."}
            return web.json_response({"error": error}, status=404)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"progress":{"stage":"sc')
        await response.write(b'an"}}\n')
        if isinstance(answer, P2PStoreError):
            line = {"error": {"code": answer.exit_code, "message": str(answer)}}
        else:
            line = {"result": answer}
        if answer != "nothing":
            await response.write(json.dumps(line).encode() + b"\n")
        return response

    async def _cat(self, request: web.Request) -> web.StreamResponse:
        content = self.contents[request.query["path"]]
        self.ranges.append(request.query["range"])
        first, _, last = request.query["range"].partition("-")
        content = content[int(first) : int(last) + 1 if last else None]
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(content[: self.breaks_at])
        if self.breaks_at is not None and request.transport is not None:
            request.transport.abort()
        return response

    async def _failure(self, request: web.Request) -> web.Response:
        return web.json_response({"error": self.failure})


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeNode]:
    """It runs, and its socket stands in HOME/control."""
    node = FakeNode()
    runner = web.AppRunner(node.application(), shutdown_timeout=0.1)
    await runner.setup()
    socket = tmp_path / "s"
    await web.UnixSite(runner, socket).start()
    home = tmp_path / "node"
    home.mkdir()
    (home / "control").write_text(f"{socket}\n")
    yield node
    await runner.cleanup()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "node"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A real one that runs."""
    real = Node(tmp_path_factory.mktemp("node"))
    try:
        real.init()
        yield real.start()
    finally:
        ended([real])
