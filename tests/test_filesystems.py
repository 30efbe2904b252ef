"""Which file systems may hold what."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from p2pstore import filesystems
from p2pstore.syscalls import FileSystem, file_system

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's file systems")


def test_memory_is_volatile() -> None:
    if not Path("/dev/shm").is_dir() or file_system("/dev/shm") is not FileSystem.TMPFS:
        pytest.skip("no tmpfs at /dev/shm")
    assert "tmpfs" in (filesystems.is_volatile("/dev/shm") or "")
    assert "tmpfs" in (filesystems.is_volatile("/dev/shm/not/there/yet") or "")


@pytest.mark.parametrize(
    ("kind", "mounted", "volatile"),
    [
        (FileSystem.EXT4, "ext4", False),
        (FileSystem.XFS, "xfs", False),
        (FileSystem.BTRFS, "btrfs", False),
        (FileSystem.OTHER, "f2fs", False),
        (FileSystem.FUSE, "fuseblk", False),
        (FileSystem.FUSE, "fuse.sshfs", True),
        (FileSystem.FUSE, "", True),
        (FileSystem.NFS, "nfs4", True),
        (FileSystem.CIFS, "cifs", True),
        (FileSystem.NETWORK, "9p", True),
        (FileSystem.OVERLAY, "overlay", True),
        (FileSystem.RAMFS, "ramfs", True),
    ],
)
def test_what_is_volatile(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: FileSystem,
    mounted: str,
    volatile: bool,
) -> None:
    monkeypatch.setattr(filesystems, "file_system", lambda where: kind)
    monkeypatch.setattr(filesystems, "_mount_type", lambda device: mounted)
    assert (filesystems.is_volatile(tmp_path) is not None) is volatile
    # Memory and a container's layer go with this machine, but nobody else writes there.
    only_volatile = kind in (FileSystem.OVERLAY, FileSystem.RAMFS)
    assert (filesystems.is_remote(tmp_path) is not None) is (volatile and not only_volatile)


def test_link_to_memory_is_volatile(tmp_path: Path) -> None:
    if not Path("/dev/shm").is_dir() or filesystems.is_volatile("/dev/shm") is None:
        pytest.skip("no tmpfs at /dev/shm")
    (tmp_path / "home").symlink_to("/dev/shm")
    assert filesystems.is_volatile(tmp_path / "home" / "store") is not None


def test_mount_table_names_the_type() -> None:
    assert filesystems._mount_type(os.stat("/proc").st_dev) == "proc"
    assert filesystems._mount_type(os.makedev(4000, 4000)) == ""


def test_elsewhere_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "IS_LINUX", False)
    assert filesystems.is_volatile("/") is None
    assert filesystems.is_remote("/") is None
