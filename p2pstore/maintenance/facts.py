"""FACTS: what the catalog knows of a bundle, in the words of policy.

Nothing is decided here. What policy says of these facts is carried out by `replicate` and `evict`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import msgspec

from p2pstore.config import FolderSettings
from p2pstore.content import Kind
from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance.counting import counted, counts_of_all, is_at, parameters
from p2pstore.maintenance.index import index_bundles
from p2pstore.maintenance.places import carrier_id
from p2pstore.maintenance.world import World
from p2pstore.policy import Copy, Facts, Holder, choose_holders, is_as_safe
from p2pstore.policy import counted as counted_copies
from p2pstore.policy import target as target_of
from p2pstore.store import (
    BundleRow,
    BundleState,
    BundleStore,
    Catalog,
    State,
    blocks,
    copies,
    dying,
    folders,
    journal,
    merged,
)

EVICTABLE = frozenset((State.PLACEHOLDER, State.PROTECTED))
WHY_NOT = {State.HYDRATING: "being brought back", State.CONFLICT: "in conflict"}
META_EXTRA = 1  # meta bundles get one copy more than the data that they describe
TOGETHER_MS = 60_000  # bundles written within a minute go the same way, where they can

_SETTINGS = msgspec.msgpack.Decoder(FolderSettings)


class Lacking(NamedTuple):
    """A bundle that does not lie here and has too few copies."""

    row: BundleRow
    copies: Sequence[Copy]
    min_copies: int
    target: int
    has_taker: bool  # somebody who is connected could take another one


class Crowded(NamedTuple):
    """A bundle with more copies than it is to have."""

    row: BundleRow
    copies: Sequence[Copy]
    min_copies: int
    target: int


class Ledger:
    """Reads facts for many bundles at a time."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def settings(self) -> dict[int, tuple[FolderId, FolderSettings]]:
        """Catalog row of each folder, removed ones too -> its id and settings."""
        return {
            row.id: (row.folder_id, _SETTINGS.decode(row.settings))
            for row in self._catalog.view(folders.every)
        }

    def lacking(
        self, world: World, holder: NodeId, limit: int, *, after: int = 0
    ) -> list[BundleRow]:
        """Sealed bundles of ours that this holder is to be given a copy of; those behind row
        `after`, meta bundles first: without them the data is noise.

        Called every minute for each holder, over all bundles: SQLite looks through them, and only
        what may be wanted is judged here.
        """
        settings = self.settings()
        if holder in world.holders and world.holders[holder].role == "carrier":
            return self._uncarried(world, holder, limit, after)

        def look(db: sqlite3.Connection) -> list[BundleRow]:
            wanted: list[BundleRow] = []
            for kind in (Kind.META, Kind.DATA):
                rules = _Rules(settings, is_meta=kind == Kind.META, eligible=world.eligible)
                query = (
                    f"SELECT {COLUMNS}, {counted(world)} AS n {_lacking(world, holder)}"
                    " AND n<:goal ORDER BY b.id"
                )
                values = _values(world, holder, int(kind), after)
                for raw in db.execute(query, {**values, "goal": rules.greatest}):
                    row = BundleRow(*raw[:-1])
                    lacks = rules.goal(db, row) - raw[-1]
                    if lacks > 0 and is_for(db, world, row, holder, lacks):
                        wanted.append(row)
                        if len(wanted) == limit:
                            return wanted
            return wanted

        return self._catalog.view(look)

    def _uncarried(self, world: World, carrier: NodeId, limit: int, after: int) -> list[BundleRow]:
        """Bundles of the folders that name this carrier, and that it has not."""
        numbers = [
            str(number)
            for number, (_, rule) in self.settings().items()
            if carrier in map(carrier_id, rule.carriers)
        ]
        query = (
            f"SELECT {COLUMNS} {_lacking(world, carrier)} AND b.folder IN ({', '.join(numbers)})"
            " ORDER BY b.id LIMIT :most"
        )

        def look(db: sqlite3.Connection) -> list[BundleRow]:
            found: list[BundleRow] = []
            for kind in (Kind.META, Kind.DATA):
                values = {**_values(world, carrier, int(kind), after), "most": limit - len(found)}
                found.extend(BundleRow(*raw) for raw in db.execute(query, values))
            return found

        return self._catalog.view(look)

    def newest(self) -> int:
        """The greatest row of a bundle."""
        return int(self._catalog.read("SELECT coalesce(max(id), 0) FROM bundles")[0][0])

    def lacking_bytes(self, world: World, holder: NodeId) -> int:
        """About how much `lacking` has to send: bundles that other folders refer to as well may
        want more copies than this counts, and others may be given some of it."""
        settings = self.settings()

        def look(db: sqlite3.Connection) -> int:
            total = 0
            for kind in (Kind.META, Kind.DATA):
                rules = _Rules(settings, is_meta=kind == Kind.META, eligible=world.eligible)
                query = (
                    f"SELECT coalesce(sum(b.bytes), 0) {_lacking(world, holder)}"
                    f" AND {counted(world)}<{rules.in_sql}"
                )
                values = _values(world, holder, int(kind), 0)
                total += int(db.execute(query, values).fetchone()[0])
            return total

        return self._catalog.view(look)

    def evicted_lacking(
        self,
        world: World,
        limit: int,
        *,
        connected: Collection[NodeId],
        left_out: Collection[int] = (),
    ) -> list[Lacking]:
        """Bundles that do not lie here and have too few copies. Those with the fewest come first.

        Only what can be mended now: a holder that has it is connected, and a taker that has it not,
        or it has less than min_copies, so that it is to lie here as well. Many that cannot be
        mended would hide the others behind them.
        """
        settings = self.settings()
        reachable = (
            f"EXISTS ({_AT.format(what='1', nodes=_ids(connected), states=_sql(copies.HAVING))})"
        )
        has_taker = (
            f"({_AT.format(what='count(*)', nodes=_ids(_nodes(world)), states=_sql(_GOOD))})"
            f"<{len(world.takers)}"
        )

        def look(db: sqlite3.Connection) -> list[Lacking]:
            found: list[Lacking] = []
            for kind in (Kind.META, Kind.DATA):
                rules = _Rules(settings, is_meta=kind == Kind.META, eligible=world.eligible)
                query = (
                    f"SELECT {COLUMNS}, {counted(world)} AS n, {has_taker} AS t FROM bundles b"
                    f" WHERE b.state='evicted' AND {OURS} AND b.kind=:kind AND n<:goal"
                    f" AND {reachable} AND (t OR n<:low) ORDER BY n, b.id LIMIT :most"
                )
                most = limit + len(left_out)
                values = {**parameters(world), "kind": int(kind), "most": most}
                values |= {"goal": rules.greatest, "low": rules.greatest_low}
                for *fields, count, taker in db.execute(query, values):
                    row = BundleRow(*fields)
                    low, goal = rules.both(db, row)
                    if count < (goal if taker else low) and row.id not in left_out:
                        known = copies_of(world, row, copies.of_bundle(db, row.id))
                        found.append(Lacking(row, known, low, goal, bool(taker)))
            return found[:limit]

        return self._catalog.view(look)

    def crowded(self, world: World, limit: int) -> list[Crowded]:
        """Bundles of ours, here or not, with more copies that count than their target."""
        settings = self.settings()

        def look(db: sqlite3.Connection) -> list[Crowded]:
            found: list[Crowded] = []
            for kind in (Kind.META, Kind.DATA):
                rules = _Rules(settings, is_meta=kind == Kind.META, eligible=world.eligible)
                query = (
                    f"SELECT {COLUMNS}, {counted(world)} AS n FROM bundles b"
                    f" WHERE b.state IN ('sealed', 'evicted') AND {OURS} AND b.kind=:kind"
                    f" AND n>{rules.in_sql} ORDER BY b.id LIMIT :most"
                )
                values = {**parameters(world), "kind": int(kind), "most": limit}
                for *fields, count in db.execute(query, values).fetchall():
                    row = BundleRow(*fields)
                    low, goal = rules.both(db, row)
                    if count > goal:
                        known = copies_of(world, row, copies.of_bundle(db, row.id))
                        found.append(Crowded(row, known, low, goal))
            return found

        return self._catalog.view(look)

    def is_lacking(self, world: World, row: BundleRow) -> bool:
        """Whether it has fewer copies than it is to have."""
        (facts,) = self.facts(world, [row], for_room=False)
        return counted_copies(facts.copies, world.now) < facts.target

    def is_as_safe(self, world: World, new: BundleRow, replaced: Sequence[BundleRow]) -> bool:
        """Whether copies of the new bundle make up for those of each that it replaces."""
        settings = self.settings()
        rows = [new, *replaced]

        def look(db: sqlite3.Connection) -> bool:
            rules = _Rules(settings, is_meta=new.kind == Kind.META, eligible=world.eligible)
            stored = copies.of_bundles(db, [row.id for row in rows])
            known = [copies_of(world, row, stored.get(row.id, [])) for row in rows]
            low = max(rules.both(db, row)[0] for row in rows)
            return is_as_safe(
                known[0], known[1:], min_copies=low, eligible=world.eligible, now=world.now
            )

        return self._catalog.view(look)

    def is_made_up_for(self, world: World, row: BundleRow, store: BundleStore) -> bool:
        """Whether copies of a dead bundle may go. What was merged is let go of only while the
        bundle that stands for it is here, or where it should be, and has as many copies; or while
        nothing needs that one either."""

        def look(db: sqlite3.Connection) -> tuple[int | None, BundleRow | None]:
            number = merged.into(db, row.bundle_id)
            return number, None if number is None else blocks.by_rowid(db, number)

        number, new = self._catalog.view(look)
        if number is None:
            return True
        if new is None or new.state in (BundleState.LOST, BundleState.EVICTING):
            return False
        if new.state == BundleState.DEAD:
            return True
        is_there = new.state == BundleState.EVICTED or store.has(new.bundle_id)
        return is_there and self.is_as_safe(world, new, [row])

    def relying(self, world: World, rows: Sequence[BundleRow], holder: NodeId) -> list[BundleRow]:
        """Those of the bundles that would have less than min_copies without this holder."""
        left = {node: one for node, one in world.holders.items() if node != holder}
        without = replace(world, holders=left)
        return [
            row
            for row, facts in zip(rows, self.facts(without, rows, for_room=False), strict=True)
            if counted_copies(facts.copies, world.now) < facts.min_copies
        ]

    def counts(self, world: World) -> dict[int, int]:
        """bundle row -> copies that count; bundles without any are left out."""
        query = counts_of_all(world)
        return self._catalog.view(lambda db: dict(db.execute(query, parameters(world)).fetchall()))

    def facts(self, world: World, rows: Sequence[BundleRow], *, for_room: bool) -> list[Facts]:
        """One for each row, without confirmations."""
        settings = self.settings()

        def look(db: sqlite3.Connection) -> list[Facts]:
            known = copies.of_bundles(db, [row.id for row in rows])
            acks = {folder_id: copies.acks(db, folder_id) for folder_id, _ in settings.values()}
            return [
                self._facts(db, world, row, known.get(row.id, []), settings, acks, for_room)
                for row in rows
            ]

        return self._catalog.view(look)

    def _facts(
        self,
        db: sqlite3.Connection,
        world: World,
        row: BundleRow,
        known: Sequence[copies.Copy],
        settings: Mapping[int, tuple[FolderId, FolderSettings]],
        acks: Mapping[FolderId, Sequence[copies.HeadAck]],
        for_room: bool,
    ) -> Facts:
        numbers = blocks.folders_of_bundle(db, row.id)
        low, high = _goal(
            [settings[number][1] for number in numbers if number in settings],
            is_meta=row.kind == Kind.META,
            eligible=world.eligible,
        )
        ids = [settings[number][0] for number in numbers if number in settings]
        # An index is the way from a head to the manifests: its bundles are keys as well.
        indexes = [index_bundles(db, folder_id) for folder_id in ids]
        meta = blocks.companions(db, row.id, int(Kind.META))
        is_complete = bool(meta) and bool(indexes) and all(indexes)
        meta = list({m.id: m for m in [*meta, *(m for rows in indexes for m in rows)]}.values())
        meta_copies = copies.of_bundles(db, [m.id for m in meta])
        return Facts(
            is_meta=row.kind == Kind.META,
            is_sealed=row.state in (BundleState.SEALED, BundleState.EVICTING),
            min_copies=low,
            target=high,
            copies=copies_of(world, row, known),
            meta_copies=[
                counted_copies(copies_of(world, m, meta_copies.get(m.id, [])), world.now)
                for m in meta
            ],
            has_meta=is_complete,
            head_acks=self._acked(world, ids, acks),
            words_confirmed=world.words_confirmed,
            second_device=world.second_device,
            for_room=for_room,
            rebuilding=world.rebuilding,
            in_the_way=_in_the_way(db, row.id),
        )

    def _acked(
        self,
        world: World,
        ids: Sequence[FolderId],
        acks: Mapping[FolderId, Sequence[copies.HeadAck]],
    ) -> list[Holder]:
        """Holders that acknowledged, for every folder concerned, a head that covers it all."""
        found: list[Holder] | None = None
        for folder_id in ids:
            head = world.heads.get(folder_id)
            if head is None or folder_id not in world.clean:
                return []
            have = [
                world.holders[ack.holder]
                for ack in acks.get(folder_id, ())
                if ack.holder in world.holders
                and (ack.incarnation, ack.seq) >= head
                and (ack.generation, ack.state_seq) >= world.state
            ]
            found = have if found is None else [holder for holder in found if holder in have]
        return found or []

    def untold(self, world: World, holders: Collection[NodeId]) -> set[NodeId]:
        """Those of the holders that have not acknowledged everything there is to acknowledge."""

        def look(db: sqlite3.Connection) -> set[NodeId]:
            left: set[NodeId] = set()
            for folder_id, head in world.heads.items():
                told = {
                    ack.holder
                    for ack in copies.acks(db, folder_id)
                    if (ack.incarnation, ack.seq) >= head
                    and (ack.generation, ack.state_seq) >= world.state
                }
                left.update(holder for holder in holders if holder not in told)
            return left

        return self._catalog.view(look)


