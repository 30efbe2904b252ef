from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pstore.content import (
    MAX_PARTS,
    MAX_PIECE,
    UNNAMED,
    UPLOAD_OVERHEAD,
    UPLOAD_PREFIX,
    MetaReader,
    MetaWriter,
    Piece,
    Plain,
    Sealed,
    UploadKey,
    UploadMeta,
    checksum,
    encode_upload_key,
    parse_upload_key,
    rehearse,
    safe_base_name,
)
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError, UsageError

SECRET = bytes(range(32))
CONTENT = b"what a piece holds"


def make_meta(count: int, size: int = 10, name: str = "photo.jpg") -> UploadMeta:
    pieces = tuple(
        Piece(seq, f"key-{seq}", seq * size, size, checksum(b"%d" % seq)) for seq in range(count)
    )
    return UploadMeta(name, 600, 400, pieces)


def written(meta: UploadMeta, room: int) -> dict[str, tuple[int, bytes]]:
    """The parts by their key; the head has the key "head"."""
    writer, parts = MetaWriter(meta, room), {}
    while not writer.is_done:
        place, raw = writer.part()
        key = f"part-{place}" if place else "head"
        parts[key] = (place, raw)
        writer.link(key)
    return parts


def read(parts: dict[str, tuple[int, bytes]], *, is_sealed: bool = True) -> UploadMeta:
    reader = MetaReader("head", is_sealed=is_sealed)
    while reader.wanted is not None:
        place, key = reader.wanted
        assert parts[key][0] == place
        reader.feed(parts[key][1])
    return reader.meta()


def old(**changes: Any) -> dict[str, Any]:
    """A meta as the old system wrote it."""
    pieces = [
        {"seq": 0, "key": "a", "offset": 0, "size": 8, "checksum": ""},
        {"seq": 1, "key": "b", "offset": 8, "size": 3, "checksum": ""},
    ]
    return {
        "protocol_version": "1.0",
        "filename": "notes.txt",
        "piece_width": 2,
        "piece_height": 2,
        "pieces": pieces,
    } | changes


def read_json(document: object, *, is_sealed: bool = False) -> UploadMeta:
    return read({"head": (0, json.dumps(document).encode())}, is_sealed=is_sealed)


# -- the meta -------------------------------------------------------------------------------------


def test_a_meta_of_the_old_system_is_read() -> None:
    meta = read_json(old())
    assert (meta.name, meta.width, meta.height, meta.size) == ("notes.txt", 2, 2, 11)
    assert not any(piece.is_checked for piece in meta.pieces)


def test_an_empty_file_has_no_pieces() -> None:
    assert read_json(old(pieces=[])).size == 0
    (_, raw) = written(make_meta(0), 1000)["head"]
    assert json.loads(raw)["pieces"] == []


def test_what_is_written_has_the_fields_of_the_old_system() -> None:
    ((_, raw),) = written(make_meta(2), 10_000).values()
    document = json.loads(raw)
    assert list(document) == list(old())
    assert document["protocol_version"] == "1.0"
    assert list(document["pieces"][0]) == list(old()["pieces"][0])


@pytest.mark.parametrize("text", [1.0, 1])
def test_a_version_may_be_a_number(text: object) -> None:
    assert read_json(old(protocol_version=text)).size == 11


def test_pieces_may_be_counted_from_one_and_lie_in_any_order() -> None:
    pieces = old()["pieces"]
    for piece in pieces:
        piece["seq"] += 1
    meta = read_json(old(pieces=pieces[::-1]))
    assert [piece.key for piece in meta.pieces] == ["a", "b"]


def test_half_a_surrogate_in_an_old_name_is_made_safe() -> None:
    raw = json.dumps(old(filename="caf\udce9.txt")).encode()
    assert b"\\udce9" in raw
    assert read({"head": (0, raw)}, is_sealed=False).name == "caf_.txt"
    with pytest.raises(FormatError):
        read({"head": (0, raw)}, is_sealed=True)


@given(st.integers(0, 40), st.integers(250, 3000))
def test_a_chain_says_what_was_put_into_it(count: int, room: int) -> None:
    meta = make_meta(count)
    parts = written(meta, room)
    assert all(len(raw) <= room for _, raw in parts.values())
    assert read(parts) == meta


def test_the_head_is_written_last() -> None:
    places = [place for place, _ in written(make_meta(20), 500).values()]
    assert places == [*range(1, len(places)), 0]


@pytest.mark.parametrize("room", [0, 8, 80, 150])
def test_a_room_for_no_link_is_refused(room: int) -> None:
    with pytest.raises(UsageError, match="too little"):
        rehearse(make_meta(3), room, "key")


