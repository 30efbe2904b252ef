"""Random histories of one HOME: whatever is collected, what may be wanted is there."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.content import BundleRef, ChunkList, Entry, FileMeta, Manifest, open_manifest
from p2pstore.ids import BlockId
from p2pstore.maintenance import recover
from p2pstore.maintenance.collect.roots import named_by
from p2pstore.policy import merging
from p2pstore.store import BundleState, blocks, dying, files, folders
from tests.maintenance.collecting import DAY, Upkeep, pieces

ENTRY = Entry(BlockId(bytes(32)), 0, bytes(32), 0, 1)
SEEDS = range(int(os.environ.get("P2PSTORE_COLLECT_SEEDS", "6")))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Upkeep]:
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    made = Upkeep(tmp_path)
    yield made
    made.close()


async def step(home: Upkeep, rng: random.Random, shared: list[bytes]) -> str:
    what = rng.choice(
        [
            "add",
            "add",
            "edit",
            "edit",
            "remove",
            "remove",
            "pass",
            "pass",
            "turn",
            "turn",
            "merge",
            "merge",
            "die",
            "die in merge",
            "crash",
        ]
    )
    names = sorted(home.current)
    if what == "add" or not names:
        name = f"file {rng.randrange(12)}"
        parts = rng.choices(shared, k=rng.randrange(4))
        home.put(name, b"".join(parts) + rng.randbytes(rng.choice([0, 1, 300, 5000])))
        return f"add {name}"
    if what == "edit":
        name = rng.choice(names)
        home.put(name, b"".join(rng.choices(shared, k=rng.randrange(1, 4))) + rng.randbytes(100))
        return f"edit {name}"
    if what == "remove":
        name = rng.choice(names)
        home.remove(name)
        return f"remove {name}"
    if what == "crash":
        home.crash_in_ingest(b"".join(rng.choices(shared, k=2)) + rng.randbytes(100_000))
    elif what == "pass":
        home.pass_days(rng.choice([0.1, 1, 3, 10, 31]))
    elif what == "turn":
        await home.turn()
    elif what == "merge":
        await home.merge()
    elif what == "die in merge":
        at = rng.randrange(1, 12)
        return f"die in merge at {at}: {await home.turn_that_dies(at, home.merge)}"
    else:
        home.end_history()
        at = rng.randrange(1, 30)
        return f"die at {at}: {await home.turn_that_dies(at)}"
    return what


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_version_stays_readable(
    home: Upkeep, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FEWEST", 2)
    rng = random.Random(seed)
    shared = pieces(seed)
    done: list[str] = []
    for _ in range(40):
        done.append(await step(home, rng, shared))
        try:
            home.check()
        except BaseException:
            print(f"seed {seed}:", *done, sep="\n  ")
            raise
    await settle(home)
    home.check()
    assert home.live_blocks() >= home.needed_blocks()


async def settle(home: Upkeep) -> None:
    """Nothing happens any more, and everything that may go has its time."""
    for _ in range(24):
        home.pass_days(5)
        await home.turn()


async def test_what_nothing_names_is_gone_in_the_end(home: Upkeep) -> None:
    shared = pieces(1)
    home.put("stays", shared[0] + shared[1])
    home.put("changes", shared[2] + shared[3] + shared[4])
    home.put("goes", shared[5] + shared[6])
    home.put("changes", shared[2] + b"another end")
    home.remove("goes")
    home.crash_in_ingest(shared[7])
    before = sum(home.store.stored(bundle_id) for bundle_id in home.store.list())
    await settle(home)
    home.check()
    after = sum(home.store.stored(bundle_id) for bundle_id in home.store.list())
    assert len(home.store.trash()) == 0
    needed = home.needed_blocks()
    assert home.live_blocks() >= needed
    size = 90_000
    assert before > 8 * size
    assert after < 3.5 * size, "the two pieces that stay, one that did not change, and names"


async def test_dead_blocks_take_no_room(home: Upkeep) -> None:
    """One bundle, of which a part is needed: its file has holes then, and a new live map."""
    shared = pieces(2, number=6, size=1_000_000)
    home.put("big", b"".join(shared))
    (bundle_id,) = [b for b in home.store.list() if home.store.size(b) > 2_000_000]
    home.put("big", b"".join(shared[:2]))
    before = home.store.stored(bundle_id)
    await settle(home)
    row = home.catalog.view(lambda db: blocks.get_bundle(db, bundle_id))
    assert row is not None
    assert (row.state, row.seq) == (BundleState.SEALED, 1)
    assert row.bytes < 3_000_000
    assert home.store.stored(bundle_id) < before - 3_000_000
    home.check()


async def test_thirty_days_are_counted_from_when_it_was_seen(home: Upkeep) -> None:
    home.put("a", pieces(3)[0])
    (bundle_id,) = [b for b in home.store.list() if home.store.size(b) > 80_000]
    home.remove("a")
    home.pass_days(30.5)
    await home.turn()  # seen, now that the history has ended
    home.pass_days(29.9)
    await home.turn()
    assert home.store.has(bundle_id)
    home.pass_days(0.2)
    await home.turn()
    assert not home.store.has(bundle_id)
    assert bundle_id in home.store.trash(), "for seven days more"
    home.pass_days(6.9)
    await home.turn()
    assert bundle_id in home.store.trash()
    home.pass_days(0.2)
    await home.turn()
    assert bundle_id not in home.store.trash()
    assert home.catalog.view(lambda db: blocks.get_bundle(db, bundle_id)) is None


async def test_what_no_file_ever_named_goes_after_a_day(home: Upkeep) -> None:
    home.crash_in_ingest(pieces(4)[0])
    made = set(home.store.list())
    assert made
    await home.turn()
    home.pass_days(0.9)
    await home.turn()
    assert set(home.store.list()) == made
    home.pass_days(0.2)
    await home.turn()
    assert home.store.list() == []


async def test_an_open_ingest_keeps_what_it_may_name(home: Upkeep) -> None:
    content = pieces(5)[0]
    home.crash_in_ingest(content)
    home.catalog.write(
        lambda db: blocks.add_root(db, "journal:77", [r.id for r in blocks.list_bundles(db)])
    ).result()
    made = home.store.list()
    for _ in range(10):
        home.pass_days(10)
        await home.turn()
    assert home.store.list() == made


async def test_a_new_file_does_not_rely_on_what_is_dying(home: Upkeep) -> None:
    content = pieces(6)[0]
    home.put("a", content)
    home.remove("a")
    home.pass_days(31)
    await home.turn()
    assert home.catalog.view(dying.bundles)
    home.put("b", content)  # the same chunks
    home.pass_days(31)
    await home.turn()
    home.check()
    await settle(home)
    home.check()


async def test_a_placeholder_that_comes_back_revives_its_blocks(home: Upkeep) -> None:
    """A `.f` lay outside of the folder, and is copied in while its blocks are dying."""
    content = pieces(7)[0]
    home.put("a", content)
    row, kept = home.file("a"), home.current["a"]
    needs = list(home.bundles_of("a"))
    home.remove("a")
    home.pass_days(31)
    await home.turn()
    assert home.catalog.view(dying.bundles)

    home.adopt("back", row, kept, needs)
    home.pass_days(31)
    await home.turn()
    assert home.catalog.view(dying.bundles) == []
    home.check()


async def test_a_dead_bundle_that_is_named_again_comes_back(home: Upkeep) -> None:
    home.put("a", pieces(8)[0])
    row, kept = home.file("a"), home.current["a"]
    ids = list(home.bundles_of("a"))
    home.remove("a")
    home.pass_days(31)
    await home.turn()
    home.pass_days(31)
    await home.turn()
    assert set(home.store.trash()) >= set(ids)

    home.adopt("back", row, kept, ids)
    await home.turn()
    home.check()
    assert home.store.trash() == []


async def test_a_restart_leaves_what_is_dead_in_the_trash(home: Upkeep) -> None:
    home.put("a", pieces(9)[0])
    home.remove("a")
    for _ in range(2):
        home.pass_days(31)
        await home.turn()
    trash = home.store.trash()
    assert trash
    assert recover(home.catalog, home.store) == 0
    assert home.store.trash() == trash


async def test_a_clock_that_jumps_ten_years_kills_nothing(home: Upkeep) -> None:
    home.put("a", pieces(10)[0])
    before = home.store.list()
    home.remove("a")
    home.pass_days(31)
    await home.turn()
    home.clock._wall += 10 * 365 * DAY  # over a restart: nothing else tells how long it was
    home.begin()
    await home.turn()
    assert home.store.list() == before


@pytest.mark.parametrize("left", [True, False])
async def test_a_removed_folder_is_kept_while_it_has_placeholders(home: Upkeep, left: bool) -> None:
    home.put("a", pieces(13)[0])
    home.put("b", pieces(13)[1])
    state = "placeholder" if left else "protected"

    row = home.file("a").id
    home.catalog.write(lambda db: files.set_state(db, [row], state)).result()
    home.catalog.write(lambda db: folders.set_state(db, home.row, folders.REMOVED)).result()
    for name in ("a", "b") if not left else ():
        home._ended(name)
    await settle(home)
    home.check()
    assert bool(home.store.list()) == left


async def test_every_change_may_be_the_last(home: Upkeep) -> None:
    """One turn with everything in it, cut off before each of its changes in turn."""
    shared = pieces(11, number=8, size=400_000)
    home.put("whole", shared[0])
    home.put("part", b"".join(shared[1:7]))
    home.put("part", b"".join(shared[1:3]))
    home.remove("whole")
    points: list[int] = []
    for _ in range(15):
        home.pass_days(7)  # as much as a restart counts for
        home.end_history()
        at = 1
        while await home.turn_that_dies(at):
            home.check()
            at += 1
        home.check()
        points.append(at)
    assert sorted(points)[-3:] >= [4, 4, 4], "seen, punched and put away, removed"
    assert home.store.trash() == []
    states = home.catalog.read("SELECT state, seq FROM bundles WHERE kind=1")
    assert states == [("sealed", 1), ("sealed", 0)], "the part that is left, and its new end"


async def test_lists_of_large_files_are_named_too(home: Upkeep) -> None:
    home.put("large", random.Random(12).randbytes(6_000_000))
    manifest = open_manifest(home.current["large"].manifest, home.group.ring()).manifest
    assert manifest.chunks.depth
    await settle(home)
    home.check()
    assert all(home.store.live_map(b).seq == 0 for b in home.store.list())


def test_a_manifest_names_its_own_block_and_what_exceeds_it() -> None:
    places = [(BundleRef(bytes([i]) * 32, bytes(20)), ENTRY) for i in range(3)]  # type: ignore[arg-type]
    manifest = Manifest(
        file_id=bytes(16),  # type: ignore[arg-type]
        version={},
        parent=b"",
        meta=FileMeta(b"n", 1, 0o644, 0, 0, "", "", 0, extra=places[1]),
        hash=bytes(32),
        chunks=ChunkList(0, (places[2][0],), (ENTRY,), ()),
        group=bytes(32),  # type: ignore[arg-type]
        kind="file",
    )
    assert list(named_by(manifest, places[0], lambda ref, entry: b"")) == places
