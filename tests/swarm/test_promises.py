from __future__ import annotations

from pathlib import Path

import pytest

from p2pstore.clock import ManualClock
from p2pstore.errors import Busy
from p2pstore.ids import BundleId, NodeId
from p2pstore.swarm import OwnPromises

BUNDLE = BundleId(b"b" * 32)
NODE, OTHER = NodeId(b"n" * 20), NodeId(b"o" * 20)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "own-locks"


def test_a_lock_ends_by_itself_and_by_its_owner(path: Path, clock: ManualClock) -> None:
    promises = OwnPromises(path, clock, boot_id="one")
    assert promises.lock(BUNDLE, NODE, 1e9) == 600
    promises.lock(BUNDLE, OTHER, 10)
    promises.unlock(BUNDLE, NODE)
    assert promises.locked_for(BUNDLE) == 10
    clock.advance(11)
    assert promises.locked_for(BUNDLE) == 0


def test_locks_outlive_the_process(path: Path, clock: ManualClock) -> None:
    OwnPromises(path, clock, boot_id="one").lock(BUNDLE, NODE, 100)
    clock.advance(40)
    assert OwnPromises(path, clock, boot_id="one").locked_for(BUNDLE) == 60


def test_after_a_reboot_a_lock_lasts_its_full_time_again(path: Path, clock: ManualClock) -> None:
    OwnPromises(path, clock, boot_id="one").lock(BUNDLE, NODE, 100)
    assert OwnPromises(path, ManualClock(), boot_id="two").locked_for(BUNDLE) == 600


def test_damage_locks_everything_for_a_while(path: Path, clock: ManualClock) -> None:
    path.write_bytes(b"damage")
    promises = OwnPromises(path, clock, boot_id="one")
    with pytest.raises(Busy):
        promises.begin_removal(BUNDLE)
    clock.advance(601)
    promises.begin_removal(BUNDLE)


def test_a_removal_and_a_lock_exclude_each_other(path: Path, clock: ManualClock) -> None:
    promises = OwnPromises(path, clock, boot_id="one")
    promises.begin_removal(BUNDLE)
    with pytest.raises(Busy):
        promises.lock(BUNDLE, NODE, 10)
    promises.end_removal(BUNDLE)
    promises.lock(BUNDLE, NODE, 10)
    with pytest.raises(Busy):
        promises.begin_removal(BUNDLE)


def test_everything_may_count_as_locked(path: Path, clock: ManualClock) -> None:
    promises = OwnPromises(path, clock, boot_id="one")
    promises.lock_all()
    assert promises.locked_for(BUNDLE) == 600
