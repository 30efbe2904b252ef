"""The key of a share: who has it can find, fetch and read one file, and nothing else.

    KEY  = "p2p:" and in base32, lower case, without padding:
           version (u8 = 1), flags (u8), secret (32 random bytes), first 16 bytes of the root's
           BlockId, hints, CRC-32 of all before (4, big-endian; so in every version)
    flag 1 a password belongs to it (`share_access`); other flags are refused
    hint   4, IPv4 address (4), port (u16)  or  6, IPv6 address (16), port (u16): where the node was
           reached that made the share; at most 2. They only shorten the search

The root is one block in a bundle of its own (`share_bundle`, `share_tag`): a manifest of the kind
"share", sealed under `share_root_key`. What it names is sealed with keys of the share alone.
Capitals, blanks and line ends are forgiven, since keys travel through chats and over the telephone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final
from zlib import crc32

from p2pstore.content.secrets import SECRET_SIZE
from p2pstore.errors import FormatError, UsageError
from p2pstore.ids import BlockId, base32, unbase32

PREFIX: Final = "p2p:"
ROOT_PREFIX: Final = 16
MAX_HINTS: Final = 2
MAX_KEY_TEXT: Final = 512  # far beyond any key that is made; it may come from anywhere
_VERSION: Final = 1
_PASSWORD: Final = 1
_FIXED: Final = struct.Struct(f">BB{SECRET_SIZE}s{ROOT_PREFIX}s")
_CRC: Final = struct.Struct(">I")
_HINT_SIZES: Final = {4: 6, 6: 18}


@dataclass(frozen=True, slots=True)
class ShareKey:
    secret: bytes = field(repr=False)
    root: bytes  # the first 16 bytes of the root's BlockId
    needs_password: bool = False
    hints: tuple[tuple[str, int], ...] = ()  # numeric addresses and ports

    def is_root(self, block_id: BlockId) -> bool:
        return block_id[:ROOT_PREFIX] == self.root


def looks_like_share_key(text: str) -> bool:
    """Whether somebody means a key by it, not a path."""
    return text.lstrip()[: len(PREFIX)].lower() == PREFIX


def encode_share_key(key: ShareKey) -> str:
    flags = _PASSWORD if key.needs_password else 0
    body = _FIXED.pack(_VERSION, flags, key.secret, key.root)
    for host, port in key.hints[:MAX_HINTS]:
        address = ip_address(host)
        body += bytes([address.version]) + address.packed + port.to_bytes(2, "big")
    return PREFIX + base32(body + _CRC.pack(crc32(body)))


def decode_share_key(text: str) -> ShareKey:
    """UsageError when it is no key at all, FormatError when it was mistyped, cut or is newer.

    No message repeats the key.
    """
    text = "".join(text[: 2 * MAX_KEY_TEXT].split())
    if not looks_like_share_key(text):
        raise UsageError(f"This is no key: a key begins with {PREFIX}")
    try:
        raw = unbase32(text[len(PREFIX) :])
    except ValueError as exc:
        raise FormatError(
            "The key was mistyped or not copied whole: it has only the letters a to z and 2 to 7, "
            "and each of them counts."
        ) from exc
    body, crc = raw[: -_CRC.size], raw[-_CRC.size :]
    if len(text) > MAX_KEY_TEXT or not body or _CRC.pack(crc32(body)) != crc:
        raise FormatError("The key was mistyped or not copied whole: its checksum is wrong.")
    if body[0] > _VERSION:
        raise FormatError("The key is of a later version: update p2pstore to use it.")
    if len(body) < _FIXED.size:
        raise FormatError("The key is too short to be one.")
    version, flags, secret, root = _FIXED.unpack_from(body)
    if version != _VERSION or flags & ~_PASSWORD:
        raise FormatError("The key is of another version of p2pstore.")
    hints = tuple(_hints(body[_FIXED.size :]))
    return ShareKey(secret, root, bool(flags & _PASSWORD), hints)


def _hints(raw: bytes) -> Iterator[tuple[str, int]]:
    found = 0
    while raw:
        size = _HINT_SIZES.get(raw[0], 0)
        hint, raw = raw[1 : 1 + size], raw[1 + size :]
        found += 1
        if not size or len(hint) != size or found > MAX_HINTS:
            raise FormatError("The key names addresses in an unknown way: update p2pstore.")
        yield str(ip_address(hint[:-2])), int.from_bytes(hint[-2:], "big")
