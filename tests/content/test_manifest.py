from __future__ import annotations

import unicodedata
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from p2pstore.content import (
    MAX_CHAIN,
    MAX_DEVICES,
    MAX_READ,
    MAX_SIZE,
    EpochKeys,
    Keyring,
    Manifest,
    complete,
    epoch_of,
    fit,
    fits_inline,
    looks_like_manifest,
    manifest_hash,
    open_manifest,
    printable,
    seal_manifest,
    walk,
)
from p2pstore.content.codec import encode
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import Epoch, NodeId

Make = Callable[..., Manifest]
Vectors = Callable[[str], list[dict[str, Any]]]

NONCE = b"0123456789abcdef01234567"
CHAIN = b"c" * 500


@pytest.fixture
def raw(manifest: Make, keys: EpochKeys, device: SigningKey) -> bytes:
    return seal_manifest(manifest(), keys, device, CHAIN, NONCE)


def test_what_is_sealed_opens_again(
    raw: bytes, manifest: Make, keys: EpochKeys, ring: Keyring, device: SigningKey
) -> None:
    opened = open_manifest(raw, ring)
    assert opened == (manifest(), bytes(device.verify_key), CHAIN, keys.epoch)
    assert looks_like_manifest(raw[:29])
    assert epoch_of(raw) == keys.epoch
    assert len(manifest_hash(raw)) == 32


def test_a_person_can_read_what_it_is(manifest: Make, keys: EpochKeys, device: SigningKey) -> None:
    name = "Übersicht\u202egpj.exe\n2024.txt".encode()
    made = manifest(name=name)
    text = seal_manifest(made, keys, device, b"", NONCE).split(b"\0")[0].decode()
    assert "name: Übersicht\\u202egpj.exe\\n2024.txt\n" in text
    assert "size: 300,000 bytes" in text
    assert "p2pstore hydrate" in text
    assert "30 days" in text


@given(st.binary(min_size=1, max_size=255))
def test_the_name_is_shown_on_one_harmless_line(name: bytes) -> None:
    shown = printable(name)
    assert len(shown) <= 120
    assert shown.isprintable()
    bidi = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not bidi & {unicodedata.bidirectional(char) for char in shown}


def test_every_flipped_bit_is_noticed(raw: bytes, ring: Keyring) -> None:
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        with pytest.raises((FormatError, IntegrityError)):
            open_manifest(bytes(damaged), ring)


def test_every_cut_is_noticed(raw: bytes, ring: Keyring) -> None:
    for size in range(len(raw)):
        with pytest.raises(FormatError):
            open_manifest(raw[:size], ring)


def test_junk_behind_is_noticed(raw: bytes, ring: Keyring) -> None:
    for junk in (b"\n", bytes(100), raw, bytes(MAX_READ)):
        with pytest.raises(FormatError):
            open_manifest(raw + junk, ring)


@given(st.binary(max_size=400))
def test_a_file_of_somebody_else_is_none_of_ours(ring: Keyring, raw: bytes) -> None:
    for first in (b"", b"p2pstore placeholder, format 1\n", b"p2pstore placeholder, format 1\n\0"):
        with pytest.raises((FormatError, IntegrityError)):
            open_manifest(first + raw, ring)


def test_a_later_format_is_a_placeholder_that_cannot_be_opened(ring: Keyring) -> None:
    later = b"p2pstore placeholder, format 2\n\0" + bytes(200)
    assert looks_like_manifest(later)
    with pytest.raises(FormatError, match="update"):
        open_manifest(later, ring)


def test_another_epochs_keys_do_not_open(
    manifest: Make, keys: EpochKeys, ring: Keyring, device: SigningKey
) -> None:
    other = EpochKeys.derive(Epoch(b"other..1"), b"o" * 32)
    raw = seal_manifest(manifest(), other, device, CHAIN, NONCE)
    with pytest.raises(IntegrityError):
        open_manifest(raw, ring)
    wrong = EpochKeys.derive(keys.epoch, b"o" * 32)
    with pytest.raises(IntegrityError):
        open_manifest(seal_manifest(manifest(), wrong, device, CHAIN, NONCE), ring)


