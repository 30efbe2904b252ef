from __future__ import annotations

import sqlite3

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from p2pstore.ids import BlockId, BundleId, Tag
from p2pstore.store import blocks, files, journal, schema
from p2pstore.store.blocks import BundleRow, BundleState, DedupRow
from p2pstore.store.files import FileRow


def made(number: int, **fields: object) -> BundleRow:
    row = BundleRow(
        BundleId(number.to_bytes(32, "big")),
        Tag(number.to_bytes(20, "big")),
        1,
        None,
        BundleState.SEALED,
        100,
        10,
    )
    return row._replace(**fields)  # type: ignore[arg-type]


def chunk(key: int, bundle: int, idx: int = 0) -> DedupRow:
    raw = key.to_bytes(16, "big")
    return DedupRow(raw, bundle, idx, BlockId(raw * 2), raw * 2, 0, 5000)


def keys_of(*numbers: int) -> list[bytes]:
    return [number.to_bytes(16, "big") for number in numbers]


def test_bundle_rows(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1))
    assert blocks.by_rowid(db, number) == made(1, id=number)
    assert blocks.get_bundle(db, made(1).bundle_id) == made(1, id=number)
    assert blocks.by_tag(db, made(1).tag) == made(1, id=number)
    assert blocks.put_bundle(db, made(1, bytes=7)) == number
    assert blocks.get_bundles(db, [made(1).bundle_id, made(2).bundle_id]) == {
        made(1).bundle_id: made(1, id=number, bytes=7)
    }
    assert blocks.get_bundle(db, made(2).bundle_id) is None


def test_a_merged_bundle_is_found_under_old_names(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1))
    blocks.add_alias(db, made(9).bundle_id, made(9).tag, number)
    for found in (blocks.get_bundle(db, made(9).bundle_id), blocks.by_tag(db, made(9).tag)):
        assert found is not None
        assert found.id == number
    assert blocks.aliases_of(db, number) == [(made(9).bundle_id, made(9).tag)]


def test_bundles_in_pages(db: sqlite3.Connection) -> None:
    ids = [blocks.put_bundle(db, made(n)) for n in range(5)]
    blocks.move(db, ids[2], BundleState.EVICTED, only_from=["sealed"])
    sealed = blocks.list_bundles(db, states=["sealed"], limit=3)
    assert [one.id for one in sealed] == [ids[0], ids[1], ids[3]]
    rest = blocks.list_bundles(db, states=["sealed"], after=sealed[-1].id)
    assert [one.id for one in rest] == [ids[4]]
    assert len(blocks.list_bundles(db)) == 5
    assert blocks.stored_bytes(db) == {"sealed": 400, "evicted": 100}


def test_a_state_changes_only_from_the_expected_one(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1))
    assert not blocks.move(db, number, BundleState.EVICTED, only_from=["evicting"])
    assert blocks.move(db, number, BundleState.EVICTING, only_from=["sealed"])
    assert blocks.move(db, number, BundleState.EVICTED, only_from=["evicting", "lost"])


def test_a_live_map_is_never_made_older(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1))
    blocks.set_live(db, number, 2, 50)
    blocks.set_live(db, number, 1, 80)
    found = blocks.by_rowid(db, number)
    assert found is not None
    assert (found.seq, found.bytes) == (2, 50)


@pytest.mark.parametrize(
    ("fields", "is_hit"),
    [
        ({}, True),
        ({"own": 0}, False),
        ({"state": "open"}, False),
        ({"state": "evicting"}, False),
        ({"state": "evicted"}, False),
        ({"state": "lost"}, False),
    ],
)
def test_only_sealed_bundles_of_ours_are_hits(
    db: sqlite3.Connection, fields: dict[str, object], is_hit: bool
) -> None:
    number = blocks.put_bundle(db, made(1, **fields))
    blocks.insert_dedup(db, [chunk(5, number, 3)])
    found = blocks.lookup_many(db, keys_of(4, 5, 6))
    assert list(found) == (keys_of(5) if is_hit else [])
    if is_hit:
        known = found[keys_of(5)[0]]
        assert (known.bundle, known.bundle_id, known.tag) == (
            number,
            made(1).bundle_id,
            made(1).tag,
        )
        assert (known.idx, known.offset, known.length) == (3, 0, 5000)
    assert blocks.claim(db, "journal:1", [number]) == ({number} if is_hit else set())


@pytest.mark.parametrize("number", [1, 8, 9, 512, 513, 1500])
def test_looking_up_many(db: sqlite3.Connection, number: int) -> None:
    bundle = blocks.put_bundle(db, made(1))
    blocks.insert_dedup(db, [chunk(n, bundle, n) for n in range(number)])
    found = blocks.lookup_many(db, keys_of(*range(number * 2)))
    assert sorted(found) == sorted(keys_of(*range(number)))


def test_a_newer_place_replaces_an_older_one(db: sqlite3.Connection) -> None:
    one, two = blocks.put_bundle(db, made(1)), blocks.put_bundle(db, made(2))
    blocks.insert_dedup(db, [chunk(5, one)])
    blocks.insert_dedup(db, [chunk(5, two)])
    assert blocks.lookup_many(db, keys_of(5))[keys_of(5)[0]].bundle == two


def test_chunks_are_forgotten(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1))
    blocks.insert_dedup(db, [chunk(n, number, n) for n in range(4)])
    blocks.forget_chunks(db, number, [1, 2])
    assert sorted(blocks.lookup_many(db, keys_of(0, 1, 2, 3))) == keys_of(0, 3)
    blocks.forget_chunks(db, number)
    assert blocks.lookup_many(db, keys_of(0, 1, 2, 3)) == {}


