"""Errors as FAIL messages and back. Words from a peer are made printable before they are shown."""

from __future__ import annotations

from p2pstore.errors import (
    BlocksMissing,
    Busy,
    FormatError,
    IntegrityError,
    LocalProtocolError,
    NoRoom,
    NotAllowed,
    P2PStoreError,
    RemoteProtocolError,
    Unavailable,
    UsageError,
)
from p2pstore.wire.message import MAX_TEXT, Fail, FailCode


class Unknown(Unavailable):
    """The peer does not have, and does not know, what it was asked about."""


_TO_ERROR: dict[str, type[P2PStoreError]] = {
    "unavailable": Unavailable,
    "integrity": IntegrityError,
    "refused": NotAllowed,
    "busy": Busy,
    "unknown": Unknown,
    "no-room": NoRoom,
    "protocol": RemoteProtocolError,
}

# The first that fits wins: the more special before the more general.
_TO_CODE: tuple[tuple[type[P2PStoreError], FailCode], ...] = (
    (Unknown, "unknown"),
    (BlocksMissing, "unknown"),
    (Busy, "busy"),
    (NoRoom, "no-room"),
    (Unavailable, "unavailable"),
    (NotAllowed, "refused"),
    (IntegrityError, "integrity"),
    (RemoteProtocolError, "protocol"),
    (FormatError, "protocol"),
    (UsageError, "refused"),
)


def printable(text: str) -> str:
    """One line without control characters, of at most MAX_TEXT characters."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT])


def error_of(fail: Fail) -> P2PStoreError:
    """The error to raise for a FAIL that a peer sent."""
    return _TO_ERROR[fail.code](printable(fail.text) or f"The peer answered: {fail.code}.")


def fail_of(error: BaseException) -> Fail:
    """The FAIL to send for an error. One that is not of ours says nothing about this node."""
    if isinstance(error, P2PStoreError) and not isinstance(error, LocalProtocolError):
        for kind, code in _TO_CODE:
            if isinstance(error, kind):
                return Fail(code, printable(str(error)))
    return Fail("unavailable", "The node had an error of its own.")
