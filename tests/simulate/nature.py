"""What happens to peers and bundles, whatever anybody does about it.

Bundles of one file share a set of holders, so a group of them is one thing here, with a weight.
A group is lost when no machine has it any more; it then begins anew, so that the number of bundles
stays. Deaths, fires and absences come at random and without memory.
"""

from __future__ import annotations

import heapq
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from p2pstore.policy import BackOff, Copy
from tests.simulate.peer import Peer, new_peer
from tests.simulate.scenario import DAY, YEAR, Scenario

BEGIN = 1000 * DAY  # the wall clock's first time: none of the policy's times is 0
SUSPECT_S, FORGET_S = DAY + 1, 14 * DAY + 1  # after so long the owner looks at who is gone


class Kind(IntEnum):
    DIE = 0  # nature
    FIRE = 1
    ABSENT = 2
    OWNER_LEAVES = 3
    OWNER_DIES = 4
    RETURN = 5
    JOIN = 6
    OWNER_BACK = 7
    LOOK = 8  # the owner's; dropped while it is away
    RETRY = 9
    DONE = 10
    FORGET = 11
    AUDIT = 12


MEMORYLESS = frozenset({Kind.DIE, Kind.FIRE, Kind.ABSENT, Kind.OWNER_LEAVES, Kind.OWNER_DIES})


@dataclass(slots=True)
class Kept:
    """What the owner's catalog knows of a copy, and whether the bundle is still there."""

    copy: Copy
    is_there: bool


@dataclass(slots=True)
class Group:
    number: int
    seed: bytes
    since: float
    copies: dict[int, Kept] = field(default_factory=dict)  # by the number of the peer
    is_local: bool = False
    there: int = 0  # machines that have it, known or not, the owner's too
    low_since: float | None = None  # since when fewer than `min_copies` have it
    back_off: BackOff = field(default_factory=BackOff)
    surplus_since: float | None = None
    is_first: bool = True  # not lost before

    def clone(self) -> Group:
        copies = {n: Kept(kept.copy, kept.is_there) for n, kept in self.copies.items()}
        return Group(
            self.number,
            self.seed,
            self.since,
            copies,
            self.is_local,
            self.there,
            self.low_since,
            self.back_off,
            self.surplus_since,
            self.is_first,
        )


@dataclass(slots=True)
class Tally:
    """What one world has seen. In bundles where nothing else is said."""

    world_years: float = 0.0
    bundle_years: float = 0.0
    lost: int = 0
    lost_groups: int = 0
    low_years: float = 0.0  # bundle-years with fewer than `min_copies` in being
    moved: int = 0  # brought back or pushed
    liars: int = 0  # that were given anything
    found_after: list[float] = field(default_factory=list)  # seconds from their first receipt
    accused: int = 0  # honest holders taken for liars
    ended: list[float] = field(default_factory=list)  # years at which a first group was lost
    rare: float = 0.0  # lost bundles, by splitting