class _Rules:
    """How many copies bundles of one kind are to have."""

    def __init__(
        self,
        settings: Mapping[int, tuple[FolderId, FolderSettings]],
        *,
        is_meta: bool,
        eligible: int,
    ) -> None:
        self._rules = {number: rule for number, (_, rule) in settings.items()}
        self._is_meta = is_meta
        self._eligible = eligible
        own = {number: self._of([rule]) for number, rule in self._rules.items()}
        other = self._of([])
        self.greatest = max([*own.values(), other])
        lows = (rule.min_copies for rule in self._rules.values())
        self.greatest_low = max([*lows, FolderSettings().min_copies])
        self._is_one = len({*own.values()}) <= 1 and max(own.values(), default=other) >= other
        # Numbers of ours only, so that the text may be put together.
        cases = " ".join(f"WHEN {number} THEN {goal}" for number, goal in own.items())
        self.in_sql = f"CASE b.folder {cases} ELSE {other} END" if own else str(other)

    def _of(self, rules: Sequence[FolderSettings]) -> int:
        return _goal(rules, is_meta=self._is_meta, eligible=self._eligible)[1]

    def goal(self, db: sqlite3.Connection, row: BundleRow) -> int:
        """The greatest of all folders that refer to the bundle."""
        return self.greatest if self._is_one else self.both(db, row)[1]

    def both(self, db: sqlite3.Connection, row: BundleRow) -> tuple[int, int]:
        """(min_copies, target), each the greatest of all folders that refer to the bundle."""
        numbers = blocks.folders_of_bundle(db, row.id)
        rules = [self._rules[number] for number in numbers if number in self._rules]
        return _goal(rules, is_meta=self._is_meta, eligible=self._eligible)


