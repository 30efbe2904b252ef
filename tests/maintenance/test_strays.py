"""A bundle that was sealed and not recorded is known again, and goes when nothing needs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.content import Kind, bundle_tag
from p2pstore.store import BundleState, blocks, dying
from tests.maintenance.collecting import Upkeep


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upkeep]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    made = Upkeep(tmp_path)
    yield made
    made.close()


def stray(home: Upkeep) -> blocks.BundleRow:
    """A file's bundle of data, of which the catalog never heard."""
    home.put("a", b"something")
    row = next(row for row in home.bundles_of("a").values() if row.kind == Kind.DATA)
    home.catalog.write(
        lambda db: [
            db.execute(f"DELETE FROM {table} WHERE bundle=?", (row.id,))
            for table in ("dedup", "file_bundles")
        ]
    ).result()
    home.catalog.write(lambda db: db.execute("DELETE FROM bundles WHERE id=?", (row.id,))).result()
    return row


async def test_it_gets_a_row_and_goes_after_a_day(home: Upkeep) -> None:
    row = stray(home)
    assert home.take_in() == 1
    assert home.take_in() == 0
    found = home.catalog.view(lambda db: blocks.get_bundle(db, row.bundle_id))
    assert found is not None
    assert (found.state, found.kind, found.blocks) == (BundleState.SEALED, row.kind, row.blocks)
    assert found.tag == bundle_tag(home.group.ring().current.tag, row.bundle_id)
    assert home.catalog.view(lambda db: dying.is_unnamed(db, found.id))
    await home.turn()
    home.pass_days(0.9)
    await home.turn()
    assert home.store.has(row.bundle_id)
    home.pass_days(0.2)
    await home.turn()
    assert row.bundle_id in home.store.trash(), "for seven days more"
    home.check_all_known()


async def test_one_that_is_not_whole_is_left_to_be_looked_at(home: Upkeep) -> None:
    row = stray(home)
    path = home.store.path(row.bundle_id)
    os.truncate(path, path.stat().st_size - 1)
    home.store.forget(row.bundle_id)
    assert home.take_in() == 0
    assert path.exists()


async def test_a_file_that_comes_to_need_it_keeps_it(home: Upkeep) -> None:
    row = stray(home)
    home.take_in()
    file = home.file("a").id
    found = home.catalog.view(lambda db: blocks.get_bundle(db, row.bundle_id))
    assert found is not None
    home.catalog.write(lambda db: blocks.set_file_bundles(db, [(file, [found.id])])).result()
    for _ in range(5):
        home.pass_days(7)
        await home.turn()
    assert home.store.has(row.bundle_id)