def test_references_of_files(db: sqlite3.Connection, folder: int) -> None:
    one, two, three = (blocks.put_bundle(db, made(n)) for n in (1, 2, 3))
    a, b = files.upsert_many(db, [FileRow(folder, b"a", "x"), FileRow(folder, b"b", "x")])
    blocks.set_file_bundles(db, [(a, [one, two]), (b, [two, two])])
    blocks.set_file_bundles(db, [(a, [two, three])])
    assert [row.id for row in blocks.bundles_of_file(db, a)] == [two, three]
    assert blocks.bundles_of_files(db, [a, b]) == {two: {a, b}, three: {a}}
    assert blocks.files_of_bundle(db, two) == [a, b]
    assert blocks.folders_of_bundle(db, two) == [folder]
    assert blocks.folders_of_bundle(db, one) == []


def test_an_open_ingest_holds_off_eviction(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1))
    intent = journal.open_intent(db, journal.IntentKind.INGEST, b"", 1)
    assert blocks.claim(db, journal.root_of(intent), [number]) == {number}
    assert not blocks.begin_evict(db, number)
    journal.close(db, intent)
    assert blocks.begin_evict(db, number)
    assert not blocks.begin_evict(db, number)
    later = journal.open_intent(db, journal.IntentKind.INGEST, b"", 2)
    assert blocks.claim(db, journal.root_of(later), [number]) == set()


def test_a_share_does_not_hold_off_eviction(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1))
    blocks.set_root(db, "share:x", [number])
    assert blocks.begin_evict(db, number)
    assert blocks.forget_unreferenced(db, number) is None, "but it keeps it alive"


def test_only_the_unreferenced_are_forgotten(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1, created=10))
    blocks.insert_dedup(db, [chunk(1, number)])
    blocks.set_root(db, "index:f", [number])
    assert blocks.unreferenced(db, created_before_ms=100) == []
    assert blocks.forget_unreferenced(db, number) is None
    blocks.set_root(db, "index:f", [])
    assert blocks.unreferenced(db, created_before_ms=10) == [], "it is too young"
    assert blocks.unreferenced(db, created_before_ms=11) == [number]
    assert blocks.forget_unreferenced(db, number) == made(1).bundle_id
    assert blocks.forget_unreferenced(db, number) is None
    assert db.execute("SELECT count(*) FROM dedup").fetchone() == (0,)


def test_roots_by_name(db: sqlite3.Connection) -> None:
    number = blocks.put_bundle(db, made(1))
    for name in ("share:a", "share:b", "upload:a"):
        blocks.add_root(db, name, [number, number])
    assert blocks.roots_with(db, "share:") == ["share:a", "share:b"]
    assert blocks.roots_of(db, number) == ["share:a", "share:b", "upload:a"]


class References(RuleBasedStateMachine):
    """Whatever the order: a bundle with a reference is never forgotten, and a claim that was
    granted holds its bundle in the local store until the intent is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for step in schema.STEPS:
            self.db.executescript(step)
        self.bundles = [blocks.put_bundle(self.db, made(n)) for n in range(4)]
        self.files = files.upsert_many(self.db, [FileRow(1, b"%d" % n, "x") for n in range(3)])
        self.wanted: dict[int, set[int]] = {}
        self.claims: dict[int, set[int]] = {}
        self.gone: set[int] = set()

    def teardown(self) -> None:
        self.db.close()

    def there(self, numbers: set[int]) -> set[int]:
        return {self.bundles[n] for n in numbers} - self.gone

    @rule(n=st.integers(0, 2), numbers=st.sets(st.integers(0, 3)))
    def reference(self, n: int, numbers: set[int]) -> None:
        bundles = self.there(numbers)
        blocks.set_file_bundles(self.db, [(self.files[n], bundles)])
        self.wanted[self.files[n]] = bundles

    @rule(numbers=st.sets(st.integers(0, 3)))
    def claim(self, numbers: set[int]) -> None:
        intent = journal.open_intent(self.db, journal.IntentKind.INGEST, b"", 0)
        asked = {self.bundles[n] for n in numbers}
        granted = blocks.claim(self.db, journal.root_of(intent), asked)
        assert granted <= asked - self.gone
        self.claims[intent] = granted

    @rule()
    def close(self) -> None:
        if self.claims:
            intent, _ = self.claims.popitem()
            assert journal.close(self.db, intent)

    @rule(n=st.integers(0, 3))
    def evict(self, n: int) -> None:
        bundle = self.bundles[n]
        if blocks.begin_evict(self.db, bundle):
            assert not any(bundle in claimed for claimed in self.claims.values())

    @rule(n=st.integers(0, 3))
    def bring_back(self, n: int) -> None:
        blocks.move(self.db, self.bundles[n], "sealed", only_from=["evicting", "evicted"])

    @rule(n=st.integers(0, 3))
    def collect(self, n: int) -> None:
        bundle = self.bundles[n]
        if blocks.forget_unreferenced(self.db, bundle) is not None:
            assert not any(bundle in wanted for wanted in self.wanted.values())
            assert not any(bundle in claimed for claimed in self.claims.values())
            self.gone.add(bundle)

    @invariant()
    def claimed_bundles_are_here(self) -> None:
        for claimed in self.claims.values():
            for bundle in claimed:
                row = blocks.by_rowid(self.db, bundle)
                assert row is not None
                assert row.state == "sealed"

    @invariant()
    def references_are_exact(self) -> None:
        for file, wanted in self.wanted.items():
            assert {row.id for row in blocks.bundles_of_file(self.db, file)} == wanted


TestReferences = References.TestCase
TestReferences.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
