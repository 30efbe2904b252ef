"""What happens to the peers of one owner. Rates are a year's, times seconds, sizes bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace

HOUR, DAY = 3600.0, 86_400.0
YEAR = 365 * DAY
BUNDLE = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Scenario:
    name: str
    says: str  # one line for the table
    copies: int = 4
    min_copies: int = 2
    repairs: bool = True
    peers: int = 8  # own devices; who dies is replaced
    friends: int = 0  # beside them, each another person
    houses: int = 0  # 0: each peer has one of its own
    knows_houses: bool = True  # False: placement is not told
    life_years: float = 1.0  # the mean; lives end at random, as those of disks do
    replaced_after_s: float = DAY
    fires_a_house: float = 0.0
    # A share of the peers is switched off at night, another reboots or loses its line all the time.
    night_share: float = 0.25
    flapping_share: float = 0.125
    absences: float = 0.0  # longer than a day, of each peer
    absence_days: tuple[float, float] = (1.5, 21.0)
    recovered_after_s: float = 3 * DAY  # the owner's own machine lives no longer than others
    owner_absences: float = 0.0
    owner_absence_days: tuple[float, float] = (3.0, 14.0)
    # Friends that are no friends: each keeps this share of what it takes, and throws away the rest
    # when its receipt is signed. `relays`: asked about it, it asks another holder.
    liars: int = 0
    liars_keep: float = 0.0
    relays: bool = False
    up: float = 1.25e6  # of everybody: 10 Mbit/s
    down: float = 6e6
    bundles: int = 2048  # 32 GiB of one owner
    groups: int = 32  # bundles of a group share their fate: one file, one set of holders
    is_rare: bool = False  # losses are also estimated by splitting

    @property
    def weight(self) -> int:
        """Bundles in a group."""
        return self.bundles // self.groups


STEADY = Scenario(name="4 copies", says="8 devices, each lives a year", is_rare=True)


def by_copies() -> list[Scenario]:
    """Copies against loss, with and without repair."""
    return [
        replace(STEADY, name="4, no repair", repairs=False, is_rare=False),
        replace(STEADY, name="2 copies", copies=2, is_rare=False),
        replace(STEADY, name="3 copies", copies=3),
        STEADY,
    ]


def by_trouble() -> list[Scenario]:
    """Four copies, and what else may happen."""
    few = replace(STEADY, is_rare=False, replaced_after_s=30 * DAY)
    liars = replace(STEADY, is_rare=False, peers=2, friends=6, liars=3)
    houses = replace(STEADY, houses=4, fires_a_house=0.05)
    return [
        replace(
            STEADY, name="long absences", says="each away 3 times a year, 2-21 days", absences=3
        ),
        replace(
            STEADY,
            name="owner away too",
            says="the same, and the owner away twice a year, 3-14 days",
            absences=3,
            owner_absences=2,
        ),
        replace(STEADY, name="slow lines", says="1 Mbit/s up, 32 GiB", up=1.25e5, down=1e6),
        replace(houses, name="fires", says="4 houses of 2, each burns down every 20 years"),
        replace(
            houses, name="fires, unknown", says="the same, houses not known", knows_houses=False
        ),
        replace(STEADY, name="friends", says="2 devices and 6 friends", peers=2, friends=6),
        replace(liars, name="droppers", says="2 devices, 6 friends; 3 drop what they take"),
        replace(
            liars,
            name="half droppers",
            says="the same, they drop half of it",
            liars_keep=0.5,
        ),
        replace(
            liars,
            name="relaying liars",
            says="they drop all and ask others when audited",
            relays=True,
        ),
        replace(few, name="four devices", says="one that dies is replaced after 30 days", peers=4),
        replace(few, name="two devices", says="likewise", peers=2),
    ]
