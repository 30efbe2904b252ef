"""A LATE LIST: what a lost device knew beyond the list that its folder was recovered from.

Its owner has been at work in the folder since. So nothing that is here gives way to it but an
earlier version of the very file, and that only where nobody has the file itself:

    nothing at the path                  a placeholder, laid out later
    the same or a newer version          nothing; nor when the file has another name here, where its
                                         owner moved it to, or where this list was filed before
    its placeholder, an earlier version  the row becomes the line's; its `.f` changes when it is
                                         laid (`files.OLD_DOT`)
    deleted here                         nothing; but a version that nobody saw here comes back
    the very content, as an original     nothing; a newer version becomes the row's
    anything else                        it stays; the line's version lies beside it, under a
                                         conflict name

A deletion removes nothing. A link is made where nothing bears its name.

`is_news` and `fate_of` decide, `Late` acts. Before anything is written the recovery is open again:
the folder rests, and a file that is being brought back or taken at that moment waits for the next
reading, as does one whose row has changed since it was judged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from functools import partial
from itertools import chain, islice
from typing import NamedTuple, Protocol

from p2pstore.content import IndexLine, Manifest, Relation, compare_versions, merge_versions
from p2pstore.ids import FileId, NodeId
from p2pstore.maintenance.filing.disk import Disk
from p2pstore.maintenance.filing.filer import BATCH, Filer, Found
from p2pstore.maintenance.filing.rows import VERSION, Filed
from p2pstore.placement import SUFFIX, beside, marked_names
from p2pstore.store import Catalog, FileRow, State, files

TRIES = 3  # a look at the folder may change a row between judging and writing

Version = Mapping[NodeId, int]


class Lies(Enum):
    """What lies at the path of a line, seen from it."""

    NOTHING = "nothing, or a `.f` that cannot be read"
    EARLIER = "a `.f` of this very file, not a later one"
    LATER = "a `.f` of a later version: the scan meets it"
    SAME = "an original with the very content"
    OTHER = "something else"


class Fate(Enum):
    NOTHING = "it is here, or was given up"
    ROW = "the row at the path says it from now on"
    ASIDE = "it gets a name of its own"


def is_news(line: IndexLine, row: FileRow | None, elsewhere: Collection[bytes]) -> bool:
    """Whether a line may change anything; `elsewhere`: the versions of its file at other paths."""
    if line.kind != "file":
        return row is None and not elsewhere
    known = [row.version, *elsewhere] if row is not None else elsewhere
    return not any(_covers(version, line.version) for version in known)


def fate_of(found: Found, row: FileRow | None, lies: Lies) -> Fate:
    """What the line of a file becomes that is news."""
    if lies is Lies.LATER:
        return Fate.NOTHING
    if row is None or row.state == State.DELETED:
        return Fate.ASIDE if lies is Lies.OTHER else Fate.ROW
    manifest = found.opened.manifest
    is_newer = row.file_id == manifest.file_id and _is_older(row.version, found.version)
    if lies is Lies.SAME or row.hash == manifest.hash:
        return Fate.ROW if is_newer else Fate.NOTHING
    if row.state == State.PLACEHOLDER and is_newer and lies is not Lies.OTHER:
        return Fate.ROW
    return Fate.ASIDE


def _covers(version: bytes, other: Version) -> bool:
    relation = compare_versions(_decoded(version), other)
    return relation in (Relation.EQUAL, Relation.NEWER)


def _is_older(version: bytes, other: Version) -> bool:
    return compare_versions(_decoded(version), other) is Relation.OLDER


def _decoded(version: bytes) -> Version:
    return VERSION.decode(version) if version else {}


class Hand(Protocol):
    """Keeps a folder's own work and its filing apart. Each call may block."""

    def open_again(self) -> bool:
        """The recovery is open again, durably, and the folder rests; False when it may not now."""

    def take(self, paths: Sequence[bytes]) -> Collection[bytes]:
        """Those that nobody brings back or takes in now, and nobody will before `let_go`."""

    def let_go(self, paths: Collection[bytes]) -> None: ...


class _Known(NamedTuple):
    rows: dict[bytes, FileRow]  # by path
    elsewhere: dict[FileId, list[bytes]]  # versions, without those that this reading has filed


class _Judged(NamedTuple):
    line: IndexLine
    filed: Filed
    was: FileRow | None  # the row by which it was judged


