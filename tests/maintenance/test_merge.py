"""Small bundles become one, and nothing that anybody could have had is ever missing."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from p2pstore.content import Kind, decode_head, open_manifest, verify_head
from p2pstore.folders.meeting import Meeting
from p2pstore.folders.references import bundles_named
from p2pstore.ids import NodeId
from p2pstore.maintenance import recover
from p2pstore.maintenance.aliases import is_any_adrift, lost
from p2pstore.maintenance.aliases import learn as aliases_learn
from p2pstore.maintenance.complete import complete_with_holdings
from p2pstore.maintenance.index import index_bundles, index_root
from p2pstore.policy import merging
from p2pstore.store import (
    BundleRow,
    BundleState,
    DiskBundles,
    IntentKind,
    blocks,
    copies,
    journal,
    merged,
)
from p2pstore.wire import Holding
from tests.maintenance.collecting import Kept, Killed, Upkeep
from tests.maintenance.test_collect_others import Other
from tests.maintenance.world import Memory, each

from .nodes import DAY_MS

DAY = 86_400.0


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "FEWEST", 3)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upkeep]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    made = Upkeep(tmp_path)
    yield made
    made.close()


def text(number: int) -> bytes:
    return b"line of file %d\n" % number * 50


def fill(home: Upkeep, number: int = 5) -> None:
    """Small files, each of a batch of its own, and a day of rest."""
    for i in range(number):
        home.put(f"file {i}", text(i))
    home.pass_days(1.1)


def rows(home: Upkeep, state: str = BundleState.SEALED) -> list[BundleRow]:
    return home.catalog.view(partial(blocks.list_bundles, states=(state,)))


async def merge(home: Upkeep) -> None:
    """Made in one turn, in its place by the next."""
    await home.merge()
    await home.merge()


async def weeks(home: Upkeep, number: int) -> None:
    for _ in range(number):
        home.pass_days(7)
        await home.turn()


# -- on one disk -----------------------------------------------------------------------------------


async def test_many_small_bundles_become_one_of_each_kind(home: Upkeep) -> None:
    fill(home)
    before = rows(home)
    live = home.live_blocks()
    await merge(home)
    home.check()
    assert len(before) == 10
    assert sorted(row.kind for row in rows(home)) == [Kind.DATA, Kind.META]
    assert home.live_blocks() == live
    assert {row.bundle_id for row in rows(home, BundleState.DEAD)} == {r.bundle_id for r in before}
    assert set(home.store.trash()) == {row.bundle_id for row in before}
    for row in rows(home):
        listed = home.store.index(row.bundle_id).blocks.replaces
        assert {(old.bundle_id, old.tag) for old in listed} == {
            (old.bundle_id, old.tag) for old in before if old.kind == row.kind
        }
    await weeks(home, 2)
    assert home.store.trash() == []
    assert len(home.store.list()) == 2
    assert rows(home, BundleState.DEAD) == []
    home.check()


async def test_what_is_merged_is_not_seen_as_two(home: Upkeep) -> None:
    fill(home)
    stored = sum(row.bytes for row in rows(home))
    await home.merge()
    assert len(rows(home)) == 12, "the new ones wait beside the old ones"
    needed = [home.bundles_of(f"file {i}") for i in range(5)]
    assert all(len(one) == 2 for one in needed)
    await home.merge()
    assert sum(row.bytes for row in rows(home)) < stored
    assert all(len(home.bundles_of(f"file {i}")) == 2 for i in range(5))


async def test_not_before_a_day_has_passed(home: Upkeep) -> None:
    fill(home)
    home.clock.advance(-0.2 * DAY)
    await merge(home)
    assert len(rows(home)) == 10


async def test_nothing_is_merged_while_the_catalog_is_being_completed(home: Upkeep) -> None:
    fill(home)
    home.state["rebuilding"] = True
    await merge(home)
    assert len(rows(home)) == 10


async def test_nothing_is_merged_without_room(home: Upkeep) -> None:
    fill(home)
    home.merger._free = lambda: 1000
    await merge(home)
    assert len(rows(home)) == 10
    assert len(home.store.list()) == 10


async def test_merged_bundles_are_merged_again(home: Upkeep) -> None:
    for _ in range(3):
        fill(home)
        for i in range(5):
            home.put(f"round {home.life} {i}", text(home.life * 10 + i))
        home.begin()
        home.pass_days(1.1)
        await merge(home)
        home.check()
    await weeks(home, 2)
    home.check()
    assert len(rows(home)) <= 6
    everything = home.catalog.read("SELECT count(*) FROM aliases")[0][0]
    listed = {
        old.bundle_id
        for row in rows(home)
        for old in home.store.index(row.bundle_id).blocks.replaces
    }
    assert len(listed) == everything, "each list names all that ever became part of it"


async def test_chunks_are_known_in_the_merged_bundle(home: Upkeep) -> None:
    fill(home)
    await merge(home)
    new = next(row for row in rows(home) if row.kind == Kind.DATA)
    home.put("again", text(3))
    assert new.bundle_id in home.bundles_of("again")
    manifest = open_manifest(home.current["again"].manifest, home.group.ring()).manifest
    assert [ref.bundle_id for ref in manifest.chunks.bundles] == [new.bundle_id]
    await weeks(home, 2)
    home.check()


async def test_what_an_open_ingest_relies_on_is_not_replaced(home: Upkeep) -> None:
    fill(home)
    await home.merge()
    old = next(iter(home.bundles_of("file 1").values()))
    home.catalog.write(lambda db: blocks.claim(db, "journal:9", [old.id])).result()
    await home.merge()
    assert home.store.has(old.bundle_id)
    home.catalog.write(lambda db: blocks.drop_root(db, "journal:9")).result()
    await home.merge()
    assert not home.store.has(old.bundle_id)
    home.check()


async def test_a_claim_after_the_switch_is_refused(home: Upkeep) -> None:
    fill(home)
    old = next(iter(home.bundles_of("file 1").values()))
    await merge(home)
    assert home.catalog.write(lambda db: blocks.claim(db, "journal:9", [old.id])).result() == set()


async def test_what_another_device_has_locked_waits(home: Upkeep) -> None:
    fill(home)
    await home.merge()
    old = next(iter(home.bundles_of("file 1").values()))
    home.promises.lock(old.bundle_id, home.group.node_id, 600.0)
    await home.merge()
    assert home.store.has(old.bundle_id)
    assert home.promises.removals == set()
    home.clock.advance(601)
    await home.merge()
    assert not home.store.has(old.bundle_id)


async def test_a_damaged_bundle_is_left_alone(home: Upkeep) -> None:
    fill(home)
    bad = next(row for row in rows(home) if row.kind == Kind.DATA)
    offset = home.store.index(bad.bundle_id).blocks.offsets()[0]
    with open(home.store.path(bad.bundle_id), "r+b") as file:
        file.seek(offset)
        file.write(b"\xff\xff\xff\xff")
    await merge(home)
    await merge(home)
    assert home.store.has(bad.bundle_id)
    assert len([row for row in rows(home) if row.kind == Kind.DATA]) == 2
    assert len(home.store.list()) == len(rows(home)), "nothing is left of the attempt"


async def test_a_new_bundle_that_rots_before_it_is_needed_is_given_up(home: Upkeep) -> None:
    fill(home)
    before = home.store.list()
    await home.merge()
    made = set(home.store.list()) - set(before)
    for new in made:
        offset = home.store.index(new).blocks.offsets()[0]
        with open(home.store.path(new), "r+b") as file:
            file.seek(offset)
            file.write(b"\xff\xff\xff\xff")
    await home.merge()
    assert {row.bundle_id for row in rows(home)} > set(before)
    home.check()
    await weeks(home, 3)
    assert not made & set(home.store.list())
    await merge(home)
    await weeks(home, 2)
    assert len(home.store.list()) == 2, "another one took their place"
    home.check()


async def test_what_was_lost_meanwhile_is_in_the_new_one(home: Upkeep) -> None:
    fill(home)
    await home.merge()
    for row in home.bundles_of("file 2").values():
        home.store.to_trash(row.bundle_id)
        home.store.purge(row.bundle_id)
        home.catalog.write(
            partial(blocks_move, row.id, BundleState.LOST, BundleState.SEALED)
        ).result()
    await home.merge()
    home.check()
    await weeks(home, 2)
    home.check()
    assert home.catalog.view(lost) == []


def blocks_move(number: int, to: str, source: str, db: sqlite3.Connection) -> None:
    blocks.move(db, number, to, only_from=[source])


async def test_dead_blocks_of_a_merged_bundle_are_collected(home: Upkeep) -> None:
    fill(home)
    await merge(home)
    for i in range(3):
        home.remove(f"file {i}")
    await weeks(home, 14)
    home.check()
    (new,) = (row for row in rows(home) if row.kind == Kind.DATA)
    assert home.store.live_map(new.bundle_id).count() == 2
    for i in range(3, 5):
        home.remove(f"file {i}")
    await weeks(home, 20)
    assert home.store.list() == []
    assert home.catalog.read("SELECT * FROM aliases") == []


async def test_what_another_device_names_under_old_ids_is_kept(home: Upkeep) -> None:
    other = Other(home)
    fill(home)
    home.told = [other.index()]
    kept = home.current["file 1"]
    await merge(home)
    for i in range(5):
        home.remove(f"file {i}")
    for _ in range(50):
        home.pass_days(5)
        await home.turn()
        await home.merge()
    assert home.read(kept.manifest) == kept.digest
    home.told = []
    await weeks(home, 20)
    left = [row for row in rows(home) if row.kind == Kind.DATA]
    assert left == [], "nobody names it any more"


async def test_an_index_is_merged_and_read(home: Upkeep) -> None:
    """What the last index lies in, and which an index that is being written must not forget."""
    for i in range(6):
        home.put(f"file {i}", text(i))
        home.write_index()
    home.pass_days(1.1)
    root = index_root(home.folder_id)

    def members() -> set[int]:
        return {row.id for row in home.catalog.view(lambda db: blocks.bundles_of_root(db, root))}

    extra = [row.id for row in rows(home) if row.kind == Kind.META][:3]
    home.catalog.write(lambda db: blocks.add_root(db, root, extra)).result()
    before = members()
    home.merger = home.make_merger()
    await merge(home)
    assert members() != before
    assert not members() & {row.id for row in rows(home, BundleState.DEAD)}
    noted = home.catalog.view(lambda db: index_bundles(db, home.folder_id))
    assert noted
    assert all(row.state == BundleState.SEALED for row in noted)
    raw = next(raw for raw in home.home.heads())
    head = verify_head(decode_head(raw))
    assert home.read(head.manifest)
    home.put("one more", b"more")
    home.write_index()
    assert not members() & {row.id for row in rows(home, BundleState.DEAD)}
    await weeks(home, 2)
    head = verify_head(decode_head(next(raw for raw in home.home.heads())))
    assert home.read(head.manifest)
    home.check()


async def test_a_copied_placeholder_needs_what_a_merged_list_names(home: Upkeep) -> None:
    """The list of a large file lies in a bundle that was merged: it is read where it is now."""
    home.put("large", random.Random(5).randbytes(6_000_000))
    fill(home)
    manifest = open_manifest(home.current["large"].manifest, home.group.ring()).manifest
    assert manifest.chunks.depth
    meeting = Meeting(
        path=home.folder,
        row=home.row,
        catalog=home.catalog,
        store=home.store,
        opens=None,  # type: ignore[arg-type]
        ring=home.group.ring,
        me=NodeId(bytes(20)),
    )
    named = bundles_named(manifest, meeting._read)
    await merge(home)
    assert not all(home.store.has(one) for one in named)
    assert bundles_named(manifest, meeting._read) == named
    await weeks(home, 2)
    assert bundles_named(manifest, meeting._read) == named
    home.check()


async def test_a_merge_while_an_index_is_written_keeps_what_the_last_one_lies_in(
    home: Upkeep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks at what it wrote last before it begins, and records in the end."""
    home.put("file", text(1))
    home.write_index()
    home.pass_days(1.1)
    root = index_root(home.folder_id)
    extra = [row.id for row in rows(home) if row.kind == Kind.META]
    home.catalog.write(lambda db: blocks.add_root(db, root, extra)).result()
    home.merger = home.make_merger()
    await home.merge()
    (new,) = home.catalog.view(merged.under_way)
    home.put("other", text(2))
    protect = home.ingest.protect

    def meanwhile(*args: Any, **kwargs: Any) -> Any:
        assert home.merger._end(new)
        return protect(*args, **kwargs)

    monkeypatch.setattr(home.ingest, "protect", meanwhile)
    published = next(iter(home.home.heads()))
    home.write_index()
    members = home.catalog.view(lambda db: blocks.bundles_of_root(db, root))
    assert new in {row.bundle_id for row in members}
    assert {row.state for row in members} == {BundleState.SEALED}
    await weeks(home, 3)
    assert home.read(verify_head(decode_head(published)).manifest)


