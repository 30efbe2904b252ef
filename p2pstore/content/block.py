"""A block: sealed bytes that hold one payload (a chunk, or several small ones one after another).

packed, what is encrypted:

    offset  size  what
    0       1     flag: 0 = stored, 1 = one zstd frame that states its content size
    1       4     length of the body, big-endian
    5       n     body: the payload (flag 0), or zstd(payload) (flag 1, only when it is smaller)
    5 + n   p     zeros up to the next multiple of max(32, 2^(floor(log2(5 + n)) - 5)): a holder
                  learns the size in steps of about 3 %, not to the byte

key = BLAKE3 keyed with the epoch's block secret over *packed*, 32 bytes. It is taken over exactly
the bytes that are encrypted, so a new zstd version never uses one key for two texts; that is what
allows the nonce of 24 zeros.

block = XChaCha20-Poly1305(key, nonce of zeros, aad = BLOCK_AAD, packed), 16 bytes longer.
BlockId = BLAKE3-256(block).

Limits: payload <= 1 MiB (the largest chunk), so a block is at most 1 MiB + 32 KiB + 16; whatever
claims to be larger than MAX_BLOCK = 2 MiB is refused unread. Only this one form is accepted: a
length that does not fit the padding, padding that is not zero, a frame without content size or
with bytes behind it are errors.

The deduplication key of a payload is the first 16 bytes of BLAKE3 keyed with the group's dedup
secret over the plain payload; it is never written anywhere but to the own catalog.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

from blake3 import blake3
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as _open,
)
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_encrypt as _seal,
)
from nacl.exceptions import CryptoError
from zstandard import ZstdCompressor, ZstdDecompressor, ZstdError, frame_content_size

from p2pstore.content.chunker import CHUNK_MAX
from p2pstore.errors import IntegrityError, LocalProtocolError
from p2pstore.ids import BlockId

MAX_PAYLOAD = CHUNK_MAX
MAX_BLOCK = 2 * 1024 * 1024  # twice the payload: room for formats to come, and one page of waste
MIN_BLOCK = 32 + 16  # one padding step, and the authenticator

BLOCK_AAD = b"p2pstore 2026 block 1"
KEY_SIZE = 32

_RECENT = 16  # blocks whose payloads are kept by each thread
_SHARED_MOST = 128 * 1024  # a longer block holds one chunk: keeping it would only take memory

_HEAD = struct.Struct(">BI")
_HEAD_SIZE = 5
_NONCE = bytes(24)
_MAX_WINDOW = 1 << 23  # what level 19 uses for 1 MiB is less; a greater one is an attack on memory


class SealedBlock(NamedTuple):
    block_id: BlockId
    key: bytes
    block: bytes


def padded_size(size: int) -> int:
    """`size` bytes of flag, length and body with their padding."""
    step = 1 << max(5, size.bit_length() - 6)
    return -(-size // step) * step


def block_id_of(block: bytes) -> BlockId:
    return BlockId(blake3(block).digest())


def dedup_key(dedup_secret: bytes, payload: bytes | memoryview) -> bytes:
    """The 16 bytes under which the catalog knows a payload."""
    return blake3(payload, key=dedup_secret).digest(length=16)


class Sealer:
    """Seals payloads with one epoch's block secret. One per thread (the compressor has state)."""

    __slots__ = ("_compress", "_secret")

    def __init__(self, block_secret: bytes, *, level: int = 3) -> None:
        if len(block_secret) != 32:
            raise ValueError("a block secret has 32 bytes")
        self._secret = block_secret
        self._compress = ZstdCompressor(
            level=level, write_content_size=True, write_checksum=False, write_dict_id=False
        ).compress

    def seal(self, payload: bytes | memoryview) -> SealedBlock:
        packed = self._pack(payload)
        return _sealed(packed, blake3(packed, key=self._secret).digest())

    def seal_under(self, key: bytes, payload: bytes) -> SealedBlock:
        """With a key that is used for this one payload and for nothing else, ever."""
        return _sealed(self._pack(payload), key)

    def _pack(self, payload: bytes | memoryview) -> bytes:
        length = len(payload)
        if length > MAX_PAYLOAD:
            raise LocalProtocolError(f"a payload of {length} bytes does not fit a block")
        body: bytes | memoryview = self._compress(payload)
        flag = 1
        if len(body) >= length:
            flag, body = 0, payload
        size = _HEAD_SIZE + len(body)
        step = 1 << max(5, size.bit_length() - 6)
        return b"".join((_HEAD.pack(flag, len(body)), body, bytes(-size % step)))

    def seal_many(self, payloads: Iterable[bytes | memoryview]) -> list[SealedBlock]:
        seal = self.seal
        return [seal(payload) for payload in payloads]


def _sealed(packed: bytes, key: bytes) -> SealedBlock:
    block = _seal(packed, BLOCK_AAD, _NONCE, key)
    return SealedBlock(BlockId(blake3(block).digest()), key, block)


class Unsealer:
    """Opens blocks of any epoch: each is opened with its own key. One per thread."""

    __slots__ = ("_decompress", "_recent")

    def __init__(self) -> None:
        self._decompress = ZstdDecompressor(max_window_size=_MAX_WINDOW).decompress
        self._recent: dict[int, tuple[bytes, bytes, bytes]] = {}  # block, key and payload by id()

    def unseal(self, block: bytes, key: bytes) -> bytes:
        """The payload; IntegrityError for anything but what `Sealer` makes with that key.

        Chunks that share a block are asked for one soon after another: for the very object of a
        call shortly before, and the same key, the answer is still at hand.
        """
        recent = self._recent.get(id(block))
        if recent is not None and recent[0] is block and recent[1] == key:
            return recent[2]
        payload = self._unseal(block, key)
        if type(block) is bytes and len(block) <= _SHARED_MOST:
            if len(self._recent) == _RECENT:
                del self._recent[next(iter(self._recent))]
            self._recent[id(block)] = (block, key, payload)
        return payload

    def _unseal(self, block: bytes, key: bytes) -> bytes:
        if not MIN_BLOCK <= len(block) <= MAX_BLOCK or len(key) != KEY_SIZE:
            raise IntegrityError("a block or its key has an impossible size")
        try:
            packed = _open(bytes(block), BLOCK_AAD, _NONCE, bytes(key))
        except CryptoError as exc:
            raise IntegrityError("a block cannot be opened with its key: it was changed") from exc
        flag, length = _HEAD.unpack_from(packed)
        end = _HEAD_SIZE + length
        padding = len(packed) - end
        if padding < 0 or padded_size(end) != len(packed) or packed[end:] != bytes(padding):
            raise IntegrityError("a block is packed wrongly")
        if flag == 0 and length <= MAX_PAYLOAD:
            return packed[_HEAD_SIZE:end]
        if flag != 1:
            raise IntegrityError("a block is packed in an unknown way")
        return self._expand(memoryview(packed)[_HEAD_SIZE:end])

    def _expand(self, frame: memoryview) -> bytes:
        # zstandard allocates what the frame states, whatever limit it is given: look first.
        try:
            size = frame_content_size(frame)
            if not 0 < size <= MAX_PAYLOAD:
                raise IntegrityError("a block states no size or an impossible one")
            payload = self._decompress(frame, allow_extra_data=False)
        except ZstdError as exc:
            raise IntegrityError("a block cannot be decompressed") from exc
        if len(payload) != size:
            raise IntegrityError("a block holds less than it states")
        return payload

    def unseal_many(self, sealed: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        """The payloads of (block, key) pairs."""
        unseal = self.unseal
        return [unseal(block, key) for block, key in sealed]
