"""A picture: a piece of up to some megabytes as a PNG, for hosts that store nothing else.

PNG (RFC 2083), RGB, 8 bit, W x H, not interlaced. Its pixels, row by row, are these W*H*3 bytes:

    offset  size  what
    0       4     n, the length of the payload, little-endian
    4       n     payload, at most W*H*3 - 4 bytes
    4 + n   rest  zeros

What `encode_picture` writes, byte for byte (numbers are big-endian unless said):

    signature "\\x89PNG\\r\\n\\x1a\\n"
    chunk IHDR   W (4), H (4), 8, 2 (RGB), 0, 0, 0
    chunk IDAT   0x78 0x01; stored deflate blocks of 65,535 bytes, the last one shorter: a byte that
                 is 1 for the last block and else 0, length and its complement (2 each,
                 little-endian), bytes; Adler-32 (4). The bytes: for each row a 0 (no filter), W*3
    chunk IEND   empty
    chunk        length of its content (4), name (4), content, CRC-32 of name and content (4)

Payloads are sealed and do not shrink, so nothing is compressed: a full picture of 600 x 600 is
0.07 % larger than its payload.

A host may compress the picture anew as long as every pixel stays. `decode_picture` takes width and
height from the picture, ignores chunks that PNG calls ancillary (unread: they can be bombs), what
lies behind IEND, and how the pixels are compressed, filtered and interlaced. Where rows are
filtered or interlaced it needs Pillow. It is strict about the pixels: zeros behind the payload were
written there, so anything else was done by somebody who changed pixels.

Pixels may be lost without a word where a host makes JPEG, palettes or previews of what it was
given: every such picture is an IntegrityError that says so. What is no picture at all is a
FormatError.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Final, NamedTuple

from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError, UsageError

MAX_PIXELS: Final = 1 << 23  # 24 MiB of payload: more than picture hosts take, little to hold
MAX_WIDTH: Final = 1 << 14  # and height; more is refused by browsers and libraries too
MAX_CHUNKS: Final = 1 << 14  # 25 MB in chunks of 8 KiB, as common writers make, are 3,200
MAX_ANCILLARY: Final = 1 << 20  # bytes of text, colour profiles and EXIF that a host may add

_LENGTH: Final = struct.Struct("<I")
_CHUNK: Final = struct.Struct(">I4s")
_HEADER: Final = struct.Struct(">IIBBBBB")
_STORED: Final = struct.Struct("<BHH")
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MAX_STORED: Final = 65_535  # of deflate
_ZLIB: Final = b"\x78\x01"  # window of 32 KiB, fastest
_NARROW: Final = 64  # bytes a row; below, columns are fewer steps than rows
_ADAM7: Final = (  # of each pass: first column and row, steps between columns and rows
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_COLOURS: Final = {0: "grey", 3: "a palette", 4: "grey with transparency", 6: "RGB with alpha"}
_OTHERS: Final = (  # how pictures of other formats begin: offset, bytes, name
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (4, b"ftyp", "AVIF or HEIC"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
)


def picture_size(width: int, height: int) -> int:
    """Bytes of the file that `encode_picture` makes."""
    filtered = (3 * width + 1) * height
    blocks = max(1, -(-filtered // _MAX_STORED))
    zlib_size = len(_ZLIB) + blocks * _STORED.size + filtered + 4
    return len(_SIGNATURE) + 3 * (_CHUNK.size + 4) + _HEADER.size + zlib_size


MAX_PICTURE: Final = picture_size(MAX_PIXELS // MAX_WIDTH, MAX_WIDTH) + (1 << 20) + MAX_ANCILLARY
"""Bytes of the largest file that is read: other compressors may need 4 % more than we do."""


def capacity(width: int, height: int) -> int:
    """Bytes of payload that a picture takes; UsageError for sizes that cannot be."""
    if not (0 < width <= MAX_WIDTH and 0 < height <= MAX_WIDTH):
        raise UsageError(f"A picture is 1 to {MAX_WIDTH:,} pixels wide and high.")
    if width * height > MAX_PIXELS:
        raise UsageError(f"A picture has at most {MAX_PIXELS:,} pixels; choose a smaller one.")
    if width * height * 3 <= _LENGTH.size:
        raise UsageError("A picture needs at least two pixels.")
    return width * height * 3 - _LENGTH.size


def encode_picture(payload: bytes | memoryview, width: int, height: int) -> bytes:
    """The PNG that holds `payload`; LocalProtocolError when it has more than `capacity`."""
    room = capacity(width, height) - len(payload)
    if room < 0:
        raise LocalProtocolError(f"{len(payload)} bytes do not fit {width} x {height} pixels")
    pixels = b"".join((_LENGTH.pack(len(payload)), payload, bytes(room)))
    rows = _with_filters(pixels, 3 * width, height)
    header = _HEADER.pack(width, height, 8, 2, 0, 0, 0)
    parts = [_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", _stored(rows))]
    return b"".join((*parts, *_chunk(b"IEND", b"")))


def decode_picture(raw: bytes) -> bytes:
    """The payload. See above for IntegrityError and FormatError.

    UsageError when its pixels are all there but only Pillow can read them, and it is missing.
    """
    picture = _open(raw)
    length = picture.width * picture.height * 3
    pixels: bytes | bytearray
    if picture.is_interlaced:
        pixels = _by_pillow(picture)
    else:
        rows = _inflate(picture.compressed, length + picture.height)
        if rows[:: 3 * picture.width + 1].strip(b"\0"):
            pixels = _by_pillow(picture)
        else:
            pixels = _without_filters(rows, 3 * picture.width, picture.height)
    if len(pixels) != length:
        raise IntegrityError("The picture holds fewer pixels than it should: it is damaged.")
    end = _LENGTH.size + _LENGTH.unpack_from(pixels)[0]
    if end > length or pixels[end:] != bytes(length - end):
        raise IntegrityError(
            "The pixels of the picture are other ones than those that were written: its host "
            "scales or repaints pictures, and what was in this one is lost there."
        )
    return bytes(memoryview(pixels)[_LENGTH.size : end])


class _Picture(NamedTuple):
    width: int
    height: int
    is_interlaced: bool
    compressed: bytes | memoryview


def _chunk(name: bytes, content: bytes) -> tuple[bytes, bytes, bytes]:
    crc = zlib.crc32(content, zlib.crc32(name))
    return _CHUNK.pack(len(content), name), content, crc.to_bytes(4, "big")


def _with_filters(pixels: bytes, row: int, height: int) -> bytes:
    """A zero before each row of pixels."""
    if row < _NARROW:
        rows = bytearray((row + 1) * height)
        for column in range(row):
            rows[column + 1 :: row + 1] = pixels[column::row]
        return bytes(rows)
    view = memoryview(pixels)
    return b"\0" + b"\0".join([view[at : at + row] for at in range(0, row * height, row)])


def _without_filters(rows: bytes, row: int, height: int) -> bytes | bytearray:
    """The first byte of each row left out."""
    if row < _NARROW:
        pixels = bytearray(row * height)
        for column in range(row):
            pixels[column::row] = rows[column + 1 :: row + 1]
        return pixels
    view = memoryview(rows)
    return b"".join([view[at : at + row] for at in range(1, (row + 1) * height, row + 1)])


def _stored(content: bytes) -> bytes:
    """`content` as a zlib stream that compresses nothing."""
    parts: list[bytes | memoryview] = [_ZLIB]
    view = memoryview(content)
    for at in range(0, len(content), _MAX_STORED):
        block = view[at : at + _MAX_STORED]
        is_last = at + _MAX_STORED >= len(content)
        parts += (_STORED.pack(is_last, len(block), len(block) ^ 0xFFFF), block)
    parts.append(zlib.adler32(content).to_bytes(4, "big"))
    return b"".join(parts)


def _open(raw: bytes) -> _Picture:
    """The picture in a file, pixels still compressed; nothing is read twice or trusted."""
    _check_is_png(raw)
    chunks = _chunks(raw)
    name, content = next(chunks)
    if name != b"IHDR" or len(content) != _HEADER.size:
        raise IntegrityError("The picture has no header: it is damaged.")
    width, height, depth, colour, compression, filters, interlace = _HEADER.unpack(content)
    if depth != 8 or colour != 2:
        kind = _COLOURS.get(colour, "8-bit RGB" if depth == 8 else "RGB")
        raise IntegrityError(
            f"The picture came back as {kind} with {depth} bits a channel instead of RGB with 8: "
            "its host re-encodes pictures, and what was in this one is lost there."
        )
    if not (0 < width <= MAX_WIDTH and 0 < height <= MAX_WIDTH and width * height <= MAX_PIXELS):
        raise IntegrityError(f"The picture claims {width} x {height} pixels: nobody wrote such.")
    if compression or filters or interlace > 1:
        raise IntegrityError("The picture is packed in an unknown way: it is damaged.")
    if width * height * 3 < _LENGTH.size:
        raise IntegrityError("The picture is too small to hold anything: its host scaled it.")
    found = []
    for name, content in chunks:
        if name != b"IDAT":
            raise IntegrityError("The picture has parts that no PNG has: it is damaged.")
        found.append(content)
    compressed = found[0] if len(found) == 1 else b"".join(found)
    return _Picture(width, height, interlace == 1, compressed)


def _check_is_png(raw: bytes) -> None:
    if len(raw) > MAX_PICTURE:
        raise IntegrityError(f"The picture is larger than {MAX_PICTURE:,} bytes: nobody wrote it.")
    if raw.startswith(_SIGNATURE):
        return
    for offset, start, name in _OTHERS:
        if raw.startswith(start, offset):
            raise IntegrityError(
                f"The picture came back as {name} instead of PNG: its host re-encodes pictures, "
                "and what was in this one is lost there."
            )
    if raw and _SIGNATURE.startswith(raw):
        raise IntegrityError("The picture is cut off.")
    if raw.lstrip()[:1] == b"<":
        raise FormatError("A web page came where a picture should be.")
    raise FormatError("What came is no picture.")


def _chunks(raw: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Name and content of each chunk before IEND that a reader must understand."""
    view, at = memoryview(raw), len(_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        if len(raw) - at < _CHUNK.size + 4:
            raise IntegrityError("The picture is cut off.")
        size, name = _CHUNK.unpack_from(raw, at)
        start, end = at + _CHUNK.size, at + _CHUNK.size + size
        if end + 4 > len(raw):
            raise IntegrityError("The picture is cut off.")
        at = end + 4
        if name[0] & 0x20 or name == b"PLTE":  # ancillary; in RGB a palette is a mere suggestion
            continue
        content = view[start:end]
        if zlib.crc32(content, zlib.crc32(name)) != int.from_bytes(view[end:at], "big"):
            raise IntegrityError("A checksum of the picture is wrong: it is damaged.")
        if name == b"IEND":
            return
        yield name, content
    raise IntegrityError(f"The picture has more than {MAX_CHUNKS:,} parts: nobody wrote such.")


def _inflate(compressed: bytes | memoryview, length: int) -> bytes:
    """Exactly `length` bytes; what expands to more is never expanded."""
    inflater = zlib.decompressobj()
    try:
        rows = inflater.decompress(compressed, length + 1)
    except zlib.error as exc:
        raise IntegrityError("The pixels of the picture are damaged.") from exc
    if len(rows) != length or not inflater.eof or inflater.unused_data:
        raise IntegrityError("The picture holds other than the pixels that it claims.")
    return rows


def _by_pillow(picture: _Picture) -> bytes:
    """The pixels of a picture that somebody compressed anew, with nothing else in its file."""
    try:
        from PIL import Image
    except ImportError as exc:
        raise UsageError(
            "The picture was compressed anew by its host; to read such pictures, install "
            "p2pstore[png]."
        ) from exc
    width, height = picture.width, picture.height
    if picture.is_interlaced:
        _inflate(picture.compressed, _interlaced_size(width, height))
    header = _HEADER.pack(width, height, 8, 2, 0, 0, picture.is_interlaced)
    parts = [_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", bytes(picture.compressed))]
    clean = b"".join((*parts, *_chunk(b"IEND", b"")))
    try:
        with Image.open(BytesIO(clean), formats=("PNG",)) as opened:
            return opened.tobytes()
    except (OSError, SyntaxError, ValueError) as exc:
        raise IntegrityError("The pixels of the picture are damaged.") from exc


def _interlaced_size(width: int, height: int) -> int:
    """Bytes of all rows with their filters in the seven passes of Adam7."""
    size = 0
    for left, top, across, down in _ADAM7:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            size += (3 * columns + 1) * rows
    return size
