"""Ways in which the code could be wrong, planted by name: the harness must notice each of them.

A test that cannot fail is a defect; so is a fault harness. Each mutant takes one step of SAFETY.md
out of the running program.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from p2pstore import placement
from p2pstore.folders import emptying, recovery, taking
from p2pstore.ingest import pipeline

# The door has functions of the same names.
arrive, claim, replace, trash = (
    import_module(f"p2pstore.placement.{name}") for name in ("arrive", "claim", "replace", "trash")
)


def plant(name: str) -> None:
    """Make the program wrong in this way; nothing happens for the empty name."""
    if name:
        MUTANTS[name]()


def _no_journal_commit() -> None:
    """Originals are renamed away before the journal says so."""
    original = taking.replace

    def replaced(root: Any, batch: str, placings: Any, commit: Any) -> Any:
        done = original(root, batch, placings, lambda paths: None)
        commit([p.claim.path for p in placings])
        return done

    taking.replace = replaced  # type: ignore[attr-defined]


def _original_before_placeholder() -> None:
    """The original leaves before its `.f` has a name, and recovery does not write it."""
    names = replace._give_names

    def given(root: Any, directories: Any, batch: str, placings: Any, results: Any) -> Any:
        for placing in placings:
            path = placing.claim.path
            trashed, last = directories.made_parent(replace.trash_path(batch, path))
            directory, name = directories.parent(path)
            replace.rename_noreplace(directory, name, trashed, last)
            root.sync()
            replace.rename_noreplace(trashed, last, directory, name)
        return names(root, directories, batch, placings, results)

    replace._give_names = given  # type: ignore[assignment]


def _placeholder_unlinked_first() -> None:
    """Hydrate takes the `.f` away before the original has its name."""

    def named(self: Any, directories: Any) -> Any:
        directory, name = directories.parent(self.landing.placeholder)
        arrive.os.unlink(name, dir_fd=directory)
        return arrive_name(self, directories)

    arrive_name = arrive.Arrival.name
    arrive.Arrival.name = named  # type: ignore[method-assign]


def _recovery_unlinks_unknown() -> None:
    """Files in trash that the journal does not name are removed instead of brought back."""

    def unknown(self: Any, known: Any) -> list[Any]:
        for batch, path, _ in list(placement.listing(self._root)):
            if (batch, path) not in known:
                directories = placement.Directories(self._root)
                with directories:
                    directory, name = directories.parent(replace.trash_path(batch, path))
                    trash.os.unlink(name, dir_fd=directory)
        return []

    recovery.Recovery._unknown = unknown  # type: ignore[method-assign]


def _recovery_ignores_commit() -> None:
    """A batch that was being renamed is forgotten at the next start."""
    recovery.Recovery._finish = lambda self, body: []  # type: ignore[method-assign]


def _trash_without_durability() -> None:
    """Originals go although their bundles are not here."""
    emptying._Judge.of = lambda self, bundles: emptying._Verdict.GO  # type: ignore[method-assign]


def _no_lease_check_after_rename() -> None:
    """Whoever opened the file just before the rename writes into the trash."""

    def moved(self: Any, rename: Any, undo: Any) -> bool:
        with self._lock:
            rename()
            self._undo = lambda: None
            self.phase = claim.Phase.RENAMED
            return True

    claim.Claim.move = moved  # type: ignore[method-assign]


def _no_read_back() -> None:
    """What was written is believed."""
    pipeline.Ingest._read_back = lambda *args: None  # type: ignore[assignment, method-assign]


def _trash_not_hashed_again() -> None:
    """After a restart the content in trash is not looked at."""
    trash.content_hash = lambda fd: _HASH.get(fd, b"")  # type: ignore[assignment]
    held = trash._discard

    def discarded(root: Any, directories: Any, batch: str, item: Any, keeper: Any) -> Any:
        trash.content_hash = lambda fd: item.hash  # type: ignore[assignment]
        return held(root, directories, batch, item, keeper)

    trash._discard = discarded  # type: ignore[assignment]


_HASH: dict[int, bytes] = {}

MUTANTS: dict[str, Callable[[], None]] = {
    "no journal commit": _no_journal_commit,
    "original before placeholder": _original_before_placeholder,
    "placeholder unlinked first": _placeholder_unlinked_first,
    "recovery unlinks unknown": _recovery_unlinks_unknown,
    "recovery ignores commit": _recovery_ignores_commit,
    "trash without durability": _trash_without_durability,
    "no lease check after rename": _no_lease_check_after_rename,
    "no read back": _no_read_back,
    "trash not hashed again": _trash_not_hashed_again,
}
