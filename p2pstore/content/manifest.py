"""The `.f`: a few lines for humans, then a sealed and signed body that stands for one file.

    text     ASCII and UTF-8 lines; the first is "p2pstore placeholder, format 1"; at most 1 KiB
    0x00     the first zero byte of the file ends the text
    version  u8 = 1
    epoch    8 bytes: which of the group's secrets opens it (for a share: derived from its secret)
    nonce    24 random bytes
    length   u16 big-endian, of what follows
    sealed   XChaCha20-Poly1305(the epoch's manifest key, nonce, aad = everything before, envelope)

and nothing behind it.

    envelope = [payload, signer (32), chain, signature (64)]
               payload = Manifest encoded; context "p2pstore 2026 manifest"; chain = the signer's
               certificates, judged by `keys`
    Manifest = [file id (16), version, parent, FileMeta, hash (32), ChunkList, group (32), kind]

    version  a version vector (version.py): how often each device wrote the file
    parent   `manifest_hash` of the manifest that this one follows, or empty
    hash     BLAKE3-256 of the whole file, holes read as zeros
    chunks   the data between the holes, one after another
    group    GroupId of the owner
    kind     "file"; "index": the data are index lines (index.py), the name is the folder's;
             "share": sealed under a share secret

A placeholder is known by its first bytes, never by its suffix. At most 4 KiB are ever written,
whatever the file: chunk lists, attributes and holes that do not fit become blocks
(`fit`). At most 16 KiB are read: later versions may need more. The text is shown and
authenticated but never parsed back; the name in it is cut to 120 characters and escaped, without
control or bidi characters.
"""

from __future__ import annotations

import struct
from typing import Annotated, Literal, NamedTuple

import msgspec
from blake3 import blake3
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as _open,
)
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_encrypt as _seal,
)
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey

from p2pstore.content.chunklist import INLINE_ENTRIES, ChunkList, Store, check_list, spill_list
from p2pstore.content.codec import (
    MAX_CHAIN,
    decode,
    encode,
    public_key_of,
    sign,
    verify,
)
from p2pstore.content.filemeta import (
    FileMeta,
    check_meta,
    encode_extra,
    needs_extra,
    with_extra,
)
from p2pstore.content.secrets import EpochKeys, Keyring
from p2pstore.content.version import VersionVector, check_version, sorted_version
from p2pstore.errors import FormatError, IntegrityError, LocalProtocolError
from p2pstore.ids import Bytes32, Bytes64, Epoch, FileId, GroupId, PublicKey

MAGIC = b"p2pstore placeholder, format "
FIRST_LINE = MAGIC + b"1\n"
MAX_READ = 16 * 1024
MAX_SIZE = 4 * 1024
MAX_TEXT = 1024
MAX_SHOWN = 120  # characters of the name in the text

MANIFEST_CONTEXT = b"p2pstore 2026 manifest"

_FIXED = struct.Struct(">BB8s24sH")  # the zero byte, version, epoch, nonce, length
_VERSION = 1
_MAC = 16
_ENVELOPE_OVERHEAD = 1 + 3 + 34 + 3 + 66  # array, payload head, signer, chain head, signature


class Manifest(msgspec.Struct, frozen=True, array_like=True):
    file_id: FileId
    version: VersionVector
    parent: Annotated[bytes, msgspec.Meta(max_length=32)]
    meta: FileMeta
    hash: Bytes32
    chunks: ChunkList
    group: GroupId
    kind: Literal["file", "index", "share"] = "file"


class _Envelope(msgspec.Struct, frozen=True, array_like=True):
    payload: bytes
    signer: PublicKey
    chain: Annotated[bytes, msgspec.Meta(max_length=MAX_CHAIN)]
    signature: Bytes64


class Opened(NamedTuple):
    manifest: Manifest
    signer: PublicKey
    chain: bytes
    epoch: Epoch


_ENVELOPE = msgspec.msgpack.Decoder(_Envelope)
_MANIFEST = msgspec.msgpack.Decoder(Manifest)