def test_a_chain_that_no_reader_takes_is_not_written() -> None:
    entry = len(json.dumps({"pieces": [], "next": "k", "more": MAX_PARTS})) + 140
    with pytest.raises(UsageError, match="larger pieces"):
        rehearse(make_meta(MAX_PARTS + 10), entry, "k")


def test_a_following_part_is_no_head_and_a_head_follows_none() -> None:
    parts = written(make_meta(20), 500)
    with pytest.raises(FormatError):
        read({"head": (0, parts["part-1"][1])})
    first = MetaReader("head", is_sealed=True)
    first.feed(parts["head"][1])
    with pytest.raises(FormatError):
        first.feed(parts["head"][1])


def test_a_part_at_a_wrong_place_is_refused() -> None:
    parts = written(make_meta(20), 500)
    reader = MetaReader("head", is_sealed=True)
    reader.feed(parts["head"][1])
    assert reader.wanted is not None
    assert reader.wanted[0] > 1
    with pytest.raises(FormatError, match="place"):
        reader.feed(parts["part-1"][1])


@pytest.mark.parametrize(
    "change",
    [
        {"next": "x"},
        {"more": 1},
        {"next": "x", "more": 0},
        {"next": "", "more": 1},
        {"next": "x", "more": MAX_PARTS + 1},
        {"next": "x", "more": -1},
        {"next": "a\nb", "more": 1},
        {"protocol_version": "2.0"},
        {"protocol_version": None},
        {"filename": 7},
        {"piece_width": -1},
        {"piece_height": 1 << 31},
        {"piece_width": "600"},
        {"pieces": None},
        {"pieces": {}},
        {"pieces": [1]},
    ],
)
def test_a_meta_that_lies_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        read_json(old(**change))


@pytest.mark.parametrize(
    ("which", "change"),
    [
        (1, {"offset": 7}),
        (1, {"offset": 9}),
        (1, {"offset": 0}),
        (1, {"offset": -8}),
        (0, {"offset": 1}),
        (1, {"seq": 0}),
        (1, {"seq": 2}),
        (0, {"seq": 5}),
        (0, {"seq": -1}),
        (0, {"size": 0}),
        (0, {"size": -8}),
        (0, {"size": 8.5}),
        (0, {"size": MAX_PIECE + 1}),
        (1, {"size": 1 << 70}),
        (0, {"key": ""}),
        (0, {"key": "k" * 2049}),
        (0, {"key": "a\0b"}),
        (0, {"key": None}),
        (0, {"checksum": 5}),
    ],
)
def test_a_piece_that_lies_is_refused(which: int, change: dict[str, Any]) -> None:
    pieces = old()["pieces"]
    pieces[which] |= change
    with pytest.raises(FormatError):
        read_json(old(pieces=pieces))


def test_pieces_without_checksum_are_no_part_of_a_sealed_upload() -> None:
    with pytest.raises(FormatError, match="checksum"):
        read_json(old(), is_sealed=True)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"protocol_version":"1.0"}',
        b'{"a":' + b"[" * 100_000,
        b'{"protocol_version":"1.0","a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"protocol_version":' + b"1" * 10_000 + b"}",
        b" " * (33 << 20),
        b"[" * (2 << 20),
    ],
    ids=range(10),
)
@pytest.mark.parametrize("is_sealed", [True, False])
def test_what_is_no_meta_is_refused(raw: bytes, is_sealed: bool) -> None:
    with pytest.raises(FormatError):
        read({"head": (0, raw)}, is_sealed=is_sealed)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_fail(raw: bytes) -> None:
    for is_sealed in (True, False):
        with pytest.raises(FormatError):
            read({"head": (0, raw)}, is_sealed=is_sealed)


def test_a_reader_that_is_done_takes_no_more() -> None:
    reader = MetaReader("head", is_sealed=False)
    with pytest.raises(LocalProtocolError):
        reader.meta()
    reader.feed(json.dumps(old()).encode())
    with pytest.raises(LocalProtocolError):
        reader.feed(b"")