async def test_what_came_back_and_was_being_put_away_is_moved_back(home: Upkeep) -> None:
    """An old id stands for the new bundle everywhere but for its own file and row."""
    fill(home)
    before = {row.bundle_id: row for row in rows(home)}
    await merge(home)
    old = next(iter(before))
    home.store.from_trash(old)
    number = home.catalog.view(lambda db: blocks.exactly(db, old)).id

    def cut_off(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM dead WHERE bundle=?", (number,))
        blocks.move(db, number, BundleState.SEALED, only_from=[BundleState.DEAD])
        assert blocks.begin_evict(db, number)
        journal.open_intent(db, IntentKind.EVICT, msgspec.msgpack.encode(old), 1)

    home.catalog.write(cut_off).result()
    home.store.to_trash(old)
    recover(home.catalog, home.store)
    row = home.catalog.view(lambda db: blocks.exactly(db, old))
    assert row is not None
    assert (row.state, home.store.has(old)) == (BundleState.SEALED, True)
    await weeks(home, 2)
    assert home.store.trash() == []
    assert not home.store.has(old)
    home.check()


# -- crashes ---------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_every_change_of_a_merge_may_be_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both turns of a merge, cut off before each change of catalog or store."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    at, died = 0, True
    while died:
        at += 1
        home = Upkeep(tmp_path / str(at))
        try:
            died = await killed_at(home, at)
        finally:
            home.close()
    assert at > 15


async def killed_at(home: Upkeep, at: int) -> bool:
    fill(home, 4)
    live = home.live_blocks()
    died = await home.turn_that_dies(at, partial(merge, home))
    home.check()
    home.check_all_known()
    assert home.live_blocks() >= live
    await home.turn()
    home.check()
    for _ in range(4):
        await home.merge()
        home.check()
        home.pass_days(7)
        await home.turn()
        home.check()
    assert home.store.trash() == []
    assert len(home.store.list()) == 2
    assert home.live_blocks() == live
    return died


async def test_what_a_kill_left_is_known_at_the_next_start(home: Upkeep) -> None:
    def dies(*_: object) -> None:
        raise Killed

    home.put("a", b"something")
    home.merger._read_back = dies  # type: ignore[method-assign, assignment]
    with pytest.raises(Killed):
        home.merger._begin([row for row in rows(home) if row.kind == Kind.DATA])
    assert home.take_in() == 1
    home.check_all_known()


async def test_killed_between_switch_and_trash(home: Upkeep) -> None:
    fill(home)
    await home.merge()
    moved = home.store.to_trash

    def dies(_: object) -> None:
        raise KeyboardInterrupt

    home.store.to_trash = dies  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        await home.merge()
    home.store.to_trash = moved  # type: ignore[method-assign]
    home.begin()
    recover(home.catalog, home.store)
    home.check()
    dead = rows(home, BundleState.DEAD)
    assert dead
    assert all(home.store.has(row.bundle_id) for row in dead)
    await home.turn()
    assert not any(home.store.has(row.bundle_id) for row in dead)
    home.check()
    await merge(home)
    await weeks(home, 2)
    home.check()
    assert home.store.trash() == []


# -- a catalog that is made anew -------------------------------------------------------------------


def filled(home: Upkeep, number: int = 5) -> None:
    """As `fill`, with placeholders on the disk and an index."""
    for i in range(number):
        done = home.replace({f"file {i}": text(i)})[f"file {i}"]
        home.current[f"file {i}"] = kept_as(done.manifest, home)
    home.write_index()
    home.clock.advance(1.1 * DAY)


def kept_as(raw: bytes, home: Upkeep) -> Kept:
    return Kept(raw, open_manifest(raw, home.group.ring()).manifest.hash)


@pytest.mark.parametrize("when", ["waiting", "switched", "collected"])
async def test_a_rebuild_knows_what_was_merged(home: Upkeep, when: str) -> None:
    filled(home)
    await home.merge()
    if when != "waiting":
        await home.merge()
    if when == "collected":
        await weeks(home, 2)
        assert len(home.store.trash()) == 0
    home.lose_catalog()
    rebuilt = home.rebuild()
    home.begin()
    assert rebuilt.missing == 0
    assert rebuilt.unread == 0
    assert (rebuilt.files, rebuilt.placeholders) == (5, 5)
    home.check()
    under_way = home.catalog.view(merged.under_way)
    assert bool(under_way) == (when != "collected")
    home.clock.advance(DAY)
    args = complete_args(home, Memory(home.store), [], [])
    await complete_with_holdings(home.catalog, **args)
    await merge(home)
    home.check()
    assert all(len(home.bundles_of(f"file {i}")) == 2 for i in range(5))
    assert home.catalog.view(merged.under_way) == []
    assert not home.catalog.view(lost)
    home.put("again", text(3))  # known, where its block lies now
    home.pass_days(40)
    await weeks(home, 12)
    home.check()


async def test_a_rebuild_twice_merged(home: Upkeep) -> None:
    filled(home)
    await merge(home)
    await weeks(home, 2)
    for i in range(5, 10):
        done = home.replace({f"file {i}": text(i)})[f"file {i}"]
        home.current[f"file {i}"] = kept_as(done.manifest, home)
    home.write_index()
    home.clock.advance(1.1 * DAY)
    await home.merge()
    home.lose_catalog()
    assert home.rebuild().missing == 0
    home.begin()
    home.check()
    await complete_with_holdings(home.catalog, **complete_args(home, Memory(home.store), [], []))
    await merge(home)
    home.check()
    await weeks(home, 2)
    home.lose_catalog()
    assert home.rebuild().missing == 0
    home.begin()
    home.check()


def complete_args(home: Upkeep, source: object, holdings: list, heads: list) -> dict:
    return {
        "home": home.home,
        "store": home.store,
        "author": home.group.author(),
        "ring": home.group.ring(),
        "judge": home.group.judge,
        "clock": home.clock,
        "pool": home.pool,
        "source": source,
        "holdings": lambda: each(holdings),
        "heads": lambda: each(heads),
    }


@pytest.mark.parametrize("seq", [0, 1 << 40])
async def test_a_rebuild_learns_from_a_holder_what_was_merged_and_evicted(
    home: Upkeep, tmp_path: Path, seq: int
) -> None:
    filled(home)
    await merge(home)
    await weeks(home, 2)
    new = next(row for row in rows(home) if row.kind == Kind.DATA)
    index = home.store.index(new.bundle_id)
    elsewhere = DiskBundles(tmp_path / "elsewhere")
    target = elsewhere.path(new.bundle_id)
    target.parent.mkdir()
    shutil.copyfile(home.store.path(new.bundle_id), target)
    home.store.to_trash(new.bundle_id)
    home.store.purge(new.bundle_id)
    home.lose_catalog()
    assert home.rebuild().missing == 5
    home.begin()
    told = Holding(
        bundle=new.bundle_id,
        tag=new.tag,
        kind=new.kind,
        opener=index.header.opener,
        seq=seq,
        bytes=new.bytes,
        lease_until_ms=int(home.clock.wall() * 1000) + DAY_MS,
    )
    asked: list[int] = []

    async def lists(ids):  # type: ignore[no-untyped-def]
        asked.append(len(ids))
        yield index

    args = complete_args(home, Memory(elsewhere), [(home.group.node_id, told)], [])
    done = await complete_with_holdings(home.catalog, **args, merged=lists)
    assert done.missing == 0
    assert asked == [5]
    row = home.bundles_of("file 3")[new.bundle_id]
    assert (row.state, row.tag, row.blocks) == (BundleState.EVICTED, new.tag, 5)
    assert row.seq == 0, "what a holder says of it unsigned binds nobody"
    (copy,) = home.catalog.view(lambda db: copies.of_bundle(db, row.id))
    assert copy.state == copies.CopyState.SUSPECT
    assert home.catalog.view(lambda db: merged.names(db, row.id))
    elsewhere.close()


async def test_what_another_device_merged_is_learnt_when_nobody_has_it_any_more(
    home: Upkeep,
) -> None:
    filled(home)
    await merge(home)
    new = next(row for row in rows(home) if row.kind == Kind.DATA)
    index = home.store.index(new.bundle_id)
    replaced = index.blocks.replaces
    # As another device knows it, which was told before that somebody held the old ones.
    home.catalog.write(partial(_foreign, new)).result()
    assert home.catalog.view(is_any_adrift)
    assert set(home.catalog.view(lost)) == {old.bundle_id for old in replaced}

    def learn(own: bool) -> bool:
        change = partial(aliases_learn, index, new.tag, own=own)
        return home.catalog.write(lambda db: change(db=db)).result()

    assert learn(False)
    assert not learn(False)
    row = home.bundles_of("file 2")[new.bundle_id]
    assert (row.own, row.state) == (0, BundleState.LOST)
    assert not home.catalog.view(is_any_adrift)


async def test_nobody_else_merges_what_this_device_opened(home: Upkeep) -> None:
    filled(home)
    await merge(home)
    new = next(row for row in rows(home) if row.kind == Kind.DATA)
    index = home.store.index(new.bundle_id)
    home.catalog.write(partial(_foreign, new, own=1)).result()
    learn = partial(aliases_learn, index, new.tag, own=False)
    assert not home.catalog.write(lambda db: learn(db=db)).result()


def _foreign(new: BundleRow, db: sqlite3.Connection, *, own: int = 0) -> None:
    state = BundleState.LOST if own else BundleState.EVICTED
    files = blocks.files_of_bundle(db, new.id)
    for name, tag in blocks.aliases_of(db, new.id):
        db.execute("DELETE FROM bundles WHERE bundle_id=?", (name,))
        old = new._replace(bundle_id=name, tag=tag, state=state, own=own)
        number = blocks.put_bundle(db, old)
        db.executemany("INSERT INTO file_bundles VALUES (?,?)", [(f, number) for f in files])
    for table in ("aliases", "file_bundles", "dedup"):
        db.execute(f"DELETE FROM {table} WHERE bundle=?", (new.id,))
    db.execute("DELETE FROM bundles WHERE id=?", (new.id,))


async def test_what_may_stand_for_something_lost_is_not_let_go_of(home: Upkeep) -> None:
    """After a rebuild a holder's word tells of a bundle that nothing names; a list that nobody
    gives would say that it has the blocks of what is lost."""
    filled(home)
    row = next(row for row in rows(home) if row.kind == Kind.DATA)
    hearsay = row._replace(bundle_id=row.bundle_id[::-1], state=BundleState.EVICTED, blocks=0, id=0)
    number = home.catalog.write(lambda db: blocks.put_bundle(db, hearsay)).result()
    home.catalog.write(partial(blocks_move, row.id, BundleState.LOST, BundleState.SEALED)).result()
    await weeks(home, 12)
    kept = home.catalog.view(lambda db: blocks.by_rowid(db, number))
    assert kept is not None
    assert kept.state == BundleState.EVICTED
    home.catalog.write(partial(blocks_move, row.id, BundleState.SEALED, BundleState.LOST)).result()
    await weeks(home, 12)
    assert home.catalog.view(lambda db: blocks.by_rowid(db, number)) is None