class Late:
    """Files late lists of one folder, the same one as often as it is told to."""

    def __init__(self, filer: Filer, catalog: Catalog, folder: int, disk: Disk, hand: Hand) -> None:
        self.files = 0  # that came, links among them
        self._filer = filer
        self._catalog = catalog
        self._folder = folder
        self._disk = disk
        self._hand = hand
        self._came: set[bytes] = set()  # paths that this reading has filed
        self._names: set[bytes] = set()  # that the lines in hand have, or were given

    def read(self, manifest: Manifest) -> bool:
        """File what the list says; False when it must be read again."""
        before = self._filer.unread
        if self._disk.root is None:
            self._filer.miss()  # the folder is not there: who knows what lies in it?
            return False
        self._came.clear()
        lines = self._filer.lines(manifest)
        while batch := list(islice(lines, BATCH)):
            self._names = {line.path for line in batch}
            for _ in range(TRIES):
                batch = self._batch(batch)
            self._filer.miss(len(batch))
        return self._filer.unread == before

    def _batch(self, lines: Sequence[IndexLine]) -> list[IndexLine]:
        """Those that must be judged anew: somebody was at work on what they are about."""
        if not lines:
            return []
        known = self._catalog.view(partial(self._look, lines))
        news = [line for line in lines if is_news(line, *self._of(line, known))]
        raws = self._filer.manifests(news)
        judged = [self._judge(line, raws.get(line.path), known) for line in news]
        return self._write([one for one in judged if one is not None])

    # -- what is known ----------------------------------------------------------------------------

    def _look(self, lines: Sequence[IndexLine], db: sqlite3.Connection) -> _Known:
        rows = files.get_many(db, self._folder, [line.path for line in lines])
        unknown = [
            line for line in lines if line.kind != "link" and is_news(line, rows.get(line.path), ())
        ]
        elsewhere: dict[FileId, list[bytes]] = {}
        for file_id, path, version in files.versions_of(
            db, self._folder, list({line.file_id for line in unknown})
        ):
            if path not in self._came:
                elsewhere.setdefault(file_id, []).append(version)
        return _Known(rows, elsewhere)

    def _of(self, line: IndexLine, known: _Known) -> tuple[FileRow | None, Collection[bytes]]:
        return known.rows.get(line.path), known.elsewhere.get(line.file_id, ())

    def _lies(self, found: Found) -> Lies:
        disk, path = self._disk, found.path
        if disk.blocks(path) or path in disk.links:
            return Lies.OTHER
        manifest = found.opened.manifest
        original = disk.original(path)
        if original is not None:
            chunks = self._filer.comparing.compare(disk, original, manifest)
            return Lies.OTHER if chunks is None else Lies.SAME
        dot = self._filer.beside(disk, found)
        if dot is None:
            return Lies.NOTHING
        relation = compare_versions(dot.version, found.version)
        if dot.opened.manifest.file_id != manifest.file_id or relation is Relation.CONFLICT:
            return Lies.OTHER
        return Lies.LATER if relation is Relation.NEWER else Lies.EARLIER

    # -- what it becomes --------------------------------------------------------------------------

    def _judge(self, line: IndexLine, raw: bytes | None, known: _Known) -> _Judged | None:
        if line.kind != "file":
            names = (line.path, line.path + SUFFIX)
            if not all(map(self._disk.is_free, names)):
                return None
            return _Judged(line, self._filer.mark(self._folder, self._disk, line, raw), None)
        found = self._filer.found(line, raw)
        if found is None:
            self._filer.miss()
            return None
        row, lies = known.rows.get(line.path), self._lies(found)
        fate = fate_of(found, row, lies)
        before = self._filer.unread
        if fate is Fate.NOTHING:
            return None
        if fate is Fate.ASIDE:
            path = self._aside(found.path)
            if path is None:
                self._filer.miss()
                return None
            judged = _Judged(line, self._file(found._replace(path=path)), None)
        else:
            judged = _Judged(line, self._of_row(found, row), row)
        # Without the lists of its blocks nobody could bring it back.
        return judged if self._filer.unread == before else None

    def _of_row(self, found: Found, row: FileRow | None) -> Filed:
        if row is not None and row.state == State.DELETED:
            # Newer than the deletion, too, which others may have heard of.
            version = merge_versions(found.version, _decoded(row.version))
            found = found._replace(version=version)
        filed = self._file(found)
        new = filed.row
        if row is not None and row.state == State.PLACEHOLDER:
            new = new._replace(pinned=row.pinned)
            if new.state == State.PLACEHOLDER:
                # Whatever was seen there: a `.f` of the earlier version may have been laid since.
                new = new._replace(reason=files.OLD_DOT)
        elif row is not None and row.state != State.DELETED:
            # The original stays what it is, and as it was recorded.
            new = row._replace(
                version=new.version,
                hash=new.hash,
                file_size=new.file_size,
                manifest_ref=new.manifest_ref,
            )
        return filed._replace(row=new)

    def _file(self, found: Found) -> Filed:
        return self._filer.file(self._folder, self._disk, found)

    def _aside(self, path: bytes) -> bytes | None:
        """A free name beside the path; in the root where its directory is none any more."""
        name = path.rpartition(b"/")[2]
        names: Iterator[bytes] = marked_names(name, b"conflict")
        if self._disk.blocks(path):
            path, names = name, chain((name,), names)
        for free in (beside(path, name) for name in names):
            if self._is_free(free):
                self._names.add(free)
                return free
        return None

    def _is_free(self, path: bytes) -> bool:
        return (
            path not in self._names
            and self._disk.is_free(path)
            and self._disk.is_free(path + SUFFIX)
            and self._catalog.view(lambda db: files.get(db, self._folder, path)) is None
        )

    # -- acting -----------------------------------------------------------------------------------

    def _write(self, judged: Sequence[_Judged]) -> list[IndexLine]:
        """Those that were not written."""
        is_to_lay = any(one.filed.row.state != State.DELETED for one in judged)
        if is_to_lay and not self._hand.open_again():
            return [one.line for one in judged]
        taken = self._hand.take([one.filed.row.path for one in judged])
        try:
            free = [(one.filed, one.was) for one in judged if one.filed.row.path in taken]
            written = self._filer.rows.write_as_judged(free)
        finally:
            self._hand.let_go(taken)
        came = {one.row.path for one in written}
        self._came |= came
        self.files += sum(one.row.state != State.DELETED for one in written)
        return [one.line for one in judged if one.filed.row.path not in came]