def looks_like_manifest(first: bytes) -> bool:
    """A file that begins so is a placeholder, also of a later format; 29 bytes are enough."""
    return first.startswith(MAGIC)


def manifest_hash(raw: bytes) -> bytes:
    """BLAKE3-256 of a whole `.f`: what the next version names as its parent."""
    return blake3(raw).digest()


def seal_manifest(
    manifest: Manifest, keys: EpochKeys, signer: SigningKey, chain: bytes, nonce: bytes
) -> bytes:
    """The whole `.f`; `nonce` is 24 fresh random bytes. What may not fit: `fit` first."""
    if len(nonce) != 24:
        raise ValueError("a manifest needs a nonce of 24 bytes")
    check_manifest(manifest)
    if len(chain) > MAX_CHAIN:
        raise LocalProtocolError("the credential is too long for a placeholder")
    payload = encode(_with_sorted_version(manifest))
    signature = sign(MANIFEST_CONTEXT, payload, signer)
    envelope = encode(_Envelope(payload, public_key_of(signer), chain, signature))
    length = len(envelope) + _MAC
    text = _text(manifest.meta, MAX_SIZE - length - _FIXED.size)
    clear = text + _FIXED.pack(0, _VERSION, keys.epoch, nonce, length)
    raw = clear + _seal(envelope, clear, nonce, keys.manifest)
    if len(raw) > MAX_SIZE:
        raise LocalProtocolError(f"a placeholder of {len(raw)} bytes: `fit` first")
    return raw


def _with_sorted_version(manifest: Manifest) -> Manifest:
    if len(manifest.version) < 2:
        return manifest
    return msgspec.structs.replace(manifest, version=sorted_version(manifest.version))


def open_manifest(raw: bytes, ring: Keyring, *, is_recorded: bool = False) -> Opened:
    """FormatError: no `.f`, or cut off; IntegrityError: seal or signature are wrong.

    Whether the signer may speak for the group (`chain`) is for the caller to judge. `is_recorded`:
    these very bytes are in the own catalog, where nothing comes whose signature was not verified;
    doing it again would be a third of the work of bringing a small file back.
    """
    epoch, nonce, start = _clear_part(raw)
    key = ring[epoch].manifest
    try:
        envelope = _open(raw[start:], raw[:start], nonce, key)
    except CryptoError as exc:
        raise IntegrityError("the placeholder was changed: its seal is broken") from exc
    sealed = decode(_ENVELOPE, envelope, MAX_READ, "the placeholder")
    if not is_recorded:
        verify(MANIFEST_CONTEXT, sealed.payload, sealed.signature, sealed.signer)
    manifest = decode(_MANIFEST, sealed.payload, MAX_READ, "the manifest")
    check_manifest(manifest)
    return Opened(manifest, sealed.signer, sealed.chain, epoch)


def epoch_of(raw: bytes) -> Epoch:
    """Which epoch sealed it, without opening; FormatError as `open_manifest`."""
    return _clear_part(raw)[0]


def _clear_part(raw: bytes) -> tuple[Epoch, bytes, int]:
    """Epoch, nonce and where the sealed part begins."""
    if not raw.startswith(MAGIC):
        raise FormatError("this is no placeholder of p2pstore")
    if not raw.startswith(FIRST_LINE):
        raise FormatError("a placeholder of a later format: update p2pstore to open it")
    zero = raw.find(b"\0", 0, MAX_TEXT + 1)
    start = zero + _FIXED.size
    if zero < 0 or len(raw) > MAX_READ or len(raw) < start + _MAC:
        raise FormatError("the placeholder was cut off or edited")
    _, version, epoch, nonce, length = _FIXED.unpack_from(raw, zero)
    if version != _VERSION or length != len(raw) - start:
        raise FormatError("the placeholder was cut off or edited")
    return Epoch(epoch), nonce, start


