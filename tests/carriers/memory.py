"""A carrier in memory, with any promises."""

from __future__ import annotations

import itertools

from p2pstore.carriers import NotThere, Promises
from p2pstore.carriers.config import is_harmless
from p2pstore.errors import UsageError


class MemoryCarrier:
    def __init__(
        self,
        piece: int = 1 << 20,
        *,
        is_exact: bool = True,
        keeps_names: bool = True,
        deletes: bool = True,
    ) -> None:
        self.promises = Promises(piece, is_exact, keeps_names, deletes)
        self.stored: dict[str, bytes] = {}  # by key
        self._numbers = itertools.count()

    def key_of(self, name: str) -> str | None:
        return name if self.promises.keeps_names else None

    async def put(self, name: str, content: bytes) -> str:
        _check(name)
        if len(content) > self.promises.piece:
            raise UsageError(f"A piece has at most {self.promises.piece} bytes.")
        key = name if self.promises.keeps_names else f"memory:{next(self._numbers)}"
        if self.stored.setdefault(key, content) != content:
            raise UsageError(f"Other bytes are stored under {name}.")
        return key

    async def get(self, key: str) -> bytes:
        if self.promises.keeps_names:
            _check(key)
        if key not in self.stored:
            raise NotThere(f"{key} is not stored.")
        return self.stored[key]

    async def delete(self, key: str) -> None:
        if not self.promises.deletes:
            raise UsageError("Nothing can be deleted here.")
        self.stored.pop(key, None)

    async def close(self) -> None: ...


def _check(name: str) -> None:
    if not is_harmless(name):
        raise UsageError(f"Nothing is stored under such a name: {name!r}.")