def test_a_signature_made_for_another_use_is_refused(
    manifest: Make,
    keys: EpochKeys,
    ring: Keyring,
    device: SigningKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:  # the seal is right: a group member made it
        patch.setattr("p2pstore.content.manifest.MANIFEST_CONTEXT", b"p2pstore 2026 head")
        raw = seal_manifest(manifest(), keys, device, CHAIN, NONCE)
    with pytest.raises(IntegrityError, match="signature"):
        open_manifest(raw, ring)


def test_a_share_opens_with_its_secret_alone(manifest: Make, device: SigningKey) -> None:
    share = EpochKeys.of_share(b"x" * 32)
    made = msgspec.structs.replace(manifest(), kind="share")
    raw = seal_manifest(made, share, device, CHAIN, NONCE)
    ring = Keyring(EpochKeys.of_share(b"x" * 32), {}, b"")
    assert open_manifest(raw, ring).manifest.kind == "share"


@pytest.mark.parametrize("name", [b"..", b"a/b", b"", b"a\0"])
def test_names_that_leave_are_neither_sealed_nor_opened(
    manifest: Make,
    keys: EpochKeys,
    ring: Keyring,
    device: SigningKey,
    name: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = manifest(name=name)
    with pytest.raises(FormatError):
        seal_manifest(made, keys, device, CHAIN, NONCE)
    with monkeypatch.context() as patch:  # a group member's program that does not look
        patch.setattr("p2pstore.content.manifest.check_manifest", lambda _: None)
        raw = seal_manifest(made, keys, device, CHAIN, NONCE)
    with pytest.raises(FormatError):
        open_manifest(raw, ring)


def test_chunks_that_do_not_add_up_are_refused(
    manifest: Make, keys: EpochKeys, device: SigningKey, blocks: Any
) -> None:
    for bad in (
        manifest(size=299_999),
        manifest(size=300_001),
        manifest(size=300_100, holes=((0, 99),)),
        manifest(size=299_999, extra=blocks.store(b"extra")),
        manifest(chunks=17),
        msgspec.structs.replace(manifest(), parent=b"short"),
    ):
        with pytest.raises(FormatError):
            seal_manifest(bad, keys, device, CHAIN, NONCE)
    seal_manifest(manifest(size=300_100, holes=((0, 100),)), keys, device, CHAIN, NONCE)
    seal_manifest(manifest(chunks=0), keys, device, CHAIN, NONCE)


def test_sixteen_chunks_of_one_bundle_stay_inline(manifest: Make) -> None:
    assert fits_inline(manifest(chunks=16), CHAIN)
    assert not fits_inline(manifest(chunks=17), CHAIN)


def test_fits_inline_is_exact(manifest: Make, keys: EpochKeys, device: SigningKey) -> None:
    for chunks in (0, 1, 16):
        for size in range(0, 1025, 64):
            made, chain = manifest(chunks=chunks, xattrs=((b"user.x", b"v" * size),)), b"c" * size
            try:
                sealed = len(seal_manifest(made, keys, device, chain, NONCE)) <= MAX_SIZE
            except LocalProtocolError:
                sealed = False
            # Sealing may still shorten the name that is shown; the claim is never too bold.
            assert sealed or not fits_inline(made, chain)


@settings(max_examples=40)
@given(
    name=st.binary(min_size=1, max_size=255).filter(
        lambda n: n not in (b".", b"..") and b"/" not in n and b"\0" not in n
    ),
    chunks=st.integers(0, 16),
    values=st.lists(st.binary(max_size=900), max_size=6),
    devices=st.integers(0, MAX_DEVICES),
    chain=st.integers(0, MAX_CHAIN),
)
def test_a_placeholder_never_exceeds_four_kib(
    manifest: Make,
    blocks: Any,
    keys: EpochKeys,
    ring: Keyring,
    device: SigningKey,
    name: bytes,
    chunks: int,
    values: list[bytes],
    devices: int,
    chain: int,
) -> None:
    xattrs = tuple((b"user.%d" % i, value) for i, value in enumerate(values))
    version = {NodeId(bytes([i]) * 20): 2**40 for i in range(devices)}
    made = manifest(name=name, chunks=chunks, xattrs=xattrs)
    made = msgspec.structs.replace(made, version=version)
    fitted = fit(made, b"c" * chain, blocks.store)
    raw = seal_manifest(fitted, keys, device, b"c" * chain, NONCE)
    assert len(raw) <= MAX_SIZE
    opened = open_manifest(raw, ring).manifest
    entries = tuple(each for _, _, each in walk(opened.chunks, blocks.load))
    assert entries == made.chunks.entries
    if opened.meta.extra is not None:
        opened = complete(opened, blocks.load(*opened.meta.extra))
    assert opened.meta == made.meta


def test_the_worst_of_everything_fits(
    manifest: Make, blocks: Any, keys: EpochKeys, ring: Keyring, device: SigningKey
) -> None:
    made = manifest(
        name="ü".encode() * 127,
        chunks=16,
        uid=2**32 - 1,
        gid=2**32 - 1,
        mode=2**32 - 1,
        user="u" * 256,
        group="ü" * 128,
        mtime_ns=-(2**63) + 1,
        xattrs=((b"user.x", b"v" * 900),),
    )
    made = msgspec.structs.replace(
        made,
        version={NodeId(bytes([i]) * 20): 2**63 - 1 for i in range(MAX_DEVICES)},
        parent=b"p" * 32,
    )
    chain = b"c" * MAX_CHAIN
    fitted = fit(made, chain, blocks.store)
    raw = seal_manifest(fitted, keys, device, chain, NONCE)
    assert len(raw) <= MAX_SIZE
    assert b"  name: \xc3\xbc" in raw
    assert open_manifest(raw, ring).manifest == fitted


def test_what_does_not_fit_is_a_bug_of_ours(
    manifest: Make, keys: EpochKeys, device: SigningKey
) -> None:
    with pytest.raises(LocalProtocolError):
        seal_manifest(manifest(xattrs=((b"user.x", bytes(4000)),)), keys, device, CHAIN, NONCE)
    with pytest.raises(LocalProtocolError):
        seal_manifest(manifest(), keys, device, bytes(MAX_CHAIN + 1), NONCE)
    with pytest.raises(ValueError):
        seal_manifest(manifest(), keys, device, CHAIN, bytes(12))


def test_equal_versions_have_equal_bytes(
    manifest: Make, keys: EpochKeys, device: SigningKey
) -> None:
    a, b = NodeId(b"a" * 20), NodeId(b"b" * 20)
    raws = {
        seal_manifest(
            msgspec.structs.replace(manifest(), version=version), keys, device, CHAIN, NONCE
        )
        for version in ({a: 1, b: 2}, {b: 2, a: 1})
    }
    assert len(raws) == 1


def test_golden_placeholders(ring: Keyring, blocks: Any, vectors: Vectors) -> None:
    for vector in vectors("placeholders"):
        raw = bytes.fromhex(vector["raw"])
        opened = open_manifest(raw, ring)
        assert encode(opened.manifest).hex() == vector["payload"]
        assert manifest_hash(raw).hex() == vector["hash"]
        assert opened.chain.hex() == vector["chain"]
        assert opened.manifest.meta.name.hex() == vector["name"]
        assert opened.manifest.chunks.size() == vector["data"]


def test_golden_payloads_are_what_we_write(manifest: Make, vectors: Vectors) -> None:
    assert encode(manifest()).hex() == vectors("placeholders")[0]["payload"]
