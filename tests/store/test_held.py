from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from p2pstore import durable
from p2pstore.clock import ManualClock
from p2pstore.content import (
    BlockList,
    BundleIndex,
    LiveMap,
    SealedBlock,
    encode_live_map,
    sign_live_map,
    signed_list,
)
from p2pstore.content.bundle import BlockEntry, Replaced, decode_signed_list, encode_header, trailer
from p2pstore.errors import (
    Busy,
    FormatError,
    IntegrityError,
    NoRoom,
    NotAllowed,
    RemoteProtocolError,
)
from p2pstore.ids import BundleId, NodeId, PublicKey, Tag, group_id_of
from p2pstore.store import BundleDamaged, BundleMissing, HeldStore, StaleMap, StoreFailed, Upload
from p2pstore.store.held import uploads as uploads_module
from p2pstore.store.sidefile import MAGIC, read_side

from .making import GROUP, KEY, OPENER, OTHER_KEY, blocks, header

TAG = Tag(b"t" * 20)
OURS = group_id_of(GROUP)
NODE = NodeId(b"n" * 20)
DAY_MS = 86_400_000
LEASE = 1_700_000_000_000 + 180 * DAY_MS

Open = Callable[..., HeldStore]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def open_store(tmp_path: Path, clock: ManualClock) -> Iterator[Open]:
    made: list[HeldStore] = []

    def open_it(boot: str = "boot-1") -> HeldStore:
        for old in made:
            old.close()
        made.append(HeldStore(tmp_path / "held", clock, boot_id=boot))
        return made[-1]

    yield open_it
    for old in made:
        old.close()


@pytest.fixture
def store(open_store: Open) -> HeldStore:
    return open_store()


def listed(
    name: str = "one",
    number: int = 10,
    *,
    key: SigningKey = KEY,
    group: PublicKey = GROUP,
    replaces: tuple[Replaced, ...] = (),
) -> tuple[BundleIndex, list[SealedBlock]]:
    made = blocks(number, seed=sum(name.encode()))
    head = encode_header(header(name, key=key, group=group))
    entries = tuple(BlockEntry(one.block_id, len(one.block)) for one in made)
    tail = trailer(head, BlockList(entries, replaces), key)
    return decode_signed_list(head + tail[:-16]), made


def put(
    store: HeldStore, name: str = "one", *, tag: Tag = TAG, lease: int = LEASE, **how: object
) -> tuple[BundleIndex, list[SealedBlock]]:
    index, made = listed(name, **how)  # type: ignore[arg-type]
    upload = store.begin_put(signed_list(index), tag, b"", lease)
    send(upload, made)
    upload.finish()
    return index, made


def send(upload: Upload, made: list[SealedBlock]) -> None:
    for i in wanted(upload):
        upload.write(i, made[i].block)


def wanted(upload: Upload) -> list[int]:
    bits = upload.missing()
    return [i for i in range(len(bits) * 8) if bits[i >> 3] >> (i & 7) & 1]


def all_live(index: BundleIndex) -> LiveMap:
    return LiveMap.all_live(index.header.bundle_id, len(index.blocks))


def without(index: BundleIndex, *gone: int) -> bytes:
    return encode_live_map(sign_live_map(all_live(index).without(set(gone)), KEY))


def side_path(store: HeldStore, bundle_id: BundleId) -> Path:
    name = bundle_id.hex()
    return store.root / "sides" / name[:2] / f"{name}.side"


# Uploads


def test_an_upload_is_kept_and_read_back(store: HeldStore) -> None:
    index, made = put(store)
    bundle_id = index.header.bundle_id
    assert store.has(bundle_id)
    assert store.index(bundle_id) == index
    assert list(store.iter_live(bundle_id)) == [one.block for one in made]
    assert store.read_blocks(bundle_id, [made[3].block_id]) == {made[3].block_id: made[3].block}
    assert store.find_tag(TAG) == bundle_id
    assert store.used_bytes(OURS) == sum(len(one.block) for one in made)


