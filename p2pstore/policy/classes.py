"""What is taken and what is left alone (SAFETY, 6), with the reason in short words for `status`.

Skipped: never read. Protect only: stored when at rest, never replaced. Replaced: the rest. Links
are recorded and never followed. A rule that only guesses from the name (databases, repositories)
gives way to `--replace`; one that says that replacing would not be exact or not possible (another
owner, hard links, set-uid, no room for `.f`) never does, nor does what the owner asked to keep.

Patterns of the owner: `*`, `?` and `[...]` do not cross a slash, `**` stands for any number of
directories. Without a slash a pattern is compared with every part of the path (`*.iso`, `Cache`),
with one it begins at the folder's root (`/Work/tmp`, `Photos/**/raw`). What matches a directory
matches everything beneath it.
"""

from __future__ import annotations

import fnmatch
import re
import stat
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from functools import lru_cache
from os import fsdecode
from pathlib import PurePath
from typing import NamedTuple, Protocol

NAME_MAX = 255  # bytes, on every file system that we replace on
PATH_MOST = 4_000  # of Linux's 4,095: in trash it has some forty more before it, and `.f` behind
OPEN_IN_EDITOR = "open in an editor"
SUFFIX = b".f"

# Skipped means that no copy is ever made: this list does not grow by guesses.
_SKIPPED = re.compile(
    rb"""(?xis)
      .*\.(?:part|crdownload|tmp)
    | \..*\.sw[a-p]                        # Vim
    | \.~lock\..*\#   | ~\$.*   | \.\#.*   # LibreOffice, Word, Emacs
    | \.ds_store | thumbs\.db | desktop\.ini
    | \.fuse_hidden.* | \.nfs[0-9a-f]{16,} # deleted, still open somewhere
    """
)
_DATABASES = re.compile(
    rb"""(?xis)
      .*\.sqlite[^/]* | .*\.db[0-9]? | .*-(?:wal|shm|journal)
    | .*\.(?:mdb|accdb|ibd|frm|myd|myi|fdb|gdb|realm|kdbx|pst|ost|lrcat|lrcat-data)
    """
)
_IMAGES = re.compile(rb"(?is).*\.(?:qcow2?|vmdk|vdi|vhdx?|hds|vmem|vmsn|img|sparseimage|hc|luks)")
_REPOSITORIES = frozenset({b".git", b".hg", b".svn", b".bzr", b"CVS"})
_ENVIRONMENTS = frozenset({b"node_modules", b".venv", b"__pypackages__"})
_LIBRARIES = (
    b".photoslibrary",
    b".photolibrary",
    b".aplibrary",
    b".musiclibrary",
    b".fcpbundle",
    b".imovielibrary",
    b".lrdata",
    b".sparsebundle",
)
_SYSTEM_TREES = frozenset(
    ["/bin", "/boot", "/etc", "/lib", "/lib64", "/proc", "/sbin", "/sys", "/usr"]
)
_SYSTEM = _SYSTEM_TREES | {"/dev", "/run", "/var"}  # what is mounted or kept below may be a user's
_OTHER_SYNC_TOOLS = (".dropbox*", ".stfolder", ".nextcloudsync.log", ".sync_*.db")


class Treatment(StrEnum):
    REPLACE = "replace"
    PROTECT_ONLY = "protect-only"
    SKIP = "skip"
    LINK = "link"


class Entity(NamedTuple):
    """A directory entry, as lstat tells of it. `path` is relative to the folder's root."""

    path: bytes
    mode: int
    nlink: int
    uid: int
    size: int
    mtime_ns: int
    immutable: bool = False


class Settings(Protocol):
    """What is asked of a folder's settings."""

    @property
    def exclude(self) -> Sequence[str]: ...
    @property
    def protect_only(self) -> Sequence[str]: ...
    @property
    def replace(self) -> Sequence[str]: ...
    @property
    def min_size(self) -> int: ...
    @property
    def pin(self) -> bool: ...


def classify(
    entity: Entity,
    settings: Settings,
    *,
    our_uid: int,
    in_repository: bool,
    siblings: AbstractSet[bytes],
) -> tuple[Treatment, str]:
    """How an entry is treated, and why; nothing needs a reason to be replaced.

    `in_repository`: some directory above it, up to the folder's root, has `.git`, `.hg` or `.svn`
    in it. `siblings` are the names in its directory.
    """
    reason = _why_skipped(entity, settings)
    if reason:
        return Treatment.SKIP, reason
    if stat.S_ISLNK(entity.mode):
        return Treatment.LINK, "a link"
    reason = (
        _why_not_possible(entity, our_uid)
        or _why_not_wanted(entity, settings)
        or _why_not_now(entity, siblings)
    )
    if not reason:
        reason = _why_not_guessed(entity, in_repository)
        if reason and _matches(settings.replace, entity.path):
            reason = ""
    return (Treatment.PROTECT_ONLY, reason) if reason else (Treatment.REPLACE, "")


def is_own(path: bytes) -> bool:
    """Whether the path lies in what this program keeps inside a watched folder."""
    return b".p2pstore" in path and b".p2pstore" in path.split(b"/")


def marks_repository(name: bytes) -> bool:
    """Whether a directory with an entry of this name is the root of a repository."""
    return name in (b".git", b".hg", b".svn")


def _why_skipped(entity: Entity, settings: Settings) -> str:
    if is_own(entity.path):
        return "p2pstore's own"
    if not (stat.S_ISREG(entity.mode) or stat.S_ISLNK(entity.mode)):
        return "no regular file"
    if _SKIPPED.fullmatch(_name(entity.path)):
        return "temporary or system file"
    if _matches(settings.exclude, entity.path):
        return "excluded"
    return ""


