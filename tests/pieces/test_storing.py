from __future__ import annotations

import asyncio
import json
import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from p2pstore.content import UPLOAD_PREFIX
from p2pstore.errors import Busy, IntegrityError, NoRoom, Unavailable, UsageError
from p2pstore.pieces import Patience, fetch, store
from p2pstore.pieces.storing import MOST, PIECE, piece_size


async def fetched(carrier: Any, key: str, there: Path, pool: Executor) -> bytes:
    return (await fetch(carrier, key, there, pool=pool)).path.read_bytes()


@pytest.mark.parametrize("encrypt", [True, False])
@pytest.mark.parametrize("keeps_names", [True, False])
@pytest.mark.parametrize("is_exact", [True, False])
async def test_a_file_comes_back(
    memory: Any, file: Path, content: bytes, there: Path, pool: Executor, encrypt: bool,
    keeps_names: bool, is_exact: bool,
) -> None:  # fmt: skip
    carrier = memory(1000, keeps_names=keeps_names, is_exact=is_exact)
    stored = await store(carrier, file, pool=pool, encrypt=encrypt)
    assert stored.key.startswith(UPLOAD_PREFIX) == encrypt
    assert len(stored.meta.pieces) >= 12
    assert await fetched(carrier, stored.key, there, pool) == content
    assert (there / "photo.jpg").exists()


