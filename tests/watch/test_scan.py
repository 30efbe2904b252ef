from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from p2pstore import syscalls
from p2pstore.watch.scan import Seen, Unread, scan, stamp

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="watching is of Linux")


def paths(entries: Iterable[Seen | Unread]) -> set[bytes]:
    return {entry.path for entry in entries}


def tree(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "deep").write_bytes(b"12345")
    (root / "a" / "one").write_bytes(b"1")
    (root / "empty").mkdir()
    (root / "top").write_bytes(b"")


def test_every_entry_is_told_once(tmp_path: Path) -> None:
    tree(tmp_path)
    found = [entry.path for entry in scan(tmp_path)]
    assert sorted(found) == [b"a", b"a/b", b"a/b/deep", b"a/one", b"empty", b"top"]


def test_directory_comes_before_its_content(tmp_path: Path) -> None:
    tree(tmp_path)
    found = [entry.path for entry in scan(tmp_path)]
    assert found.index(b"a") < found.index(b"a/b") < found.index(b"a/b/deep")


def test_fields_are_those_of_lstat(tmp_path: Path) -> None:
    tree(tmp_path)
    (tmp_path / "link").symlink_to("top")
    for entry in scan(tmp_path):
        st = os.lstat(os.fsencode(tmp_path) + b"/" + entry.path)
        assert entry == Seen(
            entry.path,
            st.st_ino,
            st.st_dev,
            st.st_mode,
            st.st_nlink,
            st.st_uid,
            st.st_size,
            st.st_mtime_ns,
            st.st_ctime_ns,
        )
        assert isinstance(entry, Seen)


def test_what_is_as_it_was_is_not_told(tmp_path: Path) -> None:
    tree(tmp_path)
    known = {
        entry.path: stamp(entry.ino, entry.size, entry.mtime_ns, entry.ctime_ns) + b"more"
        for entry in scan(tmp_path)
        if isinstance(entry, Seen) and stat.S_ISREG(entry.mode)
    }
    known[b"gone"] = stamp(1, 2, 3, 4)
    (tmp_path / "a" / "one").write_bytes(b"22")
    (tmp_path / "new").write_bytes(b"")
    assert paths(scan(tmp_path, known=known)) == {b"a", b"a/b", b"a/one", b"empty", b"new"}
    assert set(known) == {b"a/one", b"gone"}


def test_descriptor_serves_as_root_and_stays_open(tmp_path: Path) -> None:
    tree(tmp_path)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    assert paths(scan(fd)) == paths(scan(tmp_path))
    assert paths(scan(fd)) == paths(scan(tmp_path))
    os.close(fd)


def test_part_of_a_tree(tmp_path: Path) -> None:
    tree(tmp_path)
    assert paths(scan(tmp_path, below=b"a")) == {b"a/b", b"a/b/deep", b"a/one"}
    assert paths(scan(tmp_path, below=b"a/b/")) == {b"a/b/deep"}


def test_our_own_directory_is_not_looked_into(tmp_path: Path) -> None:
    (tmp_path / ".p2pstore" / "trash").mkdir(parents=True)
    (tmp_path / "a").mkdir()
    assert paths(scan(tmp_path)) == {b"a"}
    assert b".p2pstore/trash" in paths(scan(tmp_path, prune=frozenset()))


def test_names_are_bytes(tmp_path: Path) -> None:
    names = {b"\xff\xfe", b"line\nbreak", b"n" * 255, "ü".encode(), b" ", b"-rf"}
    for name in names:
        os.mkdir(os.fsencode(tmp_path) + b"/" + name)
        with open(os.fsencode(tmp_path) + b"/" + name + b"/" + name, "wb"):
            pass
    assert paths(scan(tmp_path)) == names | {name + b"/" + name for name in names}


def test_links_are_told_and_never_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    tree(outside)
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to(outside)
    (root / "loop").symlink_to(".")
    (root / "dangling").symlink_to("none")
    found = list(scan(root))
    assert paths(found) == {b"out", b"loop", b"dangling"}
    assert all(isinstance(entry, Seen) and stat.S_ISLNK(entry.mode) for entry in found)


def test_directory_that_becomes_a_link_during_the_scan_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    tree(outside)
    root = tmp_path / "root"
    (root / "swapped").mkdir(parents=True)
    running = scan(root)
    assert next(running).path == b"swapped"
    (root / "swapped").rmdir()
    (root / "swapped").symlink_to(outside)
    (rest,) = running
    assert isinstance(rest, Unread)
    assert (rest.path, rest.error.errno) == (b"swapped", errno.ELOOP)


def test_root_that_is_a_link_or_missing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("link", "none"):
        with pytest.raises(OSError):
            list(scan(tmp_path / name))


