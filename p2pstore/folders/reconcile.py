"""RECONCILE: what lies in a folder, held against what the catalog has.

A look is cheap and decides nothing: it sorts what it finds into findings, and whoever owns the
folder waits until things are at rest. An error while listing never means "gone".
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat as stat_module
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from p2pstore.content import MAX_READ
from p2pstore.filesystems import mtime_ns_of
from p2pstore.placement import OWN, SUFFIX, Directories, Identity, Root
from p2pstore.policy import marks_repository
from p2pstore.store import Catalog, State, files
from p2pstore.watch import STAMP_SIZE, Seen, Unread, scan, stamp

_MARKS = b".~"  # how names of swap and lock files begin


class Gone(NamedTuple):
    """A path of the catalog under which nothing lies any more."""

    path: bytes  # logical
    state: str


@dataclass(slots=True)
class Findings:
    changed: list[Seen] = field(default_factory=list)  # regular files that the catalog has not so
    placeholders: list[Seen] = field(default_factory=list)  # small `.f` files not known so
    links: list[Seen] = field(default_factory=list)
    others: list[Seen] = field(default_factory=list)  # FIFO, socket, device
    gone: list[Gone] = field(default_factory=list)
    directories: list[bytes] = field(default_factory=list)
    repositories: set[bytes] = field(default_factory=set)  # directories with a repository's mark
    siblings: dict[bytes, set[bytes]] = field(default_factory=dict)  # lock files by directory
    unread: list[Unread] = field(default_factory=list)
    modified: list[bytes] = field(default_factory=list)  # known files that are not as they were


def disk_name(path: bytes, state: str) -> bytes:
    """Where a row's file lies: a placeholder under its path with `.f`."""
    return path + SUFFIX if state == State.PLACEHOLDER else path


_DOTS = {state.value: disk_name(b"", state) for state in State}
_STATES = {state.value: state.value.encode() for state in State}
Known = dict[bytes, bytes]  # by its name on the disk, a row's stamp and then its state


def _known(rows: Iterable[files.IdentityRow]) -> Known:
    return {
        path + _DOTS[state]: stamp(ino, size, mtime_ns, ctime_ns) + _STATES[state]
        for path, ino, size, mtime_ns, ctime_ns, state, _ in rows
    }


def _logical(name: bytes, row: bytes) -> Gone:
    """What the catalog calls a row that has this name on the disk: its path, and its state."""
    state = row[STAMP_SIZE:].decode()
    return Gone(name.removesuffix(SUFFIX) if state == State.PLACEHOLDER else name, state)


def look_at_all(
    root: Root,
    catalog: Catalog,
    folder: int,
    *,
    below: bytes = b"",
    findings: Findings | None = None,
) -> Findings:
    """A scan of the folder, or of the directory `below`; what is missing is told for it alone.

    Given empty `findings`, it fills these: their directories are good from the moment they appear.
    """
    known = catalog.view(lambda db: _known(files.identities(db, folder, below)))
    # Unchanged or not, these are told: that they are there matters to their neighbours.
    marked = {name: known.pop(name) for name in [*filter(_is_mark, known)]}
    findings = Findings() if findings is None else findings
    for seen in scan(root.fd, below=below, known=known):
        if isinstance(seen, Unread):
            findings.unread.append(seen)
        else:
            _sort(seen, marked if seen.path in marked else known, findings)
    _conclude(known | marked, findings)
    return findings


