from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from p2pstore import durable
from p2pstore.carriers import (
    Carrier,
    FolderConfig,
    NotThere,
    PictureFolderConfig,
    make_carrier,
    prepare,
)
from p2pstore.carriers import folder as module
from p2pstore.carriers.folder import MARKER, PIECE, STALE_S
from p2pstore.errors import IntegrityError, NoRoom, P2PStoreError, Unavailable, UsageError
from tests.faults.loop import Loop, why_not


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
async def carrier(disk: Path) -> AsyncIterator[Carrier]:
    made = make_carrier("disk", prepare(FolderConfig(path=str(disk))))
    yield made
    await made.close()


@pytest.fixture
async def album(disk: Path) -> AsyncIterator[Carrier]:
    config = PictureFolderConfig(path=str(disk), width=64, height=64)
    made = make_carrier("album", prepare(config))
    yield made
    await made.close()


def pieces(disk: Path) -> list[Path]:
    return sorted(path for path in disk.glob("*/*") if path.is_file())


# -- which disk it is -----------------------------------------------------------------------------


async def each_call(carrier: Carrier) -> list[BaseException | Any]:
    calls: list[Callable[[], Any]] = [
        lambda: carrier.get("piece"),
        lambda: carrier.put("piece", b"x"),
        lambda: carrier.delete("piece"),
    ]
    ends = []
    for call in calls:
        with pytest.raises(P2PStoreError) as caught:
            await call()
        ends.append(caught.value)
    return ends


async def test_an_unplugged_disk_is_not_empty(disk: Path, carrier: Carrier) -> None:
    await carrier.put("piece", b"x")
    disk.rename(disk.with_name("in-a-drawer"))
    for end in await each_call(carrier):
        assert type(end) is Unavailable
    disk.mkdir()  # what a mount point is
    for end in await each_call(carrier):
        assert type(end) is Unavailable
    assert list(disk.iterdir()) == []
    disk.rmdir()
    disk.with_name("in-a-drawer").rename(disk)
    assert await carrier.get("piece") == b"x"


async def test_another_disk_is_not_taken_for_it(disk: Path, carrier: Carrier) -> None:
    disk.rename(disk.with_name("first"))
    prepare(FolderConfig(path=str(disk)))
    for end in await each_call(carrier):
        assert type(end) is Unavailable
        assert "another" in str(end)
    any_disk = make_carrier("any", FolderConfig(path=str(disk)))
    with pytest.raises(NotThere):
        await any_disk.get("piece")
    await any_disk.close()


def test_preparing_again_keeps_the_mark(disk: Path) -> None:
    first = prepare(FolderConfig(path=str(disk)))
    assert isinstance(first, FolderConfig)
    assert len(first.mark) == 32
    assert prepare(FolderConfig(path=str(disk))) == first
    disk.joinpath(MARKER).write_bytes(b"torn")
    assert prepare(FolderConfig(path=str(disk))) != first


@pytest.mark.parametrize("where", ["missing/parent", "file"])
def test_what_cannot_be_prepared_is_told(tmp_path: Path, where: str) -> None:
    tmp_path.joinpath("file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot become a carrier"):
        prepare(FolderConfig(path=str(tmp_path / where)))


# -- how pieces lie there -------------------------------------------------------------------------


async def test_pieces_lie_in_256_subdirectories(disk: Path, carrier: Carrier) -> None:
    for number in range(40):
        await carrier.put(f"piece-{number}", b"")
    found = pieces(disk)
    assert {path.name for path in found} == {f"piece-{number}" for number in range(40)}
    assert all(len(path.parent.name) == 2 for path in found)
    assert len({path.parent for path in found}) > 20


async def test_others_may_read_what_lies_there(disk: Path, carrier: Carrier) -> None:
    before = os.umask(0o022)
    try:
        await carrier.put("piece", b"x")
    finally:
        os.umask(before)
    (piece,) = pieces(disk)
    assert piece.stat().st_mode & 0o777 == 0o644


