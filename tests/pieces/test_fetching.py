from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import stat
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

from p2pstore import durable
from p2pstore.carriers import NotThere
from p2pstore.content import UNNAMED, checksum
from p2pstore.errors import Busy, FormatError, IntegrityError, NoRoom, Unavailable, UsageError
from p2pstore.pieces import fetch, get_meta, open_upload, partial, store


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
async def carrier(memory: Any) -> Any:
    return memory(1000)


@pytest.fixture
async def key(carrier: Any, file: Path, pool: Executor) -> str:
    return (await store(carrier, file, pool=pool)).key


def failing(carrier: Any, *seqs: int) -> None:
    """Whoever asks for one of these pieces is told to come again later."""

    def fail(method: str, name: str) -> None:
        if method == "get" and name.endswith(tuple(f"-{seq}" for seq in seqs)):
            raise Unavailable("away")

    carrier.before = fail


def healthy(carrier: Any) -> None:
    carrier.before = lambda method, name: None
    carrier.calls.clear()


# -- where to ------------------------------------------------------------------------------------


async def test_it_goes_where_it_is_told(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(there)
    (there / "below").mkdir()
    for target, path in [
        (None, there / "photo.jpg"),
        (there / "below", there / "below" / "photo.jpg"),
        ("other.jpg", there / "other.jpg"),
        (os.fsencode(there) + b"/\xff", there / "\udcff"),
        (there / ("n" * 255), there / ("n" * 255)),
    ]:
        done = await fetch(carrier, key, target, pool=pool)
        assert done.path == path
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()
    assert names(there / "below") == ["photo.jpg"]
    assert len(names(there)) == 5


def _umask() -> int:
    value = os.umask(0o022)
    os.umask(value)
    return value


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
async def test_nothing_is_overwritten_unless_asked(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor, kind: str
) -> None:
    target, other = there / "photo.jpg", there / "other"
    if kind != "dangling":
        other.write_bytes(b"mine")
    if kind == "file":
        other.rename(target)
    else:
        target.symlink_to(other)
    with pytest.raises(UsageError, match=r"exists.*force=True"):
        await fetch(carrier, key, target, pool=pool)
    await fetch(carrier, key, target, pool=pool, force=True)
    assert target.read_bytes() == content
    assert not target.is_symlink()
    assert kind != "link" or other.read_bytes() == b"mine"


async def test_what_appears_meanwhile_is_not_overwritten(
    carrier: Any, key: str, there: Path, pool: Executor
) -> None:
    def appear(method: str, name: str) -> None:
        (there / "photo.jpg").write_bytes(b"mine")

    carrier.before = appear
    target = there / "photo.jpg"
    with pytest.raises(UsageError, match="exists"):
        await fetch(carrier, key, target, pool=pool)
    assert names(there) == ["photo.jpg"]
    assert target.read_bytes() == b"mine"


async def test_a_file_system_without_renameat2_gets_a_link(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def cannot(*args: object) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(durable, "rename_noreplace", cannot)
    await fetch(carrier, key, there, pool=pool)
    assert names(there) == ["photo.jpg"]
    with pytest.raises(UsageError, match="exists"):
        await fetch(carrier, key, there, pool=pool)
    assert (there / "photo.jpg").read_bytes() == content


async def test_only_files_are_replaced(carrier: Any, key: str, there: Path, pool: Executor) -> None:
    os.mkfifo(there / "photo.jpg")
    with pytest.raises(UsageError, match="no file"):
        await fetch(carrier, key, there / "photo.jpg", pool=pool, force=True)
    assert stat.S_ISFIFO((there / "photo.jpg").stat().st_mode)


@pytest.mark.parametrize("target", ["none/x", "file/x", "a\0b", "n" * 256])
async def test_a_place_that_cannot_be_written_is_told(
    carrier: Any, key: str, there: Path, pool: Executor, target: str
) -> None:
    (there / "file").write_bytes(b"")
    with pytest.raises(UsageError):
        await fetch(carrier, key, there / target, pool=pool)
    assert names(there) == ["file"]


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "", "..", "n" * 300, "a\0b"])
async def test_names_of_strangers_stay_in_their_directory(
    memory: Any, there: Path, pool: Executor, name: str
) -> None:
    carrier = memory(5000)
    document = {
        "protocol_version": "1.0",
        "filename": name,
        "piece_width": 2,
        "piece_height": 2,
        "pieces": [{"seq": 0, "key": "k", "offset": 0, "size": 3, "checksum": ""}],
    }
    carrier.kept = {"head": json.dumps(document).encode(), "k": b"abc"}
    done = await fetch(carrier, "head", there, pool=pool)
    assert done.path.parent == there
    assert done.path.read_bytes() == b"abc"
    assert name or done.path.name == UNNAMED


# -- what goes wrong ------------------------------------------------------------------------------


async def test_keys_that_are_none(carrier: Any, key: str, there: Path, pool: Executor) -> None:
    swapped = key[:60] + ("a" if key[60] != "a" else "b") + key[61:]
    for wrong, kind in [
        ("", UsageError),
        (key[:-4], FormatError),
        (swapped, FormatError),
        ("nothing", NotThere),
    ]:
        with pytest.raises(kind):
            await fetch(carrier, wrong, there, pool=pool)
    assert names(there) == []


