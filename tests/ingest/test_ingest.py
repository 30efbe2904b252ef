"""Ingest over a disk that fails, lies or forgets: nothing is protected that cannot be read back."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from p2pstore.content import Kind
from p2pstore.errors import IntegrityError, NoRoom, P2PStoreError, Unavailable
from p2pstore.store import DiskBundles, blocks, files
from tests.faults.world import Oracle, World, assert_journal_closed
from tests.store.faulty import Fault, Faults, FaultyBundles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="replacing needs Linux")

CONTENTS = {b"small": b"small content", b"large": os.urandom(400_000), b"empty": b""}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[tuple[World, FaultyBundles]]:
    store = FaultyBundles(DiskBundles(tmp_path / "home/bundles"))
    made = World(tmp_path, store=store)
    for name, content in CONTENTS.items():
        made.write(name, content)
    yield made, store
    made.close()


def _rows(folder: int, db: sqlite3.Connection) -> list[files.FileRow]:
    return list(files.walk(db, folder))


def calls_of_one_batch(tmp_path: Path) -> int:
    store = FaultyBundles(DiskBundles(tmp_path / "home/bundles"))
    made = World(tmp_path, store=store)
    for name, content in CONTENTS.items():
        made.write(name, content)
    made.replace(*CONTENTS)
    made.close()
    return store.faults.calls


@pytest.mark.slow
@pytest.mark.parametrize("fault", list(Fault))
def test_disk_that_fails_at_any_call_costs_no_file(fault: Fault, tmp_path: Path) -> None:
    for at in range(1, calls_of_one_batch(tmp_path / "count") + 1):
        base = tmp_path / str(at)
        store = FaultyBundles(DiskBundles(base / "home/bundles"), Faults({at: fault}))
        made = World(base, store=store)
        for name, content in CONTENTS.items():
            made.write(name, content)
        expected = NoRoom if fault is Fault.ENOSPC else (Unavailable, IntegrityError)
        with suppress(*((expected,) if isinstance(expected, type) else expected)):
            made.replace(*CONTENTS)
        assert len({name.removesuffix(b".f") for name in made.names()}) == len(CONTENTS)
        recorded = made.catalog.view(partial(_rows, made.row))
        assert not recorded or all(name.endswith(b".f") for name in made.names())
        oracle = Oracle(base)
        oracle.assert_nothing_lost(CONTENTS.values())
        assert_journal_closed(made)
        # The next try, on a disk that is well again, takes them all.
        store.faults.at.clear()
        store.failed = False
        left = [name for name in CONTENTS if made.at(name).exists()]
        if left:
            assert made.replace(*left) == dict.fromkeys(left, "")
        assert made.empty_trash() == []
        oracle.assert_nothing_lost(CONTENTS.values())
        oracle.close()
        made.close()


def test_flipped_bit_is_noticed_before_anything_is_replaced(
    faulty: tuple[World, FaultyBundles],
) -> None:
    made, store = faulty
    store.read = (
        lambda bundle_id, indices: [  # type: ignore[method-assign]
            block[:-1] + bytes([block[-1] ^ 1]) for block in store.inner.read(bundle_id, indices)
        ]
    )
    with pytest.raises(IntegrityError):
        made.replace(*CONTENTS)
    assert made.names() == set(CONTENTS)


def spoil(made: World) -> None:
    for bundle_id in made.disk.list():
        path = made.disk.path(bundle_id)
        raw = bytearray(path.read_bytes())
        at = len(raw) // 3
        raw[at : at + 64] = bytes(64)
        path.write_bytes(bytes(raw))


@pytest.mark.parametrize("away", [False, True])
def test_known_chunk_whose_bundle_rotted_is_sealed_again(made: World, away: bool) -> None:
    """A duplicate must not lean on a copy that is gone, nor wait for it for ever."""
    content = os.urandom(50_000)
    made.write("first", content)
    made.take("first", replace=False)
    for bundle_id in made.disk.list():
        if away:
            made.disk.to_trash(bundle_id)
        else:
            made.disk.forget(bundle_id)
    if not away:
        spoil(made)
    made.write("second", content)
    with pytest.raises(P2PStoreError):
        made.replace("second")
    assert made.at("second").read_bytes() == content
    assert made.replace("second") == {b"second": ""}
    made.hydrate("second.f")
    assert made.at("second").read_bytes() == content


def test_duplicate_leans_on_the_first_copy(made: World) -> None:
    content = os.urandom(50_000)
    made.write("first", content)
    made.write("second", content)
    made.replace("first")
    before = sum(made.disk.size(bundle) for bundle in made.disk.list())
    made.replace("second")
    after = sum(made.disk.size(bundle) for bundle in made.disk.list())
    assert after - before < 5000
    made.hydrate("first.f", "second.f")
    assert made.at("second").read_bytes() == content


def test_duplicate_in_a_bundle_that_is_leaving_is_sealed_again(made: World) -> None:
    content = os.urandom(50_000)
    made.write("first", content)
    made.replace("first")
    made.empty_trash()
    first = made.catalog.view(lambda db: blocks.list_bundles(db))
    for bundle in first:
        assert made.catalog.write(lambda db, b=bundle: blocks.begin_evict(db, b.id)).result()
        made.disk.to_trash(bundle.bundle_id)
    made.write("second", content)
    assert made.replace("second") == {b"second": ""}
    row = made.file_row("second")
    needed = made.catalog.view(lambda db: blocks.bundles_of_file(db, row.id))
    assert not {b.id for b in needed} & {b.id for b in first}
    made.hydrate("second.f")
    assert made.at("second").read_bytes() == content


def test_bundle_that_a_batch_relies_on_does_not_leave(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evict comes between the look-up and the record: one of the two must give way."""
    content = os.urandom(50_000)
    made.write("first", content)
    made.replace("first")
    refused: list[bool] = []
    read_back = type(made.ingest)._read_back

    def evicting(*args: object) -> None:
        for bundle in made.catalog.view(lambda db: blocks.list_bundles(db, states=["sealed"])):
            if bundle.kind != Kind.DATA:
                continue
            gone = made.catalog.write(lambda db, b=bundle: blocks.begin_evict(db, b.id)).result()
            refused.append(not gone)
        read_back(*args)

    monkeypatch.setattr(type(made.ingest), "_read_back", evicting)
    made.write("second", content)
    made.replace("second")
    assert refused
    assert all(refused)


