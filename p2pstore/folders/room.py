"""Room on the disks of the store and of the folders, `keep-free` left out (SAFETY, section 6)."""

from __future__ import annotations

import os
from pathlib import Path

from p2pstore.config import Config
from p2pstore.errors import NoRoom
from p2pstore.placement import Root
from p2pstore.policy import room_for_batch


class DiskRoom:
    def __init__(self, store: Path, config: Config) -> None:
        self._store = store
        self._config = config

    def free(self, path: Path | int) -> int:
        """Bytes that may still be written on the file system of `path`; negative when beyond."""
        _, free, keep_free = self._measure(path)
        return free - keep_free

    def measures(self) -> tuple[int, int, int]:
        """(total, free, keep-free) bytes of the store's disk."""
        return self._measure(self._store)

    def keep_free(self) -> int:
        """Bytes of the store's disk that are never written into."""
        _, _, keep_free = self.measures()
        return keep_free

    def lacks(self, root: Root, incoming: int) -> str | None:
        """A batch begins only when twice its size fits; why it may not, or None."""
        _, free, keep_free = self.measures()
        if not room_for_batch(incoming, free, keep_free):
            return f"the store's disk has less room than {2 * incoming} bytes above keep-free"
        if self.free(root.fd) < 0:
            return "the folder's disk is within keep-free"
        return None

    def check(self, root: Root, incoming: int) -> None:
        """NoRoom when bringing so much back would go into keep-free."""
        free = self.free(root.fd)
        if free < incoming:
            raise NoRoom(
                f"{incoming} bytes are needed on the disk of {root.path}, "
                f"{max(0, free)} are free above keep-free."
            )

    def _measure(self, path: Path | int) -> tuple[int, int, int]:
        usage = os.statvfs(path)
        total, free = usage.f_blocks * usage.f_frsize, usage.f_bavail * usage.f_frsize
        return total, free, self._config.keep_free_of(total)
