from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from p2pstore.content import (
    BundleRef,
    Entry,
    FileMeta,
    Head,
    IndexLine,
    decode_head,
    decode_lines,
    encode_head,
    encode_lines,
    head_order,
    note_of,
    note_xattrs,
    sign_head,
    verify_head,
)
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import BlockId, BundleId, FileId, FolderId, NodeId, PublicKey, Tag, node_id_of

REF = BundleRef(BundleId(b"b" * 32), Tag(b"t" * 20))
ENTRY = Entry(BlockId(b"m" * 32), 0, b"k" * 32, 0, 1200)


def line(at: bytes, **fields: Any) -> IndexLine:
    made = IndexLine(at, "file", FileId(b"f" * 16), {NodeId(b"n" * 20): 1}, 7, -5, b"", REF, ENTRY)
    return msgspec.structs.replace(made, **fields)


LINES = [
    line(b"a"),
    line(b"a/\xff\n", version={NodeId(b"n" * 20): 1, NodeId(b"m" * 20): 2}),
    line(b"gone", kind="deleted", ref=None, entry=None),
    line(b"link", kind="link", target=b"../anywhere", ref=None, entry=None),
]


def pieces(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[at : at + size] for at in range(0, len(raw), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 10_000])
@pytest.mark.parametrize("count", [0, 1, len(LINES)])
def test_lines_round_trip_in_pieces_of_any_size(size: int, count: int) -> None:
    raw = b"".join(encode_lines(LINES[:count]))
    assert list(decode_lines(pieces(raw, size))) == LINES[:count]


@settings(max_examples=30)
@given(
    st.sets(
        st.binary(min_size=1, max_size=20).filter(
            lambda p: b"/" not in p and b"\0" not in p and p not in (b".", b"..")
        ),
        max_size=200,
    )
)
def test_any_names_round_trip(names: set[bytes]) -> None:
    lines = [line(b"dir/" + name) for name in sorted(names)]
    assert list(decode_lines(encode_lines(lines))) == lines


def test_a_long_index_comes_in_pieces() -> None:
    lines = [line(b"%06d" % i) for i in range(2000)]
    made = list(encode_lines(lines))
    assert len(made) > 3
    assert max(map(len, made)) < 100_000
    assert list(decode_lines(made)) == lines


def test_every_cut_and_junk_behind_is_noticed() -> None:
    raw = b"".join(encode_lines(LINES))
    for size in range(len(raw)):
        with pytest.raises(FormatError):
            list(decode_lines([raw[:size]]))
    for junk in (b"\0", b"\0" * 12, raw):
        with pytest.raises(FormatError):
            list(decode_lines([raw, b"", junk]))


def test_a_missing_line_is_noticed() -> None:
    one, two = (b"".join(encode_lines(LINES[:count])) for count in (1, 2))
    with pytest.raises(FormatError):
        list(decode_lines([one[:-12], two[-12:]]))


def test_unsorted_lines_are_neither_written_nor_read() -> None:
    for paths in ([b"b", b"a"], [b"a", b"a"]):
        lines = [line(path) for path in paths]
        with pytest.raises(LocalProtocolError):
            list(encode_lines(lines))
        raws = [msgspec.msgpack.encode(each) for each in lines]
        raw = b"p2pstore index 1\n" + b"".join(len(r).to_bytes(4, "big") + r for r in raws)
        with pytest.raises(FormatError, match="ascend"):
            list(decode_lines([raw + bytes(4) + (2).to_bytes(8, "big")]))


@pytest.mark.parametrize(
    "fields",
    [
        {"path": b"../escape"},
        {"path": b"/etc/passwd"},
        {"path": b"a/./b"},
        {"path": b""},
        {"path": b"x" * 256},
        {"kind": "device"},
        {"file_id": b"short"},
        {"version": {NodeId(b"n" * 19): 1}},
        {"version": {NodeId(b"n" * 20): 0}},
        {"version": {NodeId(bytes([i]) * 20): 1 for i in range(33)}},
        {"size": -1},
        {"size": 2**63},
        {"target": b"a file has none"},
        {"ref": None},
        {"entry": None},
        {"ref": None, "entry": None},
        {"entry": msgspec.structs.replace(ENTRY, table=1)},
        {"kind": "link", "ref": None, "entry": None},
        {"kind": "link", "ref": None, "entry": None, "target": b"a\0b"},
        {"kind": "link", "ref": None, "entry": None, "target": b"a" * 4097},
    ],
)
def test_a_line_beyond_its_limits_is_refused(fields: dict[str, Any]) -> None:
    raw = msgspec.msgpack.encode(line(b"a", **fields))
    whole = b"p2pstore index 1\n" + len(raw).to_bytes(4, "big") + raw
    with pytest.raises(FormatError, match=r"index line|path|file name|version"):
        list(decode_lines([whole + bytes(4) + (1).to_bytes(8, "big")]))


