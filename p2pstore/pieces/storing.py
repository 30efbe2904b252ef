"""Stores one file as pieces.

Order: each piece is put (and read back and compared where the carrier does not promise exact
bytes), then noted in the journal; the file is looked at once more; then the list of pieces is put,
from its last part to the head; then the journal goes. Only then is there a key. So what a key leads
to was complete, and a key is never given for what a host has changed.

What was put in vain is deleted where that is sure to hit nothing else: a carrier that chooses its
keys may give the same one for equal plain pieces of two uploads.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from p2pstore.carriers import Carrier
from p2pstore.content import (
    MAX_PIECE,
    MAX_PIECES,
    UPLOAD_SECRET,
    MetaWriter,
    Piece,
    Plain,
    Sealed,
    UploadKey,
    UploadMeta,
    Wrap,
    checksum,
    encode_upload_key,
    parse_upload_key,
    rehearse,
    safe_base_name,
)
from p2pstore.errors import (
    Busy,
    FormatError,
    IntegrityError,
    P2PStoreError,
    Unavailable,
    UsageError,
)
from p2pstore.pieces.flow import PATIENT, Patience, Progress, each, width
from p2pstore.pieces.journal import Journal
from p2pstore.threads import in_thread

PIECE: Final = 4 << 20  # where the carrier takes more: good for ranges, and few enough to list
_NAME: Final = 10  # random bytes in the names of one upload's pieces
MOST: Final = 1 << 16  # pieces before they are made larger

Source: TypeAlias = str | bytes | Path | int


class Stored(NamedTuple):
    key: str  # all that the user needs to keep
    meta: UploadMeta


class _Changed(Busy):
    """The file was written to while it was read."""


async def store(
    carrier: Carrier,
    source: Source,
    *,
    pool: Executor,
    name: str | None = None,
    encrypt: bool = True,
    picture: tuple[int, int] = (0, 0),
    place: str = "This place",
    journals: Path | None = None,
    progress: Progress | None = None,
    patience: Patience = PATIENT,
    random: Callable[[int], bytes] = os.urandom,
) -> Stored:
    """Store a regular file, given by path or as a descriptor that is read from its beginning.

    `name` goes into the list, by default the file's own; `picture`: width and height for who reads
    it elsewhere; `place` names the carrier in messages and in the journal. With a directory for
    `journals`, which is made, an upload that was interrupted goes on when it is repeated, unless
    the file has changed.

    UsageError: no such file, pieces too small. Unavailable: the carrier failed for longer than
    `patience`. Busy: the file changes, or is being uploaded already. IntegrityError: the carrier
    does not keep bytes as they are.
    """
    with ExitStack() as opened:
        descriptor = source if isinstance(source, int) else _open(source)
        if not isinstance(source, int):
            opened.callback(os.close, descriptor)
        shown = name if name is not None else _name_of(source)
        upload = _Upload(
            carrier,
            descriptor,
            name=safe_base_name(shown),
            picture=picture,
            is_sealed=encrypt,
            place=place,
            pool=pool,
            patience=patience,
            tell=progress or (lambda done, total: None),
        )
        journal: Journal | None = None
        if journals is not None and not isinstance(source, int):
            path = os.path.realpath(os.fsencode(source))
            known = Journal.open(journals, place, os.fsdecode(path), upload.identity())
            journal = opened.enter_context(known)
        upload.begin(journal, random)
        return await upload.run()


def _open(source: str | bytes | Path) -> int:
    try:
        # A FIFO must not hold up who opens it.
        return os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise UsageError(f"{os.fsdecode(source)} cannot be read ({why}).") from exc


def _name_of(source: Source) -> str:
    return "" if isinstance(source, int) else os.path.basename(os.fsdecode(source))


def piece_size(size: int, room: int) -> int:
    """Bytes of content in each piece (but the last) of a file, where `room` bytes fit at most."""
    grown = -(-size // MOST)
    return min(room, MAX_PIECE, max(PIECE, grown + -grown % (1 << 20)))


class _Upload:
    def __init__(
        self,
        carrier: Carrier,
        descriptor: int,
        *,
        name: str,
        picture: tuple[int, int],
        is_sealed: bool,
        place: str,
        pool: Executor,
        patience: Patience,
        tell: Progress,
    ) -> None:
        self._carrier = carrier
        self._promises = carrier.promises
        self._descriptor = descriptor
        self._name = name
        self._picture = picture
        self._is_sealed = is_sealed
        self._place = place
        self._pool = pool
        self._patience = patience
        self._tell = tell
        self._stat = os.fstat(descriptor)
        if not stat.S_ISREG(self._stat.st_mode):
            raise UsageError(f"{name} is no regular file; only such can be uploaded.")
        self._size = self._stat.st_size
        self._room = self._promises.piece - (Sealed if is_sealed else Plain).overhead
        if self._room < 1:
            raise UsageError(
                f"{place} takes {self._promises.piece} bytes at a time, too few for a sealed "
                "piece. Choose larger pieces (for pictures: width and height)."
            )
        self._list_room = min(self._room, MAX_PIECE)
        self._piece = piece_size(self._size, self._room)
        self._count = -(-self._size // self._piece)
        self._pieces: dict[int, Piece] = {}
        self._put_now: list[str] = []  # keys, by this call
        self._done = 0
        self._rehearsed = 0  # characters of a key with which the list is known to fit
        self._journal: Journal | None = None
        self._secret: bytes | None = None
        self._wrap: Wrap = Plain()
        self._base = ""

    def identity(self) -> list[int | str]:
        """What must be the same for pieces of an earlier attempt to be used."""
        shape = (int(self._is_sealed), self._piece, self._promises.piece)
        return [self._name, *self._picture, *shape, *_stamp(self._stat)]

    def begin(self, journal: Journal | None, random: Callable[[int], bytes]) -> None:
        seed = random(UPLOAD_SECRET + _NAME)
        if journal is not None:
            seed = journal.seed(seed)
        if self._is_sealed:
            self._secret = seed[:UPLOAD_SECRET]
            self._wrap = Sealed(self._secret, self._promises.piece)
        # The same at each attempt: what is put again under a name that is kept is not kept twice.
        self._base = f"p2p-{seed[UPLOAD_SECRET:].hex()}"
        self._journal = journal

    async def run(self) -> Stored:
        try:
            await self._check_list(self._carrier.key_of(f"{self._base}-0") or "k")
            self._tell(0, self._size)
            await each(range(self._count), self._one, width=width(self._piece))
            self._check_unchanged()
            stored = await self._list()
        except P2PStoreError as exc:
            goes_on = isinstance(exc, Unavailable) and not isinstance(exc, _Changed)
            if self._journal is None or not goes_on:
                await self._withdraw()
            if self._journal is not None and not goes_on:
                self._journal.remove()
            raise
        if self._journal is not None:
            self._journal.remove()
        return stored

    # -- pieces -----------------------------------------------------------------------------------

    async def _one(self, seq: int) -> None:
        stored, said = await in_thread(self._pool, self._read, seq)
        known = None if self._journal is None else self._journal.pieces.get(seq)
        if known is not None and known.checksum != said:
            raise self._changed()
        if known is not None and await self._is_there(known.key, stored):
            self._note(seq, known.key, said)
            return
        key = await self._put(f"{self._base}-{seq}", stored)
        await self._check_list(key)
        self._note(seq, key, said)
        if self._journal is not None:
            self._journal.add(self._pieces[seq])

    def _note(self, seq: int, key: str, said: str) -> None:
        self._pieces[seq] = Piece(seq, key, seq * self._piece, self._length(seq), said)
        self._done += self._length(seq)
        self._tell(self._done, self._size)

    def _length(self, seq: int) -> int:
        return min(self._piece, self._size - seq * self._piece)

    def _read(self, seq: int) -> tuple[bytes, str]:
        """The piece as it is stored, and the checksum of its content; in a thread."""
        length = self._length(seq)
        parts: list[bytes] = []
        while length:
            try:
                part = os.pread(self._descriptor, length, seq * self._piece + _sum(parts))
            except OSError as exc:
                raise UsageError(f"{self._name} cannot be read ({exc.strerror}).") from exc
            if not part:
                raise self._changed()
            parts.append(part)
            length -= len(part)
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        return self._wrap.piece(seq, content), checksum(content)

    async def _is_there(self, key: str, stored: bytes) -> bool:
        """Whether an earlier attempt's piece can be used."""
        try:
            return await self._patience.insist(lambda: self._carrier.get(key)) == stored
        except (Unavailable, IntegrityError, FormatError):
            return False

    async def _put(self, name: str, stored: bytes) -> str:
        key = await self._patience.insist(lambda: self._carrier.put(name, stored))
        self._put_now.append(key)
        if not _is_usable(key):
            raise IntegrityError(f"{self._place} gives keys with which nothing could be found.")
        if not self._promises.is_exact:
            await self._read_back(key, stored)
        return key

    async def _read_back(self, key: str, stored: bytes) -> None:
        cause: P2PStoreError | None = None
        try:
            # Some hosts show what they took only after a while.
            got = await self._patience.insist(lambda: self._carrier.get(key), is_expected=True)
        except (IntegrityError, FormatError) as exc:
            got, cause = b"", exc
        if got != stored:
            raise IntegrityError(
                f"{self._place} does not keep bytes as they are (does it re-encode pictures?): "
                "files cannot be stored there."
            ) from cause

    # -- the list ---------------------------------------------------------------------------------

    async def _check_list(self, key: str) -> None:
        """UsageError as soon as it is seen that the list would not fit, not after the last byte."""
        if len(key) > self._rehearsed:
            self._rehearsed = len(key)
            await in_thread(self._pool, self._rehearse, key)

    def _rehearse(self, key: str) -> None:
        said = checksum(b"")
        seqs = range(min(self._count, MAX_PIECES + 1))
        pieces = (Piece(seq, key, seq * self._piece, self._piece, said) for seq in seqs)
        rehearse(self._meta(tuple(pieces)), self._list_room, key)

    def _meta(self, pieces: tuple[Piece, ...]) -> UploadMeta:
        return UploadMeta(self._name, *self._picture, pieces)

    async def _list(self) -> Stored:
        meta = self._meta(tuple(self._pieces[seq] for seq in range(self._count)))
        writer = MetaWriter(meta, self._list_room)
        while True:
            place, raw = writer.part()
            key = await self._put(f"{self._base}-m{place}", self._wrap.part(place, raw))
            if writer.is_done:
                return Stored(encode_upload_key(UploadKey(key, self._secret)), meta)
            writer.link(key)

    # -- ends -------------------------------------------------------------------------------------

    def _check_unchanged(self) -> None:
        if _stamp(os.fstat(self._descriptor)) != _stamp(self._stat):
            raise self._changed()

    def _changed(self) -> _Changed:
        return _Changed(f"{self._name} was changed while it was uploaded; upload it again.")

    async def _withdraw(self) -> None:
        """Delete what this call has put; what cannot be deleted stays, unreadable or unknown."""
        is_ours_alone = self._is_sealed or self._promises.keeps_names
        if not (self._promises.deletes and is_ours_alone):
            return
        for key in self._put_now:
            try:
                await self._carrier.delete(key)
            except P2PStoreError:
                return  # the error that brought us here is the one to be told


def _is_usable(key: str) -> bool:
    """Whether lists may name it, and a user may type it."""
    try:
        return parse_upload_key(key) == UploadKey(key, None)
    except P2PStoreError:
        return False


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino


def _sum(parts: list[bytes]) -> int:
    return sum(map(len, parts))
