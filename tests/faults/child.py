"""A process that does one job on a `World` and may be killed at any of its writes.

    python -m tests.faults.child   reads one JSON job a line: {base, job, names, kill_at, mutant,
                                   power, flush}

    python -m tests.faults.child BASE JOB NAME...   does one job, to be killed from outside

Each job runs in a fork of its own, so that the interpreter starts once. Calls that change something
on a disk are counted from 1; before call number `kill_at` the fork kills itself with SIGKILL; with
`power` it first takes the power from the ext4 at that path, and what was not synced is lost.
Answers one JSON line: {"killed", "calls", "error"}.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from p2pstore import syscalls
from p2pstore.leases import LeaseKeeper
from p2pstore.placement import root as placement_root
from p2pstore.store import Catalog
from tests.faults import mutants
from tests.faults.world import World

_CHANGING = [
    *("write", "pwrite", "writev", "pwritev", "ftruncate", "fsync", "fdatasync"),
    *("rename", "unlink", "rmdir", "link", "mkdir", "utime", "fchmod", "fchown", "setxattr"),
]


EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
_FSYNC = os.fsync


class Countdown:
    """Counts what changes the disk; the call whose number is `kill_at` is not made any more."""

    def __init__(self, kill_at: int, power: str = "", *, flush: bool = False) -> None:
        self.kill_at = kill_at
        self._power = power  # where the file system is mounted whose power is cut
        self._flush = flush  # somebody else's fsync made its journal durable just before
        self.calls = 0
        self._lock = threading.RLock()  # the end itself makes calls that are counted

    def hit(self) -> None:
        with self._lock:  # held to the end: no other thread changes anything after the cut
            self.calls += 1
            if self.calls == self.kill_at:
                if self._power:
                    self._cut_power()
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()

    def _cut_power(self) -> None:
        mounted = os.open(self._power, os.O_RDONLY)
        if self._flush:
            # Names become durable so, and contents that were not allocated yet do not.
            other = os.open("lost+found/other", os.O_RDWR | os.O_CREAT, dir_fd=mounted)
            _FSYNC(other)
        fcntl.ioctl(mounted, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.hit()
            return function(*args, **kwargs)

        return counted

    def install(self) -> None:
        for name in _CHANGING:
            setattr(os, name, self.around(getattr(os, name)))
        opens = os.open

        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_CREAT | os.O_TRUNC):
                self.hit()
            return opens(path, flags, *args, **kwargs)

        os.open = opened  # type: ignore[assignment]
        syscalls._renameat2 = self.around(syscalls._renameat2)
        placement_root.syncfs = self.around(placement_root.syncfs)  # type: ignore[attr-defined]
        commits = Catalog._commit_group

        def committed(catalog: Catalog, first: Any) -> bool:
            self.hit()
            ended = commits(catalog, first)
            self.hit()
            return ended

        Catalog._commit_group = committed  # type: ignore[method-assign]


def work(base: Path, job: str, names: list[str]) -> None:
    made = World(base)
    if job == "replace":
        made.replace(*names)
    elif job == "hydrate":
        for brought in made.hydrate(*names):
            if brought.error is not None:
                raise brought.error
    elif job == "recover":
        made.recover()
    elif job == "empty":
        made.recover()
        made.empty_trash()
    else:
        raise ValueError(job)
    made.close()


def run(order: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        countdown = Countdown(
            order.get("kill_at") or 0, order.get("power") or "", flush=bool(order.get("flush"))
        )
        error = ""
        try:
            if order.get("mutant"):
                mutants.MUTANTS[order["mutant"]](setattr)
            countdown.install()
            work(Path(order["base"]), order["job"], order["names"])
        except BaseException:
            error = traceback.format_exc()
        raw = json.dumps({"killed": False, "calls": countdown.calls, "error": error}).encode()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(raw)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return json.loads(answer) if answer else {"killed": True, "calls": 0, "error": ""}


def main() -> None:
    LeaseKeeper.block_signals()
    if len(sys.argv) > 1:
        work(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
        return
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
