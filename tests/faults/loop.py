"""A disk of our own in an image file: to be filled up, unplugged, and to have its power cut.

Needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from p2pstore.syscalls import syncfs

# No reserved blocks and no lazy work: what is free is free, and nobody writes behind us.
MAKE = {
    "ext4": ("-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("-q",),
    "btrfs": ("-q",),
    "vfat": (),
}


def why_not(*tools: str) -> str:
    """Why no image can be mounted here; empty when it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "mounting an image needs root"
    needed = (*(tools or ("mkfs.ext4",)), "mount", "umount")
    missing = [tool for tool in needed if shutil.which(tool) is None]
    return f"{', '.join(missing)} is not installed" if missing else ""


class Loop:
    """One image; `mount` and `umount` may follow each other."""

    def __init__(self, image: Path, at: Path, *, size: int, kind: str = "ext4") -> None:
        self.image, self.at = image, at
        with open(image, "wb") as file:
            file.truncate(size)
        run(f"mkfs.{kind}", *MAKE[kind], str(image))
        at.mkdir(exist_ok=True)

    def mount(self) -> None:
        try:
            run("mount", "-o", "loop", str(self.image), str(self.at))
        except subprocess.CalledProcessError as exc:
            pytest.skip(f"no loop device here: {exc.stderr.strip()}")

    def umount(self) -> None:
        with suppress(OSError):  # its power is cut off: nothing is written any more
            self._sync()
        run("umount", str(self.at))
        if self._is_in_use():
            # A mount namespace that was made meanwhile (a test of networks, a container) has the
            # mount too: the next one would get its file system, with its power cut off. What it has
            # not written yet is not in the image.
            fresh = self.image.with_name(f"{self.image.name}-fresh")
            shutil.copyfile(self.image, fresh)
            os.replace(fresh, self.image)

    def _sync(self) -> None:
        top = os.open(self.at, os.O_RDONLY | os.O_DIRECTORY)
        try:
            syncfs(top)
        finally:
            os.close(top)

    def _is_in_use(self) -> bool:
        for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
            with suppress(OSError):  # detached just now
                if backing.read_text().rstrip("\n") == str(self.image.resolve()):
                    return True
        return False

    def can_umount(self) -> bool:
        """Whether it is unmounted now; False while something is open there."""
        try:
            self.umount()
        except subprocess.CalledProcessError:
            return False
        return True

    def unplug(self) -> None:
        """Gone from the tree at once, whoever still has something open there."""
        run("umount", "-l", str(self.at))

    def close(self) -> None:
        if os.path.ismount(self.at):
            self.unplug()
        self.image.unlink(missing_ok=True)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
