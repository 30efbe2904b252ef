"""Where the side files of held bundles lie, and that a disk error there ends all writing.

    root/<2 hex>/<hex>.side     the first byte of the bundle's id names the directory

What stands in one is the spec of `sidefile`. Many at once cost two syncs in all, not two each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from p2pstore.durable import replace_files, sync_directory
from p2pstore.errors import FormatError
from p2pstore.ids import BundleId
from p2pstore.store.bundles import BundleDamaged
from p2pstore.store.disk import DiskBundles, translated
from p2pstore.store.sidefile import SideFile, encode_side, read_side, write_side


class Sides:
    def __init__(self, root: Path, files: DiskBundles) -> None:
        """`files` is the store of the bundles: on a failed disk neither is written any more."""
        self._root = root
        self._files = files
        with translated("open the store of held bundles"):
            root.mkdir(mode=0o700, exist_ok=True)

    def path(self, bundle_id: BundleId) -> Path:
        name = bundle_id.hex()
        return self._root / name[:2] / f"{name}.side"

    def every(self) -> Iterator[tuple[BundleId, Path]]:
        """All that are there; files with other names are none of ours."""
        for path in sorted(self._root.glob("??/*.side")):
            with suppress(ValueError):
                yield BundleId(bytes.fromhex(path.stem)), path

    def read(self, bundle_id: BundleId) -> SideFile:
        """The whole side file, grants included."""
        try:
            return read_side(self.path(bundle_id), bundle_id)
        except (FormatError, OSError) as exc:
            raise BundleDamaged(bundle_id, "its side file cannot be read") from exc

    def grants(self, bundle_id: BundleId) -> tuple[bytes, ...]:
        """Those that are kept. A grant is the owner's to repeat: a side file that lost them must
        not stop a promise."""
        with suppress(FormatError, FileNotFoundError):
            return read_side(self.path(bundle_id), bundle_id).grants
        return ()

    def write(self, side: SideFile) -> None:
        """Durable when this returns."""
        self._files.refuse_when_failed()
        with self._files.failing():
            self._make_directory(side.bundle_id)
            write_side(self.path(side.bundle_id), side)

    def write_all(self, sides: Sequence[SideFile]) -> None:
        """All of them durable when this returns. After a crash within, each is the old one or the
        new one."""
        self._files.refuse_when_failed()
        with self._files.failing():
            for side in sides:
                self._make_directory(side.bundle_id)
            replace_files({self.path(side.bundle_id): encode_side(side) for side in sides})

    def remove(self, bundle_id: BundleId) -> None:
        self.path(bundle_id).unlink(missing_ok=True)

    def _make_directory(self, bundle_id: BundleId) -> None:
        directory = self.path(bundle_id).parent
        if not directory.exists():
            directory.mkdir(mode=0o700)
            sync_directory(self._root)