def _goal(rules: Sequence[FolderSettings], *, is_meta: bool, eligible: int) -> tuple[int, int]:
    """(min_copies, target) for a bundle that folders with these rules refer to."""
    rules = rules or [FolderSettings()]
    low = max(rule.min_copies for rule in rules)
    wanted = max(rule.copies for rule in rules) + (META_EXTRA if is_meta else 0)
    return low, target_of(wanted, low, eligible)


COLUMNS = ", ".join(f"b.{name}" for name in BundleRow._fields)


# Opened here; or by a device from which this one has files, as after a recovery, and then knows
# who has them: that device may be gone, so nobody else would see to them.
OURS = (
    "(b.own=1 OR (EXISTS (SELECT 1 FROM file_bundles f WHERE f.bundle=b.id)"
    " AND EXISTS (SELECT 1 FROM copies c WHERE c.bundle=b.id)))"
)

_AT = "SELECT {what} FROM copies c WHERE c.bundle=b.id AND c.holder IN ({nodes}) AND {states}"
_GOOD = (copies.CopyState.PROVED, copies.CopyState.SUSPECT)


def _sql(states: Sequence[copies.CopyState]) -> str:
    return f"c.state IN ({', '.join(repr(str(state)) for state in states)})"


def _ids(nodes: Iterable[bytes]) -> str:
    return ", ".join(f"x'{node.hex()}'" for node in nodes)


