"""What SQLite counts is what policy counts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p2pstore.ids import BundleId, NodeId, Tag
from p2pstore.maintenance import Ledger, World
from p2pstore.maintenance.facts import copies_of
from p2pstore.policy import Holder, counted
from p2pstore.store import BundleRow, BundleState, Catalog, blocks, copies

NOW = 1_700_000_000.0
NOW_MS = int(NOW * 1000)
DAY_MS = 86_400_000
NODES = [NodeId(bytes([n]) * 20) for n in range(5)]

times = st.sampled_from([0, NOW_MS - 20 * DAY_MS, NOW_MS - 2 * DAY_MS, NOW_MS - 1000, NOW_MS])
seconds = st.one_of(st.none(), times.map(lambda ms: ms / 1000))
holders = st.builds(
    Holder,
    node=st.sampled_from(NODES),
    role=st.sampled_from(["device", "admin", "friend", "stranger", "carrier"]),
    owner=st.sampled_from([b"anna", b"bert"]),
    prefix=st.sampled_from(["", "10.0.0.0/24"]),
    vetted=st.booleans(),
    last_seen=seconds,
    lied_at=seconds,
)
rows = st.builds(
    copies.Copy,
    bundle=st.sampled_from([1, 2]),
    holder=st.sampled_from(NODES),
    seq=st.sampled_from([0, 1]),
    proved_at=times,
    lease_until=st.sampled_from([NOW_MS - 1, NOW_MS, NOW_MS + 1, NOW_MS + 100 * DAY_MS]),
    receipt=st.just(b""),
    state=st.sampled_from(list(copies.CopyState)),
    since=times,
    tried_at=st.just(0),
    audited_at=times,
    owed_since=times,
)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path / "catalog.sqlite") as catalog:

        def begin(db: sqlite3.Connection) -> None:
            for number in (1, 2):
                raw = bytes([number])
                state = BundleState.SEALED
                row = BundleRow(BundleId(raw * 32), Tag(raw * 20), 1, None, state, 9, 1, 1)
                blocks.put_bundle(db, row)

        catalog.write(begin).result()
        yield catalog


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(holders, unique_by=lambda h: h.node), st.lists(rows, max_size=12))
def test_both_count_the_same(
    catalog: Catalog, known: list[Holder], made: list[copies.Copy]
) -> None:
    world = World(
        now=NOW,
        holders={NodeId(holder.node): holder for holder in known},
        eligible=0,
        heads={},
        clean=frozenset(),
        state=(1, 1),
        words_confirmed=True,
        second_device=True,
        rebuilding=False,
    )

    def fill(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM copies")
        for copy in {(c.bundle, c.holder): c for c in made}.values():
            # What was owed before the last good audit is owed no more: rows are kept so.
            is_owed = copy.owed_since > max(copy.audited_at, copy.proved_at)
            copies.put(db, copy if is_owed else copy._replace(owed_since=0))

    catalog.write(fill).result()
    expected: dict[int, int] = {}
    for number in (1, 2):
        row = catalog.view(lambda db, number=number: blocks.by_rowid(db, number))
        of_bundle = catalog.view(lambda db, number=number: copies.of_bundle(db, number))
        assert row is not None
        count = counted(copies_of(world, row, of_bundle), NOW)
        if count:
            expected[number] = count
    assert Ledger(catalog).counts(world) == expected