async def test_a_picture_lies_there_as_a_picture(disk: Path, album: Carrier) -> None:
    await album.put("piece", b"abc")
    (picture,) = pieces(disk)
    assert picture.name == "piece.png"
    with Image.open(picture) as seen:
        assert (seen.format, seen.mode, seen.size) == ("PNG", "RGB", (64, 64))


async def test_a_picture_may_be_compressed_anew(disk: Path, album: Carrier) -> None:
    await album.put("piece", b"abc")
    (picture,) = pieces(disk)
    with Image.open(BytesIO(picture.read_bytes())) as seen:
        seen.save(picture, optimize=True)
    assert await album.get("piece") == b"abc"
    await album.put("piece", b"abc")
    with Image.open(BytesIO(picture.read_bytes())) as seen:
        seen.save(picture, "JPEG")
    with pytest.raises(IntegrityError, match="JPEG"):
        await album.get("piece")


async def test_pieces_of_another_size_stay_readable(disk: Path, album: Carrier) -> None:
    await album.put("piece", bytes(12_000))
    smaller = prepare(PictureFolderConfig(path=str(disk), width=64, height=64))
    larger = make_carrier("large", PictureFolderConfig(path=str(disk), width=900, height=900))
    await larger.put("large", bytes(2_000_000))
    again = make_carrier("again", smaller)
    assert await again.get("large") == bytes(2_000_000)
    await larger.close()
    await again.close()


# -- what goes wrong ------------------------------------------------------------------------------


async def test_order_of_a_put(carrier: Carrier, monkeypatch: pytest.MonkeyPatch) -> None:
    await carrier.put("piece", b"x")  # its subdirectory is there
    steps = []
    fsync, rename = os.fsync, durable.rename_noreplace
    await carrier.delete("piece")

    def syncing(descriptor: int) -> None:
        steps.append("sync directory" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "sync")
        fsync(descriptor)

    def renaming(*names: Any) -> None:
        steps.append("rename")
        rename(*names)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(durable, "rename_noreplace", renaming)
    await carrier.put("piece", b"x")
    assert steps == ["sync", "rename", "sync directory"]