@pytest.mark.parametrize("size", [0, 1, 959, 960, 961, 1920, 1921])
async def test_sizes_around_a_piece(
    memory: Any, tmp_path: Path, there: Path, pool: Executor, size: int
) -> None:
    (tmp_path / "f").write_bytes(bytes(size))
    carrier = memory(1000)
    stored = await store(carrier, tmp_path / "f", pool=pool)
    assert len(stored.meta.pieces) == -(-size // 960)
    assert await fetched(carrier, stored.key, there, pool) == bytes(size)


async def test_a_plain_meta_is_the_old_systems(memory: Any, file: Path, pool: Executor) -> None:
    carrier = memory(20_000)
    stored = await store(carrier, file, pool=pool, encrypt=False, picture=(600, 400))
    document = json.loads(carrier.kept[stored.key])
    assert document["filename"] == "photo.jpg"
    assert (document["piece_width"], document["piece_height"]) == (600, 400)
    assert [piece["seq"] for piece in document["pieces"]] == [0]


async def test_nothing_of_a_sealed_file_is_seen(
    memory: Any, tmp_path: Path, pool: Executor
) -> None:
    (tmp_path / "secret-plan").write_bytes(b"attack at dawn" * 100)
    carrier = memory(500)
    await store(carrier, tmp_path / "secret-plan", pool=pool)
    everything = b"".join(carrier.kept.values()) + repr(list(carrier.kept)).encode()
    assert b"attack" not in everything
    assert b"secret" not in everything


async def test_a_descriptor_is_read_from_its_beginning(
    memory: Any, file: Path, content: bytes, there: Path, pool: Executor
) -> None:
    with open(file, "rb") as opened:
        opened.seek(5)
        stored = await store(memory(1000), opened.fileno(), name="../x", pool=pool)
        assert opened.tell() == 5
    assert stored.meta.name == "x"


async def test_pieces_travel_at_once_but_not_all(memory: Any, file: Path, pool: Executor) -> None:
    carrier = memory(400)
    await store(carrier, file, pool=pool)
    assert 1 < carrier.most_at_once <= 8


async def test_progress_goes_from_nothing_to_all(memory: Any, file: Path, pool: Executor) -> None:
    told: list[tuple[int, int]] = []
    size = file.stat().st_size
    await store(
        memory(1000), file, pool=pool, progress=lambda done, total: told.append((done, total))
    )
    assert told[0] == (0, size)
    assert told[-1] == (size, size)
    assert told == sorted(told)
    assert len(told) == 1 + -(-size // 960)


def test_pieces_grow_with_the_file_where_the_place_takes_more() -> None:
    assert piece_size(10, 1000) == 1000
    assert piece_size(0, 1 << 40) == PIECE
    assert piece_size(PIECE * MOST + 1, 1 << 40) == PIECE + (1 << 20)
    assert piece_size(1 << 60, 1 << 40) == 64 << 20


@pytest.mark.parametrize("piece", [8, 40, 41, 100])
@pytest.mark.parametrize("encrypt", [True, False])
async def test_a_place_of_tiny_pieces_is_refused_before_anything_is_put(
    memory: Any, file: Path, pool: Executor, piece: int, encrypt: bool
) -> None:
    carrier = memory(piece)
    with pytest.raises(UsageError, match="larger pieces"):
        await store(carrier, file, pool=pool, encrypt=encrypt)
    assert not carrier.calls


async def test_small_pieces_hold_a_small_file(
    memory: Any, tmp_path: Path, there: Path, pool: Executor
) -> None:
    (tmp_path / "f").write_bytes(b"tiny" * 300)
    carrier = memory(300)
    stored = await store(carrier, tmp_path / "f", pool=pool, encrypt=False)
    assert sum("-m" in name for name in carrier.kept) > 1
    assert await fetched(carrier, stored.key, there, pool) == b"tiny" * 300


async def test_keys_too_long_for_the_list_are_noticed_at_the_first_piece(
    memory: Any, file: Path, pool: Executor
) -> None:
    carrier = memory(400, keeps_names=False)
    carrier.key_of = lambda name: None if name.endswith("-0") else f"{name:k<600}"
    with pytest.raises(UsageError, match="larger pieces"):
        await store(carrier, file, pool=pool)
    assert carrier.count("put") < 20


# -- failures -------------------------------------------------------------------------------------


async def test_what_fails_for_now_is_tried_again(
    memory: Any, pauses: Any, file: Path, content: bytes, there: Path, pool: Executor
) -> None:
    carrier = memory(1000)
    failures = iter([Unavailable("no")] * 3)

    def fail(method: str, name: str) -> None:
        if name.endswith("-5") and (error := next(failures, None)) is not None:
            raise error

    carrier.before = fail
    stored = await store(carrier, file, pool=pool, patience=pauses.patience)
    assert pauses.slept == [0.5, 1.0, 2.0]
    assert await fetched(carrier, stored.key, there, pool) == content


async def test_patience_ends(memory: Any, pauses: Any, file: Path, pool: Executor) -> None:
    carrier = memory(20_000)

    def fail(method: str, name: str) -> None:
        raise Unavailable("The host is away.")

    carrier.before = fail
    with pytest.raises(Unavailable, match="host is away"):
        await store(carrier, file, pool=pool, patience=pauses.patience)
    assert len(pauses.slept) == 3


def test_pauses_are_bounded_and_have_jitter() -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def attempt() -> None:
        raise Unavailable("no")

    for dice in (0.0, 1.0):
        patience = Patience(tries=9, most_s=8, sleep=sleep, dice=lambda dice=dice: dice)
        with pytest.raises(Unavailable):
            asyncio.run(patience.insist(attempt))
    assert slept[:8] == [0.25, 0.5, 1, 2, 4, 4, 4, 4]
    assert slept[8:] == [0.5, 1, 2, 4, 8, 8, 8, 8]


async def test_a_full_place_is_not_asked_again(
    memory: Any, pauses: Any, file: Path, pool: Executor
) -> None:
    carrier = memory(20_000)

    def fail(method: str, name: str) -> None:
        raise NoRoom("full")

    carrier.before = fail
    with pytest.raises(NoRoom):
        await store(carrier, file, pool=pool, patience=pauses.patience)
    assert pauses.slept == []


async def test_a_host_that_re_encodes_is_named_and_gets_nothing_to_keep(
    memory: Any, file: Path, pool: Executor, tmp_path: Path
) -> None:
    carrier = memory(1000, is_exact=False)
    changed = iter(range(100))
    carrier.change = lambda raw: raw if next(changed) < 4 else raw[:-1] + b"!"
    with pytest.raises(IntegrityError, match=r"pics.example does not keep bytes"):
        await store(carrier, file, pool=pool, place="pics.example", journals=tmp_path / "j")
    assert carrier.kept == {}
    assert list((tmp_path / "j").iterdir()) == []


async def test_a_host_that_cannot_read_its_own_pictures_is_named(
    memory: Any, file: Path, pool: Executor
) -> None:
    carrier = memory(1000, is_exact=False)

    def fail(method: str, name: str) -> None:
        if method == "get":
            raise IntegrityError("a JPEG")

    carrier.before = fail
    with pytest.raises(IntegrityError, match="does not keep bytes") as caught:
        await store(carrier, file, pool=pool)
    assert isinstance(caught.value.__cause__, IntegrityError)


async def test_plain_pieces_whose_keys_the_host_chose_are_never_deleted(
    memory: Any, file: Path, pool: Executor
) -> None:
    carrier = memory(1000, is_exact=False, keeps_names=False)
    carrier.change = lambda raw: raw + b"!"
    with pytest.raises(IntegrityError):
        await store(carrier, file, pool=pool, encrypt=False)
    assert carrier.count("delete") == 0


async def test_an_exact_place_is_not_read_back(memory: Any, file: Path, pool: Executor) -> None:
    carrier = memory(1000)
    await store(carrier, file, pool=pool)
    assert carrier.count("get") == 0


@pytest.mark.parametrize("how", ["grow", "shrink", "touch"])
async def test_a_file_that_changes_meanwhile_is_an_error(
    memory: Any, file: Path, pool: Executor, how: str, tmp_path: Path
) -> None:
    carrier = memory(1000)

    def edit(method: str, name: str) -> None:
        if method != "put":
            return
        if how == "touch":
            os.utime(file, ns=(1, 1))
        else:
            os.truncate(file, 20_000 if how == "grow" else 10)

    carrier.before = edit
    with pytest.raises(Busy, match="changed"):
        await store(carrier, file, pool=pool, journals=tmp_path / "j")
    assert carrier.kept == {}
    assert list((tmp_path / "j").iterdir()) == []


@pytest.mark.parametrize("what", ["missing", "directory", "fifo", "nul"])
async def test_what_is_no_file_is_refused(
    memory: Any, tmp_path: Path, pool: Executor, what: str
) -> None:
    path = tmp_path / what
    if what == "directory":
        path.mkdir()
    if what == "fifo":
        os.mkfifo(path)
    if what == "nul":
        path = tmp_path / "a\0b"
    with pytest.raises(UsageError):
        await store(memory(1000), path, pool=pool)


# -- going on -------------------------------------------------------------------------------------


def failing_at(carrier: Any, number: int, error: BaseException) -> None:
    """From that put on."""

    def fail(method: str, name: str) -> None:
        if method == "put" and carrier.count("put") > number:
            raise error

    carrier.before = fail


def failing_late(carrier: Any) -> None:
    """More come before these than are in flight at once: two at least are in the journal then."""

    def fail(method: str, name: str) -> None:
        if name.endswith(("-9", "-10", "-11")):
            raise Unavailable("away")

    carrier.before = fail


@pytest.mark.parametrize("is_exact", [True, False])
@pytest.mark.parametrize("keeps_names", [True, False])
async def test_an_interrupted_upload_goes_on(
    memory: Any, pauses: Any, file: Path, content: bytes, there: Path, pool: Executor,
    tmp_path: Path, is_exact: bool, keeps_names: bool,
) -> None:  # fmt: skip
    carrier = memory(1000, is_exact=is_exact, keeps_names=keeps_names)
    failing_late(carrier)
    settings = {"pool": pool, "patience": pauses.patience, "journals": tmp_path / "j"}
    with pytest.raises(Unavailable):
        await store(carrier, file, **settings)
    (journal,) = (tmp_path / "j").iterdir()
    known = len(journal.read_bytes().splitlines()) - 1
    assert known >= 2
    carrier.before = lambda method, name: None
    carrier.calls.clear()
    stored = await store(carrier, file, **settings)
    pieces = [name for method, name in carrier.calls if method == "put" and "-m" not in name]
    assert len(pieces) == len(stored.meta.pieces) - known
    if keeps_names:  # also what was put and not noted lies there once
        assert len({key.partition("-")[2].partition("-")[0] for key in carrier.kept}) == 1
    assert await fetched(carrier, stored.key, there, pool) == content
    assert list((tmp_path / "j").iterdir()) == []


async def test_a_cancelled_upload_goes_on(
    memory: Any, file: Path, content: bytes, there: Path, pool: Executor, tmp_path: Path
) -> None:
    carrier = memory(1000)
    reached, never = asyncio.Event(), asyncio.Event()
    put = carrier.put

    async def stall(name: str, raw: bytes) -> str:
        if len(carrier.kept) >= 3:
            reached.set()
            await never.wait()
        return await put(name, raw)

    carrier.put = stall
    task = asyncio.create_task(store(carrier, file, pool=pool, journals=tmp_path / "j"))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    there_already = set(carrier.kept)
    carrier.put = put
    stored = await store(carrier, file, pool=pool, journals=tmp_path / "j")
    assert there_already <= set(carrier.kept)
    assert await fetched(carrier, stored.key, there, pool) == content


async def test_pieces_that_went_or_changed_meanwhile_are_put_again(
    memory: Any, pauses: Any, file: Path, content: bytes, there: Path, pool: Executor,
    tmp_path: Path,
) -> None:  # fmt: skip
    carrier = memory(1000, keeps_names=False)
    failing_late(carrier)
    settings = {"pool": pool, "patience": pauses.patience, "journals": tmp_path / "j"}
    with pytest.raises(Unavailable):
        await store(carrier, file, **settings)
    (journal,) = (tmp_path / "j").iterdir()
    gone, changed = (json.loads(line)["key"] for line in journal.read_bytes().splitlines()[1:3])
    del carrier.kept[gone]
    carrier.kept["filler"] = b""
    carrier.kept[changed] = b"other"
    carrier.before = lambda method, name: None
    stored = await store(carrier, file, **settings)
    assert not {gone, changed} & {piece.key for piece in stored.meta.pieces}
    assert await fetched(carrier, stored.key, there, pool) == content


async def test_another_file_of_that_name_starts_afresh(
    memory: Any, pauses: Any, file: Path, there: Path, pool: Executor, tmp_path: Path
) -> None:
    carrier = memory(1000)
    failing_at(carrier, 6, Unavailable("away"))
    settings = {"pool": pool, "patience": pauses.patience, "journals": tmp_path / "j"}
    with pytest.raises(Unavailable):
        await store(carrier, file, **settings)
    new = bytes(reversed(file.read_bytes()))
    file.write_bytes(new)
    carrier.before = lambda method, name: None
    stored = await store(carrier, file, **settings)
    assert await fetched(carrier, stored.key, there, pool) == new


@pytest.mark.parametrize("damage", ["cut", "junk", "empty", "other"])
async def test_a_damaged_journal_costs_pieces_and_nothing_else(
    memory: Any, pauses: Any, file: Path, content: bytes, there: Path, pool: Executor,
    tmp_path: Path, damage: str,
) -> None:  # fmt: skip
    carrier = memory(1000)
    settings = {"pool": pool, "patience": pauses.patience, "journals": tmp_path / "j"}
    for number in (6, 8):  # damaged, then used and interrupted once more
        failing_at(carrier, number, Unavailable("away"))
        with pytest.raises(Unavailable):
            await store(carrier, file, **settings)
        (journal,) = (tmp_path / "j").iterdir()
        assert journal.stat().st_mode & 0o777 == 0o600
        raw = journal.read_bytes()
        journal.write_bytes(
            {"cut": raw[:-9], "junk": raw + b"{\n\n", "empty": b"", "other": b"[]\n"}[damage]
        )
        carrier.calls.clear()
    carrier.before = lambda method, name: None
    stored = await store(carrier, file, **settings)
    assert await fetched(carrier, stored.key, there, pool) == content


async def test_a_failed_upload_deletes_nothing_that_lay_there_before(
    memory: Any, pauses: Any, file: Path, pool: Executor, tmp_path: Path
) -> None:
    carrier = memory(1000)
    failing_at(carrier, 6, Unavailable("away"))
    settings = {"pool": pool, "patience": pauses.patience, "journals": tmp_path / "j"}
    with pytest.raises(Unavailable):
        await store(carrier, file, **settings)
    before = dict(carrier.kept)
    failing_at(carrier, 0, UsageError("You are not allowed to."))
    with pytest.raises(UsageError):
        await store(carrier, file, **settings)
    assert carrier.kept == before


async def test_without_a_journal_nothing_is_left_behind(
    memory: Any, pauses: Any, file: Path, pool: Executor
) -> None:
    carrier = memory(1000)
    failing_at(carrier, 6, Unavailable("away"))
    with pytest.raises(Unavailable):
        await store(carrier, file, pool=pool, patience=pauses.patience)
    assert carrier.kept == {}


async def test_the_same_file_is_not_uploaded_twice_at_once(
    memory: Any, file: Path, pool: Executor, tmp_path: Path
) -> None:
    carrier = memory(1000)
    both = [store(carrier, file, pool=pool, journals=tmp_path / "j") for _ in range(2)]
    first, second = await asyncio.gather(*both, return_exceptions=True)
    assert not isinstance(first, BaseException)
    assert isinstance(second, Busy)


async def test_the_head_is_the_last_thing_put(memory: Any, file: Path, pool: Executor) -> None:
    carrier = memory(400)
    await store(carrier, file, pool=pool)
    names = [name for method, name in carrier.calls if method == "put"]
    lists = [name for name in names if "-m" in name]
    assert names[-len(lists) :] == lists
    assert names[-1].endswith("-m0")


@pytest.mark.parametrize("key", ["", "p2pc:abc", "a\nb", " a", "k" * 2049])
async def test_a_place_whose_keys_lead_nowhere_is_refused(
    memory: Any, file: Path, pool: Executor, key: str
) -> None:
    carrier = memory(20_000, keeps_names=False)

    async def put(name: str, raw: bytes) -> str:
        return key

    carrier.put = put
    with pytest.raises(IntegrityError, match="keys"):
        await store(carrier, file, pool=pool)
