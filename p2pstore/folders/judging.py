"""JUDGE: what to do with a file at rest, from policy's rules and the catalog's row.

Synchronous and without effects: the folder carries out what comes back.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from p2pstore.config import FolderSettings
from p2pstore.folders.meeting import plain_row
from p2pstore.folders.reconcile import identity_of, is_in_repository
from p2pstore.folders.taking import Candidate
from p2pstore.policy import Entity, Treatment, classify, in_work_for
from p2pstore.store import FileRow, State
from p2pstore.watch import Seen

IN_WORK = "in work"


class Stays(NamedTuple):
    """A protected file that is as it was recorded, and is not replaced now."""

    row: FileRow
    reason: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for a whole folder while a batch is judged."""

    folder: int  # catalog row
    settings: FolderSettings
    repositories: Collection[bytes]
    siblings: Mapping[bytes, set[bytes]]  # lock files by directory
    volatile: str | None  # why nothing may be replaced on this store
    obstacle: str | None  # ... or in this folder
    wall: float


def treat(
    seen: Seen,
    settings: FolderSettings,
    repositories: Collection[bytes],
    siblings: Mapping[bytes, set[bytes]],
) -> tuple[Treatment, str]:
    """Policy's class of an entry, from what a scan of its folder saw."""
    entity = Entity(
        path=seen.path,
        mode=seen.mode,
        nlink=seen.nlink,
        uid=seen.uid,
        size=seen.size,
        mtime_ns=seen.mtime_ns,
    )
    return classify(
        entity,
        settings,
        our_uid=os.geteuid(),
        in_repository=is_in_repository(seen.path, repositories),
        siblings=siblings.get(seen.path.rpartition(b"/")[0], frozenset()),
    )


def judge(
    seen: Seen, row: FileRow | None, rules: Rules, *, forced: bool
) -> Candidate | FileRow | Stays:
    """Take it, record that it is skipped (a row), or leave it; `forced` overrides `keep` only."""
    settings = rules.settings
    treatment, reason = treat(seen, settings, rules.repositories, rules.siblings)
    if treatment is Treatment.SKIP:
        return plain_row(rules.folder, seen, State.SKIPPED, reason)
    replace = treatment is Treatment.REPLACE
    if replace and rules.volatile is not None:
        replace, reason = False, f"the store may not last: {rules.volatile}"
    if replace and rules.obstacle is not None:
        replace, reason = False, rules.obstacle
    if replace and (settings.pin or (row is not None and row.pinned)):
        replace, reason = False, "pinned"
    if replace and row is not None and not forced and _is_in_work(seen, row, rules):
        replace, reason = False, IN_WORK
    identity = identity_of(seen)
    recorded = None if row is None else (row.ino, row.size, row.mtime_ns, row.ctime_ns)
    if row is not None and row.state == State.PROTECTED and not replace and identity == recorded:
        return Stays(row, reason)
    return Candidate(seen.path, identity, replace, reason)


def _is_in_work(seen: Seen, row: FileRow, rules: Rules) -> bool:
    """Replaced before, or edited after it was protected: it stays `keep` after its last use."""
    if row.state == State.DELETED or not row.file_id:
        return False
    edited = row.state == State.PROTECTED and (seen.size, seen.mtime_ns) != (
        row.size,
        row.mtime_ns,
    )
    # A new file beside its own placeholder, or an edit that was just seen, is in use now.
    used_now = edited or row.state == State.PLACEHOLDER
    left = in_work_for(
        last_use=rules.wall if used_now else row.last_use / 1000,
        now=rules.wall,
        keep_s=rules.settings.keep_s,
        replaced_before=bool(row.replaced_before),
        edited_since_protected=edited or row.last_use > 0,
    )
    return left > 0
