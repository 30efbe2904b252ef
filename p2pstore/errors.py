"""What can go wrong, as the caller can act on it.

Each class carries the exit code with which the command line ends. Foreign errors (OSError,
sqlite3.Error, ssl.SSLError, ...) are translated where they enter and kept as `__cause__`.
A message is one sentence for the user that says what to do.
"""

from __future__ import annotations


class P2PStoreError(Exception):
    """Base of all errors that this program raises on purpose."""

    exit_code = 1


class UsageError(P2PStoreError):
    """The caller asked for something that cannot be: tell the user."""

    exit_code = 2


class FormatError(P2PStoreError):
    """The bytes are not of the format that they should be, or damaged beyond reading."""

    exit_code = 3


class IntegrityError(P2PStoreError):
    """The bytes are well formed and wrong: distrust where they came from."""

    exit_code = 4


class Unavailable(P2PStoreError):
    """Not now or not here: try elsewhere or later."""

    exit_code = 5


class PeerUnreachable(Unavailable):
    """No connection to the peer could be made, or it went away."""


class BlocksMissing(Unavailable):
    """Some blocks could be found nowhere at the moment."""


class NoRoom(Unavailable):
    """Writing would go beyond the room that we may use."""


class Busy(Unavailable):
    """Another operation holds what is asked for; try again after a random pause."""


class PortInUse(Unavailable):
    """A port that we were told to listen on belongs to somebody else."""


class HomeLocked(Unavailable):
    """Another process works on this HOME."""


class LocalProtocolError(P2PStoreError):
    """We would have broken the protocol: a bug of ours."""


class RemoteProtocolError(P2PStoreError):
    """The peer broke the protocol; the connection is closed."""

    exit_code = 4


class NotAllowed(RemoteProtocolError):
    """A peer was asked, or asked us, for what its role does not grant."""


class NotRunning(P2PStoreError):
    """The command needs the running node and there is none."""

    exit_code = 6