def look_at(root: Root, catalog: Catalog, folder: int, paths: Iterable[bytes]) -> Findings:
    """Single paths, as hints name them; a directory among them is scanned."""
    findings = Findings()
    plain: list[tuple[bytes, Seen | None]] = []
    with Directories(root) as directories:
        for path in paths:
            if not path or path == OWN or path.startswith(OWN + b"/"):
                continue
            try:
                seen = _stat(directories, path)
            except OSError as exc:
                findings.unread.append(Unread(path, exc))
                continue
            if seen is not None and stat_module.S_ISDIR(seen.mode):
                _merge(findings, look_at_all(root, catalog, folder, below=path))
            else:
                plain.append((path, seen))
    logical = {path for path, _ in plain} | {path.removesuffix(SUFFIX) for path, _ in plain}
    known = catalog.view(lambda db: _known(files.identities_at(db, folder, sorted(logical))))
    vanished: list[bytes] = []
    for path, seen in plain:
        if seen is not None:
            _sort(seen, known, findings)
        elif path not in known:
            vanished.append(path)
    for path in catalog.view(lambda db: files.with_some_below(db, folder, vanished)):
        # A directory that was here: what was below it is gone, or moved.
        _merge(findings, look_at_all(root, catalog, folder, below=path))
    touched = {path for path, _ in plain}
    _conclude({name: row for name, row in known.items() if name in touched}, findings)
    return findings


def still(root: Root, paths: Iterable[bytes]) -> dict[bytes, Seen]:
    """What lies at the paths now; where nothing does or nothing can be seen they are left out."""
    found: dict[bytes, Seen] = {}
    with Directories(root) as directories:
        for path in paths:
            with contextlib.suppress(OSError):
                if (seen := _stat(directories, path)) is not None:
                    found[path] = seen
    return found


def is_in_repository(path: bytes, repositories: Collection[bytes]) -> bool:
    if not repositories:
        return False
    if b"" in repositories:
        return True
    at = path.rfind(b"/")
    while at > 0:
        if path[:at] in repositories:
            return True
        at = path.rfind(b"/", 0, at)
    return False


def _sort(seen: Seen, known: Known, findings: Findings) -> None:
    path, ino, _, mode, _, _, size, mtime_ns, ctime_ns = seen
    if stat_module.S_ISDIR(mode):
        findings.directories.append(path)
        parent, _, name = path.rpartition(b"/")
        if marks_repository(name):
            findings.repositories.add(parent)
        return
    if _is_mark(path):
        parent, _, name = path.rpartition(b"/")
        findings.siblings.setdefault(parent, set()).add(name)
    row = known.pop(path, None)
    if row is not None:
        if row[:STAMP_SIZE] == stamp(ino, size, mtime_ns, ctime_ns):
            return
        findings.modified.append(_logical(path, row).path)
    if stat_module.S_ISREG(mode):
        if path.endswith(SUFFIX) and size <= MAX_READ:
            findings.placeholders.append(seen)
        else:
            findings.changed.append(seen)
    elif stat_module.S_ISLNK(mode):
        findings.links.append(seen)
    else:
        findings.others.append(seen)


def _is_mark(path: bytes) -> bool:
    return path[path.rfind(b"/") + 1] in _MARKS


def _conclude(known: Known, findings: Findings) -> None:
    """What is left of the known was not seen: gone, unless it lies where nothing could be read."""
    unread = [entry.path for entry in findings.unread]
    present = {seen.path for seen in findings.changed}
    for name, row in known.items():
        if any(not at or name == at or name.startswith(at + b"/") for at in unread):
            continue
        gone = _logical(name, row)
        if gone.state == State.PLACEHOLDER and gone.path in present:
            continue  # its placeholder gave way to a new file of that name
        findings.gone.append(gone)


def _stat(directories: Directories, path: bytes) -> Seen | None:
    try:
        directory, name = directories.parent(path)
        st = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.EXDEV):
            return None  # a directory on the way became a link: nothing of ours lies there
        raise
    return Seen(
        path,
        st.st_ino,
        st.st_dev,
        st.st_mode,
        st.st_nlink,
        st.st_uid,
        st.st_size,
        mtime_ns_of(st),
        st.st_ctime_ns,
    )


def identity_of(seen: Seen) -> Identity:
    return Identity(seen.ino, seen.size, seen.mtime_ns, seen.ctime_ns)


def _merge(into: Findings, other: Findings) -> None:
    into.changed += other.changed
    into.placeholders += other.placeholders
    into.links += other.links
    into.others += other.others
    into.gone += other.gone
    into.directories += other.directories
    into.repositories |= other.repositories
    for directory, names in other.siblings.items():
        into.siblings.setdefault(directory, set()).update(names)
    into.unread += other.unread
    into.modified += other.modified
