"""Places on file systems of other kinds, each with what it lacks. Needs root.

    xfs, btrfs  a whole file system, as a user's second disk has it
    overlay     leases and unnamed files work, inode numbers may change
    fuse        another program answers (bindfs): no unnamed files, and writers we cannot see

A place that cannot be made here is skipped with the reason.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.loop import Loop, run, why_not

MIB = 1 << 20
LOOPS = {"ext4": 64 * MIB, "xfs": 300 * MIB, "btrfs": 114 * MIB}  # the smallest that mkfs makes
KINDS = ("xfs", "btrfs", "overlay", "fuse")


@contextmanager
def mounted(kind: str, base: Path) -> Iterator[Path]:
    """A fresh place of that kind below `base`, mounted; pytest.skip when there can be none."""
    if reason := why_not(f"mkfs.{kind}") if kind in LOOPS else why_not():
        pytest.skip(reason)
    at = base / f"{kind}-place"
    if kind in LOOPS:
        loop = Loop(base / f"{kind}-image", at, size=LOOPS[kind], kind=kind)
        loop.mount()
        try:
            yield at
        finally:
            loop.close()
        return
    at.mkdir()
    behind = behind_of(at)
    behind.mkdir()
    if kind == "fuse":
        if shutil.which("bindfs") is None:
            pytest.skip("bindfs is not installed")
        command = ("bindfs", str(behind), str(at))
    else:
        lower, work = base / "lower", base / "work"
        lower.mkdir()
        work.mkdir()
        options = f"lowerdir={lower},upperdir={behind},workdir={work}"
        command = ("mount", "-t", "overlay", "overlay", "-o", options, str(at))
    with _mounted(at, *command):
        yield at


@contextmanager
def read_only(at: Path) -> Iterator[None]:
    """Nobody can write below `at` any more, until the end."""
    with _mounted(at, "mount", "--bind", str(at), str(at)):
        run("mount", "-o", "remount,bind,ro", str(at))
        yield


def behind_of(at: Path) -> Path:
    """Where the program behind a `fuse` place keeps its files."""
    return at.with_name(f"{at.name}-behind")


@contextmanager
def _mounted(at: Path, *command: str) -> Iterator[None]:
    try:
        run(*command)
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"{command[0]} does not work here: {exc.stderr.strip()}")
    try:
        yield
    finally:
        # Lazily: a node that is still there must not keep the place.
        run("umount", "-l", str(at))