# -- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("photo.jpg", "photo.jpg"),
        ("/home/anna/photo.jpg", "photo.jpg"),
        ("C:\\Users\\anna\\photo.jpg", "photo.jpg"),
        ("../../.ssh/authorized_keys", "authorized_keys"),
        ("../..", UNNAMED),
        ("..", UNNAMED),
        (".", UNNAMED),
        ("", UNNAMED),
        ("/", UNNAMED),
        ("  ", UNNAMED),
        ("a/", "a"),
        ("a\0b\n\x1b[2J", "a_b__[2J"),
        ("gnp\u202e.exe", "gnp_.exe"),
        ("caf\udce9", "caf_"),
        ("\U0001f468\u200d\U0001f469.png", "\U0001f468\u200d\U0001f469.png"),
        ("n" * 300 + ".jpg", "n" * 251 + ".jpg"),
        ("é" * 200 + ".jpg", "é" * 125 + ".jpg"),
        ("n" * 10 + "." + "x" * 300, "n" * 10 + "." + "x" * 244),
    ],
)
def test_names_become_safe(given: str, safe: str) -> None:
    assert safe_base_name(given) == safe


@given(st.text(alphabet=st.characters(codec=None), max_size=400))
def test_every_name_becomes_one_entry(name: str) -> None:
    safe = safe_base_name(name)
    assert 0 < len(safe.encode()) <= 255
    assert safe not in (".", "..")
    assert not set(safe) & {"/", "\\", "\0", "\n"}
    assert safe_base_name(safe) == safe


# -- sealing --------------------------------------------------------------------------------------


def piece_of(content: bytes, seq: int = 0) -> Piece:
    return Piece(seq, "k", 0, len(content), checksum(content))


@given(st.binary(min_size=1, max_size=300), st.integers(0, 1 << 40))
def test_pieces_round_trip(content: bytes, seq: int) -> None:
    for wrap in (Plain(), Sealed(SECRET)):
        stored = wrap.piece(seq, content)
        assert wrap.open_piece(piece_of(content, seq), stored) == content


@pytest.mark.parametrize("size", [1, 31, 32, 33, 999, 1000])
def test_sealed_pieces_are_padded_as_far_as_they_fit(size: int) -> None:
    tight = Sealed(SECRET, most=size + UPLOAD_OVERHEAD)
    assert len(tight.piece(0, bytes(size))) == size + UPLOAD_OVERHEAD
    padded = Sealed(SECRET).piece(0, bytes(size))
    assert (len(padded) - UPLOAD_OVERHEAD) % 32 == 0
    for stored in (tight.piece(0, bytes(size)), padded):
        assert tight.open_piece(piece_of(bytes(size)), stored) == bytes(size)


def test_the_same_piece_is_sealed_to_the_same_bytes_and_no_nonce_serves_two() -> None:
    wrap = Sealed(SECRET)
    assert wrap.piece(3, CONTENT) == wrap.piece(3, CONTENT)
    assert wrap.piece(3, CONTENT)[:24] != wrap.piece(3, CONTENT[::-1])[:24]
    assert wrap.piece(3, CONTENT)[:24] != wrap.piece(4, CONTENT)[:24]


def test_a_piece_opens_at_its_own_place_only() -> None:
    wrap = Sealed(SECRET)
    stored = wrap.piece(3, CONTENT)
    for other in (piece_of(CONTENT, 4), piece_of(CONTENT, 0)):
        with pytest.raises(IntegrityError):
            wrap.open_piece(other, stored)
    with pytest.raises(IntegrityError):
        wrap.open_part(3, stored)
    with pytest.raises(IntegrityError):
        Sealed(bytes(32)).open_piece(piece_of(CONTENT, 3), stored)


def test_every_changed_bit_is_noticed() -> None:
    wrap = Sealed(SECRET)
    stored = wrap.piece(0, CONTENT)
    for place in range(len(stored)):
        damaged = bytearray(stored)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(IntegrityError):
            wrap.open_piece(piece_of(CONTENT), bytes(damaged))
    for bad in (b"", stored[:-1], stored + b"\0", stored[:40], stored[:39]):
        with pytest.raises(IntegrityError):
            wrap.open_piece(piece_of(CONTENT), bad)


def test_an_earlier_piece_of_the_same_place_is_noticed() -> None:
    wrap = Sealed(SECRET)
    for earlier in (CONTENT[::-1], CONTENT + b"x", CONTENT[:-1]):
        with pytest.raises(IntegrityError):
            wrap.open_piece(piece_of(CONTENT), wrap.piece(0, earlier))


def test_plain_pieces_are_compared_where_a_checksum_is() -> None:
    wrap = Plain()
    with pytest.raises(IntegrityError, match="checksum"):
        wrap.open_piece(piece_of(CONTENT), CONTENT[::-1])
    with pytest.raises(IntegrityError, match="bytes"):
        wrap.open_piece(piece_of(CONTENT), CONTENT + b"\0")
    for said in ("", None, "d41d8cd98f00b204e9800998ecf8427e"):
        unknown = Piece(0, "k", 0, len(CONTENT), said)
        assert wrap.open_piece(unknown, CONTENT[::-1]) == CONTENT[::-1]