def check_manifest(manifest: Manifest) -> None:
    """FormatError unless the parts of a manifest fit each other."""
    check_meta(manifest.meta)
    check_list(manifest.chunks)
    if len(manifest.chunks.entries) > INLINE_ENTRIES:
        raise FormatError("a manifest with too many chunks inline")
    check_version(manifest.version)
    if len(manifest.parent) not in (0, 32):
        raise FormatError("a manifest whose parent is no hash")
    meta = manifest.meta
    data = manifest.chunks.size()
    if meta.extra is None:
        data += sum(length for _, length in meta.holes)
    if data != meta.size if meta.extra is None else data > meta.size:
        raise FormatError("a manifest whose chunks do not add up to its size")


def complete(manifest: Manifest, extra: bytes) -> Manifest:
    """With the attributes and holes from the payload of its extra block."""
    whole = msgspec.structs.replace(manifest, meta=with_extra(manifest.meta, extra))
    check_manifest(whole)
    return whole


def fits_inline(manifest: Manifest, chain: bytes) -> bool:
    """It can be sealed as it is, with its name shown in full."""
    if len(manifest.chunks.entries) > INLINE_ENTRIES:
        return False
    if _is_surely_short(manifest, chain):
        return True
    sealed = len(encode(manifest)) + _ENVELOPE_OVERHEAD + len(chain) + _MAC
    return len(_text(manifest.meta, MAX_TEXT)) + _FIXED.size + sealed <= MAX_SIZE


def _is_surely_short(manifest: Manifest, chain: bytes) -> bool:
    """Whatever its name and its text: nearly all files, told without encoding them."""
    meta = manifest.meta
    return (
        len(manifest.chunks.entries) <= 2
        and len(manifest.version) <= 2
        and len(chain) <= MAX_CHAIN
        and not meta.xattrs
        and not meta.holes
    )


def fit(manifest: Manifest, chain: bytes, store: Store) -> Manifest:
    """The same, with what does not fit 4 KiB given to `store` as blocks of the meta bundle."""
    if needs_extra(manifest.meta):
        manifest = _spill_extra(manifest, store)
    if fits_inline(manifest, chain):
        return manifest
    if manifest.chunks.entries:
        chunks = spill_list(manifest.chunks, store)
        manifest = msgspec.structs.replace(manifest, chunks=chunks)
    has_extra = manifest.meta.xattrs or manifest.meta.holes
    if has_extra and not fits_inline(manifest, chain):
        manifest = _spill_extra(manifest, store)
    return manifest


def _spill_extra(manifest: Manifest, store: Store) -> Manifest:
    extra = store(encode_extra(manifest.meta))
    meta = msgspec.structs.replace(manifest.meta, xattrs=(), holes=(), extra=extra)
    return msgspec.structs.replace(manifest, meta=meta)


_LINES = """\
p2pstore placeholder, format 1

  name: {name}
  size: {size:,} bytes

This small file stands for the original, which p2pstore keeps sealed, here or
on other computers. To get it back, open it while p2pstore is running, or type
  p2pstore hydrate FILE.f
Moving it moves the file. Outside its folder its blocks are kept 30 days.
Do not edit it: the rest is sealed.

"""


def _text(meta: FileMeta, room: int) -> bytes:
    """The lines for humans; the name is cut so that they take at most `room` bytes."""
    shown = printable(meta.name)
    text = _LINES.format(name=shown, size=meta.size).encode()
    while len(text) > min(room, MAX_TEXT) and shown:
        shown = shown[: -max(1, (len(text) - room) // 4)]
        text = _LINES.format(name=shown, size=meta.size).encode()
    return text


def printable(name: bytes, most: int = MAX_SHOWN) -> str:
    """`name` for one line of text: at most `most` characters, each of them printable.

    What is not printable is escaped, control and bidi characters with it; a backslash is doubled.
    """
    text = name.decode(errors="backslashreplace") if not name.isascii() else name.decode()
    shown = "".join(_escaped(char) for char in text) if not _is_plain(text) else text
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def _is_plain(text: str) -> bool:
    return text.isprintable() and "\\" not in text


def _escaped(char: str) -> str:
    if char == "\\":
        return "\\\\"
    # Formatting characters, bidi marks among them, are not printable to Python.
    return char if char.isprintable() else char.encode("unicode_escape").decode()
