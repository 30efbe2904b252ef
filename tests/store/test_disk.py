"""What only bundles on a disk can suffer: crashes, full and failing disks, bit rot."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pstore.content import HEADER_SIZE, RECORD_HEAD
from p2pstore.errors import LocalProtocolError, NoRoom, Unavailable
from p2pstore.ids import BundleId
from p2pstore.store import BundleDamaged, BundleMissing, DiskBundles, StoreFailed
from p2pstore.store import disk as disk_module

from .faulty import flipped
from .making import KEY, OTHER_KEY, blocks, dead, header, sealed


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskBundles]:
    made = DiskBundles(tmp_path / "bundles")
    yield made
    made.close()


def cut_off(store: DiskBundles, keep: int, number: int = 5) -> Path:
    """An open bundle of a process that is gone, cut after `keep` bytes."""
    bundle = store.create(header(), KEY)
    bundle.append(blocks(number))
    bundle.let_go()
    path = store.root / "open" / f"{header().bundle_id.hex()}.bundle"
    os.truncate(path, keep)
    return path


def ends(number: int = 5) -> list[int]:
    """Where each of the blocks ends in the file."""
    at, found = HEADER_SIZE, []
    for one in blocks(number):
        at += RECORD_HEAD + len(one.block)
        found.append(at)
    return found


def test_a_second_store_finds_everything(store: DiskBundles) -> None:
    index, made = sealed(store)
    store.set_live_map(
        index.header.bundle_id, dead(index, store.live_map(index.header.bundle_id), {1})
    )
    again = DiskBundles(store.root)
    assert again.list() == [index.header.bundle_id]
    assert again.index(index.header.bundle_id) == index
    assert not again.live_map(index.header.bundle_id).is_live(1)
    assert again.read(index.header.bundle_id, [0]) == [made[0].block]
    again.close()


@pytest.mark.parametrize(("cut", "whole"), [(-1, 4), (0, 5), (-5001, 4), (1, 5), (40, 5)])
def test_whole_blocks_of_a_cut_bundle_are_salvaged(
    store: DiskBundles, cut: int, whole: int
) -> None:
    path = cut_off(store, ends()[-1] + cut)
    (found,) = store.salvage_all()
    assert found.path == path
    assert found.header == header()
    assert [one.block_id for one in found.entries] == [one.block_id for one in blocks(5)[:whole]]


def test_a_salvaged_bundle_can_be_sealed_in_place(store: DiskBundles) -> None:
    cut_off(store, ends()[3] + 100)
    index = store.seal_salvaged(header().bundle_id, KEY)
    assert store.salvage_all() == []
    assert store.list() == [header().bundle_id]
    assert store.read(header().bundle_id, range(4)) == [one.block for one in blocks(5)[:4]]
    assert len(index.blocks) == 4


def test_only_the_opener_seals_a_salvaged_bundle(store: DiskBundles) -> None:
    cut_off(store, ends()[3])
    with pytest.raises(LocalProtocolError):
        store.seal_salvaged(header().bundle_id, OTHER_KEY)
    assert len(store.salvage_all()) == 1


@pytest.mark.parametrize("keep", [0, 50, HEADER_SIZE, HEADER_SIZE + 10])
def test_nothing_whole_is_nothing_to_seal(store: DiskBundles, keep: int) -> None:
    cut_off(store, keep)
    (found,) = store.salvage_all()
    assert found.header.bundle_id == header().bundle_id
    assert found.entries == []
    store.discard(header().bundle_id)
    assert store.salvage_all() == []
    with pytest.raises(BundleMissing):
        store.seal_salvaged(header().bundle_id, KEY)


def test_bundles_that_are_being_written_are_not_salvaged(store: DiskBundles) -> None:
    bundle = store.create(header(), KEY)
    bundle.append(blocks(2))
    assert store.salvage_all() == []
    with pytest.raises(LocalProtocolError):
        store.discard(header().bundle_id)
    bundle.abandon()


def test_strange_names_in_the_store_are_left_alone(store: DiskBundles) -> None:
    sealed(store)
    for name in ("open/x.bundle", "trash/../ab.bundle", "trash/zz.bundle"):
        (store.root / name).write_bytes(b"?")
    (store.root / "ff").mkdir(exist_ok=True)
    (store.root / "ff" / "short.bundle").write_bytes(b"?")
    assert store.list() == [header().bundle_id]
    assert store.trash() == []
    assert store.salvage_all() == []


@pytest.mark.parametrize("where", ["block", "list", "header", "footer", "short", "empty"])
def test_bit_rot_is_noticed_and_named(store: DiskBundles, where: str) -> None:
    index, made = sealed(store)
    bundle_id = index.header.bundle_id
    path = store.path(bundle_id)
    raw = bytearray(path.read_bytes())
    end = index.blocks.records_end
    spots = {"block": 3000, "list": end + 9, "header": 20, "footer": len(raw) - 3}
    if where in spots:
        raw[spots[where]] ^= 4
    path.write_bytes({"short": raw[:-1], "empty": b""}.get(where, raw))
    again = DiskBundles(store.root)
    with pytest.raises(BundleDamaged) as caught:
        again.read_blocks(bundle_id, [one.block_id for one in made])
    assert caught.value.bundle_id == bundle_id
    again.close()


def test_a_bundle_under_the_name_of_another_is_damage(store: DiskBundles) -> None:
    index, _ = sealed(store)
    other = BundleId(bytes([1]) * 32)
    store.path(other).parent.mkdir(exist_ok=True)
    store.path(index.header.bundle_id).rename(store.path(other))
    with pytest.raises(BundleDamaged):
        store.index(other)


def test_an_unreadable_disk_is_damage(store: DiskBundles, monkeypatch: pytest.MonkeyPatch) -> None:
    index, _ = sealed(store)

    def fail(*_: object) -> bytes:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(disk_module.os, "pread", fail)
    with pytest.raises(BundleDamaged):
        store.read(index.header.bundle_id, [0])
    with pytest.raises(BundleDamaged):
        DiskBundles(store.root).index(index.header.bundle_id)


def test_a_damaged_live_map_hides_no_error(store: DiskBundles) -> None:
    index, _ = sealed(store)
    bundle_id = index.header.bundle_id
    store.set_live_map(bundle_id, dead(index, store.live_map(bundle_id), {1}))
    path = store.path(bundle_id).with_suffix(".live")
    path.write_bytes(path.read_bytes()[:-5])
    again = DiskBundles(store.root)
    with pytest.raises(BundleDamaged):
        again.read(bundle_id, [0])
    again.close()


def test_bytes_are_synced_before_the_name_and_the_name_before_the_answer(
    store: DiskBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(fd: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{fd}")).parent.name)
        real_sync(fd)

    def rename(path: Path, target: Path) -> Path:
        order.append("rename")
        return real_rename(path, target)

    store._sealed_directory(header().bundle_id)
    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    bundle = store.create(header(), KEY)
    bundle.append(blocks(2))
    bundle.seal()
    assert order == ["open", "rename", store.root.name]


def test_a_failed_fsync_is_never_tried_again(
    store: DiskBundles, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "input/output error")

    index, made = sealed(store, "before")
    bundle = store.create(header(), KEY)
    bundle.append(blocks(3))
    monkeypatch.setattr(disk_module.os, "fsync", fail)
    with pytest.raises(StoreFailed):
        bundle.seal()
    assert len(calls) == 1
    for attempt in (bundle.seal, lambda: bundle.append(blocks(1))):
        with pytest.raises(StoreFailed):
            attempt()
    with pytest.raises(StoreFailed):
        store.create(header("two"), KEY)
    with pytest.raises(StoreFailed):
        store.to_trash(index.header.bundle_id)
    assert len(calls) == 1
    assert not store.has(header().bundle_id), "what was not synced has no final name"
    assert store.read(index.header.bundle_id, [0]) == [made[0].block], "reading goes on"
    bundle.abandon()


def test_a_full_disk_is_no_failed_disk(store: DiskBundles, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev
    bundle = store.create(header(), KEY)
    made = blocks(8)
    bundle.append(made[:4])
    left = [300]

    def short_of_room(fd: int, buffers: list[bytes], offset: int) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "no space left on device")
        part, left[0] = left[0], 0
        return real(fd, [b"".join(buffers)[:part]], offset)

    monkeypatch.setattr(disk_module.os, "pwritev", short_of_room)
    with pytest.raises(NoRoom):
        bundle.append(made[4:])
    monkeypatch.undo()
    assert bundle.append(made[4:]) == [4, 5, 6, 7]
    bundle.seal()
    assert store.read(header().bundle_id, range(8)) == [one.block for one in made]


def test_short_writes_are_completed(store: DiskBundles, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def trickle(fd: int, buffers: list[bytes], offset: int) -> int:
        return real(fd, [b"".join(buffers)[:1777]], offset)

    monkeypatch.setattr(disk_module.os, "pwritev", trickle)
    index, made = sealed(store)
    assert store.read(index.header.bundle_id, range(10)) == [one.block for one in made]


def test_one_call_writes_many_blocks(store: DiskBundles, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.pwritev, []

    def count(fd: int, buffers: list[bytes], offset: int) -> int:
        calls.append(len(buffers))
        return real(fd, buffers, offset)

    bundle = store.create(header(), KEY)
    monkeypatch.setattr(disk_module.os, "pwritev", count)
    bundle.append(blocks(1000, 60))
    assert calls == [1024, 976]
    bundle.abandon()


def test_few_descriptors_are_kept(store: DiskBundles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_files", disk_module._OpenFiles(3))
    before = len(os.listdir("/proc/self/fd"))
    ids = [sealed(store, str(n), number=1)[0].header.bundle_id for n in range(8)]
    for bundle_id in ids:
        store.read(bundle_id, [0])
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    store.close()


def test_a_lent_descriptor_outlives_its_place(store: DiskBundles) -> None:
    index, made = sealed(store)
    bundle_id = index.header.bundle_id
    with store._source(bundle_id) as source:
        store.to_trash(bundle_id)
        store.purge(bundle_id)
        at = index.blocks.offsets()[0]
        assert source.read_at(at, len(made[0].block)) == made[0].block
        fd = source.fd
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_the_trash_survives_a_restart(store: DiskBundles) -> None:
    index, made = sealed(store)
    bundle_id = index.header.bundle_id
    store.set_live_map(bundle_id, dead(index, store.live_map(bundle_id), {5}))
    store.to_trash(bundle_id)
    again = DiskBundles(store.root)
    assert again.trash() == [bundle_id]
    again.from_trash(bundle_id)
    assert not again.live_map(bundle_id).is_live(5)
    assert again.read(bundle_id, [0]) == [made[0].block]
    again.close()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(mode=0o500)
    with pytest.raises(Unavailable):
        DiskBundles(tmp_path / "ro" / "bundles")


def test_a_store_in_the_place_of_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        DiskBundles(tmp_path / "file" / "bundles")


def test_flipping_changes_one_bit() -> None:
    assert sum(a != b for a, b in zip(b"abcde", flipped(b"abcde"), strict=True)) == 1
