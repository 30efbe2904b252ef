"""What the ways of the long run came to, and where they work."""

from __future__ import annotations

import math
import os
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from p2pstore.errors import P2PStoreError

MEMORY = Path("/dev/shm")
ROOM = 2 << 30


@dataclass(frozen=True)
class Order:
    """How many points one process tries, and until when (monotonic clock)."""

    seed: int
    points: int
    until: float = math.inf

    def numbers(self) -> Iterator[int]:
        for number in range(self.points):
            if time.monotonic() > self.until:
                return
            yield number


@dataclass
class Row:
    """What one way came to."""

    name: str
    points: int = 0
    files: int = 0
    lost: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # what else there is to tell
    note: str = ""

    def add(self, other: Row) -> None:
        self.points += other.points
        self.files += other.files
        self.lost += other.lost
        self.counts += other.counts
        self.note = other.note or self.note

    def attempt(self, what: str, trial: Callable[[], object]) -> None:
        """One point; that something is not as it must be is a loss."""
        self.points += 1
        try:
            trial()
        except (AssertionError, P2PStoreError, OSError, sqlite3.Error) as exc:
            self.lost.append(f"{what}: {type(exc).__name__}: {str(exc)[:1000]}")

    def line(self, seconds: float) -> str:
        counts = f"{self.points:>6,} points  {self.files:>9,} files  {len(self.lost):>3} lost"
        told = ", ".join([f"{n:,} {what}" for what, n in self.counts.items()] + [self.note])
        return f"{self.name:<10} {counts}  {seconds:6.0f} s  {told.rstrip(', ')}"


@contextmanager
def place(*, in_memory: bool = False) -> Iterator[Path]:
    """A directory for a while. `in_memory`: for what does not ask how a disk forgets."""
    parent = "/var/tmp"
    if in_memory and os.access(MEMORY, os.W_OK):
        room = os.statvfs(MEMORY)
        if room.f_bavail * room.f_frsize >= ROOM:
            parent = os.fspath(MEMORY)
    with tempfile.TemporaryDirectory(prefix="p2pstore-faults-", dir=parent) as made:
        yield Path(made)
