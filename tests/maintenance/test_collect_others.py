"""What other devices name is kept, and nothing goes before they have said so."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from p2pstore.errors import P2PStoreError
from p2pstore.ids import BundleId, NodeId, PublicKey, node_id_of
from p2pstore.ingest import Author
from p2pstore.keys import Role
from p2pstore.maintenance.index import HeadOrder
from p2pstore.store import dying, folders
from tests.maintenance.collecting import Upkeep, pieces
from tests.maintenance.world import NOW


class Other:
    """Another device of the group, whose folder has copies of our placeholders."""

    def __init__(self, home: Upkeep) -> None:
        self.home = home
        self.key = SigningKey.generate()
        self.public = PublicKey(bytes(self.key.verify_key))
        self.node_id = NodeId(node_id_of(self.public))
        admin = home.home.admin()
        assert admin is not None
        home.group.admit(self.public, Role.DEVICE, "other", signer=admin, now=NOW)
        home.devices.append(self.node_id)
        self.seq = 0

    def index(self) -> bytes:
        """Its head, with everything in it that our folder has now."""
        home = self.home
        chain = home.group.state.chain_of(self.public)
        assert chain is not None
        author = Author(key=self.key, chain=chain, group=home.group.state.group_public)
        home.index._author = home.ingest._author = lambda: author
        folder = home.catalog.view(lambda db: folders.get(db, home.row))
        assert folder is not None
        last = HeadOrder(1, self.seq) if self.seq else None
        raw = home.index.write(folder, last)
        assert raw is not None
        self.seq += 1
        home.wire()
        home.begin()
        return raw


def _lose(bundle_id: BundleId, db: sqlite3.Connection) -> None:
    db.execute("UPDATE bundles SET state='lost' WHERE bundle_id=?", (bundle_id,))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upkeep]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    made = Upkeep(tmp_path)
    yield made
    made.close()


async def days(home: Upkeep, number: int) -> None:
    for _ in range(number // 5):
        home.pass_days(5)
        await home.turn()


def removed(home: Upkeep, name: str = "a", seed: int = 1) -> list[BundleId]:
    """A file that came and went; its bundles."""
    home.put(name, pieces(seed)[0])
    ids = list(home.bundles_of(name))
    home.remove(name)
    return ids


def are_here(home: Upkeep, ids: list[BundleId]) -> list[bool]:
    return [home.store.has(bundle_id) for bundle_id in ids]


async def test_nothing_goes_before_every_device_has_shown_its_index(home: Upkeep) -> None:
    other = Other(home)
    home.away.add(other.node_id)
    ids = removed(home)
    await days(home, 200)
    assert all(are_here(home, ids))
    home.away.clear()
    await days(home, 5)
    assert not any(are_here(home, ids))


async def test_an_index_that_was_shown_before_says_nothing_of_later(home: Upkeep) -> None:
    other = Other(home)
    earlier = removed(home, "earlier", 2)
    await days(home, 65)
    assert not any(are_here(home, earlier)), "it has shown its index"
    home.away.add(other.node_id)
    ids = removed(home)
    await days(home, 200)
    assert all(are_here(home, ids))


async def test_what_another_device_names_is_kept(home: Upkeep) -> None:
    other = Other(home)
    home.put("a", pieces(1)[0])
    home.told = [other.index()]
    kept = home.current["a"]
    ids = list(home.bundles_of("a"))
    home.remove("a")
    await days(home, 200)
    assert all(are_here(home, ids))
    assert home.read(kept.manifest) == kept.digest
    home.told = [other.index()]  # without it
    home.clock.advance(1)
    await home.turn()
    assert all(are_here(home, ids)), "its 30 days began when it was last named"
    await days(home, 40)
    assert not any(are_here(home, ids))


async def test_what_a_revoked_device_names_is_not_kept(home: Upkeep) -> None:
    other = Other(home)
    home.put("a", pieces(1)[0])
    home.told = [other.index()]
    ids = list(home.bundles_of("a"))
    home.remove("a")
    admin = home.home.admin()
    assert admin is not None
    home.group.revoke(other.public, signer=admin, now=NOW)
    home.devices.clear()
    await days(home, 70)
    assert not any(are_here(home, ids))


@pytest.mark.parametrize("what", ["head", "index", "manifest"])
async def test_what_cannot_be_read_ends_the_turn(home: Upkeep, what: str) -> None:
    other = Other(home)
    home.put("a", pieces(1)[0])
    before = set(home.store.list())
    home.told = [other.index()]
    made = set(home.store.list()) - before
    ids = list(home.bundles_of("a"))
    home.remove("a")
    if what == "head":
        home.told = [home.told[0][:-1]]
    else:
        lost = made if what == "index" else [i for i in ids if home.store.size(i) < 50_000]
        for bundle_id in lost:
            home.store.to_trash(bundle_id)
            home.store.purge(bundle_id)
            home.catalog.write(partial(_lose, bundle_id)).result()
    data = [i for i in ids if home.store.has(i)]
    home.pass_days(31)
    await home.turn()
    assert home.catalog.view(dying.bundles)
    home.pass_days(31)
    with pytest.raises(P2PStoreError):
        await home.turn()
    assert all(are_here(home, data))


async def test_what_another_device_has_deleted_need_not_be_there_any_more(home: Upkeep) -> None:
    other = Other(home)
    home.put("a", pieces(1)[0])
    ids = list(home.bundles_of("a"))
    home.remove("a")
    home.told = [other.index()]  # a line says that it is deleted, and where it lay
    (names,) = [one for one in ids if home.store.size(one) < 50_000]
    home.store.to_trash(names)
    home.store.purge(names)
    home.catalog.write(partial(_lose, names)).result()
    await days(home, 70)
    assert not any(are_here(home, ids))


async def test_what_dies_later_is_looked_for_as_well(home: Upkeep) -> None:
    other = Other(home)
    home.put("a", pieces(1)[0])
    home.put("b", pieces(2)[0])
    home.told = [other.index()]
    ids = list(home.bundles_of("b"))
    home.remove("a")
    await days(home, 40)  # its manifests were read, for what died of the first one
    home.remove("b")
    await days(home, 200)
    assert all(are_here(home, ids))
