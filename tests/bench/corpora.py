"""What is measured: files made of what lies on this machine."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCES = (".py", ".h", ".c", ".hpp", ".js", ".rst", ".txt", ".md", ".pl", ".pm", ".html", ".css")
LARGEST_SOURCE = 64 << 10
PIECE = 1 << 20


class Size(NamedTuple):
    """Bytes of the two large files, number of small ones."""

    compressible: int
    random: int
    files: int


SIZES = {
    "small": Size(256 << 20, 128 << 20, 4_000),
    "full": Size(2 << 30, 1 << 30, 32_000),
}


class Corpus(NamedTuple):
    name: str
    path: Path  # a directory
    files: int
    bytes: int


def build(base: Path, size: Size) -> list[Corpus]:
    """The three corpora below `base`; smaller ones where the machine has no more to give."""
    compressible, random, tree = base / "compressible", base / "random", base / "tree"
    for directory in (compressible, random, tree):
        directory.mkdir(parents=True)
    _tar(Path("/usr/lib"), compressible / "usr-lib.tar", size.compressible)
    with open(random / "random.bin", "wb") as file:
        for _ in range(size.random // PIECE):
            file.write(os.urandom(PIECE))
    _sources(tree, size.files)
    return [_measured(directory) for directory in (compressible, random, tree)]


def _measured(directory: Path) -> Corpus:
    sizes = [
        (Path(parent) / name).stat().st_size
        for parent, _, names in os.walk(directory)
        for name in names
    ]
    return Corpus(directory.name, directory, len(sizes), sum(sizes))


class _Full(Exception):
    pass


class _Cut:
    """A file that takes so many bytes and no more."""

    def __init__(self, path: Path, limit: int) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by `close`
        self._left = limit

    def write(self, content: bytes) -> int:
        self._file.write(content[: self._left])
        self._left -= len(content)
        if self._left <= 0:
            raise _Full
        return len(content)

    def close(self) -> None:
        self._file.close()


def _tar(source: Path, target: Path, limit: int) -> None:
    """The first `limit` bytes of a tar of `source`."""
    cut = _Cut(target, limit)
    try:
        with tarfile.open(fileobj=cut, mode="w|") as tar:  # type: ignore[call-overload]
            for path in _regular(source):
                tar.add(path, recursive=False)
    except _Full:
        pass
    finally:
        cut.close()


def _regular(directory: Path) -> Iterator[Path]:
    for parent, directories, names in os.walk(directory):
        directories.sort()
        for name in sorted(names):
            path = Path(parent) / name
            try:
                if stat.S_ISREG(path.lstat().st_mode) and os.access(path, os.R_OK):
                    yield path
            except OSError:
                continue


def _sources(target: Path, count: int) -> None:
    """Up to `count` small source files with the directories that they lie in."""
    taken = 0
    common = [Path(place) for place in ("/usr/include", "/usr/share", "/usr/lib", "/usr/local")]
    for place in (Path(sys.base_prefix) / "lib", *common, *_other_pythons()):
        for path in _regular(place):
            if path.suffix not in SOURCES or not 0 < path.stat().st_size <= LARGEST_SOURCE:
                continue
            copy = target / path.relative_to("/")
            if copy.exists():
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
            taken += 1
            if taken == count:
                return


def _other_pythons() -> list[Path]:
    here = Path(sys.base_prefix)
    return sorted(path / "lib" for path in here.parent.glob("*") if path != here)