def _nodes(world: World) -> list[bytes]:
    return [taker.holder.node for taker in world.takers]


def _lacking(world: World, holder: NodeId) -> str:
    """Bundles of ours of which that holder has no good copy, and is not asking to be rid of it."""
    who = world.holders.get(holder, Holder(holder, "device"))
    moving = "SELECT 1 FROM copies c WHERE c.bundle=b.id AND c.holder=:holder AND c.state='moving'"
    kept = "SELECT 1 FROM roots r WHERE r.bundle=b.id AND r.root GLOB '{}*'"
    once = kept.format(blocks.ONCE)
    # What is shared travels with its grants, which there are when all of it has been written.
    begun = kept.format(journal.ROOT)
    return (
        f"FROM bundles b WHERE b.id>:after AND b.state='sealed' AND {OURS} AND b.kind=:kind"
        f" AND NOT {is_at(who)} AND NOT EXISTS ({moving}) AND NOT EXISTS ({once})"
        f" AND NOT (b.folder IS NULL AND EXISTS ({begun})) AND b.id NOT IN ({dying.UNNEEDED})"
    )


def _values(world: World, holder: NodeId, kind: int, after: int) -> dict[str, object]:
    return {**parameters(world), "holder": holder, "kind": kind, "after": after}


def copies_of(world: World, row: BundleRow, known: Iterable[copies.Copy]) -> list[Copy]:
    """Copies of the bundle's present live map, at nodes that may still hold for us."""
    return [
        Copy(
            holder=world.holders[c.holder],
            proved_at=_seconds(c.proved_at) if _is_proved(c, row) else None,
            lease_until=c.lease_until / 1000,
            failed=c.state not in (copies.CopyState.PROVED, copies.CopyState.SUSPECT),
            audited_at=_seconds(c.audited_at),
            suspect_since=_seconds(c.owed_since),
            since=_seconds(c.since),
        )
        for c in known
        if c.holder in world.holders
    ]


