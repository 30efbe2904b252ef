from __future__ import annotations

import pytest

from p2pstore.content import EpochKeys, Keyring, share_tag, share_token
from p2pstore.errors import IntegrityError
from p2pstore.ids import Epoch


def test_each_use_has_a_key_of_its_own(keys: EpochKeys) -> None:
    share = EpochKeys.of_share(b"s" * 32)
    derived = [keys.block, keys.manifest, keys.tag, share.block, share.manifest, share.tag]
    derived += [share_token(b"s" * 32), share_tag(b"s" * 32) + bytes(12)]
    assert len(set(derived)) == len(derived)
    assert {len(key) for key in derived} == {32}


def test_keyring_finds_old_epochs_and_refuses_unknown_ones(keys: EpochKeys) -> None:
    old = EpochKeys.derive(Epoch(b"old....."), b"o" * 32)
    ring = Keyring(keys, {old.epoch: old}, b"d" * 32)
    assert ring[old.epoch] is old
    assert ring.get(keys.epoch) is keys
    with pytest.raises(IntegrityError):
        ring.get(Epoch(b"unknown."))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secret_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError):
        EpochKeys.derive(Epoch(b"epoch..1"), bytes(size))


def test_secrets_are_not_shown(keys: EpochKeys, ring: Keyring) -> None:
    assert repr(keys.block) not in repr(keys)
    assert repr(ring.dedup) not in repr(ring)
