"""The watched folders of a running node, and which of them a path lies in."""

from __future__ import annotations

import os
from pathlib import Path

from p2pstore.errors import UsageError
from p2pstore.folders.folder import Folder
from p2pstore.ids import FolderId


class Registry:
    def __init__(self) -> None:
        self._folders: dict[FolderId, Folder] = {}

    def put(self, folder: Folder) -> None:
        self._folders[folder.folder_id] = folder

    def remove(self, folder: Folder) -> None:
        del self._folders[folder.folder_id]

    def all(self) -> list[Folder]:
        return sorted(self._folders.values(), key=lambda folder: folder.path)

    def rooted(self, root: Path) -> Folder | None:
        """The folder of exactly this root, without asking the disk."""
        return next((folder for folder in self._folders.values() if folder.path == root), None)

    def at(self, directory: str) -> Folder:
        """The folder whose root is `directory`; UsageError when there is none."""
        folder = self.rooted(Path(os.path.realpath(directory)))
        if folder is None:
            raise UsageError(f"{directory} is not a watched folder. See: p2pstore folders")
        return folder

    def of(self, path: str) -> tuple[Folder, bytes] | None:
        """(folder, path in it) of an absolute path; None when it lies in no watched folder."""
        parent, name = os.path.split(os.path.abspath(path))
        whole = Path(os.path.realpath(parent)) / name
        for folder in self._folders.values():
            if whole == folder.path:
                return folder, b""
            if whole.is_relative_to(folder.path):
                return folder, os.fsencode(whole.relative_to(folder.path))
        return None

    def need(self, path: str) -> tuple[Folder, bytes]:
        found = self.of(path)
        if found is None:
            raise UsageError(f"{path} lies in no watched folder. Add it: p2pstore add-folder DIR")
        return found