class Nature(ABC):
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.dice = random.Random(seed)
        self.now = BEGIN
        self.tally = Tally()
        self.peers: dict[int, Peer] = {}
        self.groups: list[Group] = []
        self._events: list[tuple[float, int, int, int, tuple[int, ...]]] = []
        self._sequence = 0
        self._era = 0  # memoryless events of an earlier era do not happen
        self._owner_is_there = True
        self._counts = [0] * 64  # groups by how many machines have them
        for place in range(scenario.peers + scenario.friends):
            self._join(place)
        self._draw_nature()

    @abstractmethod
    def _owner_sees(self, kind: Kind, about: tuple[int, ...]) -> None:
        """Something happened that its owner may act upon."""

    @abstractmethod
    def _write(self, group: Group) -> None:
        """Give a new group to holders."""

    # -- time -------------------------------------------------------------------------------------

    def step(self) -> int:
        """The next event; how many bundles it lost."""
        when, _, era, kind, about = heapq.heappop(self._events)
        if kind in MEMORYLESS and era != self._era:
            return 0
        self.now = when
        lost = self.tally.lost
        self._happens(Kind(kind), about)
        return self.tally.lost - lost

    def due(self) -> float:
        """When the next event is."""
        return self._events[0][0]

    def fewest(self) -> int:
        """How many peers have the group that the fewest have."""
        return next(n for n, count in enumerate(self._counts) if count)

    def close(self, end: float) -> Tally:
        self.now = end
        years = (self.now - BEGIN) / YEAR
        self.tally.world_years = years
        self.tally.bundle_years = years * self.scenario.weight * len(self.groups)
        for group in self.groups:
            self._count_low(group)
        for peer in self.peers.values():
            self._count_liar(peer)
        return self.tally

    def _count_liar(self, peer: Peer) -> None:
        if peer.keeps < 1.0 and peer.record.since is not None:
            self.tally.liars += 1

    def _at(self, when: float, kind: Kind, *about: int) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, self._era, int(kind), about))

    def _happens(self, kind: Kind, about: tuple[int, ...]) -> None:
        match kind:
            case Kind.DIE:
                self._die(about)
            case Kind.FIRE:
                self._draw_fire(about[0])
                peers = self.peers.values()
                self._die(p.number for p in peers if p.place % self.scenario.houses == about[0])
            case Kind.ABSENT:
                self._leave(about[0])
            case Kind.RETURN:
                self._return(about[0])
            case Kind.JOIN:
                self._draw_life(self._join(about[0]))
            case Kind.OWNER_LEAVES | Kind.OWNER_DIES:
                self._owner_goes(kind)
            case Kind.OWNER_BACK:
                self._owner_is_there = True
                self._draw_owner()
        self._owner_sees(kind, about)

    # -- nature -----------------------------------------------------------------------------------

    def _draw_nature(self) -> None:
        """All that is without memory."""
        for peer in self.peers.values():
            self._draw_life(peer)
        for house in range(self.scenario.houses):
            self._draw_fire(house)
        self._draw_owner()

    def _draw_life(self, peer: Peer) -> None:
        if not peer.is_dead:
            life = self.dice.expovariate(1 / self.scenario.life_years) * YEAR
            self._at(self.now + life, Kind.DIE, peer.number)
        if not peer.is_dead and peer.gone_at is None:
            self._draw_absence(peer)

    def _draw_absence(self, peer: Peer) -> None:
        if self.scenario.absences:
            stay = self.dice.expovariate(self.scenario.absences) * YEAR
            self._at(self.now + stay, Kind.ABSENT, peer.number)

    def _draw_fire(self, house: int) -> None:
        if self.scenario.fires_a_house:
            pause = self.dice.expovariate(self.scenario.fires_a_house) * YEAR
            self._at(self.now + pause, Kind.FIRE, house)

    def _draw_owner(self) -> None:
        """What ends its presence: whichever comes first."""
        if not self._owner_is_there:
            return
        life = self.dice.expovariate(1 / self.scenario.life_years) * YEAR
        stay = life
        if self.scenario.owner_absences:
            stay = self.dice.expovariate(self.scenario.owner_absences) * YEAR
        kind = Kind.OWNER_LEAVES if stay < life else Kind.OWNER_DIES
        self._at(self.now + min(stay, life), kind)

    def _owner_goes(self, kind: Kind) -> None:
        self._owner_is_there = False
        if kind is Kind.OWNER_LEAVES:
            low, high = self.scenario.owner_absence_days
            self._at(self.now + self.dice.uniform(low, high) * DAY, Kind.OWNER_BACK)
            return
        self._at(self.now + self.scenario.recovered_after_s, Kind.OWNER_BACK)
        for group in self.groups:
            self._set_local(group, False)

    def _join(self, place: int) -> Peer:
        self._sequence += 1
        peer = new_peer(self._sequence, place, self.scenario, self.now, self.dice)
        self.peers[peer.number] = peer
        return peer

    def _leave(self, number: int) -> None:
        peer = self.peers.get(number)
        if peer is None or peer.is_dead or peer.gone_at is not None:
            return
        self._is_gone(peer)
        low, high = self.scenario.absence_days
        self._at(self.now + self.dice.uniform(low, high) * DAY, Kind.RETURN, peer.number)

    def _return(self, number: int) -> None:
        peer = self.peers.get(number)
        if peer is None or peer.is_dead:
            return
        peer.gone_at = None
        peer.holder = peer.holder._replace(last_seen=None)  # it is there: nothing to judge
        self._draw_absence(peer)

    def _die(self, numbers: Iterable[int]) -> None:
        """All of these at once."""
        dying = [p for n in numbers if (p := self.peers.get(n)) is not None and not p.is_dead]
        for peer in dying:
            if peer.gone_at is None:
                self._is_gone(peer)
            peer.is_dead = True
            self._at(self.now + FORGET_S, Kind.FORGET, peer.number)
            self._at(self.now + self.scenario.replaced_after_s, Kind.JOIN, peer.place)
        for peer in dying:
            for group in [self.groups[n] for n in sorted(peer.groups)]:
                kept = group.copies[peer.number]
                if kept.is_there:
                    kept.is_there = False
                    self._count(group, -1)

    def _is_gone(self, peer: Peer) -> None:
        peer.gone_at = self.now
        peer.holder = peer.holder._replace(last_seen=self.now)
        self._at(self.now + SUSPECT_S, Kind.LOOK, peer.number)
        self._at(self.now + FORGET_S, Kind.FORGET, peer.number)

    def _count(self, group: Group, change: int) -> None:
        """A machine has it now, or has it no more."""
        self._count_low(group)
        self._counts[group.there] -= 1
        group.there += change
        self._counts[group.there] += 1
        if group.there < self.scenario.min_copies:
            group.low_since = self.now
        if group.there == 0:
            self._lose(group)

    def _set_local(self, group: Group, is_local: bool) -> None:
        if is_local != group.is_local:
            group.is_local = is_local
            self._count(group, 1 if is_local else -1)

    def _count_low(self, group: Group) -> None:
        if group.low_since is not None:
            self.tally.low_years += (self.now - group.low_since) / YEAR * self.scenario.weight
            group.low_since = None

    def _lose(self, group: Group) -> None:
        self.tally.lost += self.scenario.weight
        self.tally.lost_groups += 1
        if group.is_first:
            self.tally.ended.append((self.now - BEGIN) / YEAR)
        for number in group.copies:
            self.peers[number].groups.discard(group.number)
        group.copies.clear()
        group.is_first = False
        self._write(group)
