"""FACTS: what the catalog knows of a bundle, in the words of policy.

Nothing is decided here. What policy says of these facts is carried out by `replicate` and `evict`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import msgspec

from p2pstore.config import FolderSettings
from p2pstore.content import Kind
from p2pstore.ids import FolderId, NodeId
from p2pstore.maintenance.index import HeadOrder
from p2pstore.policy import Copy, Facts, Holder, counted
from p2pstore.policy import target as target_of
from p2pstore.store import BundleRow, BundleState, Catalog, State, blocks, copies, files, folders

EVICTABLE = frozenset((State.PLACEHOLDER, State.PROTECTED))
WHY_NOT = {State.HYDRATING: "are being brought back", State.CONFLICT: "are in conflict"}
META_EXTRA = 1  # meta bundles get one copy more than the data that they describe

_SETTINGS = msgspec.msgpack.Decoder(FolderSettings)


@dataclass(frozen=True, slots=True)
class World:
    """What is the same for all bundles while one plan is made."""

    now: float
    holders: Mapping[NodeId, Holder]  # everybody that may hold for us
    eligible: int  # of them, those that could hold something now
    heads: Mapping[FolderId, HeadOrder]
    clean: frozenset[FolderId]  # folders whose head covers everything that is protected
    state: tuple[int, int]  # (generation, seq) of the newest group state
    words_confirmed: bool
    second_device: bool
    rebuilding: bool


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

    def lacking(self, world: World, holder: NodeId, limit: int) -> list[BundleRow]:
        """Sealed bundles of ours that this holder has not and that want more copies, oldest first.

        Meta bundles come first: without them the data is noise.
        """
        settings = self.settings()

        def look(db: sqlite3.Connection) -> list[BundleRow]:
            has = {c.bundle for c in _all_of_holder(db, holder) if c.state != copies.CopyState.LOST}
            counts = copies.counts(db)
            wanted: list[BundleRow] = []
            for row in _sealed(db):
                if row.id in has or not row.own:
                    continue
                goal = self._goal(db, world, row, settings)[1]
                if counts.get(row.id, 0) < goal:
                    wanted.append(row)
            wanted.sort(key=lambda row: (row.kind != Kind.META, row.id))
            return wanted[:limit]

        return self._catalog.view(look)

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
        low, high = self._goal(db, world, row, settings)
        numbers = blocks.folders_of_bundle(db, row.id)
        ids = [settings[number][0] for number in numbers if number in settings]
        meta = blocks.companions(db, row.id, int(Kind.META))
        meta_copies = copies.of_bundles(db, [m.id for m in meta])
        return Facts(
            is_meta=row.kind == Kind.META,
            is_sealed=row.state in (BundleState.SEALED, BundleState.EVICTING),
            min_copies=low,
            target=high,
            copies=self._copies(world, row, known),
            meta_copies=[
                counted(self._copies(world, m, meta_copies.get(m.id, [])), world.now) for m in meta
            ],
            has_meta=bool(meta),
            head_acks=self._acked(world, ids, acks),
            words_confirmed=world.words_confirmed,
            second_device=world.second_device,
            for_room=for_room,
            rebuilding=world.rebuilding,
            in_the_way=_in_the_way(db, row.id),
        )

    def _goal(
        self,
        db: sqlite3.Connection,
        world: World,
        row: BundleRow,
        settings: Mapping[int, tuple[FolderId, FolderSettings]],
    ) -> tuple[int, int]:
        """(min_copies, target): the greatest of all folders that refer to the bundle."""
        rules = [
            settings[number][1]
            for number in blocks.folders_of_bundle(db, row.id)
            if number in settings
        ] or [FolderSettings()]
        low = max(rule.min_copies for rule in rules)
        wanted = max(rule.copies for rule in rules)
        if row.kind == Kind.META:
            wanted += META_EXTRA
        return low, target_of(wanted, low, world.eligible)

    def _copies(self, world: World, row: BundleRow, known: Iterable[copies.Copy]) -> list[Copy]:
        """Copies of the bundle's present live map, at nodes that may still hold for us."""
        return [
            Copy(
                holder=world.holders[c.holder],
                proved_at=c.proved_at / 1000,
                lease_until=c.lease_until / 1000,
                failed=c.state != copies.CopyState.PROVED or c.seq != row.seq,
            )
            for c in known
            if c.holder in world.holders
        ]

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

    def covers(self, world: World, holder: NodeId) -> bool:
        """Whether the holder has acknowledged everything there is to acknowledge."""
        for folder_id, head in world.heads.items():
            acks = self._catalog.view(partial(_acks, folder_id))
            if not any(
                ack.holder == holder
                and (ack.incarnation, ack.seq) >= head
                and (ack.generation, ack.state_seq) >= world.state
                for ack in acks
            ):
                return False
        return True


def _acks(folder_id: FolderId, db: sqlite3.Connection) -> list[copies.HeadAck]:
    return copies.acks(db, folder_id)


def _sealed(db: sqlite3.Connection) -> Iterable[BundleRow]:
    after = 0
    while page := blocks.list_bundles(db, states=(BundleState.SEALED,), after=after):
        yield from page
        after = page[-1].id


def _all_of_holder(db: sqlite3.Connection, holder: NodeId) -> Iterable[copies.Copy]:
    after = 0
    while page := copies.of_holder(db, holder, after=after):
        yield from page
        after = page[-1].bundle


def _in_the_way(db: sqlite3.Connection, bundle: int) -> dict[str, int]:
    """Files that need the bundle here just now, by reason."""
    found: dict[str, int] = {}
    for number in blocks.files_of_bundle(db, bundle):
        row = files.by_id(db, number)
        if row is not None and row.state not in EVICTABLE:
            reason = WHY_NOT.get(State(row.state), f"are {row.state}")
            found[reason] = found.get(reason, 0) + 1
    return found
