"""Who may ask what: the one table (DESIGN, "Who may ask what").

A role is that of the asker towards the group whose bundles are asked for: a device or admin of that
group, a friend, or a stranger of the same network. The table says under which condition a request
is served; whoever serves checks the condition, because it knows bundles, grants and offers.
"""

from __future__ import annotations

from enum import Enum, StrEnum


class Ask(StrEnum):
    HELLO = "hello"
    PING = "ping"
    PEERS = "peers"
    JOIN = "join"
    GET = "get"
    LIST = "list"
    HAVE = "have"
    CHALLENGE = "challenge"
    LOCK = "lock"
    RENEW = "renew"
    RELEASE = "release"  # and live maps: the opener of the bundle or an admin only
    HOLDINGS = "holdings"
    PUT = "put"
    HEADS = "heads"
    TUNNEL = "tunnel"  # and to be reached through one: whoever pairs two ends looks at both
    REACH = "reach"
    MOVE = "move"  # the one question that a holder asks the owner


class Need(Enum):
    """Under which condition it is granted."""

    NOTHING = "always"
    INVITATION = "with a live invitation's secret"
    OWN_GROUP = "for bundles of the asker's own group"
    TOKEN = "with a grant's token, for the blocks of that grant"
    HOLDER = "for bundles of our group that the asker holds"
    OFFER = "within what is offered to the asker's group"
    NEVER = "never"


_ALWAYS = {Ask.HELLO: Need.NOTHING, Ask.PING: Need.NOTHING, Ask.PEERS: Need.NOTHING}
_ALWAYS |= {Ask.REACH: Need.NOTHING, Ask.JOIN: Need.INVITATION}
_OF_OWN_GROUP = (
    Ask.GET,
    Ask.LIST,
    Ask.HAVE,
    Ask.CHALLENGE,
    Ask.LOCK,
    Ask.RENEW,
    Ask.RELEASE,
    Ask.HOLDINGS,
)
_RELATED = {
    **_ALWAYS,
    **dict.fromkeys(_OF_OWN_GROUP, Need.OWN_GROUP),
    Ask.PUT: Need.OFFER,
    Ask.HEADS: Need.NOTHING,
    Ask.TUNNEL: Need.NOTHING,
    Ask.MOVE: Need.HOLDER,
}
_TABLE = {
    "admin": _RELATED,
    "device": _RELATED,
    "friend": _RELATED,
    "stranger": {**_ALWAYS, Ask.GET: Need.TOKEN},
}


def need(role: str, ask: Ask) -> Need:
    """What a peer of that role has to show; a role that we do not know is a stranger."""
    return _TABLE.get(role, _TABLE["stranger"]).get(ask, Need.NEVER)


def may(role: str, ask: Ask) -> bool:
    """Whether the request may be served at all; `need` tells under which condition."""
    return need(role, ask) is not Need.NEVER
