"""PREVIEW: what adding a folder, or other settings, would do; nothing is read or touched."""

from __future__ import annotations

import os
import stat as stat_module
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from p2pstore.config import FolderSettings
from p2pstore.filesystems import is_remote
from p2pstore.folders.judging import treat
from p2pstore.policy import Treatment, marks_repository
from p2pstore.watch import Seen, Unread, scan


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


def preview(
    path: Path, settings: FolderSettings, placeholders: Container[bytes] = frozenset()
) -> Preview:
    """Scan and classify. `placeholders`: the names of those that the catalog has here."""
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
        if seen.path in placeholders:
            found.placeholders += 1
            continue
        treatment, reason = treat(seen, settings, repositories, siblings)
        if remote is not None and treatment is Treatment.REPLACE:
            treatment, reason = Treatment.PROTECT_ONLY, remote
        found.add(treatment, reason, seen.size)
    return found
