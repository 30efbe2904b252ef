"""A place in memory that keeps its promises, or breaks them as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from p2pstore.carriers import NotThere, Promises
from p2pstore.errors import UsageError
from p2pstore.pieces import Patience


class Memory:
    """A carrier. `before` is called with (method, name or key) and may raise; `change` is the
    place's way with bytes."""

    def __init__(
        self,
        piece: int = 100,
        *,
        is_exact: bool = True,
        keeps_names: bool = True,
        deletes: bool = True,
    ) -> None:
        self.promises = Promises(piece, is_exact, keeps_names, deletes)
        self.kept: dict[str, bytes] = {}
        self.calls: list[tuple[str, str]] = []
        self.before: Callable[[str, str], None] = lambda method, name: None
        self.change: Callable[[bytes], bytes] = lambda content: content
        self.at_once = self.most_at_once = 0

    async def _begin(self, method: str, name: str) -> None:
        self.calls.append((method, name))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.before(method, name)
            await asyncio.sleep(0)
        finally:
            self.at_once -= 1

    async def put(self, name: str, content: bytes) -> str:
        assert len(content) <= self.promises.piece
        assert len(name) <= 64
        await self._begin("put", name)
        key = self.key_of(name) or f"chosen-{len(self.kept)}"
        content = self.change(content)
        if self.kept.setdefault(key, content) != content:
            raise UsageError(f"{key} holds something else.")
        return key

    async def get(self, key: str) -> bytes:
        await self._begin("get", key)
        if key not in self.kept:
            raise NotThere(f"{key} is not there.")
        return self.kept[key]

    async def delete(self, key: str) -> None:
        await self._begin("delete", key)
        self.kept.pop(key, None)

    def key_of(self, name: str) -> str | None:
        return f"at/{name}" if self.promises.keeps_names else None

    async def close(self) -> None: ...

    def count(self, method: str) -> int:
        return sum(called == method for called, _ in self.calls)


class Pauses:
    """Sleeps no time and remembers for how long it would have."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.patience = Patience(tries=4, sleep=self._sleep, dice=lambda: 1.0)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


@pytest.fixture
def memory() -> type[Memory]:
    return Memory


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def patience(pauses: Pauses) -> Patience:
    return pauses.patience


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


@pytest.fixture
def content() -> bytes:
    """About a dozen sealed pieces of a place that takes 1,000 bytes at a time."""
    return bytes(range(256)) * 45


@pytest.fixture
def file(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "source" / "photo.jpg"
    path.parent.mkdir()
    path.write_bytes(content)
    return path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """An empty directory for downloads."""
    path = tmp_path / "there"
    path.mkdir()
    return path
