"""Another program that writes the same files in every way there is, while they are replaced.

    python -S saboteur.py FOLDER SEED ROUNDS NAME...

Each round gives one file a new whole content, by another kind of write. At the end one JSON line
says what each file was last made to hold. A file that has become a placeholder is simply made anew,
as an editor does that holds no descriptor.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import random
import sys
import time


def truncate(path: str, content: bytes) -> None:
    with open(path, "wb", buffering=0) as file:
        file.write(content)


def in_place(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    for at in range(0, len(content), 1000):
        os.pwrite(fd, content[at : at + 1000], at)
    os.ftruncate(fd, len(content))
    os.close(fd)


def append(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.ftruncate(fd, 0)
    os.write(fd, content[: len(content) // 2])
    os.write(fd, content[len(content) // 2 :])
    os.close(fd)


def by_rename(path: str, content: bytes) -> None:
    aside = path + ".tmp"
    with open(aside, "wb", buffering=0) as file:
        file.write(content)
    os.replace(aside, path)


def mapped(path: str, content: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(fd, len(content))
    shared = mmap.mmap(fd, len(content))
    os.close(fd)
    shared[:] = content[::-1]
    shared[:] = content  # a store to a page that is dirty already: no time changes
    shared.close()


def back_dated(path: str, content: bytes) -> None:
    before = (1, 1)
    with contextlib.suppress(FileNotFoundError):
        stat = os.stat(path)
        before = (stat.st_atime_ns, stat.st_mtime_ns)
    in_place(path, content)
    with contextlib.suppress(FileNotFoundError):
        os.utime(path, ns=before)


WAYS = [truncate, in_place, append, by_rename, mapped, back_dated]


def main() -> None:
    folder, seed, rounds, *names = sys.argv[1:]
    dice = random.Random(int(seed))
    last: dict[str, str] = {}
    for number in range(int(rounds)):
        name, way = dice.choice(names), dice.choice(WAYS)
        # Of one size mostly, so that only the bytes tell.
        size = dice.choice([4000, 4000, 4000, 20_000])
        stamp = f"{seed} {name} {number} {way.__name__} ".encode()
        content = (stamp * (1 + size // len(stamp)))[:size]
        way(os.path.join(folder, name), content)
        last[name] = content.decode()
        time.sleep(dice.random() * 0.008)  # files must come to rest for a moment to be taken
    print(json.dumps(last))


if __name__ == "__main__":
    main()
