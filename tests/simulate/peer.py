"""A peer as it is, and as its owner knows it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from p2pstore.policy import Holder, Vetting
from tests.simulate.scenario import DAY, HOUR, Scenario

ALWAYS = (DAY, DAY)


@dataclass(slots=True)
class Peer:
    number: int
    place: int  # which of the owner's peers it is, or replaces: it stands in that one's house
    holder: Holder
    joined: float
    period: float  # it is on for `on` seconds of each period
    on: float
    phase: float
    keeps: float = 1.0
    relays: bool = False
    is_dead: bool = False
    gone_at: float | None = None  # away for longer than its daily rhythm, or for ever
    record: Vetting = field(default_factory=Vetting)
    answered: int = 0  # audits
    failed: int = 0
    found_at: float | None = None  # a liar that was caught
    groups: set[int] = field(default_factory=set)  # of which the owner has a receipt of it

    def clone(self) -> Peer:
        return Peer(
            self.number,
            self.place,
            self.holder,
            self.joined,
            self.period,
            self.on,
            self.phase,
            self.keeps,
            self.relays,
            self.is_dead,
            self.gone_at,
            self.record,
            self.answered,
            self.failed,
            self.found_at,
            set(self.groups),
        )

    def is_on(self, now: float) -> bool:
        return self.gone_at is None and (now - self.phase) % self.period < self.on

    def after_work(self, start: float, seconds: float) -> float:
        """When so many seconds of transfer are over that go on only while it is on."""
        place = (start - self.phase) % self.period
        if place >= self.on:
            start += self.period - place
            place = 0.0
        if seconds <= self.on - place:
            return start + seconds
        seconds -= self.on - place
        start += self.period - place
        whole = seconds // self.on
        return start + whole * self.period + (seconds - whole * self.on)


def new_peer(number: int, place: int, scenario: Scenario, now: float, dice: random.Random) -> Peer:
    rhythm = dice.random()
    period, on = ALWAYS
    if rhythm < scenario.night_share:
        on = 16 * HOUR
    elif rhythm < scenario.night_share + scenario.flapping_share:
        period, on = 3 * HOUR, 2.5 * HOUR
    is_friend = place >= scenario.peers
    owner = b"friend %d" % place if is_friend else b"us"
    house = f"house {place % scenario.houses if scenario.houses else place}"
    is_liar = place >= scenario.peers + scenario.friends - scenario.liars
    return Peer(
        number=number,
        place=place,
        holder=Holder(
            node=number.to_bytes(8, "big"),
            role="friend" if is_friend else "device",
            owner=owner,
            prefix=house if scenario.knows_houses else "",
        ),
        joined=now,
        period=period,
        on=on,
        phase=now - dice.random() * period,
        keeps=scenario.liars_keep if is_liar else 1.0,
        relays=is_liar and scenario.relays,
    )
