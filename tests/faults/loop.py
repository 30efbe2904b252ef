"""An ext4 of our own in an image file: to be filled up, and to have its power cut. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def why_not() -> str:
    """Why no image can be mounted here; empty when it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "mounting an image needs root"
    missing = [tool for tool in ("mkfs.ext4", "mount", "umount") if shutil.which(tool) is None]
    return f"{', '.join(missing)} is not installed" if missing else ""


class Loop:
    """One image; `mount` and `umount` may follow each other."""

    def __init__(self, image: Path, at: Path, *, size: int) -> None:
        self.image, self.at = image, at
        with open(image, "wb") as file:
            file.truncate(size)
        # No reserved blocks and no lazy work: what is free is free, and nobody writes behind us.
        options = "lazy_itable_init=0,lazy_journal_init=0"
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", options, str(image))
        at.mkdir(exist_ok=True)

    def mount(self) -> None:
        try:
            _run("mount", "-o", "loop", str(self.image), str(self.at))
        except subprocess.CalledProcessError as exc:
            pytest.skip(f"no loop device here: {exc.stderr.strip()}")

    def umount(self) -> None:
        _run("umount", str(self.at))

    def close(self) -> None:
        if os.path.ismount(self.at):
            self.umount()
        self.image.unlink(missing_ok=True)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