def test_everything_is_known_again_after_a_restart(store: HeldStore, open_store: Open) -> None:
    index, made = put(store)
    bundle_id = index.header.bundle_id
    store.add_grants(bundle_id, [b"grant"])
    again = open_store()
    assert again.side(bundle_id).lease_until_ms == LEASE
    assert again.side(bundle_id).grants == (b"grant",)
    assert again.find_tag(TAG) == bundle_id
    assert again.used_bytes(OURS) == store.used_bytes(OURS)
    assert list(again.iter_live(bundle_id)) == [one.block for one in made]


def test_nothing_is_held_before_the_end_of_an_upload(store: HeldStore) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    send(upload, made)
    assert not store.has(index.header.bundle_id)
    assert store.find_tag(TAG) is None
    assert store.used_bytes(OURS) > 0, "room is taken from the first byte on"
    upload.finish()
    assert store.has(index.header.bundle_id)


def test_an_upload_goes_on_after_a_pause(store: HeldStore) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    for i in (0, 3, 9):
        upload.write(i, made[i].block)
    upload.pause()
    again = store.begin_put(signed_list(index), TAG, b"", LEASE)
    assert wanted(again) == [1, 2, 4, 5, 6, 7, 8]
    send(again, made)
    again.finish()
    assert list(store.iter_live(index.header.bundle_id)) == [one.block for one in made]


def test_an_upload_goes_on_after_a_crash(store: HeldStore, open_store: Open) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    for i in range(5):
        upload.write(i, made[i].block)
    part = next((store.root / "incoming").glob("*.part"))
    with open(part, "r+b") as file:
        file.seek(index.blocks.offsets()[2] + 7)
        file.write(b"torn")
    again = open_store().begin_put(signed_list(index), TAG, b"", LEASE)
    assert wanted(again) == [2, 5, 6, 7, 8, 9]


def test_two_connections_share_an_upload(store: HeldStore) -> None:
    index, made = listed()
    first = store.begin_put(signed_list(index), TAG, b"", LEASE)
    second = store.begin_put(signed_list(index), TAG, b"", LEASE)
    first.write(0, made[0].block)
    assert 0 not in wanted(second)
    send(second, made)
    second.finish()
    first.finish()
    assert store.has(index.header.bundle_id)


@pytest.mark.parametrize("wrong", ["other", "short", "long", "empty"])
def test_a_block_that_is_not_what_the_list_says(store: HeldStore, wrong: str) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    good = made[0].block
    bad = {"other": made[1].block, "short": good[:-1], "long": good + b"x", "empty": b""}[wrong]
    with pytest.raises(IntegrityError):
        upload.write(0, bad)
    assert 0 in wanted(upload)


@pytest.mark.parametrize("i", [-1, 10, 1 << 40])
def test_an_index_beyond_the_list(store: HeldStore, i: int) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    with pytest.raises(RemoteProtocolError):
        upload.write(i, made[0].block)


def test_an_incomplete_upload_does_not_end(store: HeldStore) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    upload.write(0, made[0].block)
    with pytest.raises(RemoteProtocolError):
        upload.finish()
    assert not store.has(index.header.bundle_id)


def test_a_list_that_nobody_signed(store: HeldStore) -> None:
    raw = bytearray(signed_list(listed()[0]))
    raw[-1] ^= 1
    with pytest.raises(IntegrityError):
        store.begin_put(bytes(raw), TAG, b"", LEASE)
    with pytest.raises(FormatError):
        store.begin_put(bytes(raw[:100]), TAG, b"", LEASE)
    assert list((store.root / "incoming").iterdir()) == []


def test_a_known_id_with_another_list_is_refused(store: HeldStore) -> None:
    put(store, number=10)
    other, _ = listed(number=9)
    with pytest.raises(NotAllowed):
        store.begin_put(signed_list(other), TAG, b"", LEASE)
    stolen, _ = listed(key=OTHER_KEY)
    with pytest.raises(NotAllowed):
        store.begin_put(signed_list(stolen), TAG, b"", LEASE)


def test_an_upload_under_way_refuses_another_list(store: HeldStore, open_store: Open) -> None:
    index, _ = listed(number=10)
    store.begin_put(signed_list(index), TAG, b"", LEASE)
    other, _ = listed(number=9)
    with pytest.raises(NotAllowed):
        store.begin_put(signed_list(other), TAG, b"", LEASE)
    with pytest.raises(NotAllowed):
        open_store().begin_put(signed_list(other), TAG, b"", LEASE)