def _why_not_possible(entity: Entity, our_uid: int) -> str:
    if entity.uid != our_uid:
        return "another owner"
    if entity.nlink > 1:
        return "hard link"
    if entity.immutable:
        return "immutable"
    if entity.mode & (stat.S_ISUID | stat.S_ISGID):
        return "set-uid"
    if len(_name(entity.path)) + len(SUFFIX) > NAME_MAX:
        return "name too long for .f"
    if len(entity.path) > PATH_MOST:
        return "path too long for the trash"
    return ""


def _why_not_wanted(entity: Entity, settings: Settings) -> str:
    if settings.pin:
        return "pinned"
    if _matches(settings.protect_only, entity.path):
        return "protect-only"
    if entity.size < settings.min_size:
        return "smaller than min-size"
    return ""


def _why_not_now(entity: Entity, siblings: AbstractSet[bytes]) -> str:
    if not siblings:
        return ""
    return OPEN_IN_EDITOR if editor_marks(_name(entity.path)) & siblings else ""


def _why_not_guessed(entity: Entity, in_repository: bool) -> str:
    above, _, name = entity.path.rpartition(b"/")
    if in_repository or name in _REPOSITORIES:
        return "in a repository"
    if reason := _why_not_below(above):
        return reason
    if _DATABASES.fullmatch(name):
        return "database"
    if _IMAGES.fullmatch(name):
        return "disk image"
    return ""


@lru_cache(maxsize=4096)  # a directory's files are judged one after another
def _why_not_below(directory: bytes) -> str:
    """What the names of a directory, and of those above it, say about every file in it."""
    parts = directory.split(b"/")
    if not _REPOSITORIES.isdisjoint(parts):
        return "in a repository"
    if not _ENVIRONMENTS.isdisjoint(parts):
        return "installed packages"
    if any(part.lower().endswith(_LIBRARIES) for part in parts):
        return "in a media library"
    return ""


def editor_marks(name: bytes) -> frozenset[bytes]:
    """Names of siblings that say that an editor has this file open."""
    return frozenset(
        {
            # Vim puts no second dot before a name that begins with one.
            (b"" if name.startswith(b".") else b".") + name + b".swp",
            b".~lock." + name + b"#",
            b"~$" + name,
            b"~$" + name[2:],  # Word overwrites two characters of a longer name
            b".#" + name,
        }
    )


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


# -- patterns of the owner ------------------------------------------------------------------------


def _matches(patterns: Iterable[str], path: bytes) -> bool:
    parts = None
    for pattern in patterns:
        if parts is None:
            parts = fsdecode(path).split("/")
        if matches(pattern, parts):
            return True
    return False


def matches(pattern: str, parts: Sequence[str]) -> bool:
    """Whether the pattern matches the path of these parts or a directory above it."""
    pattern_parts = [part for part in pattern.split("/") if part]
    if not pattern_parts:
        return False
    if "/" not in pattern.rstrip("/"):
        return any(_part(pattern_parts[0]).match(part) for part in parts)
    # `reached` holds how many parts of the pattern the path read so far can have used up. `**` may
    # stay for any number of parts, none included.
    reached = _over_stars({0}, pattern_parts)
    for part in parts:
        following = set()
        for place in reached:
            wanted = pattern_parts[place]
            if wanted == "**":
                following |= {place, place + 1}
            elif _part(wanted).match(part):
                following.add(place + 1)
        reached = _over_stars(following, pattern_parts)
        if len(pattern_parts) in reached:
            return True
    return False


def _over_stars(places: set[int], pattern_parts: Sequence[str]) -> set[int]:
    reached = set(places)
    for place in sorted(places):
        while place < len(pattern_parts) and pattern_parts[place] == "**":
            # At the end `**` is everything beneath, which takes at least one part more.
            if place == len(pattern_parts) - 1:
                break
            place += 1
            reached.add(place)
    return reached


@lru_cache(maxsize=1024)
def _part(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


# -- whole folders ---------------------------------------------------------------------------------


def refuse_folder(
    path: PurePath,
    home_dir: PurePath,
    p2p_home: PurePath,
    watched: Sequence[PurePath],
    marks: AbstractSet[str],
) -> str | None:
    """Why a folder must not be watched; None when it may. All paths absolute and resolved.

    `marks` are the names in its root; with `--force` the caller passes none. A folder that is
    watched already is not refused: its settings change.
    """
    text = str(path)
    if path.parent == path:
        return "It is the root of the file system."
    if text in _SYSTEM or any(str(above) in _SYSTEM_TREES for above in path.parents):
        return "It belongs to the operating system."
    if _contains(path, home_dir):
        return "It is the home directory itself. Choose a folder in it."
    if _contains(path, p2p_home):
        return "p2pstore keeps its own store in it."
    if _contains(p2p_home, path):
        return "It lies in p2pstore's own store."
    for other in watched:
        if other != path and _contains(other, path):
            return f"It lies in the watched folder {other}."
        if other != path and _contains(path, other):
            return f"The watched folder {other} lies in it."
    for pattern in _OTHER_SYNC_TOOLS:
        found = sorted(name for name in marks if fnmatch.fnmatchcase(name, pattern))
        if found:
            return f"Another program keeps it in sync ({found[0]}). To watch it anyway: --force"
    return None


def refuse_carrier(path: PurePath, p2p_home: PurePath, watched: Sequence[PurePath]) -> str | None:
    """Why a directory must not be a carrier; None when it may. All paths absolute and resolved."""
    if _contains(p2p_home, path):
        return "It lies in p2pstore's own store."
    for folder in watched:
        if _contains(folder, path):
            return f"It lies in the watched folder {folder}."
    return None


def _contains(outer: PurePath, inner: PurePath) -> bool:
    return inner == outer or outer in inner.parents
