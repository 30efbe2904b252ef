"""Servers that carriers talk to, each a process of its own, on a port that was free."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.request import Request, urlopen

from p2pstore.carriers import S3Config

CHECKOUT = Path(__file__).parents[2]
BUCKET = "pieces"


@contextmanager
def started(*args: str | Path, said_by: str = "stdout", **env: str) -> Iterator[str]:
    """A module that runs as a program; the address in the first line that has one."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, args)],
        cwd=CHECKOUT,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if said_by == "stdout" else subprocess.DEVNULL,
        stderr=subprocess.PIPE if said_by == "stderr" else subprocess.DEVNULL,
        text=True,
    )
    pipe: IO[str] | None = getattr(process, said_by)
    assert pipe is not None
    reader = threading.Thread(target=lambda: [None for _ in pipe])  # so that it never blocks
    try:
        found = next((m[0] for line in pipe if (m := re.search(r"http://\S+:\d+", line))), None)
        assert found, f"{args[0]} did not start"
        reader.start()
        yield found
    finally:
        process.kill()
        process.wait()
        if reader.ident:
            reader.join()
        pipe.close()


@contextmanager
def s3_server(**env: str) -> Iterator[str]:
    with started("tests.carriers.s3server", said_by="stderr", **env) as address:
        yield address


def make_bucket(address: str, name: str = BUCKET) -> None:
    """Without credentials: the server checks none unless it was told to."""
    with urlopen(Request(f"{address}/{name}", method="PUT")) as answer:
        assert answer.status == 200


def s3_config(address: str, **changed: object) -> S3Config:
    fields = {"bucket": BUCKET, "access_key": "someone", "secret_key": "something"}
    return S3Config(**{**fields, "endpoint": address, "allow_http": True, **changed})  # type: ignore[arg-type]


@contextmanager
def picture_host(directory: Path, *options: str) -> Iterator[str]:
    with started("p2pstore.cli.picturehost", "--dir", directory, *options) as address:
        yield address
