"""PREVIEW: what adding a folder, or other settings, would do; nothing is touched.

Nothing is read but the first bytes of `.f` files, in a folder that is not watched yet: in a watched
one somebody would seem to open them, and the catalog knows them anyway.
"""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from p2pstore.config import FolderSettings
from p2pstore.content import looks_like_manifest
from p2pstore.filesystems import is_remote
from p2pstore.folders.judging import treat
from p2pstore.placement import SUFFIX, read_placeholder
from p2pstore.policy import Treatment, marks_repository
from p2pstore.syscalls import AT_FDCWD
from p2pstore.watch import Seen, Unread, scan

OPENING = 64  # bytes that tell a manifest


@dataclass(slots=True)
class Preview:
    """Sizes in bytes; of each class and reason (files, bytes)."""

    files: int = 0
    bytes: int = 0
    placeholders: int = 0  # ours already, not among the files
    classes: dict[Treatment, dict[str, list[int]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, treatment: Treatment, reason: str, size: int) -> None:
        self.files += 1
        self.bytes += size
        counts = self.classes.setdefault(treatment, {}).setdefault(reason, [0, 0])
        counts[0] += 1
        counts[1] += size


def preview(path: Path, settings: FolderSettings, known: Container[bytes] | None = None) -> Preview:
    """Scan and classify. `known`: the names of the placeholders of a folder that is watched."""
    found = Preview()
    entries: list[Seen] = []
    repositories: set[bytes] = set()
    siblings: dict[bytes, set[bytes]] = {}
    for seen in scan(path):
        if isinstance(seen, Unread):
            found.notes.append(f"{os.fsdecode(seen.path)} cannot be read ({seen.error.strerror})")
            continue
        parent, _, name = seen.path.rpartition(b"/")
        if marks_repository(name):
            repositories.add(parent)
        if name[:1] in (b".", b"~"):
            siblings.setdefault(parent, set()).add(name)
        if not stat_module.S_ISDIR(seen.mode):
            entries.append(seen)
    remote = is_remote(path)
    for seen in entries:
        if _is_placeholder(path, seen) if known is None else seen.path in known:
            found.placeholders += 1
            continue
        treatment, reason = treat(seen, settings, repositories, siblings)
        if remote is not None and treatment is Treatment.REPLACE:
            treatment, reason = Treatment.PROTECT_ONLY, remote
        found.add(treatment, reason, seen.size)
    return found


def _is_placeholder(folder: Path, seen: Seen) -> bool:
    if not stat_module.S_ISREG(seen.mode) or not seen.path.endswith(SUFFIX):
        return False
    name = os.fsencode(folder) + b"/" + seen.path
    try:
        return looks_like_manifest(read_placeholder(AT_FDCWD, name, OPENING))
    except OSError:
        return False  # gone, or unreadable: looking at it will tell