def test_only_live_blocks_are_wanted(store: HeldStore) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, without(index, 2, 5), LEASE)
    assert wanted(upload) == [0, 1, 3, 4, 6, 7, 8, 9]
    send(upload, made)
    upload.finish()
    bundle_id = index.header.bundle_id
    assert store.live_map(bundle_id).seq == 1
    assert len(list(store.iter_live(bundle_id))) == 8
    assert made[2].block_id not in store.read_blocks(bundle_id, [made[2].block_id])


def test_a_put_of_what_is_here_renews_it(store: HeldStore, open_store: Open) -> None:
    index, _ = put(store)
    bundle_id = index.header.bundle_id
    later = LEASE + 30 * DAY_MS
    upload = store.begin_put(signed_list(index), TAG, without(index, 1), later, [b"grant"])
    assert wanted(upload) == []
    upload.finish()
    for seen in (store, open_store()):
        assert seen.live_map(bundle_id).seq == 1
        assert seen.side(bundle_id).lease_until_ms == later
        assert seen.side(bundle_id).grants == (b"grant",)
    with pytest.raises(StaleMap) as caught:
        store.begin_put(signed_list(index), TAG, b"", LEASE)
    assert caught.value.seq == 1


def test_uploads_are_bounded(store: HeldStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads_module, "MAX_UPLOADS", 2)
    first = store.begin_put(signed_list(listed("a")[0]), TAG, b"", LEASE)
    store.begin_put(signed_list(listed("b")[0]), TAG, b"", LEASE)
    with pytest.raises(Busy):
        store.begin_put(signed_list(listed("c")[0]), TAG, b"", LEASE)
    first.pause()
    store.begin_put(signed_list(listed("c")[0]), TAG, b"", LEASE)


def test_forgotten_uploads_are_removed(store: HeldStore, clock: ManualClock) -> None:
    upload = store.begin_put(signed_list(listed()[0]), TAG, b"", LEASE)
    for path in (store.root / "incoming").iterdir():
        os.utime(path, (clock.wall(), clock.wall()))
    clock.advance(1000)
    assert store.purge_uploads(500) == 0, "it is under way"
    upload.pause()
    assert store.purge_uploads(2000) == 0
    assert store.purge_uploads(500) == 1
    assert list((store.root / "incoming").iterdir()) == []