async def test_a_new_subdirectory_is_made_durable_first(
    disk: Path, carrier: Carrier, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    fsync = os.fsync

    def syncing(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", syncing)
    await carrier.put("piece", b"x")
    (piece,) = pieces(disk)
    assert synced[0] == disk
    assert synced[-1] == piece.parent


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoRoom),
        (errno.EDQUOT, NoRoom),
        (errno.EROFS, UsageError),
        (errno.EACCES, UsageError),
        (errno.EIO, Unavailable),
        (errno.ENODEV, Unavailable),
        (errno.ESTALE, Unavailable),
    ],
)
async def test_a_failing_disk_leaves_nothing_behind(
    disk: Path,
    carrier: Carrier,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    kind: type[P2PStoreError],
) -> None:
    await carrier.put("other", b"")
    real = os.fsync

    def failing(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            return real(descriptor)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(kind) as caught:
        await carrier.put("piece", b"x")
    assert type(caught.value) is kind
    assert [path.name for path in pieces(disk)] == ["other"]


@pytest.mark.parametrize("missing", [1, 2])
async def test_without_a_rename_that_never_overwrites(
    carrier: Carrier, monkeypatch: pytest.MonkeyPatch, missing: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EINVAL, "not on this file system")

    def forbid(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(durable, "rename_noreplace", refuse)
    if missing == 2:
        monkeypatch.setattr(os, "link", forbid)
    await carrier.put("piece", b"first")
    await carrier.put("piece", b"first")
    with pytest.raises(UsageError):
        await carrier.put("piece", b"other")
    assert await carrier.get("piece") == b"first"
    monkeypatch.setattr(module.FolderCarrier, "_holds", lambda *_: False)  # another was quicker
    await carrier.put("piece", b"other")
    assert await carrier.get("piece") == b"first"


async def test_what_a_crash_left_is_removed_a_day_later(disk: Path, carrier: Carrier) -> None:
    await carrier.put("piece", b"x")
    shelf = pieces(disk)[0].parent
    names = {
        "old": ".one.0123456789abcdef",
        "young": ".two.0123456789abcdef",
        "foreign": ".DS_Store",
    }
    for name in names.values():
        shelf.joinpath(name).write_bytes(b"torn")
    for kind in ("old", "foreign"):
        then = shelf.stat().st_mtime - STALE_S - 60
        os.utime(shelf / names[kind], (then, then))
    again = make_carrier("again", FolderConfig(path=str(disk)))
    await again.put("piece", b"x")
    await again.close()
    assert {path.name for path in shelf.iterdir()} == {"piece", names["young"], names["foreign"]}


async def test_a_planted_link_leads_nowhere(tmp_path: Path, disk: Path, carrier: Carrier) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    await carrier.put("piece", b"x")
    (piece,) = pieces(disk)
    outside.joinpath("piece").write_bytes(b"private")
    piece.unlink()
    piece.symlink_to(outside / "piece")
    for end in await each_call_that_fails(carrier, "get", "put"):
        assert type(end) is UsageError
    piece.unlink()
    piece.parent.rmdir()
    piece.parent.symlink_to(outside)
    for end in await each_call_that_fails(carrier, "get", "put", "delete"):
        assert type(end) is UsageError
    assert outside.joinpath("piece").read_bytes() == b"private"
    assert len(list(outside.iterdir())) == 1


async def each_call_that_fails(carrier: Carrier, *names: str) -> list[P2PStoreError]:
    arguments = {"get": ("piece",), "put": ("piece", b"y"), "delete": ("piece",)}
    ends = []
    for name in names:
        with pytest.raises(P2PStoreError) as caught:
            await getattr(carrier, name)(*arguments[name])
        ends.append(caught.value)
    return ends


async def test_what_is_no_piece_is_refused(disk: Path, carrier: Carrier) -> None:
    await carrier.put("piece", b"x")
    (piece,) = pieces(disk)
    os.truncate(piece, PIECE + 1)
    with pytest.raises(IntegrityError):
        await carrier.get("piece")
    piece.unlink()
    os.mkfifo(piece)
    with pytest.raises(IntegrityError):
        await carrier.get("piece")
    with pytest.raises(UsageError):
        await carrier.put("piece", b"x")


@pytest.mark.slow
async def test_a_whole_bundle_fits(carrier: Carrier) -> None:
    content = bytes(PIECE)
    await carrier.put("bundle", content)
    assert await carrier.get("bundle") == content


@pytest.mark.slow
@pytest.mark.root
@pytest.mark.parametrize("kind", ["ext4", "vfat"])
async def test_a_stick_that_comes_and_goes(tmp_path: Path, kind: str) -> None:
    if reason := why_not(f"mkfs.{kind}"):
        pytest.skip(reason)
    stick = Loop(tmp_path / "image", tmp_path / "stick", size=8 << 20, kind=kind)
    stick.mount()
    try:
        carrier = make_carrier("stick", prepare(FolderConfig(path=str(tmp_path / "stick"))))
        for name in ("Piece", "piece"):
            await carrier.put(name, name.encode())
            assert await carrier.get(name) == name.encode()
        with pytest.raises(UsageError):
            await carrier.put("piece", b"other")
        with pytest.raises(NoRoom):
            await carrier.put("large", bytes(16 << 20))
        stick.umount()
        with pytest.raises(Unavailable) as caught:
            await carrier.get("piece")
        assert type(caught.value) is Unavailable
        stick.mount()
        assert await carrier.get("piece") == b"piece"
        await carrier.close()
    finally:
        stick.close()
