"""Pieces through carriers, beside the plainest way to the same place.

    python -m tests.bench.carriers pictures|folder|s3 p2pstore|bare WORK ADDRESS

pictures: encode and decode, in one thread; bare is Pillow, without compression too. folder: files
written and synced one by one; bare is a loop of open, write, fsync and rename. s3: one server
process for both, at ADDRESS; bare is boto3. Pieces are random bytes, some at a time; what is got is
compared with what was put, outside of the time.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from p2pstore.carriers import FolderConfig, make_carrier, prepare
from p2pstore.content import capacity, decode_picture, encode_picture
from tests.bench.measure import Phase
from tests.carriers.servers import BUCKET, s3_config

SIDE = (1024, 768)
SIZES = {"pictures": capacity(*SIDE), "folder": 16 << 20, "s3": 8 << 20}  # of a piece
COUNTS = {"pictures": 100, "folder": 32, "s3": 16}
AT_ONCE = 4


def _pieces(kind: str) -> list[bytes]:
    return [os.urandom(SIZES[kind]) for _ in range(COUNTS[kind])]


def _pictures(encode: Callable[[bytes], bytes], decode: Callable[[bytes], bytes]) -> None:
    pieces = _pieces("pictures")[:20]  # of which memory stays small
    rounds = COUNTS["pictures"] // len(pieces)
    with Phase("encode"):
        for _ in range(rounds):
            pictures = [encode(piece) for piece in pieces]
    with Phase("decode"):
        for _ in range(rounds):
            for picture in pictures:
                decode(picture)
    assert [decode(picture)[: len(pieces[0])] for picture in pictures] == pieces
    overhead = sum(map(len, pictures)) / sum(map(len, pieces)) - 1
    print(f"{overhead:.3%} larger than what is in them", file=sys.stderr)


def _pillow() -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    from PIL import Image

    def encode(piece: bytes) -> bytes:
        out = io.BytesIO()
        Image.frombytes("RGB", SIDE, piece + bytes(4)).save(out, "PNG", compress_level=0)
        return out.getvalue()

    def decode(picture: bytes) -> bytes:
        with Image.open(io.BytesIO(picture)) as opened:
            return opened.tobytes()

    return encode, decode


async def _by_carrier(config: Any, pieces: Sequence[bytes]) -> None:
    carrier = make_carrier("bench", config)
    await carrier.put("warm", b"")
    room = asyncio.Semaphore(AT_ONCE)

    async def put(number: int) -> str:
        async with room:
            return await carrier.put(f"piece-{number}", pieces[number])

    async def get(key: str) -> bytes:
        async with room:
            return await carrier.get(key)

    with Phase("put"):
        keys = await asyncio.gather(*map(put, range(len(pieces))))
    with Phase("get"):
        got = await asyncio.gather(*map(get, keys))
    assert got == list(pieces)
    await carrier.close()


def _bare(
    put: Callable[[str, bytes], object], get: Callable[[str], bytes], pieces: Sequence[bytes]
) -> None:
    names = [f"bare-{number}" for number in range(len(pieces))]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        with Phase("put"):
            list(pool.map(put, names, pieces))
        with Phase("get"):
            got = list(pool.map(get, names))
    assert got == list(pieces)


def _files(place: Path) -> tuple[Callable[[str, bytes], object], Callable[[str], bytes]]:
    def put(name: str, piece: bytes) -> None:
        with open(place / f"{name}.new", "wb") as file:
            file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.rename(place / f"{name}.new", place / name)

    return put, lambda name: place.joinpath(name).read_bytes()


def _boto3(address: str) -> tuple[Callable[[str, bytes], object], Callable[[str], bytes]]:
    import boto3

    client = boto3.client(
        "s3",
        endpoint_url=address,
        region_name="us-east-1",
        aws_access_key_id="someone",
        aws_secret_access_key="something",
    )
    client.put_object(Bucket=BUCKET, Key="warm", Body=b"")

    def get(name: str) -> bytes:
        body: bytes = client.get_object(Bucket=BUCKET, Key=name)["Body"].read()
        return body

    return lambda name, piece: client.put_object(Bucket=BUCKET, Key=name, Body=piece), get


def main(kind: str, who: str, work: str, address: str) -> None:
    ours, place = who == "p2pstore", Path(work)
    if kind == "pictures":
        _pictures(*((lambda p: encode_picture(p, *SIDE), decode_picture) if ours else _pillow()))
    elif not ours:
        _bare(*(_files(place) if kind == "folder" else _boto3(address)), _pieces(kind))
    elif kind == "folder":
        config = prepare(FolderConfig(path=str(place / "carrier")))
        asyncio.run(_by_carrier(config, _pieces(kind)))
    else:
        prefix = f"p2pstore-{place.name}"
        asyncio.run(_by_carrier(s3_config(address, prefix=prefix), _pieces(kind)))


if __name__ == "__main__":
    main(*sys.argv[1:])
