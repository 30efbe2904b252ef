"""What lies in a watched folder: regular files, links, placeholders, looked at once."""

from __future__ import annotations

import errno
import logging
import os
import stat as stat_module
from collections.abc import Callable
from pathlib import Path

from p2pstore.content import MAX_READ, looks_like_manifest
from p2pstore.errors import Unavailable
from p2pstore.home import WatchedFolder
from p2pstore.ids import FolderId
from p2pstore.placement import SUFFIX, Root, trashed_placeholders
from p2pstore.watch import Seen, Unread, scan

log = logging.getLogger(__name__)

NO_IDENTITY = Seen(b"", 0, 0, 0, 0, 0, 0, 0, 0)  # of a path at which nothing lies


class Disk:
    """What lies in one watched folder now. `root` is None when the folder is not there.

    `reads` hears the whole name of each placeholder that is about to be read here: where opens are
    listened to, nobody asks for it.
    """

    def __init__(
        self, entry: WatchedFolder, reads: Callable[[bytes], None] = lambda name: None
    ) -> None:
        self._reads = reads
        self._path = os.fsencode(entry.path) + b"/"
        self.root: Root | None = None
        self.seen: dict[bytes, Seen] = {}  # regular files
        self.links: dict[bytes, Seen] = {}
        path, folder_id = Path(entry.path), FolderId(entry.folder_id)
        if Root.marker(path) != folder_id.hex():
            return
        try:
            self.root = Root(path, folder_id)
            for seen in scan(self.root.fd):
                if isinstance(seen, Unread):
                    log.warning(
                        "%s/%s cannot be read: %s", path, os.fsdecode(seen.path), seen.error
                    )
                elif stat_module.S_ISREG(seen.mode):
                    self.seen[seen.path] = seen
                elif stat_module.S_ISLNK(seen.mode):
                    self.links[seen.path] = seen
        except (Unavailable, OSError) as exc:
            log.warning("%s cannot be looked at: %s", path, exc)

    def close(self) -> None:
        if self.root is not None:
            self.root.close()
            self.root = None

    def open(self, path: bytes) -> int:
        if self.root is None:
            raise FileNotFoundError(path)
        return self.root.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)

    def link(self, path: bytes) -> tuple[Seen, bytes] | None:
        """A symbolic link at the path, and what it says."""
        seen = self.links.get(path)
        if seen is None or self.root is None:
            return None
        try:
            fd = self.root.open(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return seen, os.readlink(b"", dir_fd=fd)
        except OSError:
            return None
        finally:
            os.close(fd)

    def start_of(self, path: bytes, size: int) -> bytes:
        """The first bytes; empty when it cannot be read."""
        try:
            fd = self.open(path)
        except OSError:
            return b""
        try:
            return os.pread(fd, size, 0)
        except OSError:
            return b""
        finally:
            os.close(fd)

    def placeholder(self, path: bytes) -> bytes | None:
        """What lies at `path` + `.f`, when it begins as a placeholder does."""
        seen = self.seen.get(path + SUFFIX)
        if seen is None or seen.size > MAX_READ:
            return None
        self._reads(self._path + path + SUFFIX)
        raw = self.start_of(path + SUFFIX, MAX_READ + 1)
        return raw if looks_like_manifest(raw) else None

    def trashed(self) -> dict[bytes, bytes]:
        """Path -> the `.f` in the folder's trash that it was brought back from last."""
        if self.root is None:
            return {}
        try:
            return trashed_placeholders(self.root)
        except OSError as exc:
            log.warning("The trash of %s cannot be looked at: %s", self.root.path, exc)
            return {}

    def original(self, path: bytes) -> Seen | None:
        """A regular file under the very name, unless it is a placeholder itself."""
        seen = self.seen.get(path)
        if seen is None or (seen.size <= MAX_READ and looks_like_manifest(self.start_of(path, 64))):
            return None
        return seen

    def blocks(self, path: bytes) -> bool:
        """Whether something on the way to the path is no directory, as it is at this moment."""
        try:
            self._look(path)
        except OSError as exc:
            return exc.errno in (errno.ENOTDIR, errno.ELOOP)
        return False

    def is_free(self, path: bytes) -> bool:
        """Whether nothing whatever bears the name at this moment, or is in its way."""
        try:
            self._look(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return False

    def _look(self, path: bytes) -> None:
        if self.root is not None:
            os.close(self.root.open(path, os.O_PATH | os.O_NOFOLLOW))

    def is_there(self, path: bytes) -> bool:
        """Under its own name or as a placeholder."""
        return path in self.seen or path + SUFFIX in self.seen
