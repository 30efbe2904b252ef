"""A fake node served over a real control socket, and the command line run against it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import p2pstore
from p2pstore import cli
from p2pstore.errors import UsageError
from p2pstore.http import Frontends


class FakeControl:
    """Answers from a table; an exception in it is raised, a function is called."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.pieces: list[bytes | Exception] = [b"content"]
        self.cats: list[tuple[str, int, int | None]] = []

    async def dispatch(
        self, method: str, args: Mapping[str, Any], progress: Callable[[dict[str, Any]], None]
    ) -> Any:
        self.calls.append((method, dict(args)))
        answer = self.answers.get(method, {})
        if callable(answer):
            answer = answer(args, progress)
        if asyncio.iscoroutine(answer):
            answer = await answer
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
        return {}

    def metrics(self) -> bytes:
        return b""

    def healthz(self) -> str | None:
        return None

    def asked(self, method: str) -> list[dict[str, Any]]:
        """The arguments of each call of a method."""
        return [args for name, args in self.calls if name == method]


@dataclass
class Ran:
    code: int
    out: str
    err: str
    raw: bytes


class Line:
    """The command line in this process, on pipes or on something that says it is a terminal."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def __call__(self, *words: str, stdin: str = "", terminal: bool = False, **more: Any) -> Ran:
        out, err = _Stream(terminal), _Stream(terminal)
        with contextlib.ExitStack() as stack:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            patch.setattr(sys, "stdin", _Input(stdin, terminal))
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            code = cli.main(["--home", str(self.home), *words], **more)
        return Ran(code, out.text(), err.text(), out.bytes())


class _Stream(io.TextIOWrapper):
    def __init__(self, terminal: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def bytes(self) -> bytes:
        self.flush()
        assert isinstance(self.buffer, io.BytesIO)
        return self.buffer.getvalue()

    def text(self) -> str:
        return self.bytes().decode("utf-8", "surrogateescape")


class _Input(io.TextIOWrapper):
    def __init__(self, text: str, terminal: bool) -> None:
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8")
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def served(control: FakeControl, home: Path, tmp_path: Path) -> Iterator[FakeControl]:
    """The fake node, running: its socket stands in HOME/control."""
    with running(control, home, {"XDG_RUNTIME_DIR": str(tmp_path)}):
        yield control


@contextlib.contextmanager
def running(control: FakeControl, home: Path, env: Mapping[str, str]) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    frontends = Frontends(control, home)
    try:
        asyncio.run_coroutine_threadsafe(frontends.start(None, env), loop).result(10)
        yield
        asyncio.run_coroutine_threadsafe(frontends.close(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def line(home: Path) -> Line:
    return Line(home)


@pytest.fixture
def environment() -> Mapping[str, str]:
    """For real processes."""
    return {**os.environ, "PYTHONWARNINGS": "error"}


@pytest.fixture
def program() -> Sequence[str]:
    return (sys.executable, "-m", "p2pstore")


class FakeNode:
    """Stands for the module `p2pstore.node`: what the command line calls when no node runs."""

    WORDS = " ".join(f"word{number}" for number in range(1, 25))

    def __init__(self, control: FakeControl) -> None:
        self._control = control
        self.inits: list[tuple[Path, str | None]] = []
        self.confirmed: list[str] = []
        self.opened: list[Path] = []
        self.is_open = False

    def init_home(self, home: Path, name: str | None, *, now: float) -> str:
        self.inits.append((home, name))
        return self.WORDS

    def confirm_words(self, home: Path, words: str) -> None:
        if words != self.WORDS:
            raise UsageError("Those are the words of another group.")
        self.confirmed.append(words)

    @contextlib.asynccontextmanager
    async def offline(self, home: Path) -> AsyncIterator[FakeControl]:
        self.opened.append(home)
        self.is_open = True
        try:
            yield self._control
        finally:
            self.is_open = False


@pytest.fixture
def stopped(control: FakeControl, home: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    """A node lives in HOME and does not run; `p2pstore.node` is a fake whose `offline` yields
    `control`."""
    (home / "device.key").touch()
    node = FakeNode(control)
    monkeypatch.setitem(sys.modules, "p2pstore.node", node)  # type: ignore[arg-type]
    monkeypatch.setattr(p2pstore, "node", node, raising=False)
    return node
