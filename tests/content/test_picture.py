from __future__ import annotations

import io
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from p2pstore.content import (
    MAX_PICTURE,
    capacity,
    decode_picture,
    encode_picture,
    picture_size,
)
from p2pstore.content.picture import MAX_CHUNKS, MAX_PIXELS, MAX_WIDTH
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError, UsageError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
PAYLOAD = bytes(range(256)) * 4
SIDES = st.tuples(st.integers(1, 70), st.integers(1, 40)).filter(lambda s: s[0] * s[1] > 1)


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def header(width: int, height: int, *rest: int) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *(rest or (8, 2, 0, 0, 0))))


def png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


def pixels_of(payload: bytes, width: int, height: int) -> bytes:
    return (struct.pack("<I", len(payload)) + payload).ljust(width * height * 3, b"\0")


def paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    return min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]


def filtered(rows: Sequence[bytes], kinds: Iterable[int]) -> bytes:
    """Rows of pixels as PNG filters them, with these filters in turn."""
    kinds = list(kinds)
    above, out = bytes(len(rows[0])) if rows else b"", bytearray()
    for number, row in enumerate(rows):
        kind = kinds[number % len(kinds)]
        out.append(kind)
        for i, value in enumerate(row):
            a = row[i - 3] if i >= 3 else 0
            c = above[i - 3] if i >= 3 else 0
            guess = (0, a, above[i], (a + above[i]) // 2, paeth(a, above[i], c))[kind]
            out.append((value - guess) & 255)
        above = row
    return bytes(out)


def rows_of(pixels: bytes, width: int) -> list[bytes]:
    return [pixels[at : at + 3 * width] for at in range(0, len(pixels), 3 * width)]


def interlaced(pixels: bytes, width: int, height: int, kinds: Sequence[int]) -> bytes:
    out = b""
    for left, top, across, down in (*ADAM7, (0, 1, 1, 2)):
        rows = [
            b"".join(pixels[3 * (y * width + x) :][:3] for x in range(left, width, across))
            for y in range(top, height, down)
        ]
        if rows and rows[0]:
            out += filtered(rows, kinds)
    return out


def image(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture))


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def picture() -> bytes:
    return encode_picture(PAYLOAD, 32, 16)


# -- what is written ------------------------------------------------------------------------------


@given(SIDES, st.data())
def test_what_is_put_into_a_picture_comes_out(side: tuple[int, int], data: st.DataObject) -> None:
    payload = data.draw(st.binary(max_size=capacity(*side)))
    picture = encode_picture(memoryview(payload), *side)
    assert decode_picture(picture) == payload
    assert len(picture) == picture_size(*side)


@given(SIDES, st.data())
def test_others_see_the_same_pixels(side: tuple[int, int], data: st.DataObject) -> None:
    payload = data.draw(st.binary(max_size=capacity(*side)))
    with image(encode_picture(payload, *side)) as seen:
        assert (seen.format, seen.mode, seen.size) == ("PNG", "RGB", side)
        assert seen.tobytes() == pixels_of(payload, *side)


@pytest.mark.parametrize("side", [(2, 1), (1, 2), (21, 9), (22, 9), (600, 600), (1, MAX_WIDTH)])
def test_sizes_around_the_limits(
    stream: Callable[[str, int], bytes], side: tuple[int, int]
) -> None:
    most = capacity(*side)
    for size in (0, 1, most - 1, most):
        payload = stream("picture", size)
        assert decode_picture(encode_picture(payload, *side)) == payload
    with pytest.raises(LocalProtocolError):
        encode_picture(bytes(most + 1), *side)


def test_capacity_is_what_users_of_it_know() -> None:
    assert [capacity(*side) for side in ((1024, 768), (600, 600), (2, 2))] == [2359292, 1079996, 8]


@pytest.mark.parametrize(
    "side", [(0, 9), (9, 0), (-1, 9), (1, 1), (MAX_WIDTH + 1, 1), (1, MAX_WIDTH + 1), (4096, 2049)]
)
def test_a_size_that_cannot_be_is_told(side: tuple[int, int]) -> None:
    with pytest.raises(UsageError):
        capacity(*side)