def test_part_that_is_a_link_or_missing_is_unread(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in (b"link", b"none", b"../x"):
        (only,) = scan(tmp_path, below=name)
        assert isinstance(only, Unread)
        assert only.path == name


def test_directory_that_cannot_be_opened_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path)
    real = syscalls.open_beneath

    def failing(dirfd: int, path: bytes, flags: int, mode: int = 0) -> int:
        if path == b"a/b":
            raise PermissionError(errno.EACCES, "closed", path)
        return real(dirfd, path, flags, mode)

    monkeypatch.setattr(syscalls, "open_beneath", failing)
    found = list(scan(tmp_path))
    unread = [entry for entry in found if isinstance(entry, Unread)]
    assert [(one.path, one.error.errno) for one in unread] == [(b"a/b", errno.EACCES)]
    assert paths(found) == {b"a", b"a/b", b"a/one", b"empty", b"top"}


def test_directory_closed_to_us_is_said(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    if os.geteuid() == 0:
        script = (
            "import os, sys; from p2pstore.watch.scan import scan, Unread\n"
            "fd = os.open(sys.argv[1], os.O_RDONLY)\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "assert [type(e) is Unread for e in scan(fd)] == [False, True]\n"
        )
        tmp_path.chmod(0o755)
        root = str(Path(syscalls.__file__).parent.parent)
        subprocess.run(
            [sys.executable, "-c", script, tmp_path],
            check=True,
            env={**os.environ, "PYTHONPATH": root},
        )
    else:
        assert [type(entry) for entry in scan(tmp_path)] == [Seen, Unread]


class Breaking:
    """A listing that ends with an error after its first entry."""

    def __init__(self, real: os.DirEntry[str]) -> None:
        self.left = [real]

    def __enter__(self) -> Breaking:
        return self

    def __exit__(self, *args: object) -> None: ...

    def __iter__(self) -> Breaking:
        return self

    def __next__(self) -> os.DirEntry[str]:
        if not self.left:
            raise OSError(errno.EIO, "the disk is ill")
        return self.left.pop()


def test_listing_that_breaks_off_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path)
    with os.scandir(tmp_path) as entries:
        top = next(entry for entry in entries if entry.name == "top")
    monkeypatch.setattr(os, "scandir", lambda fd: Breaking(top))
    seen, unread = scan(tmp_path)
    assert isinstance(seen, Seen)
    assert isinstance(unread, Unread)
    assert (seen.path, unread.path, unread.error.errno) == (b"top", b"", errno.EIO)


class Ill:
    def __init__(self, name: str, code: int) -> None:
        self.name, self.code = name, code

    def stat(self, *, follow_symlinks: bool) -> os.stat_result:
        raise OSError(self.code, "ill")


@pytest.mark.parametrize(("code", "told"), [(errno.ENOENT, False), (errno.EIO, True)])
def test_entry_that_went_is_gone_and_one_that_fails_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: bool
) -> None:
    class Listing(Breaking):
        def __next__(self) -> os.DirEntry[str]:
            if not self.left:
                raise StopIteration
            return self.left.pop()

    monkeypatch.setattr(os, "scandir", lambda fd: Listing(Ill("x", code)))  # type: ignore[arg-type]
    found = list(scan(tmp_path))
    assert [(type(entry), entry.path) for entry in found] == ([(Unread, b"x")] if told else [])


def test_other_device_is_told_and_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path)
    inner = (tmp_path / "a").stat().st_ino
    real = os.fstat

    def elsewhere(fd: int) -> os.stat_result:
        st = real(fd)
        if st.st_ino == inner:
            fields = list(st)
            fields[2] += 1
            return os.stat_result(fields)
        return st

    monkeypatch.setattr(os, "fstat", elsewhere)
    assert paths(scan(tmp_path)) == {b"a", b"empty", b"top"}


@pytest.mark.root
def test_mounted_disk_is_not_entered(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", inner], capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    try:
        (inner / "file").write_bytes(b"x")
        assert paths(scan(tmp_path)) == {b"inner"}
    finally:
        subprocess.run(["umount", inner], check=True)


def test_scan_that_is_left_early_closes_what_it_opened(tmp_path: Path) -> None:
    tree(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    running = scan(tmp_path)
    next(running)
    running.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before


def test_depth_costs_no_descriptors(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("d" * 300)
    deep.mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    most = 0
    for _ in scan(tmp_path):
        most = max(most, len(os.listdir("/proc/self/fd")))
    assert most <= before + 3


def test_scan_is_quick(tmp_path: Path) -> None:
    for directory in range(4):
        (tmp_path / str(directory)).mkdir()
        for name in range(500):
            (tmp_path / str(directory) / str(name)).touch()
    best = 1.0
    for _ in range(3):
        began = time.thread_time()
        assert sum(1 for _ in scan(tmp_path)) == 2004
        best = min(best, time.thread_time() - began)
    assert 2004 / best > 50_000  # built for 100,000/s; half of it on a busy machine
