"""A fake node behind the real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from p2pstore.clock import ManualClock
from p2pstore.http import Frontends


class FakeControl:
    """Answers from a table; an exception in it is raised, a function is called."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.pieces: list[bytes | Exception] = [b"content"]
        self.cats: list[tuple[str, int, int | None]] = []
        self.trouble: str | None = None
        self.said: dict[str, Any] | Exception = {"node": {"name": "laptop"}}

    async def dispatch(
        self, method: str, args: Mapping[str, Any], progress: Callable[[dict[str, Any]], None]
    ) -> Any:
        self.calls.append((method, dict(args)))
        answer = self.answers.get(method, {})
        if callable(answer):
            answer = await answer(args, progress)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def cat(
        self, path: str, start: int = 0, end: int | None = None, *, password: str = ""
    ) -> AsyncIterator[bytes]:
        self.cats.append((path, start, end))
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def status(self) -> dict[str, Any]:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said

    def metrics(self) -> bytes:
        return b"p2pstore_files 3\n"

    def healthz(self) -> str | None:
        return self.trouble


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
async def frontends(control: FakeControl, tmp_path: Path) -> AsyncIterator[Frontends]:
    home = tmp_path / "home"
    home.mkdir()
    servers = Frontends(control, home, ManualClock())
    await servers.start(("127.0.0.1", 0), env={"XDG_RUNTIME_DIR": str(tmp_path)})
    yield servers
    await servers.close()


@pytest.fixture
async def api(frontends: Frontends) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the control socket."""
    connector = aiohttp.UnixConnector(path=str(frontends.socket))
    async with aiohttp.ClientSession("http://localhost", connector=connector) as session:
        yield session


@pytest.fixture
async def ui(frontends: Frontends) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the UI port."""
    assert frontends.ui is not None
    async with aiohttp.ClientSession(frontends.ui) as session:
        yield session