def test_file_that_is_only_protected_and_changes_meanwhile_is_not_recorded(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody holds a lease on a database: half of an old and half of a new one is no version."""
    path = made.write("data.sqlite", b"content")
    protect = made.ingest.protect

    def changing(*args: object, **kwargs: object) -> object:
        path.write_bytes(b"CONTENT")
        return protect(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(made.ingest, "protect", changing)
    taken = made.take("data.sqlite", replace=False)
    assert [(o.state, o.reason) for o in taken.outcomes] == [("later", "changed meanwhile")]
    assert made.file_row("data.sqlite") is None


@pytest.mark.parametrize("size", [10, 100_000, (4 << 20) + 5])
@pytest.mark.parametrize("change", [-1, 1])
def test_file_of_another_size_than_it_said_is_turned_away(
    made: World, monkeypatch: pytest.MonkeyPatch, size: int, change: int
) -> None:
    path = made.write("file", b"x" * size)
    protect = made.ingest.protect

    def changing(*args: object, **kwargs: object) -> object:
        os.truncate(path, size + change)
        return protect(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(made.ingest, "protect", changing)
    taken = made.take("file", replace=False)
    assert [o.state for o in taken.outcomes] == ["later"]
    assert path.stat().st_size == size + change


@pytest.mark.parametrize("refused", [True, False])
def test_nothing_is_protected_by_a_bundle_whose_row_is_not_there(
    made: World, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """Rows of bundles and of files are written one behind the other, and fail together."""
    putting = blocks.put_bundle

    def put(db: sqlite3.Connection, row: blocks.BundleRow) -> int:
        if row.kind != Kind.META:
            return putting(db, row)
        if refused:
            raise NoRoom("The disk is full.")
        return 1_000_000  # of a row that was taken back

    monkeypatch.setattr(blocks, "put_bundle", put)
    made.write("file", b"content")
    with pytest.raises(NoRoom if refused else Unavailable):
        made.replace("file")
    assert made.file_row("file") is None
    assert made.names() == {b"file"}
    monkeypatch.undo()
    assert made.replace("file") == {b"file": ""}