def test_the_largest_picture_can_be_read() -> None:
    most = max(picture_size(MAX_PIXELS // width, width) for width in (512, 2048, MAX_WIDTH))
    assert most < MAX_PICTURE


def test_golden_pictures(vectors: Callable[[str], list[dict[str, Any]]]) -> None:
    for vector in vectors("pictures"):
        payload, picture = bytes.fromhex(vector["payload"]), bytes.fromhex(vector["picture"])
        assert encode_picture(payload, vector["width"], vector["height"]) == picture
        assert decode_picture(picture) == payload


def test_golden_pixels() -> None:
    with image(encode_picture(b"abc", 2, 2)) as seen:
        assert seen.tobytes() == bytes.fromhex("03 00 00 00 61 62 63 00 00 00 00 00")


# -- the same pixels, compressed by others --------------------------------------------------------


@settings(max_examples=50)
@given(
    st.tuples(st.integers(2, 20), st.integers(2, 20)),
    st.lists(st.integers(0, 4), min_size=1, max_size=6),
    st.booleans(),
    st.integers(0, 9),
    st.data(),
)
def test_any_filters_and_interlacing_are_read(
    side: tuple[int, int], kinds: list[int], is_interlaced: bool, level: int, data: st.DataObject
) -> None:
    payload = data.draw(st.binary(max_size=capacity(*side)))
    pixels = pixels_of(payload, *side)
    if is_interlaced:
        rows = interlaced(pixels, *side, kinds)
    else:
        rows = filtered(rows_of(pixels, side[0]), kinds)
    packed = zlib.compress(rows, level)
    half = len(packed) // 2
    parts = (chunk(b"IDAT", packed[:half]), chunk(b"IDAT", packed[half:]))
    assert decode_picture(png(header(*side, 8, 2, 0, 0, is_interlaced), *parts)) == payload


def test_a_lossless_copy_by_another_program_is_read(picture: bytes) -> None:
    for options in ({}, {"optimize": True}, {"compress_level": 1}, {"dpi": (72, 72)}):
        with image(picture) as seen:
            assert decode_picture(saved(seen, "PNG", **options)) == PAYLOAD


def test_what_a_reader_need_not_know_is_not_read(picture: bytes) -> None:
    bomb = zlib.compress(bytes(20_000_000))
    more = [chunk(b"zTXt", b"k\0\0" + bomb), chunk(b"iCCP", b"p\0\0" + bomb), chunk(b"PLTE", b"")]
    wrong = b"\0\0\0\1tEXtx\0\0\0\0"  # its checksum too
    at = len(SIGNATURE) + 25
    assert decode_picture(picture[:at] + b"".join(more) + wrong + picture[at:]) == PAYLOAD
    assert decode_picture(picture + b"junk behind the end") == PAYLOAD


def test_without_pillow_our_own_pictures_are_read(
    picture: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = filtered(rows_of(pixels_of(PAYLOAD, 32, 16), 32), [4])
    compressed_anew = png(header(32, 16), chunk(b"IDAT", zlib.compress(rows)))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert decode_picture(picture) == PAYLOAD
    with pytest.raises(UsageError, match=r"p2pstore\[png\]"):
        decode_picture(compressed_anew)


# -- what hosts do to pictures --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_another_format_is_told_by_its_name(picture: bytes, kind: str) -> None:
    with image(picture) as seen, pytest.raises(IntegrityError, match=f"(?i){kind}.*re-encodes"):
        decode_picture(saved(seen, kind))


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("P", "a palette with 8"),
        ("RGBA", "RGB with alpha with 8"),
        ("L", "grey with 8"),
        ("LA", "grey with transparency"),
        ("1", "grey with 1 bits"),
        ("I;16", "grey with 16"),
    ],
)
def test_other_pixels_are_told_by_their_kind(picture: bytes, mode: str, said: str) -> None:
    with image(picture) as seen, pytest.raises(IntegrityError, match=said):
        decode_picture(saved(seen.convert(mode), "PNG"))


def test_sixteen_bits_are_told() -> None:
    rows = bytes((6 * 2 + 1) * 2)
    with pytest.raises(IntegrityError, match="16 bits"):
        decode_picture(png(header(2, 2, 16, 2, 0, 0, 0), chunk(b"IDAT", zlib.compress(rows))))


@pytest.mark.parametrize("side", [(16, 8), (64, 32), (33, 16), (2, 2)])
@pytest.mark.parametrize("how", [Image.Resampling.NEAREST, Image.Resampling.LANCZOS])
def test_a_scaled_picture_is_told(
    picture: bytes, side: tuple[int, int], how: Image.Resampling
) -> None:
    with image(picture) as seen, pytest.raises(IntegrityError, match="scales"):
        decode_picture(saved(seen.resize(side, how), "PNG"))


def test_a_picture_of_one_pixel_is_told(picture: bytes) -> None:
    with image(picture) as seen, pytest.raises(IntegrityError, match="scaled"):
        decode_picture(saved(seen.resize((1, 1)), "PNG"))


@pytest.mark.parametrize("page", [b"", b"<html>", b"\n <!DOCTYPE html>", b'{"error": 1}', b"P6"])
def test_what_is_no_picture_is_told(page: bytes) -> None:
    with pytest.raises(FormatError):
        decode_picture(page)


# -- damage and malice ----------------------------------------------------------------------------


def test_cut_at_every_byte() -> None:
    picture = encode_picture(b"abc", 2, 2)
    for end in range(len(picture)):
        with pytest.raises((IntegrityError, FormatError)):
            decode_picture(picture[:end])


def test_a_flipped_bit_is_noticed_everywhere() -> None:
    picture = encode_picture(b"abc", 2, 2)
    for place in range(len(picture) * 8):
        broken = bytearray(picture)
        broken[place // 8] ^= 1 << place % 8
        with pytest.raises((IntegrityError, FormatError)):
            decode_picture(bytes(broken))


@given(st.binary(max_size=300), st.booleans())
def test_junk_never_does_anything_else(junk: bytes, is_signed: bool) -> None:
    with pytest.raises((IntegrityError, FormatError)):
        decode_picture(SIGNATURE * is_signed + junk)


def test_other_bytes_behind_the_payload_are_damage() -> None:
    pixels = bytearray(pixels_of(b"abc", 9, 9))
    pixels[-1] = 1
    rows = filtered(rows_of(bytes(pixels), 9), [0])
    with pytest.raises(IntegrityError, match="other ones"):
        decode_picture(png(header(9, 9), chunk(b"IDAT", zlib.compress(rows))))


ROWS = filtered(rows_of(pixels_of(b"abc", 9, 9), 9), [0])
PACKED = chunk(b"IDAT", zlib.compress(ROWS))
PASSES = interlaced(pixels_of(b"abc", 9, 9), 9, 9, [0])


@pytest.mark.parametrize(
    "hostile",
    [
        png(header(9, 9)),
        png(PACKED),
        png(chunk(b"IHDR", b"short"), PACKED),
        png(header(9, 9), header(9, 9), PACKED),
        png(header(9, 8), PACKED),
        png(header(9, 10), PACKED),
        png(header(0, 9), PACKED),
        png(header(MAX_WIDTH, MAX_WIDTH), PACKED),
        png(header(2**31, 2**31), PACKED),
        png(header(9, 9, 8, 2, 1, 0, 0), PACKED),
        png(header(9, 9, 8, 2, 0, 1, 0), PACKED),
        png(header(9, 9, 8, 2, 0, 0, 1), PACKED),
        png(header(9, 9, 8, 2, 0, 0, 2), PACKED),
        png(header(9, 9), chunk(b"IDAT", b"no zlib")),
        png(header(9, 9), chunk(b"IDAT", zlib.compress(ROWS)[:-1])),
        png(header(9, 9), chunk(b"IDAT", zlib.compress(ROWS) + b"more")),
        png(header(9, 9), chunk(b"IDAT", zlib.compress(ROWS + b"\0"))),
        png(header(9, 9), chunk(b"IDAT", zlib.compress(bytes(50_000_000)))),
        png(header(9, 9), chunk(b"IDAT", zlib.compress(b"\5" + ROWS[1:]))),
        png(header(9, 9, 8, 2, 0, 0, 1), chunk(b"IDAT", zlib.compress(PASSES + b"\0"))),
        png(header(9, 9, 8, 2, 0, 0, 1), chunk(b"IDAT", zlib.compress(PASSES + bytes(10**7)))),
        png(header(9, 9), PACKED, chunk(b"JUNK", b"")),
        png(header(9, 9), *[chunk(b"tEXt", b"")] * MAX_CHUNKS, PACKED),
        SIGNATURE + header(9, 9) + struct.pack(">I4s", 2**32 - 1, b"IDAT") + bytes(40),
        png(header(9, 9), PACKED) + bytes(MAX_PICTURE),
    ],
)
def test_a_hostile_picture_is_refused(hostile: bytes) -> None:
    with pytest.raises(IntegrityError):
        decode_picture(hostile)


@pytest.mark.parametrize("side", [(MAX_WIDTH, MAX_WIDTH), (MAX_WIDTH + 1, 1), (1, 2**31), (0, 9)])
def test_a_header_is_not_believed(side: tuple[int, int]) -> None:
    with pytest.raises(IntegrityError, match="nobody wrote such"):
        decode_picture(png(header(*side), PACKED))