def test_a_full_disk_leaves_an_upload_that_goes_on(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(NoRoom):
            upload.write(0, made[0].block)
    send(upload, made)
    upload.finish()
    assert store.has(index.header.bundle_id)


@pytest.mark.parametrize("nth", range(1, 8))
def test_no_promise_when_an_fsync_fails(
    store: HeldStore, open_store: Open, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    send(upload, made)
    real, calls = os.fsync, itertools.count(1)

    def fail(fd: int) -> None:
        if next(calls) == nth:
            raise OSError(errno.EIO, "input/output error")
        real(fd)

    bundle_id = index.header.bundle_id
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        try:
            upload.finish()
        except StoreFailed:
            with pytest.raises(StoreFailed):
                store.begin_put(signed_list(listed("two")[0]), TAG, b"", LEASE)
        else:
            assert next(calls) <= nth, "an fsync failed and nobody noticed"
            assert store.has(bundle_id)
    again = open_store()
    resumed = again.begin_put(signed_list(index), TAG, b"", LEASE)
    assert wanted(resumed) == []
    resumed.finish()
    assert list(again.iter_live(bundle_id)) == [one.block for one in made]


# Listing


def test_holdings_come_in_pages(store: HeldStore) -> None:
    names = [str(n) for n in range(7)]
    for n, name in enumerate(names):
        put(store, name, tag=Tag(bytes([n]) + bytes(19)), number=1)
    other_group = PublicKey(b"g" * 32)
    put(store, "foreign", number=1, group=other_group)
    expected = sorted(header(name).bundle_id for name in names)
    seen: list[BundleId] = []
    after, more, pages = None, True, 0
    while more:
        page, more = store.list(OURS, after, 3)
        seen += [held.bundle_id for held in page]
        after, pages = seen[-1], pages + 1
    assert seen == expected
    assert pages == 3
    assert [held.opener for held in page] == [OPENER]
    assert len(store.list(group_id_of(other_group))[0]) == 1
    assert set(store.groups()) == {OURS, group_id_of(other_group)}


def test_a_tag_leads_to_the_bundle_of_the_right_group(store: HeldStore) -> None:
    index, _ = put(store)
    assert store.find_tag(TAG, OURS) == index.header.bundle_id
    assert store.find_tag(TAG, group_id_of(PublicKey(b"g" * 32))) is None
    assert store.find_tag(Tag(bytes(20))) is None


def test_a_merged_bundle_answers_for_the_old_ones(store: HeldStore, open_store: Open) -> None:
    old = Replaced(BundleId(b"o" * 32), Tag(b"p" * 20))
    index, _ = put(store, replaces=(old,))
    for seen in (store, open_store()):
        assert seen.find_tag(old.tag) == index.header.bundle_id
        assert seen.resolve(old.bundle_id) == index.header.bundle_id
        assert set(seen.tags()) == {TAG, old.tag}
    assert store.resolve(BundleId(bytes(32))) is None


def test_one_that_was_merged_twice_is_found_in_what_is_left(store: HeldStore) -> None:
    old = Replaced(BundleId(b"o" * 32), Tag(b"p" * 20))
    first, _ = put(store, "first", replaces=(old,))
    second, _ = put(store, "second", replaces=(old,))
    store.release(second.header.bundle_id)
    assert store.resolve(old.bundle_id) == store.find_tag(old.tag) == first.header.bundle_id
    store.release(first.header.bundle_id)
    assert store.resolve(old.bundle_id) is store.find_tag(old.tag) is None


# Locks


def test_a_lock_is_granted_and_ends(store: HeldStore, clock: ManualClock) -> None:
    bundle_id = put(store)[0].header.bundle_id
    assert store.lock(bundle_id, NODE, seq=0) == 600
    assert store.locked_for(bundle_id) == 600
    with pytest.raises(Busy):
        store.release(bundle_id)
    clock.advance(599)
    with pytest.raises(Busy):
        store.release(bundle_id)
    clock.advance(2)
    store.release(bundle_id)


def test_nobody_locks_for_longer_than_the_limit(store: HeldStore) -> None:
    bundle_id = put(store)[0].header.bundle_id
    assert store.lock(bundle_id, NODE, 1e9, seq=0) == 600
    assert store.lock(bundle_id, NODE, -5, seq=0) == 0
    assert store.locked_for(bundle_id) == 600, "a lock is never made shorter"


def test_unlocking_frees_only_the_own_lock(store: HeldStore) -> None:
    bundle_id = put(store)[0].header.bundle_id
    other = NodeId(b"o" * 20)
    store.lock(bundle_id, NODE, seq=0)
    store.lock(bundle_id, other, seq=0)
    store.unlock(bundle_id, NODE)
    assert store.locked_for(bundle_id) == 600
    store.unlock(bundle_id, other)
    assert store.locked_for(bundle_id) == 0


def test_a_lock_survives_a_crash(store: HeldStore, open_store: Open, clock: ManualClock) -> None:
    bundle_id = put(store)[0].header.bundle_id
    store.lock(bundle_id, NODE, seq=0)
    clock.advance(100)
    assert open_store().locked_for(bundle_id) == 500


def test_after_a_reboot_a_lock_lasts_its_full_time(
    store: HeldStore, open_store: Open, clock: ManualClock
) -> None:
    bundle_id = put(store)[0].header.bundle_id
    store.lock(bundle_id, NODE, 5, seq=0)
    clock._mono = 3.0
    again = open_store("boot-2")
    assert again.locked_for(bundle_id) == 600
    with pytest.raises(Busy):
        again.release(bundle_id)


def test_a_lock_needs_the_right_map(store: HeldStore) -> None:
    index, _ = put(store)
    with pytest.raises(StaleMap):
        store.lock(index.header.bundle_id, NODE, seq=1)
    with pytest.raises(BundleMissing):
        store.lock(BundleId(bytes(32)), NODE, seq=0)


def test_a_locked_bundle_has_a_lease_of_sixty_days(store: HeldStore, clock: ManualClock) -> None:
    now_ms = int(clock.wall() * 1000)
    bundle_id = put(store, lease=now_ms + DAY_MS)[0].header.bundle_id
    store.lock(bundle_id, NODE, seq=0)
    assert store.side(bundle_id).lease_until_ms == now_ms + 60 * DAY_MS


def test_who_removes_gives_no_lock_and_who_locked_is_not_removed(store: HeldStore) -> None:
    bundle_id = put(store)[0].header.bundle_id
    store.begin_removal(bundle_id)
    with pytest.raises(Busy):
        store.lock(bundle_id, NODE, seq=0)
    store.end_removal(bundle_id)
    store.lock(bundle_id, NODE, seq=0)
    with pytest.raises(Busy):
        store.begin_removal(bundle_id)


def test_all_are_locked_after_a_rebuild(store: HeldStore, clock: ManualClock) -> None:
    bundle_id = put(store)[0].header.bundle_id
    store.lock_all()
    with pytest.raises(Busy):
        store.release(bundle_id)
    store.renew([bundle_id], LEASE + 1, OURS)
    assert store.locked_for(bundle_id) == 600
    clock.advance(601)
    store.release(bundle_id)


# Leases


def test_leases_are_made_longer_in_bulk(store: HeldStore, open_store: Open) -> None:
    names = [str(n) for n in range(5)]
    ids = [put(store, name, number=1)[0].header.bundle_id for name in names]
    store.add_grants(ids[1], [b"grant"])
    store.lock(ids[2], NODE, seq=0)
    later = LEASE + 30 * DAY_MS
    assert store.renew([*ids, ids[0], BundleId(bytes(32))], later, OURS) == [0] * 6 + [None]
    for seen in (store, open_store()):
        assert [seen.side(one).lease_until_ms for one in ids] == [later] * 5
        assert seen.side(ids[1]).grants == (b"grant",)
        assert seen.locked_for(ids[2]) == 600


def test_a_lease_is_never_made_shorter(store: HeldStore, open_store: Open) -> None:
    bundle_id = put(store)[0].header.bundle_id
    assert store.renew([bundle_id], LEASE - 1, OURS) == [0]
    for seen in (store, open_store()):
        assert seen.side(bundle_id).lease_until_ms == LEASE


def test_nothing_is_promised_of_what_may_go(store: HeldStore) -> None:
    released, leaving, damaged = (
        put(store, name, number=2)[0].header.bundle_id for name in ("a", "b", "c")
    )
    store.release(released)
    store.begin_removal(leaving)
    store._table.note_damage(damaged)
    assert store.renew([released, leaving, damaged], LEASE + DAY_MS, OURS) == [None] * 3
    assert store.side(leaving).lease_until_ms == LEASE


def test_a_group_renews_only_what_is_its_own(store: HeldStore) -> None:
    bundle_id = put(store)[0].header.bundle_id
    other = group_id_of(PublicKey(b"g" * 32))
    assert store.renew([bundle_id], LEASE + DAY_MS, other) == [None]
    assert store.side(bundle_id).lease_until_ms == LEASE


@pytest.mark.parametrize("nth", [1, 2])
def test_no_lease_is_made_longer_when_a_sync_fails(
    store: HeldStore, open_store: Open, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    ids = [put(store, name, number=1)[0].header.bundle_id for name in ("a", "b")]
    calls = itertools.count(1)

    def fail(fd: int) -> None:
        if next(calls) == nth:
            raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(durable, "syncfs", fail)
        with pytest.raises(StoreFailed):
            store.renew(ids, LEASE + DAY_MS, OURS)
    assert [held.lease_until_ms for held in store.list(OURS)[0]] == [LEASE, LEASE]
    again = open_store()
    assert [again.has(one) for one in ids] == [True, True], "each side file is whole"
    assert not list((again.root / "sides").rglob("*.new"))


# Live maps


def test_a_newer_live_map_punches_what_died(store: HeldStore, open_store: Open) -> None:
    index, made = put(store)
    bundle_id = index.header.bundle_id
    used = store.used_bytes(OURS)
    signed = sign_live_map(all_live(index).without({4, 5, 6}), KEY)
    freed = store.accept_live_map(bundle_id, signed)
    assert freed == sum(len(made[i].block) for i in (4, 5, 6))
    assert store.used_bytes(OURS) == used - freed
    for seen in (store, open_store()):
        left = [one.block for i, one in enumerate(made) if i not in (4, 5, 6)]
        assert list(seen.iter_live(bundle_id)) == left
    with pytest.raises(StaleMap):
        store.accept_live_map(bundle_id, signed)


def test_no_map_changes_a_locked_bundle(store: HeldStore) -> None:
    index, _ = put(store)
    bundle_id = index.header.bundle_id
    store.lock(bundle_id, NODE, seq=0)
    signed = sign_live_map(all_live(index).without({4}), KEY)
    with pytest.raises(Busy):
        store.accept_live_map(bundle_id, signed)
    with pytest.raises(Busy):
        store.begin_put(signed_list(index), TAG, encode_live_map(signed), LEASE)
    assert store.live_map(bundle_id).seq == 0


def test_a_map_that_revives_or_does_not_fit(store: HeldStore) -> None:
    index, _ = put(store)
    bundle_id = index.header.bundle_id
    first = all_live(index).without({4})
    store.accept_live_map(bundle_id, sign_live_map(first, KEY))
    revived = LiveMap(bundle_id, 9, all_live(index).bits)
    with pytest.raises(StaleMap):
        store.accept_live_map(bundle_id, sign_live_map(revived, KEY))
    wide = LiveMap(bundle_id, 9, b"\xff" * 2)
    with pytest.raises(IntegrityError):
        store.accept_live_map(bundle_id, sign_live_map(wide, KEY))
    stray = LiveMap(BundleId(bytes(32)), 9, b"\x01\x00")
    with pytest.raises(IntegrityError):
        store.accept_live_map(bundle_id, sign_live_map(stray, KEY))


# Release


def test_released_bundles_stay_seven_days(
    store: HeldStore, open_store: Open, clock: ManualClock
) -> None:
    index, made = put(store)
    bundle_id = index.header.bundle_id
    store.release(bundle_id)
    assert not store.has(bundle_id)
    assert store.list(OURS) == ([], False)
    assert store.find_tag(TAG) is None
    assert store.used_bytes(OURS) == 0
    with pytest.raises(BundleMissing):
        list(store.iter_live(bundle_id))
    clock.advance(6 * 86_400)
    again = open_store()
    assert again.purge_trash() == []
    again.take_back(bundle_id)
    assert list(again.iter_live(bundle_id)) == [one.block for one in made]
    again.release(bundle_id)
    clock.advance(7 * 86_400)
    assert again.purge_trash() == [bundle_id]
    assert again.trashed() == {}
    with pytest.raises(BundleMissing):
        again.take_back(bundle_id)
    assert not side_path(again, bundle_id).exists()


def test_a_put_takes_a_released_bundle_back(store: HeldStore) -> None:
    index, made = put(store)
    bundle_id = index.header.bundle_id
    store.release(bundle_id)
    stolen, _ = listed(key=OTHER_KEY)
    with pytest.raises(NotAllowed):
        store.begin_put(signed_list(stolen), TAG, b"", LEASE)
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    assert wanted(upload) == []
    upload.finish()
    assert list(store.iter_live(bundle_id)) == [one.block for one in made]


def test_what_was_moved_away_is_purged_before_its_time(store: HeldStore, open_store: Open) -> None:
    gone, kept, held = (put(store, name, number=2)[0].header.bundle_id for name in ("a", "b", "c"))
    store.release(gone)
    store.release(kept)
    assert store.purge_released([gone, held]) == [gone]
    for seen in (store, open_store()):
        assert set(seen.trashed()) == {kept}
        assert seen.has(held)
    with pytest.raises(BundleMissing):
        store.take_back(gone)


def test_a_crash_within_release_keeps_the_bundle(store: HeldStore, open_store: Open) -> None:
    index, made = put(store)
    bundle_id = index.header.bundle_id
    store._files.to_trash(bundle_id)
    again = open_store()
    assert list(again.iter_live(bundle_id)) == [one.block for one in made]
    assert again.trashed() == {}


def test_ended_leases_are_listed_the_oldest_first(store: HeldStore, clock: ManualClock) -> None:
    now_ms = int(clock.wall() * 1000)
    for n, name in enumerate(["a", "b", "c"]):
        put(store, name, lease=now_ms - (n * 40 - 20) * DAY_MS, number=1)
    found = store.ended(now_ms, 10 * DAY_MS)
    assert [held.bundle_id for held in found] == [header("c").bundle_id, header("b").bundle_id]


# Damage


def test_bit_rot_is_noticed_and_repaired_by_the_next_put(store: HeldStore) -> None:
    index, made = put(store)
    bundle_id = index.header.bundle_id
    path = store._files.path(bundle_id)
    raw = bytearray(path.read_bytes())
    raw[index.blocks.offsets()[6]] ^= 1
    path.write_bytes(raw)
    with pytest.raises(BundleDamaged):
        list(store.iter_live(bundle_id))
    with pytest.raises(BundleDamaged):
        store.lock(bundle_id, NODE, seq=0)
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    assert wanted(upload) == [6]
    send(upload, made)
    upload.finish()
    assert list(store.iter_live(bundle_id)) == [one.block for one in made]
    assert store.lock(bundle_id, NODE, seq=0) == 600


@pytest.mark.parametrize(
    "raw", [None, b"", b"junk" * 100, MAGIC + bytes(16), MAGIC + bytes(16) + b"\x91" * 5000]
)
def test_a_bundle_without_a_good_side_file_is_kept(
    store: HeldStore, open_store: Open, raw: bytes | None
) -> None:
    index, made = put(store)
    bundle_id = index.header.bundle_id
    path = side_path(store, bundle_id)
    path.unlink() if raw is None else path.write_bytes(raw)
    again = open_store()
    assert again.has(bundle_id)
    assert again.locked_for(bundle_id) == 600
    assert again.find_tag(TAG) is None
    assert list(again.iter_live(bundle_id)) == [one.block for one in made]
    upload = again.begin_put(signed_list(index), TAG, b"", LEASE)
    assert wanted(upload) == []
    upload.finish()
    assert again.find_tag(TAG) == bundle_id
    assert again.side(bundle_id).tag == TAG


def test_the_side_file_of_another_bundle_is_not_believed(
    store: HeldStore, open_store: Open
) -> None:
    one = put(store, "one")[0].header.bundle_id
    two = put(store, "two", tag=Tag(b"2" * 20))[0].header.bundle_id
    side_path(store, one).write_bytes(side_path(store, two).read_bytes())
    again = open_store()
    assert again.find_tag(Tag(b"2" * 20)) == two
    assert again.find_tag(TAG) is None
    assert again.has(one)


def test_strange_files_do_not_stop_the_start(store: HeldStore, open_store: Open) -> None:
    put(store)
    (store.root / "sides" / "zz").mkdir()
    (store.root / "sides" / "zz" / "zz.side").write_bytes(b"?")
    (store.root / "sides" / "zz" / "abcd.side").write_bytes(b"?")
    (store.root / "bundles" / "trash" / "x").write_bytes(b"?")
    assert len(open_store().list(OURS)[0]) == 1


def test_a_promised_bundle_that_is_gone_is_named(store: HeldStore, open_store: Open) -> None:
    index, _ = put(store)
    store._files.path(index.header.bundle_id).unlink()
    again = open_store()
    assert again.lost == [index.header.bundle_id]
    assert not again.has(index.header.bundle_id)


def test_a_crash_between_bundle_and_side_file_is_an_upload_again(
    store: HeldStore, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, made = listed()
    upload = store.begin_put(signed_list(index), TAG, b"", LEASE)
    send(upload, made)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store._table.sides, "write", crash)
        with pytest.raises(KeyboardInterrupt):
            upload.finish()
    again = open_store()
    assert not again.has(index.header.bundle_id)
    resumed = again.begin_put(signed_list(index), TAG, b"", LEASE)
    assert wanted(resumed) == []
    resumed.finish()
    assert again.has(index.header.bundle_id)


def test_no_promise_is_answered_before_its_side_file_is_synced(
    store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle_id = put(store)[0].header.bundle_id
    synced: list[str] = []
    real = os.fsync

    def noting(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", noting)
    store.lock(bundle_id, NODE, seq=0)
    assert any(name.endswith(".side.new") for name in synced)
    assert synced[-1] == str(side_path(store, bundle_id).parent)
    assert read_side(side_path(store, bundle_id), bundle_id).locks[0].locker == NODE
