"""WORLD: what is the same for all bundles while one plan is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance.index import HeadOrder
from p2pstore.policy import Candidate, Holder


@dataclass(frozen=True, slots=True)
class World:
    now: float
    holders: Mapping[NodeId, Holder]  # everybody that may hold for us
    eligible: int  # of them, those that could hold something now
    heads: Mapping[FolderId, HeadOrder]
    clean: frozenset[FolderId]  # folders whose head covers everything that is protected
    state: tuple[int, int]  # (generation, seq) of the newest group state
    words_confirmed: bool
    second_device: bool
    rebuilding: bool
    takers: Sequence[Candidate] = ()  # who is connected, and could be given something now
