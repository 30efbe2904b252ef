"""Members: who belongs to the group, and what its devices tell each other about it."""

from p2pstore.members.group import Group

__all__ = ["Group"]
