from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_encrypt as aead
from zstandard import ZstdCompressor

from p2pstore.content import (
    BLOCK_AAD,
    MAX_BLOCK,
    MAX_PAYLOAD,
    EpochKeys,
    SealedBlock,
    Sealer,
    Unsealer,
    block_id_of,
    dedup_key,
    padded_size,
)
from p2pstore.errors import IntegrityError, LocalProtocolError

SECRET = b"s" * 32


def seal_packed(packed: bytes) -> tuple[bytes, bytes]:
    """A block whose seal is right, whatever it holds: what a hostile group member could make."""
    key = blake3(packed, key=SECRET).digest()
    return aead(packed, BLOCK_AAD, bytes(24), key), key


def pack(flag: int, body: bytes, *, length: int | None = None, padding: bytes = b"\0") -> bytes:
    packed = struct.pack(">BI", flag, len(body) if length is None else length) + body
    return packed + padding * (padded_size(len(packed)) - len(packed))


@settings(max_examples=60)
@given(
    st.one_of(st.binary(max_size=3000), st.binary(min_size=1, max_size=50).map(lambda b: b * 99))
)
def test_what_is_sealed_opens_again(payload: bytes) -> None:
    sealed = Sealer(SECRET).seal(memoryview(payload))
    assert block_id_of(sealed.block) == sealed.block_id
    assert Unsealer().unseal(sealed.block, sealed.key) == payload


@pytest.mark.parametrize("size", [0, 1, 26, 27, 28, 1018, 1019, 1020, MAX_PAYLOAD - 1, MAX_PAYLOAD])
def test_sizes_around_the_limits(stream: Callable[[str, int], bytes], size: int) -> None:
    for payload in (stream("limits", size), bytes(size)):
        sealed = Sealer(SECRET).seal(payload)
        assert len(sealed.block) <= MAX_BLOCK
        assert Unsealer().unseal(sealed.block, sealed.key) == payload


def test_more_than_a_chunk_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        Sealer(SECRET).seal(bytes(MAX_PAYLOAD + 1))


@given(st.integers(1, 2**21))
def test_padding_hides_three_percent_and_no_less(size: int) -> None:
    padded = padded_size(size)
    step = max(32, 2 ** ((size.bit_length() - 1) - 5))
    assert padded % step == 0
    assert 0 <= padded - size < step


def test_equal_payloads_make_equal_blocks_and_other_secrets_other_ones() -> None:
    one, two = Sealer(SECRET).seal_many([b"same" * 9, b"same" * 9])
    assert one == two
    assert Sealer(b"t" * 32).seal(b"same" * 9).key != one.key


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_a_flipped_bit_is_always_noticed(place: int, bit: int) -> None:
    sealed = Sealer(SECRET).seal(b"some text " * 40)
    block, key = bytearray(sealed.block), bytearray(sealed.key)
    target = block if place % 5 else key
    target[place % len(target)] ^= 1 << bit
    with pytest.raises(IntegrityError):
        Unsealer().unseal(bytes(block), bytes(key))


def test_cut_short_or_junk_behind_is_noticed() -> None:
    sealed = Sealer(SECRET).seal(b"some text " * 9)
    for block in (b"", sealed.block[:47], sealed.block[:-1], sealed.block + b"\0"):
        with pytest.raises(IntegrityError):
            Unsealer().unseal(block, sealed.key)
    with pytest.raises(IntegrityError):
        Unsealer().unseal(sealed.block, sealed.key[:-1])
    with pytest.raises(IntegrityError):
        Unsealer().unseal(bytes(MAX_BLOCK + 1), sealed.key)


FRAME = ZstdCompressor().compress(b"z" * 1000)
BOMB = ZstdCompressor().compress(bytes(MAX_PAYLOAD + 1))
HUGE = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little")  # states 1 TiB, in 13 bytes
UNSTATED = ZstdCompressor(write_content_size=False).compress(b"z" * 1000)


@pytest.mark.parametrize(
    "packed",
    [
        pack(2, b"unknown flag"),
        pack(0, b"length beyond the end", length=2**32 - 1),
        pack(0, b"a length that does not fit the padding", length=1),
        pack(0, b"padding", padding=b"\1"),
        pack(0, b"a step too much") + bytes(32),
        pack(0, bytes(MAX_PAYLOAD + 1)),
        pack(1, b""),
        pack(1, b"no frame at all"),
        pack(1, BOMB),
        pack(1, HUGE),
        pack(1, UNSTATED),
        pack(1, FRAME[:-1]),
        pack(1, FRAME[:-4]),
        pack(1, FRAME + b"\0"),
        pack(1, FRAME + FRAME),
        pack(1, b"\x50\x2a\x4d\x18\0\0\0\0" + FRAME),
        pack(1, FRAME[:5] + b"\xff" + FRAME[6:]),
    ],
)
def test_a_block_that_is_sealed_well_and_packed_wrongly_is_refused(packed: bytes) -> None:
    block, key = seal_packed(packed)
    with pytest.raises(IntegrityError):
        Unsealer().unseal(block, key)


def test_a_frame_that_states_less_than_it_holds_is_refused() -> None:
    frame = ZstdCompressor(level=1).compress(b"".join(bytes([i]) * 3 for i in range(250)))
    at = next(i for i in range(4, 9) if frame[i : i + 2] == (750 - 256).to_bytes(2, "little"))
    for stated in (749, 751, 300):
        lying = frame[:at] + (stated - 256).to_bytes(2, "little") + frame[at + 2 :]
        block, key = seal_packed(pack(1, lying))
        with pytest.raises(IntegrityError):
            Unsealer().unseal(block, key)


def test_unsealing_many_is_unsealing_each() -> None:
    sealed = Sealer(SECRET).seal_many([b"a", b"b" * 999])
    assert Unsealer().unseal_many((s.block, s.key) for s in sealed) == [b"a", b"b" * 999]


def test_dedup_key_depends_on_secret_and_payload() -> None:
    keys = {dedup_key(secret * 32, payload) for secret in (b"a", b"b") for payload in (b"x", b"y")}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}


def test_golden_blocks(keys: EpochKeys, vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("blocks"):
        payload, key, block = (bytes.fromhex(vector[name]) for name in ("payload", "key", "block"))
        assert Unsealer().unseal(block, key) == payload
        assert block_id_of(block).hex() == vector["block_id"]
        assert dedup_key(b"d" * 32, payload).hex() == vector["dedup_key"]
        if vector["stored"]:  # what zstd makes may differ from version to version
            expected = SealedBlock(block_id_of(block), key, block)
            assert Sealer(keys.block).seal(payload) == expected


def test_golden_padding(vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("padding"):
        assert padded_size(vector["size"]) == vector["padded"]


def test_unsealer_never_answers_for_another_block_or_key() -> None:
    """It remembers the last block, because chunks share blocks."""
    sealer, unsealer = Sealer(SECRET), Unsealer()
    one, two = sealer.seal(b"one" * 50), sealer.seal(b"two" * 50)
    assert unsealer.unseal(one.block, one.key) == b"one" * 50
    assert unsealer.unseal(one.block, one.key) == b"one" * 50
    with pytest.raises(IntegrityError):
        unsealer.unseal(one.block, two.key)
    assert unsealer.unseal(two.block, two.key) == b"two" * 50
    reused = bytearray(one.block)
    assert unsealer.unseal(reused, one.key) == b"one" * 50  # type: ignore[arg-type]
    reused[-1] ^= 1
    with pytest.raises(IntegrityError):
        unsealer.unseal(reused, one.key)  # type: ignore[arg-type]
