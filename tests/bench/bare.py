"""The bare pipeline: what the libraries and the disk allow when there is no node around them.

    python -m tests.bench.bare protect|replace SOURCE WORK

Same chunker, zstd, cipher, hashes; same bundles of 16 MiB with fsync, rename and fsync of the
directory; same read-back from disk; `replace` with the same leases, unnamed files, syncs, renames
and commits in batches of 500; `restore` with the same checks and syncs. What it has not: catalog,
manifests, deduplication, watcher, any other thread that wants the interpreter.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from p2pstore.content import (
    BUNDLE_BYTES,
    CHUNK_MAX,
    Chunker,
    SealedBlock,
    Sealer,
    Unsealer,
    block_id_of,
    dedup_key,
)
from p2pstore.node.life import tune
from p2pstore.syscalls import link_fd, rename_noreplace, syncfs
from tests.bench.measure import Phase

SECRET = b"bare".ljust(32, b".")
WINDOW = 4 << 20
BATCH_FILES, BATCH_BYTES = 500, 64 << 20
IN_FLIGHT = 6
PLACEHOLDER = os.urandom(1000)
THREADS = os.cpu_count() or 2

_local = threading.local()


class Stored(NamedTuple):
    bundle: Path
    offset: int
    length: int
    key: bytes
    block_id: bytes
    fingerprint: bytes


class File(NamedTuple):
    path: Path
    mode: int
    mtime_ns: int
    hash: bytes
    blocks: list[Stored]


def _sealer() -> Sealer:
    if not hasattr(_local, "sealer"):
        _local.sealer, _local.unsealer = Sealer(SECRET), Unsealer()
        _local.chunker = Chunker()
    return _local.sealer  # type: ignore[no-any-return]


Sealed = tuple[SealedBlock, bytes]


def _seal(payloads: Sequence[bytes | memoryview]) -> list[Sealed]:
    seal = _sealer().seal
    return [(seal(payload), dedup_key(SECRET, payload)) for payload in payloads]


class Bundles:
    """Appends blocks; a full bundle is synced, renamed and read back in the pool."""

    def __init__(self, work: Path, pool: ThreadPoolExecutor | None) -> None:
        self._work = work
        self._pool = pool
        self._open: list[Stored] = []
        self._fd, self._size, self._final = -1, 0, work
        self.finished: list[Future[None]] = []

    def append(self, sealed: Sequence[Sealed]) -> list[Stored]:
        stored: list[Stored] = []
        buffers: list[bytes] = []
        if self._fd < 0:
            name = os.urandom(16).hex()
            self._final, self._size = self._work / name, 0
            self._fd = os.open(f"{self._final}.open", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        at = self._size
        for block, fingerprint in sealed:
            length = len(block.block)
            stored.append(Stored(self._final, at, length, block.key, block.block_id, fingerprint))
            buffers.append(block.block)
            at += length
        for start in range(0, len(buffers), 1000):
            self._size += os.pwritev(self._fd, buffers[start : start + 1000], self._size)
        self._open.extend(stored)
        if self._size >= BUNDLE_BYTES:
            self.close()
        return stored

    def close(self) -> None:
        if self._fd < 0:
            return
        fd, final, blocks = self._fd, self._final, self._open
        self._fd, self._open = -1, []
        if self._pool is None:
            _finish(fd, final, blocks)
        else:
            self.finished.append(self._pool.submit(_finish, fd, final, blocks))


def _finish(fd: int, final: Path, blocks: Sequence[Stored]) -> None:
    os.fsync(fd)
    os.rename(f"{final}.open", final)
    directory = os.open(final.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    _sealer()
    for stored in blocks:
        payload = _local.unsealer.unseal(os.pread(fd, stored.length, stored.offset), stored.key)
        assert dedup_key(SECRET, payload) == stored.fingerprint
    os.close(fd)


# -- protect ---------------------------------------------------------------------------------------


def _windows(fd: int, size: int) -> Iterator[tuple[bytearray, list[int]]]:
    chunker, carry, left = Chunker(), b"", size
    while left or carry:
        buffer = bytearray(WINDOW + CHUNK_MAX)
        buffer[: len(carry)] = carry
        view = memoryview(buffer)
        got = os.readv(fd, [view[len(carry) : len(carry) + min(WINDOW, left)]]) if left else 0
        left -= got
        filled = len(carry) + got
        lengths = chunker.cut(view[:filled], final=not left)
        carry = bytes(view[sum(lengths) : filled])
        yield buffer, lengths


def _seal_window(buffer: bytearray, lengths: Sequence[int]) -> list[Sealed]:
    view, at, payloads = memoryview(buffer), 0, []
    for length in lengths:
        payloads.append(view[at : at + length])
        at += length
    return _seal(payloads)


def _large(path: Path, work: Path, pool: ThreadPoolExecutor) -> File:
    bundles, blocks, hasher = Bundles(work, pool), list[Stored](), blake3()
    flying: deque[Future[list[Sealed]]] = deque()
    fd = os.open(path, os.O_RDONLY)
    stat = os.fstat(fd)
    for buffer, lengths in _windows(fd, stat.st_size):
        flying.append(pool.submit(_seal_window, buffer, lengths))
        hasher.update(memoryview(buffer)[: sum(lengths)])
        while len(flying) >= IN_FLIGHT or (flying and flying[0].done()):
            blocks.extend(bundles.append(flying.popleft().result()))
    while flying:
        blocks.extend(bundles.append(flying.popleft().result()))
    os.close(fd)
    bundles.close()
    for future in bundles.finished:
        future.result()
    return File(path, stat.st_mode, stat.st_mtime_ns, hasher.digest(), blocks)


def _small(batch: Sequence[tuple[int, Path]], work: Path) -> list[File]:
    """A batch of small open files, wholly in the calling thread."""
    _sealer()
    bundles = Bundles(work, None)
    files: list[File] = []
    for fd, path in batch:
        stat = os.fstat(fd)
        content = os.pread(fd, stat.st_size, 0)
        view, at, payloads = memoryview(content), 0, []
        for length in _local.chunker.cut(view, final=True):
            payloads.append(view[at : at + length])
            at += length
        digest = blake3(content).digest()
        files.append(
            File(path, stat.st_mode, stat.st_mtime_ns, digest, bundles.append(_seal(payloads)))
        )
    bundles.close()
    return files


def _batches(source: Path) -> tuple[list[list[Path]], list[Path]]:
    """Small files in batches, and large ones."""
    small: list[list[Path]] = [[]]
    large: list[Path] = []
    held = 0
    for parent, _, names in os.walk(source):
        for name in names:
            path = Path(parent) / name
            size = path.stat().st_size
            if size > WINDOW:
                large.append(path)
                continue
            if len(small[-1]) >= BATCH_FILES or held + size > BATCH_BYTES:
                small.append([])
                held = 0
            small[-1].append(path)
            held += size
    return [batch for batch in small if batch], large


def _protect(paths: Sequence[Path], work: Path) -> list[File]:
    opened = [(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), path) for path in paths]
    files = _small(opened, work)
    for fd, _ in opened:
        os.close(fd)
    return files


# -- replace ---------------------------------------------------------------------------------------


def _replace(paths: Sequence[Path], source: Path, work: Path) -> list[File]:
    """`_small` between taking the leases and the steps of a replacement."""
    root = os.open(source, os.O_RDONLY)
    trash = source / ".trash" / os.urandom(4).hex()
    opened = [(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), path) for path in paths]
    for fd, _ in opened:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    files = _small(opened, work)
    _commit(work, files)
    _place(root, files)
    _commit(work, files)
    parents: set[Path] = set()
    for (fd, _), file in zip(opened, files, strict=True):
        there = trash / file.path.relative_to(source)
        if there.parent not in parents:
            there.parent.mkdir(parents=True, exist_ok=True)
            parents.add(there.parent)
        rename_noreplace(-100, os.fsencode(file.path), -100, os.fsencode(there))
        assert fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_RDLCK
        os.fstat(fd)
    syncfs(root)
    _commit(work, files)
    for fd, _ in opened:
        os.close(fd)
    os.close(root)
    return files


def _place(root: int, files: Sequence[File]) -> None:
    """The placeholders: written, synced, named, synced, read back."""
    directories: dict[Path, int] = {}
    unnamed: list[int] = []
    for file in files:
        parent = file.path.parent
        if parent not in directories:
            directories[parent] = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR, 0o600, dir_fd=directories[parent])
        os.write(fd, PLACEHOLDER)
        os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
        unnamed.append(fd)
    syncfs(root)
    for fd, file in zip(unnamed, files, strict=True):
        link_fd(fd, directories[file.path.parent], os.fsencode(file.path.name + ".f"))
        os.close(fd)
    syncfs(root)
    for file in files:
        name = os.fsencode(file.path.name + ".f")
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directories[file.path.parent])
        assert os.read(fd, 4096) == PLACEHOLDER
        os.close(fd)
    for fd in directories.values():
        os.close(fd)


_commits = threading.Lock()


def _commit(work: Path, files: Sequence[File]) -> None:
    """A row for each file in a database that syncs, one writer at a time."""
    with _commits:
        db = sqlite3.connect(work / "rows.sqlite")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("CREATE TABLE IF NOT EXISTS rows (path BLOB PRIMARY KEY, hash BLOB)")
        db.executemany(
            "INSERT OR REPLACE INTO rows VALUES (?,?)",
            [(os.fsencode(file.path), file.hash) for file in files],
        )
        db.commit()
        db.close()


# -- restore ---------------------------------------------------------------------------------------


def _unseal(blocks: Sequence[Stored]) -> list[bytes]:
    _sealer()
    payloads: list[bytes] = []
    opened: dict[Path, int] = {}
    for stored in blocks:
        fd = opened.get(stored.bundle)
        if fd is None:
            fd = opened[stored.bundle] = os.open(stored.bundle, os.O_RDONLY)
        block = os.pread(fd, stored.length, stored.offset)
        assert block_id_of(block) == stored.block_id
        payloads.append(_local.unsealer.unseal(block, stored.key))
    for fd in opened.values():
        os.close(fd)
    return payloads


def _restore_small(files: Sequence[File]) -> None:
    root = os.open(files[0].path.parent, os.O_RDONLY)
    opened: list[int] = []
    for file in files:
        content = b"".join(_unseal(file.blocks))
        assert blake3(content).digest() == file.hash
        fd = os.open(file.path.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, content)
        os.fchmod(fd, file.mode & 0o777)
        os.utime(fd, ns=(file.mtime_ns, file.mtime_ns))
        opened.append(fd)
    syncfs(root)
    for fd, file in zip(opened, files, strict=True):
        parent = os.open(file.path.parent, os.O_RDONLY)
        link_fd(fd, parent, os.fsencode(file.path.name))
        os.close(parent)
        os.close(fd)
    syncfs(root)
    os.close(root)


def _restore_large(file: File, pool: ThreadPoolExecutor) -> None:
    fd = os.open(file.path.parent, os.O_TMPFILE | os.O_RDWR, 0o600)
    hasher, flying, at = blake3(), deque[Future[list[bytes]]](), 0
    groups = [file.blocks[i : i + 16] for i in range(0, len(file.blocks), 16)]
    while groups or flying:
        while groups and len(flying) < 4:
            flying.append(pool.submit(_unseal, groups.pop(0)))
        for payload in flying.popleft().result():
            hasher.update(payload)
            at += os.pwrite(fd, payload, at)
    assert hasher.digest() == file.hash
    os.fsync(fd)
    parent = os.open(file.path.parent, os.O_RDONLY)
    link_fd(fd, parent, os.fsencode(file.path.name))
    os.fsync(parent)
    os.close(fd)


def main(how: str, first: str, second: str) -> None:
    tune()
    source, work = Path(first), Path(second)
    files: list[File] = []
    small, large = _batches(source)
    with ThreadPoolExecutor(THREADS) as pool:
        with Phase(how):
            take = _protect if how == "protect" else (lambda b, w: _replace(b, source, w))
            done = [pool.submit(take, batch, work) for batch in small]
            batches = [future.result() for future in done]
            files = [_large(path, work, pool) for path in large]
        if how == "replace":
            for path in large:
                path.unlink()  # a large file is replaced in no time: there is nothing to measure
            with Phase("restore"):
                landing = [pool.submit(_restore_small, batch) for batch in batches]
                for future in landing:
                    future.result()
                for file in files:
                    _restore_large(file, pool)


if __name__ == "__main__":
    main(*sys.argv[1:])
