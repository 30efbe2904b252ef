"""Ways in which the code could be wrong, planted by name: the harness must notice each of them.

A test that cannot fail is a defect; so is a fault harness. Each mutant takes one step of SAFETY.md
out of the running program.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from p2pstore import placement
from p2pstore.folders import emptying, recovery
from p2pstore.ingest import pipeline
from p2pstore.maintenance import Evictor
from p2pstore.placement import root as placement_root
from p2pstore.policy import Confirmation
from p2pstore.store import Catalog, disk

# The door has functions of the same names.
arrive, claim, replace, trash = (
    import_module(f"p2pstore.placement.{name}") for name in ("arrive", "claim", "replace", "trash")
)

LOCK_S = 600.0  # what a holder promises

Patch = Callable[[Any, str, Any], None]  # setattr, or monkeypatch's


def _name_before_content(patch: Patch) -> None:
    """What comes back is written under its name."""
    beginning = arrive.Arrival.begin

    def begin(self: Any) -> None:
        beginning(self)
        with placement.Directories(self._root) as directories:
            directory, name = directories.made_parent(self.landing.path)
            self._begun.link(directories, directory, name)

    def named(self: Any, directories: Any) -> Any:
        return self.landing.path, placement.Identity.of(arrive.os.fstat(self._fd))

    patch(arrive.Arrival, "begin", begin)
    patch(arrive.Arrival, "name", named)


def _placeholder_unlinked_first(patch: Patch) -> None:
    """Hydrate takes the `.f` away before the original has its name."""
    naming = arrive.Arrival.name

    def named(self: Any, directories: Any) -> Any:
        directory, name = directories.parent(self.landing.placeholder)
        arrive.os.unlink(name, dir_fd=directory)
        return naming(self, directories)

    patch(arrive.Arrival, "name", named)


def _recovery_unlinks_unknown(patch: Patch) -> None:
    """Files in trash that the journal does not name are removed instead of brought back."""

    def unknown(self: Any, known: Any) -> list[Any]:
        for batch, path, _ in list(placement.listing(self._root)):
            if (batch, path) not in known:
                with placement.Directories(self._root) as directories:
                    directory, name = directories.parent(replace.trash_path(batch, path))
                    trash.os.unlink(name, dir_fd=directory)
        return []

    patch(recovery.Recovery, "_unknown", unknown)
    _recovery_ignores_commit(patch)


def _recovery_ignores_commit(patch: Patch) -> None:
    """A batch that was being renamed is forgotten at the next start."""
    patch(recovery.Recovery, "_finish", lambda self, body: [])


def _no_sync_of_the_folder(patch: Patch) -> None:
    """Neither contents nor names of placeholders are written back before the original goes."""
    patch(placement_root, "syncfs", lambda fd: None)


def _no_fsync_of_bundles(patch: Patch) -> None:
    """A bundle is believed to be durable as soon as it has its name.

    Dropping the cache before the read-back starts a write-back, which would cover for it here.
    """
    patch(disk.DiskBundles, "drop_cache", lambda self, bundle_id: None)
    patch(disk, "sync_directory", lambda path: None)
    patch(disk.os, "fsync", lambda fd: None)


def _catalog_not_synchronous(patch: Patch) -> None:
    """The power may take back what the catalog called committed."""
    beginning = Catalog._begin

    def begin(self: Any) -> Any:
        self._db.execute("PRAGMA synchronous=NORMAL")
        return beginning(self)

    patch(Catalog, "_begin", begin)


def _trash_without_durability(patch: Patch) -> None:
    """Originals go although their bundles are not here."""
    patch(emptying._Judge, "of", lambda self, bundles: emptying._Verdict.GO)


def _no_lease_check_after_rename(patch: Patch) -> None:
    """Whoever opened the file just before the rename writes into the trash."""

    def moved(self: Any, rename: Any, undo: Any) -> bool:
        with self._lock:
            rename()
            self.phase = claim.Phase.RENAMED
            return True

    patch(claim.Claim, "move", moved)


def _no_read_back(patch: Patch) -> None:
    """What was written is believed."""
    patch(pipeline.Ingest, "_read_back", lambda *args: None)


def _trash_not_hashed_again(patch: Patch) -> None:
    """What was put into trash is believed to lie there still."""

    def discarded(root: Any, directories: Any, batch: str, item: Any, keeper: Any) -> Any:
        directory, name = directories.parent(replace.trash_path(batch, item.path))
        trash.os.unlink(name, dir_fd=directory)
        return trash.Fate(item.path, True, b"", False)

    patch(trash, "_discard", discarded)


def _evict_without_proofs(patch: Patch) -> None:
    """What the catalog remembers of holders is taken for what they say now, under their lock."""

    async def confirm(self: Any, attempt: Any) -> None:
        world, known = self._known(attempt.row)
        now = self._now(attempt)
        attempt.confirmations += [
            Confirmation(world.holders[copy.holder], now, now, now + LOCK_S) for copy in known
        ]

    patch(Evictor, "_confirm", confirm)


MUTANTS: dict[str, Callable[[Patch], None]] = {
    "name before content": _name_before_content,
    "placeholder unlinked first": _placeholder_unlinked_first,
    "recovery unlinks unknown": _recovery_unlinks_unknown,
    "recovery ignores commit": _recovery_ignores_commit,
    "no sync of the folder": _no_sync_of_the_folder,
    "no fsync of bundles": _no_fsync_of_bundles,
    "catalog not synchronous": _catalog_not_synchronous,
    "trash without durability": _trash_without_durability,
    "no lease check after rename": _no_lease_check_after_rename,
    "no read back": _no_read_back,
    "trash not hashed again": _trash_not_hashed_again,
    "evict without proofs": _evict_without_proofs,
}
