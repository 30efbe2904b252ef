"""What a carrier is: a place that stores bytes under keys, and knows nothing else.

A carrier sees sealed bytes only. It is asked little, because hosts of pictures, disks and object
stores have little in common; what it does more, or less, stands in its `Promises`.
"""

from __future__ import annotations

from typing import Annotated, Final, NamedTuple, Protocol

import msgspec

from p2pstore.errors import Unavailable

MAX_KEY: Final = 2048  # characters: keys are names or addresses, never content
MAX_NAME: Final = 64  # of what is stored: letters, digits, "-", "_" and "."

CarrierName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
"""What the user calls a carrier."""


class NotThere(Unavailable):
    """The carrier does not have it, or not any more."""


class Promises(NamedTuple):
    """What a carrier says of itself; whoever uses it relies on nothing more."""

    piece: int  # bytes of content that one `put` takes at most
    is_exact: bool  # `put` returns only when the very bytes are stored; else: read them back
    keeps_names: bool  # the key of what was put as `name` can be told without asking: `key_of`
    deletes: bool  # what `delete` was called for is gone


class Carrier(Protocol):
    """All methods may be called at once, from one event loop.

    They raise Unavailable (try again later), NoRoom, UsageError (the carrier is set up wrongly, and
    how), IntegrityError (what came back is not what was put), and no foreign errors.
    """

    @property
    def promises(self) -> Promises: ...

    async def put(self, name: str, content: bytes) -> str:
        """Store `content`, of at most `promises.piece` bytes; the key under which it is found.

        `name` has at most MAX_NAME harmless characters. Where names are kept, the same name with
        the same content is no error, and with other content UsageError: nothing is overwritten.
        """

    async def get(self, key: str) -> bytes:
        """What was put; NotThere. Never more than a piece is read, whatever the place sends."""

    async def delete(self, key: str) -> None:
        """Nothing happens when it is not there; UsageError where nothing can be deleted."""

    def key_of(self, name: str) -> str | None:
        """The key that `put` gives to this name; None where the place chooses it."""

    async def close(self) -> None: ...
