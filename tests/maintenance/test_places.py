"""The carriers of one HOME: kept, tried, given up, and asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from p2pstore.carriers import FolderConfig, PictureFolderConfig, load_config
from p2pstore.errors import UsageError
from p2pstore.maintenance import Places, carrier_id
from p2pstore.store import BundleState, blocks

from .nodes import Device, Group


def places(device: Device, home: Path) -> Places:
    home.mkdir(exist_ok=True)
    return Places(
        home, device.shelf, catalog=device.catalog, clock=device.clock, pool=device.world.pool
    )


@pytest.fixture
async def device(group: Group) -> Device:
    (one,) = await group.devices(1)
    return one


async def test_a_carrier_outlives_a_restart(device: Device, tmp_path: Path) -> None:
    first = places(device, tmp_path / "home")
    await first.add("usb", FolderConfig(path=str(tmp_path / "disk")))
    path = tmp_path / "home" / "carriers" / "usb.toml"
    assert path.stat().st_mode & 0o777 == 0o600
    again = places(device, tmp_path / "home")
    assert again.ids() == [carrier_id("usb")]
    assert again.name_of(carrier_id("usb")) == "usb"
    await again.test("usb")
    assert [name for name, _ in again.some(None)] == ["usb"]
    assert [name for name, _ in again.some("usb")] == ["usb"]


async def test_a_kind_has_the_name_that_is_typed(device: Device, tmp_path: Path) -> None:
    made = places(device, tmp_path / "home")
    await made.add("usb", FolderConfig(path=str(tmp_path / "disk")))
    await made.add("album", PictureFolderConfig(path=str(tmp_path / "album")))
    assert {place.name: place.kind for place in made.all()} == {"usb": "folder", "album": "png"}


async def test_what_does_not_work_is_not_kept(device: Device, tmp_path: Path) -> None:
    made = places(device, tmp_path / "home")
    (tmp_path / "file").write_bytes(b"no directory")
    with pytest.raises(UsageError):
        await made.add("usb", FolderConfig(path=str(tmp_path / "file")))
    assert made.all() == []
    assert not list((tmp_path / "home").rglob("*.toml"))


@pytest.mark.parametrize("name", ["", "none", "../x", "Big", "a b", "a" * 33, "-a", "ü"])
async def test_names_are_harmless(device: Device, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError):
        await places(device, tmp_path / "home").add(name, FolderConfig(path=str(tmp_path / "d")))
    assert not (tmp_path / "d").exists()


async def test_two_of_one_name_are_not_kept(device: Device, tmp_path: Path) -> None:
    made = places(device, tmp_path / "home")
    await made.add("usb", FolderConfig(path=str(tmp_path / "one")))
    with pytest.raises(UsageError, match="already"):
        await made.add("usb", FolderConfig(path=str(tmp_path / "two")))
    assert load_config(tmp_path / "home" / "carriers" / "usb.toml").path == str(tmp_path / "one")  # type: ignore[union-attr]


async def test_a_set_up_that_cannot_be_read_is_told_and_hides_no_other(
    device: Device, tmp_path: Path
) -> None:
    made = places(device, tmp_path / "home")
    await made.add("usb", FolderConfig(path=str(tmp_path / "disk")))
    (tmp_path / "home" / "carriers" / "bad.toml").write_text("kind = 'moon'")
    again = places(device, tmp_path / "home")
    assert again.ids() == [carrier_id("usb")]
    assert "bad" in again.trouble
    with pytest.raises(UsageError, match="cannot be used"):
        again.get("bad")
    await again.remove("bad")
    assert not again.trouble
    assert not (tmp_path / "home" / "carriers" / "bad.toml").exists()


async def test_blocks_come_from_whichever_carrier_has_them(device: Device, tmp_path: Path) -> None:
    made = places(device, tmp_path / "home")
    for name in ("one", "two"):
        await made.add(name, FolderConfig(path=str(tmp_path / name)))
    row = device.bundle("ours")
    entries = device.bundles.index(row.bundle_id).blocks.entries
    ids = [entry.block_id for entry in entries]
    await made.carried[carrier_id("two")].push(row.bundle_id, 1000)  # noted nowhere
    assert (await made.blocks({row.bundle_id: ids[:2]})).keys() == set(ids[:2])
    assert await made.blocks({device.bundle("another").bundle_id: ids}) == {}


async def test_what_would_be_too_little_without_it_is_named_before_it_goes(
    device: Device, group: Group, tmp_path: Path
) -> None:
    made = places(device, tmp_path / "home")
    await made.add("usb", FolderConfig(path=str(tmp_path / "disk")))
    filed: Any = device.protect("one")
    holder: Any = type("Holder", (), {"node_id": carrier_id("usb")})
    device.note_copy(filed.data, holder)
    assert made.only_away("usb") == [], "it lies here"
    device.catalog.write(
        lambda db: blocks.move(
            db, filed.data.id, BundleState.EVICTED, only_from=[BundleState.SEALED]
        )
    ).result()
    assert [row.id for row in made.only_away("usb")] == [filed.data.id]
    await made.remove("usb")
    assert device.copies(filed.data) == {}
    with pytest.raises(UsageError, match="no carrier"):
        made.get("usb")