async def test_a_plain_key_that_leads_to_something_else(
    carrier: Any, key: str, there: Path, pool: Executor
) -> None:
    for other in carrier.kept:
        with pytest.raises(FormatError):
            await fetch(carrier, other, there, pool=pool)


async def test_a_missing_piece_is_told_and_what_came_is_kept_for_later(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor
) -> None:
    last = next(name for name in carrier.kept if name.endswith("-11"))
    taken = carrier.kept.pop(last)
    with pytest.raises(NotThere, match="pieces is not there"):
        await fetch(carrier, key, there, pool=pool)
    assert not (there / "photo.jpg").exists()
    carrier.kept[last] = taken
    await fetch(carrier, key, there, pool=pool)
    assert (there / "photo.jpg").read_bytes() == content


@pytest.mark.parametrize("damage", ["bit", "cut", "swap"])
async def test_wrong_pieces_are_refused_and_leave_nothing(
    carrier: Any, key: str, there: Path, pool: Executor, damage: str
) -> None:
    first, second, *_ = carrier.kept
    kept = carrier.kept
    if damage == "bit":
        kept[first] = kept[first][:-1] + bytes([kept[first][-1] ^ 1])
    if damage == "cut":
        kept[first] = kept[first][:-1]
    if damage == "swap":
        kept[first], kept[second] = kept[second], kept[first]
    with pytest.raises(IntegrityError):
        await fetch(carrier, key, there, pool=pool)
    assert names(there) == []


async def test_a_piece_damaged_on_its_way_is_asked_for_again(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor
) -> None:
    damaged: set[str] = set()
    get = carrier.get

    async def damage_once(name: str) -> bytes:
        raw = bytes(await get(name))
        if "-m" in name or name in damaged:
            return raw
        damaged.add(name)
        return raw[:-1]

    carrier.get = damage_once
    assert (await fetch(carrier, key, there, pool=pool)).path.read_bytes() == content


async def test_every_bit_of_a_sealed_upload_counts(
    memory: Any, tmp_path: Path, there: Path, pool: Executor
) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    carrier = memory(1000)
    key = (await store(carrier, tmp_path / "f", pool=pool)).key
    whole = dict(carrier.kept)
    for name, raw in whole.items():
        for place in range(0, len(raw), 7):
            carrier.kept[name] = raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :]
            with pytest.raises(IntegrityError):
                await fetch(carrier, key, there, pool=pool)
        carrier.kept[name] = raw
    assert names(there) == []


