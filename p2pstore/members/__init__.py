"""Members: who belongs to the group, and what its devices tell each other about it."""

from p2pstore.members.exchange import Acknowledged, Exchange, Pulled
from p2pstore.members.group import Group, confirm, default_name, found, in_use, is_begun
from p2pstore.members.invite import Admitted, Invitations, Invited, Knock
from p2pstore.members.joining import Joined, identity, join, newcomer
from p2pstore.members.kept import KeptGroups
from p2pstore.members.recovering import (
    Recovered,
    Recovery,
    is_cut_short,
    is_recovering,
    named_mistake,
    recovered,
    recovering_again,
)

__all__ = [
    "Acknowledged",
    "Admitted",
    "Exchange",
    "Group",
    "Invitations",
    "Invited",
    "Joined",
    "KeptGroups",
    "Knock",
    "Pulled",
    "Recovered",
    "Recovery",
    "confirm",
    "default_name",
    "found",
    "identity",
    "in_use",
    "is_begun",
    "is_cut_short",
    "is_recovering",
    "join",
    "named_mistake",
    "newcomer",
    "recovered",
    "recovering_again",
]
