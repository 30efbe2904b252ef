from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from p2pstore.content import (
    LiveMap,
    accept_live_map,
    decode_live_map,
    encode_live_map,
    live_map_hash,
    sign_live_map,
    verify_live_map,
)
from p2pstore.errors import FormatError, IntegrityError
from p2pstore.ids import BundleId

BUNDLE = BundleId(b"b" * 32)


@given(st.integers(1, 300), st.sets(st.integers(0, 299)))
def test_a_map_tells_who_is_alive(blocks: int, dead: set[int]) -> None:
    dead = {index for index in dead if index < blocks}
    begin = LiveMap.all_live(BUNDLE, blocks)
    after = begin.without(dead)
    assert begin.count() == blocks
    assert begin.fits(blocks)
    assert not begin.fits(blocks - 1)
    assert after.count() == blocks - len(dead)
    assert after.indices() == [i for i in range(blocks) if i not in dead]
    assert [i for i in range(-3, blocks + 20) if after.is_live(i)] == after.indices()
    assert accept_live_map(begin, after)


def test_dead_blocks_stay_dead() -> None:
    begin = LiveMap.all_live(BUNDLE, 16)
    less = begin.without({3})
    assert not accept_live_map(less, begin)
    assert not accept_live_map(less, less)
    assert not accept_live_map(less, LiveMap(BUNDLE, 9, begin.bits))
    assert not accept_live_map(less, LiveMap(BUNDLE, 9, less.bits + b"\0"))
    assert not accept_live_map(less, LiveMap(BundleId(b"c" * 32), 9, less.bits))
    assert accept_live_map(less, LiveMap(BUNDLE, 9, b"\1\0"))


def test_signed_maps_round_trip(device: SigningKey) -> None:
    live = LiveMap.all_live(BUNDLE, 16_384).without({1, 16_383})
    signed = decode_live_map(encode_live_map(sign_live_map(live, device, b"chain")))
    assert verify_live_map(signed) == live
    assert signed.chain == b"chain"
    assert signed.signer == bytes(device.verify_key)


def test_changes_and_forgeries_are_noticed(device: SigningKey) -> None:
    raw = encode_live_map(sign_live_map(LiveMap.all_live(BUNDLE, 9), device))
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        with pytest.raises((FormatError, IntegrityError)):
            verify_live_map(decode_live_map(bytes(damaged)))
    for bad in (raw[:-1], raw + b"\0", b"", b"\x91" * 100_000, b"\x94" + b"\x91" * 3000):
        with pytest.raises(FormatError):
            decode_live_map(bad)


def test_another_kind_of_signature_is_worth_nothing(device: SigningKey) -> None:
    signed = sign_live_map(LiveMap.all_live(BUNDLE, 9), device)
    other = device.sign(b"p2pstore 2026 grant\0" + signed.payload).signature
    with pytest.raises(IntegrityError):
        verify_live_map(msgspec.structs.replace(signed, signature=other))


def test_golden_live_maps(
    device: SigningKey, vectors: Callable[[str], list[dict[str, Any]]]
) -> None:
    for vector in vectors("live_maps"):
        raw = bytes.fromhex(vector["signed"])
        live = verify_live_map(decode_live_map(raw))
        assert (live.seq, live.indices()) == (vector["seq"], vector["live"])
        assert live_map_hash(live).hex() == vector["hash"]
        assert encode_live_map(sign_live_map(live, device)) == raw