async def test_no_room_is_told_before_the_first_byte(
    carrier: Any, key: str, there: Path, pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fstatvfs

    def little(descriptor: int) -> os.statvfs_result:
        usage = list(real(descriptor))
        usage[4] = 1  # f_bavail
        return os.statvfs_result(usage)

    monkeypatch.setattr(os, "fstatvfs", little)
    carrier.calls.clear()
    with pytest.raises(NoRoom, match="needs 11,520 bytes"):
        await fetch(carrier, key, there, pool=pool)
    assert carrier.count("get") <= 3  # the list alone
    assert names(there) == []


@pytest.mark.parametrize("where", ["reserve", "pwrite", "fsync"])
async def test_a_disk_that_fills_up_is_no_room(
    carrier: Any, key: str, there: Path, pool: Executor, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    if where == "reserve":
        monkeypatch.setattr(partial, "reserve", full)
    else:
        monkeypatch.setattr(os, where, full)
    with pytest.raises(NoRoom):
        await fetch(carrier, key, there, pool=pool)
    monkeypatch.undo()
    assert names(there) == []


async def test_a_file_system_that_cannot_reserve_is_good_enough(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def cannot(*args: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(partial, "reserve", cannot)
    assert (await fetch(carrier, key, there, pool=pool)).path.read_bytes() == content


# -- going on -------------------------------------------------------------------------------------


@pytest.fixture
async def begun(carrier: Any, key: str, there: Path, pool: Executor, pauses: Any) -> list[str]:
    """A download that ended in its middle: the names of its hidden files."""
    failing(carrier, 9, 10, 11)  # more than are in flight at once come before these
    with pytest.raises(Unavailable):
        await fetch(carrier, key, there, pool=pool, patience=pauses.patience)
    healthy(carrier)
    found = names(there)
    assert len(found) == 2
    assert all(name.startswith(".") and name.endswith(".part") for name in found)
    return found


async def test_an_interrupted_download_goes_on(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor, begun: list[str]
) -> None:
    told: list[int] = []
    await fetch(carrier, key, there, pool=pool, progress=lambda done, total: told.append(done))
    assert told[0] > 0
    assert told[-1] == len(content)
    gets = {name for method, name in carrier.calls if "-m" not in name}
    assert len(gets) < len([name for name in carrier.kept if "-m" not in name])
    assert (there / "photo.jpg").read_bytes() == content
    assert names(there) == ["photo.jpg"]


@pytest.mark.parametrize("damage", ["content", "notes", "cut", "no notes", "no content"])
async def test_what_was_damaged_meanwhile_is_fetched_again(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor, begun: list[str],
    damage: str, pauses: Any,
) -> None:  # fmt: skip
    notes, file = sorted((there / name for name in begun), key=lambda p: "pieces" not in p.name)
    if damage == "content":
        file.write_bytes(bytes(file.stat().st_size))
    if damage == "notes":
        notes.write_bytes(os.urandom(notes.stat().st_size))
    if damage == "cut":
        os.truncate(notes, notes.stat().st_size - 3)
    if damage == "no notes":
        notes.unlink()
    if damage == "no content":
        file.unlink()
    failing(carrier, 11)  # interrupted once more, with whatever that left
    with pytest.raises(Unavailable):
        await fetch(carrier, key, there, pool=pool, patience=pauses.patience)
    healthy(carrier)
    assert (await fetch(carrier, key, there, pool=pool)).path.read_bytes() == content
    assert names(there) == ["photo.jpg"]


async def test_a_finished_download_is_never_written_to_again(
    carrier: Any, key: str, content: bytes, there: Path, pool: Executor, begun: list[str]
) -> None:
    file = next(there / name for name in begun if "pieces" not in name)
    file.write_bytes(b"finished, and then killed before the hidden name went")
    os.link(file, there / "finished")
    before = (there / "finished").read_bytes()
    await fetch(carrier, key, there, pool=pool)
    assert (there / "finished").read_bytes() == before
    assert (there / "photo.jpg").read_bytes() == content


async def test_a_link_in_the_hidden_place_is_not_followed(
    carrier: Any, key: str, there: Path, pool: Executor, begun: list[str], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    for name in begun:
        (there / name).unlink()
        (there / name).symlink_to(victim)
    with pytest.raises(UsageError):
        await fetch(carrier, key, there, pool=pool)
    assert victim.read_bytes() == b"mine"


async def test_two_downloads_do_not_share_a_file(
    carrier: Any, key: str, there: Path, pool: Executor, begun: list[str]
) -> None:
    file = next(there / name for name in begun if "pieces" not in name)
    with open(file, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Busy):
            await fetch(carrier, key, there, pool=pool)
    assert names(there) == begun


async def test_a_cancelled_download_leaves_no_final_name(
    carrier: Any, key: str, there: Path, pool: Executor
) -> None:
    reached, never = asyncio.Event(), asyncio.Event()
    get = carrier.get

    async def stall(name: str) -> bytes:
        if carrier.count("get") > 6:
            reached.set()
            await never.wait()
        return bytes(await get(name))

    carrier.calls.clear()
    carrier.get = stall
    task = asyncio.create_task(fetch(carrier, key, there, pool=pool))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (there / "photo.jpg").exists()
    carrier.get = get
    await fetch(carrier, key, there, pool=pool)
    assert names(there) == ["photo.jpg"]


# -- ranges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, 0), (0, 1), (959, 961), (960, 1920), (5000, 5001), (11_519, None),
     (11_520, None), (100, 10**9)],
)  # fmt: skip
async def test_a_range_needs_only_its_pieces(
    carrier: Any, key: str, content: bytes, pool: Executor, start: int, end: int | None
) -> None:
    reader = await open_upload(carrier, key, pool=pool)
    carrier.calls.clear()
    got = b"".join([part async for part in reader.read(start, end)])
    wanted = content[start:end]
    assert got == wanted
    first, last = start // 960, (start + len(wanted) - 1) // 960
    assert carrier.count("get") == (last - first + 1 if wanted else 0)


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 4), (11_521, None)])
async def test_a_range_outside_the_file_is_refused(
    carrier: Any, key: str, pool: Executor, start: int, end: int | None
) -> None:
    reader = await open_upload(carrier, key, pool=pool)
    with pytest.raises(UsageError, match="outside"):
        async for _ in reader.read(start, end):
            pass


async def test_a_reader_that_stops_early_leaves_nothing_running(
    carrier: Any, key: str, pool: Executor
) -> None:
    reader = await open_upload(carrier, key, pool=pool)
    content = reader.read()
    await anext(content)
    await content.aclose()  # type: ignore[attr-defined]
    assert carrier.at_once == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_list_tells_name_and_size(
    carrier: Any, key: str, content: bytes, pool: Executor
) -> None:
    meta = await get_meta(carrier, key, pool=pool)
    assert (meta.name, meta.size) == ("photo.jpg", len(content))
    assert meta.pieces[0].checksum == checksum(content[:960])


async def test_a_chain_that_leads_back_to_itself_ends(
    memory: Any, pool: Executor, there: Path
) -> None:
    carrier = memory(5000)
    carrier.kept["head"] = (
        b'{"protocol_version":"1.0","filename":"x","piece_width":1,"piece_height":1,'
        b'"pieces":[],"next":"head","more":5}'
    )
    with pytest.raises(FormatError):
        await fetch(carrier, "head", there, pool=pool)
    assert carrier.count("get") == 2