def test_a_line_that_claims_to_be_huge_is_refused_before_it_is_read() -> None:
    def endless() -> Iterator[bytes]:
        yield b"p2pstore index 1\n\xff\xff\xff\xff"
        raise AssertionError("read on")

    with pytest.raises(FormatError, match="too long"):
        list(decode_lines(endless()))


def test_deep_nesting_is_a_format_error() -> None:
    raw = b"\x9a" + b"\x91" * 16_000
    whole = b"p2pstore index 1\n" + len(raw).to_bytes(4, "big") + raw
    with pytest.raises(FormatError):
        list(decode_lines([whole]))


def head_of(key: SigningKey, **fields: Any) -> Head:
    node = node_id_of(PublicKey(bytes(key.verify_key)))
    made = Head(FolderId(b"f" * 16), node, 1, 7, b"a sealed manifest")
    return msgspec.structs.replace(made, **fields)


def test_heads_round_trip_and_are_ordered(device: SigningKey) -> None:
    signed = decode_head(encode_head(sign_head(head_of(device), device, b"chain")))
    assert verify_head(signed) == head_of(device)
    assert signed.chain == b"chain"
    orders = [
        head_order(head_of(device, incarnation=i, seq=s)) for i, s in ((1, 9), (2, 0), (2, 1))
    ]
    assert orders == sorted(orders)


def test_a_head_is_signed_by_its_own_device(device: SigningKey) -> None:
    foreign = head_of(device, device=NodeId(b"x" * 20))
    with pytest.raises(LocalProtocolError):
        sign_head(foreign, device, b"")
    own = sign_head(head_of(device), device, b"")
    payload = msgspec.msgpack.encode(foreign)
    signature = device.sign(b"p2pstore 2026 head\0" + payload).signature
    with pytest.raises(IntegrityError):
        verify_head(msgspec.structs.replace(own, payload=payload, signature=signature))


def test_a_changed_head_is_noticed(device: SigningKey) -> None:
    raw = encode_head(sign_head(head_of(device), device, b""))
    for place in range(len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        with pytest.raises((FormatError, IntegrityError)):
            verify_head(decode_head(bytes(damaged)))
    for bad in (b"", raw[:-1], raw + b"\0", bytes(100_000)):
        with pytest.raises(FormatError):
            decode_head(bad)


def test_golden_indexes(vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("indexes"):
        raw = bytes.fromhex(vector["raw"])
        lines = list(decode_lines([raw]))
        assert [each.path.hex() for each in lines] == vector["paths"]
        assert [each.kind for each in lines] == vector["kinds"]
        assert b"".join(encode_lines(lines)) == raw
    assert list(decode_lines([bytes.fromhex(vectors("indexes")[0]["raw"])])) == LINES


def test_golden_heads(device: SigningKey, vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("heads"):
        raw = bytes.fromhex(vector["signed"])
        head = verify_head(decode_head(raw))
        assert list(head_order(head)) == vector["order"]
        assert encode_head(sign_head(head, device, b"chain")) == raw


# -- how the folder was kept ----------------------------------------------------------------------


def meta_with(xattrs: tuple[tuple[bytes, bytes], ...]) -> FileMeta:
    return FileMeta(b"Vault", 0, 0o600, 0, 0, "", "", 0, xattrs)


def test_the_index_tells_where_its_folder_was_and_its_settings() -> None:
    note = note_of(meta_with(note_xattrs(b"/home/ann/Vault", b"settings")))
    assert (note.path, note.settings) == (b"/home/ann/Vault", b"settings")


@pytest.mark.parametrize(
    ("path", "settings", "kept"),
    [(b"/v", bytes(900), (b"/v", b"")), (b"/" + b"v" * 900, b"s", (b"", b""))],
)
def test_what_would_not_stay_inline_is_left_out(
    path: bytes, settings: bytes, kept: tuple[bytes, bytes]
) -> None:
    note = note_of(meta_with(note_xattrs(path, settings)))
    assert (note.path, note.settings) == kept


def test_a_damaged_note_is_no_note() -> None:
    with pytest.raises(FormatError):
        note_of(meta_with(((b"user.p2pstore.folder", b"\xff"),)))
