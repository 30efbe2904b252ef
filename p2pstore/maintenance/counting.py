"""COUNTING: how many copies of each bundle count, told by SQLite for all bundles at once.

What counts is policy's (`policy.counted`), and is said here again for the database: with 100,000
bundles nobody asks policy about each of them every minute. A test holds the two together. What is
put into the text are numbers and ids of ours, never anything that somebody sent.
"""

from __future__ import annotations

from p2pstore.maintenance.world import World
from p2pstore.policy import SUSPECT_AFTER_S, Holder, counts_as, is_away

# A copy that has been proved, under the bundle's present live map, and is not owed an answer.
FINE = (
    "c.state='proved' AND c.proved_at>0 AND c.seq=b.seq AND c.lease_until>:now"
    " AND (c.owed_since=0 OR c.owed_since>:owed)"
)


def parameters(world: World) -> dict[str, object]:
    """What the expressions below refer to."""
    return {
        "now": int(world.now * 1000),
        "owed": int((world.now - SUSPECT_AFTER_S) * 1000),
    }


def counted(world: World) -> str:
    """The number of copies that count of the bundle `b`."""
    return f"(SELECT {_count(world)} FROM copies c WHERE c.bundle=b.id AND {FINE})"


def counts_of_all(world: World) -> str:
    """(bundle, number of copies that count) of every bundle that has any, in one walk over all
    copies: half of what it costs to look each of them up."""
    return (
        f"SELECT c.bundle, {_count(world)} AS n FROM copies c"
        f" CROSS JOIN bundles b ON b.id=c.bundle WHERE {FINE} GROUP BY c.bundle HAVING n>0"
    )


def _count(world: World) -> str:
    """Of the copies `c`, those of carriers together as one beside any other."""
    units = f"count(DISTINCT {_units(world)})"
    carriers = [
        holder
        for holder in world.holders.values()
        if holder.role == "carrier" and not is_away(holder, world.now)
    ]
    if not carriers:
        return units
    is_carried = " OR ".join(_is_of(holder) for holder in carriers)
    return f"({units} + ({units}>0 AND max({is_carried})))"


def _units(world: World) -> str:
    """What the copy `c` is a copy of its own as; NULL, which DISTINCT does not count, for none."""
    whens = [
        f"WHEN {_is_of(holder)} THEN x'{unit.hex()}'"
        for holder in world.holders.values()
        if (unit := counts_as(holder)) is not None and not is_away(holder, world.now)
    ]
    return f"CASE {' '.join(whens)} END" if whens else "NULL"


def is_at(holder: Holder) -> str:
    """Whether that holder has a copy of the bundle `b` which needs no new proof."""
    return f"EXISTS (SELECT 1 FROM copies c WHERE c.bundle=b.id AND {_is_of(holder)} AND {FINE})"


def _is_of(holder: Holder) -> str:
    """A copy of its holder's, proved since it last lied."""
    own = f"c.holder=x'{holder.node.hex()}'"
    return own if holder.lied_at is None else f"{own} AND c.proved_at>{int(holder.lied_at * 1000)}"