def _is_proved(copy: copies.Copy, row: BundleRow) -> bool:
    return copy.state == copies.CopyState.PROVED and copy.seq == row.seq


def _seconds(at_ms: int) -> float | None:
    return at_ms / 1000 if at_ms else None


def is_for(
    db: sqlite3.Connection, world: World, row: BundleRow, holder: NodeId, lacks: int
) -> bool:
    """Whether `holder` is among those that are chosen for the copies that the bundle lacks."""
    has = {c.holder for c in copies.of_bundle(db, row.id) if c.state in copies.HAVING}
    if sum(taker.holder.node not in has for taker in world.takers) <= lacks:
        return True
    chosen = choose_holders(
        world.takers,
        holding=[world.holders[node] for node in has if node in world.holders],
        size=row.bytes,
        now=world.now,
        count=lacks,
        siblings=blocks.siblings(db, row.id),
        seed=b"%d %d" % (row.folder or 0, row.created // TOGETHER_MS),
    )
    return any(candidate.holder.node == holder for candidate in chosen)


def _in_the_way(db: sqlite3.Connection, bundle: int) -> dict[str, int]:
    """Files that need the bundle here just now, by reason."""
    query = (
        "SELECT f.state, f.manifest_ref=x'', count(*) FROM file_bundles r"
        " JOIN files f ON f.id=r.file WHERE r.bundle=? GROUP BY 1, 2"
    )
    found: dict[str, int] = {}
    for state, is_unlisted, count in db.execute(query, (bundle,)):
        if state not in EVICTABLE:
            reason = WHY_NOT.get(State(state), str(state))
        elif is_unlisted:
            reason = "in no index"  # no head leads to its manifest
        else:
            continue
        found[reason] = found.get(reason, 0) + count
    return found