def test_names_and_sizes_are_inside_the_seal() -> None:
    ((place, raw),) = written(make_meta(1, name="secret-name"), 10_000).values()
    stored = Sealed(SECRET).part(place, raw)
    assert b"secret" not in stored
    assert json.loads(Sealed(SECRET).open_part(place, stored)) == json.loads(raw)


# -- keys -----------------------------------------------------------------------------------------

KEY = UploadKey("https://pics.example/i/ä.png", SECRET)


@given(st.binary(min_size=32, max_size=32), st.text("aZ0:/.-_~?=é漢😀", min_size=1, max_size=60))
def test_keys_round_trip(secret: bytes, where: str) -> None:
    key = UploadKey(where, secret)
    text = encode_upload_key(key)
    assert text.startswith(UPLOAD_PREFIX)
    assert text == text.lower()
    assert parse_upload_key(text) == parse_upload_key(f" {text.upper()}\n") == key


def test_a_plain_key_is_that_of_the_carrier() -> None:
    key = UploadKey("https://pics.example/i/a.png", None)
    assert encode_upload_key(key) == key.meta_key
    assert parse_upload_key(key.meta_key + "\n") == key


def test_a_key_broken_into_lines_is_read() -> None:
    text = encode_upload_key(KEY)
    assert parse_upload_key("\n".join((text[:40], text[40:80], text[80:]))) == KEY


def test_every_mistyped_character_is_noticed() -> None:
    text = encode_upload_key(KEY)
    for place in range(len(UPLOAD_PREFIX), len(text) - 1):
        other = "b" if text[place] == "a" else "a"
        with pytest.raises(FormatError):
            parse_upload_key(text[:place] + other + text[place + 1 :])
    middle = len(text) // 3  # in the secret
    for wrong in ("1", "!", "ä"):
        with pytest.raises(FormatError, match="mistyped"):
            parse_upload_key(text[:middle] + wrong + text[middle + 1 :])


def test_a_key_that_was_cut_is_told() -> None:
    text = encode_upload_key(KEY)
    for end in range(len(UPLOAD_PREFIX), len(text) - 1):
        with pytest.raises(FormatError, match="completely"):
            parse_upload_key(text[:end])


def test_a_key_of_a_later_version_is_told() -> None:
    for body in (b"\x02" + SECRET + b"whatever", b"\x02"):
        raw = body + binascii.crc32(body).to_bytes(4)
        text = UPLOAD_PREFIX + base64.b32encode(raw).decode().rstrip("=").lower()
        with pytest.raises(FormatError, match="later version"):
            parse_upload_key(text)


@pytest.mark.parametrize(
    "text", ["", "  ", "a\0b", "k" * 2049, "two\nlines", "p2p:abcdef", "p2ps://x/y?n=main#z"]
)
def test_what_is_no_key_is_a_mistake_of_the_caller(text: str) -> None:
    with pytest.raises(UsageError):
        parse_upload_key(text)


@given(st.text(max_size=80))
def test_no_text_does_more_than_fail(text: str) -> None:
    with pytest.raises(FormatError):
        parse_upload_key(UPLOAD_PREFIX + text)
    with pytest.raises(FormatError):
        parse_upload_key(UPLOAD_PREFIX + "a" * 20_000)


def test_golden_pieces(vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("pieces"):
        key = parse_upload_key(vector["key"])
        assert encode_upload_key(key) == vector["key"]
        wrap = key.wrap()
        parts = {name: (place, bytes.fromhex(raw)) for name, place, raw in vector["parts"]}
        reader = MetaReader(key.meta_key, is_sealed=key.secret is not None)
        while reader.wanted is not None:
            place, where = reader.wanted
            reader.feed(wrap.open_part(place, parts[where][1]))
        meta = reader.meta()
        assert meta.name == vector["name"]
        contents = [bytes.fromhex(raw) for raw in vector["contents"]]
        for piece, content, stored in zip(meta.pieces, contents, vector["stored"], strict=True):
            assert wrap.open_piece(piece, bytes.fromhex(stored)) == content
            assert wrap.piece(piece.seq, content).hex() == stored
        writer = MetaWriter(meta, vector["room"])
        for name, place, raw in vector["parts"]:
            made = writer.part()
            assert made[0] == place
            assert wrap.part(*made).hex() == raw
            writer.link(name)
        assert writer.is_done
